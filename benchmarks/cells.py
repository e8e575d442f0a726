"""Measures one contender in one situation, and keeps what was measured. Prints nothing."""

import os
import resource
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import fifo
import handlers
import load as loads
import psutil
from load import Load, Outcome
from meter import Job
from rows import MB, Entry, Row
from servers import HOST, Server

PROCESSES = 2  # of each contender that run the handler; also the CPUs that all share
MORE_PROCESSES = 6  # to see what one more costs


@dataclass(frozen=True)
class Cell:
    """What one contender did in one row in one round; seconds unless the name says otherwise."""

    per_second: float  # requests
    mb_per_second: float  # payload, one way
    share: float  # of the CPUs that was the handler's own work
    p50: float
    p95: float
    p99: float
    cpu_us: float  # of all the server's processes, per request
    load_us: float  # CPU of what loads, per request
    pss: float  # bytes, of the server's processes, after the load
    fifo_p95: float  # of a simulated perfect queue that is as efficient; 0 without CPU work
    others: float  # share of the CPUs that processes took which have no part in this


@dataclass(frozen=True)
class Start:
    """What starting one server cost in one round."""

    first_reply: float  # seconds from exec
    pss: float  # bytes, with PROCESSES
    more_pss: float  # bytes for each further process


@dataclass(frozen=True)
class Memory:
    """What the front's memory did in one round of the longest messages; bytes."""

    in_flight: int  # payloads
    peak: int  # of its RSS above its start
    left: int  # of its RSS above its start when all was over


@dataclass
class Results:
    """All that was measured; a failed round is None, so that the rounds of two contenders stay side by side."""

    # Round by round: the cells by row's key and entry's name, the starts by server's name.
    cells: dict[tuple[str, str], list[Cell | None]] = field(default_factory=dict)
    starts: dict[str, list[Start | None]] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def values(self, row: str, entry: str, name: str) -> list[float | None]:
        """Return the field `name` of each round."""
        return [None if cell is None else getattr(cell, name) for cell in self.cells.get((row, entry), [])]

    def median(self, row: str, entry: str, name: str) -> float | None:
        """Return the median over the rounds that succeeded; None if none did."""
        return median(self.values(row, entry, name))

    def ratio(self, row: str, name: str, entry: str, other: str) -> float | None:
        """Return the median of the ratios within each round: what drifts from round to round drops out."""
        pairs = zip(self.values(row, entry, name), self.values(row, other, name), strict=False)
        return median([a / b for a, b in pairs if a is not None and b])


def median(values: list[float | None]) -> float | None:
    """Return the median of those that are not None; None if all are."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def measure(
    load: Load, server: Server | None, row: Row, entry: Entry, warmup: float, seconds: float
) -> tuple[Cell | None, dict[str, int]]:
    """Load a contender; return what it did, None if nothing in time, and how many requests failed which way.

    Args:
        server: the contender's, None if it has none.
    """
    before, cpu_before = _cpu_times(), server.cpu_seconds() if server else 0.0
    load_before = _children_seconds()
    outcome = _run(load, server, row, entry, warmup, seconds)
    served = server.cpu_seconds() - cpu_before if server else 0.0
    busy, idle = (now - then for now, then in zip(_cpu_times(), before, strict=True))
    ours = served + _children_seconds() - load_before
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
        cpu_us=(served + outcome.server_cpu_seconds) / outcome.issued * 1e6,
        load_us=outcome.cpu_seconds / outcome.issued * 1e6,
        pss=server.pss() if server else outcome.server_pss,
        fifo_p95=_fifo_p95(row, entry, share, warmup, seconds) if share else 0.0,
        others=max(0.0, (busy - ours) / (busy + idle)),
    )
    return cell, outcome.failures


def _run(load: Load, server: Server | None, row: Row, entry: Entry, warmup: float, seconds: float) -> Outcome:
    contender = entry.contender
    if not contender.is_python:
        assert server is not None
        shape = (entry.connections, entry.depth, row.size, warmup, seconds, row.kinds)
        return load.run(contender.load, server.port, *shape)
    job = Job(
        call=contender.load,
        address=f"{HOST}:{server.port}" if server else "",
        handler=row.handler,
        processes=PROCESSES,
        callers=min(contender.callers, entry.in_flight),
        in_flight=entry.in_flight,
        size=row.size,
        warmup=warmup,
        seconds=seconds,
        kinds=row.kinds,
    )
    return loads.call(job)


def _cpu_times() -> tuple[float, float]:
    """Return the seconds that the CPUs which we may use were busy so far, and those that they were idle."""
    every = psutil.cpu_times(percpu=True)
    ours = [every[cpu] for cpu in os.sched_getaffinity(0)]
    idle = sum(each.idle + each.iowait for each in ours)
    return sum(sum(each[:8]) for each in ours) - idle, idle  # the rest, guests, is in user and nice already


def _children_seconds() -> float:
    """Return the CPU time of all loads that have ended: no server has, while a load runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _handler_seconds(counts: Mapping[str, int]) -> float:
    return sum(count * handlers.CPU_SECONDS[kind] for kind, count in counts.items())


def _fifo_p95(row: Row, entry: Entry, share: float, warmup: float, seconds: float) -> float:
    """Return the p95 of the shown kind in a perfect queue whose servers lose as much time as was measured."""
    service = {kind: handlers.CPU_SECONDS[kind] / share for kind in row.kinds}
    latencies = fifo.simulate(row.kinds, service, entry.in_flight, PROCESSES, warmup, seconds)
    return fifo.percentile(latencies[row.shown], 95)
