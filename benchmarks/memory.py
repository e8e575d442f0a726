"""Measures what the front's memory does when the longest messages come and go. Prints nothing."""

import time

import processes
from cells import PROCESSES, Memory
from contenders import GASPAR
from load import Load, LoadError
from rows import MB
from servers import Server

SIZE = 100 * MB  # bytes of a message, both ways
CONNECTIONS, DEPTH = 2, 2
_OPTIONS = ("--max-message", "200M", "--max-waiting-bytes", "1G")
_SMALL = 64  # bytes
_AFTERWARDS = 3.0  # seconds within which memory is given back
_POLL_SECONDS = 0.05


def measure(load: Load, size: int, seconds: float) -> Memory:
    """Send long messages to a daemon of their own, framed.

    Raises:
        LoadError: a request failed, or the load generator did.
        ServerError: the daemon did not start or end.
    """
    with Server(GASPAR, PROCESSES, "echo", *_OPTIONS) as server:
        (front,) = server.named("gaspar:front")
        _run(load, server, _SMALL, 0.3)
        start = processes.rss(front)
        processes.forget_peak(front)
        _run(load, server, size, seconds)
        peak = processes.peak_rss(front)
        return Memory(CONNECTIONS * DEPTH * size, peak - start, _least_rss(front) - start)


def _run(load: Load, server: Server, size: int, seconds: float) -> None:
    failures = load.run("framed", server.port, CONNECTIONS, DEPTH, size, 0.0, seconds, "e").failures
    if failures:
        raise LoadError(f"requests that failed: {failures}")


def _least_rss(pid: int) -> int:
    ends_at = time.monotonic() + _AFTERWARDS
    least = processes.rss(pid)
    while time.monotonic() < ends_at:
        time.sleep(_POLL_SECONDS)
        least = min(least, processes.rss(pid))
    return least
