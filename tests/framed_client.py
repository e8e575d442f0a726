"""A client of the framed protocol for tests: a plain socket and the parser, no manners."""

from __future__ import annotations

import collections
import itertools
import json
import os
import select
import socket
import struct
from typing import Any

from conftest import Daemon

from gaspar.errors import Code
from gaspar.frames import MAGIC, Frame, FrameKind, FrameParser, encode

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long
_CHUNK = 1 << 18
_NAMES = itertools.count(1)


def request(name: int, body: bytes = b"", *, milliseconds: int = 0, meta: bytes = b"") -> bytes:
    """Lay out a REQUEST."""
    return encode(FrameKind.REQUEST, name, body, a=milliseconds, meta=meta)


def cancel(name: int) -> bytes:
    """Lay out a CANCEL."""
    return encode(FrameKind.CANCEL, name)


def ping(name: int = 0) -> bytes:
    """Lay out a PING."""
    return encode(FrameKind.PING, name)


class FramedClient:
    """One framed connection.

    Args:
        first: what is sent first.
        address: which of the daemon's; "": its first.
        buffer: bytes that the kernel holds of what has come; 0: as it likes.
    """

    def __init__(self, daemon: Daemon, first: bytes = MAGIC, *, address: str = "", buffer: int = 0) -> None:
        self.sock = _connect_narrow(daemon, buffer) if buffer else daemon.connect(address)
        self.sock.settimeout(TIMEOUT)
        self._parser = FrameParser(1 << 30)
        self._frames: collections.deque[Frame] = collections.deque()
        self.send(first)

    def __enter__(self) -> FramedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.sock.sendall(data)

    def ask(self, body: bytes = b"", *, milliseconds: int = 0) -> int:
        """Send a request with an id of its own, which is returned."""
        name = next(_NAMES)
        self.send(request(name, body, milliseconds=milliseconds))
        return name

    def next(self) -> Frame | None:
        """Return the next frame, None at end-of-file, which may not come inside one."""
        while not self._frames:
            if not self._receive():
                assert not self._parser.inside, "end-of-file inside a frame"
                return None
        return self._frames.popleft()

    def _receive(self) -> bool:
        """Take in what has come; False at end-of-file."""
        data = self.sock.recv(_CHUNK)
        self._frames += self._parser.feed(data)
        assert self._parser.error is None
        return bool(data)

    def take(self, kind: FrameKind = FrameKind.REPLY, name: int | None = None) -> Frame:
        """Return the next frame but HELLO, which is of this kind and about this request."""
        frame = self.next()
        while frame is not None and frame.kind == FrameKind.HELLO:
            frame = self.next()
        assert frame is not None, "end-of-file"
        assert frame.kind == kind, shown(frame)
        assert name in (None, frame.id), shown(frame)
        return frame

    def error(self, code: Code, name: int | None = None) -> dict[str, Any]:
        """Return what the next frame, an ERROR, tells; with `waited` and `ran`, microseconds."""
        frame = self.take(FrameKind.ERROR, name)
        assert frame.code == code, shown(frame)
        assert not frame.meta
        told = json.loads(bytes(frame.body))
        assert isinstance(told["type"], str) and isinstance(told["message"], str)
        return dict(told, waited=frame.a, ran=frame.b)

    def answers(self, count: int) -> dict[int, Frame]:
        """Return the next answers by id, as they come; no id has two."""
        found: dict[int, Frame] = {}
        while len(found) < count:
            frame = self.next()
            assert frame is not None, f"end-of-file after {len(found)} of {count} answers"
            if frame.kind in (FrameKind.REPLY, FrameKind.ERROR):
                assert frame.id not in found
                found[frame.id] = frame
        return found

    def exchange(self, data: bytes, count: int) -> dict[int, Frame]:
        """Send bytes and take so many answers meanwhile, by id."""
        sent = 0
        found: dict[int, Frame] = {}
        while len(found) < count:
            readable, writable, _ = select.select([self.sock], [self.sock] if sent < len(data) else [], [], TIMEOUT)
            assert readable or writable, "nothing goes on"
            if writable:
                sent += self.push(data[sent : sent + _CHUNK])
            if readable:
                assert self._receive(), "end-of-file"
            while self._frames:
                frame = self._frames.popleft()
                if frame.kind in (FrameKind.REPLY, FrameKind.ERROR):
                    assert frame.id not in found
                    found[frame.id] = frame
        assert sent == len(data)
        return found

    def call(self, body: bytes = b"") -> bytes:
        """Send a request and return its reply; no other is unanswered."""
        return bytes(self.take(FrameKind.REPLY, self.ask(body)).body)

    def end(self) -> bool:
        """Take what comes until the end. True for end-of-file, False for a reset."""
        try:
            while self.sock.recv(_CHUNK):
                pass
        except ConnectionResetError:
            return False
        return True

    def pong(self) -> None:
        """Wait until the front has read all that was sent, by a PING that is answered next."""
        name = next(_NAMES)
        self.send(ping(name))
        self.take(FrameKind.PONG, name)

    def is_silent(self) -> bool:
        """True if nothing has come that was not taken."""
        return not self._frames and not select.select([self.sock], [], [], 0)[0]

    def push(self, data: bytes) -> int:
        """Send as much as the kernel takes at once; returns how much that was."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def reset(self) -> None:
        """Leave without a good-bye."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def size_of(path: str | os.PathLike[str]) -> int:
    """Say how often a handler has noted something in a file."""
    return os.stat(path).st_size if os.path.exists(path) else 0


def shown(frame: Frame) -> str:
    """Describe a frame in a failed assertion."""
    return f"{FrameKind(frame.kind).name} {frame._replace(body=frame.body[:300])}"


def _connect_narrow(daemon: Daemon, buffer: int) -> socket.socket:
    host, _, port = daemon.address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)  # before it connects: it announces its window then
    sock.connect((host, int(port)))
    return sock
