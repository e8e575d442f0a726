"""What every server of a benchmark runs: functions from bytes to bytes. Knows nothing of servers."""

import ctypes
import os
import time

# A payload's first byte is its kind. It says how much CPU time the handler takes, in seconds.
CPU_SECONDS = {"e": 0.0, "s": 0.001, "t": 0.01, "l": 0.1}

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


def faulty(payload: bytes) -> bytes:
    """Do what the payload says: a fault and a file that the pid and the time before it are left in.

    "pair" is no fault: it waits until a second one runs, in the same folder.
    """
    what, _, path = payload.decode().partition(" ")
    if what == "pair":
        open(f"{path}/{os.getpid()}", "x").close()
        ends_at = time.monotonic() + 30
        while len(os.listdir(path)) < 2 and time.monotonic() < ends_at:
            time.sleep(0.0005)
    elif path:
        with open(path + ".new", "x") as file:
            file.write(f"{os.getpid()} {time.monotonic_ns()}")
        os.rename(path + ".new", path)
    if what == "exit":
        os._exit(7)
    elif what == "segfault":
        ctypes.string_at(0)
    while what in ("run", "hang"):
        time.sleep(0.01)  # as good as a loop: what looks at it cannot tell
    while what == "wait" and os.path.exists(path):
        time.sleep(0.001)
    return payload
