"""Requests under way, as their callers see them: something to wait for, to settle, to drop. Knows no socket."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ..address import Address
from ..answer import Reply
from ..errors import RequestTimeout
from ..frames import MAX_U32

log = logging.getLogger(__name__)

PATIENCE = 0.05  # seconds past the deadline, in which the daemon's own word of it usually comes

if TYPE_CHECKING:
    Future = concurrent.futures.Future[Reply]
else:
    Future = concurrent.futures.Future


class Carrier(Protocol):
    """What has a request in its hands."""

    def forget(self, call: Call) -> None:
        """Let nobody answer it any more, and tell the daemon. Never waits."""


class Call:
    """One request and, once it is there, its answer.

    Args:
        where: whom it is for.
        data: the message; it must not change until the answer is there.
        timeout: seconds, None for no limit.
        meta: of its frame.
    """

    __slots__ = (
        "_lock",
        "answer",
        "attempts",
        "carrier",
        "data",
        "deadline",
        "dropped",
        "meta",
        "opened",
        "refusal",
        "sent",
        "timeout",
        "where",
    )

    def __init__(self, where: Address, data: bytes | memoryview, timeout: float | None, meta: bytes = b"") -> None:
        self.where = where
        self.data = data
        self.meta = meta
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.answer: Reply | Exception | None = None
        self.dropped = False  # nobody waits for it any more
        self.carrier: Carrier | None = None
        self.sent = False  # all of it is with the kernel
        self.attempts = 0  # how often it was sent, or its sending begun
        self.opened = 0  # connections, for it
        self.refusal: Exception | None = None  # why a daemon did not take it
        self._lock: threading.Lock | None = None

    def left(self) -> float | None:
        """Return how many seconds there are until its deadline, not below 0."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def milliseconds(self) -> int:
        """Return what the daemon is told of its deadline."""
        if self.deadline is None:
            return 0
        return max(1, math.ceil(min(MAX_U32, (self.deadline - time.monotonic()) * 1000)))

    def settle(self, answer: Reply | Exception) -> None:
        """Give the answer to who waits for it."""
        self.answer = answer
        lock = self._lock
        if lock is not None:
            lock.release()

    def wait(self) -> Reply | Exception:
        """Wait for the answer; past the deadline it is a RequestTimeout, and the request is dropped."""
        if self.answer is None:
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock
            # an answer that came before the lock was there woke nobody
            if self.answer is None:
                lock.acquire(True, wait_limit(self.deadline))
        if self.answer is None:
            self.drop()
            return self.timed_out()
        return self.answer

    def timed_out(self, more: str = "") -> RequestTimeout:
        """Make the exception that says that its time is over, without a word of the daemon."""
        return RequestTimeout(f"{self.where}: no reply within {self.timeout:g} s{more}")

    def drop(self) -> None:
        """Let nobody answer it any more. Never waits."""
        self.dropped = True
        carrier = self.carrier
        if carrier is not None and self.answer is None:
            carrier.forget(self)

    def cancel(self, reason: Exception) -> None:
        """Settle it, as nobody will answer it any more."""
        self.settle(reason)


class RequestFuture(Future):
    """The future of one request. To cancel it works until its answer is there, and tells the daemon."""

    def __init__(self, call: FutureCall, client: object) -> None:
        super().__init__()
        self._calls = [call]  # empty once it is cancelled
        self._client: object = client  # which must not be closed by being forgotten meanwhile

    def cancel(self) -> bool:
        """Cancel the request, also if it is being run; False if its answer is there already."""
        if not super().cancel():
            return False
        with contextlib.suppress(IndexError):  # one thread gets it
            call = self._calls.pop()
            self.set_running_or_notify_cancel()
            call.drop()
            self._client = None
        return True

    def release(self) -> None:
        """Hold nothing that was needed only until the answer was there."""
        self._calls.clear()
        self._client = None


class FutureCall(Call):
    """A request whose answer goes into a future."""

    __slots__ = ("future", "watch")

    def __init__(self, where: Address, data: bytes, timeout: float | None, client: object) -> None:
        super().__init__(where, data, timeout)
        self.future = RequestFuture(self, client)
        self.watch: Watch | None = None

    def settle(self, answer: Reply | Exception) -> None:
        """Give the answer to the future, unless that is cancelled."""
        self.answer = answer
        if self.watch is not None:
            self.watch.forget(self)
        future = self.future
        try:
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        except concurrent.futures.InvalidStateError:
            return
        except BaseException:  # SystemExit of a callback; others wait for the answers behind this one
            log.exception("%s: a future's callback raised", self.where)
        future.release()

    def cancel(self, reason: Exception) -> None:
        """Cancel the future."""
        self.future.cancel()


class Watch:
    """Settles requests that nobody waits for with a clock in hand: those of futures, past their deadline.

    Its thread lives while there is something to watch.
    """

    def __init__(self) -> None:
        self._calls: set[FutureCall] = set()
        self._news = threading.Condition()
        self._next = math.inf  # when the thread looks again
        self._running = False

    def add(self, call: FutureCall) -> None:
        """Watch a request that has a deadline."""
        assert call.deadline is not None
        call.watch = self
        self._calls.add(call)
        with self._news:
            if not self._running:
                threading.Thread(target=self._run, name="gaspar deadlines", daemon=True).start()
                self._running = True
            elif call.deadline + PATIENCE < self._next:
                self._news.notify()
        if call.answer is not None:
            self.forget(call)

    def forget(self, call: FutureCall) -> None:
        """Stop watching a request. Never waits."""
        self._calls.discard(call)

    def stop(self) -> None:
        """Watch nothing any more. Never waits: the garbage collector may call it."""
        self._calls = set()
        if self._news.acquire(False):  # else its thread is awake, or looks when the next deadline is over
            try:
                self._news.notify()
            finally:
                self._news.release()

    def _run(self) -> None:
        while True:
            with self._news:
                now = time.monotonic()
                # list() sees the set as it is at one moment, whatever other threads do
                ends = [(call.deadline + PATIENCE, call) for call in list(self._calls) if call.deadline is not None]
                late = [call for end, call in ends if end <= now]
                if not ends:
                    self._running = False
                    return
                if not late:
                    self._next = min(end for end, _ in ends)
                    self._news.wait(min(self._next - now, threading.TIMEOUT_MAX))
            for call in late:
                self.forget(call)
                call.drop()
                call.settle(call.timed_out())


def wait_limit(deadline: float | None) -> float:
    """Return how long a lock may be waited for, as `Lock.acquire` takes it."""
    if deadline is None:
        return -1
    return min(max(0.0, deadline + PATIENCE - time.monotonic()), threading.TIMEOUT_MAX)


def copy_of(error: Exception) -> Exception:
    """Copy an exception: each caller raises one of its own, or their tracebacks grow into each other."""
    return copy.copy(error)
