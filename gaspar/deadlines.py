"""Which requests have to be answered by when. Pure: no clock; time is passed in.

Most requests are answered long before their deadline. What was answered stays in here until its deadline has
passed, or until there is more of it than of what is pending: so this never grows beyond its users' number.
"""

from __future__ import annotations

import heapq

from .dispatch import Job

_SPARE = 1024  # entries that are not worth looking through


class Deadlines:
    """The deadlines of one front's jobs. A job that nobody waits for any more has no client."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Job]] = []
        self._full = _SPARE

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, job: Job) -> bool:
        """Take in a job with a deadline. True if it is the first to be looked at now."""
        heapq.heappush(self._heap, (job.deadline, job.number, job))
        if len(self._heap) > self._full:
            self._heap = [entry for entry in self._heap if entry[2].client is not None]
            heapq.heapify(self._heap)
            self._full = 2 * len(self._heap) + _SPARE
        return bool(self._heap) and self._heap[0][2] is job

    @property
    def first(self) -> float | None:
        """When to look next; seconds, monotonic."""
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float) -> list[Job]:
        """Return the jobs that somebody waits for still and whose deadline has passed, and forget them."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            job = heapq.heappop(self._heap)[2]
            if job.client is not None:
                late.append(job)
        return late
