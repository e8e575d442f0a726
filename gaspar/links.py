"""The ends between front and consumers: 0MQ sockets and claim pipes; sending without blocking, draining.

A claim pipe is a FIFO that holds the numbers of the jobs that a consumer was sent and has not begun.
Whoever reads a number has the job: the consumer to run it, or the front to take it back. The kernel
gives each number to one reader, because all reads and writes are of whole numbers, pipe(7).
"""

from __future__ import annotations

import contextlib
import os

import zmq

from .folders import claims_path, jobs_path, results_path
from .wire import APART, CLAIM, JOB, RESULT, Result, generation_of

_LINGER = 1000  # milliseconds that a leaving consumer's last results have to get out
_READ_ALL = 4096  # bytes; many more than `depth` claims


def _read_claim(fd: int) -> int:
    """Take the oldest claim; 0 if there is none."""
    try:
        data = os.read(fd, CLAIM.size)
    except BlockingIOError:
        return 0
    return int.from_bytes(data, "little" if CLAIM.pack(1)[0] else "big")


# ---- the front's ends ----


class Results:
    """The front's end for all results."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, generation: int) -> None:
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
        """Return what has come, at most `most`; fewer mean that there is no more."""
        results: list[Result] = []
        recv = self._socket.recv
        try:
            while len(results) < most:
                data = recv(zmq.NOBLOCK)
                number, begun, ran, code, apart = RESULT.unpack_from(data)
                body: bytes | memoryview = data[RESULT.size :]
                if apart:  # the parts of a message arrive together
                    body = self._socket.recv(zmq.NOBLOCK, copy=False).buffer
                results.append(Result(number, begun, ran, code, body))
        except zmq.Again:
            pass
        return results

    def close(self) -> None:
        """Close."""
        self._socket.close()


class ConsumerLink:
    """The front's end for one consumer: its jobs and its claim pipe.

    Raises:
        OSError: the consumer has already left.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, number: int) -> None:
        # read and write, so that claims outlive the consumer and writing never raises EPIPE
        self._claims = os.open(claims_path(folder, number), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by depth
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect("ipc://" + jobs_path(folder, number))

    def send(self, number: int, payload: bytes | bytearray) -> None:
        """Send a job; its claim goes first, so that a consumer never sees a job without its claim."""
        os.write(self._claims, CLAIM.pack(number))
        if len(payload) < APART:
            self._socket.send(JOB.pack(number, 0) + payload, zmq.NOBLOCK)
        else:
            self._socket.send(JOB.pack(number, 1), zmq.NOBLOCK | zmq.SNDMORE)
            self._socket.send(payload, zmq.NOBLOCK, copy=False)

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

    def close(self) -> None:
        """Close."""
        self._socket.close()
        os.close(self._claims)


# ---- the consumer's end ----


class ConsumerEnd:
    """A consumer's end: its own 0MQ context, made after the fork.

    Args:
        watched: a file descriptor (the lifeline) that ends a wait for jobs.
    """

    def __init__(self, folder: str, number: int, watched: int) -> None:
        path = claims_path(folder, number)
        os.mkfifo(path, 0o600)
        self._claims = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._folder = folder
        self._context = zmq.Context(io_threads=1)
        self._jobs = self._context.socket(zmq.PULL)
        self._jobs.setsockopt(zmq.RCVHWM, 0)
        self._jobs.setsockopt(zmq.LINGER, 0)
        self._jobs.bind("ipc://" + jobs_path(folder, number))
        self._results: zmq.Socket[bytes] | None = None
        self._front = -1  # the generation of the front that `_results` is connected to
        self._claim = 0  # a number that was read and whose job has not come yet
        self._poller = zmq.Poller()
        self._poller.register(self._jobs, zmq.POLLIN)
        self._poller.register(watched, zmq.POLLIN)

    def wait(self) -> None:
        """Wait until there is a job or the watched descriptor is readable."""
        self._poller.poll()

    def recv(self) -> tuple[int, bytes] | None:
        """Return the number and payload of the next job that is to be run, or None if none has come."""
        try:
            while True:
                data = self._jobs.recv(zmq.NOBLOCK)
                number, apart = JOB.unpack_from(data)
                payload = self._jobs.recv(zmq.NOBLOCK) if apart else data[JOB.size :]
                if self._is_mine(number):
                    return number, payload
        except zmq.Again:
            return None

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

    def send(self, number: int, begun: int, ran: int, code: int, body: bytes | memoryview) -> None:
        """Send a job's result to the front that sent the job."""
        results = self._connected(generation_of(number))
        if len(body) < APART:
            results.send(RESULT.pack(number, begun, ran, code, 0) + body)
        else:
            results.send(RESULT.pack(number, begun, ran, code, 1), zmq.SNDMORE)
            # only what cannot change later may be sent without a copy
            results.send(body, 0, copy=not isinstance(body, bytes))

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
        os.close(self._claims)
        self._jobs.close()
        if self._results is not None:
            self._results.close()
        self._context.term()
