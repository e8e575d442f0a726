"""Keeps the processes alive and ends them in order: a pure state table, and the fork and reap loop around it.

Standard library only. It owns the listening sockets and never touches a client, the handler, 0MQ or
eventlet, so that it outlives them all.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .limits import Limits
from .process import Child, Lifeline, Wakeup, describe_exit, fork, wait_readable
from .wire import Kind, Record

log = logging.getLogger(__name__)

Main = Callable[[Lifeline], int]


class Exit(enum.IntEnum):
    """Exit codes of the daemon, and of `gaspar-serve`."""

    STOPPED = 0
    USAGE = 2  # a wrong option or value
    HANDLER = 3  # the handler cannot be loaded or set up
    BIND = 4  # an address cannot be listened on
    CRASHED = 70  # an error in gaspar itself


class State(enum.Enum):
    """Where a daemon is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # the front finishes what was accepted
    LEAVING = "leaving"  # the front is gone, the consumers go
    KILLING = "killing"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What can happen to a daemon as a whole."""

    READY = "ready"  # front and all first consumers
    FAILED = "failed"  # the handler does not load or set up
    TERM = "term"  # asked to stop
    QUIT = "quit"  # told to stop at once
    DRAINED = "drained"  # the front is gone
    LATE = "late"  # a step took longer than it may
    EMPTY = "empty"  # no child is left


_TABLE: dict[State, dict[Event, State]] = {
    State.STARTING: {
        Event.READY: State.SERVING,
        Event.FAILED: State.KILLING,
        Event.TERM: State.DRAINING,
        Event.QUIT: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.SERVING: {
        Event.TERM: State.DRAINING,
        Event.QUIT: State.KILLING,
    },
    State.DRAINING: {
        Event.FAILED: State.KILLING,
        Event.TERM: State.KILLING,
        Event.QUIT: State.KILLING,
        Event.DRAINED: State.LEAVING,
        Event.LATE: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.LEAVING: {
        Event.FAILED: State.KILLING,
        Event.TERM: State.KILLING,
        Event.QUIT: State.KILLING,
        Event.LATE: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.KILLING: {
        Event.EMPTY: State.STOPPED,
    },
    State.STOPPED: {},
}


def step(state: State, event: Event) -> State:
    """Return the state after an event; an event that means nothing in a state leaves it as it is."""
    return _TABLE[state].get(event, state)


class Backoff:
    """How long to wait before something that keeps dying is started again. Pure.

    The first `FREE` early deaths in a row cost nothing, each further one doubles the wait.
    """

    FREE = 3
    FIRST, LONGEST = 0.1, 5.0  # seconds
    EARLY = 5.0  # seconds; what lived longer did not die early

    def __init__(self) -> None:
        self._row = 0

    @property
    def slowed(self) -> bool:
        """True if the next start has to wait."""
        return self._row > self.FREE

    def died(self, lived: float, useful: bool) -> float:
        """Count a death; returns the seconds to wait.

        Args:
            lived: seconds.
            useful: it had been given work.
        """
        self._row = 0 if useful or lived > self.EARLY else self._row + 1
        if not self.slowed:
            return 0.0
        return float(min(self.LONGEST, self.FIRST * 2 ** min(self._row - self.FREE - 1, 16)))


@dataclass
class _Consumer:
    """One consumer, as the supervisor sees it."""

    number: int
    slot: int
    forked: float  # seconds, monotonic
    pid: int = 0  # 0 until it is ready


class Supervisor:
    """One daemon's supervisor.

    Args:
        front: given a generation, returns what the front's process runs.
        forker: what the forker's process runs.
        addresses: where the daemon listens, for the log and the caller.
        close_listeners: closes this process's listening sockets and removes their files.
        caller: the lifeline to the program that started the daemon, if there is one.
    """

    def __init__(
        self,
        front: Callable[[int], Main],
        forker: Main,
        limits: Limits,
        addresses: list[str],
        close_listeners: Callable[[], None],
        caller: Lifeline | None = None,
    ) -> None:
        self._front_main = front
        self._forker_main = forker
        self._limits = limits
        self._addresses = addresses
        self._close_listeners = close_listeners
        self._caller = caller
        self._state = State.STARTING
        self._began = time.monotonic()
        self._exit = Exit.STOPPED
        self._deadline: float | None = None  # of a stop's present step
        self._drain_end = 0.0  # when the grace is over
        self._front: Child | None = None
        self._front_generation = 0
        self._front_ready = False
        self._front_forked = 0.0
        self._front_backoff = Backoff()
        self._front_due: float | None = None
        self._forker: Child | None = None
        self._forker_loaded = False
        self._forker_forked = 0.0
        self._forker_backoff = Backoff()
        self._forker_due: float | None = None
        self._consumers: dict[int, _Consumer] = {}  # by number
        self._next_number = 1
        self._consumer_backoff = Backoff()
        self._fill_due = 0.0

    def run(self) -> int:
        """Start everything, serve until asked to stop, end everything. Returns the exit code."""
        self._wakeup = Wakeup([signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
        self._start_forker()
        self._start_front()
        while self._state is not State.STOPPED:
            links = {link.fileno(): link for link in (self._caller, *self._lifelines()) if link}
            ready = wait_readable([self._wakeup.fileno(), *links], self._timeout())
            for fd in ready & links.keys():
                self._hear(links[fd])
            for signum in self._wakeup.notes():
                if signum in (signal.SIGTERM, signal.SIGINT):
                    self._happened(Event.TERM)
                elif signum == signal.SIGQUIT:
                    self._happened(Event.QUIT)
            self._reap()
            self._tick(time.monotonic())
        self._wakeup.close()
        if self._exit is Exit.STOPPED:
            log.info("stopped")
        return self._exit

    # ---- what happened ----

    def _happened(self, event: Event) -> None:
        before, self._state = self._state, step(self._state, event)
        if self._state is before:
            return
        now = time.monotonic()
        if self._state is State.SERVING:
            self._say_ready(now)
        elif self._state is State.DRAINING:
            log.info("draining: finishing what was accepted, at most %g s", self._limits.grace)
            self._drain_end = now + self._limits.grace
            self._deadline = self._drain_end + 2.0  # the front keeps the grace itself
            if self._front:
                self._front.lifeline.send(Kind.DRAIN, grace=self._limits.grace)
            else:
                self._happened(Event.DRAINED)
            self._close_listeners()  # the front accepts what is pending, then closes its own
        elif self._state is State.LEAVING:
            self._deadline = max(self._drain_end, now + 1.0)
            if self._forker:
                self._forker.lifeline.send(Kind.LEAVE)
        elif self._state is State.KILLING:
            self._deadline = now + 1.0
            self._close_listeners()
            if self._front:
                os.kill(self._front.pid, signal.SIGKILL)
            if self._forker and not (self._forker_loaded and self._forker.lifeline.send(Kind.STOP)):
                os.kill(self._forker.pid, signal.SIGKILL)

    def _say_ready(self, now: float) -> None:
        pids = [each.pid for each in self._consumers.values()]
        assert self._front and self._forker
        log.info(
            "ready: listening on %s, %d consumer%s (pid %s), front (pid %d), forker (pid %d), in %.2f s",
            ", ".join(self._addresses),
            len(pids),
            "" if len(pids) == 1 else "s",
            ", ".join(map(str, pids)),
            self._front.pid,
            self._forker.pid,
            now - self._began,
        )
        self._tell_caller(Kind.READY, addresses=self._addresses)

    def _tell_caller(self, kind: Kind, **fields: Any) -> None:
        if self._caller:
            self._caller.send(kind, **fields)

    def _fail(self, record: Record) -> None:
        """The handler does not load or set up."""
        message, traceback = record.fields["message"], record.fields["traceback"]
        if self._state is not State.STARTING:
            if self._exit is not Exit.HANDLER:
                log.error("%s", message)
            return
        if self._exit is not Exit.HANDLER and not self._caller:  # the first one; a caller gets an exception
            log.error("cannot start: %s", message)
            if traceback:
                log.debug("%s", traceback)
        self._exit = Exit.HANDLER
        self._tell_caller(Kind.LOAD_FAILED, message=message, traceback=traceback)
        self._happened(Event.FAILED)

    # ---- what children say ----

    def _lifelines(self) -> list[Lifeline]:
        return [child.lifeline for child in (self._front, self._forker) if child]

    def _hear(self, link: Lifeline) -> None:
        records = link.recv()
        if records is None:
            if link is self._caller:
                self._caller = None
                link.close()
                self._happened(Event.TERM)
            return  # a child's end: waitpid tells, and nothing else
        for record in records:
            self._on_record(record, link)

    def _on_record(self, record: Record, link: Lifeline) -> None:
        kind, fields = record
        if kind is Kind.DRAIN:
            self._happened(Event.TERM)
        elif kind is Kind.STOP:
            self._happened(Event.QUIT)
        elif kind is Kind.READY:
            self._front_ready = True
            for each in self._consumers.values():
                if each.pid:
                    self._introduce(each)
        elif kind is Kind.LOADED:
            self._forker_loaded = True
        elif kind in (Kind.LOAD_FAILED, Kind.SETUP_FAILED):
            self._fail(record)
        elif kind is Kind.CONSUMER_READY:
            if consumer := self._consumers.get(fields["number"]):
                consumer.pid = fields["pid"]
                self._tell_caller(Kind.CONSUMER_READY, pid=consumer.pid)
                if self._front_ready:
                    self._introduce(consumer)
        elif kind is Kind.CONSUMER_GONE:
            self._on_consumer_gone(fields)

    def _introduce(self, each: _Consumer) -> None:
        if self._front:
            self._front.lifeline.send(Kind.CONSUMER_READY, number=each.number, slot=each.slot, pid=each.pid)

    def _on_consumer_gone(self, fields: dict[str, Any]) -> None:
        consumer = self._consumers.pop(fields["number"], None)
        if consumer is None:
            return
        if self._front:
            self._front.lifeline.send(Kind.CONSUMER_GONE, **fields)
        self._tell_caller(Kind.CONSUMER_GONE, pid=fields["pid"])
        if self._state is State.STARTING:
            message = f"a consumer ended before it was ready: {fields['exit']}"
            if not consumer.pid:
                self._fail(Record(Kind.LOAD_FAILED, {"message": message, "traceback": ""}))
        elif self._state in (State.SERVING, State.DRAINING):
            slowed = self._consumer_backoff.slowed
            now = time.monotonic()
            self._fill_due = now + self._consumer_backoff.died(now - consumer.forked, fields["given"])
            log.warning("consumer %d (pid %d) ended: %s", consumer.number, fields["pid"], fields["exit"])
            if self._consumer_backoff.slowed and not slowed:
                log.error("consumers die again and again before they are given a job: replacing them slows down")

    # ---- processes ----

    def _start_forker(self) -> None:
        self._forker_due = None
        self._forker_loaded = False
        self._forker_forked = time.monotonic()
        self._forker = fork(self._forker_main, "gaspar:forker", close=self._others())

    def _start_front(self) -> None:
        self._front_due = None
        self._front_ready = False
        self._front_generation += 1
        self._front_forked = time.monotonic()
        self._front = fork(self._front_main(self._front_generation), "gaspar:front", close=self._others())

    def _others(self) -> list[Lifeline]:
        return [*self._lifelines(), *([self._caller] if self._caller else [])]

    def _reap(self) -> None:
        if self._front and (ended := _reaped(self._front.pid)):
            self._hear(self._front.lifeline)
            self._front.lifeline.close()
            self._front = None
            self._on_front_gone(ended)
        if self._forker and (ended := _reaped(self._forker.pid)):
            self._hear(self._forker.lifeline)
            self._forker.lifeline.close()
            self._forker = None
            self._on_forker_gone(ended)

    def _on_front_gone(self, ended: str) -> None:
        if self._state in (State.STARTING, State.SERVING):
            now = time.monotonic()
            log.error("front ended: %s; starting another", ended)
            self._front_due = now + self._front_backoff.died(now - self._front_forked, useful=False)
        else:
            if ended != "exit status 0" and self._state is State.DRAINING:
                log.error("front ended while draining: %s", ended)
            self._happened(Event.DRAINED)

    def _on_forker_gone(self, ended: str) -> None:
        if self._state is State.STARTING and not self._forker_loaded:
            message = f"the process that loads the handler ended: {ended}"
            self._fail(Record(Kind.LOAD_FAILED, {"message": message, "traceback": ""}))
        if self._state in (State.STARTING, State.SERVING, State.DRAINING):
            now = time.monotonic()
            log.error("forker ended: %s; starting another", ended)
            self._forker_due = now + self._forker_backoff.died(now - self._forker_forked, useful=False)
        for number, each in list(self._consumers.items()):  # they end with it
            del self._consumers[number]
            if self._front:
                self._front.lifeline.send(
                    Kind.CONSUMER_GONE, number=number, pid=each.pid, exit="SIGKILL, with its forker", job=0, given=True
                )
            self._tell_caller(Kind.CONSUMER_GONE, pid=each.pid)

    def _fill(self, now: float) -> None:
        """Order the consumers that are missing."""
        if not (self._forker and self._forker_loaded) or now < self._fill_due:
            return
        taken = {each.slot for each in self._consumers.values()}
        while len(self._consumers) < self._limits.processes:
            slot = next(n for n in range(len(taken) + 1) if n not in taken)
            taken.add(slot)
            consumer = _Consumer(self._next_number, slot, now)
            self._next_number += 1
            self._consumers[consumer.number] = consumer
            self._forker.lifeline.send(Kind.FORK, number=consumer.number, slot=slot)

    # ---- time ----

    def _tick(self, now: float) -> None:
        if self._state in (State.STARTING, State.SERVING, State.DRAINING):
            if self._forker_due is not None and now >= self._forker_due:
                self._start_forker()
            self._fill(now)
        if self._state in (State.STARTING, State.SERVING) and self._front_due is not None and now >= self._front_due:
            self._start_front()
        if self._state not in (State.STARTING, State.SERVING):
            self._front_due = None
        if self._state in (State.LEAVING, State.KILLING):
            self._forker_due = None
        ready = [each for each in self._consumers.values() if each.pid]
        if self._state is State.STARTING and self._front_ready and len(ready) == self._limits.processes:
            self._happened(Event.READY)
        if self._deadline is not None and now >= self._deadline:
            self._too_late(now)
        if not self._front and not self._forker and self._front_due is None and self._forker_due is None:
            self._happened(Event.EMPTY)

    def _too_late(self, now: float) -> None:
        if self._state is State.KILLING:
            self._deadline = now + 1.0
            for child in (self._front, self._forker):
                if child:
                    os.kill(child.pid, signal.SIGKILL)
        else:
            log.warning("%s took too long: ending what is left", self._state.value)
            self._happened(Event.LATE)

    def _timeout(self) -> float | None:
        dues = [due for due in (self._deadline, self._front_due, self._forker_due) if due is not None]
        now = time.monotonic()
        if self._fill_due > now:
            dues.append(self._fill_due)
        return max(0.0, min(dues) - now) if dues else None


def _reaped(pid: int) -> str:
    """Reap a child if it has ended; says how, or "" if it lives."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return describe_exit(status) if ended else ""
