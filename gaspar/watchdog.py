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

    job: int  # what it ran; 0: nothing
    why: str  # one line
    stack: str  # of Python, innermost call first; "stopped" if it could not say


class Watchdog:
    """Watches one consumer.

    Args:
        stack: read end of the pipe that faulthandler writes to.
        timeout: longest run of one request, seconds; 0: none.
    """

    def __init__(self, pid: int, slot: memoryview, stack: int, timeout: float) -> None:
        self._pid = pid
        self._slot = slot
        self._stack_fd = stack
        self._timeout = timeout
        self._suspect = 0  # the job that has reached its limit
        self._killed_at = 0.0  # when the suspect is killed, at the latest
        self._stack = b""
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
        elif self._timeout:
            job, begun = self._running()
            dues.append((begun if job else now) + self._timeout)
        if self._stopped_since:
            dues.append(self._stopped_since + STOPPED_LIMIT)
        return min(dues, default=None)

    def look(self, now: float) -> None:
        """Do what is due; a consumer that is killed gets a `verdict`."""
        if self.verdict:
            return
        job, begun = self._running()
        if self._stopped_since and now - self._stopped_since >= STOPPED_LIMIT:
            text = f"its process was stopped by somebody for {STOPPED_LIMIT:g} s"
            self._kill(Verdict(job, text, "stopped"))
        elif self._suspect and job != self._suspect:
            self._suspect = 0  # it ended after all
        elif self._suspect:
            before = len(self._stack)
            self._read_stack()
            # faulthandler writes in pieces: wait until a look brings nothing new
            if 0 < before == len(self._stack) or now >= self._killed_at:
                self._execute(now - begun)
        elif self._timeout and job and now - begun >= self._timeout:
            self._suspect, self._stack = job, b""
            self._killed_at = now + _STACK_TIME
            self._read_stack()
            self._stack = b""  # of an earlier suspect
            os.kill(self._pid, STACK_SIGNAL)

    def _running(self) -> tuple[int, float]:
        """Return the job that runs, or 0, and when it began."""
        while True:
            job, begun = self._slot[JOB], self._slot[BEGUN]
            if job == self._slot[JOB]:
                return job, begun / 1e9

    def _execute(self, ran: float) -> None:
        """Stop it, look whether it still runs the same job, and kill it or let it go on."""
        os.kill(self._pid, signal.SIGSTOP)
        self._await_stop()
        self._read_stack()
        if self._slot[JOB] != self._suspect:
            self._suspect = 0
            os.kill(self._pid, signal.SIGCONT)
            return
        stack = self._users_stack()
        place = next((line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")), "")
        where = f"hung at {place}" if place else "its process was stopped"
        why = f"ran for {ran:.2f} s, {self._timeout:g} allowed (--timeout); {where}"
        self._kill(Verdict(self._suspect, why, stack or "stopped"))

    def _users_stack(self) -> str:
        """Return the stack without gaspar's own part, which is the same for all."""
        lines = self._stack.decode(errors="replace").splitlines()
        own = next((n for n, line in enumerate(lines) if _OWN_FRAME in line), len(lines))
        return "\n".join(lines[:own])

    def _await_stop(self) -> None:
        flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        for _ in range(int(_STOP_TIME / 0.001)):
            if os.waitid(os.P_PID, self._pid, flags):
                return
            select.select([], [], [], 0.001)

    def _read_stack(self) -> None:
        try:
            while len(self._stack) < _MAX_STACK and (data := os.read(self._stack_fd, _MAX_STACK)):
                self._stack += data
        except BlockingIOError:
            pass

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
