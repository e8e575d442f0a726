"""Every byte layout: one-shot requests, jobs and results between front and consumers, lifeline records.

Pure: no socket, no clock, no logging. Parsers are fed bytes and yield what is complete.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple

from .errors import BadFrame, TooBig
from .frames import MAGIC, Lend, Payload, nothing

# ---- one-shot: 4-byte length, payload; the reply ends with the connection ----

LENGTH = struct.Struct("!I")
_FIRST_SPACE = 1024 * 1024  # bytes
MAX_FIRST_BYTE = 0x3F  # a first byte above begins another protocol's name; a length is below 2**30

# ---- jobs and results: native byte order, they never leave the machine ----
#
# job     number u64 | how u8, 7 unused              | payload; if ALONE: in a second 0MQ frame;
#                                                      if SEVERAL: for each job number u64 | size u32 | payload;
#                                                      if SHARED: start u64 | room u32 | size u32, in the arena;
#                                                      if NAME: what the job, which follows, is called in logs
# result  number u64 | begun u64 | ran u32 | code u8 | how u8, 2 unused | body; if ALONE: in a second 0MQ frame;
#                                  if SEVERAL: for each a result's head | size u32 | body
#                                  if SHARED: start u64 | room u32 | size u32; the reply is in its request's place
#
# begun: nanoseconds of CLOCK_MONOTONIC. ran: microseconds, at least 1, saturating. code: 0, the body is the reply;
# PART, it is a part of the reply; else an errors.Code, the body is its JSON detail.
#
# credit  number u64 | bytes u64, of a part of that job's reply that its client has taken; or CLOSE, which
#         holds for all jobs of older fronts too
JOB = struct.Struct("=QB7x")
ONE, ALONE, SEVERAL, NAME, SHARED = 0, 1, 2, 3, 4  # how
ENTRY = struct.Struct("=QI")
SIZE = struct.Struct("=I")
PLACE = struct.Struct("=QII")
RESULT = struct.Struct("=QQIBB2x")
CLAIM = struct.Struct("=Q")
CREDIT = struct.Struct("=QQ")
PART = 255  # in place of a code
CLOSE = 2**64 - 1  # in place of bytes: nobody wants any more of it
APART = 64 * 1024  # bytes; longer payloads travel as a 0MQ frame of their own, which saves copying them
MAX_U32 = 2**32 - 1

_COUNTER_BITS = 32


def job_number(generation: int, counter: int) -> int:
    """Number a job so that no front of this daemon ever uses the number again."""
    return generation << _COUNTER_BITS | counter


def generation_of(number: int) -> int:
    """Say which front numbered a job."""
    return number >> _COUNTER_BITS


class Result(NamedTuple):
    """What a consumer says of one job."""

    number: int
    begun: int  # nanoseconds, monotonic
    ran: int  # microseconds
    code: int  # 0: body is the reply; PART: a part of it
    body: bytes | memoryview


class Place(NamedTuple):
    """Where in the arena a payload is; bytes."""

    start: int
    room: int
    size: int


class OneShotParser:
    """Read one one-shot request: first its header, then its payload, straight to where it stays.

    Feed what arrives to `feed` until `complete`, then take `payload`. Bytes after the request are left in
    `excess`, and so are those after the name of the framed protocol. For a long payload, read into `space()`
    and say `filled(n)`: no copy is made.

    Args:
        lend: returns memory for a payload of so many bytes, or None if it has none.

    Raises (from feed):
        TooBig: more bytes are announced than `max_message`; none of them was asked for.
        BadFrame: the first byte begins another protocol's name.
    """

    __slots__ = ("_buffer", "_have", "_header", "_lend", "_max_message", "excess", "is_framed", "payload", "size")

    def __init__(self, max_message: int, lend: Lend = nothing) -> None:
        self._max_message = max_message
        self._lend = lend
        self._header = b""
        self._have = 0
        self._buffer: bytearray | memoryview = bytearray()  # of a payload that comes in parts
        self.size = -1  # bytes announced; -1 while the header is not complete
        self.payload: Payload = b""
        self.excess = b""
        self.is_framed = False  # the connection is one of the framed protocol

    @property
    def complete(self) -> bool:
        """True when the whole request is there."""
        return self._have == self.size

    @property
    def begun(self) -> bool:
        """True when at least one byte has come."""
        return bool(self._header) or self.size >= 0

    @property
    def missing(self) -> int:
        """Bytes that are still to come, as far as is known."""
        return LENGTH.size - len(self._header) if self.size < 0 else self.size - self._have

    def feed(self, data: bytes) -> None:
        """Take what came next."""
        if self.size < 0:
            if not self._header and len(data) >= LENGTH.size:  # the usual case: all of it, and nothing else
                (size,) = LENGTH.unpack_from(data)
                if size == len(data) - LENGTH.size and size <= self._max_message:
                    self.size = self._have = size
                    self.payload = data[LENGTH.size :]
                    return
            data = self._feed_header(data)
            if self.size < 0:
                return
            if len(data) >= self.size:
                self.payload = data[: self.size]
                self.excess = data[self.size :]
                self._have = self.size
                return
        part = data[: self.missing]
        if part:
            self._make_room(len(part))
            self._buffer[self._have : self._have + len(part)] = part
            self._have += len(part)
        self.excess += data[len(part) :]

    def space(self) -> memoryview:
        """Return where the next part of the payload is to be read to.

        The memory grows with what has come, so that an announcement alone orders little.
        """
        self._make_room(1)
        return memoryview(self._buffer)[self._have :]

    def _make_room(self, count: int) -> None:
        needed = self._have + count
        if needed > len(self._buffer):
            if not self._have and (lent := self._lend(self.size)) is not None:
                self.payload = self._buffer = lent
                return
            larger = bytearray(min(self.size, max(_FIRST_SPACE, 2 * self._have, needed)))
            larger[: self._have] = memoryview(self._buffer)[: self._have]
            self.payload = self._buffer = larger

    def filled(self, count: int) -> None:
        """Say that `count` bytes were read into `space()`."""
        self._have += count

    def eof(self) -> None:
        """Say that no more will come.

        Raises:
            BadFrame: inside a request.
        """
        if self.begun and not self.complete:
            what = f"{self._have} of {self.size} bytes" if self.size >= 0 else f"{len(self._header)} of 4 header bytes"
            raise BadFrame(f"the stream ended after {what}")

    def _feed_header(self, data: bytes) -> bytes:
        header = self._header + data[: LENGTH.size - len(self._header)]
        rest = data[LENGTH.size - len(self._header) :]
        self._header = header
        if header and header[0] > MAX_FIRST_BYTE:
            if not MAGIC.startswith(header):
                raise BadFrame(f"no known protocol begins with {header!r}")
            if header == MAGIC:
                self.is_framed = True
                self.excess = rest
            return rest
        if len(header) == LENGTH.size:
            (size,) = LENGTH.unpack(header)
            if size > self._max_message:
                raise TooBig(f"{size} bytes announced, {self._max_message} allowed (--max-message)")
            self.size = size
        return rest


# ---- lifeline records, between a parent and its child ----
#
# size u32 | kind u8 | size bytes of a UTF-8 JSON object
_RECORD = struct.Struct("!IB")
MAX_TEXT = 16 * 1024


NOBODY = 0  # has asked


class Kind(enum.IntEnum):
    """What a lifeline record says. Ready goes up, orders go down."""

    # consumer -> forker
    READY = 1  # also front -> supervisor, supervisor -> caller
    SETUP_FAILED = 2  # message, traceback; also forker -> supervisor
    # forker -> supervisor
    LOADED = 10  # what: a description of the handler, sources: folders of its modules
    LOAD_FAILED = 11  # message, traceback; also supervisor -> caller
    CONSUMER_READY = 12  # number, pid; also supervisor -> front, with slot, forked (seconds, monotonic), generation
    CONSUMER_GONE = 13  # number, pid, exit, used, job, begun, given, reason, why?, stack?; also supervisor -> front
    # supervisor -> forker
    FORK = 20  # number, slot
    LEAVE = 21  # number, or none for all and itself; also forker -> consumer
    CONSUMER_WORN = 15  # number, why, reason: to be replaced; also consumer -> forker, without the number
    BIND_FAILED = 14  # errno, message; supervisor -> caller
    CONSUMERS = 16  # asked: the number of the question, pids; supervisor -> caller
    # supervisor -> front, caller -> supervisor
    DRAIN = 30  # grace: seconds
    STOP = 31  # at once; also supervisor -> forker
    LIST = 33  # asked: a number for the answer; caller -> supervisor
    RETIRE = 32  # number: gets no more jobs; supervisor -> front
    STAFF = 34  # processes: how many there should be, restarts: by reason; supervisor -> front
    # front -> supervisor
    RETIRED = 40  # number: holds no job any more
    ASIDE = 41  # numbers: a long request holds these while others wait; supervisor -> forker: one number
    RELOAD = 42
    SCALE = 43  # processes: how many there should be
    WATCH = 44  # folders; supervisor -> watcher
    # a question goes down from the front, its answer up from the forker
    STACK = 50  # number, asked: of the question, or NOBODY; and in the answer job, age (seconds), pid, stack


class Record(NamedTuple):
    """One lifeline record."""

    kind: Kind
    fields: dict[str, Any]


def encode_record(kind: Kind, fields: dict[str, Any]) -> bytes:
    """Lay out one lifeline record; texts are cut to MAX_TEXT characters, tracebacks at their front."""
    fields = {name: value[-MAX_TEXT:] if isinstance(value, str) else value for name, value in fields.items()}
    body = json.dumps(fields).encode()
    return _RECORD.pack(len(body), kind) + body


class RecordParser:
    """Turn the bytes of a lifeline into records."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Record]:
        """Return the records that are complete."""
        self._buffer += data
        records = []
        while len(self._buffer) >= _RECORD.size:
            size, kind = _RECORD.unpack_from(self._buffer)
            end = _RECORD.size + size
            if len(self._buffer) < end:
                break
            records.append(Record(Kind(kind), json.loads(self._buffer[_RECORD.size : end])))
            self._buffer = self._buffer[end:]
        return records
