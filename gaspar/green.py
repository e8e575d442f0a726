"""The one place that imports eventlet: what the front uses of it. Imported in the front's process only."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")  # the front looks up no names; halves the import
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # docs/design.rst says why we use it
    import eventlet
    from eventlet import event, greenthread, hubs

log = logging.getLogger(__name__)

_MOST_HTTP, _HTTP_TIME = 16, 10.0  # requests at once; seconds that a client may be silent
_LONGEST = 1e6  # seconds to wait in one go; epoll_wait takes no more than 2**31 milliseconds


def start() -> None:
    """Begin with a hub of this process's own: an inherited one shares its epoll set with the parent."""
    hubs.use_hub()


def watch(fd: int, callback: Callable[[], None], *, write: bool = False) -> Callable[[], None]:
    """Call `callback` from the hub whenever the descriptor is readable, or writable; it must not wait for anything.

    Returns:
        A function that ends this.
    """

    watching = True

    def on_ready(_fd: int) -> None:
        if not watching:  # it has ended in this very turn of the hub, which had seen the event before
            return
        try:
            callback()
        except Exception:
            log.exception("unexpected error")

    def stop() -> None:
        nonlocal watching
        watching = False
        hub.remove(listener)

    hub = hubs.get_hub()
    listener = hub.add(hub.WRITE if write else hub.READ, fd, on_ready, on_ready, None)
    return stop


def wait_readable(fd: int, seconds: float) -> bool:
    """Let others run until the descriptor is readable. False if `seconds` have passed."""
    return _wait(seconds, fd, read=True)


def wait_writable(fd: int, seconds: float) -> bool:
    """Let others run until the descriptor is writable. False if `seconds` have passed."""
    return _wait(seconds, fd, write=True)


class _TimeUp(Exception):
    pass


def _wait(seconds: float, fd: int, **direction: bool) -> bool:
    try:
        hubs.trampoline(fd, timeout=min(max(0.0, seconds), _LONGEST), timeout_exc=_TimeUp, **direction)
    except _TimeUp:
        return False
    return True


def pause(seconds: float) -> None:
    """Let others run for a while; 0: for one turn of the hub."""
    eventlet.sleep(seconds)


def rest(seconds: float) -> None:
    """Let nobody run, this process's green threads included, so that events gather."""
    time.sleep(seconds)


def spawn(function: Callable[..., None], *args: Any) -> Any:
    """Run a function as a green thread, which may wait. Returns what `kill` takes."""

    def run() -> None:
        try:
            function(*args)
        except greenthread.greenlet.GreenletExit:
            pass  # killed; eventlet would keep the traceback, and with it all that the function held
        except Exception:
            log.exception("unexpected error")

    return eventlet.spawn(run)


def kill(thread: Any) -> None:
    """End a green thread where it waits."""
    eventlet.kill(thread)


def later(seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` from the hub in `seconds`; it must not wait for anything.

    Returns:
        A function that prevents it; of no effect afterwards.
    """
    timer: Any = None

    def arm(left: float) -> None:
        nonlocal timer
        timer = hubs.get_hub().schedule_call_global(min(left, _LONGEST), on_time, left - _LONGEST)

    def on_time(left: float) -> None:
        if left > 0:
            arm(left)
            return
        try:
            callback()
        except Exception:
            log.exception("unexpected error")

    arm(seconds)
    return lambda: timer.cancel()


def serve_http(listener: socket.socket, application: Callable[..., Any]) -> None:
    """Answer HTTP requests by a WSGI application, in green threads of their own."""
    from eventlet import greenio, wsgi

    sock = greenio.GreenSocket(listener)
    # few and short: who asks is a machine that looks again in a moment
    spawn(lambda: wsgi.server(sock, application, log_output=False, max_size=_MOST_HTTP, socket_timeout=_HTTP_TIME))


class Latch:
    """Holds the main green thread until it is opened."""

    def __init__(self) -> None:
        self._event = event.Event()

    def open(self) -> None:
        """Let the waiter go; more than once does no harm."""
        if not self._event.ready():
            self._event.send(None)

    def wait(self) -> None:
        """Let others run until it is open."""
        self._event.wait()


monotonic, monotonic_ns = time.monotonic, time.monotonic_ns
