"""The user's `Producer`: forks the daemon's supervisor, waits for it, stops it; and the views on what it runs."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .address import Address, parse, parse_port
from .consumer import Consumer
from .errors import BindError, DaemonError, HandlerLoadError
from .limits import Limits
from .limits import names as limit_names
from .process import Lifeline, describe_exit, fork, keep_only
from .wire import Kind, Record

_ANSWER_TIME = 5.0  # seconds that the daemon has to answer which consumers there are


class ConsumerView:
    """A consumer process of a running daemon."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self._forker = forker
        self.pid = pid

    def is_alive(self) -> bool:
        """True until the process has ended."""
        return self._forker._is_alive(self.pid)

    def __repr__(self) -> str:
        return f"<consumer pid={self.pid}>"


class Forker:
    """What `producer.forker` shows: the consumers."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._pids: list[int] = []

    @property
    def processes(self) -> list[ConsumerView]:
        """The consumers, oldest first; once stopped, those that were there at the end."""
        self._producer._refresh()
        return [ConsumerView(self, pid) for pid in self._pids]

    def _is_alive(self, pid: int) -> bool:
        self._producer._refresh()
        return pid in self._pids and self._producer.running.ready()


class Signal:
    """Something that has happened or has not: `running`, `stopped`."""

    def __init__(self, wait_for: Callable[[Callable[[], bool], float | None], bool], happened: Callable[[], bool]):
        self._wait_for = wait_for
        self._happened = happened

    def ready(self) -> bool:
        """True if it has happened."""
        return self._wait_for(self._happened, 0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has happened, at most `timeout` seconds. Returns whether it has."""
        return self._wait_for(self._happened, timeout)


