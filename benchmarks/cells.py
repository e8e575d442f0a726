"""Measures one server in one situation, and keeps what was measured. Prints nothing."""

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import fifo
import handlers
import psutil
from load import Load
from servers import Server

MB = 1e6
PROCESSES = 2  # of each server that run the handler; also the CPUs that all share
MORE_PROCESSES = 6  # to see what one more costs


@dataclass(frozen=True)
class Row:
    """One situation that every server is put in."""

    key: str
    title: str
    handler: str  # name in handlers.py
    clients: int
    size: int  # bytes of a payload, both ways
    kinds: str  # of the requests, in turn; keys of handlers.CPU_SECONDS

    @property
    def shown(self) -> str:
        """The kind of request whose latencies are shown: the one that takes least."""
        return min(self.kinds, key=lambda kind: handlers.CPU_SECONDS[kind])

    @property
    def is_mixed(self) -> bool:
        """Whether there are requests of several kinds."""
        return len(set(self.kinds)) > 1


@dataclass(frozen=True)
class Cell:
    """What one server did in one row in one round; seconds unless the name says otherwise."""

    per_second: float  # requests
    mb_per_second: float  # payload, one way
    share: float  # of the CPUs that was the handler's own work
    p50: float
    p95: float
    p99: float
    cpu_us: float  # of all the server's processes, per request
    load_us: float  # CPU of the load generator, per request
    fifo_p95: float  # of a simulated perfect queue that is as efficient; 0 without CPU work
    others: float  # share of the CPUs that processes took which have no part in this


@dataclass(frozen=True)
class Start:
    """What starting one server cost in one round."""

    first_reply: float  # seconds from exec
    pss: float  # bytes, with PROCESSES
    more_pss: float  # bytes for each further process


@dataclass
class Results:
    """All that was measured; a failed round is None, so that the rounds of two servers stay side by side."""

    # Round by round: the cells by row's key and server's name, the starts by server's name.
    cells: dict[tuple[str, str], list[Cell | None]] = field(default_factory=dict)
    starts: dict[str, list[Start | None]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def values(self, row: str, server: str, name: str) -> list[float | None]:
        """Return the field `name` of each round."""
        return [None if cell is None else getattr(cell, name) for cell in self.cells.get((row, server), [])]

    def median(self, row: str, server: str, name: str) -> float | None:
        """Return the median over the rounds that succeeded; None if none did."""
        return median(self.values(row, server, name))

    def ratio(self, row: str, name: str, server: str, other: str) -> float | None:
        """Return the median of the ratios within each round: what drifts from round to round drops out."""
        pairs = zip(self.values(row, server, name), self.values(row, other, name), strict=False)
        return median([a / b for a, b in pairs if a is not None and b])


def median(values: list[float | None]) -> float | None:
    """Return the median of those that are not None; None if all are."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def measure(load: Load, server: Server, row: Row, warmup: float, seconds: float) -> tuple[Cell | None, dict[str, int]]:
    """Load the server; return what it did, None if nothing in time, and how many requests failed which way."""
    cpu_before = server.cpu_seconds()
    before = _cpu_times()
    outcome = load.run(server.port, row.clients, row.size, warmup, seconds, row.kinds)
    cpu = server.cpu_seconds() - cpu_before
    busy, idle = (now - then for now, then in zip(_cpu_times(), before, strict=True))
    latency = outcome.kinds.get(row.shown)
    if latency is None:
        return None, outcome.failures
    counts = {kind: each.count for kind, each in outcome.kinds.items()}
    share = _handler_seconds(counts) / (PROCESSES * outcome.seconds)
    cell = Cell(
        per_second=outcome.completed / outcome.seconds,
        mb_per_second=outcome.completed * row.size / outcome.seconds / MB,
        share=share,
        p50=latency.p50,
        p95=latency.p95,
        p99=latency.p99,
        cpu_us=cpu / outcome.issued * 1e6,
        load_us=outcome.cpu_seconds / outcome.issued * 1e6,
        fifo_p95=_fifo_p95(row, share, warmup, seconds) if share else 0.0,
        others=max(0.0, (busy - cpu - outcome.cpu_seconds) / (busy + idle)),
    )
    return cell, outcome.failures


def _cpu_times() -> tuple[float, float]:
    """Return the seconds that the CPUs which we may use were busy so far, and those that they were idle."""
    every = psutil.cpu_times(percpu=True)
    ours = [every[cpu] for cpu in os.sched_getaffinity(0)]
    idle = sum(each.idle + each.iowait for each in ours)
    return sum(sum(each[:8]) for each in ours) - idle, idle  # the rest, guests, is in user and nice already


def _handler_seconds(counts: Mapping[str, int]) -> float:
    return sum(count * handlers.CPU_SECONDS[kind] for kind, count in counts.items())


def _fifo_p95(row: Row, share: float, warmup: float, seconds: float) -> float:
    """Return the p95 of the shown kind in a perfect queue whose servers lose as much time as was measured."""
    service = {kind: handlers.CPU_SECONDS[kind] / share for kind in row.kinds}
    latencies = fifo.simulate(row.kinds, service, row.clients, PROCESSES, warmup, seconds)
    return fifo.percentile(latencies[row.shown], 95)
