"""What a service manager offers: sockets that it has bound already, and a place to say how the daemon is.

Sources: sd_listen_fds(3), sd_notify(3). Without a service manager all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket

from .address import RESET_ON_CLOSE
from .errors import BindError

_FIRST = 3  # SD_LISTEN_FDS_START


def passes_sockets() -> bool:
    """True if this process was started with sockets to listen on."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def listeners() -> list[socket.socket]:
    """Return the listening sockets that were passed to this process; each is returned once.

    Raises:
        BindError: one of them is no listening stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return [_adopt(fd) for fd in range(_FIRST, _FIRST + int(count))]


def _adopt(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
        if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("not a listening stream socket")
    except OSError as error:
        text = f"cannot use the socket passed as descriptor {fd}: {error.strerror or error}"
        raise BindError(error.errno or 0, text) from error
    listener.set_inheritable(False)
    listener.setblocking(False)
    if listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return listener


def notify(state: str) -> None:
    """Say a state, "READY=1" for example, if anybody listens."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a manager that does not listen must not hold up the daemon
        sock.connect("\0" + where[1:] if where.startswith("@") else where)
        sock.send(state.encode())
