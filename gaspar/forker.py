"""Holds the loaded handler; forks consumers on the supervisor's orders, reaps them and reports.

It has no thread, no event loop and no 0MQ context, so that every fork from it is clean.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .arena import Arena
from .consumer import Consumer, describe, one_line, run
from .errors import HandlerLoadError
from .folders import front_lock, is_held
from .limits import Limits
from .process import (
    Child,
    Lifeline,
    Wakeup,
    describe_exit,
    die_with_parent,
    fork,
    keep_only,
    wait_readable,
)
from .scoreboard import BEGUN, DONE, JOB, Outbox, Scoreboard
from .watchdog import STACK_SIGNAL, MemoryWatch, StackReader, Watchdog, kill_group
from .watcher import source_folders
from .wire import NOBODY, Kind, Record

if TYPE_CHECKING:
    from .links import ConsumerEnd

log = logging.getLogger(__name__)

_NICE = 15  # of a consumer that has stepped aside
_QUICK = 0.005  # seconds between looks for a stack
_SOON = 0.01  # seconds; what is due within is looked at now
_LOOK = 0.05  # seconds between looks at the front, when the supervisor is gone
# One thread each, unless the environment says otherwise: there is a consumer per CPU already.
_MATHS_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass
class _Fork:
    """One consumer, as its forker sees it."""

    number: int
    slot: memoryview
    child: Child
    watchdog: Watchdog
    stack: StackReader
    stack_pipe: int  # its read end
    asked: list[int] = field(default_factory=list)  # the questions for its stack that are open
    memory: MemoryWatch | None = None
    told: bool = False  # its lifeline has nothing more to say
    overgrown: str = ""  # why it was killed, if for its memory
    worn: bool = False  # the supervisor knows that it is to be replaced


def main(
    load: Callable[[], Consumer],
    folder: str,
    scoreboard: Scoreboard,
    arena: Arena | None,
    limits: Limits,
    lifeline: Lifeline,
) -> int:
    """Be a forker: load, then do what the supervisor says until it is gone. Returns the exit code."""
    keep_only([lifeline.fileno()], files=True)
    forker = Forker(folder, scoreboard, arena, limits, lifeline)
    try:
        forker.load(load)
    except HandlerLoadError as error:
        lifeline.send(Kind.LOAD_FAILED, message=str(error), traceback=error.traceback)
        return 1
    forker.run()
    return 0


class Forker:
    """A forker's tables and loop."""

    def __init__(
        self, folder: str, scoreboard: Scoreboard, arena: Arena | None, limits: Limits, lifeline: Lifeline
    ) -> None:
        self._folder = folder
        self._scoreboard = scoreboard
        self._arena = arena
        self._limits = limits
        self._lifeline = lifeline
        self._consumer: Consumer
        self._end: type[ConsumerEnd]
        self._forks: dict[int, _Fork] = {}  # by number
        self._leaving = False
        self._orphaned = False
        self._orphan_end = 0.0

    def load(self, load: Callable[[], Consumer]) -> None:
        """Load the handler and what every consumer needs, so that they share its memory."""
        for name in _MATHS_THREADS:
            os.environ.setdefault(name, "1")
        before = set(threading.enumerate())
        try:
            self._consumer = load()
        except HandlerLoadError:
            raise
        except BaseException as error:
            raise HandlerLoadError(one_line(error), traceback.format_exc()) from error
        threads = sorted(thread.name for thread in set(threading.enumerate()) - before)
        if threads:
            log.warning(
                "the handler's module left threads running, which no consumer will have: %s", ", ".join(threads)
            )
        from .links import ConsumerEnd  # the 0MQ module, that is; its contexts are made after the fork

        self._end = ConsumerEnd
        gc.collect()
        gc.freeze()  # the collector leaves these pages alone, so that they stay shared
        self._lifeline.send(Kind.LOADED, what=describe(self._consumer), sources=source_folders())

    def run(self) -> None:
        """Fork, reap and report until told to leave, or until the supervisor is gone."""
        wakeup = Wakeup([signal.SIGCHLD])
        while not (self._leaving and not self._forks):
            talking = {each.child.lifeline.fileno(): each for each in self._forks.values() if not each.told}
            sources = [wakeup.fileno(), *talking]
            if not self._orphaned:
                sources.append(self._lifeline.fileno())
            ready = wait_readable(sources, self._timeout())
            for fd in ready & talking.keys():
                self._hear(talking[fd])
            if wakeup.notes():
                self._reap()
            if self._lifeline.fileno() in ready:
                self._obey(self._lifeline.recv())
            now = time.monotonic()
            self._keep_limits(now)
            if self._orphaned:
                self._look_after_orphans(now)
        wakeup.close()
        if self._orphaned:  # the last to leave
            shutil.rmtree(self._folder, ignore_errors=True)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        dues = [now + _LOOK] if self._orphaned else []
        for each in self._forks.values():
            if (due := each.watchdog.next_look(now)) is not None:
                dues.append(due)
            if each.memory:
                dues.append(each.memory.next_look)
            if each.asked:
                dues.append(now + _QUICK)
        return max(0.0, min(dues) - now) if dues else None

    def _keep_limits(self, now: float) -> None:
        for each in self._forks.values():
            if (due := each.watchdog.next_look(now)) is not None and due <= now + _SOON:
                each.watchdog.look(now)
            if each.watchdog.found_slow(now):
                self._ask_stack(each, NOBODY, now)
            if each.asked and each.stack.is_there(now):
                self._report_stack(each, now)
            if each.memory and now >= each.memory.next_look:
                text, kill = each.memory.look(now)
                if kill:
                    log.warning("killing consumer (pid %d): %s", each.child.pid, text)
                    each.overgrown = f", since {text}"
                    kill_group(each.child.pid)
                elif text:
                    self._report_worn(each, text, "memory")

    def _report_worn(self, each: _Fork, why: str, reason: str) -> None:
        if not each.worn:
            each.worn = True
            self._lifeline.send(Kind.CONSUMER_WORN, number=each.number, why=why, reason=reason)

    def _ask_stack(self, each: _Fork, asked: int, now: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            each.stack.ask(each.watchdog.running()[0], now)
        each.asked.append(asked)

    def _report_stack(self, each: _Fork, now: float) -> None:
        asked, each.asked = each.asked, []
        job, begun = each.watchdog.running()
        text = each.stack.text or "its process is stopped, or has no signal handled: no stack came"
        for question in asked:
            self._lifeline.send(
                Kind.STACK,
                asked=question,
                number=each.number,
                pid=each.child.pid,
                job=job,
                age=now - begun if job else None,
                stack=text,
            )

    def _obey(self, records: list[Record] | None) -> None:
        if records is None:
            log.warning("the supervisor is gone: leaving when the front has finished what was accepted")
            self._orphaned = True
            self._orphan_end = time.monotonic() + self._limits.grace
            return
        for record in records:
            if record.kind is Kind.FORK:
                self._fork(record.fields["number"], record.fields["slot"])
            elif record.kind is Kind.LEAVE and "number" in record.fields:
                if each := self._forks.get(record.fields["number"]):
                    each.child.lifeline.send(Kind.LEAVE)
            elif record.kind is Kind.ASIDE:
                if each := self._forks.get(record.fields["number"]):
                    with contextlib.suppress(OSError):
                        os.setpriority(os.PRIO_PGRP, each.child.pid, _NICE)
            elif record.kind is Kind.STACK:
                if each := self._forks.get(record.fields["number"]):
                    self._ask_stack(each, record.fields["asked"], time.monotonic())
                else:
                    self._lifeline.send(Kind.STACK, **record.fields, pid=0, job=0, age=None, stack="")
            elif record.kind is Kind.LEAVE:
                self._leave()
            elif record.kind is Kind.STOP:
                self._leave()
                self._kill_all()

    def _leave(self) -> None:
        self._leaving = True
        for each in self._forks.values():
            each.child.lifeline.send(Kind.LEAVE)

    def _kill_all(self) -> None:
        for each in self._forks.values():
            kill_group(each.child.pid)

    def _look_after_orphans(self, now: float) -> None:
        """Without a supervisor: stay while the front needs the consumers, at most for the grace."""
        if not self._leaving and (now >= self._orphan_end or not is_held(front_lock(self._folder))):
            self._leave()
        if now >= self._orphan_end:
            self._kill_all()

    def _fork(self, number: int, slot_index: int) -> None:
        self._scoreboard.clear(slot_index)
        slot = self._scoreboard.slot(slot_index)
        make_end = partial(self._end, self._folder, number, arena=self._arena)
        stack, stack_writer = os.pipe()
        os.set_blocking(stack, False)
        os.set_blocking(stack_writer, False)
        outbox = self._scoreboard.outbox(slot_index)
        live = partial(_consumer_main, self._consumer, make_end, slot, outbox, self._limits, stack_writer, os.getpid())
        others = [each.child.lifeline for each in self._forks.values()]
        child = fork(live, "gaspar:consumer", close=[self._lifeline, *others])
        os.close(stack_writer)
        with contextlib.suppress(OSError):  # it does the same; whoever comes first
            os.setpgid(child.pid, child.pid)
        reader = StackReader(child.pid, stack)
        watchdog = Watchdog(child.pid, slot, reader, self._limits.timeout, self._limits.slow)
        self._forks[number] = _Fork(number, slot, child, watchdog, reader, stack)

    def _hear(self, each: _Fork) -> None:
        records = each.child.lifeline.recv()
        if records is None:
            each.told = True  # that it is gone waitid tells, and nothing else
            return
        for record in records:
            if record.kind is Kind.CONSUMER_WORN:
                self._report_worn(each, record.fields["why"], "requests")
            elif record.kind is Kind.READY:
                if self._limits.max_memory:
                    each.memory = MemoryWatch(each.child.pid, self._limits.max_memory, time.monotonic())
                self._lifeline.send(Kind.CONSUMER_READY, number=each.number, pid=each.child.pid)
            else:
                self._lifeline.send(record.kind, number=each.number, **record.fields)

    def _reap(self) -> None:
        for each in list(self._forks.values()):
            pid, status, usage = os.wait4(each.child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not pid:
                continue
            if os.WIFSTOPPED(status):
                each.watchdog.on_stopped(time.monotonic())
            elif os.WIFCONTINUED(status):
                each.watchdog.on_continued()
            else:
                self._report_end(each, describe_exit(status), usage)

    def _report_end(self, each: _Fork, ended: str, usage: resource.struct_rusage) -> None:
        if not each.told:
            self._hear(each)  # what it said last
        each.child.lifeline.close()
        os.close(each.stack_pipe)
        del self._forks[each.number]
        for asked in each.asked:
            self._lifeline.send(
                Kind.STACK, number=each.number, asked=asked, pid=each.child.pid, job=0, age=None, stack=""
            )
        more: dict[str, Any] = {}
        if verdict := each.watchdog.verdict:
            more = {"why": verdict.why, "stack": verdict.stack}
            reason = verdict.reason
        else:
            reason = "memory" if each.overgrown else ""
        peak = usage.ru_maxrss >> (20 if sys.platform == "darwin" else 10)  # MiB, of bytes or KiB; getrusage(2)
        self._lifeline.send(
            Kind.CONSUMER_GONE,
            number=each.number,
            pid=each.child.pid,
            exit=ended + each.overgrown,
            reason=reason,
            used=f", after {usage.ru_utime + usage.ru_stime:.2f} s of CPU and at most {peak} MiB of memory",
            job=each.slot[JOB],
            begun=each.slot[BEGUN],
            given=bool(each.slot[DONE] or each.slot[JOB]),
            **more,
        )
        each.slot[JOB] = 0  # a front to come asks who may still touch what the last one lent


def _consumer_main(
    consumer: Consumer,
    make_end: Callable[..., ConsumerEnd],
    slot: memoryview,
    outbox: Outbox,
    limits: Limits,
    stack: int,
    forker: int,
    lifeline: Lifeline,
) -> int:
    """Be a consumer: the first code of the forked process."""
    os.setpgid(0, 0)  # so that what it starts can be ended with it
    die_with_parent(forker)
    faulthandler.register(STACK_SIGNAL, file=stack, all_threads=False)
    return run(consumer, make_end(lifeline.fileno()), lifeline, slot, outbox, limits)
