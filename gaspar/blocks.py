"""Cuts a stretch of memory into blocks, and puts together again what comes back.

Pure: numbers only. First fit, the lowest first, so that the same few pages are used again and again.
"""

from __future__ import annotations

from bisect import bisect


class Blocks:
    """What is taken and what is free between `start` and `end`, bytes."""

    def __init__(self, start: int, end: int) -> None:
        self._free = [(start, end)]  # by place; between any two something is taken
        self._taken: dict[int, int] = {}  # start: end

    @property
    def free(self) -> list[tuple[int, int]]:
        """All that is free, (start, end) each, lowest first."""
        return list(self._free)

    @property
    def taken(self) -> list[tuple[int, int]]:
        """All that is taken, (start, end) each."""
        return list(self._taken.items())

    def take(self, size: int) -> int | None:
        """Take a block. Returns its start, or None if no free stretch is as long as that."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._taken[start] = start + size
                self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                return start
        return None

    def give(self, start: int) -> int:
        """Give a block back. Returns its end."""
        given = end = self._taken.pop(start)
        index = bisect(self._free, (start,))
        first, last = index, index
        if index and self._free[index - 1][1] == start:
            first, start = index - 1, self._free[index - 1][0]
        if index < len(self._free) and self._free[index][0] == end:
            last, end = index + 1, self._free[index][1]
        self._free[first:last] = [(start, end)]
        return given
