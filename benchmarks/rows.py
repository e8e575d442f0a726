"""The situations that contenders are put in, and who is put in which."""

import random
from dataclasses import dataclass

import contenders as who
import handlers
from contenders import Contender

MB = 1_000_000  # bytes


@dataclass(frozen=True)
class Entry:
    """One contender in one row, with so many requests in flight."""

    contender: Contender
    connections: int
    depth: int = 1  # in flight on each connection

    @property
    def in_flight(self) -> int:
        """Requests that are under way at any time."""
        return self.connections * self.depth

    @property
    def name(self) -> str:
        """What it is called in the tables."""
        is_framed = self.contender.load == "framed"
        return f"{self.contender.name} {self.connections}" + (f"x{self.depth}" if is_framed else "")


@dataclass(frozen=True)
class Row:
    """One situation."""

    key: str
    title: str
    handler: str  # name in handlers.py
    size: int  # bytes of a payload, both ways
    kinds: str  # of the requests, in turn; keys of handlers.CPU_SECONDS
    entries: tuple[Entry, ...]

    @property
    def shown(self) -> str:
        """The kind of request whose latencies are shown: the one that takes least."""
        return min(self.kinds, key=lambda kind: handlers.CPU_SECONDS[kind])

    @property
    def is_mixed(self) -> bool:
        """Whether there are requests of several kinds."""
        return len(set(self.kinds)) > 1

    def first(self, contender: Contender) -> str | None:
        """Return the name of a contender's first entry."""
        return next((each.name for each in self.entries if each.contender is contender), None)

    def last(self, contender: Contender) -> str | None:
        """Return the name of a contender's last entry."""
        return next((each.name for each in reversed(self.entries) if each.contender is contender), None)


_SERVERS = (who.MOSEC_KEPT, who.GUNICORN_SYNC)
_CALLERS = (who.MAP, who.THREADS, who.AIO, who.REQUEST, who.PPE, who.RUN_IN_EXECUTOR, who.PEBBLE)
_PYTHON_SERVERS = (who.RPYC_KEPT, who.ZERORPC_KEPT)


def _raw(connections: int, depth: int) -> tuple[Entry, ...]:
    """Return those whose load costs next to nothing, each with connections x depth in flight."""
    many = connections * depth
    return (
        Entry(who.ONESHOT, many),
        Entry(who.FRAMED, connections, depth),
        Entry(who.BARE_ONESHOT, many),
        Entry(who.BARE_KEPT, connections, depth),
        Entry(who.ASYNCIO_PPE, many),
    )


def _all(connections: int, depth: int) -> tuple[Entry, ...]:
    """Return everybody, each with connections x depth in flight."""
    others = (Entry(each, connections * depth) for each in (*_CALLERS, *_SERVERS, *_PYTHON_SERVERS))
    return (*_raw(connections, depth), *others)


def _some(connections: int, depth: int) -> tuple[Entry, ...]:
    """Return the raw ones, a caller of gaspar's, a pool."""
    return (*_raw(connections, depth), *(Entry(each, connections * depth) for each in (who.MAP, who.PPE)))


def _mixed(connections: int, depth: int) -> tuple[Entry, ...]:
    """Return the raw ones, gaspar with other options, a pool."""
    return (
        *_raw(connections, depth),
        Entry(who.FIFO_ONESHOT, connections * depth),
        Entry(who.FIFO_FRAMED, connections, depth),
        Entry(who.BURST_ONESHOT, connections * depth),
        Entry(who.BURST_FRAMED, connections, depth),
        Entry(who.PPE, connections * depth),
    )


def _many() -> tuple[Entry, ...]:
    """Return everybody, each with as many in flight as suit it."""
    return (
        Entry(who.ONESHOT, 32),
        Entry(who.FRAMED, 32, 1),
        Entry(who.FRAMED, 4, 32),
        Entry(who.BARE_ONESHOT, 32),
        Entry(who.BARE_KEPT, 32, 1),
        Entry(who.BARE_KEPT, 4, 32),
        Entry(who.ASYNCIO_PPE, 32),
        Entry(who.MAP, 64),
        Entry(who.THREADS, 32),
        Entry(who.AIO, 100),
        Entry(who.REQUEST, 32),
        Entry(who.PPE, 64),
        Entry(who.RUN_IN_EXECUTOR, 100),
        Entry(who.PEBBLE, 64),
        *(Entry(each, 32) for each in (*_SERVERS, *_PYTHON_SERVERS)),
    )


def _mix(blocks: int = 200, block: int = 20) -> str:
    """Return kinds of which one of 20 is long, at a random place of its block; the same at each call."""
    places = random.Random(block)
    return "".join(
        "".join("l" if i == long else "s" for i in range(block))
        for long in (places.randrange(block) for _ in range(blocks))
    )


_MIX_TITLE = "1 of 20 takes 100 ms of CPU, the others 1 ms"

ROWS = (
    Row("64B-1", "64 bytes, 1 in flight", "echo", 64, "e", _all(1, 1)),
    Row("64B", "64 bytes, many in flight", "echo", 64, "e", _many()),
    Row("1MB-1", "1 MB both ways, 1 in flight", "echo", MB, "e", _some(1, 1)),
    Row("1MB-8", "1 MB both ways, 8 in flight", "echo", MB, "e", _all(4, 2)),
    Row("1MB-32", "1 MB both ways, 32 in flight", "echo", MB, "e", _some(4, 8)),
    Row("16MB-4", "16 MB both ways, 4 in flight", "echo", 16 * MB, "e", _some(4, 1)),
    Row("cpu-1ms", "1 ms of CPU per request, 16 in flight", "spin", 64, "s", _all(4, 4)),
    Row("cpu-10ms", "10 ms of CPU per request, 16 in flight", "spin", 64, "t", _some(4, 4)),
    Row("mix-16", f"{_MIX_TITLE}, 16 in flight", "spin", 64, _mix(), _mixed(4, 4)),
    Row("mix-32", f"{_MIX_TITLE}, 32 in flight", "spin", 64, _mix(), _mixed(4, 8)),
)
