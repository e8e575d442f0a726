"""The client for asyncio, on its own loop or uvloop: many requests at once on few kept connections.

What a connection's bytes mean is session.py's affair; here are the transports, the places and the second tries.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import logging
import math
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any, Literal, cast, overload

from . import address as addresses
from .address import Address
from .answer import Reply
from .errors import Cancelled, GasparError, RequestError, RequestTimeout, ShuttingDown, TooBig
from .losses import CLOSED, NOT_SENT, SHOWN, lost, no_greeting, why
from .session import Session

log = logging.getLogger(__name__)

Message = bytes | bytearray | memoryview

_SLACK = 0.05  # seconds; the daemon's own TIMEOUT, which says more, is waited for that long
_MAX_MILLISECONDS = 2**32 - 1  # that a request can announce
_CONNECTIONS_TRIED = 3  # by one request
_REST = 1.0  # seconds between tries for one connection more, after one failed
_CHUNK = 64 * 1024  # bytes; what is shorter is joined, so that many requests are one write
_UNREAD_PARTS = 16  # of a stream, then no more is read
_UNREAD = 1024 * 1024  # bytes
# a host that vanishes says nothing; its connections are given up after two minutes of silence, tcp(7)
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Client:
    """A client for one daemon, in one event loop: the one in which it is first used.

    Connections are made when they are needed, and made anew when they were lost. A request that certainly did not
    reach the daemon is sent again by itself; one that may have been run is not.

    Args:
        address: "host:port", "[v6]:port" or "unix:/path".
        connections: at most; the least loaded one is taken.
        timeout: seconds for a request that sets none of its own; None waits as long as the daemon takes.

    Raises:
        AddressError: (also a ValueError) the address cannot be read.
        ValueError: connections is below 1, or timeout not above 0.
    """

    def __init__(self, address: str, connections: int = 1, *, timeout: float | None = None) -> None:
        if connections < 1:
            raise ValueError(f"connections is {connections}, it must be 1 or more")
        self._where = addresses.parse(address)
        self._connections = connections
        self._timeout = _checked(timeout)
        self._pool: _Pool | None = None
        self._streams: set[_Pool] = set()
        self._pid = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<gaspar.aio.Client of {self._where}>"

    async def __aenter__(self) -> Client:
        self._use()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(wait=kind is None)

    async def request(self, message: Message, timeout: float | None = None) -> Reply:
        """Send a request and return its reply. To cancel the awaiting task cancels the request.

        Args:
            message: bytes-like, at most the daemon's max_message.
            timeout: seconds for all of it, connecting and waiting for a place too; None: the client's.

        Raises:
            ConnectionLost: (also a ConnectionError) no connection, or it ended before the reply was there; `sent`
                is True if the request may have been run.
            RequestTimeout: (also a TimeoutError) `timeout` or the daemon's own limit has passed.
            RequestError: the daemon answered with an error; its subclass says which.
            GasparError: the client is closed, or belongs to another loop or process.
            TypeError: message is not bytes-like.
            ValueError: timeout is not above 0.
        """
        return await self.submit(message, timeout)

    def submit(self, message: Message, timeout: float | None = None) -> asyncio.Future[Reply]:
        """Send a request without waiting; returns the future of its reply, whose `cancel()` cancels the request.

        Raises:
            as `request` does; what is not known at once is the future's.
        """
        pool = self._use()
        call = _Call(pool, _as_bytes(message), self._limit(timeout))
        pool.add(call)
        return call

    @overload
    def map(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool = ...,
        in_flight: int = ...,
        *,
        timeout: float | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> AsyncGenerator[Reply, None]: ...

    @overload
    def map(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool = ...,
        in_flight: int = ...,
        *,
        timeout: float | None = ...,
        return_exceptions: bool,
    ) -> AsyncGenerator[Reply | Exception, None]: ...

    def map(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool = True,
        in_flight: int = 64,
        *,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Reply | Exception, None] | AsyncGenerator[Reply, None]:
        """Send many requests; yield their replies as they are taken.

        To close the iterator early cancels what is under way.

        Args:
            messages: an iterable or an async iterable, read no further than `in_flight` allows.
            ordered: replies come in the order of their messages; else in the order in which they are ready.
            in_flight: at most so many are sent and not yet yielded.
            timeout: seconds for each request.
            return_exceptions: an error is yielded in its reply's place; else it is raised there, and ends it all.

        Raises:
            as `request` does, and what `messages` raises, after the replies to what it gave before.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}, it must be 1 or more")
        self._limit(timeout)
        return self._map(messages, ordered, in_flight, timeout, return_exceptions)

    def stream(self, message: Message, timeout: float | None = None) -> AsyncGenerator[bytes, None]:
        """Send a request on a connection of its own; yield its reply's parts as they come.

        Not taking them slows the handler down. To close the iterator early cancels the request. A handler that
        does not stream gives one part.

        Args:
            message: bytes-like, at most the daemon's max_message.
            timeout: seconds until the last part has come; None: the client's.

        Raises:
            as `request` does; an error in the middle comes after the parts that came before it.
        """
        return self._stream(_as_bytes(message), self._limit(timeout))

    async def close(self, wait: bool = True) -> None:
        """Close the connections. What is asked of the client from now on is a GasparError.

        Args:
            wait: first wait for the answers under way; else they are cancelled. Streams under way may be taken to
                their ends, and are not waited for; without `wait` they are cancelled too.
        """
        if self._pool is None:
            self._closed = True
            return
        self._bind(asyncio.get_running_loop())
        self._closed = True
        pools = [self._pool] if wait else [self._pool, *self._streams]
        try:
            if wait:
                await self._pool.idle()
        finally:
            for each in pools:
                each.stop()
            for each in pools:
                await each.gone()

    def _use(self) -> _Pool:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise GasparError(f"{self._where}: the client is closed")
        pool = self._pool
        if pool is None or pool.loop is not loop or self._pid != os.getpid():
            pool = self._bind(loop)
        return pool

    def _bind(self, loop: asyncio.AbstractEventLoop) -> _Pool:
        if self._pool is None:
            self._pid = os.getpid()
            self._pool = _Pool(loop, self._where, self._connections)
        # what a forked child does to its parent's connections, it would do to the parent's epoll set too
        if self._pid != os.getpid():
            raise GasparError(f"this client belongs to process {self._pid}, which forked; make a new one")
        if self._pool.loop is not loop:
            raise GasparError("this client belongs to another event loop, the one it was first used in; make a new one")
        return self._pool

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else _checked(timeout)

    async def _map(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool,
        in_flight: int,
        timeout: float | None,
        return_exceptions: bool,
    ) -> AsyncGenerator[Reply | Exception, None]:
        self._use()
        window = _Window(lambda message: self.submit(message, timeout), messages, ordered, in_flight)
        try:
            while (answer := await window.next()) is not None:
                if isinstance(answer, Exception) and not return_exceptions:
                    raise answer
                yield answer
        finally:
            await window.close()
            answer = None  # else its traceback would hold it

    async def _stream(self, data: bytes, timeout: float | None) -> AsyncGenerator[bytes, None]:
        pool = _Pool(self._use().loop, self._where, 1, in_parts=True)
        self._streams.add(pool)
        call = _StreamCall(pool, data, timeout)
        pool.add(call)
        come = False
        try:
            while (part := await call.next_part()) is not None:
                come = True
                yield part
            rest = call.result()
            if rest or not come:
                yield rest
        finally:
            pool.stop()
            _forget(call)
            del call  # else its exception's traceback would hold it
            await pool.gone()
            self._streams.discard(pool)


