"""What consumers leave in shared memory: what each runs, since when, how much it has done, its last results.

One anonymous shared map, made by the supervisor before it forks. A slot and its outbox are written by their
consumer alone. Words are aligned native 64-bit ones, one store each, so that no reader sees half a word.
"""

from __future__ import annotations

import mmap
import struct

from .wire import Result

_WORDS = 8  # a slot is one cache line
JOB, BEGUN, DONE = 0, 1, 2  # a slot's words: job number or 0; nanoseconds, monotonic; jobs finished

# An outbox entry: seal u64 (the job's number once the entry is whole) | number u64 | begun u64 | ran u32 |
# size u32 | code u8 | reply or error
_HEAD = struct.Struct("=QQIIB")
_SEAL = 8
_ENTRY = 1024  # bytes, a power of two
_ROOM = _ENTRY - _SEAL - _HEAD.size
_ENTRIES = 32
_OUTBOX = _ENTRY * _ENTRIES


class Outbox:
    """A consumer's last results, as far as they are short.

    What a consumer has sent is with its 0MQ thread, not yet with the kernel; if the next request kills the
    process, it is lost. From here the front takes it all the same, so that a fatal request harms no other.
    """

    def __init__(self, memory: memoryview) -> None:
        self._bytes = memory
        self._words = memory.cast("Q")
        self._next = 0

    def put(self, number: int, begun: int, ran: int, code: int, body: bytes | memoryview) -> bool:
        """Note a result before it is sent. False if it is too long for that."""
        size = len(body)
        if size > _ROOM:
            return False
        at = self._next
        self._next = (at + _ENTRY) % _OUTBOX
        self._words[at >> 3] = 0
        _HEAD.pack_into(self._bytes, at + _SEAL, number, begun, ran, size, code)
        start = at + _SEAL + _HEAD.size
        self._bytes[start : start + size] = body
        self._words[at >> 3] = number
        return True

    def find(self, number: int) -> Result | None:
        """Return a job's result if it is here."""
        for at in range(0, _OUTBOX, _ENTRY):
            if self._words[at >> 3] == number:
                _, begun, ran, size, code = _HEAD.unpack_from(self._bytes, at + _SEAL)
                start = at + _SEAL + _HEAD.size
                return Result(number, begun, ran, code, bytes(self._bytes[start : start + size]))
        return None


class Scoreboard:
    """All slots and outboxes."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._map = mmap.mmap(-1, slots * (_WORDS * 8 + _OUTBOX))  # pages are there once they are written
        self._bytes = memoryview(self._map)
        self._words = self._bytes[: slots * _WORDS * 8].cast("Q")

    def slot(self, index: int) -> memoryview:
        """Return one slot: eight words, to be indexed with JOB, BEGUN, DONE."""
        return self._words[index * _WORDS : (index + 1) * _WORDS]

    def slots(self) -> list[memoryview]:
        """Return all slots."""
        return [self.slot(index) for index in range(self._slots)]

    def outbox(self, index: int) -> Outbox:
        """Return the outbox that belongs to a slot."""
        start = self._slots * _WORDS * 8 + index * _OUTBOX
        return Outbox(self._bytes[start : start + _OUTBOX])

    def clear(self, index: int) -> None:
        """Make a slot new, before its next consumer is forked."""
        slot = self.slot(index)
        for word in range(_WORDS):
            slot[word] = 0
