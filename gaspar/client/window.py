"""What `Client.map` has under way: a bounded number of requests, taken out in order or as they are answered."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from ..address import Address
from ..answer import Reply
from .pending import Call, wait_limit

T = TypeVar("T")
_PER_MESSAGE = 2  # replies yielded for each message taken: what lags behind catches up, the daemon is kept busy


def mapped(
    messages: Iterator[T],
    put: Callable[[T], None],
    window: InOrder | AsReady,
    in_flight: int,
    return_exceptions: bool,
) -> Generator[Reply | Exception, None, None]:
    """Take messages, put each into the window on its way, and yield what the window has ready."""
    failure: Exception | None = None
    more = True
    try:
        while more or window:
            try:
                message = next(messages)
            except StopIteration:
                more = False
            except Exception as error:
                more, failure = False, error
            else:
                put(message)
                del message
            spare = _PER_MESSAGE
            while window and (not more or len(window) >= in_flight or (spare and window.ready)):
                spare -= 1
                answer = window.take()
                if isinstance(answer, Exception) and not return_exceptions:
                    raise answer
                yield answer
        if failure is not None:
            raise failure
    finally:
        window.drop()


class InOrder:
    """Requests whose answers are taken in the order in which they were put in."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def ready(self) -> bool:
        """True if `take` need not wait."""
        return bool(self._calls) and self._calls[0].answer is not None

    def put(self, where: Address, timeout: float | None) -> Call:
        """Make a request, whose message is to follow; it counts as under way from now on."""
        call = Call(where, b"", timeout)
        self._calls.append(call)
        return call

    def take(self) -> Reply | Exception:
        """Wait for the next answer and take it out."""
        answer = self._calls[0].wait()
        self._calls.popleft()
        return answer

    def drop(self) -> None:
        """Let nobody answer what is still under way. Never waits: it may be called by the garbage collector."""
        for call in self._calls:
            call.drop()
        self._calls.clear()


class AsReady:
    """Requests whose answers are taken as they come."""

    def __init__(self) -> None:
        self._calls: dict[_ReadyCall, None] = {}  # the oldest, whose time is over first, is first
        self._ready: deque[_ReadyCall] = deque()
        self._lock: threading.Lock | None = None

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def ready(self) -> bool:
        """True if `take` need not wait."""
        return bool(self._ready)

    def put(self, where: Address, timeout: float | None) -> Call:
        """Make a request, whose message is to follow; it counts as under way from now on."""
        call = _ReadyCall(where, timeout, self)
        self._calls[call] = None
        return call

    def arrived(self, call: _ReadyCall) -> None:
        """Take note of an answer."""
        self._ready.append(call)
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(RuntimeError):  # of two connections' readers at once, one is enough
                lock.release()

    def take(self) -> Reply | Exception:
        """Wait for the next answer and take it out."""
        while True:
            while self._ready:
                call = self._ready.popleft()
                if call in self._calls:  # else it came when its time was over
                    del self._calls[call]
                    assert call.answer is not None
                    return call.answer
            oldest = next(iter(self._calls))
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock
            # an answer that came before the lock was there woke nobody
            if not self._ready and not lock.acquire(True, wait_limit(oldest.deadline)) and not self._ready:
                del self._calls[oldest]
                oldest.drop()
                return oldest.timed_out()

    def drop(self) -> None:
        """Let nobody answer what is still under way. Never waits: it may be called by the garbage collector."""
        for call in self._calls:
            call.drop()
        self._calls.clear()


class _ReadyCall(Call):
    __slots__ = ("_window",)

    def __init__(self, where: Address, timeout: float | None, window: AsReady) -> None:
        super().__init__(where, b"", timeout)
        self._window = window

    def settle(self, answer: Reply | Exception) -> None:
        """Give the answer to the window."""
        self.answer = answer
        self._window.arrived(self)
