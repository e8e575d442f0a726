"""Long payloads in shared memory: a map that all processes of a daemon have, and how the front lends blocks of it.

One anonymous map, made by the supervisor before it forks, so that it has no name and no descriptor, and nothing
of it is left whoever dies. The front alone decides what is where. A consumer reads its request from the block
that the job names, and may write its reply there while the scoreboard says that it runs that job; never later.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import resource
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .blocks import Blocks
from .scoreboard import JOB
from .wire import Place, generation_of

if TYPE_CHECKING:
    from .limits import Limits
    from .scoreboard import Scoreboard

log = logging.getLogger(__name__)

FROM = 64 * 1024  # bytes; shorter payloads travel through 0MQ
_POOL = 64 * 1024 * 1024  # bytes, the lowest, whose pages stay while there is traffic
_LARGEST = 2**32  # bytes
_IDLE = 1.0  # seconds without a loan after which all pages that are not lent are given back
_PAGE = mmap.PAGESIZE


class Arena:
    """The shared map. Its first word is the generation of the front that lends from it.

    Raises:
        OSError: the system gives no such memory, or does not take single pages back.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self.size = size
        self.map = mmap.mmap(-1, size, flags=flags)  # pages are there once they are written
        self._bytes = memoryview(self.map)
        self._words = self._bytes[:_PAGE].cast("Q")
        self.forget(0, size)

    @property
    def generation(self) -> int:
        """Which front lends from it."""
        return self._words[0]

    @generation.setter
    def generation(self, number: int) -> None:
        self._words[0] = number

    def read(self, number: int, place: Place) -> bytes | None:
        """Return the request of a job that the scoreboard says is begun. None if the front that sent it is gone."""
        if self.generation != generation_of(number):
            return None  # its successor may have lent the block to another request
        return self.map[place.start : place.start + place.size]

    def write(self, place: Place, reply: bytes | memoryview) -> bool:
        """Put the reply in the place of its request. False if there is no room for it."""
        size = len(reply)
        if size > place.room:
            return False
        self._bytes[place.start : place.start + size] = reply
        return True

    def forget(self, start: int, end: int) -> None:
        """Give pages back to the system; they read as zeros from now on."""
        self.map.madvise(mmap.MADV_REMOVE, start, end - start)


def make(limits: Limits) -> Arena | None:
    """Make a daemon's arena, as large as what may wait and what may be under way; None where it cannot be had."""
    if not hasattr(mmap, "MADV_REMOVE"):
        return None
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return None  # it would take from what the handlers may have
    try:
        return Arena(min(2 * max(limits.max_waiting_bytes, limits.max_message) + _PAGE & -_PAGE, _LARGEST))
    except (OSError, ValueError, OverflowError) as error:
        log.debug("long payloads do without shared memory: %s", error)
        return None


def place_of(payload: memoryview) -> Place:
    """Say where a lent block is, and how much of it is used."""
    block: Any = payload.obj
    return Place(block.start, len(block), len(payload))


class Lender:
    """Lends the arena's blocks, in the front.

    A block is lent for as long as anything refers to it: the request that is read into it, the job until its
    consumer has answered or is gone, the reply until the client's kernel has it.

    Args:
        arena: None: nothing is lent.
        generation: the front's.
        later: calls a function in so many seconds.
    """

    def __init__(
        self,
        arena: Arena | None,
        scoreboard: Scoreboard,
        generation: int,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._arena = arena
        self._later = later
        self._blocks = Blocks(_PAGE, arena.size if arena else _PAGE)
        self._lent: dict[int, weakref.ref[Any]] = {}  # by start
        self._returned: list[int] = []  # starts of blocks that nothing refers to any more
        self._types: dict[int, Any] = {}  # of blocks, by their size
        self._used = False  # since the last look
        self._looking = False  # the next look is scheduled
        # slots of consumers that may still write into what a front that died had lent
        self._occupied: list[memoryview] | None = None if generation > 1 else []
        self._slots = scoreboard.slots
        self._generation = generation
        if arena:
            arena.generation = generation  # from now on no consumer begins to touch what another front lent

    def lend(self, size: int) -> memoryview | None:
        """Lend a block of so many bytes; None if the payload is to do without."""
        if self._arena is None or size < FROM or not self._may_lend():
            return None
        returned = self._take_in()
        room = _rounded(size)
        start = self._blocks.take(room)
        end = _PAGE if start is None else start + room
        for first, last in returned:  # what is lent again at once keeps its pages
            self._cool(first, last if start is None else min(last, start))
            self._cool(max(first, end), last)
        if start is None:
            return None
        self._used = True
        self._look_later()
        return self._block(start, room)[:size]

    def at(self, start: int, size: int) -> memoryview | None:
        """Return a reply that was put in the place of its request; None if nobody waits for it any more."""
        block = self._lent[start]() if start in self._lent else None
        return None if block is None else memoryview(block).cast("B")[:size]

    def _block(self, start: int, room: int) -> memoryview:
        assert self._arena is not None
        kind = self._types.get(room)
        if kind is None:
            self._types[room] = kind = ctypes.c_ubyte * room
        block: Any = kind.from_buffer(self._arena.map, start)
        block.start = start
        weakref.finalize(block, self._returned.append, start).atexit = False
        self._lent[start] = weakref.ref(block)
        return memoryview(block).cast("B")

    def _may_lend(self) -> bool:
        """True when no consumer runs a job of a front that died: it reads or writes what that had lent it."""
        if self._occupied is None:
            self._occupied = [slot for slot in self._slots() if self._is_occupied(slot)]
        elif not self._occupied:
            return True
        self._occupied = [slot for slot in self._occupied if self._is_occupied(slot)]
        if not self._occupied:
            assert self._arena is not None
            self._arena.forget(_PAGE, self._arena.size)
        return not self._occupied

    def _is_occupied(self, slot: memoryview) -> bool:
        return bool(slot[JOB]) and generation_of(slot[JOB]) != self._generation

    # ---- what comes back ----

    def _take_in(self) -> list[tuple[int, int]]:
        """Make free what has come back; (start, end) each."""
        extents = []
        while self._returned:
            start = self._returned.pop()
            del self._lent[start]
            extents.append((start, self._blocks.give(start)))
        return extents

    def _cool(self, start: int, end: int) -> None:
        """Give back pages that are free now, but for those that stay while there is traffic."""
        start = max(start, _POOL)
        if start < end:
            assert self._arena is not None
            self._arena.forget(start, end)

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._later(_IDLE, self._look)

    def _look(self) -> None:
        """Give back all pages that are free, when there is no traffic."""
        assert self._arena is not None
        self._looking = False
        for start, end in self._take_in():
            self._cool(start, end)
        if not self._used:
            for start, end in self._blocks.free:
                self._arena.forget(start, end)
        if self._used or self._lent:
            self._used = False
            self._look_later()


def _rounded(size: int) -> int:
    """Round up to whole pages, and so that there are few sizes: at most a sixteenth more."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 5))
    return -(-size // step) * step
