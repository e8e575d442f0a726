"""The floor: forked processes that accept on one shared listening socket, and nothing else.

No dispatch, no limits, no timeouts, no look at what comes after the request: what plain Python reaches at
best with one connection per request.

    python -m peers.bare HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

import handlers

_HEADER = struct.Struct("!I")
_AT_ONCE = 65536  # bytes; a request that fits is read with one recv


def serve(listener: socket.socket, handler: Callable[[bytes], bytes]) -> NoReturn:
    """Answer one client after the other, for ever."""
    while True:
        client, _ = listener.accept()
        with client:
            try:
                client.sendall(handler(_recv_payload(client)))
            except ConnectionError:
                continue  # the client's own affair


def _recv_payload(client: socket.socket) -> bytes:
    data = client.recv(_AT_ONCE)
    while len(data) < _HEADER.size:
        more = client.recv(_AT_ONCE)
        if not more:
            raise ConnectionError("no header")
        data += more
    missing = _HEADER.unpack_from(data)[0] + _HEADER.size - len(data)
    if not missing:
        return data[_HEADER.size :]
    rest = client.recv(missing, socket.MSG_WAITALL)
    if len(rest) < missing:
        raise ConnectionError(f"{missing - len(rest)} bytes are missing")
    return data[_HEADER.size :] + rest


def main() -> None:
    """Fork, then wait for SIGTERM or SIGINT."""
    host, _, port = sys.argv[1].rpartition(":")
    handler: Callable[[bytes], bytes] = getattr(handlers, sys.argv[3])
    listener = socket.create_server((host, int(port)), backlog=4096)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    children = []
    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            serve(listener, handler)
        children.append(child)
    print("ready", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
