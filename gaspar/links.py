"""The ends between front and consumers: 0MQ sockets and claim pipes; sending without blocking, draining.

A claim pipe is a FIFO that holds the numbers of the jobs that a consumer was sent and has not begun.
Whoever reads a number has the job: the consumer to run it, or the front to take it back. The kernel
gives each number to one reader, because all reads and writes are of whole numbers, pipe(7).

A consumer that streams a reply sends the next part when enough of the last ones is with its client; a
second FIFO, the credit pipe, says what is.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import deque
from collections.abc import Callable

import zmq

from .arena import FROM, Arena, place_of
from .folders import claims_path, credits_path, jobs_path, results_path
from .frames import Payload
from .process import thread_ids, wait_readable
from .wire import (
    ALONE,
    APART,
    CLAIM,
    CLOSE,
    CREDIT,
    ENTRY,
    JOB,
    NAME,
    ONE,
    PART,
    PLACE,
    RESULT,
    SEVERAL,
    SHARED,
    SIZE,
    Place,
    Result,
    generation_of,
)

_SHORT = 4096  # bytes; only shorter jobs are put together in one message
_MOST_HELD = 16  # results; fewer than an outbox has room for
_HASTE = 100  # microseconds; the result of a job that ran for longer is not held
_LINGER = 1000  # milliseconds that a leaving consumer's last results have to get out
_READ_ALL = 4096  # bytes; many more than `depth` claims, or credits of a stream
_MAX_PARTS, _MAX_BYTES = 8, 1024 * 1024  # of a streamed reply, on their way to its client
_LOOK = 1.0  # seconds between looks whether the parent still lives


def _open_fifo(path: str) -> int:
    """Open to read and write, so that what is in it outlives the other end and writing never raises EPIPE."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _read_claim(fd: int) -> int:
    """Take the oldest claim; 0 if there is none."""
    try:
        data = os.read(fd, CLAIM.size)
    except BlockingIOError:
        return 0
    return int.from_bytes(data, "little" if CLAIM.pack(1)[0] else "big")


# ---- the front's ends ----


def make_context() -> tuple[zmq.Context[zmq.Socket[bytes]], set[int]]:
    """Make the front's context. Returns it and the threads that it has."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, 4096)
    before = thread_ids()
    context.socket(zmq.PULL).close()  # starts them
    return context, thread_ids() - before


class Results:
    """The front's end for all results.

    Args:
        at: returns the reply that is in its request's place, by the block's start and the reply's size; None if the
            block is lent no more.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: str,
        generation: int,
        at: Callable[[int, int], memoryview | None] = lambda start, size: None,
    ) -> None:
        self._at = at
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # bounded by depth x consumers
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("ipc://" + results_path(folder, generation))
        for old in range(1, generation):  # 0MQ leaves its files behind
            with contextlib.suppress(FileNotFoundError):
                os.unlink(results_path(folder, old))

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something; edge-triggered, so `drain` first."""
        fd = self._socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        return fd

    def drain(self, most: int) -> list[Result]:
        """Return what has come, at least `most` unless there is no more."""
        results: list[Result] = []
        recv = self._socket.recv
        try:
            while len(results) < most:
                data = recv(zmq.NOBLOCK)
                number, begun, ran, code, how = RESULT.unpack_from(data)
                if how == ONE:
                    results.append(Result(number, begun, ran, code, data[RESULT.size :]))
                elif how == ALONE:  # the parts of a message arrive together
                    body = self._socket.recv(zmq.NOBLOCK, copy=False).buffer
                    results.append(Result(number, begun, ran, code, body))
                elif how == SHARED:
                    start, _, size = PLACE.unpack_from(data, RESULT.size)
                    reply = self._at(start, size)
                    if reply is not None:
                        results.append(Result(number, begun, ran, code, reply))
                else:
                    results += _split(data)
        except zmq.Again:
            pass
        return results

    def close(self) -> None:
        """Close."""
        self._socket.close()


def _split(data: bytes) -> list[Result]:
    """Take apart several results that came in one message."""
    results, at = [], RESULT.size
    while at < len(data):
        number, begun, ran, code, _ = RESULT.unpack_from(data, at)
        at += RESULT.size
        (size,) = SIZE.unpack_from(data, at)
        at += SIZE.size + size
        results.append(Result(number, begun, ran, code, data[at - size : at]))
    return results


class ConsumerLink:
    """The front's end for one consumer: its jobs and its claim pipe.

    Raises:
        OSError: the consumer has already left.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, number: int) -> None:
        self._claims = _open_fifo(claims_path(folder, number))
        try:
            self._credits = _open_fifo(credits_path(folder, number))
        except OSError:
            os.close(self._claims)
            raise
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by depth
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect("ipc://" + jobs_path(folder, number))

    def name(self, number: int, name: str) -> None:
        """Say what a job that is about to be sent is called in logs."""
        self._socket.send(JOB.pack(number, NAME) + name.encode(errors="replace"), zmq.NOBLOCK)

    def send(self, number: int, payload: Payload) -> None:
        """Send a job; its claim goes first, so that a consumer never sees a job without its claim."""
        os.write(self._claims, CLAIM.pack(number))
        if type(payload) is memoryview:
            self._socket.send(JOB.pack(number, SHARED) + PLACE.pack(*place_of(payload)), zmq.NOBLOCK)
        elif len(payload) < APART:
            self._socket.send(JOB.pack(number, ONE) + payload, zmq.NOBLOCK)
        else:
            self._socket.send(JOB.pack(number, ALONE), zmq.NOBLOCK | zmq.SNDMORE)
            self._socket.send(payload, zmq.NOBLOCK, copy=False)

    def send_all(self, jobs: list[tuple[int, Payload]]) -> None:
        """Send jobs, (number, payload) each, in this order; short ones in one message."""
        if len(jobs) == 1 or max([len(payload) for _, payload in jobs]) >= _SHORT:
            for number, payload in jobs:
                self.send(number, payload)
            return
        pack = ENTRY.pack
        parts: list[Payload] = [JOB.pack(0, SEVERAL)]
        for number, payload in jobs:
            parts += (pack(number, len(payload)), payload)
        os.write(self._claims, array("Q", [number for number, _ in jobs]).tobytes())
        self._socket.send(b"".join(parts), zmq.NOBLOCK)

    def take_back(self) -> int:
        """Take back the oldest job that has not begun; 0 if all have."""
        return _read_claim(self._claims)

    def drain(self) -> list[int]:
        """Take back all jobs that have not begun, oldest first."""
        try:
            data = os.read(self._claims, _READ_ALL)
        except BlockingIOError:
            return []
        return [number for (number,) in CLAIM.iter_unpack(data)]

    def credit(self, number: int, size: int) -> None:
        """Say that a client has taken a part of so many bytes; CLOSE: that nobody wants any more."""
        with contextlib.suppress(BlockingIOError):  # full of what is of no interest any more: nobody reads it
            os.write(self._credits, CREDIT.pack(number, size))

    def close(self) -> None:
        """Close."""
        self._socket.close()
        os.close(self._claims)
        os.close(self._credits)


