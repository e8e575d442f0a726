"""The user's `Consumer`, and its life in a process of its own after the fork."""

from __future__ import annotations

import inspect
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from . import logs, outcome
from .forkwatch import ForkWatch
from .scoreboard import BEGUN, DONE, JOB, Outbox
from .wire import MAX_U32, Kind, Place

if TYPE_CHECKING:
    from .limits import Limits
    from .links import ConsumerEnd
    from .process import Lifeline

log = logging.getLogger(__name__)

Handler = Callable[[bytes], Any]
_LOOK = 50_000_000  # nanoseconds after which a consumer that is never idle looks at its lifeline


class Consumer:
    """What to run: give it a handler, or subclass it and write `handle`.

    Args:
        handler: called with each request as `bytes`; returns the reply, anything bytes-like. If it is a
            generator function, each thing that it yields is sent as a part of the reply.
            May be a function, a closure or a bound method.
    """

    def __init__(self, handler: Handler | None = None) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"handler must be callable, not {type(handler).__name__}")
        if handler is None and type(self).handle is Consumer.handle:
            raise TypeError("give Consumer a handler, or write handle(message) in a subclass")
        self.handler = handler

    def handle(self, message: bytes) -> Any:
        """Return the reply to one request, anything bytes-like. An exception is the caller's error."""
        assert self.handler is not None
        return self.handler(message)

    def setup(self) -> None:
        """Run once in each consumer process, before its first request: open a database, warm a model."""

    def teardown(self) -> None:
        """Run once in each consumer process, after its last request, if it leaves in order."""


def describe(consumer: Consumer) -> str:
    """Say in one line what a consumer runs and where that is written."""
    what: Any = consumer.handler if consumer.handler is not None else type(consumer)
    name = getattr(what, "__qualname__", type(what).__qualname__)
    kind = "Consumer" if consumer.handler is None else "handler"
    try:
        lines = inspect.getsourcelines(what)[1]
        return f"{kind} {name} ({inspect.getsourcefile(what)}, line {lines})"
    except (TypeError, OSError):  # built in, or an object
        return f"{kind} {name} (of {getattr(what, '__module__', type(what).__module__)})"


def run(
    consumer: Consumer, end: ConsumerEnd, lifeline: Lifeline, slot: memoryview, outbox: Outbox, limits: Limits
) -> int:
    """Live as one consumer: set up, say ready, run jobs until told to leave. Returns the exit code."""
    _reseed()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # what a handler prints is seen when it prints it
    try:
        consumer.setup()
    except BaseException as error:
        text = f"setup failed: {one_line(error)}"
        lifeline.send(Kind.SETUP_FAILED, message=text, traceback=traceback.format_exc())
        end.close()
        return 1
    lifeline.send(Kind.READY)
    handle = consumer.handle if type(consumer).handle is not Consumer.handle else consumer.handler
    assert handle is not None
    _serve(handle, end, lifeline, slot, outbox, limits)
    end.close()  # before teardown, so that a reply does not wait for it
    try:
        consumer.teardown()
    except Exception:
        log.exception("consumer (pid %d): teardown failed", os.getpid())
    return 0


def _serve(
    handle: Handler, end: ConsumerEnd, lifeline: Lifeline, slot: memoryview, outbox: Outbox, limits: Limits
) -> None:
    clock = time.monotonic_ns
    forks = ForkWatch()
    max_message = limits.max_message
    worn_at = round(limits.max_requests * random.uniform(0.9, 1.1)) if limits.max_requests else -1
    looked = clock()
    while True:
        job = end.recv()
        if job is None:
            end.wait()
        now = clock()
        leaving = False
        if job is None or now - looked > _LOOK:
            looked = now
            records = lifeline.recv()
            leaving = records is None or any(record.kind is Kind.LEAVE for record in records)
        if job is not None:  # also when leaving: it is claimed, nobody else would run it
            number, request = job
            logs.request = end.name(number)
            slot[BEGUN] = begun = clock()
            slot[JOB] = number
            payload = end.fetch(number, request) if isinstance(request, Place) else request
            if payload is None:  # of a front that died
                slot[JOB] = 0
                logs.request = None
                if leaving:
                    return
                continue
            code, body = outcome.of_call(handle, payload, max_message, forks)
            if streamed := code == outcome.STREAM:
                end.begin_stream()
                code, body = outcome.of_stream(body, partial(end.send_part, number, begun), max_message, forks)
            ran = min((clock() - begun) // 1000 or 1, MAX_U32)
            # not the end of a stream: its parts may still be with the 0MQ thread, and it alone would look whole
            noted = not streamed and outbox.put(number, begun, ran, code, body)
            place = None
            if isinstance(request, Place) and not (code or noted or streamed or limits.retries):
                place = end.put(request, body)  # unless the request may have to be run again
            slot[DONE] = done = slot[DONE] + 1
            slot[JOB] = 0
            logs.request = None
            if done == worn_at:  # it serves on until its successor is ready
                lifeline.send(Kind.CONSUMER_WORN, why=f"it has served {done} requests (--max-requests)")
            if place is None:
                end.send(number, begun, ran, code, body, noted=noted)
            else:
                end.send_placed(number, begun, ran, place)
            del job, request, payload, body  # nothing of it is kept while waiting for the next
        if leaving:
            return


def one_line(error: BaseException) -> str:
    """Say in one line what was raised and in which line of the user's code."""
    try:
        text = " ".join(str(error).split())[:1000]
    except Exception:
        text = "its message cannot be shown: __str__ raised"
    return f"{type(error).__name__}{': ' + text if text else ''}{place(error)}"


def place(error: BaseException) -> str:
    """Name the innermost line of a traceback that is neither gaspar's nor the import system's: " (file, line 3)"."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    own = os.path.dirname(__file__) + os.sep
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((own, "<frozen")) and f"{os.sep}importlib{os.sep}" not in frame.filename:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def _reseed() -> None:
    """Give each consumer random numbers of its own, whatever the handler's module did to the generators."""
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
