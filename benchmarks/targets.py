"""What gaspar is to reach on 2 CPUs, and whether it did. A target that is missed is said to be missed."""

from collections.abc import Callable
from dataclasses import dataclass

import contenders as who
from cells import Results, median
from contenders import Contender
from rows import MB, Entry


@dataclass(frozen=True)
class Finding:
    """What was found for a target: the number that is compared, and the numbers it was made from."""

    value: float
    parts: str


@dataclass(frozen=True)
class Target:
    """A bound on one number; `find` returns None where it was not measured."""

    what: str
    bound: float
    is_least: bool  # at least the bound, else at most
    find: Callable[[Results], Finding | None]

    def is_reached(self, value: float) -> bool:
        """Return whether the value keeps the bound."""
        return value >= self.bound if self.is_least else value <= self.bound


Find = Callable[[Results], Finding | None]

_LEAST, _MOST = True, False
_UNITS = {"per_second": ("/s", 1.0), "mb_per_second": ("MB/s", 1.0), "p50": ("ms", 1e3)}


def _brief(value: float) -> str:
    return format(value, ",.0f" if value >= 100 else ".3f")


def _ratio(row: str, name: str, ours: Entry, other: Entry) -> Find:
    def find(results: Results) -> Finding | None:
        value = results.ratio(row, name, ours.name, other.name)
        mine, theirs = results.median(row, ours.name, name), results.median(row, other.name, name)
        if value is None or mine is None or theirs is None:
            return None
        unit, scale = _UNITS[name]
        return Finding(value, f"{_brief(mine * scale)} / {_brief(theirs * scale)} {unit}")

    return find


def _share(row: str, ours: Entry) -> Find:
    def find(results: Results) -> Finding | None:
        value = results.median(row, ours.name, "share")
        return None if value is None else Finding(value, "")

    return find


def _share_gain(row: str, ours: Entry, other: Entry) -> Find:
    def find(results: Results) -> Finding | None:
        mine, theirs = results.median(row, ours.name, "share"), results.median(row, other.name, "share")
        if mine is None or theirs is None:
            return None
        return Finding(mine - theirs, f"{mine:.3f} - {theirs:.3f}")

    return find


def _fifo(row: str, ours: Entry) -> Find:
    def find(results: Results) -> Finding | None:
        found, perfect = (results.values(row, ours.name, name) for name in ("p95", "fifo_p95"))
        value = median([a / b for a, b in zip(found, perfect, strict=True) if a is not None and b])
        measured, ideal = median(found), median(perfect)
        if value is None or measured is None or ideal is None:
            return None
        return Finding(value, f"{measured * 1e3:.1f} / {ideal * 1e3:.1f} ms")

    return find


def _p95(row: str, ours: Entry) -> Find:
    def find(results: Results) -> Finding | None:
        value = results.median(row, ours.name, "p95")
        return None if value is None else Finding(value * 1e3, "")

    return find


def _start(name: str, scale: float) -> Find:
    def find(results: Results) -> Finding | None:
        starts = results.starts.get(who.GASPAR.name, [])
        value = median([None if start is None else getattr(start, name) for start in starts])
        return None if value is None else Finding(value / scale, "")

    return find


def _memory(name: str) -> Find:
    def find(results: Results) -> Finding | None:
        value = median([getattr(each, name) / each.in_flight for each in results.memory])
        grown = median([getattr(each, name) / MB for each in results.memory])
        if value is None or grown is None:
            return None
        return Finding(value, f"{grown:,.0f} / {results.memory[0].in_flight / MB:,.0f} MB")

    return find


_RATE, _MB_RATE, _P50 = "per_second", "mb_per_second", "p50"


def _entries(contender: Contender, shapes: list[tuple[int, int]]) -> list[Entry]:
    return [Entry(contender, *shape) for shape in shapes]


_O1, _O4, _O8, _O16, _O32 = (Entry(who.ONESHOT, many) for many in (1, 4, 8, 16, 32))
_B1, _B4, _B8, _B32 = (Entry(who.BARE_ONESHOT, many) for many in (1, 4, 8, 32))
_A1, _A16, _A32 = (Entry(who.ASYNCIO_PPE, many) for many in (1, 16, 32))
_F1, _F4X1, _F4X2, _F4X4, _F4X8, _F4X32, _F32X1 = _entries(
    who.FRAMED, [(1, 1), (4, 1), (4, 2), (4, 4), (4, 8), (4, 32), (32, 1)]
)
_TASKS = Entry(who.AIO, 100), Entry(who.RUN_IN_EXECUTOR, 100)

_FIFO_CELLS = (
    ("mix-16", "one-shot 16, --burst 0", who.FIFO_ONESHOT, (16,)),
    ("mix-16", "framed 16, --burst 0", who.FIFO_FRAMED, (4, 4)),
    ("mix-32", "one-shot 32, --burst 0", who.FIFO_ONESHOT, (32,)),
    ("mix-32", "framed 32, --burst 0", who.FIFO_FRAMED, (4, 8)),
)
_BURST_CELLS = (
    ("mix-16", "one-shot 16", who.ONESHOT, (16,)),
    ("mix-16", "framed 16", who.FRAMED, (4, 4)),
    ("mix-16", "one-shot 16, --burst 32", who.BURST_ONESHOT, (16,)),
    ("mix-16", "framed 16, --burst 32", who.BURST_FRAMED, (4, 4)),
    ("mix-32", "one-shot 32", who.ONESHOT, (32,)),
    ("mix-32", "framed 32", who.FRAMED, (4, 8)),
    ("mix-32", "one-shot 32, --burst 32", who.BURST_ONESHOT, (32,)),
    ("mix-32", "framed 32, --burst 32", who.BURST_FRAMED, (4, 8)),
)

