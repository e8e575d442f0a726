"""The command `gaspar-call`: sends messages to a daemon and writes the replies, or sends them often and measures."""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import itertools
import json
import math
import os
import queue
import sys
import textwrap
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import click

from . import __version__
from .address import parse
from .client import Client, request
from .errors import AddressError, Code, GasparError, RequestError
from .folders import controls
from .limits import MAX_WIRE_MESSAGE

Submit = Callable[[bytes | bytearray], "Future[Any]"]

_STDIN = "-"
_HEALTH_TIME = 5.0  # seconds; who asks for health wants to know now
_LONGEST = 1e6  # seconds, eleven days
_CHUNK = 1024 * 1024  # bytes
_AHEAD = 64 * 1024 * 1024  # bytes of files that are read before the reply to the first of them is there
_LOST = "connection lost"
_HOPELESS = 100  # requests
_PER_CONNECTION = 128  # requests in flight; half of what a daemon takes

_EXAMPLES = """\b
Examples:
  printf hello | gaspar-call 127.0.0.1:10123
  gaspar-call unix:/run/app.sock report.xml > report.html
  gaspar-call -v --timeout 5 10.0.0.7:10123 *.xml > all.html
  gaspar-call --repeat 10000 --concurrency 32 127.0.0.1:10123 report.xml"""

_EXIT_CODES = """\b
Exit codes, with several files that of the first one that failed:
  0   all replies are there
  1   no connection, not to a gaspar daemon, or lost before the reply was whole
      (with --one-shot every failure but TIMEOUT); or no writing to standard output
  2   wrong usage, or a file that cannot be read
  10  an error that this version does not know
  11  BAD_FRAME      one side breaks the protocol
  12  TOO_BIG        the message is longer than the daemon's --max-message
  13  OVERLOADED     the daemon's waiting queue is full: try again later
  14  TIMEOUT        --timeout here, or the daemon's own limits
  15  CONSUMER_LOST  the process that ran the request died
  16  HANDLER_ERROR  the handler raised; its traceback follows
  17  BAD_REPLY      the handler returned no bytes, or too many
  18  CANCELLED
  19  SHUTTING_DOWN  the daemon is about to stop
  20  UNAVAILABLE    the daemon has no process to run the request
  130 Ctrl-C
  141 nobody reads standard output any more"""


class Exit(enum.IntEnum):
    """Exit codes of `gaspar-call`; those of a request's error are ERROR and its code on the wire."""

    DONE = 0
    LOST = 1
    USAGE = 2
    ERROR = 10
    INTERRUPTED = 130  # 128 and the signal's number, as a shell would say
    BROKEN_PIPE = 141


class _FileError(Exception):
    """A file cannot be read."""


class _OutputError(Exception):
    """Standard output cannot be written to."""


def _check_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is None:
        if not ctx.params.get("health"):
            raise click.MissingParameter(ctx=ctx, param=param)
        return _only_control()
    try:
        return str(parse(value))
    except AddressError as error:
        raise click.BadParameter(str(error)) from None


def _only_control() -> str:
    """Find the control address of the only daemon of this user."""
    found = ["unix:" + path for path in controls()]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} run: {', '.join(found)}" if found else "none does"
    raise click.UsageError(f"Name the control address: it is found if one daemon of yours runs, and {what}.")


