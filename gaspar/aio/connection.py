"""One framed connection on its transport: connects, greets, sends calls, and reads what comes.

Which call goes to which connection, and what becomes of those that a lost one leaves behind, its pool decides.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from typing import Any, Protocol, cast

from ..address import Address, keep_alive
from ..errors import GasparError, RequestError, TooBig
from ..losses import CLOSED, SHOWN, not_taken, why
from ..session import Session
from .call import Call

_CHUNK = 64 * 1024  # bytes; what is shorter is joined, so that many requests are one write


class Owner(Protocol):
    """What a connection tells its pool."""

    loop: asyncio.AbstractEventLoop
    where: Address
    in_parts: bool

    def failed(self, connection: Connection, error: OSError | UnicodeError) -> None:
        """It could not be made."""

    def heard(self, connection: Connection, answers: list[tuple[Any, bytes | RequestError]]) -> None:
        """This came."""

    def resumed(self) -> None:
        """It has room again."""

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """It has ended."""

    def fail(self, call: Call, error: GasparError) -> None:
        """A call cannot be sent."""


class Register(Protocol):
    """What a connection tells of its socket."""

    def attempting(self, connection: Connection) -> None:
        """It connects."""

    def attempted(self, connection: Connection, cancelled: bool) -> None:
        """It has connected, or has not."""

    def opened(self, connection: Connection) -> None:
        """Its socket is open."""

    def closed(self, connection: Connection) -> None:
        """Its socket is closed."""


class Connection(asyncio.BufferedProtocol):
    """One framed connection on its transport."""

    def __init__(self, pool: Owner, sockets: Register) -> None:
        self.session = Session(in_parts=pool.in_parts)
        self.transport: asyncio.Transport | None = None
        self.retired = False  # it takes nothing more
        self.seen = b""  # of what came before its greeting
        self._pool = pool
        self._sockets = sockets
        self._attempt: asyncio.Task[None] | None = None
        self._unsent: deque[tuple[Call | None, bytes]] = deque()  # not with the transport
        self._last: Call | None = None  # that the transport was given
        self._full = False  # the transport holds something
        self._flushing = False
        self._ended = False  # by a FIN
        self._space = memoryview(bytearray(_CHUNK))
        self._body: memoryview | None = None  # what is being read is a long body

    def connect(self) -> None:
        """Begin to connect; the pool hears of the rest."""
        self._sockets.attempting(self)
        self._attempt = self._pool.loop.create_task(self._connect())
        self._attempt.add_done_callback(lambda attempt: self._sockets.attempted(self, attempt.cancelled()))

    async def _connect(self) -> None:
        # both loops set TCP_NODELAY by themselves
        loop, where = self._pool.loop, self._pool.where
        try:
            if where.path:
                await loop.create_unix_connection(lambda: self, where.path)
            else:
                await loop.create_connection(lambda: self, where.host, where.port)
        except (OSError, UnicodeError) as error:
            self._pool.failed(self, error)

    @property
    def has_room(self) -> bool:
        """True if another call may be sent now."""
        return not self._full and self.session.has_room

    def refuses(self, call: Call) -> bool:
        """True if a call is too long for the daemon, which ends it."""
        hello = self.session.hello
        assert hello is not None
        if len(call.data) <= hello.max_message:
            return False
        self._pool.fail(call, TooBig(f"{len(call.data)} bytes, {hello.max_message} allowed (--max-message)"))
        return True

    def send(self, call: Call) -> None:
        """Send a call, together with all others of this turn of the loop."""
        if self.refuses(call):
            return
        call.connection = self
        call.name, head = self.session.begin(call, len(call.data), call.milliseconds(), call.meta)
        self._unsent.append((call, head))
        self._flush_soon()

    def cancel(self, call: Call) -> None:
        """Tell the daemon that nobody waits for a call."""
        said = self.session.cancel(call.name)
        if self.retired and not self.session.calls:
            self.abort()
        elif said:
            self._unsent.append((None, said))
            self._flush_soon()

    def take_back(self) -> list[Call]:
        """Return the calls that were not sent yet; they are this connection's no more."""
        calls = [call for call, _ in self._unsent if call is not None and not call.done()]
        for call in calls:
            self.session.cancel(call.name)
        self._unsent = deque(item for item in self._unsent if item[0] is None)
        return calls

    def may_have_run(self, call: Call) -> bool:
        """True unless a call certainly did not reach the daemon whole, or was not taken by it."""
        if not call.given or (call is self._last and self._full):
            return False
        return not (self._ended and not_taken(self._pool.where, self.session))

    def abort(self) -> None:
        """Close the socket. Whatever the daemon has of this connection is cancelled by that."""
        if self.transport is not None:
            self.transport.abort()
        elif self._attempt is not None:
            self._attempt.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._sockets.opened(self)
        keep_alive(transport.get_extra_info("socket"))
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
        self._sockets.closed(self)

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
            calls: list[Call] = []
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

    def _write(self, data: bytes, whole: list[Call]) -> None:
        assert self.transport is not None
        if data and not self.transport.is_closing():
            self.transport.write(data)
        # it held nothing before, so if it failed at once, none of this is out
        if not self.transport.is_closing():
            for call in whole:
                call.given = True


def why_ended(error: Exception | None) -> str:
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
