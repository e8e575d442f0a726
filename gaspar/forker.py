"""Holds the loaded handler; forks consumers on the supervisor's orders, reaps them and reports.

It has no thread, no event loop and no 0MQ context, so that every fork from it is clean.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from .consumer import Consumer, describe, run
from .errors import HandlerLoadError
from .limits import Limits
from .process import (
    FRONT_LOCK,
    Child,
    Lifeline,
    Wakeup,
    describe_exit,
    die_with_parent,
    fork,
    is_held,
    keep_only,
    wait_readable,
)
from .scoreboard import DONE, JOB, Scoreboard
from .wire import Kind, Record

if TYPE_CHECKING:
    from .links import ConsumerEnd

log = logging.getLogger(__name__)

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
    told: bool = False  # its lifeline has nothing more to say


def main(load: Callable[[], Consumer], folder: str, scoreboard: Scoreboard, limits: Limits, lifeline: Lifeline) -> int:
    """Be a forker: load, then do what the supervisor says until it is gone. Returns the exit code."""
    keep_only([lifeline.fileno()], files=True)
    forker = Forker(folder, scoreboard, limits, lifeline)
    try:
        forker.load(load)
    except HandlerLoadError as error:
        lifeline.send(Kind.LOAD_FAILED, message=str(error), traceback=error.traceback[-16384:])
        return 1
    forker.run()
    return 0


class Forker:
    """A forker's tables and loop."""

    def __init__(self, folder: str, scoreboard: Scoreboard, limits: Limits, lifeline: Lifeline) -> None:
        self._folder = folder
        self._scoreboard = scoreboard
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
        except Exception as error:
            raise HandlerLoadError(f"{type(error).__name__}: {error}", traceback.format_exc()) from error
        threads = sorted(thread.name for thread in set(threading.enumerate()) - before)
        if threads:
            log.warning(
                "the handler's module left threads running, which no consumer will have: %s", ", ".join(threads)
            )
        from .links import ConsumerEnd  # the 0MQ module, that is; its contexts are made after the fork

        self._end = ConsumerEnd
        gc.collect()
        gc.freeze()  # the collector leaves these pages alone, so that they stay shared
        self._lifeline.send(Kind.LOADED, what=describe(self._consumer))

    def run(self) -> None:
        """Fork, reap and report until told to leave, or until the supervisor is gone."""
        wakeup = Wakeup([signal.SIGCHLD])
        while not (self._leaving and not self._forks):
            talking = {each.child.lifeline.fileno(): each for each in self._forks.values() if not each.told}
            sources = [wakeup.fileno(), *talking]
            if not self._orphaned:
                sources.append(self._lifeline.fileno())
            ready = wait_readable(sources, _LOOK if self._orphaned else None)
            for fd in ready & talking.keys():
                self._hear(talking[fd])
            if wakeup.notes():
                self._reap()
            if self._lifeline.fileno() in ready:
                self._obey(self._lifeline.recv())
            if self._orphaned:
                self._look_after_orphans(time.monotonic())
        wakeup.close()
        if self._orphaned:  # the last to leave
            shutil.rmtree(self._folder, ignore_errors=True)

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
            os.killpg(each.child.pid, signal.SIGKILL)

    def _look_after_orphans(self, now: float) -> None:
        """Without a supervisor: stay while the front needs the consumers, at most for the grace."""
        if not self._leaving and (now >= self._orphan_end or not is_held(f"{self._folder}/{FRONT_LOCK}")):
            self._leave()
        if now >= self._orphan_end:
            self._kill_all()

    def _fork(self, number: int, slot_index: int) -> None:
        self._scoreboard.clear(slot_index)
        slot = self._scoreboard.slot(slot_index)
        make_end = partial(self._end, self._folder, number)
        live = partial(_consumer_main, self._consumer, make_end, slot, self._limits.max_message, os.getpid())
        others = [each.child.lifeline for each in self._forks.values()]
        child = fork(live, "gaspar:consumer", close=[self._lifeline, *others])
        with contextlib.suppress(OSError):  # it does the same; whoever comes first
            os.setpgid(child.pid, child.pid)
        self._forks[number] = _Fork(number, slot, child)

    def _hear(self, each: _Fork) -> None:
        records = each.child.lifeline.recv()
        if records is None:
            each.told = True  # that it is gone waitid tells, and nothing else
            return
        for record in records:
            if record.kind is Kind.READY:
                self._lifeline.send(Kind.CONSUMER_READY, number=each.number, pid=each.child.pid)
            else:
                self._lifeline.send(record.kind, number=each.number, **record.fields)

    def _reap(self) -> None:
        for each in list(self._forks.values()):
            pid, status, usage = os.wait4(each.child.pid, os.WNOHANG)
            if not pid:
                continue
            if not each.told:
                self._hear(each)  # what it said last
            each.child.lifeline.close()
            del self._forks[each.number]
            self._lifeline.send(
                Kind.CONSUMER_GONE,
                number=each.number,
                pid=pid,
                exit=describe_exit(status),
                job=each.slot[JOB],
                given=bool(each.slot[DONE] or each.slot[JOB]),
                cpu=round(usage.ru_utime + usage.ru_stime, 3),
            )


def _consumer_main(
    consumer: Consumer,
    make_end: Callable[[int], ConsumerEnd],
    slot: memoryview,
    max_message: int,
    forker: int,
    lifeline: Lifeline,
) -> int:
    """Be a consumer: the first code of the forked process."""
    os.setpgid(0, 0)  # so that what it starts can be ended with it
    die_with_parent(forker)
    return run(consumer, make_end(lifeline.fileno()), lifeline, slot, max_message)