def _check_seconds(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    if value is None or 0 < value <= _LONGEST:  # no FloatRange: it lets nan pass
        return value
    raise click.BadParameter(f"{value:g}: expected more than 0 seconds, at most {_LONGEST:.0f}")


def _check_files(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if value.count(_STDIN) > 1:
        raise click.BadParameter("standard input (-) can be read once only")
    return value or (_STDIN,)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
)
@click.argument("address", metavar="ADDRESS", callback=_check_address, required=False)
@click.argument(
    "files",
    metavar="[FILE]...",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    callback=_check_files,
)
@click.option(
    "--one-shot",
    is_flag=True,
    help="Use the one-shot protocol, a connection for each message: no reasons, no receipts.",
)
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    callback=_check_seconds,
    help="For each request, with connecting; else as long as the daemon takes.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 10**7),
    metavar="N",
    help="Measure: send each message N times and print, in place of the replies, how long they took.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="C",
    help="How many requests are in flight at once.",
)
@click.option(
    "--health",
    is_flag=True,
    is_eager=True,
    help="Ask for the daemon's health: ADDRESS is its control address, and may be left out if it is the only"
    " one of this user. Exit 0 if it is well, else 1 and the reasons.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Say on standard error the size of each message and reply, how long it waited and ran.",
)
@click.version_option(__version__, "--version", prog_name="gaspar")
def call(
    address: str,
    files: tuple[str, ...],
    one_shot: bool,
    timeout: float | None,
    repeat: int | None,
    concurrency: int,
    health: bool,
    verbose: bool,
) -> None:
    """Send each FILE to the gaspar daemon at ADDRESS and write the replies to standard output.

    ADDRESS is host:port, [v6]:port or unix:PATH. Each FILE is one message, - is standard input, and without any
    FILE standard input is the message. Replies are written in the order of the files, as they are: nothing is
    added, not even between two. Several files are sent at once; if one fails, standard error says which and why,
    and the others' replies are written all the same.
    """
    connected = _connected(address, one_shot, timeout, concurrency)
    try:
        if health:
            sys.exit(_ask_health(address, timeout))
        if repeat is not None:
            code = _measure(connected, files, repeat, concurrency)
        elif len(files) > 1:
            code = _call_all(connected, files, concurrency, verbose)
        elif one_shot:
            code = _call_one(files[0], lambda message: iter([request(address, message, timeout)]), verbose)
        else:
            with Client(address, timeout=timeout) as client:
                code = _call_one(files[0], client.stream, verbose)
    except (GasparError, _FileError) as error:
        code = _complain(error)
    except _OutputError as error:
        code = _give_up_output(error)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    sys.exit(code)


def _ask_health(address: str, timeout: float | None) -> int:
    with Client(address, timeout=timeout or _HEALTH_TIME) as client:
        reply = client.request(b"health")
    try:
        told = json.loads(reply)
        status, reasons = told["status"], [str(reason) for reason in told["reasons"]]
    except (ValueError, KeyError, TypeError):
        _say(f"{address} is no control address: it answered {bytes(reply[:50])!r}; the ready line names it")
        return Exit.LOST
    click.echo("; ".join([status, *reasons]))
    return Exit.DONE if status == "ok" else Exit.LOST


@contextlib.contextmanager
def _connected(address: str, one_shot: bool, timeout: float | None, concurrency: int) -> Iterator[Submit]:
    """Yield what sends a message, in either protocol."""
    if one_shot:
        yield _in_threads(partial(request, address, timeout=timeout), concurrency)
        return
    with Client(address, connections=math.ceil(concurrency / _PER_CONNECTION), timeout=timeout) as client:
        yield client.submit


def _in_threads(ask: Callable[[bytes | bytearray], bytes], count: int) -> Submit:
    """Return what calls `ask` in one of so many threads.

    They are not waited for at the end of the program, as an executor's would be: Ctrl-C ends it at once.
    """
    orders: queue.SimpleQueue[tuple[Future[Any], bytes | bytearray]] = queue.SimpleQueue()

    def run() -> None:
        while True:
            future, message = orders.get()
            try:
                future.set_result(ask(message))
            except Exception as error:  # whatever it is, somebody waits
                future.set_exception(error)

    def submit(message: bytes | bytearray) -> Future[Any]:
        future: Future[Any] = Future()
        orders.put((future, message))
        return future

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    return submit


def _call_one(name: str, stream: Callable[[bytes | bytearray], Iterator[bytes]], verbose: bool) -> int:
    message = _read(name)
    size, code = 0, 0
    answer: object = None
    try:
        for answer in stream(message):
            _write(answer)
            size += len(answer)
    except RequestError as error:
        answer, code = error, _complain(error)
    if verbose:
        _say(_figures(len(message), size, answer))
    return code


