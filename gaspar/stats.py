"""What a front counts: outcomes, times waited and run, what happened in each of the last seconds.

Pure: no socket, clock or logging; time is passed in. Made so that a request costs two appends: what was seen is put
into its place once a second, or when a few thousand have gathered.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

from .errors import Code

OK = "ok"
OUTCOMES = (OK, *(code.name.lower() for code in Code))
SECONDS = 60  # of history
_SLICE = 5  # seconds; the last minute is the last twelve of them
_MOST_UNFOLDED = 4096
_STEPS = 4  # buckets for each doubling


def bucket(micros: int) -> int:
    """Number the bucket that a time belongs to. From 8 us on it is a quarter wide at most; below, each has its own.

    Source: the octave is the number's bit length, the step within it the next two bits, as in HdrHistogram.
    """
    if micros < 2 * _STEPS:
        return micros
    octave = micros.bit_length() - 3
    return octave * _STEPS + (micros >> octave)


def upper_bound(number: int) -> float:
    """Say which times a bucket holds: those below so many seconds."""
    if number < 2 * _STEPS:
        return (number + 1) / 1e6
    octave = number // _STEPS - 1
    return ((number - octave * _STEPS + 1) << octave) / 1e6


class Distribution:
    """Times, by bucket."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0  # microseconds
        self.max = 0  # microseconds
        self.buckets: Counter[int] = Counter()

    def add(self, micros: list[int]) -> None:
        """Take in what was seen."""
        if not micros:
            return
        self.count += len(micros)
        self.sum += sum(micros)
        self.max = max(self.max, max(micros))
        buckets = self.buckets
        for value, count in Counter(micros).items():
            buckets[bucket(value)] += count

    def merge(self, other: Distribution) -> None:
        """Take in what another holds."""
        self.count += other.count
        self.sum += other.sum
        self.max = max(self.max, other.max)
        self.buckets.update(other.buckets)

    def quantile(self, share: float) -> float | None:
        """Return a time that so many are below, seconds, at most a quarter too long; None if there are none."""
        left = math.ceil(self.count * share)
        for number in sorted(self.buckets):
            left -= self.buckets[number]
            if left <= 0:
                return min(upper_bound(number), self.max / 1e6)
        return None

    def describe(self) -> dict[str, Any]:
        """Lay out all of it; seconds."""
        return {
            "count": self.count,
            "sum": self.sum / 1e6,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "max": self.max / 1e6 if self.count else None,
            "buckets": [[upper_bound(number), self.buckets[number]] for number in sorted(self.buckets)],
        }


class Times:
    """Times since the start and of the last minute."""

    def __init__(self) -> None:
        self.start = Distribution()
        self._slices: deque[Distribution] = deque([Distribution()], maxlen=SECONDS // _SLICE + 1)

    def add(self, micros: list[int]) -> None:
        """Take in what was seen just now."""
        self.start.add(micros)
        self._slices[-1].add(micros)

    def turn(self) -> None:
        """Begin the next slice of the minute."""
        self._slices.append(Distribution())

    def minute(self) -> Distribution:
        """Put together what was seen in the last minute, and in the slice that has begun."""
        merged = Distribution()
        for each in self._slices:
            merged.merge(each)
        return merged

    def describe(self) -> dict[str, Any]:
        """Lay out all of it; seconds."""
        return {"minute": self.minute().describe(), "start": self.start.describe()}


class Stats:
    """The counts of one front.

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: float) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        # of each result, microseconds, not yet in `wait` and `run`; whoever answers appends
        self.waits: list[int] = []
        self.runs: list[int] = []
        self._bad_results = 0  # errors among them
        self.wait, self.run = Times(), Times()
        self.most_waiting = 0
        self.lag = self.lag_max = 0.0  # seconds by which the last second's tick was late; the worst of a minute
        self._lags: deque[float] = deque(maxlen=SECONDS)
        self._history: deque[tuple[int, int, int]] = deque([(0, 0, 0)] * SECONDS, maxlen=SECONDS)
        self._ticks = 0
        self._seen = (0, 0)  # answered and failed, at the last tick
        self.due = now + 1.0  # when to `tick` next

    def count(self, code: int) -> None:
        """Count a request that ended in an error, without a result."""
        self.outcomes[Code(code).name.lower()] += 1

    def count_result(self, code: int) -> None:
        """Count a result that is an error; those that are none are counted by their times."""
        self._bad_results += 1
        self.count(code)

    def fold_if_many(self) -> None:
        """Put away what was seen, if it is a lot."""
        if len(self.waits) >= _MOST_UNFOLDED:
            self.fold()

    def fold(self) -> None:
        """Put away what was seen."""
        self.outcomes[OK] += len(self.waits) - self._bad_results
        self._bad_results = 0
        self.wait.add(self.waits)
        self.run.add(self.runs)
        self.waits.clear()
        self.runs.clear()

    def tick(self, now: float, waiting: int) -> None:
        """A second has passed."""
        self.lag = max(0.0, now - self.due)
        self._lags.append(self.lag)
        self.lag_max = max(self._lags)
        self.due = now + 1.0
        self.fold()
        self._ticks += 1
        if self._ticks % _SLICE == 0:
            self.wait.turn()
            self.run.turn()
        answered = self.outcomes[OK]
        failed = sum(self.outcomes.values()) - answered
        self._history.append((answered - self._seen[0], failed - self._seen[1], waiting))
        self._seen = (answered, failed)

    def history(self) -> dict[str, list[int]]:
        """Say what happened in each of the last seconds, oldest first."""
        answered, failed, waiting = zip(*self._history, strict=True)
        return {"answered": list(answered), "failed": list(failed), "waiting": list(waiting)}
