"""The command `gaspar-top`: watches a daemon through its control address, live in a terminal or once."""

from __future__ import annotations

import codecs
import contextlib
import enum
import json
import os
import queue
import re
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .address import parse
from .client import Client
from .errors import AddressError, ConnectionLost, RequestError, RequestTimeout
from .figures import duration
from .folders import controls
from .process import Wakeup, wait_readable
from .view import Answer, Order, Pane, View

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

Effect = Callable[[], None]

_TIMEOUT = 3.0  # seconds; a daemon that is well answers within 50 ms, for a stack it takes at most 2 s
_SHORTEST, _LONGEST = 0.1, 3600.0  # seconds between two refreshes
_SHOWN = 60  # bytes of an answer that is none
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)
_KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"j": "down",
    b"\x1b[5~": "pgup",
    b"\x1b[6~": "pgdn",
    b"\x1b": "esc",
    b"\r": "enter",
    b"\n": "enter",
    b" ": "space",
    b"h": "?",
}
# what stands for a character that the terminal's encoding does not have
_PLAIN = dict(zip("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉µ·…▲▼▶↑↓", "__--==##...:::|u.~^v>^v", strict=True))

_EXAMPLES = """\b
Examples:
  gaspar-top
  gaspar-top unix:/run/app/control
  gaspar-top --json | jq .stats.waiting"""

_EXIT_CODES = """\b
Exit codes:
  0   done, or left by the key q
  1   no daemon, or no answer from it
  2   wrong usage; several daemons and no ADDRESS; rich is not installed
  130 Ctrl-C"""


class Exit(enum.IntEnum):
    """Exit codes of `gaspar-top`."""

    DONE = 0
    LOST = 1
    USAGE = 2
    SIGNAL = 128  # and the signal's number, as a shell would say


class _Trouble(Exception):
    """There are no numbers; the message says why."""

    def __init__(self, message: str, code: int = Exit.LOST) -> None:
        super().__init__(message)
        self.code = code


def _check_address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else str(parse(value))
    except AddressError as error:
        raise click.BadParameter(str(error)) from None


