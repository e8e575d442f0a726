"""The framed protocol's bytes: the header, the kinds, and a parser for either side (docs/protocol.rst).

Pure: no socket, no clock, no logging. The parser is fed bytes and yields the frames that are complete.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Callable, Container
from functools import partial
from typing import Any, NamedTuple

from .errors import BadFrame, RequestError, TooBig

MAGIC = b"GSP2"  # what a client sends first
# size u32 | id u32 | kind u8 | code u8 | meta_size u16 | a u32 | b u32, then meta_size bytes, then size bytes
HEADER = struct.Struct("!IIBBHII")
_HEADER_SIZE = HEADER.size
MAX_U32 = 2**32 - 1
_WHOLE = 64 * 1024  # bytes; a longer body is read to where it stays, a shorter one is put together from pieces
_MAX_NAME = 128  # characters
_FIRST_SPACE = 1024 * 1024  # bytes

Payload = bytes | bytearray | memoryview
Lend = Callable[[int], memoryview | None]


def nothing(_size: int) -> memoryview | None:
    """Lend no memory."""
    return None


class FrameKind(enum.IntEnum):
    """What a frame says; below 16 it comes from the client."""

    REQUEST = 1
    CANCEL = 2
    PING = 3
    HELLO = 16
    REPLY = 17
    ERROR = 18
    PART = 19
    PONG = 20
    GOAWAY = 21


CLIENT_KINDS = frozenset({FrameKind.REQUEST, FrameKind.CANCEL, FrameKind.PING})
ANY_KIND = range(256)


class Frame(NamedTuple):
    """One frame. What `a` and `b` mean depends on its kind; meta is JSON, or empty."""

    kind: int
    id: int
    code: int
    a: int
    b: int
    meta: bytes
    body: Payload


_frame: Callable[[tuple[Any, ...]], Frame] = partial(tuple.__new__, Frame)  # half of what Frame(...) costs


def encode(
    kind: FrameKind, id: int = 0, body: bytes = b"", *, code: int = 0, a: int = 0, b: int = 0, meta: bytes = b""
) -> bytes:
    """Lay out a whole frame."""
    return HEADER.pack(len(body), id, kind, code, len(meta), a, b) + meta + body


def encode_meta(fields: dict[str, Any]) -> bytes:
    """Lay out a frame's meta; none for no fields.

    Raises:
        ValueError: it is longer than the protocol can announce (65535 bytes).
    """
    meta = json.dumps(fields, separators=(",", ":")).encode() if fields else b""
    if len(meta) > 0xFFFF:
        raise ValueError(f"meta of {len(meta)} bytes, the protocol can announce 65535")
    return meta


def decode_meta(meta: bytes) -> dict[str, Any]:
    """Read a frame's meta.

    Raises:
        BadFrame: it is no JSON object.
    """
    if not meta:
        return {}
    try:
        fields = json.loads(meta.decode())
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"meta is not JSON: {str(error)[:200]}") from None
    if not isinstance(fields, dict):
        raise BadFrame("meta is JSON, but no object")
    return fields


def request_name(meta: dict[str, Any]) -> str:
    """Say what a request wants to be called in logs: its `request_id` or `traceparent`; "" if neither is fit for that.

    Source: traceparent is the one of W3C Trace Context.
    """
    for key in ("request_id", "traceparent"):
        name = meta.get(key)
        if isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable():
            return name
    return ""


class FrameParser:
    """Cut a stream into frames.

    Feed what arrives to `feed`. Of a frame with a long body the header is known before the body has come:
    `pending`. Then the body may be skipped, or be read into `space()` and `filled(n)` said, which copies nothing.

    After the first mistake in the stream `error` says what it was, and nothing more is parsed; the frames
    before it are returned as ever.

    Args:
        max_body: the longest body, bytes.
        kinds: those that the other side may send; a client ignores what it does not know.
        named: kinds whose id may not be 0.
        lend: returns memory for a body of so many bytes, or None if it has none.
    """

    __slots__ = (
        "_body",
        "_have",
        "_kinds",
        "_lend",
        "_named",
        "_rest",
        "_size",
        "count",
        "error",
        "error_id",
        "max_body",
        "pending",
        "skipping",
    )

    def __init__(
        self,
        max_body: int,
        kinds: Container[int] = ANY_KIND,
        named: Container[int] = (),
        lend: Lend = nothing,
    ) -> None:
        self.max_body = max_body
        self._lend = lend
        self._kinds = kinds
        self._named = named
        self._rest = b""  # of a frame whose header or meta is not complete, or that is short
        self._body: bytearray | memoryview = bytearray()  # of the pending frame
        self._size = self._have = 0  # bytes of it: announced, come
        self.skipping = False  # the pending frame is thrown away
        self.pending: Frame | None = None  # its long body is still to come, and empty here
        self.count = 0  # frames that were complete, skipped ones too
        self.error: RequestError | None = None
        self.error_id = 0  # the id that the error is about, if it is known

    @property
    def inside(self) -> bool:
        """True inside a frame."""
        return bool(self._rest) or self.pending is not None

    @property
    def size(self) -> int:
        """Bytes of the pending frame's body."""
        return self._size

    @property
    def held(self) -> int:
        """Bytes that have come of a frame that is not complete."""
        return self._have + len(self._rest)

    def feed(self, data: bytes) -> list[Frame]:
        """Take what came next; return the frames that are complete."""
        frames: list[Frame] = []
        if self.error is not None:
            return frames
        if self.pending is not None:
            part = data[: self._size - self._have]
            data = data[len(part) :]
            self._store(part)
            self._end_pending(frames)
            if not data:
                return frames
        if self._rest:
            data = self._rest + data
        at, end, unpack, max_body, kinds = 0, len(data), HEADER.unpack_from, self.max_body, self._kinds
        while end - at >= _HEADER_SIZE:
            size, name, kind, code, meta_size, a, b = unpack(data, at)
            if (size > max_body or not name or kind not in kinds) and self._refuses(kind, name, size):
                break
            meta = at + _HEADER_SIZE
            body = meta + meta_size
            stop = body + size
            if stop > end:
                if size > _WHOLE and body <= end:
                    self.pending = Frame(kind, name, code, a, b, data[meta:body], b"")
                    self._size = size
                    self._store(data[body:])
                    at = end
                break
            frames.append(_frame((kind, name, code, a, b, data[meta:body], data[body:stop])))
            self.count += 1
            at = stop
        self._rest = b"" if self.error else data[at:]
        return frames

    def space(self) -> memoryview:
        """Return where the next part of the pending frame's body is to be read to.

        The memory grows with what has come, so that an announcement alone orders little.
        """
        if self.skipping:
            return memoryview(bytearray(min(self._size - self._have, _WHOLE)))
        self._make_room(1)
        return memoryview(self._body)[self._have :]

    def filled(self, count: int) -> list[Frame]:
        """Say that `count` bytes were read into `space()`; return the frame if it is complete."""
        self._have += count
        frames: list[Frame] = []
        self._end_pending(frames)
        return frames

    def skip(self) -> None:
        """Throw away the pending frame: it is not returned when it is complete."""
        self.skipping = True
        self._body = bytearray()

    def _store(self, part: bytes) -> None:
        if part and not self.skipping:
            self._make_room(len(part))
            self._body[self._have : self._have + len(part)] = part
        self._have += len(part)

    def _make_room(self, count: int) -> None:
        needed = self._have + count
        if needed > len(self._body):
            if not self._have and (lent := self._lend(self._size)) is not None:
                self._body = lent
                return
            larger = bytearray(min(self._size, max(_FIRST_SPACE, 2 * self._have, needed)))
            larger[: self._have] = memoryview(self._body)[: self._have]
            self._body = larger

    def _end_pending(self, frames: list[Frame]) -> None:
        if self.pending is None or self._have < self._size:
            return
        if not self.skipping:
            frames.append(self.pending._replace(body=self._body))
        self.count += 1
        self.pending, self._body, self.skipping = None, bytearray(), False
        self._size = self._have = 0

    def _refuses(self, kind: int, name: int, size: int) -> bool:
        """True if a header is a mistake, which is noted."""
        if kind not in self._kinds:
            self.error = BadFrame(f"a frame of kind {kind}, which is none to send")
        elif not name and kind in self._named:
            self.error = BadFrame("a request with id 0")
        elif size > self.max_body:
            self.error = TooBig(f"{size} bytes announced, {self.max_body} allowed (--max-message)")
            self.error_id = name
        return self.error is not None
