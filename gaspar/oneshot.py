"""One client of the one-shot protocol: its request read, its reply written, its connection ended (docs/protocol.rst).

What the kernel has at once is done at once, in the hub's callback. Only a client that makes us wait,
because it sends or reads slowly, gets a green thread.

Failure is the default, success an act: a TCP connection inherits SO_LINGER(1, 0), so that closing it is
a reset until a whole reply is with the kernel. A Unix socket has no reset, but closing one with something
unread gives the client ECONNRESET: there the last byte that came is left unread until the reply is whole.
"""

from __future__ import annotations

import fcntl
import logging
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from . import green
from .address import Address
from .errors import Code, Failure, RequestError, TooBig
from .frames import Lend, Payload
from .limits import Limits
from .wire import OneShotParser

if TYPE_CHECKING:
    from .dispatch import Job

log = logging.getLogger(__name__)

_CHUNK = 65536  # bytes: the first read; holds the whole request nearly always
_WINDOW = 65536  # bytes that each further read_timeout must bring
_TURN = 4 * 1024 * 1024  # bytes read or written before others have their turn
_NOTHING = bytes(4)  # what FIONREAD says of an empty buffer, tcp(7)
_FIN_ON_CLOSE = struct.pack("ii", 0, 0)
_DRAIN_SECONDS, _DRAIN_BYTES = 2.0, 1024 * 1024  # how long a client's needless bytes are read after its reply
_RDHUP = getattr(select, "POLLRDHUP", 0)  # Linux
_IDLE_TURNS, _IDLE_PAUSE = 50, 0.02  # turns of the hub to spin for a Unix client, then seconds to pause at most


class Door(Protocol):
    """What a client's connection needs of the front."""

    limits: Limits
    busy: set[Any]  # connections that a drain waits for: here, those with a green thread
    bytes_in: int  # of all clients, ever
    bytes_out: int
    lend: Lend  # memory for long requests

    def admit(self, size: int) -> None:
        """A request of so many bytes is announced. Raises Overloaded if it is refused."""

    def refused(self, code: Code) -> None:
        """A request was not let in."""

    def submit(self, payload: Payload, client: OneShot) -> Job:
        """A request that was admitted is complete."""

    def cancel(self, jobs: Collection[Job]) -> Any:
        """Nobody waits for these jobs any more."""

    def credit(self, job: Job, size: int) -> None:
        """The client has taken a part of a streamed reply."""

    def withdraw(self, size: int) -> None:
        """A request that was admitted will never be complete."""

    def owe(self, size: int) -> None:
        """A reply of so many bytes is held until its client has taken it; negative: it is let go."""

    def go_on_framed(self, sock: socket.socket, peer: Any, data: bytes) -> None:
        """A connection has turned out to be one of the framed protocol; `data` came behind its name."""

    def on_requests(self) -> None:
        """Requests may have come in."""

    def closed(self) -> None:
        """A connection is gone."""