class Producer:
    """One daemon: what it runs, where it listens, what it may use.

    Args:
        consumer: what to run.
        port: TCP port; 0 takes a free one, see `server_addr`.
        processes: consumers; None or "auto": the CPUs this process may use.
        host: the address to listen on. The protocol has no authentication.
        limits: as the command's options, with underscores: depth, max_message, read_timeout, ...

    Raises:
        LimitError, AddressError: (also a ValueError) a value is out of its range.
        TypeError: an unknown limit, or consumer is no Consumer.
    """

    def __init__(
        self, consumer: Consumer, port: int, processes: int | str | None = None, host: str = "127.0.0.1", **limits: Any
    ) -> None:
        if not isinstance(consumer, Consumer):
            raise TypeError(f"consumer must be a gaspar.Consumer, like gaspar.Consumer(handler), not {consumer!r}")
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"port must be a number from 0 to 65535, not {port!r}")
        if unknown := limits.keys() - set(limit_names()):
            known = ", ".join(name for name in limit_names() if name != "processes")
            raise TypeError(f"unknown limit {', '.join(sorted(unknown))}; there are: {known}")
        self.limits = Limits(processes=processes, **limits)  # type: ignore[arg-type]
        self.consumer = consumer
        self.forker = Forker(self)
        self.running = Signal(self._wait_for, lambda: self._running)
        self.stopped = Signal(self._wait_for, lambda: self._stopped)
        self._address = Address(host, parse_port(port))
        self._bound: Address | None = None
        self._control = ""
        self._lifeline: Lifeline | None = None
        self._pid = 0
        self._owner = 0  # the process that started the daemon
        self._running = False
        self._stopped = False
        self._failure: Exception | None = None
        self._asked = self._heard = 0  # questions which consumers there are, and answers
        self._news = threading.Condition()
        self._reading = False  # some thread reads the lifeline, and tells the others

    @property
    def server_addr(self) -> tuple[str, int]:
        """The `(host, port)` where the daemon listens; before it has started, where it is to listen."""
        where = self._bound or self._address
        return where.host, where.port

    @property
    def address(self) -> str:
        """Where the daemon listens, as `gaspar.client.request` takes it."""
        return str(self._bound or self._address)

    @property
    def control(self) -> str:
        """The address that `gaspar-top` asks (docs/control.rst); "" before the daemon has started."""
        return self._control

    def start(self, blocking: bool = True) -> None:
        """Start the daemon, in processes of its own.

        Args:
            blocking: return when it has stopped; False: when it answers. INT and TERM to a blocking
                caller drain the daemon once, a second one ends it at once.

        Raises:
            BindError: the address cannot be listened on.
            HandlerLoadError: `setup` failed.
            DaemonError: it runs already, or ended before it was ready.
        """
        if self._lifeline is not None and os.getpid() == self._owner and not self.stopped.ready():
            raise DaemonError("this producer has been started already; stop it first")
        self._running, self._stopped, self._failure = False, False, None
        self._owner = os.getpid()
        child = fork(self._supervise, "gaspar:super")
        with self._news:
            self._pid, self._lifeline, self._reading = child.pid, child.lifeline, False
            self._news.notify_all()
        _lifelines.add(child.lifeline)
        atexit.register(self.stop)
        with _handed_on(self._on_signal) if blocking else contextlib.nullcontext():
            self._wait_for(lambda: self._running or self._stopped, None)
            if self._failure is not None:
                self._wait_for(lambda: self._stopped, None)
                raise self._failure
            if blocking:
                self._wait_for(lambda: self._stopped, None)

    def stop(self) -> None:
        """Finish what was accepted, within the grace, and return when all processes are gone."""
        if self._lifeline is None or self._owner != os.getpid() or self._stopped:
            return
        self._lifeline.send(Kind.DRAIN)
        self._wait_for(lambda: self._stopped, None)

    def __enter__(self) -> Producer:
        """Start the daemon unless it runs; return when it answers."""
        if not self.running.ready():
            self.start(blocking=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- in the daemon ----

    def _supervise(self, lifeline: Lifeline) -> int:
        from .daemon import serve

        os.setsid()  # what a terminal sends to the caller's group is the caller's to hand on
        keep_only([lifeline.fileno()], files=False)
        return serve(lambda: self.consumer, [self._address], self.limits, reloadable=False, caller=lifeline)

    # ---- in the caller ----

    def _on_signal(self, count: int) -> None:
        if self._lifeline is not None:
            self._lifeline.send(Kind.DRAIN if count == 1 else Kind.STOP)

    def _wait_for(self, happened: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `happened()`, at most `timeout` seconds; one thread reads what the daemon says, for all."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._news:
            while not happened():
                left = None if end is None else max(0.0, end - time.monotonic())
                if self._reading or self._lifeline is None or self._gone():
                    self._news.wait(left)  # for the thread that reads, or for a start
                else:
                    self._read(self._lifeline, left)
                if left == 0.0:
                    break
            return happened()

    def _gone(self) -> bool:
        """True if this process has nothing to hear any more."""
        return self._stopped or self._owner != os.getpid()

    def _read(self, lifeline: Lifeline, timeout: float | None) -> None:
        """Read once; called and left with `_news` held, which is free while waiting."""
        self._reading = True
        self._news.release()
        try:
            came = lifeline.wait(timeout)
        finally:
            self._news.acquire()
            self._reading = False
            self._news.notify_all()
        if came:
            self._take(lifeline.recv())

    def _refresh(self) -> None:
        """Ask which consumers there are."""
        if self._lifeline is None or self._gone():
            return
        self._asked += 1
        asked = self._asked
        self._lifeline.send(Kind.LIST, asked=asked)
        self._wait_for(lambda: self._heard >= asked or self._stopped, _ANSWER_TIME)

    def _take(self, records: list[Record] | None) -> None:
        if records is None:
            self._on_gone()
            return
        for kind, fields in records:
            if kind is Kind.READY:
                self._bound = parse(fields["addresses"][0])
                self._control = fields["control"]
                self.forker._pids = fields["pids"]
                self._running = True
            elif kind is Kind.CONSUMERS:
                self.forker._pids = fields["pids"] or self.forker._pids
                self._heard = fields["asked"]
            elif kind is Kind.LOAD_FAILED:
                self._failure = HandlerLoadError(fields["message"], fields["traceback"])
            elif kind is Kind.BIND_FAILED:
                self._failure = BindError(fields["errno"], fields["message"])

    def _on_gone(self) -> None:
        assert self._lifeline is not None
        ended = "reaped by somebody else"
        with contextlib.suppress(ChildProcessError):
            ended = describe_exit(os.waitpid(self._pid, 0)[1])
        if not self._running and self._failure is None:
            self._failure = DaemonError(f"the daemon ended before it was ready: {ended}")
        _lifelines.discard(self._lifeline)
        self._lifeline.close()
        atexit.unregister(self.stop)
        self._running, self._stopped = False, True


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _close_lifelines() -> None:
    """In a process that the caller forked: the daemon's end-of-file must not wait for it."""
    for lifeline in _lifelines:
        lifeline.close()


os.register_at_fork(after_in_child=_close_lifelines)


@contextlib.contextmanager
def _handed_on(hand_on: Callable[[int], None]) -> Iterator[None]:
    """Call `hand_on(1)` at the first INT or TERM, `hand_on(2)` at the second, instead of ending."""
    count = 0

    def on_signal(_signum: int, _frame: object) -> None:
        nonlocal count
        count += 1
        hand_on(count)

    before: dict[int, Any] = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # only the main thread can
                before[each] = signal.signal(each, on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
