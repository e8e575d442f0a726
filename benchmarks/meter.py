"""Gives a caller written in Python its requests, and keeps what becomes of them, as load.c does for its own.

Knows nothing of how they are sent.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import processes
import psutil

_OWN = 9  # payload bytes that belong to one request: kind and number


@dataclass(frozen=True)
class Job:
    """What a caller is to do."""

    call: str  # "module:function", which gets a Meter and this
    address: str  # of the server; "" if it has its own processes
    handler: str  # name in handlers.py
    processes: int  # that run the handler
    callers: int  # processes that call; each has its part of those in flight
    in_flight: int
    size: int  # bytes of a payload, both ways
    warmup: float  # seconds
    seconds: float  # that count, after the warm-up
    kinds: str  # of the requests, in turn; keys of handlers.CPU_SECONDS


@dataclass
class Tally:
    """What one caller saw."""

    issued: int = 0
    cpu_seconds: float = 0.0  # of the caller itself
    server_cpu_seconds: float = 0.0  # of the processes that it has for the work, if any
    server_pss: int = 0  # bytes, of the same
    failures: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[int]] = field(default_factory=dict)  # ns, by kind

    def add(self, other: "Tally") -> None:
        """Take in what another caller saw at the same time."""
        self.issued += other.issued
        self.cpu_seconds += other.cpu_seconds
        self.server_cpu_seconds += other.server_cpu_seconds
        self.server_pss += other.server_pss
        self.failures += other.failures
        for kind, values in other.latencies.items():
            self.latencies.setdefault(kind, []).extend(values)


Request = tuple[int, bytes]  # when it began, ns, and its payload


class Meter:
    """One caller's requests. Safe in threads."""

    def __init__(self, job: Job, index: int = 0, wait_for_others: Callable[[], object] = lambda: None) -> None:
        self.tally = Tally(latencies={kind: [] for kind in job.kinds})
        self._job = job
        self._kinds = [kind.encode() for kind in job.kinds]
        self._by_kind = {kind.encode(): values for kind, values in self.tally.latencies.items()}
        self._noise = bytes((i * 2654435761 & 0xFFFFFFFF) >> 13 & 0xFF for i in range(4096))
        self._noise = (self._noise * (job.size // 4096 + 1))[: job.size - _OWN]
        self._numbers = count(index, job.callers)
        self._index = index
        self._wait_for_others = wait_for_others
        self._opens = self._closes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything is set up: count from here, until the last reply is in."""
        self._wait_for_others()
        children = psutil.Process().children(recursive=True)
        server_before, before = processes.cpu_seconds(children), time.process_time()
        self._opens = time.monotonic_ns() + int(self._job.warmup * 1e9)
        self._closes = self._opens + int(self._job.seconds * 1e9)
        yield
        self.tally.cpu_seconds = time.process_time() - before
        self.tally.server_cpu_seconds = processes.cpu_seconds(children) - server_before
        self.tally.server_pss = processes.pss(children)
        self.tally.issued = (next(self._numbers) - self._index) // self._job.callers

    def next(self) -> Request | None:
        """Return the next request; None when the time is over."""
        now = time.monotonic_ns()
        if now >= self._closes:
            return None
        number = next(self._numbers)
        payload = self._kinds[number % len(self._kinds)] + number.to_bytes(8, "little") + self._noise
        return now, payload

    def end(self, request: Request, reply: bytes) -> None:
        """Take its reply."""
        now = time.monotonic_ns()
        began, payload = request
        if reply != payload:
            self.tally.failures["wrong"] += 1
        elif self._opens <= now < self._closes:
            self._by_kind[payload[:1]].append(now - began)

    def fail(self, error: BaseException) -> None:
        """Take its failure; the caller then asks no more."""
        self.tally.failures[type(error).__name__] += 1
        self._closes = 0
