"""Keeps a daemon's processes as they should be, and ends them in order.

Standard library only. It never touches a client, the handler, 0MQ or eventlet, so that it outlives them all.
The states are lifecycle.py's, the processes children.py's, who should be there roster.py's: here they meet.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from typing import Any

from .children import Children, Forker, Front, Main
from .lifecycle import ALIVE, Event, Exit, State, step
from .limits import MAX_PROCESSES, Limits
from .process import Lifeline, Wakeup, wait_readable
from .roster import REASONS, Backoff, Entry, Roster
from .wire import Kind

log = logging.getLogger(__name__)

_LEAVE_TIME = 0.25  # seconds that idle consumers have to leave, when the grace is over

# What a signal orders: an event, or how many consumers more, 0: a reload.
_ORDERS: dict[int, Event | int] = {
    signal.SIGTERM: Event.TERM,
    signal.SIGINT: Event.TERM,
    signal.SIGQUIT: Event.QUIT,
    signal.SIGHUP: 0,
    signal.SIGTTIN: 1,
    signal.SIGTTOU: -1,
}


class Supervisor:
    """One daemon's supervisor.

    Args:
        front: given a generation, returns what the front's process runs.
        forker: what a forker's process runs.
        addresses: where the daemon listens, for the log and the caller.
        control: the control address, likewise.
        close_listeners: closes this process's listening sockets for clients and removes their files.
        forget: removes the files of a consumer that has ended, by its number.
        reloadable: the handler has a name and can be loaded anew.
        caller: the lifeline to the program that started the daemon, if there is one.
        notify: tells the service manager a state, as sd_notify(3) does.
        on_sources: told in which folders the handler's code is, whenever it was loaded.
    """

    def __init__(
        self,
        front: Callable[[int], Main],
        forker: Main,
        limits: Limits,
        addresses: list[str],
        control: str,
        close_listeners: Callable[[], None],
        forget: Callable[[int], None],
        reloadable: bool = True,
        caller: Lifeline | None = None,
        notify: Callable[[str], None] = lambda state: None,
        on_sources: Callable[[list[str]], None] = lambda folders: None,
    ) -> None:
        self._front_main = front
        self._forker_main = forker
        self._limits = limits
        self._addresses = addresses
        self._control = control
        self._close_listeners = close_listeners
        self._forget = forget
        self._reloadable = reloadable
        self._caller = caller
        self._notify = notify
        self._on_sources = on_sources
        self._state = State.STARTING
        self._began = time.monotonic()
        self._exit = Exit.STOPPED
        self._deadline: float | None = None  # of a stop's present step
        self._drain_end = 0.0  # when the grace is over
        self._children = Children([caller] if caller else [])
        self._front_backoff = Backoff()
        self._front_due: float | None = None  # when the next front is to be forked
        self._forker_backoff = Backoff()
        self._forker_due: float | None = None
        self._roster = Roster(limits.processes)
        self._restarts = dict.fromkeys(REASONS, 0)  # consumers that ended, by reason
        self._reloading = 0.0  # since when; 0: no reload is under way
        self._reload_again = False

    def run(self) -> int:
        """Start everything, serve until asked to stop, end everything. Returns the exit code."""
        self._wakeup = Wakeup([signal.SIGCHLD, *_ORDERS])
        self._roster.take_over(self._start_forker())
        self._start_front()
        while self._state is not State.STOPPED:
            links = {link.fileno(): link for link in (self._caller, *self._children.lifelines()) if link}
            ready = wait_readable([self._wakeup.fileno(), *links], self._timeout())
            for fd in ready & links.keys():
                self._hear(links[fd])
            for signum in self._wakeup.notes():
                self._on_signal(signum)
            for child, ended in self._children.reap(time.monotonic()):
                self._on_child_gone(child, ended)
            self._tick(time.monotonic())
        self._wakeup.close()
        if self._exit is Exit.STOPPED:
            log.info("stopped")
        return self._exit

    # ---- the daemon as a whole ----

    def _on_signal(self, signum: int) -> None:
        order = _ORDERS.get(signum)
        if isinstance(order, Event):
            self._happened(order)
        elif self._state is State.SERVING:
            if order is None:
                return
            if order == 0:
                self._reload()
            else:
                self._scale(self._roster.target + order)

    def _happened(self, event: Event) -> None:
        before, self._state = self._state, step(self._state, event)
        if self._state is before:
            return
        now = time.monotonic()
        if self._state is State.SERVING:
            self._say_ready(now)
        elif self._state is State.DRAINING:
            log.info("draining: finishing what was accepted, at most %g s", self._limits.grace)
            self._notify("STOPPING=1")
            self._drain_end = now + self._limits.grace
            self._deadline = self._drain_end + 2.0  # the front keeps the grace itself
            if self._children.front:
                self._tell_front(Kind.DRAIN, grace=self._limits.grace)
            else:
                self._happened(Event.DRAINED)
            self._close_listeners()  # the front accepts what is pending, then closes its own
        elif self._state is State.LEAVING:
            self._deadline = max(self._drain_end, now + _LEAVE_TIME)
            for forker in self._children.forkers.values():
                if forker.loaded:
                    self._children.order(forker, Kind.LEAVE)
                else:  # it loads, and hears nothing
                    self._children.kill(forker)
        elif self._state is State.KILLING:
            self._kill_all(now)

    def _kill_all(self, now: float) -> None:
        self._deadline = now + 1.0
        self._close_listeners()
        for child in self._children.all():
            # a forker that listens kills its consumers' whole process groups
            if isinstance(child, Forker) and child.loaded and not child.stopped_since:
                self._children.order(child, Kind.STOP)
            else:
                self._children.kill(child)

    def _say_ready(self, now: float) -> None:
        pids = [each.pid for each in self._roster.ready]
        assert self._children.front
        log.info(
            "ready: listening on %s, control %s, %d consumer%s (pid %s), front (pid %d), forker (pid %d), in %.2f s",
            ", ".join(self._addresses),
            self._control,
            len(pids),
            "" if len(pids) == 1 else "s",
            ", ".join(map(str, pids)),
            self._children.front.pid,
            self._children.forkers[self._roster.generation].pid,
            now - self._began,
        )
        self._tell_caller(Kind.READY, addresses=self._addresses, control=self._control, pids=pids)
        self._notify("READY=1")

    def _tell_caller(self, kind: Kind, **fields: Any) -> None:
        if self._caller:
            self._caller.send(kind, **fields)

    def _fail_start(self, message: str, traceback: str) -> None:
        """The handler does not load or set up: say so, once, and end."""
        if self._exit is Exit.HANDLER:
            return
        self._exit = Exit.HANDLER
        if self._caller:
            self._tell_caller(Kind.LOAD_FAILED, message=message, traceback=traceback)
        else:
            log.error("cannot start: %s", message)
            if traceback:
                log.debug("%s", traceback)
        self._happened(Event.FAILED)

    # ---- reload and scale ----

    def _scale(self, target: int) -> None:
        target = max(1, min(MAX_PROCESSES, target))
        if target != self._roster.target:
            self._roster.target = target
            log.info("%d consumers from now on", target)
            self._tell_staff()

    def _reload(self) -> None:
        if self._reloading:
            self._reload_again = True
            log.info("reload asked for during a reload: another one follows")
            return
        self._reloading = now = time.monotonic()
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        if self._reloadable:
            log.info("reloading: loading the handler anew")
            newest = self._start_forker()
            if self._roster.generation not in self._children.forkers:  # no old code to go on with, nor to wait for
                self._roster.take_over(newest)
        else:
            log.info("reloading: the handler is an object and cannot be loaded anew; its consumers are forked afresh")
            for each in self._roster:
                each.worn = "reload"
            self._roster.not_before = min(self._roster.not_before, now)

    def _end_reload(self, failure: str = "") -> None:
        if failure:
            log.error("reload failed, the old code goes on: %s", failure)
            self._roster.trial = 0
            if forker := self._children.forkers.get(self._children.newest):
                forker.leaving = True
                self._children.order(forker, Kind.STOP)
        else:
            took = time.monotonic() - self._reloading
            log.info("reloaded in %.2f s: consumers %s", took, ", ".join(str(each.pid) for each in self._roster.ready))
        self._reloading = 0.0
        self._notify("READY=1")
        if self._reload_again:
            self._reload_again = False
            self._reload()

    def _is_trial(self, generation: int) -> bool:
        """True of the forker of a reload that has not shown a ready consumer yet."""
        if not (self._reloading and self._reloadable):
            return False
        return generation == self._children.newest != self._roster.generation

    # ---- what children say ----

    def _hear(self, link: Lifeline) -> None:
        records = link.recv()
        if records is None:
            if link is self._caller:
                self._caller = None
                link.close()
                self._happened(Event.TERM)
            return  # a child's end: waitpid tells, and nothing else
        child = self._children.of(link)
        for kind, fields in records:
            if isinstance(child, Forker):
                self._on_forker_record(child, kind, fields)
            elif child:
                self._on_front_record(child, kind, fields)
            elif link is self._caller:
                self._on_caller_record(kind, fields)

    def _on_caller_record(self, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.LIST:
            pids = [each.pid for each in self._roster if each.pid]
            self._tell_caller(Kind.CONSUMERS, asked=fields["asked"], pids=pids)
        else:
            self._happened(Event.TERM if kind is Kind.DRAIN else Event.QUIT)

    def _on_front_record(self, front: Front, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.READY:
            front.ready = True
            for each in self._roster:
                if each.pid:
                    self._introduce(each)
            self._tell_staff()
        elif kind is Kind.RETIRED:
            self._let_go(fields["number"])
        elif kind is Kind.STACK:
            self._pass_on_question(fields)
        elif kind is Kind.DRAIN and self._state is State.SERVING:
            self._happened(Event.TERM)
        elif kind is Kind.RELOAD and self._state is State.SERVING:
            self._reload()
        elif kind is Kind.SCALE and self._state is State.SERVING:
            self._scale(fields["processes"])
        elif kind is Kind.ASIDE and self._state is State.SERVING:
            self._let_step_aside(fields["numbers"])

    def _let_step_aside(self, numbers: list[int]) -> None:
        """Long requests hold all consumers while others wait: fork others, and let the kernel share the CPUs."""
        for number in numbers:
            entry = self._roster.step_aside(number, self._limits.burst)
            if entry and (forker := self._children.forkers.get(entry.generation)):
                log.debug("consumer %d (pid %d) steps aside: its request takes long", number, entry.pid)
                self._tell_front(Kind.RETIRE, number=number, aside=True)
                self._children.order(forker, Kind.ASIDE, number=number)

    def _let_go(self, number: int) -> None:
        entry = self._roster.get(number)
        if entry and entry.generation in self._children.forkers:
            self._children.order(self._children.forkers[entry.generation], Kind.LEAVE, number=number)

    def _on_forker_record(self, forker: Forker, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.LOADED:
            forker.loaded = True
            self._on_sources(fields["sources"])
            if self._is_trial(forker.generation):
                self._roster.trial = forker.generation
        elif kind in (Kind.LOAD_FAILED, Kind.SETUP_FAILED):
            self._on_failure(forker, fields["message"], fields["traceback"])
        elif kind is Kind.CONSUMER_READY:
            if entry := self._roster.on_ready(fields["number"], fields["pid"]):
                self._introduce(entry)
        elif kind is Kind.CONSUMER_WORN:
            if entry := self._roster.get(fields["number"]):
                log.info("consumer %d (pid %d) is to be replaced: %s", entry.number, entry.pid, fields["why"])
                entry.worn = fields["reason"]
        elif kind is Kind.CONSUMER_GONE:
            self._on_consumer_gone(fields)
        elif kind is Kind.STACK:
            self._tell_front(kind, **fields)

    def _on_failure(self, forker: Forker, message: str, traceback: str) -> None:
        """The handler's code does not load or set up."""
        if self._state is State.STARTING:
            self._fail_start(message, traceback)
        elif self._is_trial(forker.generation):
            log.debug("%s", traceback)
            self._end_reload(failure=message)
        elif not forker.leaving:
            log.error("%s", message)

    def _introduce(self, entry: Entry) -> None:
        if self._front_is_ready:
            self._tell_front(
                Kind.CONSUMER_READY,
                number=entry.number,
                slot=entry.slot,
                pid=entry.pid,
                forked=entry.forked,
                generation=entry.generation,
            )
            if entry.retiring:
                self._tell_front(Kind.RETIRE, number=entry.number, aside=entry.aside)

    def _on_consumer_gone(self, fields: dict[str, Any]) -> None:
        slowed = self._roster.backoff.slowed
        entry = self._roster.on_gone(fields["number"], fields["given"], time.monotonic())
        self._forget(fields["number"])
        if entry is None:
            return
        self._count_end(fields["reason"] or entry.why)
        self._tell_front(Kind.CONSUMER_GONE, **fields)
        early = "" if entry.pid else "a consumer ended before it was ready: " + fields["exit"]
        if early and self._state is State.STARTING:
            self._fail_start(early, "")
        elif early and self._is_trial(entry.generation):
            self._end_reload(failure=early)
        elif self._state in ALIVE and not (entry.retiring and fields["exit"] == "exit status 0"):
            log.warning("consumer %d (pid %d) ended: %s", entry.number, fields["pid"], fields["exit"])
            if self._roster.backoff.slowed and not slowed:
                log.error("consumers die again and again before they are given a job: replacing them slows down")

    def _count_end(self, reason: str) -> None:
        if self._state in ALIVE:
            self._restarts[reason] += 1
            self._tell_staff()

    def _tell_staff(self) -> None:
        if self._front_is_ready:
            self._tell_front(Kind.STAFF, processes=self._roster.target, restarts=self._restarts)

    def _pass_on_question(self, fields: dict[str, Any]) -> None:
        """The front asks for a consumer's stack; that goes to its forker, whose answer comes back the same way."""
        entry = self._roster.get(fields["number"])
        if entry and (forker := self._children.forkers.get(entry.generation)):
            self._children.order(forker, Kind.STACK, **fields)
        else:
            self._tell_front(Kind.STACK, **fields, pid=0, job=0, age=None, stack="")

    # ---- processes ----

    @property
    def _front_is_ready(self) -> bool:
        return self._children.front is not None and self._children.front.ready

    def _tell_front(self, kind: Kind, **fields: Any) -> None:
        if self._children.front:
            self._children.order(self._children.front, kind, **fields)

    def _start_forker(self) -> int:
        self._forker_due = None
        return self._children.start_forker(self._forker_main)

    def _start_front(self) -> None:
        self._front_due = None
        self._children.start_front(self._front_main)

    def _on_child_gone(self, child: Front | Forker, ended: str) -> None:
        self._hear(child.lifeline)  # what it said last
        self._children.forget(child)
        if isinstance(child, Front):
            self._on_front_gone(child, ended)
        else:
            self._on_forker_gone(child, ended)

    def _on_front_gone(self, front: Front, ended: str) -> None:
        if self._state in (State.STARTING, State.SERVING):
            now = time.monotonic()
            log.error("front (pid %d) ended: %s; starting another", front.pid, ended)
            self._front_due = now + self._front_backoff.died(now - front.forked, useful=False)
            for each in self._roster:  # the front that was to say when they are done is gone
                if each.retiring:
                    self._let_go(each.number)
        else:
            if ended != "exit status 0" and self._state is State.DRAINING:
                log.error("front (pid %d) ended while draining: %s", front.pid, ended)
            self._happened(Event.DRAINED)

    def _on_forker_gone(self, forker: Forker, ended: str) -> None:
        generation = forker.generation
        trial = self._is_trial(generation)
        if self._state is State.STARTING and not forker.loaded:
            self._fail_start(f"the process that loads the handler ended: {ended}", "")
        elif trial and self._state in ALIVE:
            self._end_reload(failure=f"the process that loads the handler ended: {ended}")
        elif self._state in ALIVE and not forker.leaving:
            now = time.monotonic()
            log.error("forker (pid %d) ended: %s; starting another", forker.pid, ended)
            if generation == self._roster.generation:
                self._forker_due = now + self._forker_backoff.died(now - forker.forked, useful=False)
        gone = "SIGKILL, with its forker"
        for each in self._roster.on_forker_gone(generation, time.monotonic()):
            self._count_end("crashed")
            self._forget(each.number)
            if self._children.front:
                self._children.order(
                    self._children.front,
                    Kind.CONSUMER_GONE,
                    number=each.number,
                    pid=each.pid,
                    exit=gone,
                    job=0,
                    given=True,
                )

    def _give_orders(self, now: float) -> None:
        current = self._children.forkers.get(self._roster.generation)
        if current is None or not current.loaded:
            return
        fork_now, retire = self._roster.next_orders(now)
        for each in fork_now:
            self._children.order(self._children.forkers[each.generation], Kind.FORK, number=each.number, slot=each.slot)
        for each in retire:
            if self._front_is_ready:
                self._tell_front(Kind.RETIRE, number=each.number, aside=False)
            else:
                self._let_go(each.number)
        for generation, forker in self._children.forkers.items():
            if generation < self._roster.generation and not self._roster.of(generation) and not forker.leaving:
                forker.leaving = True
                self._children.order(forker, Kind.LEAVE)
        if self._reloading and self._roster.settled and not self._is_trial(self._children.newest):
            self._end_reload()

    # ---- time ----

    def _tick(self, now: float) -> None:
        if self._state in ALIVE:
            if self._forker_due is not None and now >= self._forker_due:
                self._roster.take_over(self._start_forker())
            self._give_orders(now)
        else:
            self._forker_due = None
        if self._state not in (State.STARTING, State.SERVING):
            self._front_due = None
        elif self._front_due is not None and now >= self._front_due:
            self._start_front()
        if (
            self._state is State.STARTING
            and self._children.front
            and self._children.front.ready
            and self._roster.settled
        ):
            self._happened(Event.READY)
        self._children.end_stopped(now)
        if self._deadline is not None and now >= self._deadline:
            self._too_late(now)
        if not self._children.all() and self._front_due is None and self._forker_due is None:
            self._happened(Event.EMPTY)

    def _too_late(self, now: float) -> None:
        if self._state is State.KILLING:
            self._deadline = now + 1.0
            for child in self._children.all():
                self._children.kill(child)
        else:
            log.warning("%s took too long: ending what is left", self._state.value)
            self._happened(Event.LATE)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        dues = [due for due in (self._deadline, self._front_due, self._forker_due) if due is not None]
        if self._roster.not_before > now:
            dues.append(self._roster.not_before)
        dues += self._children.dues()
        return max(0.0, min(dues) - now) if dues else None
