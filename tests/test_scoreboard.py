"""Writes slots and outboxes in one process and reads them in another."""

import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaspar.process import Lifeline, describe_exit, fork
from gaspar.scoreboard import BEGUN, DONE, JOB, Scoreboard
from gaspar.wire import Kind, Result

ALL_ONES = 2**64 - 1


def test_a_new_slot_is_all_zero() -> None:
    assert Scoreboard(3).slot(2).tolist() == [0] * 8


def test_the_words_of_a_slot_are_apart() -> None:
    slot = Scoreboard(1).slot(0)
    slot[JOB], slot[BEGUN], slot[DONE] = 1, 2, ALL_ONES
    assert (slot[JOB], slot[BEGUN], slot[DONE]) == (1, 2, ALL_ONES)


def test_a_slot_is_one_cache_line() -> None:
    assert Scoreboard(2).slot(1).nbytes == 64


@pytest.mark.parametrize("cleared", [0, 1, 2])
def test_clearing_a_slot_leaves_its_neighbours_alone(cleared: int) -> None:
    board = Scoreboard(3)
    for index in range(3):
        for word in range(8):
            board.slot(index)[word] = ALL_ONES
    board.clear(cleared)
    for index in range(3):
        assert board.slot(index).tolist() == [0 if index == cleared else ALL_ONES] * 8


def test_a_slot_seen_twice_is_the_same_slot() -> None:
    board = Scoreboard(2)
    seen = board.slot(1)
    board.slot(1)[JOB] = 7
    assert seen[JOB] == 7


def test_what_a_child_writes_its_parent_reads_after_its_death() -> None:
    board = Scoreboard(2)

    def main(_lifeline: Lifeline) -> int:
        board.slot(1)[JOB] = job
        board.slot(1)[DONE] += 3
        return 0

    job = 5 << 32 | 1
    child = fork(main, "test:writer")
    os.waitpid(child.pid, 0)
    child.lifeline.close()
    assert board.slot(1).tolist() == [job, 0, 3, 0, 0, 0, 0, 0]
    assert board.slot(0).tolist() == [0] * 8


def test_no_reader_sees_half_a_word() -> None:
    board = Scoreboard(1)

    def main(lifeline: Lifeline) -> int:
        slot = board.slot(0)
        slot[DONE] = 1
        lifeline.send(Kind.READY)
        while lifeline.recv() is not None:
            for _ in range(1000):
                slot[JOB] = ALL_ONES
                slot[JOB] = 0
        return 0

    child = fork(main, "test:writer")
    assert child.lifeline.wait(60.0)
    slot = board.slot(0)
    assert slot[DONE] == 1
    assert {slot[JOB] for _ in range(20000)} <= {0, ALL_ONES}
    child.lifeline.close()
    os.waitpid(child.pid, 0)


# ---- outboxes ----

SHORT, LONG = 100, 2**20  # bytes; what is short is noted, what is long is not
KEPT = 8  # results that are found for certain


def n(counter: int) -> int:
    return 3 << 32 | counter


def test_a_new_outbox_is_empty() -> None:
    outbox = Scoreboard(2).outbox(1)
    assert outbox.find(n(1)) is None


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("size", [0, 1, SHORT])
def test_a_short_result_is_found_as_it_was_put(size: int, kind: type) -> None:
    outbox = Scoreboard(1).outbox(0)
    body = bytes(range(100))[:size]
    outbox.put(n(7), 2**63 + 5, 2**32 - 1, 6, kind(body))
    assert outbox.find(n(7)) == Result(n(7), 2**63 + 5, 2**32 - 1, 6, body)
    assert outbox.find(n(8)) is None


def test_a_long_result_is_not_noted_and_harms_no_other() -> None:
    outbox = Scoreboard(1).outbox(0)
    outbox.put(n(1), 0, 0, 0, b"short")
    outbox.put(n(2), 0, 0, 0, bytes(LONG))
    assert outbox.find(n(2)) is None
    found = outbox.find(n(1))
    assert found is not None and found.body == b"short"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=100))
def test_what_is_found_is_what_was_put_whatever_came_before(sizes: list[int]) -> None:
    outbox = Scoreboard(1).outbox(0)
    for counter, size in enumerate(sizes, 1):
        outbox.put(n(counter), counter, size, 0, bytes([counter]) * size)
    for counter, size in enumerate(sizes, 1):
        found = outbox.find(n(counter))
        assert found in (None, Result(n(counter), counter, size, 0, bytes([counter]) * size))
        assert found is not None or size > SHORT or counter <= len(sizes) - KEPT


def test_the_outboxes_of_neighbours_are_apart() -> None:
    board = Scoreboard(3)
    for index in (0, 2):
        for _ in range(100):
            board.outbox(index).put(2**64 - 1, 2**64 - 1, 2**32 - 1, 255, b"\xff" * SHORT)
    assert board.outbox(1).find(2**64 - 1) is None
    assert all(board.slot(index).tolist() == [0] * 8 for index in range(3))


def test_a_killed_childs_last_results_are_found_by_its_parent() -> None:
    board = Scoreboard(1)

    def main(_lifeline: Lifeline) -> int:
        outbox = board.outbox(0)
        for counter in range(1, 100):
            outbox.put(n(counter), counter, 1, 0, b"%d" % counter)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    child = fork(main, "test:writer")
    assert describe_exit(os.waitpid(child.pid, 0)[1]) == "SIGKILL"
    child.lifeline.close()
    for counter in range(100 - KEPT, 100):
        assert board.outbox(0).find(n(counter)) == Result(n(counter), counter, 1, 0, b"%d" % counter)
    assert board.outbox(0).find(n(1)) is None  # overwritten
