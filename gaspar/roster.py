"""Which consumers there should be: whom to fork, whom to let go, and how long to wait before the next try.

Pure: no process, clock or logging. What happened goes in, with the time; orders come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# why consumers end
REASONS = ("crashed", "timeout", "stopped", "memory", "requests", "aside", "reload", "scaled")


class Backoff:
    """How long to wait before something that keeps dying is started again.

    The first `FREE` early deaths in a row cost nothing, each further one doubles the wait.
    """

    FREE = 3
    FIRST, LONGEST = 0.1, 5.0  # seconds
    EARLY = 5.0  # seconds; what lived longer did not die early

    def __init__(self) -> None:
        self._row = 0

    @property
    def slowed(self) -> bool:
        """True if the next start has to wait."""
        return self._row > self.FREE

    def died(self, lived: float, useful: bool) -> float:
        """Count a death; returns the seconds to wait.

        Args:
            lived: seconds.
            useful: it had been given work.
        """
        self._row = 0 if useful or lived > self.EARLY else self._row + 1
        if not self.slowed:
            return 0.0
        return float(min(self.LONGEST, self.FIRST * 2 ** min(self._row - self.FREE - 1, 16)))


@dataclass
class Entry:
    """One consumer."""

    number: int
    slot: int  # on the scoreboard
    generation: int  # of its forker
    forked: float  # seconds, monotonic
    pid: int = 0  # 0 until it is ready
    worn: str = ""  # why it is to be replaced: "requests", "memory", "reload"
    retiring: bool = False  # gets no more jobs, leaves when it holds none
    aside: bool = False  # retiring since a long request holds it while others wait

    @property
    def why(self) -> str:
        """Why it ends, if it ends by itself now; one of REASONS."""
        if not self.retiring:
            return "crashed"
        return "aside" if self.aside else self.worn or "scaled"


class Orders(NamedTuple):
    """What is to be done now."""

    fork: list[Entry]
    retire: list[Entry]


class Roster:
    """All consumers of a daemon, and how many there should be.

    A consumer that is to be replaced (worn, or of an old generation) is let go only when its successor
    is ready: one more than wanted is forked, and whoever is to go first goes.

    Args:
        target: how many consumers there should be.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.generation = 0  # whose forker new consumers come from
        self.trial = 0  # a generation that has to show one ready consumer first; 0: none
        self.not_before = 0.0  # no fork before; seconds, monotonic
        self.backoff = Backoff()
        self._entries: dict[int, Entry] = {}
        self._last = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, number: int) -> Entry | None:
        """Return an entry, or None if there is none of this number."""
        return self._entries.get(number)

    @property
    def ready(self) -> list[Entry]:
        """Those that serve, retiring ones excepted."""
        return [each for each in self if each.pid and not each.retiring]

    @property
    def settled(self) -> bool:
        """True if exactly those are there that should be, all ready."""
        return len(self.ready) == len(self._entries) == self.target and not any(map(self._is_stale, self))

    def of(self, generation: int) -> list[Entry]:
        """List the consumers of one forker."""
        return [each for each in self if each.generation == generation]

    def take_over(self, generation: int) -> None:
        """New consumers come from this generation's forker from now on; it has the newest code, so no trial is left."""
        self.generation, self.trial = generation, 0

    def step_aside(self, number: int, most: int) -> Entry | None:
        """Let a consumer go that a long request holds, so that another takes its place at once.

        Args:
            most: how many may be in this state.

        Returns:
            The consumer, or None if it may not.
        """
        entry = self._entries.get(number)
        if entry is None or entry.retiring or not entry.pid or sum(each.aside for each in self) >= most:
            return None
        entry.retiring = entry.aside = True
        return entry

    def on_forker_gone(self, generation: int, now: float) -> list[Entry]:
        """A forker has ended. Returns its consumers, which end with it."""
        if generation == self.trial:
            self.trial = 0
        lost = self.of(generation)
        for each in lost:
            self.on_gone(each.number, True, now)
        return lost

    def on_ready(self, number: int, pid: int) -> Entry | None:
        """A consumer is ready. Returns it, or None if nobody knows it."""
        entry = self._entries.get(number)
        if entry is not None:
            entry.pid = pid
            if entry.generation == self.trial:
                self.generation, self.trial = max(self.generation, self.trial), 0
        return entry

    def on_gone(self, number: int, given: bool, now: float) -> Entry | None:
        """A consumer has ended.

        Args:
            given: it had been given a job.
        """
        entry = self._entries.pop(number, None)
        if entry is not None and not entry.retiring and entry.generation == self.generation:
            self.not_before = now + self.backoff.died(now - entry.forked, given)
        return entry

    def next_orders(self, now: float) -> Orders:
        """Say whom to fork and whom to let go; each order is given once."""
        # among those that serve, the stale go first, then the youngest
        serving = sorted(self.ready, key=lambda each: (not self._is_stale(each), -each.number))
        retire = serving[: max(0, len(serving) - self.target)]
        for each in retire:
            each.retiring = True
            if not each.worn and self._is_stale(each):
                each.worn = "reload"
        return Orders(self._forks(now) if now >= self.not_before else [], retire)

    def _forks(self, now: float) -> list[Entry]:
        trial = [self._add(self.trial, now)] if self.trial and not self.of(self.trial) else []
        staying = [each for each in self if not each.retiring and each.generation != (self.trial or None)]
        missing = self.target - len(staying)
        leaving = sum(each.retiring and not each.aside for each in self)  # bounded: they may be busy for long
        if missing <= 0 and not self.trial and leaving <= self.target and all(each.pid for each in staying):
            missing = self.target + 1 - len(staying) if any(map(self._is_stale, staying)) else 0
        return trial + [self._add(self.generation, now) for _ in range(missing)]

    def _is_stale(self, entry: Entry) -> bool:
        return bool(entry.worn) or entry.generation not in (self.generation, self.trial)

    def _add(self, generation: int, now: float) -> Entry:
        self._last += 1
        taken = {each.slot for each in self}
        slot = next(n for n in range(len(taken) + 1) if n not in taken)
        entry = self._entries[self._last] = Entry(self._last, slot, generation, now)
        return entry