# ---- the consumer's end ----


class ConsumerEnd:
    """A consumer's end: its own 0MQ context, made after the fork.

    Args:
        watched: a file descriptor (the lifeline) that ends a wait for jobs.
    """

    def __init__(self, folder: str, number: int, watched: int, arena: Arena | None = None) -> None:
        for path in claims_path(folder, number), credits_path(folder, number):
            os.mkfifo(path, 0o600)
        self._claims = _open_fifo(claims_path(folder, number))
        self._credits = _open_fifo(credits_path(folder, number))
        self._parent = os.getppid()
        self._parts = self._part_bytes = 0  # of the stream, that its client has not taken
        self._folder = folder
        self._arena = arena
        self._context = zmq.Context(io_threads=1)
        self._jobs = self._context.socket(zmq.PULL)
        self._jobs.setsockopt(zmq.RCVHWM, 0)
        self._jobs.setsockopt(zmq.LINGER, 0)
        self._jobs.bind("ipc://" + jobs_path(folder, number))
        self._results: zmq.Socket[bytes] | None = None
        self._front = -1  # the generation of the front that `_results` is connected to
        self._came: deque[tuple[int, bytes | Place]] = deque()  # jobs of one message, not yet claimed
        self._names: dict[int, str] = {}  # of jobs that their clients have named
        self._held: list[tuple[int, int, int, int, bytes | memoryview]] = []  # results of one front, not yet sent
        self._claim = 0  # a number that was read and whose job has not come yet
        self._poller = zmq.Poller()
        self._poller.register(self._jobs, zmq.POLLIN)
        self._poller.register(watched, zmq.POLLIN)

    def wait(self) -> None:
        """Wait until there is a job or the watched descriptor is readable."""
        self._poller.poll()

    def recv(self) -> tuple[int, bytes | Place] | None:
        """Return the number and payload of the next job that is to be run, or None if none has come.

        A payload in the arena is for `fetch`.
        """
        while True:
            while not self._came:
                try:
                    self._take_message()
                except zmq.Again:
                    self._flush()
                    return None
            number, payload = self._came.popleft()
            if self._is_mine(number):
                return number, payload
            self._names.pop(number, None)

    def _take_message(self) -> None:
        data = self._jobs.recv(zmq.NOBLOCK)
        number, how = JOB.unpack_from(data)
        if how == ONE:
            self._came.append((number, data[JOB.size :]))
        elif how == NAME:
            self._names[number] = data[JOB.size :].decode()
        elif how == ALONE:
            self._came.append((number, self._jobs.recv(zmq.NOBLOCK)))
        elif how == SHARED:
            self._came.append((number, Place(*PLACE.unpack_from(data, JOB.size))))
        else:
            at = JOB.size
            while at < len(data):
                number, size = ENTRY.unpack_from(data, at)
                start = at + ENTRY.size
                at = start + size
                self._came.append((number, data[start:at]))

    def name(self, number: int) -> str | int:
        """Say what a job is called in logs; once."""
        return self._names.pop(number, number) if self._names else number

    def fetch(self, number: int, place: Place) -> bytes | None:
        """Read a job's payload from the arena. None if its front is gone, so that nobody waits for it.

        The scoreboard has to say by now that the job is begun: that is what keeps its place from being lent again.
        """
        assert self._arena is not None
        return self._arena.read(number, place)

    def put(self, place: Place, reply: bytes | memoryview) -> Place | None:
        """Put a long reply in its request's place, while the scoreboard still says that its job runs.

        Returns:
            Where it is, for `send_placed`; None if it is to be sent.
        """
        assert self._arena is not None
        if len(reply) < FROM or not self._arena.write(place, reply):
            return None
        return place._replace(size=len(reply))

    def send_placed(self, number: int, begun: int, ran: int, place: Place) -> None:
        """Send the result of a job whose reply was put in its request's place."""
        self._flush()
        head = RESULT.pack(number, begun, ran, 0, SHARED)
        self._connected(generation_of(number)).send(head + PLACE.pack(*place))

    def _is_mine(self, number: int) -> bool:
        """Claim a job. False if the front has taken it back."""
        while True:
            if not self._claim:
                self._claim = _read_claim(self._claims)
            if self._claim == number:
                self._claim = 0
                return True
            if not self._claim or generation_of(self._claim) >= generation_of(number):
                # taken back; or, as a PULL takes turns between its peers, a late job of a front that died
                return False
            self._claim = 0  # left by a front that died before it sent the job

    def send(
        self, number: int, begun: int, ran: int, code: int, body: bytes | memoryview, *, noted: bool = False
    ) -> None:
        """Send a job's result to the front that sent the job.

        Results of the shortest jobs go together, while the next job is at hand. Should that one take long,
        the front takes what is held from the outbox.

        Args:
            noted: it is in the outbox.
        """
        held = self._held
        if noted and self._came and ran < _HASTE and len(held) < _MOST_HELD:
            held.append((number, begun, ran, code, bytes(body)))  # a copy of what may change
            return
        if held:
            if noted:
                held.append((number, begun, ran, code, body))
                self._flush()
                return
            self._flush()
        results = self._connected(generation_of(number))
        if len(body) < APART:
            results.send(RESULT.pack(number, begun, ran, code, ONE) + body)
        else:
            results.send(RESULT.pack(number, begun, ran, code, ALONE), zmq.SNDMORE)
            # only what cannot change later may be sent without a copy
            results.send(body, 0, copy=not isinstance(body, bytes))

    def _flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, []
        if not held:
            return
        parts: list[bytes | memoryview] = [RESULT.pack(0, 0, 0, 0, SEVERAL)]
        for number, begun, ran, code, body in held:
            parts += (RESULT.pack(number, begun, ran, code, ONE), SIZE.pack(len(body)), body)
        self._connected(generation_of(held[-1][0])).send(b"".join(parts))

    def begin_stream(self) -> None:
        """Forget what was said of other streams."""
        self._parts = self._part_bytes = 0

    def send_part(self, number: int, begun: int, part: bytes | memoryview) -> bool:
        """Send a part of a job's reply as soon as its client has taken enough of those before.

        Returns:
            False if nobody wants it, or any further one.
        """
        size = len(part)
        while True:
            if not self._take_credits(number):
                return False
            if not self._parts or (self._parts < _MAX_PARTS and self._part_bytes + size <= _MAX_BYTES):
                break
            # in doubt the front that is to say it has died: its successor closes the stream
            if not wait_readable([self._credits], _LOOK) and os.getppid() != self._parent:
                return False
        self._parts += 1
        self._part_bytes += size
        self.send(number, begun, 0, PART, part)
        return True

    def _take_credits(self, number: int) -> bool:
        """Take in what came of the credit pipe. False if the stream is to be closed."""
        try:
            data = os.read(self._credits, _READ_ALL)
        except BlockingIOError:
            return True
        for job, size in CREDIT.iter_unpack(data):
            if size == CLOSE and (job == number or generation_of(job) > generation_of(number)):
                return False
            if job != number:
                continue
            self._parts -= 1
            self._part_bytes -= size
        return True

    def _connected(self, generation: int) -> zmq.Socket[bytes]:
        if self._results is None or self._front != generation:
            if self._results is not None:
                self._results.close(linger=0)
            self._results = self._context.socket(zmq.PUSH)
            self._results.setsockopt(zmq.SNDHWM, 0)
            self._results.setsockopt(zmq.LINGER, _LINGER)
            self._results.connect("ipc://" + results_path(self._folder, generation))
            self._front = generation
        return self._results

    def close(self) -> None:
        """Let the last results out, then close."""
        self._flush()
        os.close(self._claims)
        os.close(self._credits)
        self._jobs.close()
        if self._results is not None:
            self._results.close()
        self._context.term()