class _Call(asyncio.Future[Reply]):
    """A request on its way, and the future of its reply."""

    connection: _Connection | None = None  # None: it waits for a place
    name = 0  # its id there
    given = False  # to the transport
    losses = 0  # connections that it was lost with, before it was sent
    refusal: ShuttingDown | None = None
    begun = False  # a part of its reply has come
    timer: asyncio.TimerHandle | None = None
    deadline = 0.0  # monotonic

    def __init__(self, pool: _Pool, data: bytes, timeout: float | None) -> None:
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
        return max(1, math.ceil(left)) if left < _MAX_MILLISECONDS else _MAX_MILLISECONDS

    def take_part(self, part: bytes) -> None:
        """Take a part of a streamed reply; only who asked for parts gets them."""
        raise AssertionError


class _StreamCall(_Call):
    """A request whose reply is taken part by part."""

    def __init__(self, pool: _Pool, data: bytes, timeout: float | None) -> None:
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


class _Window:
    """What `map` has asked for and not yet yielded."""

    def __init__(
        self,
        ask: Callable[[Message], asyncio.Future[Reply]],
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool,
        size: int,
    ) -> None:
        self._ask = ask
        self._ordered = ordered
        self._size = size
        self._next: deque[asyncio.Future[Reply]] = deque()  # to be yielded; only if ordered some are not done
        self._unyielded: set[asyncio.Future[Reply]] = set()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        # by itself, so that a source that is slow to give holds no reply back
        self._filling = asyncio.create_task(self._fill(messages))
        self._filling.add_done_callback(lambda _: self._news.set())

    async def next(self) -> Reply | Exception | None:
        """Wait for the next answer, None after the last one.

        Raises:
            what the source of the messages did.
        """
        while not (self._next and self._next[0].done()):
            if self._filling.done() and not self._unyielded:
                self._filling.result()
                return None
            self._news.clear()
            await self._news.wait()
        call = self._next.popleft()
        self._unyielded.remove(call)
        self._room.set()
        error = call.exception()
        return error if isinstance(error, Exception) else call.result()

    async def close(self) -> None:
        """Cancel what is under way."""
        for call in self._unyielded:
            _forget(call)
        self._filling.cancel()
        await asyncio.wait({self._filling})
        _forget(self._filling)

    async def _fill(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        if isinstance(messages, AsyncIterable):
            async for message in messages:
                await self._take(message)
        else:
            for message in messages:
                await self._take(message)

    async def _take(self, message: Message) -> None:
        try:
            call = self._ask(message)
        except Exception as error:  # the caller's, whatever it is: it has its place among the replies
            call = asyncio.get_running_loop().create_future()
            call.set_exception(error)
        self._unyielded.add(call)
        if self._ordered:
            self._next.append(call)
        call.add_done_callback(self._note)
        while len(self._unyielded) >= self._size:
            self._room.clear()
            await self._room.wait()

    def _note(self, call: asyncio.Future[Reply]) -> None:
        if not self._ordered:
            self._next.append(call)
        self._news.set()


class _Pool:
    """The calls of one client, and the connections to give them to.

    An unanswered call is in one place: in `waiting`, or among a connection's session's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, where: Address, connections: int, *, in_parts: bool = False
    ) -> None:
        self.loop = loop
        self.where = where
        self.in_parts = in_parts
        self.waiting: OrderedDict[_Call, None] = OrderedDict()  # for a place, first come first served
        self._most = connections
        self._open: list[_Connection] = []  # that take calls
        self._connecting: set[_Connection] = set()  # until they are greeted
        self._made: set[_Connection] = set()  # whose sockets are open, the leaving ones too
        self._attempts: dict[asyncio.Task[None], _Connection] = {}
        self._not_before = 0.0  # monotonic; no connection more than there are until then
        self._unanswered = 0
        self._pumping = False
        self._stopped = False
        self._change = asyncio.Event()

    def add(self, call: _Call) -> None:
        """Send a call, or let it wait."""
        self._unanswered += 1
        connection = None if self.waiting else self._roomiest()
        if connection is not None:
            connection.send(call)
        elif self._open and self._open[0].refuses(call):
            return
        else:
            self.waiting[call] = None
        if len(self._open) < self._most:
            self._grow()

    def drop(self, call: _Call) -> None:
        """Forget a call that nobody waits for any more, and tell the daemon."""
        self._end(call)
        connection = call.connection
        if connection is not None:
            connection.cancel(call)
            self._pump_soon()
            return
        self.waiting.pop(call, None)
        if not self.waiting:
            # nobody waits: the next one asks anew, and is not held up by an address that swallows everything
            for each in list(self._connecting):
                self._connecting.remove(each)
                each.abort()

    def expire(self, call: _Call, timeout: float) -> None:
        """End a call whose time is over."""
        more = "" if call.given else self._excuse()
        self.drop(call)
        call.set_exception(RequestTimeout(f"{self.where}: no reply within {timeout:g} s{more}"))

    def fail(self, call: _Call, error: GasparError) -> None:
        """End a call with an error."""
        self._end(call)
        call.set_exception(error)

    def made(self, connection: _Connection) -> None:
        """Note that a connection's socket is open."""
        self._made.add(connection)

    def heard(self, connection: _Connection, answers: list[tuple[Any, bytes | RequestError]]) -> None:
        """Take what a connection brought."""
        session = connection.session
        for call, answer in answers:
            if isinstance(answer, Reply):
                self._end(call)
                call.set_result(answer)
            elif not isinstance(answer, RequestError):
                call.take_part(answer)
            elif isinstance(answer, ShuttingDown) and call.refusal is None and not call.begun:
                call.refusal = answer
                connection.retired = True
                self._again([call], "")
            else:
                self.fail(call, answer)
        if session.error is not None:
            self.lost(connection)
        elif session.leaving or connection.retired:
            self._retire(connection)
        elif connection in self._connecting and session.hello is not None:
            self._connecting.remove(connection)
            self._open.append(connection)
        if self.waiting:
            self._pump()

    def lost(self, connection: _Connection, error: Exception | None = None) -> None:
        """Take back what a connection did not answer: it has ended, or is of no use any more."""
        self._leave(connection)
        connection.abort()
        if connection in self._connecting:
            self._connecting.remove(connection)
            hopeless = connection.session.error is not None
            self._unreachable(no_greeting(connection.seen, _why(error)), hopeless)
            return
        session = connection.session
        calls = list(session.calls.values())
        session.calls.clear()
        unsent = []
        for call in calls:
            if not connection.may_have_run(call):
                unsent.append(call)
            elif session.error is not None:
                self.fail(call, copy.copy(session.error))
            else:
                self.fail(call, lost(self.where, _why(error), sent=True))
        self._again(unsent, _why(error))
        self._pump_soon()

    def resumed(self) -> None:
        """Note that a connection has room again."""
        if self.waiting:
            self._pump()

    def closed(self, connection: _Connection) -> None:
        """Note that a connection's socket is closed."""
        self._made.discard(connection)
        self._change.set()

    def stop(self) -> None:
        """Cancel all calls, close all connections."""
        self._stopped = True
        calls = list(self.waiting)
        for connection in self._made:
            calls += connection.session.calls.values()
            connection.session.calls.clear()
            connection.abort()
        self.waiting.clear()
        self._open.clear()
        self._connecting.clear()
        for connection in self._attempts.values():
            connection.abort()
        for call in calls:
            self.fail(call, Cancelled(f"{self.where}: the client was closed"))
            call.exception()  # seen: whoever still waits for it gets it, nobody need

    async def idle(self) -> None:
        """Wait until all calls are answered."""
        while self._unanswered:
            self._change.clear()
            await self._change.wait()

    async def gone(self) -> None:
        """Wait until all sockets are closed, after `stop`."""
        while self._made or self._attempts:
            self._change.clear()
            await self._change.wait()

    def _excuse(self) -> str:
        """Say what a call waited for in vain that was not sent."""
        for connection in self._connecting:
            if connection.transport is not None:
                return f": {no_greeting(connection.seen, 'silence')}"
        return NOT_SENT

    def _end(self, call: _Call) -> None:
        self._unanswered -= 1
        call.data = b""
        if call.timer is not None:
            call.timer.cancel()
        if not self._unanswered:
            self._change.set()

    def _again(self, calls: list[_Call], what: str) -> None:
        """Let calls that were certainly not run wait for another connection, before all others."""
        for call in reversed(calls):
            call.connection, call.given = None, False
            call.losses += 1
            if call.losses < _CONNECTIONS_TRIED and not self._stopped:
                self.waiting[call] = None
                self.waiting.move_to_end(call, last=False)
            else:
                self.fail(call, call.refusal or lost(self.where, what, sent=False))

    def _roomiest(self) -> _Connection | None:
        """Return the least loaded connection that has room, None if none has."""
        best = None
        for each in self._open:
            if each.has_room and (best is None or len(each.session.calls) < len(best.session.calls)):
                best = each
        return best

    def _pump(self) -> None:
        """Give the calls that wait to the connections that have room; connect if there are too few."""
        while self.waiting and (connection := self._roomiest()) is not None:
            call, _ = self.waiting.popitem(last=False)
            connection.send(call)
        if len(self._open) < self._most:
            self._grow()

    def _pump_soon(self) -> None:
        # not at once: of many that are cancelled together, none is to be sent in the place of another
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump_later)

    def _pump_later(self) -> None:
        self._pumping = False
        if not self._stopped:
            self._pump()

    def _grow(self) -> None:
        """Connect once more if a call waits, or all connections have something to do."""
        if self._open and (
            self._connecting
            or time.monotonic() < self._not_before
            or (not self.waiting and any(len(each.session.calls) < 2 for each in self._open))
        ):
            return
        wanted = len(self.waiting) if not self._open else 1
        # counted before: with eager tasks one may fail at once
        for _ in range(min(wanted, self._most - len(self._open)) - len(self._connecting)):
            connection = _Connection(self)
            self._connecting.add(connection)
            attempt = self.loop.create_task(self._connect(connection))
            connection.attempt = attempt
            self._attempts[attempt] = connection
            attempt.add_done_callback(self._attempted)

    async def _connect(self, connection: _Connection) -> None:
        # both loops set TCP_NODELAY by themselves
        where = self.where
        try:
            if where.path:
                await self.loop.create_unix_connection(lambda: connection, where.path)
            else:
                await self.loop.create_connection(lambda: connection, where.host, where.port)
        except (OSError, UnicodeError) as error:
            if connection in self._connecting:
                self._connecting.remove(connection)
                self._unreachable(_why(error), hopeless=True)

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        connection = self._attempts.pop(attempt)
        if attempt.cancelled():
            self._made.discard(connection)  # uvloop may have called connection_made, and does not call connection_lost
        self._change.set()

    def _unreachable(self, what: str, hopeless: bool) -> None:
        """Take it that there is no new connection: if it was the last hope, the waiting ones hear of it."""
        log.debug("%s: %s", self.where, what)
        self._not_before = time.monotonic() + _REST
        if self._open or self._connecting:
            return
        calls = list(self.waiting)
        self.waiting.clear()
        for call in calls if hopeless else ():
            self.fail(call, call.refusal or lost(self.where, what, sent=False))
        if not hopeless:
            self._again(calls, what)
            self._pump_soon()

    def _leave(self, connection: _Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)

    def _retire(self, connection: _Connection) -> None:
        """Give a connection nothing more; it is closed when all it has is answered."""
        connection.retired = True
        self._leave(connection)
        self._again(connection.take_back(), "the daemon is shutting down")
        if not connection.session.calls:
            connection.abort()
        if connection in self._connecting:
            self._connecting.remove(connection)
            self._unreachable("the daemon is shutting down", hopeless=False)


