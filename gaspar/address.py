"""Addresses, `host:port`, `[v6]:port` and `unix:PATH`: read, listen on, connect to and print them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
import struct
from typing import NamedTuple

from .errors import AddressError, BindError

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn
MAX_UNIX_PATH = 107  # bytes: sun_path holds 108 with its closing NUL, unix(7)
# SO_LINGER on, 0 seconds: closing is a reset unless somebody decided otherwise, socket(7)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# a host that vanishes says nothing; its connections are given up after two minutes of silence, tcp(7)
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Address(NamedTuple):
    """Where a daemon listens: TCP with `host` and `port`, or a Unix socket with `path`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        AddressError: it is neither host:port, [v6]:port nor unix:PATH.
        TypeError: it is no string.
    """
    if not isinstance(text, str):
        raise TypeError(f"an address is a string like '127.0.0.1:10123', not {type(text).__name__}")
    if text.startswith("unix:"):
        return _parse_unix(text[len("unix:") :])
    if text.startswith("["):
        host, closed, port = text[1:].partition("]:")
        if not closed or not host or "[" in host or "]" in host:
            raise AddressError(f"address {text!r}: expected [v6]:port, like '[::1]:10123'")
    else:
        host, colon, port = text.rpartition(":")
        if not colon or not host or "[" in host or "]" in host:
            raise AddressError(f"address {text!r}: expected host:port, [v6]:port or unix:PATH")
        if ":" in host:
            raise AddressError(f"address {text!r}: write an IPv6 address in brackets, like '[::1]:10123'")
    return Address(host, parse_port(port, text))


def parse_port(port: str | int, where: str = "") -> int:
    """Read a port, 0 (take a free one) to 65535."""
    try:
        number = int(port) if isinstance(port, int) or re.fullmatch(r"[0-9]+", str(port)) else -1
    except ValueError:  # more digits than int() takes
        number = -1
    if not 0 <= number <= 65535:
        prefix = f"address {where!r}: " if where else ""
        raise AddressError(f"{prefix}port {port!r} is not a number from 0 to 65535")
    return number


def _parse_unix(path: str) -> Address:
    if not path or "\0" in path or not path.isprintable():
        raise AddressError("address 'unix:': a path must follow, like unix:/run/app/gaspar.sock")
    size = len(os.fsencode(path))
    if size > MAX_UNIX_PATH:
        raise AddressError(
            f"address 'unix:{path}': the path has {size} bytes, a Unix socket's may have {MAX_UNIX_PATH}"
        )
    return Address(path=path)


def listen(address: Address) -> socket.socket:
    """Listen on an address; on port 0 the kernel chooses (see `bound`).

    The socket is non-blocking. Closing a connection accepted from it is a reset until its linger is set off.

    Raises:
        BindError: the address is taken, not of this machine or not allowed.
    """
    try:
        listener = _listen_unix(address.path) if address.path else _listen_tcp(address)
    except OSError as error:
        raise BindError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
    except UnicodeError as error:  # a host name that cannot be one
        raise BindError(errno.EINVAL, f"cannot listen on {address}: not a host name") from error
    listener.setblocking(False)
    return listener


def _listen_tcp(address: Address) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        listener.bind(where)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket file of a daemon that was killed: one that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind says that the address is in use
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError:
            pass  # EAGAIN: a live one with a full backlog


def bound(listener: socket.socket) -> Address:
    """Say where a listener really listens."""
    name = listener.getsockname()
    return Address(path=name) if listener.family == socket.AF_UNIX else Address(name[0], name[1])


def connect(address: Address, timeout: float | None) -> socket.socket:
    """Connect a blocking socket within `timeout` seconds (None: as long as the kernel tries).

    Raises:
        OSError: as `socket.create_connection` and `connect` do.
    """
    # through the socket module's attributes at each call, so that monkey-patching is honoured
    if not address.path:
        connection = socket.create_connection((address.host, address.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out if the other host has vanished."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
