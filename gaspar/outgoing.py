"""What a framed client is to get: gathered over a turn of the hub, then sent as the kernel takes it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from . import green

if TYPE_CHECKING:
    from .dispatch import Job

_MOST_UNSENT = 1024 * 1024  # bytes; with more, and more than one answer, it is full
_JOIN = 64 * 1024  # bytes; longer answers are not copied behind their header
_MOST_BUFFERS = 512  # per call; IOV_MAX is 1024 on Linux
_TURN = 4 * 1024 * 1024  # bytes written before others have their turn


class Owner(Protocol):
    """What hears of it."""

    def on_credit(self, job: Job, size: int) -> None:
        """The kernel has a part of a streamed reply, of so many bytes."""

    def on_sent(self, size: int) -> None:
        """The kernel has taken so many bytes more."""

    def on_held(self, more: int) -> None:
        """So many bytes more wait for the client; negative: fewer."""

    def on_blocked(self) -> None:
        """The client does not take what there is; called again when more has come to it."""

    def on_all_sent(self) -> None:
        """The kernel has all there was."""

    def on_stuck(self) -> None:
        """The client has taken nothing for as long as it may."""

    def on_lost(self, error: OSError) -> None:
        """The client is gone."""


class Outgoing:
    """The writing half of one connection.

    Args:
        patience: seconds that the client may take nothing.
    """

    def __init__(self, owner: Owner, sock: socket.socket, patience: float) -> None:
        self.unsent = 0  # bytes
        self.held = 0  # bytes of them that the owner has heard of: those that the client did not take at once
        self.moved = green.monotonic()  # when the client last took something; seconds, monotonic
        self._owner = owner
        self._sock = sock
        self._patience = patience
        self._buffers: deque[bytes | memoryview] = deque()
        self._sent = 0  # bytes, ever
        self._parts: deque[tuple[int, Job, int]] = deque()  # of streams: what is sent when it is out, whose, bytes
        self._stop_watching: Callable[[], None] | None = None  # while the client does not take what there is
        self._stop_timer: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """True if nothing more is to be made for this client: more than 1 MiB is unsent, and no single answer."""
        return self.unsent > _MOST_UNSENT and len(self._buffers) > 2

    def put(self, head: bytes, body: bytes | memoryview = b"") -> bool:
        """Take in a frame. True if it is the first, so that `flush` is to be called when the turn is over."""
        first = not self.unsent
        size = len(body)
        self._buffers.append(head)
        if size:
            self._buffers.append(memoryview(body) if size > _JOIN else body)
        self.unsent += len(head) + size
        if self._stop_watching is not None:
            self._on_blocked()
        return first

    def mark(self, job: Job, size: int) -> None:
        """What was put in last is a part of a job's streamed reply."""
        self._parts.append((self._sent + self.unsent, job, size))

    def flush(self) -> None:
        """Send what has gathered, as far as the kernel takes it."""
        if self._stop_watching is None and self.unsent:
            self._write()

    def close(self) -> None:
        """Forget all."""
        if self._stop_watching is not None:
            self._stop_waiting()
        self._parts.clear()
        self._buffers.clear()
        self.unsent = 0
        self._tell_what_is_held()

    def _write(self) -> None:
        left = _TURN
        before = self._sent
        try:
            while self.unsent and left > 0:
                sent = self._send_joined() if self.unsent <= _JOIN else self._send_some()
                self.unsent -= sent
                self._sent += sent
                left -= sent
                self.moved = green.monotonic()
        except BlockingIOError:
            pass
        except OSError as error:
            self._owner.on_lost(error)
            return
        self._owner.on_sent(self._sent - before)
        while self._parts and self._parts[0][0] <= self._sent:
            _, job, size = self._parts.popleft()
            self._owner.on_credit(job, size)
        if self.unsent:
            self._wait()
            return
        if self._stop_watching is not None:
            self._stop_waiting()
            self._tell_what_is_held()
        self._owner.on_all_sent()

    def _send_joined(self) -> int:
        data = b"".join(self._buffers)
        sent = self._sock.send(data, socket.MSG_DONTWAIT)
        self._buffers.clear()
        if sent < len(data):
            self._buffers.append(memoryview(data)[sent:])
        return sent

    def _send_some(self) -> int:
        buffers = self._buffers
        some = list(buffers) if len(buffers) <= _MOST_BUFFERS else [buffers[each] for each in range(_MOST_BUFFERS)]
        left = sent = self._sock.sendmsg(some, [], socket.MSG_DONTWAIT)
        while left:
            size = len(buffers[0])
            if size > left:
                buffers[0] = memoryview(buffers[0])[left:]
                break
            buffers.popleft()
            left -= size
        return sent

    # ---- a client that does not take it ----

    def _wait(self) -> None:
        if self._stop_watching is None:
            self._stop_watching = green.watch(self._sock.fileno(), self._write, write=True)
            self._stop_timer = green.later(self._patience, self._look_if_stuck)
        self._on_blocked()

    def _on_blocked(self) -> None:
        self._tell_what_is_held()
        self._owner.on_blocked()

    def _stop_waiting(self) -> None:
        assert self._stop_watching is not None and self._stop_timer is not None
        self._stop_watching()
        self._stop_timer()
        self._stop_watching = None

    def _look_if_stuck(self) -> None:
        idle = green.monotonic() - self.moved
        if idle >= self._patience:
            self._owner.on_stuck()
        else:
            self._stop_timer = green.later(self._patience - idle, self._look_if_stuck)

    def _tell_what_is_held(self) -> None:
        if self.unsent != self.held:
            more, self.held = self.unsent - self.held, self.unsent
            self._owner.on_held(more)
