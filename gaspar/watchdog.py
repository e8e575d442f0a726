"""Keeps one consumer's limits, for its forker: the time of a request, being stopped by somebody, memory.

The forker is the consumer's parent: until it reaps it the pid cannot be another's, so that it can stop,
look, kill and reap without a race.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from typing import Any, NamedTuple

from .limits import STOPPED_LIMIT
from .scoreboard import BEGUN, JOB

log = logging.getLogger(__name__)

# What asks a consumer for its Python stack, also inside C code: faulthandler writes it from the signal's handler.
STACK_SIGNAL: int = getattr(signal, "SIGRTMAX", signal.SIGUSR2)
_STACK_TIME = 0.1  # seconds that the stack has to come
_STOP_TIME = 0.05  # seconds that a stop signal has to work; longer only in an uninterruptible system call
_QUICK = 0.005  # seconds between looks while something is about to happen
_MEMORY_LOOK = 0.25  # seconds between looks at a consumer's memory
_OWN_FRAME = os.path.join(os.path.dirname(__file__), "outcome.py") + '"'  # where a stack leaves the handler
_MAX_STACK = 32 * 1024  # bytes


def kill_group(pid: int) -> None:
    """Kill a consumer and what it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # its handler has left the group
        os.kill(pid, signal.SIGKILL)


class Verdict(NamedTuple):
    """Why a consumer was killed."""

    reason: str  # one word
    job: int  # what it ran; 0: nothing
    why: str  # one line
    stack: str  # of Python, innermost call first; "stopped" if it could not say


class StackReader:
    """Asks one consumer for its Python stack, which goes on meanwhile.

    Args:
        fd: read end of the pipe that faulthandler writes to.
    """

    def __init__(self, pid: int, fd: int) -> None:
        self._pid = pid
        self._fd = fd
        self._data = b""
        self._job = 0  # that was asked about
        self._end = 0.0  # seconds, monotonic; when what has not come will not come; 0: nobody asked, or it is there

    def ask(self, job: int, now: float) -> None:
        """Ask where it is in a job; once is enough for all who want to know."""
        if job == self._job and now < self._end:
            return
        self.read()
        self._data = b""  # of whoever asked before
        self._job = job
        self._end = now + _STACK_TIME
        os.kill(self._pid, STACK_SIGNAL)

    def is_there(self, now: float) -> bool:
        """True if it has come, or will not."""
        before = len(self._data)
        self.read()
        # faulthandler writes in pieces: wait until a look brings nothing new
        if 0 < before == len(self._data) or now >= self._end:
            self._end = 0.0
            return True
        return False

    def read(self) -> None:
        """Take in what has come."""
        try:
            while len(self._data) < _MAX_STACK and (data := os.read(self._fd, _MAX_STACK)):
                self._data += data
        except BlockingIOError:
            pass

    @property
    def text(self) -> str:
        """The stack, innermost call first, without gaspar's own part below the handler; "" if it did not come."""
        lines = self._data.decode(errors="replace").splitlines()
        own = next((n for n, line in enumerate(lines) if _OWN_FRAME in line), len(lines))
        return "\n".join(lines[:own])


