"""Facts that nobody announces: waited for, with other green threads going on meanwhile."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")

_LOOK = 0.005  # seconds between looks
TIME = 30.0  # seconds that anything may take which is about to happen


def wait_until(happened: Callable[[], T], timeout: float = TIME) -> T:
    """Wait for a fact that nobody announces.

    Args:
        happened: called every few milliseconds until what it returns is true.
        timeout: seconds.

    Returns:
        What `happened` returned at last.

    Raises:
        AssertionError: it did not happen within `timeout`.
    """
    end = time.monotonic() + timeout
    while not (fact := happened()):
        if time.monotonic() >= end:
            raise AssertionError(f"it did not happen within {timeout:g} s")
        select.select([], [], [], _LOOK)
    return fact


def is_alive(process: psutil.Process) -> bool:
    """True until a process has ended, whoever is to reap it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_stopped(process: psutil.Process) -> bool:
    """True of a process that does nothing, after SIGSTOP say."""
    return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
