"""The blocking clients: `request` for one request, `Client` for many over connections that stay.

Safe in threads, and under eventlet's and gevent's monkey-patching.
"""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, NoReturn, overload

from .. import address as addresses
from ..address import Address
from ..answer import Reply
from ..errors import ConnectionLost, RequestTimeout
from ..message import as_bytes, checked_timeout, named
from ..wire import LENGTH
from .pending import Call, FutureCall
from .pool import Pool
from .window import AsReady, InOrder, mapped

_CHUNK = 65536
_JOIN = 65536  # bytes; a longer payload is sent after its header, not copied behind it


def pack(message: bytes | bytearray | memoryview) -> bytes:
    """Lay out a one-shot request: 4-byte length in network byte order, then the message.

    Raises:
        TypeError: message is not bytes-like.
        TooBig: it is longer than the protocol can announce (2**30 - 1 bytes).
    """
    data = as_bytes(message)
    return LENGTH.pack(len(data)) + data


def request(address: str, message: bytes | bytearray | memoryview, timeout: float | None = None) -> bytes:
    """Send a request on a connection of its own and return exactly the reply.

    Args:
        address: "host:port", "[v6]:port" or "unix:/path".
        timeout: seconds for all of it; None waits as long as the daemon takes.

    Raises:
        ConnectionLost: (also a ConnectionError) no connection, or it ended before the reply was whole: the
            daemon refused the request, the handler failed or its process died. The daemon's log says which.
        RequestTimeout: (also a TimeoutError) `timeout` has passed.
        AddressError: (also a ValueError) the address cannot be read.
        TypeError: message is not bytes-like.
    """
    where = addresses.parse(address)
    data = as_bytes(message)
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with addresses.connect(where, _left(end)) as connection:
            return _exchange(connection, data, end)
    except TimeoutError as error:
        raise RequestTimeout(f"{where}: no reply within {timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        _explain(where, error)


def _exchange(connection: socket.socket, data: bytes | memoryview, end: float | None) -> bytes:
    header = LENGTH.pack(len(data))
    connection.settimeout(_left(end))
    if len(data) <= _JOIN:
        connection.sendall(header + data)
    else:
        connection.sendall(header)
        connection.settimeout(_left(end))
        connection.sendall(data)
    parts: list[bytes] = []
    while True:
        connection.settimeout(_left(end))
        part = connection.recv(_CHUNK)
        if not part:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        parts.append(part)


def _left(end: float | None) -> float | None:
    if end is None:
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _explain(where: Address, error: OSError | UnicodeError) -> NoReturn:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        text = "nobody listens there; is the daemon running?"
    elif isinstance(error, ConnectionResetError | BrokenPipeError):
        text = (
            "the connection was reset before the reply was whole: the daemon refused the request, "
            "its handler failed or its consumer died; the daemon's log says which"
        )
    elif isinstance(error, UnicodeError):
        text = "not a host name"
    else:
        text = error.strerror or str(error)
    raise ConnectionLost(f"{where}: {text}") from error


class Client:
    """A client with connections that stay, for many requests at once from any number of threads.

    Connections are opened when they are first needed and replaced when they end. A request that was certainly not
    run when its connection ended is tried again on a new one; of one that may have been run `ConnectionLost` says
    so (`sent`). After a fork the child's copy opens connections of its own.

    Usable as a context manager, which closes it.

    Args:
        address: "host:port", "[v6]:port" or "unix:/path" of a daemon.
        connections: how many at most; another is opened when all are busy.
        timeout: seconds for each request that has none of its own; None waits as long as the daemon takes.

    Raises:
        AddressError: (also a ValueError) the address cannot be read.
        ValueError: a timeout that is not above 0, or no connections.
    """

    def __init__(self, address: str, connections: int = 1, *, timeout: float | None = None) -> None:
        if connections < 1:
            raise ValueError(f"connections is {connections}, it must be 1 or more")
        self._where = addresses.parse(address)
        self._timeout = checked_timeout(timeout)
        self._pool = Pool(self._where, connections)
        # without it a client that is forgotten open would leave its threads and sockets
        finalizer = weakref.finalize(self, self._pool.abandon)
        finalizer.atexit = False

    def __repr__(self) -> str:
        return f"<gaspar.Client of {self._where}>"

    def request(
        self, message: bytes | bytearray | memoryview, timeout: float | None = None, *, request_id: str = ""
    ) -> Reply:
        """Send a request and wait for its reply.

        Args:
            message: bytes-like, at most as long as the daemon's `max_message`.
            timeout: seconds for all of it, connecting included; the daemon is told, so that it gives up too.
            request_id: what the daemon's log calls it, at most 128 printable characters; "": a number of its own.

        Returns:
            The reply, bytes. Its `receipt` says how long the request waited and ran.

        Raises:
            RequestError: the daemon answered with an error; its subclasses say which.
            RequestTimeout: (one of them, also a TimeoutError) `timeout`, or a limit of the daemon's, has passed.
            TooBig: (one of them) it is longer than `max_message`; nothing was sent.
            ConnectionLost: (also a ConnectionError) no connection, or it ended before the reply was there; its
                `sent` says whether the request may have been run.
            GasparError: the client is closed.
            TypeError: message is not bytes-like.
            ValueError: a timeout that is not above 0, or a request_id that is too long or cannot be printed.
        """
        call = Call(self._where, as_bytes(message), self._limit(timeout), named(request_id))
        try:
            self._pool.send(call)
            if call.answer is None:
                self._pool.check_may_wait()
            answer = call.wait()
        except BaseException:
            call.drop()
            raise
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer, call  # its traceback holds this frame
        return answer

    def submit(
        self, message: bytes | bytearray | memoryview, timeout: float | None = None, *, request_id: str = ""
    ) -> Future[Reply]:
        """Send a request and return the future of its reply; waits only while the daemon takes no more requests.

        The future's `cancel` works until the answer is there, and tells the daemon. Its callbacks are called by the
        thread that reads the replies: they may submit, but must not wait. In a forked child the futures of its
        parent are never done.

        Args and Raises: as `request`; what is known only later comes from the future.
        """
        call = FutureCall(self._where, bytes(as_bytes(message)), self._limit(timeout), self)
        call.meta = named(request_id)
        try:
            self._pool.send(call)
            if call.deadline is not None:
                self._pool.watch.add(call)
        except BaseException:
            call.drop()
            raise
        return call.future

    @overload
    def map(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        ordered: bool = ...,
        in_flight: int = ...,
        *,
        timeout: float | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> Generator[Reply, None, None]: ...

    @overload
    def map(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        ordered: bool = ...,
        in_flight: int = ...,
        *,
        timeout: float | None = ...,
        return_exceptions: bool,
    ) -> Generator[Reply | Exception, None, None]: ...

    def map(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        ordered: bool = True,
        in_flight: int = 64,
        *,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> Generator[Reply | Exception, None, None] | Generator[Reply, None, None]:
        """Send many requests and yield their replies; lazy at both ends, in bounded memory.

        A message is on its way to the daemon before the next is taken from `messages`. If `messages` raises, the
        replies to what it gave before come first. Closing the iterator cancels what is under way.

        Args:
            messages: any iterable, endless ones too.
            ordered: yield in the order of the messages, else as they are ready.
            in_flight: how many may be taken and not yet yielded.
            timeout: seconds for each request, from when it is taken.
            return_exceptions: yield an error in the place of its reply; else it is raised there, and what is under
                way is cancelled.

        Raises: as `request`.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}, it must be 1 or more")
        limit = self._limit(timeout)
        window = InOrder() if ordered else AsReady()

        def put(message: bytes | bytearray | memoryview) -> None:
            call = window.put(self._where, limit)
            try:
                call.data = bytes(as_bytes(message))
                self._pool.send(call)
            except Exception as error:
                call.settle(error)

        return mapped(iter(messages), put, window, in_flight, return_exceptions)

    def stream(
        self, message: bytes | bytearray | memoryview, timeout: float | None = None, *, request_id: str = ""
    ) -> Generator[bytes, None, None]:
        """Send a request and yield the parts of its reply as the handler makes them.

        Each stream has a connection of its own, opened when the first part is asked for. Taking the parts slowly
        slows that handler down, nothing else. Closing the iterator closes the connection, and the daemon the
        handler's generator. A handler that does not stream gives one part.

        Args:
            message: as `request`.
            timeout: seconds for all of it, from the first part asked for.
            request_id: as `request`.

        Raises: as `request`, after the parts that came before.
        """
        return self._pool.streams.parts(as_bytes(message), self._limit(timeout), named(request_id))

    def close(self, wait: bool = True) -> None:
        """End the connections; the client is of no use any more. May be called again.

        Args:
            wait: first wait for the answers that are under way; else they are cancelled, and so are streams.
        """
        self._pool.close(wait)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(wait=error is None)

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else checked_timeout(timeout)