class Watchdog:
    """Watches one consumer.

    Args:
        timeout: longest run of one request, seconds; 0: none.
        slow: what takes longer is to be told of, seconds; 0: nothing is.
    """

    def __init__(self, pid: int, slot: memoryview, stack: StackReader, timeout: float, slow: float) -> None:
        self._pid = pid
        self._slot = slot
        self._stack = stack
        self._timeout = timeout
        self._slow = slow
        self._told = 0  # the job that was found to be slow
        self._suspect = 0  # the job that has reached its limit
        self._stopped_since = 0.0  # 0: it runs
        self.verdict: Verdict | None = None

    def on_stopped(self, now: float) -> None:
        """The process was stopped, by somebody or by `look`."""
        self._stopped_since = now

    def on_continued(self) -> None:
        """The process goes on."""
        self._stopped_since = 0.0

    def next_look(self, now: float) -> float | None:
        """Say when to `look` again; None: only if something happens. Seconds, monotonic."""
        if self.verdict:
            return None
        dues = []
        if self._suspect:
            dues.append(now + _QUICK)
        elif self._timeout or self._slow:
            job, begun = self.running()
            limits = [self._timeout] if self._timeout else []
            if self._slow and (not job or job != self._told):
                limits.append(self._slow)
            dues += [(begun if job else now) + limit for limit in limits]
        if self._stopped_since:
            dues.append(self._stopped_since + STOPPED_LIMIT)
        return min(dues, default=None)

    def look(self, now: float) -> None:
        """Do what is due; a consumer that is killed gets a `verdict`."""
        if self.verdict:
            return
        job, begun = self.running()
        if self._stopped_since and now - self._stopped_since >= STOPPED_LIMIT:
            text = f"its process was stopped by somebody for {STOPPED_LIMIT:g} s"
            self._kill(Verdict("stopped", job, text, "stopped"))
        elif self._suspect and job != self._suspect:
            self._suspect = 0  # it ended after all
        elif self._suspect:
            if self._stack.is_there(now):
                self._execute(now - begun)
        elif self._timeout and job and now - begun >= self._timeout:
            self._suspect = job
            self._stack.ask(job, now)

    def found_slow(self, now: float) -> bool:
        """True, once for each job, if the consumer runs one for too long."""
        if not self._slow or self.verdict:
            return False
        job, begun = self.running()
        if not job or job == self._told or now - begun < self._slow:
            return False
        self._told = job
        return True

    def running(self) -> tuple[int, float]:
        """Return the job that runs, or 0, and when it began."""
        while True:
            job, begun = self._slot[JOB], self._slot[BEGUN]
            if job == self._slot[JOB]:
                return job, begun / 1e9

    def _execute(self, ran: float) -> None:
        """Stop it, look whether it still runs the same job, and kill it or let it go on."""
        os.kill(self._pid, signal.SIGSTOP)
        self._await_stop()
        self._stack.read()
        if self._slot[JOB] != self._suspect:
            self._suspect = 0
            os.kill(self._pid, signal.SIGCONT)
            return
        stack = self._stack.text
        place = next((line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")), "")
        where = f"hung at {place}" if place else "its process was stopped"
        why = f"ran for {ran:.2f} s, {self._timeout:g} allowed (--timeout); {where}"
        self._kill(Verdict("timeout", self._suspect, why, stack or "stopped"))

    def _await_stop(self) -> None:
        flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        for _ in range(int(_STOP_TIME / 0.001)):
            if os.waitid(os.P_PID, self._pid, flags):
                return
            select.select([], [], [], 0.001)

    def _kill(self, verdict: Verdict) -> None:
        self.verdict = verdict
        log.warning(
            "killing consumer (pid %d), %s%s",
            self._pid,
            f"request {verdict.job} {verdict.why}" if verdict.job else verdict.why,
            f"\n{verdict.stack}" if verdict.job else "",
        )
        kill_group(self._pid)


class MemoryWatch:
    """Watches how much the private memory of one consumer grows.

    Args:
        limit: bytes.
    """

    def __init__(self, pid: int, limit: int, now: float) -> None:
        import psutil

        self._errors = (OSError, psutil.Error)
        self._limit = limit
        self._first = 0
        with contextlib.suppress(*self._errors):  # it has ended already
            self._process: Any = psutil.Process(pid)
            self._first = self._private()
        self.next_look = now + _MEMORY_LOOK

    def _private(self) -> int:
        return int(self._process.memory_full_info().uss)

    def look(self, now: float) -> tuple[str, bool]:
        """Returns what is wrong, "" if nothing, and whether the consumer is to be killed at once."""
        self.next_look = now + _MEMORY_LOOK
        if not self._first:
            return "", False
        try:
            grown = self._private() - self._first
        except self._errors:  # it is ending
            return "", False
        if grown <= self._limit:
            return "", False
        text = f"its private memory grew by {grown >> 20} MiB, {self._limit >> 20} MiB allowed (--max-memory)"
        return text, grown > 1.5 * self._limit
