"""Looks at processes from outside: the CPU time that they used, the memory that they hold."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


def family(pid: int) -> list[psutil.Process]:
    """List a process and all its descendants; none if it has ended."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time that they have used so far, and those of their children that they have reaped."""
    times = []
    for process in processes:
        with suppress(psutil.Error):
            times.append(process.cpu_times())
    return sum(sum(each[:4]) for each in times)  # user, system, the same of reaped children


def pss(processes: Iterable[psutil.Process]) -> int:
    """Return their memory in bytes; a page counts in equal parts for all that map it."""
    sizes = []
    for process in processes:
        with suppress(psutil.Error):  # it has just ended
            sizes.append(process.memory_full_info().pss)
    return sum(sizes)


def rss(pid: int) -> int:
    """Return the memory that a process maps, bytes."""
    return _status(pid, "VmRSS")


def peak_rss(pid: int) -> int:
    """Return the most that it mapped since `forget_peak`, bytes."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the peak begin anew, proc_pid_clear_refs(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * 1024
    return 0
