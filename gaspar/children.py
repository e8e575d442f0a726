"""The supervisor's children, the front and the forkers: fork, order, kill and reap them, end those that hang."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .limits import STOPPED_LIMIT
from .process import Lifeline, describe_exit, fork
from .wire import Kind

log = logging.getLogger(__name__)

Main = Callable[[Lifeline], int]


@dataclass(eq=False)
class _Process:
    pid: int
    lifeline: Lifeline
    forked: float  # seconds, monotonic
    gone: bool = False  # reaped
    stopped_since: float = 0.0  # somebody sent SIGSTOP; 0: it runs


@dataclass(eq=False)
class Front(_Process):
    """A front."""

    ready: bool = False


@dataclass(eq=False)
class Forker(_Process):
    """A forker, and with it one generation of the handler's code."""

    generation: int = 0
    loaded: bool = False
    leaving: bool = False


class Children:
    """All children of one supervisor.

    Args:
        others: lifelines that are not the children's business.
    """

    def __init__(self, others: list[Lifeline]) -> None:
        self._others = others
        self._fronts = 0  # how many there have been
        self.front: Front | None = None
        self.forkers: dict[int, Forker] = {}  # by generation
        self.newest = 0  # generation of the forker that was started last

    def all(self) -> list[Front | Forker]:
        """List all children."""
        return [*([self.front] if self.front else []), *self.forkers.values()]

    def lifelines(self) -> list[Lifeline]:
        """List the lifelines to all children."""
        return [each.lifeline for each in self.all()]

    def of(self, lifeline: Lifeline) -> Front | Forker | None:
        """Say whose lifeline this is."""
        return next((each for each in self.all() if each.lifeline is lifeline), None)

    # ---- begin ----

    def start_front(self, main: Callable[[int], Main]) -> None:
        """Fork a front; `main` is given its generation."""
        self._fronts += 1
        child = fork(main(self._fronts), "gaspar:front", close=[*self._others, *self.lifelines()])
        self.front = Front(child.pid, child.lifeline, time.monotonic())

    def start_forker(self, main: Main) -> int:
        """Fork a forker. Returns its generation."""
        self.newest += 1
        child = fork(main, "gaspar:forker", close=[*self._others, *self.lifelines()])
        self.forkers[self.newest] = Forker(child.pid, child.lifeline, time.monotonic(), generation=self.newest)
        return self.newest

    # ---- live ----

    def order(self, child: Front | Forker, kind: Kind, **fields: Any) -> None:
        """Tell a child what to do. One that has taken no order for long is ended: it would miss this one."""
        if not child.lifeline.send(kind, **fields):
            self.kill(child)

    def end_stopped(self, now: float) -> None:
        """Kill those that somebody has stopped for too long."""
        for child in self.all():
            if child.stopped_since and now - child.stopped_since >= STOPPED_LIMIT:
                log.error("process %d was stopped by somebody for %g s: killing it", child.pid, STOPPED_LIMIT)
                child.stopped_since = 0.0
                self.kill(child)

    def dues(self) -> list[float]:
        """List when `end_stopped` is to be called."""
        return [each.stopped_since + STOPPED_LIMIT for each in self.all() if each.stopped_since]

    # ---- end ----

    def kill(self, child: Front | Forker) -> None:
        """Kill a child, unless it is reaped: then its pid may be another's."""
        if not child.gone:
            os.kill(child.pid, signal.SIGKILL)

    def reap(self, now: float) -> Iterator[tuple[Front | Forker, str]]:
        """Take note of who has ended, stopped or gone on; as PID 1 also of processes that are not ours.

        Yields:
            A child that has ended, and how. `forget` it when it is done with.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            child = next((each for each in self.all() if each.pid == pid), None)
            if child is None:
                continue
            if os.WIFSTOPPED(status):
                child.stopped_since = now
            elif os.WIFCONTINUED(status):
                child.stopped_since = 0.0
            else:
                child.gone = True
                yield child, describe_exit(status)

    def forget(self, child: Front | Forker) -> None:
        """Close the lifeline of a child that has ended."""
        child.lifeline.close()
        if isinstance(child, Forker):
            del self.forkers[child.generation]
        else:
            self.front = None