def _call_all(
    connected: contextlib.AbstractContextManager[Submit], files: Sequence[str], in_flight: int, verbose: bool
) -> int:
    first = 0
    with connected as submit:
        for name, size, future in _answers(submit, files, in_flight):
            error = future.exception()
            reply = b"" if error else future.result()
            code = _complain(error, name) if error else Exit.DONE
            _write(reply)
            if verbose:
                _say(f"{_label(name)}: {_figures(size, len(reply), error or reply)}")
            first = first or code
    return first


def _answers(submit: Submit, files: Sequence[str], in_flight: int) -> Iterator[tuple[str, int, Future[Any]]]:
    """Send files, several at once; yield their names, sizes and answers in their order."""
    waiting: deque[tuple[str, int, Future[Any]]] = deque()
    ahead = 0  # bytes
    for name in files:
        try:
            message = _read(name)
        except _FileError as error:
            waiting.append((name, 0, _failed(error)))
        else:
            waiting.append((name, len(message), _begin(submit, message)))
            ahead += len(message)
        while waiting and (len(waiting) >= in_flight or ahead >= _AHEAD or waiting[0][2].done()):
            ahead -= waiting[0][1]
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _begin(submit: Submit, message: bytes | bytearray) -> Future[Any]:
    try:
        return submit(message)
    except GasparError as error:
        return _failed(error)


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class _Tally:
    """What came of many requests. Times are in seconds, of those that were answered with a reply."""

    def __init__(self) -> None:
        self.took = {name: array("d") for name in ("latency", "waited", "ran")}
        self.errors: dict[str, int] = {}
        self.first: BaseException | None = None
        self._seen = threading.Lock()

    def add(self, future: Future[Any], latency: float) -> None:
        """Count an answer, in whatever thread it came."""
        if future.cancelled():  # after Ctrl-C
            return
        with self._seen:
            error = future.exception()
            if error is None:
                receipt = getattr(future.result(), "receipt", ())
                for times, seconds in zip(self.took.values(), (latency, *receipt), strict=False):
                    times.append(seconds)
                return
            self.first = self.first or error
            name = _name(error) or _LOST
            self.errors[name] = self.errors.get(name, 0) + 1

    @property
    def is_hopeless(self) -> bool:
        """True if many requests lost their connection, or found none, and no other was answered."""
        return not self.took["latency"] and self.errors.get(_LOST, 0) >= _HOPELESS

    def summary(self, total: int, seconds: float, in_flight: int) -> str:
        """Lay out all of it for a person."""
        good = len(self.took["latency"])
        count = good + sum(self.errors.values())
        errors = ", ".join(f"{number} {name}" for name, number in sorted(self.errors.items())) or "none"
        lines = [
            f"requests    {count}{f' of {total}' * (count < total)} in {seconds:.2f} s, {in_flight} in flight",
            f"errors      {errors}",
            f"requests/s  {good / seconds if seconds else 0:.1f}" + (" without the errors" if self.errors else ""),
        ]
        if good:
            lines += ["", "ms     " + "".join(f"{head:>12}" for head in ("min", "p50", "p90", "p99", "max"))]
            lines += [f"{name:7}" + _row(times) for name, times in self.took.items() if times]
        return "\n".join(lines) + "\n"


def _row(times: array[float]) -> str:
    ordered = sorted(times)
    ranks = [max(0, math.ceil(share * len(ordered)) - 1) for share in (0, 0.5, 0.9, 0.99, 1)]
    return "".join(f"{ordered[rank] * 1000:12.3f}" for rank in ranks)


def _measure(
    connected: contextlib.AbstractContextManager[Submit], files: Sequence[str], repeat: int, in_flight: int
) -> int:
    messages = [bytes(_read(name)) for name in files]
    total = repeat * len(messages)
    tally = _Tally()
    code = 0
    begun = time.monotonic()
    try:
        with connected as submit, _progress(total) as show:
            orders = itertools.islice(itertools.cycle(messages), total)
            for done in _answered(submit, orders, in_flight, tally):
                show(done)
                if tally.is_hopeless:
                    break
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    _write(tally.summary(total, time.monotonic() - begun, in_flight).encode())
    if tally.first is not None:
        code = code or _complain(tally.first)
    return code