class OneShot:
    """A TCP client."""

    __slots__ = (
        "_admitted",
        "_door",
        "_excess",
        "_outgoing",
        "_owed",
        "_parser",
        "_peer",
        "_sock",
        "_stream",
        "_thread",
        "_whole",
        "moved",
        "reading",
    )

    def __init__(self, door: Door, sock: socket.socket, peer: Any) -> None:
        self._door = door
        self._sock = sock
        self._peer = peer
        self._parser: OneShotParser | None = OneShotParser(door.limits.max_message, door.lend)
        self._admitted = -1  # bytes that the front expects of this request; -1: none yet
        self._owed = 0  # bytes of its reply that the front holds for it
        self._excess = False  # bytes came after the request
        # what the kernel did not take at once of the reply: the rest and the size of each part
        self._outgoing: deque[tuple[memoryview, int]] | None = None
        self._whole = False  # with that, the reply is whole
        self._stream: Job | None = None  # whose reply comes in parts, and goes on
        self._thread: Any = None
        self.reading = True
        self.moved = 0.0  # when a slow client last sent or took something; seconds, monotonic

    def __str__(self) -> str:
        return str(Address(*self._peer[:2])) if self._peer else "a Unix client"

    # ---- the request ----

    def begin(self) -> None:
        """Read what is there."""
        try:
            complete = self._advance()
        except BlockingIOError:
            complete = False
        except (OSError, RequestError) as error:
            self._refuse(error)
            return
        if complete:
            self._submit()
        elif self._parser is not None:
            self._spawn(self._read_rest)

    def _advance(self) -> bool:
        """Take what the kernel has; True if the request is complete.

        Raises:
            BlockingIOError: nothing new has come.
            RequestError: what came is no request.
        """
        parser = self._parser
        assert parser is not None
        if not self._take(parser):
            parser.eof()
            self._close(whole=True)  # a probe: connected, sent nothing, left
            return False
        if parser.is_framed:
            self._hand_over(parser.excess)
            return False
        if self._admitted < 0 <= parser.size:
            self._door.admit(parser.size)
            self._admitted = parser.size
        return parser.complete

    def _take(self, parser: OneShotParser) -> int:
        """Feed the parser; returns the number of bytes, 0 at end of stream."""
        if parser.size < 0:
            data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            parser.feed(data)
            self._door.bytes_in += len(data)
            return len(data)
        count = self._sock.recv_into(parser.space(), 0, socket.MSG_DONTWAIT)
        parser.filled(count)
        self._door.bytes_in += count
        return count

    def _hand_over(self, data: bytes) -> None:
        threaded = self._thread is not None
        self._parser = self._thread = None
        self._door.busy.discard(self)
        self._door.go_on_framed(self._sock, self._peer, data)
        if threaded:
            self._door.on_requests()

    def _await(self, seconds: float) -> bool:
        """Let others run until something new has come; False if it did not within `seconds`."""
        return green.wait_readable(self._sock.fileno(), seconds)

    def _read_rest(self) -> None:
        parser = self._parser
        assert parser is not None
        patience = self._door.limits.read_timeout
        self.moved = green.monotonic()
        end = self.moved + patience
        header, turn = parser.size < 0, 0
        goal = parser.missing if header else max(0, parser.missing - _WINDOW)
        while True:
            before = parser.missing if parser.size >= 0 else 0
            try:
                complete = self._advance()
            except BlockingIOError:
                turn = 0
                if not self._await(end - green.monotonic()):
                    self._refuse(TimeoutError(f"{parser.missing} bytes of the request did not come in time"))
                    return
                continue
            except (OSError, RequestError) as error:
                self._refuse(error)
                return
            if self._parser is None:
                return
            if complete:
                self._submit()
                return
            self.moved = green.monotonic()
            if parser.size < 0:
                continue
            if header or parser.missing <= goal:  # a window's share has come: the next begins
                header = False
                end, goal = self.moved + patience, max(0, parser.missing - _WINDOW)
            turn += max(0, before - parser.missing)
            if turn > _TURN:
                turn = 0
                green.pause(0)

    def _submit(self) -> None:
        parser, self._parser = self._parser, None
        assert parser is not None
        self.reading = False
        self._excess = bool(parser.excess)
        self._admitted = -1
        self._door.submit(parser.payload, self)
        if self._thread is not None:  # it is not one of a batch, whose end the door hears of
            self._thread = None
            self._door.busy.discard(self)
            self._door.on_requests()

    def is_gone(self) -> bool:
        """True if the client is known to have left: its connection was reset, or ended both ways."""
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)
        return bool(poll.poll(0))

    def drop(self) -> None:
        """Forget a client that is gone."""
        self._close(whole=False)

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._door.refused(error.code)
        if isinstance(error, TooBig):  # the one that an operator can act on; overload the front says once
            log.warning("%s: refused: %s", self, error)
        else:
            log.debug("%s: refused: %s", self, error)
        self._close(whole=False)

    # ---- the reply ----

    @property
    def holds(self) -> int:
        """Bytes of its reply that the client has not taken."""
        return self._owed

    def reply(self, job: Job, body: bytes | memoryview, waited: int, ran: int) -> None:
        """Send the whole reply, or its last part, then end the connection so that the client knows that it is whole."""
        self._stream = None
        self._whole = True
        if self._send(body):
            self._finish()

    def part(self, job: Job, body: bytes | memoryview) -> None:
        """Send a part of the reply; the door is told when the kernel has it."""
        self._stream = job
        if self._send(body):
            self._door.credit(job, len(body))

    def fail(self, job: Job, why: Failure, waited: int, ran: int) -> None:
        """End the connection with a reset; the protocol has no room for the reason."""
        log.debug("%s: %s: %s", self, why.code.name, why.message)
        self._stream = None
        self.abort()

    def _send(self, body: bytes | memoryview) -> bool:
        """True if all of it is with the kernel now; else what is left is sent as the client takes it."""
        sent = 0
        if self._outgoing is None:
            try:
                sent = self._sock.send(body, socket.MSG_DONTWAIT) if len(body) else 0
            except BlockingIOError:
                pass
            except OSError as error:  # the client is gone
                log.debug("%s: %s", self, error)
                self._close(whole=False)
                return False
            self._door.bytes_out += sent
            if sent == len(body):
                return True
            self._outgoing = deque()
            self._spawn(self._write_rest)
        self._owed += len(body)
        self._door.owe(len(body))
        self._outgoing.append((memoryview(body)[sent:], len(body)))
        return False

    def _write_rest(self) -> None:
        patience = self._door.limits.write_timeout
        self.moved = green.monotonic()
        outgoing = self._outgoing
        assert outgoing is not None
        while outgoing:
            rest, size = outgoing[0]
            if rest and not green.wait_writable(self._sock.fileno(), patience):
                log.warning("%s: took nothing of its reply for %g s, %d bytes left", self, patience, len(rest))
                self._close(whole=False)
                return
            try:
                sent = self._sock.send(rest[:_TURN], socket.MSG_DONTWAIT)
                rest = rest[sent:]
                self._door.bytes_out += sent
                self.moved = green.monotonic()
            except BlockingIOError:
                continue
            except OSError as error:
                log.debug("%s: %s", self, error)
                self._close(whole=False)
                return
            outgoing[0] = rest, size
            if not rest:
                outgoing.popleft()
                self._on_sent(size)
        self._outgoing = None
        if self._whole:
            self._finish()
        else:
            self._thread = None
            self._door.busy.discard(self)

    def _on_sent(self, size: int) -> None:
        """All of a reply, or of a part, is with the kernel."""
        self._owed -= size
        self._door.owe(-size)
        if self._stream is not None:
            self._door.credit(self._stream, size)

    def _finish(self) -> None:
        """The whole reply is with the kernel."""
        try:
            if self._excess or self._came_more():
                self._promise_whole()
                self._sock.shutdown(socket.SHUT_WR)
                self._spawn(self._drain)
                return
        except OSError as error:
            log.debug("%s: %s", self, error)
        self._close(whole=True)

    def _came_more(self) -> bool:
        """True if the client sent something after its request: closing over it would be a reset."""
        return fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, _NOTHING) != _NOTHING

    def _drain(self) -> None:
        end, left = green.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        try:
            while left > 0 and green.wait_readable(self._sock.fileno(), end - green.monotonic()):
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
                if not data:
                    break
                left -= len(data)
        except OSError as error:
            log.debug("%s: %s", self, error)
        self._close(whole=True)

    # ---- the end ----

    def abort(self) -> None:
        """End the connection with a reset, whatever it is doing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            green.kill(thread)
        self._close(whole=False)

    def _promise_whole(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)

    def _spawn(self, function: Any, *args: Any) -> None:
        self._door.busy.add(self)
        self._thread = green.spawn(function, *args)

    def _close(self, *, whole: bool) -> None:
        if self._sock.fileno() < 0:
            return
        if whole:
            try:
                self._promise_whole()
            except OSError as error:
                log.debug("%s: %s", self, error)
        self._sock.close()
        self._parser = None
        self._thread = None
        self._door.busy.discard(self)
        if self._owed:
            self._door.owe(-self._owed)
        if self._admitted >= 0:
            self._door.withdraw(self._admitted)
        if self._stream is not None:
            self._door.cancel([self._stream])
        self._door.closed()


class UnixOneShot(OneShot):
    """A client on a Unix socket."""

    __slots__ = ("_kept",)

    def __init__(self, door: Door, sock: socket.socket, peer: Any) -> None:
        super().__init__(door, sock, peer)
        self._kept = 0  # bytes that the parser has been fed and the kernel still holds: 0 or 1

    def _take(self, parser: OneShotParser) -> int:
        data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        new = data[self._kept :]
        if not new:
            if data and not self._hung_up():
                raise BlockingIOError
            return 0
        parser.feed(new)
        # all but the last byte that the parser wanted
        take = len(data) - len(parser.excess) - 1
        if take:
            self._sock.recv(take, socket.MSG_DONTWAIT)
        self._kept = 1
        self._door.bytes_in += len(new)
        return len(new)

    def _hand_over(self, data: bytes) -> None:
        self._sock.recv(self._kept + len(data), socket.MSG_DONTWAIT)  # the parser has had it
        super()._hand_over(data)

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._sock.fileno(), _RDHUP)
        return bool(poll.poll(0))

    def _await(self, seconds: float) -> bool:
        if not self._kept:
            return super()._await(seconds)
        # The unread byte makes the socket readable for ever: look again and again, less and less often.
        # Edge-triggered events would do better; eventlet has none.
        end = green.monotonic() + seconds
        turns = 0
        while green.monotonic() < end:
            green.pause(0 if turns < _IDLE_TURNS else min(_IDLE_PAUSE, (turns - _IDLE_TURNS) / 1000))
            turns += 1
            try:
                there = len(self._sock.recv(2, socket.MSG_DONTWAIT | socket.MSG_PEEK))
            except OSError:
                return True  # the next read says what it is
            if there != self._kept or self._hung_up():
                return True
        return False

    def _came_more(self) -> bool:
        kept, self._kept = self._kept, 0
        return len(self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)) > kept
