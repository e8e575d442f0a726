"""One client of the framed protocol: its requests read, its answers written, its connection kept (docs/protocol.rst).

Everything happens in the hub's callbacks: what came is read at once, what is to be sent gathers until the turn of
the hub is over. End of stream, or anything unexpected, means that the client is gone and wants nothing any more.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

from . import green
from .address import Address
from .errors import BadFrame, Code, Failure, Overloaded, RequestError, ShuttingDown, failure
from .frames import (
    CLIENT_KINDS,
    HEADER,
    MAX_U32,
    Frame,
    FrameKind,
    FrameParser,
    Lend,
    Payload,
    decode_meta,
    encode,
    request_name,
)
from .limits import Limits
from .outgoing import Outgoing

if TYPE_CHECKING:
    from .dispatch import Job

log = logging.getLogger(__name__)

_CHUNK = 64 * 1024  # bytes read at once; from 128 KiB on malloc maps and unmaps pages each time, mallopt(3)
_WINDOW = 64 * 1024  # bytes that each further read_timeout must bring of a frame
_DRAIN_SECONDS, _DRAIN_BYTES = 2.0, 1024 * 1024  # how long what a client still sends is read after the last answer
_FIN_ON_CLOSE = struct.pack("ii", 0, 0)
_REPLY, _REQUEST = int(FrameKind.REPLY), int(FrameKind.REQUEST)


class Door(Protocol):
    """What a framed connection needs of the front."""

    limits: Limits
    greeting: bytes  # HELLO
    draining: bool
    bytes_in: int  # of all clients, ever
    bytes_out: int
    busy: set[Any]  # connections that a drain waits for
    framed: set[Framed]
    lend: Lend  # memory for long requests

    def admit(self, size: int) -> None:
        """A request of so many bytes is announced. Raises Overloaded if it is refused."""

    def take(self, payload: Payload, client: Framed, tag: int, name: str) -> Job:
        """A request is complete that was not announced. Raises Overloaded if it is refused."""

    def submit(self, payload: Payload, client: Framed, tag: int, name: str) -> Job:
        """A request that was admitted is complete."""

    def refused(self, code: Code) -> None:
        """A request was answered with an error at once."""

    def withdraw(self, size: int) -> None:
        """A request that was admitted will never be complete."""

    def expect(self, job: Job) -> None:
        """A job has a deadline."""

    def cancel(self, jobs: Collection[Job]) -> list[tuple[int, int]]:
        """Nobody waits for these jobs any more. Returns how long each waited and ran, microseconds."""

    def credit(self, job: Job, size: int) -> None:
        """A client has taken a part of a streamed reply."""

    def owe(self, size: int) -> None:
        """So many bytes more are held until a client takes them; negative: fewer."""

    def to_flush(self, client: Framed) -> None:
        """Call `flush` when the turn of the hub is over."""

    def on_requests(self) -> None:
        """Requests may have come in."""

    def closed(self) -> None:
        """A connection is gone."""


def greeting(server: str, limits: Limits) -> bytes:
    """Lay out the HELLO of a daemon."""
    fields = {"server": server, "max_message": limits.max_message, "max_in_flight": limits.max_in_flight}
    return encode(FrameKind.HELLO, meta=json.dumps(fields).encode())


class Framed:
    """A client of the framed protocol.

    Args:
        data: what came behind the protocol's name.
    """

    reading = False  # a drain waits for what the client takes, not for what it has begun to send

    def __init__(self, door: Door, sock: socket.socket, peer: Any, data: bytes) -> None:
        self._door = door
        self._sock = sock
        self._peer = peer
        self._parser = FrameParser(door.limits.max_message, CLIENT_KINDS, (FrameKind.REQUEST,), door.lend)
        self._jobs: dict[int, Job] = {}  # unanswered, by id
        self._most_jobs = door.limits.max_in_flight
        self._admitted = -1  # bytes that the front expects of the pending frame; -1: none
        self._out = Outgoing(self, sock, door.limits.write_timeout)
        self._ending = False  # nothing is read as a request any more
        self._leaving = False  # told to go away
        self._stop_reading: Callable[[], None] | None = None
        self._timers: dict[str, Callable[[], None]] = {}
        self._seen = (0, 0)  # frames and bytes of the one that has begun, at the last look
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.framed.add(self)
        self._put(door.greeting)
        self._listen()
        if door.draining:
            self._say_goaway()
        if data:
            self._take(self._parser.feed(data))
        if self._leaving:
            self._end_if_answered()

    def __str__(self) -> str:
        return str(Address(*self._peer[:2])) if self._peer else "a Unix client"

    # ---- requests ----

    def _listen(self) -> None:
        if self._stop_reading is None:
            self._stop_reading = green.watch(self._sock.fileno(), self._on_readable)

    def _pause(self) -> None:
        if self._stop_reading is not None:
            self._stop_reading()
            self._stop_reading = None

    def _on_readable(self) -> None:
        parser = self._parser
        try:
            if parser.pending is None or parser.skipping:
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
                count = len(data)
                frames = parser.feed(data)
            else:
                count = self._sock.recv_into(parser.space(), 0, socket.MSG_DONTWAIT)
                frames = parser.filled(count)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("%s: %s", self, error)
            self.abort()
            return
        if not count:
            self._on_eof()
            return
        self._door.bytes_in += count
        self._take(frames)
        self._door.on_requests()

    def _on_eof(self) -> None:
        if self._parser.inside or self._jobs or self._out.unsent:
            log.debug("%s: left with %d requests unanswered", self, len(self._jobs))
            self.abort()
        else:
            self._close(whole=True)

    def _take(self, frames: list[Frame]) -> None:
        parser = self._parser
        try:
            for frame in frames:
                kind = frame.kind
                if kind == _REQUEST:
                    self._on_request(frame)
                elif kind == FrameKind.CANCEL:
                    self._on_cancel(frame.id)
                else:
                    self._put(encode(FrameKind.PONG, frame.id))
            if parser.error is not None:
                raise parser.error
            if parser.pending is not None and not parser.skipping and self._admitted < 0:
                self._on_long_request(parser.pending)
        except RequestError as error:
            self._refuse(error)
            return
        if parser.inside and "read" not in self._timers:
            self._note_progress()
            self._look_later("read", self._door.limits.read_timeout, self._look_if_silent)

    def _on_request(self, frame: Frame) -> None:
        """A request is complete. Raises BadFrame."""
        try:
            name = request_name(decode_meta(frame.meta)) if frame.meta else ""
            if self._admitted < 0:
                self._check(frame)
                job = self._door.take(frame.body, self, frame.id, name)
            else:
                self._admitted = -1
                job = self._door.submit(frame.body, self, frame.id, name)
        except (Overloaded, ShuttingDown) as error:
            self._put_refusal(frame.id, error)
            return
        self._jobs[frame.id] = job
        if frame.a:
            job.deadline = job.arrived + frame.a / 1000
            self._door.expect(job)

    def _on_long_request(self, frame: Frame) -> None:
        """A request's header is there, its body is still to come. Raises BadFrame."""
        if frame.kind != _REQUEST:
            self._parser.skip()
            return
        size = self._parser.size
        try:
            decode_meta(frame.meta)
            self._check(frame)
            self._door.admit(size)
            self._admitted = size
        except (Overloaded, ShuttingDown) as error:
            self._put_refusal(frame.id, error)
            self._parser.skip()

    def _check(self, frame: Frame) -> None:
        """Refuse what this connection may not ask. Raises BadFrame, ShuttingDown, Overloaded."""
        jobs = self._jobs
        if frame.id in jobs:
            raise BadFrame(f"a request with id {frame.id}, which is still unanswered")
        if self._leaving:
            raise ShuttingDown("the daemon is stopping")
        if len(jobs) >= self._most_jobs:
            raise Overloaded(
                f"{len(jobs)} requests of this connection are unanswered, as many as allowed (--max-in-flight)"
            )

    def _on_cancel(self, name: int) -> None:
        job = self._jobs.get(name)
        if job is not None:
            ((waited, ran),) = self._door.cancel([job])
            self.fail(job, failure(Code.CANCELLED, "cancelled by its client"), waited, ran)

    def _refuse(self, error: RequestError) -> None:
        """The client has broken the protocol: say how, and end the connection."""
        log.debug("%s: refused: %s", self, error)
        self._put_refusal(self._parser.error_id, error)
        self._end()

    # ---- answers ----

    @property
    def holds(self) -> int:
        """Bytes of its answers that the client has not taken."""
        return self._out.held

    @property
    def moved(self) -> float:
        """When the client last took something; seconds, monotonic."""
        return self._out.moved

    def reply(self, job: Job, body: bytes | memoryview, waited: int, ran: int) -> None:
        """Answer a request; microseconds."""
        name = job.tag
        del self._jobs[name]
        if waited > MAX_U32:
            waited = MAX_U32
        if self._out.put(HEADER.pack(len(body), name, _REPLY, 0, 0, waited, ran), body):
            self._door.to_flush(self)
        if self._leaving:
            self._end_if_answered()

    def part(self, job: Job, body: bytes | memoryview) -> None:
        """Send a part of a streamed reply; the door is told when the kernel has it."""
        self._put(HEADER.pack(len(body), job.tag, FrameKind.PART, 0, 0, 0, 0), body)
        self._out.mark(job, len(body))

    def fail(self, job: Job, why: Failure, waited: int, ran: int) -> None:
        """Answer a request with an error."""
        del self._jobs[job.tag]
        self._put_error(job.tag, why, waited, ran)
        if self._leaving:
            self._end_if_answered()

    def is_gone(self) -> bool:
        """False: its requests are cancelled when it goes."""
        return False

    def drop(self) -> None:
        """Forget a client that is gone."""
        self.abort()

    def go_away(self) -> None:
        """Say that the daemon drains: what was asked is answered, then the connection ends."""
        if self._stop_reading is not None:
            self._on_readable()  # what is with the kernel was asked before
        if not self._leaving and self._sock.fileno() >= 0:
            self._say_goaway()
            self._end_if_answered()

    def _say_goaway(self) -> None:
        self._leaving = True
        self._door.busy.add(self)
        self._put(encode(FrameKind.GOAWAY))

    def _end_if_answered(self) -> None:
        if not self._jobs:
            self._end()

    def _put_refusal(self, name: int, error: RequestError) -> None:
        self._door.refused(error.code)
        self._put_error(name, failure(error.code, str(error)), 0, 0)

    def _put_error(self, name: int, why: Failure, waited: int, ran: int) -> None:
        detail, waited, ran = why.detail, min(waited, MAX_U32), min(ran, MAX_U32)
        self._put(encode(FrameKind.ERROR, name, detail, code=why.code, a=waited, b=ran))

    def _put(self, head: bytes, body: bytes | memoryview = b"") -> None:
        if self._out.put(head, body):
            self._door.to_flush(self)

    def flush(self) -> None:
        """Send what has gathered, as far as the kernel takes it."""
        self._out.flush()

    # ---- what becomes of them ----

    def on_credit(self, job: Job, size: int) -> None:
        """The kernel has a part of a streamed reply."""
        self._door.credit(job, size)

    def on_sent(self, size: int) -> None:
        """The kernel has taken so many bytes more."""
        self._door.bytes_out += size

    def on_held(self, more: int) -> None:
        """So many bytes more wait for the client."""
        self._door.owe(more)

    def on_blocked(self) -> None:
        """The client does not take its answers: it may ask no more when there are too many."""
        self._door.busy.add(self)
        if self._out.full and not self._ending:
            self._pause()

    def on_all_sent(self) -> None:
        """The client has its answers."""
        if self._ending:
            self._shut()
            return
        self._listen()
        if not self._leaving:
            self._door.busy.discard(self)

    def on_stuck(self) -> None:
        """The client has taken nothing for as long as it may."""
        patience = self._door.limits.write_timeout
        log.warning("%s: took nothing of its answers for %g s, %d bytes left", self, patience, self._out.unsent)
        self.abort()

    def on_lost(self, error: OSError) -> None:
        """The client is gone."""
        log.debug("%s: %s", self, error)
        self.abort()

    # ---- time ----

    def _look_later(self, name: str, seconds: float, look: Callable[[], None]) -> None:
        def on_time() -> None:
            del self._timers[name]
            look()

        self._timers[name] = green.later(seconds, on_time)

    def _stop_timer(self, name: str) -> None:
        if stop := self._timers.pop(name, None):
            stop()

    def _note_progress(self) -> None:
        self._seen = (self._parser.count, self._parser.held)

    def _look_if_silent(self) -> None:
        parser, patience = self._parser, self._door.limits.read_timeout
        if not parser.inside or self._ending:
            return
        frames, held = self._seen
        if self._stop_reading is not None and parser.count == frames and parser.held - held < _WINDOW:
            log.debug("%s: a frame that it began did not come on within %g s", self, patience)
            self.abort()
            return
        self._note_progress()
        self._look_later("read", patience, self._look_if_silent)

    # ---- the end ----

    def _end(self) -> None:
        """Read nothing more; when all is sent, end the stream."""
        if self._ending:
            return
        self._ending = True
        self._pause()
        self._stop_timer("read")
        self._let_go()
        self._door.busy.add(self)
        if not self._out.unsent:
            self._shut()

    def _shut(self) -> None:
        """All is with the kernel: end the stream, then read what the client still sends, so that nothing is reset."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            log.debug("%s: %s", self, error)
            self.abort()
            return
        left = _DRAIN_BYTES

        def on_readable() -> None:
            nonlocal left
            try:
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("%s: %s", self, error)
                data = b""
            left -= len(data)
            if not data or left <= 0:
                self._close(whole=True)

        self._stop_reading = green.watch(self._sock.fileno(), on_readable)
        self._look_later("drain", _DRAIN_SECONDS, lambda: self._close(whole=True))

    def abort(self) -> None:
        """End the connection with a reset, whatever it is doing."""
        self._close(whole=False)

    def _let_go(self) -> None:
        """Forget what was asked and not answered."""
        if self._admitted >= 0:
            self._door.withdraw(self._admitted)
            self._admitted = -1
        jobs, self._jobs = self._jobs, {}
        if jobs:
            self._door.cancel(jobs.values())

    def _close(self, *, whole: bool) -> None:
        if self._sock.fileno() < 0:
            return
        self._pause()
        for name in list(self._timers):
            self._stop_timer(name)
        if whole:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)
            except OSError as error:
                log.debug("%s: %s", self, error)
        self._out.close()
        self._sock.close()
        self._ending = True
        self._let_go()
        self._door.framed.discard(self)
        self._door.busy.discard(self)
        self._door.closed()