def _answered(submit: Submit, messages: Iterable[bytes], in_flight: int, tally: _Tally) -> Iterator[int]:
    """Send messages, so many at once; yield at each answer how many there are."""
    room = threading.Semaphore(in_flight)

    def send(message: bytes) -> None:
        begun = time.monotonic()

        def end(future: Future[Any]) -> None:
            tally.add(future, time.monotonic() - begun)
            room.release()

        _begin(submit, message).add_done_callback(end)

    sent = 0
    for message in messages:
        room.acquire()
        if sent >= in_flight:
            yield sent - in_flight + 1
        send(message)
        sent += 1
    for answered in range(sent - in_flight + 1, sent + 1):
        room.acquire()
        if answered > 0:
            yield answered


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield what shows how many there are, if standard error is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    step = max(1, total // 200)
    with click.progressbar(length=total, file=sys.stderr, show_pos=True, show_percent=True) as bar:

        def show(done: int) -> None:
            if done % step == 0 or done == total:
                bar.update(done - bar.pos)

        yield show


def _read(name: str) -> bytearray:
    """Read a whole file, but not much more than any daemon takes: some, like /dev/zero, have no end."""
    message = bytearray()
    try:
        with _opened(name) as file:
            while len(message) <= MAX_WIRE_MESSAGE and (part := file.read(_CHUNK)) != b"":
                if part is None:  # somebody made it non-blocking
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                message += part
    except OSError as error:
        raise _FileError(f"{_label(name)}: {error.strerror or error}") from error
    return message


def _opened(name: str) -> io.FileIO:
    """Open a file without a buffer: that would ask a terminal for a second Ctrl-D, and take no data for the end."""
    if name != _STDIN:
        return open(name, "rb", buffering=0)
    if sys.stdin is None:
        raise OSError("it is closed")
    if sys.stdin.isatty():
        _say("the message is what you type now; Ctrl-D on a line of its own ends it")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _label(name: str) -> str:
    return "standard input" if name == _STDIN else click.format_filename(name)


def _write(data: bytes | bytearray) -> None:
    # not through sys.stdout: what is left in a buffer would fail once more when Python ends, and without a buffer
    # (PYTHONUNBUFFERED) its write may take a part only
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
    except OSError as error:
        raise _OutputError from error


def _give_up_output(error: _OutputError) -> int:
    cause = error.__cause__
    if isinstance(cause, BrokenPipeError):
        return Exit.BROKEN_PIPE
    _say(f"standard output: {getattr(cause, 'strerror', None) or cause}")
    return Exit.LOST


def _say(text: str) -> None:
    click.echo(f"gaspar-call: {text}", err=True)


def _figures(sent: int, received: int, answer: object) -> str:
    text = f"{sent} bytes sent, {received} received"
    receipt = getattr(answer, "receipt", None)
    if receipt is None:
        return text
    return f"{text}; waited {receipt.waited * 1000:.3f} ms, ran {receipt.ran * 1000:.3f} ms"


def _name(error: BaseException) -> str:
    """Name a request's error as the wire does; "" for others."""
    if not isinstance(error, RequestError):
        return ""
    return error.code.name if isinstance(error.code, Code) else "unknown error"


def _shown(text: str) -> str:
    """Return a text that does nothing to a terminal: it may quote what somebody sent."""
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text)


def _complain(error: BaseException, file: str = "") -> int:
    """Say what went wrong, the daemon's own story below it; returns the exit code."""
    # args, since below Python 3.11 str() has the story too; a handler's message may have any number of lines
    message = " ".join(_shown(str(error.args[0] if error.args else type(error).__name__)).split())
    where = _label(file) if file and not isinstance(error, _FileError) else ""
    _say(": ".join(filter(None, (where, _name(error), message))))
    if not isinstance(error, RequestError):
        return Exit.USAGE if isinstance(error, _FileError) else Exit.LOST
    for title, story in (("In the handler:", error.traceback), ("Where the handler was:", error.stack)):
        if story:
            click.echo(textwrap.indent(f"{title}\n{_shown(story.rstrip())}", "  "), err=True)
    return Exit.ERROR + error.code if isinstance(error.code, Code) else Exit.ERROR
