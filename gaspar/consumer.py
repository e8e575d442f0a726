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
from typing import TYPE_CHECKING, Any

from .errors import Code, failure
from .process import wait_readable
from .scoreboard import BEGUN, DONE, JOB, Outbox
from .wire import MAX_U32, Kind

if TYPE_CHECKING:
    from .limits import Limits
    from .links import ConsumerEnd
    from .process import Lifeline

log = logging.getLogger(__name__)

Handler = Callable[[bytes], Any]
Body = bytes | memoryview
_LOOK = 50_000_000  # nanoseconds after which a consumer that is never idle looks at its lifeline


class Consumer:
    """What to run: give it a handler, or subclass it and write `handle`.

    Args:
        handler: called with each request as `bytes`; returns the reply, anything bytes-like.
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
    forks = _ForkWatch()
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
            number, payload = job
            slot[BEGUN] = begun = clock()
            slot[JOB] = number
            code, body = _call(handle, payload, max_message, forks)
            ran = min((clock() - begun) // 1000, MAX_U32)
            outbox.put(number, begun, ran, code, body)
            slot[DONE] = done = slot[DONE] + 1
            slot[JOB] = 0
            if done == worn_at:  # it serves on until its successor is ready
                lifeline.send(Kind.CONSUMER_WORN, why=f"it has served {done} requests (--max-requests)")
            end.send(number, begun, ran, code, body)
            del job, payload, body  # nothing of it is kept while waiting for the next
        if leaving:
            return


def _call(handle: Handler, payload: bytes, max_message: int, forks: _ForkWatch) -> tuple[int, Body]:
    """Run the handler. Returns (0, the reply) or (an error code, its JSON detail)."""
    error: BaseException | None = None
    reply: Any = None
    try:
        reply = handle(payload)
    except BaseException as raised:  # SystemExit too: a handler does not decide over the consumer
        error = raised
    if forks.noted:
        forks.check()
    if error is not None:
        log.error("handler raised %s", type(error).__name__, exc_info=error)
        return _raised(error)
    if type(reply) is not bytes:
        try:
            reply = memoryview(reply).cast("B")
        except TypeError:
            hint = "; encode it first" if isinstance(reply, str) else ""
            return _bad_reply(f"handler returned {_shown(reply)}, not bytes or anything bytes-like{hint}")
    if len(reply) > max_message:
        return _bad_reply(f"handler returned {len(reply)} bytes, {max_message} allowed (--max-message)")
    return 0, reply


def _raised(error: BaseException) -> tuple[int, bytes]:
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be shown: __str__ raised"
    story = "".join(traceback.format_exception(error))
    why = failure(Code.HANDLER_ERROR, message, type=kind, traceback=story)
    return int(why.code), why.detail


def _shown(reply: object) -> str:
    if reply is None:
        return "None"
    try:
        text = repr(reply)
    except Exception:
        text = "?"
    kind = type(reply).__name__
    return f"{kind} {text if len(text) <= 80 else text[:77] + '...'}"


def _bad_reply(message: str) -> tuple[int, bytes]:
    log.error("%s", message)
    why = failure(Code.BAD_REPLY, message)
    return int(why.code), why.detail


class _ForkWatch:
    """Notices a process that the handler forked and let return: it is not to live on as a second consumer.

    Such a child ends where it comes out of the handler, and its parent with it: nobody knows which
    of the two the reply is from. A pipe from each forked child tells: a byte says that it returned,
    end-of-file that it went its own way (ended, or executed something).
    """

    EXIT = 71  # exit status of a consumer, and of the child, whose handler let a child return
    _PATIENCE = 50  # milliseconds to wait for a child that neither returned nor ended

    def __init__(self) -> None:
        self.noted = False
        self._children: list[int] = []  # read ends
        self._pipe: tuple[int, int] = (-1, -1)
        self._tell = -1  # in a child: the write end
        os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def _before(self) -> None:
        self._pipe = os.pipe()

    def _in_parent(self) -> None:
        reader, writer = self._pipe
        os.close(writer)
        self._children.append(reader)
        self.noted = True

    def _in_child(self) -> None:
        reader, self._tell = self._pipe
        os.close(reader)
        for other in self._children:
            os.close(other)
        self._children.clear()
        self.noted = True

    def check(self) -> None:
        """Look, after the handler has returned; ends the process if a child returned as well."""
        if self._tell >= 0:
            os.write(self._tell, b"!")
            os._exit(self.EXIT)
        children, self._children = self._children, []
        self.noted = False
        for reader in children:
            returned = wait_readable([reader], self._PATIENCE / 1000) and os.read(reader, 1)
            os.close(reader)
            if returned:
                log.error("handler forked and let the child return; this consumer (pid %d) ends", os.getpid())
                os._exit(self.EXIT)


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
