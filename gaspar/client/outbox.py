"""What one connection has to send: handed to the kernel at once as far as it takes it, the rest in the background.

No caller ever waits for a daemon to read. What the kernel does not take a thread sends, which lives as long as
something is left. Which requests there are its connection knows.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

from .forked import park
from .pending import Call

Pieces = list[bytes | memoryview]


class _Frame:
    """One frame that the kernel has not taken whole yet."""

    __slots__ = ("begun", "call", "pieces")

    def __init__(self, call: Call | None, pieces: Pieces, begun: bool) -> None:
        self.call = call
        self.pieces = pieces
        self.begun = begun  # has to be sent to its end


class Outbox:
    """The sending side of a connection.

    Args:
        name: for the thread.
        broken: is told, once or more, that sending has failed.
        released: is called whenever the background thread has given the lock back.
    """

    def __init__(self, name: str, broken: Callable[[], None], released: Callable[[], None]) -> None:
        self.lock = threading.Lock()  # never held while waiting for the daemon
        self.error: OSError | None = None  # why sending has failed
        self.disowned = False  # it is a forked child's copy of its parent's
        self._name = name
        self._broken = broken
        self._released = released
        self._frames: deque[_Frame] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def attach(self, patient: socket.socket, hasty: socket.socket) -> None:
        """Send to a socket from now on; two objects for it, of which one waits and the other never does."""
        self._patient, self._hasty = patient, hasty

    def put(self, call: Call | None, pieces: Pieces) -> None:
        """Send a frame, or as much of it as the kernel takes now; `lock` is held.

        A call is marked as sent when its last byte is with the kernel.
        """
        if self._closed:
            return
        counts: list[int] = []
        try:
            while pieces and not self._frames:
                # one step for a signal's handler that raises: once it is sent, it is known how much of it is
                counts.extend(map(self._hasty.send, pieces[:1]))
                if counts[-1] < len(pieces[0]):
                    pieces[0] = memoryview(pieces[0])[counts[-1] :]
                    break
                del pieces[0]
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        except BaseException:
            if pieces and not (len(pieces) == 1 and counts and counts[-1] == len(pieces[0])):
                self._broken()  # in the middle of a frame, perhaps
            elif call is not None:
                call.sent = True
            raise
        if not pieces:
            if call is not None:
                call.sent = True
            return
        self._frames.append(_Frame(call, pieces, begun=bool(counts)))
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:
                self._broken()  # nobody sends the rest
                raise
            self._thread = thread

    def withdraw(self, call: Call) -> bool:
        """Do not send a request; False if it is too late for that. `lock` is held."""
        for frame in self._frames:
            if frame.call is call and not frame.begun:
                self._frames.remove(frame)
                return True
        return False

    def close(self) -> None:
        """Send nothing any more, and wait until nothing is being sent; the socket was shut down."""
        with self.lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _fail(self, error: OSError) -> None:
        self.error = error
        self._broken()

    def _run(self) -> None:
        done = False
        try:
            while not done:
                with self.lock:
                    done = not self._frames
                    if done:
                        self._thread = None
                    else:
                        frame = self._frames[0]
                        frame.begun = True
                self._released()
                if not done:
                    self._send(frame)
        except OSError as error:
            self._fail(error)
        except BaseException:
            self._broken()
            raise
        if self.disowned:
            park()

    def _send(self, frame: _Frame) -> None:
        for piece in frame.pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[self._patient.send(rest) :]
        with self.lock:
            self._frames.popleft()
            if frame.call is not None:
                frame.call.sent = True
