"""What a forked child does with its copies of its parent's sockets, and with green threads that live on in it.

Plain threads end in a forked child; those of eventlet and gevent go on there, beside their originals.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable

_parked: list[threading.Lock] = []


def let_go(ends: Iterable[socket.socket]) -> None:
    """Close copies of the parent's sockets, which goes on with its own.

    They are first made something else, which has ended. A green thread that waits for one then finds that under
    the same number, and nothing of the parent's.
    """
    mine, other = socket.socketpair()
    other.close()
    for end in ends:
        with contextlib.suppress(OSError):  # it was closed already
            os.dup2(mine.fileno(), end.fileno(), inheritable=False)
            end.close()
    mine.close()


def park() -> None:
    """Wait for ever, in a green thread that has lived on.

    The child's `threading` does not know it any more, which under gevent is an error should it end.
    """
    lock = threading.Lock()
    _parked.append(lock)
    lock.acquire()
    lock.acquire()
