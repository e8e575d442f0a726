"""CPU and memory of our processes, as the kernel tells them. Each is looked at once a second at most, few at a time.

A look at a large process takes milliseconds (the kernel walks its pages), in which the front could serve nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import psutil

_FRESH = 0.9  # seconds that a look is good for
_BUDGET = 0.005  # seconds for looks, at a time


class Gauge(NamedTuple):
    """What one process uses."""

    cpu: float  # share of one CPU, since the look before; at the first since the process began
    private: int  # bytes that are its own
    shared: int  # bytes that it shares with others, as memory from before a fork
    seen: float  # seconds, monotonic
    used: float  # seconds of CPU until then


class Gauges:
    """What some processes use."""

    def __init__(self) -> None:
        self._found: dict[int, Gauge] = {}
        self._processes: dict[int, psutil.Process] = {}

    def look(self, pids: Iterable[int]) -> dict[int, Gauge]:
        """Look at those whose last look is the longest ago, as many as the time allows; forget all that are not named.

        Returns:
            What is known, by pid. Of a process that has ended, or was not looked at yet, nothing.
        """
        wanted = set(pids)
        for pid in self._found.keys() - wanted:
            del self._found[pid]
        for pid in self._processes.keys() - wanted:
            del self._processes[pid]
        begun = time.monotonic()
        for pid in sorted(wanted, key=self._seen):
            now = time.monotonic()
            if now - begun > _BUDGET or now - self._seen(pid) < _FRESH:
                break
            self._look_at(pid, now)
        return self._found

    def _seen(self, pid: int) -> float:
        last = self._found.get(pid)
        return last.seen if last else 0.0

    def _look_at(self, pid: int, now: float) -> None:
        import psutil  # takes tens of milliseconds, which a front that is to serve at once does not have

        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            memory = process.memory_full_info()
            times = process.cpu_times()
            began = now - (time.time() - process.create_time())
        except (psutil.Error, OSError):  # it has ended
            self._found.pop(pid, None)
            return
        used = times.user + times.system
        last = self._found.get(pid)
        since, before = (last.seen, last.used) if last else (began, 0.0)
        cpu = (used - before) / max(now - since, 0.01)
        self._found[pid] = Gauge(cpu, memory.uss, max(0, memory.rss - memory.uss), now, used)
