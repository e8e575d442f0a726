"""The client's side of one framed connection: requests get ids, what arrives becomes answers.

Pure: no socket, no clock, no lock, no logging. Whoever owns it sends the bytes, feeds what comes, and knows
what a call is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .answer import Receipt, Reply
from .errors import MAX_DETAIL, BadFrame, RequestError, restore
from .frames import HEADER, MAGIC, MAX_U32, Frame, FrameKind, FrameParser, Payload, decode_meta, encode

_US = 1e6
_MAX_HELLO = 64 * 1024  # bytes; before its greeting nothing longer is believed
_DEFAULT_IN_FLIGHT = 256  # as docs/protocol.rst has it, should a greeting not say


class Hello(NamedTuple):
    """What a daemon says of itself when it is connected to."""

    server: str
    max_message: int  # bytes, of a request and of a reply
    max_in_flight: int  # unanswered requests on this connection


class Session:
    """One connection's requests and answers.

    A streamed reply is put together, unless `in_parts`: then each part is an answer by itself, plain `bytes`,
    and the Reply that ends it holds what is left, perhaps nothing.
    """

    greeting = MAGIC  # to be sent first

    def __init__(self, *, in_parts: bool = False) -> None:
        self.calls: dict[int, Any] = {}  # unanswered, by id, oldest first
        self.hello: Hello | None = None
        self.leaving = False  # the daemon drains: what it has is answered, more is not taken
        self.error: RequestError | None = None  # the connection is of no use any more, since
        self._in_parts = in_parts
        self._parts: dict[int, list[Payload]] = {}
        self._parser = FrameParser(_MAX_HELLO)
        self._last_id = 0

    @property
    def has_room(self) -> bool:
        """True if another request may be sent now."""
        hello = self.hello
        return hello is not None and len(self.calls) < hello.max_in_flight and not self.leaving and not self.error

    @property
    def inside(self) -> bool:
        """True inside a frame or a streamed reply: where the daemon cannot have meant to end the connection."""
        return self._parser.inside or bool(self._parts)

    def begin(self, call: Any, size: int, milliseconds: int = 0, meta: bytes = b"") -> tuple[int, bytes]:
        """Give a request its id, and lay out all that goes before its `size` bytes.

        Args:
            call: what `feed` returns with the answer.
            milliseconds: until its deadline, counted when the daemon has all of it; 0: none.
        """
        name = self._last_id
        while True:
            name = name % MAX_U32 + 1
            if name not in self.calls:
                break
        self._last_id = name
        self.calls[name] = call
        return name, HEADER.pack(size, name, FrameKind.REQUEST, 0, len(meta), milliseconds, 0) + meta

    def cancel(self, name: int) -> bytes:
        """Forget a request; returns what tells the daemon so, b"" if it was answered already."""
        if name not in self.calls:
            return b""
        del self.calls[name]
        self._parts.pop(name, None)
        return encode(FrameKind.CANCEL, name)

    def feed(self, data: bytes) -> list[tuple[Any, bytes | RequestError]]:
        """Take what arrived; returns (call, answer) pairs: a Reply, an error, or a part of a reply."""
        answers: list[tuple[Any, bytes | RequestError]] = []
        while data and self.hello is None and self.error is None:
            # no more than a header at a time: the limits in the greeting hold for the frame right behind it
            piece, data = data[: HEADER.size], data[HEADER.size :]
            answers += self._take(self._parser.feed(piece))
        return answers + self._take(self._parser.feed(data))

    def space(self) -> memoryview | None:
        """Return where to read to if a long body is coming, so that nothing is copied; else None."""
        return self._parser.space() if self._parser.pending is not None else None

    def filled(self, count: int) -> list[tuple[Any, bytes | RequestError]]:
        """Say that `count` bytes were read into `space()`; returns what `feed` does."""
        return self._take(self._parser.filled(count))

    def _take(self, frames: Iterable[Frame]) -> list[tuple[Any, bytes | RequestError]]:
        answers: list[tuple[Any, bytes | RequestError]] = []
        for frame in frames:
            if self.error is not None:
                break
            if self.hello is None:
                self._greet(frame)
            elif frame.kind == FrameKind.REPLY:
                if frame.id in self.calls:
                    reply = self._reply(frame)  # first: without the memory for it the call stays
                    answers.append((self.calls.pop(frame.id), reply))
            elif frame.kind == FrameKind.ERROR:
                self._fail(frame, answers)
            elif frame.kind == FrameKind.PART:
                self._part(frame, answers)
            elif frame.kind == FrameKind.GOAWAY:
                self.leaving = True
        if self._parser.error is not None and self.error is None:
            self.error = BadFrame(f"what the daemon sends is not the framed protocol: {self._parser.error}")
        return answers

    def _greet(self, frame: Frame) -> None:
        if frame.kind == FrameKind.ERROR and not frame.id:  # it would not even greet, and says why
            self._fail(frame, [])
            return
        try:
            if frame.kind != FrameKind.HELLO:
                raise BadFrame(f"a frame of kind {frame.kind}")
            meta = decode_meta(frame.meta)
            most, in_flight = meta.get("max_message"), meta.get("max_in_flight", _DEFAULT_IN_FLIGHT)
            if not isinstance(most, int) or not isinstance(in_flight, int) or most < 1 or in_flight < 1:
                raise BadFrame(f"a greeting without limits: {str(meta)[:200]}")
            self.hello = Hello(str(meta.get("server", "")), most, in_flight)
            self._parser.max_body = max(most, MAX_DETAIL)
        except BadFrame as error:
            self.error = BadFrame(f"expected the greeting of a gaspar daemon, got {error}")

    def _reply(self, frame: Frame) -> Reply:
        parts = self._parts.pop(frame.id, None) if self._parts else None
        reply = Reply(b"".join([*parts, frame.body]) if parts else frame.body)
        reply.receipt = Receipt(frame.a / _US, frame.b / _US)
        return reply

    def _part(self, frame: Frame, answers: list[tuple[Any, bytes | RequestError]]) -> None:
        if frame.id not in self.calls:
            return
        parts = self._parts.setdefault(frame.id, [])
        if self._in_parts:
            answers.append((self.calls[frame.id], bytes(frame.body)))
        else:
            parts.append(frame.body)

    def _fail(self, frame: Frame, answers: list[tuple[Any, bytes | RequestError]]) -> None:
        error = restore(frame.code, bytes(frame.body), Receipt(frame.a / _US, frame.b / _US))
        self._parts.pop(frame.id, None)
        if not frame.id:
            self.error = error
        elif frame.id in self.calls:
            answers.append((self.calls.pop(frame.id), error))