class _Connection(asyncio.BufferedProtocol):
    """One framed connection on its transport."""

    def __init__(self, pool: _Pool) -> None:
        self.session = Session(in_parts=pool.in_parts)
        self.transport: asyncio.Transport | None = None
        self.attempt: asyncio.Task[None] | None = None
        self.retired = False  # it takes nothing more
        self.seen = b""  # of what came before its greeting
        self._pool = pool
        self._unsent: deque[tuple[_Call | None, bytes]] = deque()  # not with the transport
        self._last: _Call | None = None  # that the transport was given
        self._full = False  # the transport holds something
        self._flushing = False
        self._ended = False  # by a FIN
        self._space = memoryview(bytearray(_CHUNK))
        self._body: memoryview | None = None  # what is being read is a long body

    @property
    def has_room(self) -> bool:
        """True if another call may be sent now."""
        return not self._full and self.session.has_room

    def refuses(self, call: _Call) -> bool:
        """True if a call is too long for the daemon, which ends it."""
        hello = self.session.hello
        assert hello is not None
        if len(call.data) <= hello.max_message:
            return False
        self._pool.fail(call, TooBig(f"{len(call.data)} bytes, {hello.max_message} allowed (--max-message)"))
        return True

    def send(self, call: _Call) -> None:
        """Send a call, together with all others of this turn of the loop."""
        if self.refuses(call):
            return
        call.connection = self
        call.name, head = self.session.begin(call, len(call.data), call.milliseconds())
        self._unsent.append((call, head))
        self._flush_soon()

    def cancel(self, call: _Call) -> None:
        """Tell the daemon that nobody waits for a call."""
        said = self.session.cancel(call.name)
        if self.retired and not self.session.calls:
            self.abort()
        elif said:
            self._unsent.append((None, said))
            self._flush_soon()

    def take_back(self) -> list[_Call]:
        """Return the calls that were not sent yet; they are this connection's no more."""
        calls = [call for call, _ in self._unsent if call is not None and not call.done()]
        for call in calls:
            self.session.cancel(call.name)
        self._unsent = deque(item for item in self._unsent if item[0] is None)
        return calls

    def may_have_run(self, call: _Call) -> bool:
        """True unless a call certainly did not reach the daemon whole, or was not taken by it."""
        if not call.given or (call is self._last and self._full):
            return False
        return not (self._ended and self.session.leaving)

    def abort(self) -> None:
        """Close the socket. Whatever the daemon has of this connection is cancelled by that."""
        if self.transport is not None:
            self.transport.abort()
        elif self.attempt is not None:
            self.attempt.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.made(self)
        if not self._pool.where.path:
            _keep_alive(transport.get_extra_info("socket"))
        # paused as soon as anything is not with the kernel: what is behind it is certainly not sent
        self.transport.set_write_buffer_limits(high=0)
        self.transport.write(self.session.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._body = self.session.space()
        return self._space if self._body is None else self._body

    def buffer_updated(self, nbytes: int) -> None:
        session = self.session
        if self._body is None:
            data = bytes(self._space[:nbytes])
            answers = session.feed(data)
            if session.hello is None:
                self.seen = (self.seen + data)[:SHOWN]
        else:
            self._body = None
            answers = session.filled(nbytes)
        self._pool.heard(self, answers)

    def eof_received(self) -> None:
        self._ended = True
        self.abort()  # else what is not sent yet would be waited for

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self, error)
        self._pool.closed(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()
        self._pool.resumed()

    def _flush_soon(self) -> None:
        if not self._flushing and not self._full:
            self._flushing = True
            self._pool.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Give the transport what there is, until it cannot pass it on at once."""
        self._flushing = False
        assert self.transport is not None
        while self._unsent and not self._full and not self.transport.is_closing():
            calls: list[_Call] = []
            pieces: list[bytes] = []
            body, size = b"", 0
            while self._unsent and size < _CHUNK:
                call, head = self._unsent.popleft()
                if call is None:
                    pieces.append(head)
                elif not call.done():  # else it was dropped before it was sent
                    body = call.data
                    size += len(body) + len(head)
                    calls.append(call)
                    pieces += (head, body)
                self._last = call
            long = pieces.pop() if len(body) > _CHUNK and pieces[-1] is body else b""
            self._write(b"".join(pieces), calls[:-1] if long else calls)
            if long:
                self._write(long, calls[-1:])
        if not self._full:
            self._last = None

    def _write(self, data: bytes, whole: list[_Call]) -> None:
        assert self.transport is not None
        if data and not self.transport.is_closing():
            self.transport.write(data)
        # it held nothing before, so if it failed at once, none of this is out
        if not self.transport.is_closing():
            for call in whole:
                call.given = True


def _checked(timeout: float | None) -> float | None:
    """Return a timeout, None for one that never passes."""
    if timeout is None or timeout == math.inf:
        return None
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, it must be above 0 seconds, or None for none")
    return timeout


def _as_bytes(message: Message) -> bytes:
    if isinstance(message, bytes):
        return message
    if isinstance(message, str):
        raise TypeError("message is a str; encode it first, like message.encode()")
    try:
        return memoryview(message).cast("B").tobytes()  # a copy: it may be sent later, and again
    except TypeError:
        raise TypeError(f"message must be bytes-like, not {type(message).__name__}") from None


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out if the other host has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _forget(future: asyncio.Future[Any]) -> None:
    """Cancel a future; if it has failed already, nobody need be told."""
    if not future.cancel() and not future.cancelled():
        future.exception()


def _why(error: Exception | None) -> str:
    """Say why a connection ended, or why there is none."""
    if error is None:
        return CLOSED
    if isinstance(error, UnicodeError):
        return why(error)
    if not isinstance(error, OSError):
        return f"reading the replies failed, {type(error).__name__}: {error}"
    # asyncio's own texts leave out the reason; for a name with several addresses there is one of all that was said
    number = errno.ECONNREFUSED if f"[Errno {errno.ECONNREFUSED}]" in str(error) else error.errno
    return why(OSError(number, os.strerror(number)) if number and number > 0 else error)
