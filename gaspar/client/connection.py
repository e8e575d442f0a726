"""One persistent framed connection: connects, greets, sends requests, and reads what comes in a thread of its own.

Which request goes to which connection, and what becomes of those that a lost one leaves behind, its pool decides.

Threads, locks and sockets are made through the attributes of their modules, so that they are green where those are
patched.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections import deque
from typing import Any, Protocol

from .. import address as addresses
from ..address import Address
from ..errors import ConnectionLost, ShuttingDown, TooBig
from ..losses import CLOSED, SHOWN, lost, no_greeting, not_taken, why
from ..session import Session
from .forked import let_go, park
from .outbox import Outbox
from .pending import Call, copy_of

_CHUNK = 64 * 1024  # bytes
_JOIN = 64 * 1024  # bytes; a longer message is sent behind its header, not copied to it
# seconds, eleven days; both objects for the socket share one non-blocking mode, so that the reader needs some time
# limit for Python to wait for it
EVER = 1e6
ATTEMPTS = 3  # connections on which one request is tried


class Owner(Protocol):
    """What a connection tells its pool. All of it is said by the reader, but for `freed`."""

    waiting: int  # callers that want to hear of `freed`
    readers: set[int]  # the threads that may not wait for answers: they bring them

    @property
    def closed(self) -> bool:
        """True if nothing is to go on."""

    def joined(self, connection: Connection) -> None:
        """The daemon has greeted: requests may be sent."""

    def leaving(self, connection: Connection) -> None:
        """No more requests may be sent; answers still come."""

    def freed(self, count: int) -> None:
        """So many requests are not under way any more."""

    def refused(self, calls: list[Call]) -> None:
        """The daemon has not run them, as it drains."""

    def ended(self, connection: Connection, error: ConnectionLost, unsent: list[Call]) -> None:
        """The connection is over; it says what of it was certainly not run."""


class Connection:
    """A connection to a daemon. `start` it; the pool hears of the rest."""

    def __init__(self, where: Address, pool: Owner) -> None:
        self.session = Session()
        self.seen = b""  # first of what came in place of a greeting
        self.connected = False
        self._where = where
        self._pool = pool
        self._over = False  # takes nothing any more
        self._disowned = False  # it is a forked child's copy of its parent's
        self._outbox = Outbox(f"gaspar {where} sends", self.shut, self._sweep)
        self._mutex = threading.Lock()  # the session; taken after the outbox's
        self._ends = threading.Lock()  # the descriptors
        self._unwanted: deque[Call] = deque()
        self._reader: socket.socket | None = None  # waits
        self._writer: socket.socket | None = None  # the same connection, but never waits
        self._thread = threading.Thread(target=self._run, name=f"gaspar {where}", daemon=True)

    def start(self) -> None:
        """Connect and read, in a thread."""
        self._thread.start()

    @property
    def load(self) -> int:
        """How many of its requests are unanswered."""
        return len(self.session.calls)

    @property
    def room(self) -> int:
        """How many more requests may be sent now."""
        hello = self.session.hello
        if self._over or hello is None or not self.session.has_room:
            return 0
        return hello.max_in_flight - self.load

    def send(self, call: Call) -> bool:
        """Send a request, or as much as the kernel takes now and the rest in the background.

        False if there is no room for it. If the connection is found lost meanwhile, the pool hears of it.

        Raises:
            TooBig: the daemon would not take it.
        """
        data = call.data
        try:
            with self._outbox.lock:
                with self._mutex:
                    session = self.session
                    if call.dropped:
                        return True
                    if self._over or not session.has_room:
                        return False
                    assert session.hello is not None
                    if len(data) > session.hello.max_message:
                        raise TooBig(f"{len(data)} bytes, {session.hello.max_message} allowed (--max-message)")
                    if not session.calls and self._has_ended():
                        return False
                    call.carrier = self
                    call.attempts += 1
                    call.sent = False
                    head = session.begin(call, len(data), call.milliseconds(), call.meta)[1]
                if len(data) > _JOIN:
                    self._outbox.put(call, [head, memoryview(data)])
                else:
                    self._outbox.put(call, [head + data])
        finally:
            if self._unwanted:
                self._sweep()
        return True

    def _has_ended(self) -> bool:
        """True if an idle connection has ended and the reader, a green one perhaps, has not seen it yet."""
        assert self._writer is not None
        try:
            if self._writer.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return False
        except OSError:
            pass
        self._over = True
        self.shut()
        return True

    def forget(self, call: Call) -> None:
        """Let nobody answer a request any more, and tell the daemon.

        Never waits, so that a finalizer may say it wherever the garbage collector strikes: whoever holds the locks
        does it on leaving.
        """
        self._unwanted.append(call)
        self._sweep()

    def shut(self) -> None:
        """End it; the reader does the rest. Never waits."""
        if self._ends.acquire(False):  # else somebody is at it
            try:
                if self._writer is not None:
                    with contextlib.suppress(OSError):
                        self._writer.shutdown(socket.SHUT_RDWR)
            finally:
                self._ends.release()

    def join(self) -> None:
        """Wait until it is over, after `shut`."""
        if self.connected and threading.get_ident() not in self._pool.readers:
            self._thread.join()

    def take_calls(self) -> list[Call]:
        """Take away all that is unanswered: nobody else settles it now."""
        with self._mutex:
            calls = list(self.session.calls.values())
            self.session.calls.clear()
        return calls

    def disown(self) -> list[Call]:
        """In a forked child: let go of the parent's connection; returns what was under way."""
        self._disowned = self._over = self._outbox.disowned = True
        let_go(each for each in (self._reader, self._writer) if each is not None)
        return list(self.session.calls.values())

    def _sweep(self) -> None:
        """Forget what is unwanted, if no lock is taken; who has it looks again after giving it back."""
        count = 0
        while self._unwanted and self._outbox.lock.acquire(False):
            try:
                if not self._mutex.acquire(False):
                    break
                try:
                    call = self._unwanted.popleft()
                    # by the call, not by its name: an interrupt may have come before it was told
                    name = next((name for name, each in self.session.calls.items() if each is call), 0)
                    cancel = self.session.cancel(name)
                finally:
                    self._mutex.release()
                if cancel:
                    count += 1
                    if not self._outbox.withdraw(call):
                        self._outbox.put(None, [cancel])
            finally:
                self._outbox.lock.release()
        if count and self._pool.waiting:
            self._pool.freed(count)

    def _run(self) -> None:
        reason = CLOSED
        clean = False
        self._pool.readers.add(threading.get_ident())
        try:
            self._connect()
            self._read()
            clean = True
        except (OSError, UnicodeError) as error:
            reason = why(error)
        except Exception as error:
            reason = f"reading the replies failed, {type(error).__name__}: {error}"
        finally:
            self._end(reason, clean)
        if self._disowned:
            park()

    def _connect(self) -> None:
        reader = addresses.connect(self._where, None)
        writer = reader.dup()
        addresses.keep_alive(reader)
        reader.settimeout(EVER)
        writer.settimeout(0)
        with self._ends:
            self._reader, self._writer = reader, writer
        self._outbox.attach(reader, writer)
        if self._pool.closed:
            self.shut()
        if not self._disowned:
            writer.send(self.session.greeting)  # the first bytes always find room
            self.connected = True

    def _read(self) -> None:
        assert self._reader is not None
        session, mutex, recv, recv_into = self.session, self._mutex, self._reader.recv, self._reader.recv_into
        pool = self._pool
        greeted = told = False
        while session.error is None and not self._disowned:
            space = session.space()
            try:
                if space is None:
                    data = recv(_CHUNK)
                    count = len(data)
                else:
                    count = recv_into(space)
            except TimeoutError as error:
                if error.errno == errno.ETIMEDOUT:  # the kernel's word, not that of the socket's time limit
                    raise
                continue
            if not count:
                return
            with mutex:
                answers = session.feed(data) if space is None else session.filled(count)
            if not greeted:
                self.seen = (self.seen + data)[:SHOWN]
                if session.hello is not None:
                    greeted = True
                    pool.joined(self)
            if session.leaving and not told:
                told = True
                pool.leaving(self)
            if answers:
                self._deliver(answers)
            if self._unwanted:
                self._sweep()

    def _deliver(self, answers: list[tuple[Call, Any]]) -> None:
        refused = []
        for call, answer in answers:
            if answer.__class__ is ShuttingDown and call.refusal is None:
                call.refusal = answer
                refused.append(call)
            else:
                call.settle(answer)
        if refused:
            self._pool.leaving(self)
            self._pool.refused(refused)
        if self._pool.waiting:
            self._pool.freed(len(answers))

    def _end(self, reason: str, clean: bool) -> None:
        if not self._disowned:
            self._pool.leaving(self)
            self.shut()
            self._over = True
            self._outbox.close()  # after that it is known what was sent
            if self._outbox.error is not None:
                reason, clean = why(self._outbox.error), False
        with self._ends:
            for end in (self._reader, self._writer):
                if end is not None:
                    end.close()
        if self._disowned:
            return
        self._pool.readers.discard(threading.get_ident())
        session = self.session
        unsent = []
        for call in self.take_calls():
            if call.dropped:
                continue
            if not call.sent or (clean and not_taken(self._where, session)):
                unsent.append(call)
            elif session.error is not None:
                call.settle(copy_of(session.error))
            else:
                call.settle(lost(self._where, reason, sent=True))
        if self.connected and session.hello is None:
            reason = no_greeting(self.seen, reason)
        self._pool.ended(self, lost(self._where, reason, sent=False), unsent)
