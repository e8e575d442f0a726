"""The shared slots: what each consumer runs, since when, and how much it has done.

One anonymous shared map, made by the supervisor before it forks. A slot is written by its consumer
alone, as aligned native 64-bit words (one store each, so that no reader sees half a word).
"""

from __future__ import annotations

import mmap

_WORDS = 8  # a slot is one cache line
JOB, BEGUN, DONE = 0, 1, 2  # a slot's words: job number or 0; nanoseconds, monotonic; jobs finished


class Scoreboard:
    """All slots."""

    def __init__(self, slots: int) -> None:
        self._map = mmap.mmap(-1, slots * _WORDS * 8)
        self._words = memoryview(self._map).cast("Q")

    def slot(self, index: int) -> memoryview:
        """Return one slot: eight words, to be indexed with JOB, BEGUN, DONE."""
        return self._words[index * _WORDS : (index + 1) * _WORDS]

    def clear(self, index: int) -> None:
        """Make a slot new, before its next consumer is forked."""
        slot = self.slot(index)
        for word in range(_WORDS):
            slot[word] = 0
