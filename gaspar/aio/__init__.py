"""The client for asyncio, on its own loop or uvloop: many requests at once on few kept connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Literal, overload

from .. import address as addresses
from ..answer import Reply
from ..errors import GasparError
from ..message import Message, as_bytes, checked_timeout, named
from .call import Call, StreamCall, forget
from .pool import Pool
from .window import Window


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
        self._timeout = checked_timeout(timeout)
        self._pool: Pool | None = None
        self._streams: set[Pool] = set()
        self._pid = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<gaspar.aio.Client of {self._where}>"

    async def __aenter__(self) -> Client:
        self._use()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(wait=kind is None)

    async def request(self, message: Message, timeout: float | None = None, *, request_id: str = "") -> Reply:
        """Send a request and return its reply. To cancel the awaiting task cancels the request.

        Args:
            message: bytes-like, at most the daemon's max_message.
            timeout: seconds for all of it, connecting and waiting for a place too; None: the client's.
            request_id: what the daemon's log calls it, at most 128 printable characters; "": a number of its own.

        Raises:
            ConnectionLost: (also a ConnectionError) no connection, or it ended before the reply was there; `sent`
                is True if the request may have been run.
            RequestTimeout: (also a TimeoutError) `timeout` or the daemon's own limit has passed.
            RequestError: the daemon answered with an error; its subclass says which.
            GasparError: the client is closed, or belongs to another loop or process.
            TypeError: message is not bytes-like.
            ValueError: timeout is not above 0, or request_id is too long or cannot be printed.
        """
        return await self.submit(message, timeout, request_id=request_id)

    def submit(self, message: Message, timeout: float | None = None, *, request_id: str = "") -> asyncio.Future[Reply]:
        """Send a request without waiting; returns the future of its reply, whose `cancel()` cancels the request.

        Raises:
            as `request` does; what is not known at once is the future's.
        """
        pool = self._use()
        # a copy: it may be sent later, and again
        call = Call(pool, bytes(as_bytes(message)), self._limit(timeout))
        call.meta = named(request_id)
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

    def stream(
        self, message: Message, timeout: float | None = None, *, request_id: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Send a request on a connection of its own; yield its reply's parts as they come.

        Not taking them slows the handler down. To close the iterator early cancels the request. A handler that
        does not stream gives one part.

        Args:
            message: bytes-like, at most the daemon's max_message.
            timeout: seconds until the last part has come; None: the client's.
            request_id: as `request`.

        Raises:
            as `request` does; an error in the middle comes after the parts that came before it.
        """
        return self._stream(bytes(as_bytes(message)), self._limit(timeout), named(request_id))

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
                await each.sockets.gone()

    def _use(self) -> Pool:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise GasparError(f"{self._where}: the client is closed")
        pool = self._pool
        if pool is None or pool.loop is not loop or self._pid != os.getpid():
            pool = self._bind(loop)
        return pool

    def _bind(self, loop: asyncio.AbstractEventLoop) -> Pool:
        if self._pool is None:
            self._pid = os.getpid()
            self._pool = Pool(loop, self._where, self._connections)
        # what a forked child does to its parent's connections, it would do to the parent's epoll set too
        if self._pid != os.getpid():
            raise GasparError(f"this client belongs to process {self._pid}, which forked; make a new one")
        if self._pool.loop is not loop:
            raise GasparError("this client belongs to another event loop, the one it was first used in; make a new one")
        return self._pool

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else checked_timeout(timeout)

    async def _map(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool,
        in_flight: int,
        timeout: float | None,
        return_exceptions: bool,
    ) -> AsyncGenerator[Reply | Exception, None]:
        self._use()
        window = Window(lambda message: self.submit(message, timeout), messages, ordered, in_flight)
        try:
            while (answer := await window.next()) is not None:
                if isinstance(answer, Exception) and not return_exceptions:
                    raise answer
                yield answer
        finally:
            await window.close()
            answer = None  # else its traceback would hold it

    async def _stream(self, data: bytes, timeout: float | None, meta: bytes) -> AsyncGenerator[bytes, None]:
        pool = Pool(self._use().loop, self._where, 1, in_parts=True)
        self._streams.add(pool)
        call = StreamCall(pool, data, timeout)
        call.meta = meta
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
            forget(call)
            del call  # else its exception's traceback would hold it
            await pool.sockets.gone()
            self._streams.discard(pool)
