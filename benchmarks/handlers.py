"""What every server of a benchmark runs: functions from bytes to bytes. Knows nothing of servers."""

import time

# A payload's first byte is its kind. It says how much CPU time the handler takes, in seconds.
CPU_SECONDS = {"e": 0.0, "s": 0.001, "l": 0.1}

_CPU_NS = {ord(kind): int(seconds * 1e9) for kind, seconds in CPU_SECONDS.items()}


def echo(payload: bytes) -> bytes:
    """Return the payload: the trivial handler."""
    return payload


def spin(payload: bytes) -> bytes:
    """Take as much CPU time as the payload's kind says, then return the payload.

    Time that others have the CPU does not count: `thread_time` stands still meanwhile.
    """
    ends_at = time.thread_time_ns() + _CPU_NS[payload[0]]
    while time.thread_time_ns() < ends_at:
        pass
    return payload
