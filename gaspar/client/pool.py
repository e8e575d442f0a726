"""The connections of one client: which one a request takes, when another is opened, and what a lost one leaves.

A connection is opened in the background by the first request that needs it, and is left when the daemon says that
it drains or when it ends. Callers wait here only for a connection or for a place on one.

A request that was certainly not run is tried again on another connection, at most `ATTEMPTS` in all.
"""

from __future__ import annotations

import enum
import os
import threading
import time
import weakref

from ..address import Address
from ..errors import Cancelled, ConnectionLost, GasparError
from ..losses import CLOSED, NOT_SENT, lost, no_greeting
from .connection import ATTEMPTS, Connection
from .pending import Call, FutureCall, Watch, copy_of
from .stream import Streams

_BACKOFF = 1.0  # seconds between attempts to open another connection beside one that works


class _State(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"  # nothing new; what is under way goes on
    CLOSED = "closed"


class Pool:
    """Up to `most` connections to one daemon."""

    def __init__(self, where: Address, most: int) -> None:
        self.where = where
        self._most = most
        self.streams = Streams(where)
        self._state = _State.OPEN
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self.waiting = 0  # callers that wait for a place, or for the end of all that is under way
        self.readers: set[int] = set()
        self.watch = Watch()
        # Nothing else is locked, and nothing waited for, while this is held; a finalizer may take it again.
        self._news = threading.Condition()
        self._usable: tuple[Connection, ...] = ()  # greeted, and taking requests; replaced, never changed
        self._opening: set[Connection] = set()
        self._all: set[Connection] = set()  # with a reader
        self._failed: ConnectionLost | None = None  # the last attempt to open one while there was none
        self._last = lost(self.where, CLOSED, sent=False)  # how the last connection ended
        self._backoff = 0.0  # when to open one beside another, after that failed
        self._retrying = 0  # requests that are on no connection

    def send(self, call: Call) -> None:
        """Put a request on its way; waits for a connection and a place until its deadline.

        Raises:
            ConnectionLost: there is no daemon, or none that speaks the framed protocol.
            RequestTimeout: its time was over before it could be sent.
            TooBig: it is longer than the daemon takes.
            GasparError: the client is closed.
        """
        if self._state is not _State.OPEN:
            raise GasparError(f"{self.where}: the client is closed")
        if self.waiting or not self._try(call):
            self._send_later(call)

    def _try(self, call: Call) -> bool:
        """Send a request on the least loaded connection, if there is room."""
        usable = self._usable
        if len(usable) == 1 == self._most:
            return usable[0].send(call)
        if not usable:
            return False
        loads = sorted(usable, key=_load)
        if loads[0].load and len(usable) < self._most:
            self._open_another()
        return any(connection.send(call) for connection in loads)

    def _send_later(self, call: Call) -> None:
        while not call.dropped:
            self._wait_for_room(call)
            if self._try(call):
                return

    def _wait_for_room(self, call: Call) -> None:
        with self._news:
            self.waiting += 1
            failed = self._failed
            # who waits already goes first: a place that is free is meant for one of them, and that one was told
            enough = self.waiting
            try:
                while True:
                    self._check_state(call)
                    if call.dropped or self._room() >= enough:
                        return
                    if not self._usable:
                        if self._failed is not None and self._failed is not failed:
                            raise copy_of(self._failed)
                        if not self._opening:
                            self._open_for(call)
                    left = call.left()
                    if left == 0:
                        raise call.timed_out(self._excuse())
                    self.check_may_wait()
                    self._news.wait(left if left is None else min(left, threading.TIMEOUT_MAX))
                    enough = 1
            except BaseException:
                self._news.notify()  # the place may have been meant for this one
                raise
            finally:
                self.waiting -= 1

    def _room(self) -> int:
        return sum(connection.room for connection in self._usable)

    def _check_state(self, call: Call) -> None:
        if self.closed or (self._state is _State.CLOSING and not call.attempts):
            raise GasparError(f"{self.where}: the client is closed")

    def check_may_wait(self) -> None:
        """Refuse to wait in a thread that brings the answers.

        Raises:
            GasparError: this is one.
        """
        if threading.get_ident() in self.readers:
            raise GasparError(
                "a future's callback may submit while there is room, but not wait for that or for a reply"
            )

    def _excuse(self) -> str:
        """Say what a request waited for in vain."""
        for connection in self._opening:
            if connection.connected:
                return f": {no_greeting(connection.seen, 'silence')}"
        return NOT_SENT

    def _open_for(self, call: Call) -> None:
        """Open a connection; one after the other that ends before it is of use is too many."""
        if call.opened >= ATTEMPTS:
            raise copy_of(self._last)
        call.opened += 1
        self._open()

    def _open(self) -> None:
        connection = Connection(self.where, self)
        self._opening.add(connection)
        self._all.add(connection)
        try:
            connection.start()
        except BaseException:
            self._opening.discard(connection)
            self._all.discard(connection)
            raise

    def _open_another(self) -> None:
        with self._news:
            if len(self._usable) + len(self._opening) < self._most and time.monotonic() >= self._backoff:
                self._open()

    def joined(self, connection: Connection) -> None:
        """Take requests to it from now on."""
        with self._news:
            if connection in self._opening:
                self._opening.discard(connection)
                self._usable = (*self._usable, connection)
                self._news.notify_all()

    def leaving(self, connection: Connection) -> None:
        """Take no more requests to it."""
        with self._news:
            self._usable = tuple(each for each in self._usable if each is not connection)
            self._news.notify_all()

    def freed(self, count: int) -> None:
        """Wake those who can go on now."""
        with self._news:
            if self._state is _State.OPEN:
                self._news.notify(count)
            else:
                self._news.notify_all()

    def refused(self, calls: list[Call]) -> None:
        """Try them again, in a thread: the one that says this has answers to read."""
        with self._news:
            self._retrying += len(calls)
        try:
            threading.Thread(target=self._again, args=(calls,), name="gaspar again", daemon=True).start()
        except RuntimeError as error:  # there can be no more threads
            for call in calls:
                call.settle(call.refusal or error)
            with self._news:
                self._retrying -= len(calls)

    def ended(self, connection: Connection, error: ConnectionLost, unsent: list[Call]) -> None:
        """Forget it; what was not sent is tried again, in its thread, which has nothing else to do now."""
        with self._news:
            if connection in self._opening:
                self._opening.discard(connection)
                if not self._usable:
                    self._failed = error
                self._backoff = time.monotonic() + _BACKOFF
            self._last = error
            self._retrying += len(unsent)
            self._all.discard(connection)
            self._news.notify_all()
        self._again(unsent, error)

    def _again(self, calls: list[Call], end: ConnectionLost | None = None) -> None:
        for call in calls:
            try:
                if end is not None and call.attempts >= ATTEMPTS:
                    raise copy_of(end)
                self._send_later(call)
            except Exception as error:
                if self.closed:
                    call.cancel(self._cancelled())
                else:
                    call.settle(call.refusal if call.refusal and isinstance(error, ConnectionLost) else error)
            finally:
                with self._news:
                    self._retrying -= 1
                    self._news.notify_all()

    def close(self, wait: bool) -> None:
        """End all connections; with `wait` after all that is under way was answered, else that is cancelled."""
        self.streams.close(wait)
        try:
            with self._news:
                if self._state is _State.OPEN:
                    self._state = _State.CLOSING
                self._news.notify_all()
                self.waiting += 1
                try:
                    while wait and not self.closed and (self._retrying or any(map(_load, self._all))):
                        self.check_may_wait()
                        self._news.wait()
                finally:
                    self.waiting -= 1
        finally:
            self._shut()

    def _shut(self) -> None:
        with self._news:
            self._state = _State.CLOSED
            self._news.notify_all()
            connections = list(self._all)
        for connection in connections:
            for call in connection.take_calls():
                call.cancel(self._cancelled())
            connection.shut()
        for connection in connections:
            connection.join()
        self.watch.stop()

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"{self.where}: the client was closed")

    @property
    def closed(self) -> bool:
        """True if nothing is to go on."""
        return self._state is _State.CLOSED

    def abandon(self) -> None:
        """End all connections, as nobody can use them any more. Never waits: the garbage collector calls it."""
        self._state = _State.CLOSED
        for connection in tuple(self._all):
            connection.shut()
        self.watch.stop()

    def disown(self) -> None:
        """In a forked child: leave all connections to the parent, and begin anew."""
        self.streams.disown()
        for connection in self._all:
            for call in connection.disown():
                if not isinstance(call, FutureCall):  # whose lock a thread of the parent may hold
                    call.settle(ConnectionLost(f"{self.where}: asked before the fork; the parent gets the reply"))
        self._reset()


def _load(connection: Connection) -> int:
    return connection.load


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _disown_all() -> None:
    for pool in list(_pools):
        pool.disown()


os.register_at_fork(after_in_child=_disown_all)
