"""What gaspar is to reach on 2 CPUs, and whether it did. A target that is missed is said to be missed."""

from collections.abc import Callable
from dataclasses import dataclass

import servers
from cells import MB, Results, median

GASPAR, BARE, ASYNCIO = servers.GASPAR.name, servers.BARE.name, servers.ASYNCIO.name


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


def _brief(value: float) -> str:
    return format(value, ",.0f" if value >= 100 else ".3f")


def _ratio(row: str, name: str, other: str, unit: str, scale: float) -> Callable[[Results], Finding | None]:
    def find(results: Results) -> Finding | None:
        value = results.ratio(row, name, GASPAR, other)
        ours, theirs = results.median(row, GASPAR, name), results.median(row, other, name)
        if value is None or ours is None or theirs is None:
            return None
        return Finding(value, f"{_brief(ours * scale)} / {_brief(theirs * scale)} {unit}")

    return find


def _share(results: Results) -> Finding | None:
    value = results.median("cpu", GASPAR, "share")
    return None if value is None else Finding(value, "")


def _share_gain(results: Results) -> Finding | None:
    ours, theirs = results.median("cpu", GASPAR, "share"), results.median("cpu", ASYNCIO, "share")
    if ours is None or theirs is None:
        return None
    return Finding(ours - theirs, f"{ours:.3f} - {theirs:.3f}")


def _fifo(results: Results) -> Finding | None:
    pairs = zip(results.values("mix", GASPAR, "p95"), results.values("mix", GASPAR, "fifo_p95"), strict=True)
    value = median([measured / ideal for measured, ideal in pairs if measured is not None and ideal])
    measured, ideal = results.median("mix", GASPAR, "p95"), results.median("mix", GASPAR, "fifo_p95")
    if value is None or measured is None or ideal is None:
        return None
    return Finding(value, f"{measured * 1e3:.1f} / {ideal * 1e3:.1f} ms")


def _start(name: str, scale: float) -> Callable[[Results], Finding | None]:
    def find(results: Results) -> Finding | None:
        starts = results.starts.get(GASPAR, [])
        value = median([None if start is None else getattr(start, name) for start in starts])
        return None if value is None else Finding(value / scale, "")

    return find


def _of_bare(row: str, name: str, unit: str, scale: float = 1.0) -> Callable[[Results], Finding | None]:
    return _ratio(row, name, BARE, unit, scale)


def _of_asyncio(row: str, name: str, unit: str, scale: float = 1.0) -> Callable[[Results], Finding | None]:
    return _ratio(row, name, ASYNCIO, unit, scale)


_LEAST, _MOST = True, False
_RATE, _MB_RATE = "per_second", "mb_per_second"

TARGETS = (
    Target("64 bytes, 32 at once: requests/s, of bare", 0.40, _LEAST, _of_bare("64B-32", _RATE, "/s")),
    Target("64 bytes, 32 at once: requests/s, of asyncio+PPE", 4.0, _LEAST, _of_asyncio("64B-32", _RATE, "/s")),
    Target("64 bytes, 1 at once: p50, of bare", 4.0, _MOST, _of_bare("64B-1", "p50", "ms", 1e3)),
    Target("64 bytes, 1 at once: p50, of asyncio+PPE", 1.0, _MOST, _of_asyncio("64B-1", "p50", "ms", 1e3)),
    Target("1 ms of CPU, 16 at once: handler's share of 2 CPUs", 0.83, _LEAST, _share),
    Target("1 ms of CPU, 16 at once: share above asyncio+PPE's", 0.15, _LEAST, _share_gain),
    Target("uneven mix, 32 at once: p95 of short, of perfect FIFO", 1.15, _MOST, _fifo),
    Target("1 MB, 1 at once: MB/s, of bare", 0.30, _LEAST, _of_bare("1MB-1", _MB_RATE, "MB/s")),
    Target("1 MB, 1 at once: MB/s, of asyncio+PPE", 2.0, _LEAST, _of_asyncio("1MB-1", _MB_RATE, "MB/s")),
    Target("1 MB, 32 at once: MB/s, of bare", 0.30, _LEAST, _of_bare("1MB-32", _MB_RATE, "MB/s")),
    Target("1 MB, 32 at once: MB/s, of asyncio+PPE", 2.0, _LEAST, _of_asyncio("1MB-32", _MB_RATE, "MB/s")),
    Target("gaspar-serve to first reply, s", 0.5, _MOST, _start("first_reply", 1.0)),
    Target("memory with 2 consumers, MB of PSS", 65.0, _MOST, _start("pss", MB)),
    Target("memory of each further consumer, MB of PSS", 6.0, _MOST, _start("more_pss", MB)),
)
