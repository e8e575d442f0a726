"""Takes clients in: accepts as many as may be connected, admits as many requests as may wait or be read.

What is refused is refused at once and by name; what clients do not take of their replies is bounded too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import sys
from collections.abc import Callable, Collection
from typing import Any, Protocol

from . import green
from .dispatch import Dispatcher, Job
from .errors import Code, Overloaded
from .framed import Framed, greeting
from .frames import Lend, Payload, nothing
from .limits import Limits
from .oneshot import OneShot, UnixOneShot

log = logging.getLogger(__name__)

_BATCH = 64  # connections accepted before others have their turn
_ALL = 1_000_000
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE = 0.1  # seconds without accepting when descriptors have run out
_OWN_FILES = 200  # descriptors kept for listeners, consumers' links and the like
_STALE = 1.0  # seconds without a byte after which a client is not waited for, when it is in the way
_LOOK = 0.05  # seconds between looks at such clients


def raise_file_limit() -> None:
    """Let this process have as many descriptors as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: "infinity" is more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _affordable_connections() -> int:
    """Say how many clients the file limit allows, beside what the front needs itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (2**20 if soft == resource.RLIM_INFINITY else soft) - _OWN_FILES)


class Desk(Protocol):
    """What the reception needs of the front."""

    def on_requests(self) -> None:
        """Requests may have come in, or what held them back is gone."""

    def expect(self, job: Job) -> None:
        """A job has a deadline."""

    def cancel(self, jobs: Collection[Job]) -> list[tuple[int, int]]:
        """Nobody waits for these jobs any more. Returns how long each waited and ran, microseconds."""

    def refused(self, code: Code) -> None:
        """A request was not let in."""

    def credit(self, job: Job, size: int) -> None:
        """A client has taken a part of a streamed reply."""


class Reception:
    """The door of one front; what `oneshot.Door` and `framed.Door` ask for.

    Args:
        server: the daemon's name and version, for its framed clients.
        lend: returns memory for a long request, or None.
    """

    def __init__(self, limits: Limits, dispatcher: Dispatcher, desk: Desk, server: str, lend: Lend = nothing) -> None:
        self.limits = limits
        self.lend = lend
        self.busy: set[OneShot | Framed] = set()  # clients that a drain waits for
        self.framed: set[Framed] = set()
        self.greeting = greeting(server, limits)
        self.draining = False
        self.on_requests, self.expect, self.refused = desk.on_requests, desk.expect, desk.refused
        self.cancel, self.credit = desk.cancel, desk.credit
        self._dispatcher = dispatcher
        self._unflushed: list[Framed] = []
        self._gathering = False
        self.bytes_in = self.bytes_out = 0  # of what clients sent and took
        self._accepted = self._turned_framed = 0  # connections, ever
        self._listeners: list[socket.socket] = []
        self._stop_accepting: list[Callable[[], None]] = []
        self._connections = 0
        # never the last descriptors: libzmq aborts when it gets none
        self._max_connections = min(limits.max_connections or sys.maxsize, _affordable_connections())
        self._max_bytes = max(limits.max_waiting_bytes, limits.max_message)
        self._reading_bytes = 0  # of requests that are announced and not complete
        self._unsent_bytes = 0  # of replies that clients have not taken
        self._pressed = False  # too many of them: no job is sent
        self._refusing = False  # said so
        self._said_full = False  # that more clients come than may be connected

    # ---- connections ----

    def open(self, listeners: list[socket.socket]) -> None:
        """Accept clients."""
        self._listeners = listeners
        for listener in listeners:
            self._start_accepting(listener)

    def close(self) -> None:
        """Accept what is pending, then listen no more; framed clients are told to go."""
        self._stop_all_accepting()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._on_accept(listener, _ALL)
            listener.close()
        self.draining = True
        for client in list(self.framed):
            client.go_away()

    def _start_accepting(self, listener: socket.socket) -> None:
        self._stop_accepting.append(green.watch(listener.fileno(), lambda: self._on_accept(listener, _BATCH)))

    def _on_accept(self, listener: socket.socket, most: int) -> None:
        kind = UnixOneShot if listener.family == socket.AF_UNIX else OneShot
        for _ in range(most):
            if self._connections >= self._max_connections:
                self._pause_accepting(f"{self._connections} are connected (--max-connections, or the file limit)")
                break
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except ConnectionError:
                continue
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._pause_accepting(str(error.strerror))
                green.later(_ACCEPT_PAUSE, self._resume_accepting)
                break
            self._connections += 1
            self._accepted += 1
            kind(self, sock, peer).begin()
        self.on_requests()

    def _pause_accepting(self, why: str) -> None:
        """Accept no client until one leaves, or after a pause."""
        if not self._said_full:
            log.warning("clients wait in the kernel's backlog: %s", why)
            self._said_full = True
        self._stop_all_accepting()

    def _stop_all_accepting(self) -> None:
        for stop in self._stop_accepting:
            stop()
        self._stop_accepting.clear()

    def _resume_accepting(self) -> None:
        if not self._stop_accepting and self._connections < self._max_connections:
            for listener in self._listeners:
                self._start_accepting(listener)

    def go_on_framed(self, sock: socket.socket, peer: Any, data: bytes) -> None:
        """A connection has turned out to be one of the framed protocol; `data` came behind its name."""
        self._turned_framed += 1
        Framed(self, sock, peer, data)

    def connections(self) -> dict[str, Any]:
        """Count them by protocol: those that there are, and `accepted`, those that there have been."""
        framed, ever = len(self.framed), self._turned_framed
        accepted = {"one_shot": self._accepted - ever, "framed": ever}
        return {"one_shot": self._connections - framed, "framed": framed, "accepted": accepted}

    def closed(self) -> None:
        """A client's connection is gone."""
        self._connections -= 1
        if not self._stop_accepting:
            self._resume_accepting()

    # ---- requests ----

    def admit(self, size: int) -> None:
        """Let a request of so many bytes come in.

        Raises:
            Overloaded: too many requests, or bytes of them, wait already.
        """
        self._check(size)
        self._reading_bytes += size

    def take(self, payload: Payload, client: Framed, tag: int, name: str) -> Job:
        """Let in a request that is complete and was not announced.

        Raises:
            Overloaded: as `admit`.
        """
        self._check(len(payload))
        return self._dispatcher.submit(payload, client, green.monotonic(), tag, name)

    def _check(self, size: int) -> None:
        held = self._dispatcher.waiting_bytes + self._reading_bytes
        waiting, most = self._dispatcher.waiting, self.limits.max_waiting
        # of a batch none has been given to a consumer yet
        if waiting >= most and waiting >= most + self._dispatcher.room:
            text = f"{min(waiting, most)} requests wait, {most} allowed (--max-waiting)"
        elif held + size > self._max_bytes:
            allowed = f"{self._max_bytes} allowed (--max-waiting-bytes)"
            text = f"requests of {held} bytes wait or are being read, {size} more announced, {allowed}"
        else:
            self._refusing = False
            return
        if not self._refusing:
            log.warning("overloaded: %s; more are refused", text)
            self._refusing = True
        raise Overloaded(text)

    def withdraw(self, size: int) -> None:
        """A request that was admitted will never be complete."""
        self._reading_bytes -= size

    def submit(self, payload: Payload, client: OneShot | Framed, tag: int = 0, name: str = "") -> Job:
        """A request that was admitted is complete."""
        self._reading_bytes -= len(payload)
        return self._dispatcher.submit(payload, client, green.monotonic(), tag, name)

    # ---- replies ----

    def to_flush(self, client: Framed) -> None:
        """Send what a client has to get when the turn of the hub is over, or when `flush` is called."""
        if not self._unflushed and not self._gathering:
            green.later(0, self.flush)
        self._unflushed.append(client)

    def gather(self) -> None:
        """Answers come, and `flush` will be called when they have."""
        self._gathering = True

    def flush(self) -> None:
        """Send what has gathered."""
        self._gathering = False
        clients, self._unflushed = self._unflushed, []
        for client in clients:
            client.flush()

    def owe(self, size: int) -> None:
        """A reply of so many bytes is held until its client has taken it; negative: it is let go."""
        self._unsent_bytes += size
        if size < 0 and self._pressed and self._unsent_bytes <= self._max_bytes:
            self._pressed = False
            self.on_requests()

    def _on_pressure(self) -> None:
        """Too many bytes of replies are held: clients that take nothing of theirs are let go."""
        if not self._pressed:
            return
        now = green.monotonic()
        for client in [each for each in self.busy if each.holds and now - each.moved > _STALE]:
            log.warning("%s: takes nothing of its reply while %d bytes are held", client, self._unsent_bytes)
            client.abort()
        green.later(_LOOK, self._on_pressure)

    def holds_too_much(self) -> bool:
        """True if clients have to take their replies before more are made; `on_requests` says when they have."""
        if self._unsent_bytes <= self._max_bytes:
            return False
        if not self._pressed:
            self._pressed = True
            self._on_pressure()
        return self._pressed

    def end_stale_readers(self, now: float) -> None:
        """Let go clients that are in the middle of a request and send nothing, since the daemon is to stop."""
        for client in [each for each in self.busy if each.reading and now - each.moved > _STALE]:
            client.abort()
