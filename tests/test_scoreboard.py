"""Writes slots in one process and reads them in another."""

import os

import pytest

from gaspar.process import Lifeline, fork
from gaspar.scoreboard import BEGUN, DONE, JOB, Scoreboard
from gaspar.wire import Kind

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
