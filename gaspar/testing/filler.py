"""Connections whose requests wait, so that a daemon's queue is full."""

from __future__ import annotations

from .. import address as addresses
from ..errors import Code
from ..frames import MAGIC, Frame, FrameKind, FrameParser, decode_meta, encode
from ..limits import MAX_WIRE_MESSAGE

_BATCH = 256  # requests that are sent before their answers are read
_TIME = 30.0  # seconds that the daemon has to answer


class Filler:
    """A connection whose requests wait."""

    def __init__(self, address: str) -> None:
        self._sock = addresses.connect(addresses.parse(address), _TIME)
        self._parser = FrameParser(MAX_WIRE_MESSAGE)
        self._sock.sendall(MAGIC)
        hello = self._frames_until(FrameKind.HELLO)[-1]
        self._room = int(decode_meta(hello.meta)["max_in_flight"])
        self._sent = 0

    def fill(self) -> bool:
        """Send as many requests as one connection may; True once the daemon has refused one."""
        while self._sent < self._room:
            names = range(self._sent + 1, min(self._sent + _BATCH, self._room) + 1)
            self._sent = names[-1]
            answers = self._exchange(FrameKind.REQUEST, names)
            if any(each.kind == FrameKind.ERROR and each.code == Code.OVERLOADED for each in answers):
                return True
        return False

    def take_back(self) -> None:
        """Cancel all requests; when it returns, none of them waits any more."""
        for start in range(1, self._sent + 1, _BATCH):
            self._exchange(FrameKind.CANCEL, range(start, min(start + _BATCH, self._sent + 1)))

    def _exchange(self, kind: FrameKind, names: range) -> list[Frame]:
        """Send a frame for each name; returns what was answered once the daemon has read them all."""
        self._sock.sendall(b"".join(encode(kind, name) for name in names) + encode(FrameKind.PING))
        return self._frames_until(FrameKind.PONG)

    def _frames_until(self, last: FrameKind) -> list[Frame]:
        frames: list[Frame] = []
        while not frames or frames[-1].kind != last:
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the daemon has ended the connection")
            frames += self._parser.feed(data)
        return frames

    def close(self) -> None:
        """End the connection."""
        self._sock.close()
