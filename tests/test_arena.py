"""The arena: who may touch what, when a block is lent again, and that its pages go back."""

from __future__ import annotations

import gc
import mmap
import resource
from collections.abc import Callable

import pytest

from gaspar import arena as room
from gaspar.arena import FROM, Arena, Lender, place_of
from gaspar.limits import Limits
from gaspar.scoreboard import JOB, Scoreboard
from gaspar.wire import Place, job_number

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="there is no arena on this system")
MIB = 1024 * 1024


class Clock:
    """Calls what is due when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def tick(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def lender(arena: Arena | None, generation: int = 1, scoreboard: Scoreboard | None = None) -> tuple[Lender, Clock]:
    clock = Clock()
    return Lender(arena, scoreboard or Scoreboard(2), generation, clock.later), clock


def resident() -> int:
    """Bytes of this process's memory that are shared maps without a name."""
    found = 0
    with open("/proc/self/smaps") as lines:
        inside = False
        for line in lines:
            if "-" in line.split()[0]:
                inside = "/dev/zero" in line
            elif inside and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


def test_request_and_reply_pass_through_one_block() -> None:
    arena = Arena(4 * MIB)
    front, _ = lender(arena)
    payload = front.lend(MIB)
    assert payload is not None
    payload[:] = bytes(range(256)) * 4096
    place, number = place_of(payload), job_number(1, 7)
    assert arena.read(number, place) == bytes(payload)
    reply = b"r" * place.room
    assert arena.write(place, reply)
    assert not arena.write(place, reply + b"r")
    found = front.at(place.start, len(reply))
    assert found == reply


def test_block_is_lent_again_only_when_nothing_refers_to_it() -> None:
    arena = Arena(4 * MIB)
    front, _ = lender(arena)
    payload = front.lend(MIB)
    assert payload is not None
    first = place_of(payload).start
    part = payload[10:20]
    del payload
    other = front.lend(MIB)
    assert other is not None and place_of(other).start != first
    del part
    again = front.lend(MIB)
    assert again is not None and place_of(again).start == first


def test_without_a_free_block_nothing_is_lent() -> None:
    arena = Arena(4 * MIB)
    front, _ = lender(arena)
    held = [front.lend(MIB) for _ in range(4)]
    assert [each is not None for each in held] == [True, True, True, False]
    del held
    assert front.lend(3 * MIB) is not None


def test_short_payloads_and_daemons_without_an_arena_do_without() -> None:
    assert lender(Arena(4 * MIB))[0].lend(FROM - 1) is None
    front, clock = lender(None)
    assert front.lend(FROM) is None
    assert front.at(0, 1) is None
    assert not clock.due


def test_reply_in_a_block_that_is_lent_no_more_is_dropped() -> None:
    front, _ = lender(Arena(4 * MIB))
    payload = front.lend(MIB)
    assert payload is not None
    start = place_of(payload).start
    del payload
    assert front.at(start, 10) is None
    assert front.at(start + 1, 10) is None


def test_request_of_a_front_that_died_is_not_read() -> None:
    arena = Arena(4 * MIB)
    lender(arena)
    place = Place(mmap.PAGESIZE, MIB, MIB)
    assert arena.read(job_number(1, 1), place) == bytes(MIB)
    lender(arena, 2)
    assert arena.read(job_number(1, 1), place) is None
    assert arena.read(job_number(2, 1), place) == bytes(MIB)


def test_successor_lends_nothing_while_a_consumer_runs_a_job_of_the_front_that_died() -> None:
    arena, scoreboard = Arena(4 * MIB), Scoreboard(2)
    slot = scoreboard.slot(1)
    slot[JOB] = job_number(1, 1)
    arena.write(Place(mmap.PAGESIZE, MIB, 0), b"left by the front that died")
    front, _ = lender(arena, 2, scoreboard)
    assert front.lend(MIB) is None
    slot[JOB] = job_number(2, 1)
    payload = front.lend(MIB)
    assert payload is not None and not any(payload)
    slot[JOB] = job_number(1, 2)  # it will read nothing, and so has nothing to answer
    assert front.lend(MIB) is not None


def test_pages_go_back_when_there_is_no_traffic() -> None:
    before = resident()
    front, clock = lender(Arena(64 * MIB))
    payload = front.lend(16 * MIB)
    assert payload is not None
    payload[:] = bytes(16 * MIB)
    del payload
    clock.tick()  # there was traffic
    assert resident() >= before + 16 * MIB
    held = front.lend(MIB)
    assert held is not None
    held[:] = b"h" * MIB
    clock.tick()
    clock.tick()
    assert resident() <= before + MIB + 2 * mmap.PAGESIZE
    assert bytes(held) == b"h" * MIB
    del held
    clock.tick()
    assert resident() <= before + 2 * mmap.PAGESIZE
    assert not clock.due, "nothing is lent, and somebody looks all the same"


def test_no_more_than_a_pool_stays_resident_under_traffic() -> None:
    before = resident()
    front, _ = lender(Arena(512 * MIB))
    for size in (200, 100, 150, 200):
        payload = front.lend(size * MIB)
        assert payload is not None
        payload[:: mmap.PAGESIZE] = b"x" * (size * MIB // mmap.PAGESIZE)
        del payload
    assert front.lend(FROM) is not None  # takes in what came back
    assert resident() <= before + 65 * MIB


def test_blocks_in_a_reference_cycle_come_back_too() -> None:
    front, _ = lender(Arena(4 * MIB))
    cycle: list[object] = [front.lend(3 * MIB)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert front.lend(3 * MIB) is not None


def test_daemon_does_without_where_address_space_is_limited() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    made = room.make(Limits())
    assert made is not None and made.size == 512 * MIB + mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, limits[1]))
    try:
        assert room.make(Limits()) is None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_daemon_does_without_where_the_system_gives_no_such_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LARGEST", 1 << 62)
    assert room.make(Limits(max_waiting_bytes=1 << 49)) is None
