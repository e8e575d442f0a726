"""The upper bound: forked processes that answer kept connections, and nothing else.

The framed protocol's bytes (docs/protocol.rst) with a trivial parser: no dispatch, no limits, no timeouts. Each
connection belongs to one process, dealt in turn, so a long request holds up the others behind it.

    python -m peers.kept HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from itertools import cycle
from typing import NoReturn

import handlers

# size u32 | id u32 | kind u8 | code u8 | meta_size u16 | a u32 | b u32, then meta, then body
_HEADER = struct.Struct("!IIBBHII")
_MAGIC = b"GSP2"
_HELLO, _REPLY = 16, 17
_META = b'{"server":"kept","max_message":1073741823,"max_in_flight":100000}'
_GREETING = _HEADER.pack(0, 0, _HELLO, 0, len(_META), 0, 0) + _META
_AT_ONCE = 65536  # bytes; what is longer is read to where it stays, and sent after its header


Handler = Callable[[bytes | bytearray], bytes | bytearray]


class Connection:
    """One client."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.recv(len(_MAGIC), socket.MSG_WAITALL) != _MAGIC:
            raise ConnectionError("another protocol")
        sock.sendall(_GREETING)

    def serve(self, handler: Handler) -> None:
        """Answer what has come.

        Raises:
            ConnectionError: it has ended.
        """
        data = self._sock.recv(_AT_ONCE)
        if not data:
            raise ConnectionError("end of stream")
        data = self._rest + data if self._rest else data
        at = 0
        replies: list[bytes] = []
        payload: bytes | bytearray
        while len(data) - at >= _HEADER.size:
            size, name, _, _, meta_size, _, _ = _HEADER.unpack_from(data, at)
            begin = at + _HEADER.size + meta_size
            missing = begin + size - len(data)
            if missing > _AT_ONCE and begin <= len(data):  # not together from pieces
                self._send(b"".join(replies))
                replies.clear()
                body = bytearray(size)
                body[: size - missing] = memoryview(data)[begin:]
                _fill(self._sock, memoryview(body)[size - missing :])
                data, at = b"", 0
                payload = body
            elif missing > 0:
                break
            else:
                at = begin + size
                payload = data[begin:at]
            reply = handler(payload)
            header = _HEADER.pack(len(reply), name, _REPLY, 0, 0, 0, 0)
            if len(reply) > _AT_ONCE:
                self._send(b"".join([*replies, header]), socket.MSG_MORE)
                replies.clear()
                self._send(reply)
            else:
                replies.append(header + bytes(reply))
        self._rest = data[at:]
        self._send(b"".join(replies))

    def _send(self, data: bytes | bytearray, flags: int = 0) -> None:
        if data:
            self._sock.sendall(data, flags)


def _fill(sock: socket.socket, space: memoryview) -> None:
    while space:
        count = sock.recv_into(space, 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("end of stream inside a request")
        space = space[count:]


def serve(door: socket.socket, handler: Handler) -> NoReturn:
    """Serve the connections that come through the door, for ever."""
    connections: dict[int, Connection] = {}
    epoll = select.epoll()
    epoll.register(door, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            try:
                if fd == door.fileno():
                    _, (came,), _, _ = socket.recv_fds(door, 1, 1)
                    connections[came] = Connection(socket.socket(fileno=came))
                    epoll.register(came, select.EPOLLIN)
                else:
                    connections[fd].serve(handler)
            except ConnectionError:  # the client's own affair
                if fd in connections:
                    epoll.unregister(fd)  # which closing does not, while whoever dealt it has it open too
                    del connections[fd]


def main() -> None:
    """Fork, then accept and deal until SIGTERM or SIGINT."""
    host, _, port = sys.argv[1].rpartition(":")
    handler: Handler = getattr(handlers, sys.argv[3])
    doors = []
    children = []
    for _ in range(int(sys.argv[2])):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            serve(theirs, handler)
        doors.append(ours)
        children.append(child)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit())
    try:
        with socket.create_server((host, int(port)), backlog=4096) as listener:
            print("ready", file=sys.stderr, flush=True)
            _deal(listener, doors)
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
        for child in children:
            os.waitpid(child, 0)


def _deal(listener: socket.socket, doors: list[socket.socket]) -> NoReturn:
    for door in cycle(doors):
        client, _ = listener.accept()
        with client:
            socket.send_fds(door, [b"c"], [client.fileno()])
    raise AssertionError("no doors")


if __name__ == "__main__":
    main()