def _check_interval(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if _SHORTEST <= value <= _LONGEST:  # no FloatRange: it lets nan pass
        return value
    raise click.BadParameter(f"{value:g}: expected {_SHORTEST:g} to {_LONGEST:g} seconds")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
)
@click.argument("address", metavar="[ADDRESS]", required=False, callback=_check_address)
@click.option(
    "--interval",
    type=float,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    callback=_check_interval,
    help="How long until there are fresh numbers.",
)
@click.option("--once", is_flag=True, help="Print one view and end, as it does without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers once, as one JSON object.")
@click.version_option(__version__, "--version", prog_name="gaspar")
def top(address: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a gaspar daemon: how it is, what waits, and what each of its consumers does.

    ADDRESS is its control address, host:port, [v6]:port or unix:PATH; the daemon names it when it is ready. Without
    ADDRESS the only daemon of this user is taken. The key ? explains the others.
    """
    try:
        console = None if as_json else _console()
        with _Source(address) as source:
            stats, consumers = source.numbers()
            if console is None:
                click.echo(json.dumps({"stats": stats, "consumers": consumers}))
                code = int(Exit.DONE)
            elif once or not _is_live(console):
                code = _print(console, stats, consumers)
            else:
                code = _Screen(console, source, interval, stats, consumers).run()
    except _Trouble as error:
        click.echo(f"gaspar-top: {error}", err=True)
        code = error.code
    except KeyboardInterrupt:
        code = Exit.SIGNAL + signal.SIGINT
    sys.exit(code)


def _console() -> Console:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        raise _Trouble("it needs rich: pip install 'gaspar[top]' (only --json does not)", Exit.USAGE) from None
    if sys.stdout is None:
        raise _Trouble("standard output: it is closed")
    codecs.register_error("gaspar-top", _plain)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="gaspar-top")
    return Console()


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


def _is_live(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and sys.stdin is not None and sys.stdin.isatty()


def _print(console: Console, stats: Answer, consumers: Sequence[Answer]) -> int:
    from .dashboard import dashboard

    for line in dashboard(stats, consumers, View(), console.width, None):
        console.print(line)
    return Exit.DONE


class _Source:
    """Asks a daemon and waits for its answers. Without an address it looks for the daemon, again if it was lost."""

    def __init__(self, address: str | None) -> None:
        self._given = address
        self._address = ""
        self._client: Client | None = None

    def __enter__(self) -> _Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._forget()

    def numbers(self) -> tuple[Answer, list[Answer]]:
        """Return the answers to `stats` and `consumers`, or raise _Trouble."""
        try:
            stats, consumers = self._ask(b"stats", b"consumers")
        except RequestError as error:
            raise _Trouble(f"{self._address}: is this a control address? {error.args[0]}") from error
        if "server" not in stats or "consumers" not in consumers:
            raise self._no_control(json.dumps(stats).encode())
        return stats, consumers["consumers"]

    def stack(self, number: int) -> Answer:
        """Return the answer to `stack`, or one with an `error`."""
        try:
            return self._ask(b"stack %d" % number)[0]
        except (RequestError, _Trouble) as error:
            return {"number": number, "error": str(error.args[0])}

    def reload(self) -> str:
        """Order a reload; returns what to say about it."""
        try:
            self._ask(b"reload")
        except (RequestError, _Trouble) as error:
            return " ".join(f"reload: {error.args[0]}".split())
        return "reload ordered; gen tells which consumers have the new code"

    def _ask(self, *messages: bytes) -> list[dict[str, Any]]:
        try:
            if self._client is None:
                self._address = self._given or _only()
                self._client = Client(self._address, timeout=_TIMEOUT)
            replies = [bytes(future.result()) for future in [self._client.submit(each) for each in messages]]
        except (ConnectionLost, RequestTimeout) as error:
            self._forget()
            raise _Trouble(str(error.args[0])) from error
        return [self._read(reply) for reply in replies]

    def _read(self, reply: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(reply)
        except ValueError:
            raise self._no_control(reply) from None
        if not isinstance(answer, dict):
            raise self._no_control(reply)
        return answer

    def _no_control(self, reply: bytes) -> _Trouble:
        return _Trouble(f"{self._address}: this is not the control address of a daemon, it answered {reply[:_SHOWN]!r}")

    def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(wait=False)


def _only() -> str:
    """Return the control address of the only daemon of this user."""
    found = [f"unix:{path}" for path in controls()]
    if not found:
        raise _Trouble("no daemon of this user is found; name its control address: gaspar-top ADDRESS")
    if len(found) > 1:
        choices = "".join(f"\n  gaspar-top {each}" for each in found)
        raise _Trouble(f"there are {len(found)} daemons of this user, choose one:{choices}", Exit.USAGE)
    return found[0]


class _Thread:
    """Runs questions in a thread, one after the other: a daemon that does not answer must not hold up the keys."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[Callable[[], Effect]] = queue.SimpleQueue()
        self._effects: queue.SimpleQueue[Effect] = queue.SimpleQueue()
        # never closed: the thread may be in a question until the program ends
        self._reader, self._writer = os.pipe()
        threading.Thread(target=self._run, daemon=True).start()

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader

    def ask(self, question: Callable[[], Effect]) -> None:
        """Run a question in the thread; what it returns comes from `effects`."""
        self._questions.put(question)

    def effects(self) -> list[Effect]:
        """Return what has come of questions; to be called if `fileno` is readable."""
        return [self._effects.get() for _ in os.read(self._reader, 4096)]

    def _run(self) -> None:
        while True:
            self._effects.put(self._questions.get()())
            os.write(self._writer, b"!")


class _Screen:
    """The live view: waits for keys, signals, answers and time, and draws."""

    def __init__(
        self, console: Console, source: _Source, interval: float, stats: Answer, consumers: list[Answer]
    ) -> None:
        self._console = console
        self._source = source
        self._interval = interval
        self._stats = stats
        self._consumers = consumers
        self._view = View()
        self._thread = _Thread()
        self._asking = self._again = False
        self._due = time.monotonic() + interval
        self._lost: tuple[float, str] | None = None  # since when there is no answer, and why
        self._keyboard = sys.stdin.fileno()

    def run(self) -> int:
        """Show it until it is left; returns the exit code."""
        from rich.live import Live

        wakeup = Wakeup(_SIGNALS)
        while True:
            with (
                _each_key(self._keyboard),
                Live(self._picture(), console=self._console, screen=True, auto_refresh=False) as live,
            ):
                code = self._watch(live, wakeup)
            if code is not None:
                return code
            os.kill(os.getpid(), signal.SIGSTOP)  # Ctrl-Z; it goes on here

    def _watch(self, live: Live, wakeup: Wakeup) -> int | None:
        """Draw until it is left, for a while (Ctrl-Z) or for good; returns None or the exit code."""
        while True:
            live.update(self._picture(), refresh=True)
            timeout = None if self._view.paused else max(0.0, self._due - time.monotonic())
            ready = wait_readable((self._keyboard, wakeup.fileno(), self._thread.fileno()), timeout)
            for number in wakeup.notes():
                if number == signal.SIGTSTP:
                    return None
                if number != signal.SIGWINCH:
                    return Exit.SIGNAL + number
            if self._thread.fileno() in ready:
                for effect in self._thread.effects():
                    effect()
            if self._keyboard in ready and not self._press():
                return Exit.DONE
            if not self._view.paused and time.monotonic() >= self._due:
                self._refresh()

    def _press(self) -> bool:
        """Do what the keys say; False to end."""
        try:
            typed = os.read(self._keyboard, 1024)
        except OSError:  # EIO: the terminal is gone
            typed = b""
        for each in _KEY.findall(typed):
            order = self._view.press(_NAMES.get(each, each.decode(errors="replace")), self._consumers)
            if order is Order.QUIT:
                return False
            if order is Order.REFRESH:
                self._refresh()
            elif order is Order.RELOAD:
                self._thread.ask(lambda: partial(self._say, self._source.reload()))
        return typed != b""

    def _refresh(self) -> None:
        self._due = time.monotonic() + self._interval
        self._again = self._asking
        if not self._asking:
            self._asking = True
            number = self._view.chosen if self._view.pane is Pane.STACK else None
            self._thread.ask(partial(self._question, number, self._view.paused))

    def _question(self, number: int | None, paused: bool) -> Effect:
        """Ask for what is to be seen; in the thread."""
        try:
            numbers = None if paused else self._source.numbers()
        except _Trouble as error:
            return partial(self._lose, str(error))
        return partial(self._take, numbers, None if number is None else self._source.stack(number))

    def _take(self, numbers: tuple[Answer, list[Answer]] | None, stack: Answer | None) -> None:
        if numbers is not None:
            self._stats, self._consumers = numbers
            self._lost = None
        if stack is not None and stack["number"] == self._view.chosen:
            self._view.stack = stack
        self._answered()

    def _lose(self, why: str) -> None:
        since = self._lost[0] if self._lost else time.monotonic()
        self._lost = since, " ".join(why.split())
        self._answered()

    def _answered(self) -> None:
        self._asking = False
        if self._again:
            self._refresh()

    def _say(self, text: str) -> None:
        self._view.notice = text

    def _picture(self) -> Group:
        from rich.console import Group

        from .dashboard import dashboard

        self._view.trouble = ""
        if self._lost:
            since, why = self._lost
            self._view.trouble = f"no answer for {duration(time.monotonic() - since)}, trying again: {why}"
        width, height = self._console.size
        return Group(*dashboard(self._stats, self._consumers, self._view, width, height))


@contextlib.contextmanager
def _each_key(fd: int) -> Iterator[None]:
    """Have the terminal give each key at once and show none; afterwards it is as it was."""
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
