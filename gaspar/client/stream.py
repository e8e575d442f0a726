"""Streamed replies: each on a connection of its own, driven by the thread that takes the parts.

Not reading is all that holds the daemon back, and nothing else waits for that connection.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Generator, Iterator

from .. import address as addresses
from ..address import Address
from ..answer import Reply
from ..errors import Cancelled, ConnectionLost, GasparError, RequestError, ShuttingDown, TooBig
from ..losses import CLOSED, NOT_SENT, SHOWN, lost, no_greeting, not_taken, why
from ..session import Session
from .connection import ATTEMPTS, EVER
from .forked import let_go
from .pending import PATIENCE, Call

_CHUNK = 64 * 1024  # bytes


class Streams:
    """The streams of one client."""

    def __init__(self, where: Address) -> None:
        self._where = where
        self._sockets: set[socket.socket] = set()
        self._closed = False

    def parts(self, data: bytes | memoryview, timeout: float | None, meta: bytes) -> Generator[bytes, None, None]:
        """Return an iterator that sends a request when it is first asked, and yields the parts of the reply."""
        if self._closed:
            raise GasparError(f"{self._where}: the client is closed")
        return self._parts(data, timeout, meta)

    def close(self, wait: bool) -> None:
        """Begin no more streams; without `wait` also end those under way. Those who take the parts close the rest."""
        self._closed = True
        if not wait:
            for each in tuple(self._sockets):
                _shut(each)

    def disown(self) -> None:
        """In a forked child: let go of the parent's streams."""
        let_go(self._sockets)
        self._sockets = set()

    def _parts(self, data: bytes | memoryview, timeout: float | None, meta: bytes) -> Generator[bytes, None, None]:
        call = Call(self._where, data, timeout, meta)
        refusal: ShuttingDown | None = None
        while True:
            come = False
            try:
                connection = self._connect(call)
            except ConnectionLost:
                if refusal is not None:
                    raise refusal from None
                raise
            call.attempts += 1
            try:
                for part in self._exchange(connection, call):
                    come = True
                    yield part
                return
            except ShuttingDown as error:
                if come or refusal is not None:
                    raise
                refusal = error
            except ConnectionLost as error:
                if come or error.sent or call.attempts >= ATTEMPTS:
                    raise
            finally:
                self._sockets.discard(connection)
                _shut(connection)  # also if a forked child has a copy of it
                connection.close()

    def _connect(self, call: Call) -> socket.socket:
        try:
            connection = addresses.connect(self._where, _left(call))
        except TimeoutError as error:
            if error.errno is None:
                raise call.timed_out(NOT_SENT) from None
            raise lost(self._where, why(error), sent=False) from error
        except (OSError, UnicodeError) as error:
            raise lost(self._where, why(error), sent=False) from error
        self._sockets.add(connection)
        addresses.keep_alive(connection)
        return connection

    def _exchange(self, connection: socket.socket, call: Call) -> Generator[bytes, None, None]:
        exchange = _Exchange(connection, call)
        exchange.send()
        come = False
        while True:
            for answer in exchange.read():
                if isinstance(answer, Exception):
                    raise answer
                last = isinstance(answer, Reply)
                if answer or (last and not come):
                    come = True
                    yield answer
                if last:
                    return
            if self._closed and exchange.ended:
                raise Cancelled(f"{self._where}: the client was closed")
            exchange.check()


class _Exchange:
    """One request and what answers it, on a connection of its own."""

    def __init__(self, connection: socket.socket, call: Call) -> None:
        self.ended = False
        self._socket = connection
        self._call = call
        self._session = Session(in_parts=True)
        self._seen = b""

    def send(self) -> None:
        """Greet, and send the request."""
        session, data = self._session, self._call.data
        self._sendall(session.greeting)
        while session.hello is None:
            self.read()
            self.check()
        if len(data) > session.hello.max_message:
            raise TooBig(f"{len(data)} bytes, {session.hello.max_message} allowed (--max-message)")
        _, head = session.begin(self._call, len(data), self._call.milliseconds(), self._call.meta)
        self._sendall(head)
        self._sendall(data)
        self._call.sent = True

    def read(self) -> list[bytes | RequestError]:
        """Read once; returns what is complete then."""
        space = self._session.space()
        with self._explained():
            self._socket.settimeout(_left(self._call))
            if space is not None:
                count = self._socket.recv_into(space)
                found = self._session.filled(count)
            else:
                data = self._socket.recv(_CHUNK)
                count = len(data)
                found = self._session.feed(data)
                if self._session.hello is None:
                    self._seen = (self._seen + data)[:SHOWN]
        self.ended = not count
        return [answer for _, answer in found]

    def check(self) -> None:
        """Raise what is wrong with the connection, if anything is."""
        error = self._session.error
        if error is not None and self._session.hello is not None:
            raise error
        if error is not None or self.ended:
            raise self._lost(CLOSED, clean=True)

    def _sendall(self, data: bytes | memoryview) -> None:
        with self._explained():
            self._socket.settimeout(_left(self._call))
            self._socket.sendall(data)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            if error.errno is None:
                raise self._call.timed_out("" if self._call.sent else NOT_SENT) from None
            raise self._lost(why(error)) from error
        except OSError as error:
            raise self._lost(why(error)) from error

    def _lost(self, reason: str, clean: bool = False) -> ConnectionLost:
        if self._session.hello is None:
            return lost(self._call.where, no_greeting(self._seen, reason), sent=False)
        sent = self._call.sent and not (clean and not_taken(self._call.where, self._session))
        return lost(self._call.where, reason, sent)


def _left(call: Call) -> float | None:
    """Return how many seconds there are until the end of a request, above 0."""
    if call.deadline is None:
        return None
    left = call.deadline + PATIENCE - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, EVER)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
