"""Every limit once: name, default, unit and meaning; and how many CPUs this process may use.

The command's options and Producer's keywords are both built from the fields of `Limits`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import LimitError

MAX_WIRE_MESSAGE = 2**30 - 1  # bytes; a first byte of 0x40 or more begins another protocol's name
MAX_PROCESSES = 1024  # slots on the scoreboard, two for each
AUTO_DEPTH = 0
_AUTO_BURST = -1
NONE = 0  # no limit
STOPPED_LIMIT = 2.0  # seconds that one of gaspar's processes may be stopped (SIGSTOP) before it counts as hung
_LONGEST = 1e8  # seconds, three years
_LARGEST = 2**50  # bytes
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def available_cpus() -> int:
    """Count the CPUs that this process may use: its affinity, cut by its cgroup's quota, rounded up.

    Source: sched_setaffinity(2); the kernel's cgroup-v2.rst (cpu.max) and sched-bwc.rst (cpu.cfs_quota_us).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min((q for q in map(_cpu_quota, _cgroup_folders()) if q > 0), default=float(affinity))
    return max(1, min(affinity, math.ceil(quota)))


def _cgroup_folders() -> list[str]:
    """List the folders of this process's cgroups, up to their roots: each of them may set a quota."""
    try:
        with open("/proc/self/cgroup") as lines:
            entries = [line.strip().split(":", 2) for line in lines]
    except OSError:
        return []
    folders = []
    for _, controllers, path in entries:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup/cpu" if controllers else "/sys/fs/cgroup"
        parts = [part for part in path.split("/") if part]
        folders += [os.path.join(root, *parts[:n]) for n in range(len(parts), -1, -1)]
    return folders


def _cpu_quota(folder: str) -> float:
    """Return how many CPUs one cgroup allows, 0 for no limit."""

    def words(name: str) -> list[str]:
        try:
            with open(os.path.join(folder, name)) as file:
                return file.read().split()
        except OSError:
            return []

    pair = words("cpu.max") or words("cpu.cfs_quota_us") + words("cpu.cfs_period_us")
    if len(pair) != 2 or pair[0] in ("max", "-1"):
        return 0
    return int(pair[0]) / int(pair[1])


def _size(value: object) -> int:
    """Read bytes: a number, or text like 64M."""
    size = _read_size(value)
    if not 0 <= size <= _LARGEST:
        raise ValueError("expected a size from 0 to 1048576G")
    return size


def _read_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]{1,15})\s*(?:([KMG])I?)?B?", str(value).strip().upper())
    if not match:
        raise ValueError("expected a size like 65536, 64K, 64M or 1G")
    return int(match[1]) * _UNITS[match[2] or ""]


def _max_message(value: object) -> int:
    size = _read_size(value)
    if not 1 <= size <= MAX_WIRE_MESSAGE:
        raise ValueError(
            f"expected 1 to {MAX_WIRE_MESSAGE} bytes (just under 1G), the longest that the protocol can announce"
        )
    return size


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("expected seconds, like 30 or 0.5")
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"expected seconds from 0 to {_LONGEST:g}, like 30 or 0.5")
    return seconds


def _positive_seconds(value: object) -> float:
    seconds = _seconds(value)
    if seconds == 0:
        raise ValueError("expected more than 0 seconds")
    return seconds


def _count(low: int, high: int, auto: Callable[[], int] | None = None) -> Callable[[object], int]:
    also = " or auto" if auto else ""

    def parse(value: object) -> int:
        if auto and (value is None or value == "auto"):
            return auto()
        text = str(value).strip()
        if isinstance(value, (bool, float)) or not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}{also}")
        return int(text)

    return parse


def _or_none(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    """Let "none" (or None) stand for no limit."""
    return lambda value: NONE if value is None or value == "none" else parse(value)


def _limit(default: object, parse: Callable[[object], Any], metavar: str, meaning: str) -> Any:
    return field(default=default, metadata={"parse": parse, "metavar": metavar, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one daemon may use. Each value may be given as a number or as the command's text ("64M", "auto").

    Raises:
        LimitError: a value cannot be read or is out of its range.
    """

    processes: int = _limit(
        "auto", _count(1, MAX_PROCESSES, available_cpus), "N|auto", "consumers; auto = CPUs this process may use"
    )
    depth: int = _limit(
        "auto", _count(1, 64, lambda: AUTO_DEPTH), "N|auto", "jobs in flight per consumer; auto = as their length asks"
    )
    burst: int = _limit(
        "auto",
        _count(0, MAX_PROCESSES, lambda: _AUTO_BURST),
        "N|auto",
        "consumers more, in the place of those that a long request holds while others wait; auto = as many as"
        " --processes; 0 = none",
    )
    patience: float = _limit(
        0.02, _positive_seconds, "SECONDS", "how long all consumers may hold others up before --burst helps"
    )
    max_message: int = _limit("64M", _max_message, "SIZE", "longest request or reply; K, M, G are 1024s")
    read_timeout: float = _limit(
        30.0, _positive_seconds, "SECONDS", "a request's header, then each further 64 KiB of it, must come within this"
    )
    write_timeout: float = _limit(30.0, _positive_seconds, "SECONDS", "how long a client may take nothing of its reply")
    grace: float = _limit(30.0, _seconds, "SECONDS", "how long a stop waits for accepted requests")

    timeout: float = _limit(
        300.0, _seconds, "SECONDS", "longest run of one request, then its consumer is killed; 0 = none"
    )
    max_wait: float = _limit("none", _or_none(_positive_seconds), "SECONDS", "longest wait for a consumer")
    max_waiting: int = _limit(10000, _count(0, 10**9), "N", "requests waiting; more are refused at once")
    max_waiting_bytes: int = _limit(
        "256M", _size, "SIZE", "bytes of requests waiting or being read, at least one max-message"
    )
    max_connections: int = _limit(
        "auto", _count(1, 10**9, lambda: NONE), "N|auto", "clients at once, more wait; auto = as the file limit allows"
    )
    max_in_flight: int = _limit(
        256, _count(1, 10**6), "N", "unanswered requests on one framed connection; more are refused at once"
    )
    max_requests: int = _limit(
        "none", _or_none(_count(1, 10**9)), "N", "a consumer is replaced after about N requests (10 % jitter)"
    )
    max_memory: int = _limit(
        "none",
        _or_none(_size),
        "SIZE",
        "a consumer whose private memory grew by more is replaced after its request; by 1.5 times that, killed",
    )
    slow: float = _limit(
        "none", _or_none(_positive_seconds), "SECONDS", "a request that runs for longer is logged, with its stack"
    )
    health_wait: float = _limit(
        10.0, _positive_seconds, "SECONDS", "a request that waits for longer makes the daemon's health fail"
    )
    retries: int = _limit(0, _count(0, 100), "N", "how often a request whose consumer died is tried again")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            given = getattr(self, each.name)
            try:
                value = each.metadata["parse"](given)
            except ValueError as error:
                option = "--" + each.name.replace("_", "-")
                raise LimitError(f"{each.name} ({option}) is {given!r}: {error}") from None
            object.__setattr__(self, each.name, value)
        if self.burst == _AUTO_BURST:
            object.__setattr__(self, "burst", self.processes)


def names() -> list[str]:
    """List the names of all limits."""
    return [each.name for each in dataclasses.fields(Limits)]
