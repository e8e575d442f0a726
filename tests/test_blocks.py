"""Blocks: what is taken never overlaps, what comes back is put together again."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given

from gaspar.blocks import Blocks


def test_the_lowest_free_stretch_that_is_long_enough_is_taken() -> None:
    blocks = Blocks(10, 110)
    assert [blocks.take(20), blocks.take(30), blocks.take(50)] == [10, 30, 60]
    assert blocks.take(1) is None
    assert blocks.give(10) == 30
    assert blocks.take(21) is None
    assert blocks.give(60) == 110
    assert blocks.take(21) == 60
    assert blocks.take(20) == 10


def test_neighbours_become_one_stretch_again() -> None:
    blocks = Blocks(0, 30)
    starts = [blocks.take(10), blocks.take(10), blocks.take(10)]
    assert starts == [0, 10, 20] and blocks.free == []
    blocks.give(0)
    blocks.give(20)
    assert blocks.free == [(0, 10), (20, 30)]
    blocks.give(10)
    assert blocks.free == [(0, 30)]


@given(st.lists(st.one_of(st.integers(1, 40), st.integers(-30, -1))))
def test_every_byte_is_either_free_or_in_one_block(steps: list[int]) -> None:
    blocks = Blocks(5, 105)
    held: list[int] = []
    for step in steps:
        if step > 0:
            longest = max((end - start for start, end in blocks.free), default=0)
            start = blocks.take(step)
            assert (start is None) == (longest < step)
            if start is not None:
                held.append(start)
        elif held:
            blocks.give(held.pop(step % len(held)))
        assert sorted(start for start, _ in blocks.taken) == sorted(held)
        extents = sorted(blocks.free + blocks.taken)
        assert extents[0][0] == 5 and extents[-1][1] == 105
        assert all(before[1] == after[0] for before, after in itertools.pairwise(extents))
        assert all(before[1] < after[0] for before, after in itertools.pairwise(blocks.free))
