"""Requests under way, each the future of its own reply, one also of the reply's parts. Knows no socket."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import Any, Protocol

from ..answer import Reply
from ..errors import ShuttingDown
from ..frames import MAX_U32

_SLACK = 0.05  # seconds; the daemon's own TIMEOUT, which says more, is waited for that long
_UNREAD_PARTS = 16  # of a stream, then no more is read
_UNREAD = 1024 * 1024  # bytes


class Carrier(Protocol):
    """A connection, as its calls know it."""

    transport: asyncio.Transport | None

    def cancel(self, call: Call) -> None:
        """Tell the daemon that nobody waits for a call."""


class Owner(Protocol):
    """The pool, as its calls know it."""

    loop: asyncio.AbstractEventLoop

    def drop(self, call: Call) -> None:
        """Forget a call that nobody waits for any more, and tell the daemon."""

    def expire(self, call: Call, timeout: float) -> None:
        """End a call whose time is over."""


class Call(asyncio.Future[Reply]):
    """A request on its way, and the future of its reply."""

    connection: Carrier | None = None  # None: it waits for a place
    name = 0  # its id there
    meta = b""  # of its frame
    given = False  # to the transport
    losses = 0  # connections that it was lost with, before it was sent
    refusal: ShuttingDown | None = None
    begun = False  # a part of its reply has come
    timer: asyncio.TimerHandle | None = None
    deadline = 0.0  # monotonic

    def __init__(self, pool: Owner, data: bytes, timeout: float | None) -> None:
        super().__init__(loop=pool.loop)
        self.pool = pool
        self.data = data
        if timeout is not None:
            self.deadline = time.monotonic() + timeout
            self.timer = pool.loop.call_later(timeout + _SLACK, pool.expire, self, timeout)

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the future and the request."""
        if not super().cancel(msg):
            return False
        self.pool.drop(self)
        return True

    def milliseconds(self) -> int:
        """Return what is left until the deadline, as the protocol has it."""
        if self.timer is None:
            return 0
        left = (self.deadline - time.monotonic()) * 1000
        return max(1, math.ceil(left)) if left < MAX_U32 else MAX_U32

    def take_part(self, part: bytes) -> None:
        """Take a part of a streamed reply; only who asked for parts gets them."""
        raise AssertionError


class StreamCall(Call):
    """A request whose reply is taken part by part."""

    def __init__(self, pool: Owner, data: bytes, timeout: float | None) -> None:
        self._parts: deque[bytes] = deque()
        self._unread = 0  # bytes
        self._news = asyncio.Event()
        self._reader: asyncio.ReadTransport | None = None  # while it is paused
        super().__init__(pool, data, timeout)
        self.add_done_callback(lambda _: self._news.set())

    def take_part(self, part: bytes) -> None:
        self.begun = True
        if not part:
            return
        self._parts.append(part)
        self._unread += len(part)
        self._news.set()
        if self._reader is None and (len(self._parts) >= _UNREAD_PARTS or self._unread >= _UNREAD):
            assert self.connection is not None and self.connection.transport is not None
            self._reader = self.connection.transport
            self._reader.pause_reading()

    async def next_part(self) -> bytes | None:
        """Return the next part; None: the future has the rest of the reply, or the error."""
        while not self._parts:
            if self.done():
                return None
            self._news.clear()
            await self._news.wait()
        part = self._parts.popleft()
        self._unread -= len(part)
        if self._reader is not None and len(self._parts) <= _UNREAD_PARTS // 2 and self._unread <= _UNREAD // 2:
            self._reader.resume_reading()
            self._reader = None
        return part


def forget(future: asyncio.Future[Any]) -> None:
    """Cancel a future; if it has failed already, nobody need be told."""
    if not future.cancel() and not future.cancelled():
        future.exception()