TARGETS = (
    Target("64 bytes, one-shot 32: requests/s, of bare", 0.45, _LEAST, _ratio("64B", _RATE, _O32, _B32)),
    Target("64 bytes, one-shot 32: requests/s, of asyncio+PPE", 4.0, _LEAST, _ratio("64B", _RATE, _O32, _A32)),
    Target("64 bytes, framed 4x32: requests/s, of bare one-shot", 2.5, _LEAST, _ratio("64B", _RATE, _F4X32, _B32)),
    Target("64 bytes, framed 32x1: requests/s, of bare one-shot", 1.10, _LEAST, _ratio("64B", _RATE, _F32X1, _B32)),
    Target(
        "64 bytes, Client.map: requests/s, of PPE.submit",
        3.0,
        _LEAST,
        _ratio("64B", _RATE, Entry(who.MAP, 64), Entry(who.PPE, 64)),
    ),
    Target("64 bytes, aio.Client: requests/s, of run_in_executor", 3.0, _LEAST, _ratio("64B", _RATE, *_TASKS)),
    Target("64 bytes, one-shot 1: p50, of bare", 3.3, _MOST, _ratio("64B-1", _P50, _O1, _B1)),
    Target("64 bytes, one-shot 1: p50, of asyncio+PPE", 1.0, _MOST, _ratio("64B-1", _P50, _O1, _A1)),
    Target("64 bytes, framed 1x1: p50, of bare one-shot", 3.3, _MOST, _ratio("64B-1", _P50, _F1, _B1)),
    Target("1 ms of CPU, one-shot: handler's share of 2 CPUs", 0.86, _LEAST, _share("cpu-1ms", _O16)),
    Target("1 ms of CPU, one-shot: above asyncio+PPE's", 0.15, _LEAST, _share_gain("cpu-1ms", _O16, _A16)),
    Target("1 ms of CPU, framed: handler's share of 2 CPUs", 0.93, _LEAST, _share("cpu-1ms", _F4X4)),
    Target("10 ms of CPU, one-shot: handler's share of 2 CPUs", 0.98, _LEAST, _share("cpu-10ms", _O16)),
    Target("10 ms of CPU, framed: handler's share of 2 CPUs", 0.98, _LEAST, _share("cpu-10ms", _F4X4)),
    *(
        Target(f"uneven mix, {what}: p95 of short, of FIFO", 1.15, _MOST, _fifo(row, Entry(contender, *shape)))
        for row, what, contender, shape in _FIFO_CELLS
    ),
    *(
        Target(f"uneven mix, {what}: p95 of short, ms", 40.0, _MOST, _p95(row, Entry(contender, *shape)))
        for row, what, contender, shape in _BURST_CELLS
    ),
    *(
        Target(f"uneven mix, {what}: handler's share of 2 CPUs", 0.93, _LEAST, _share(row, Entry(contender, *shape)))
        for row, what, contender, shape in _BURST_CELLS
    ),
    Target("1 MB, one-shot 1: MB/s, of bare", 0.30, _LEAST, _ratio("1MB-1", _MB_RATE, _O1, _B1)),
    Target("1 MB, one-shot 1: MB/s, of asyncio+PPE", 2.0, _LEAST, _ratio("1MB-1", _MB_RATE, _O1, _A1)),
    Target("1 MB, one-shot 32: MB/s, of bare", 0.30, _LEAST, _ratio("1MB-32", _MB_RATE, _O32, _B32)),
    Target("1 MB, one-shot 32: MB/s, of asyncio+PPE", 2.0, _LEAST, _ratio("1MB-32", _MB_RATE, _O32, _A32)),
    Target("1 MB, framed 1x1: MB/s, of bare one-shot", 0.30, _LEAST, _ratio("1MB-1", _MB_RATE, _F1, _B1)),
    Target("1 MB, framed 4x2: MB/s, of bare one-shot", 0.55, _LEAST, _ratio("1MB-8", _MB_RATE, _F4X2, _B8)),
    Target("1 MB, one-shot 8: MB/s, of bare", 0.55, _LEAST, _ratio("1MB-8", _MB_RATE, _O8, _B8)),
    Target("1 MB, framed 4x8: MB/s, of bare one-shot", 0.30, _LEAST, _ratio("1MB-32", _MB_RATE, _F4X8, _B32)),
    Target("16 MB, one-shot 4: MB/s, of bare", 0.30, _LEAST, _ratio("16MB-4", _MB_RATE, _O4, _B4)),
    Target("16 MB, framed 4x1: MB/s, of bare one-shot", 0.30, _LEAST, _ratio("16MB-4", _MB_RATE, _F4X1, _B4)),
    Target("100 MB, framed: front's memory, of bytes in flight", 2.5, _MOST, _memory("peak")),
    Target("the same when all is over", 0.05, _MOST, _memory("left")),
    Target("gaspar-serve to first reply, s", 0.5, _MOST, _start("first_reply", 1.0)),
    Target("memory with 2 consumers, MB of PSS", 65.0, _MOST, _start("pss", MB)),
    Target("memory of each further consumer, MB of PSS", 6.0, _MOST, _start("more_pss", MB)),
)
