"""What the control address answers: `stats`, `health`, `consumers`, `stack N`, `reload`, `scale N`, `drain`.

A second reception, with requests that are answered here, at once, and never go to a consumer.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import socket
from collections.abc import Callable, Collection
from typing import Any

from . import green
from .dispatch import Dispatcher, Job
from .errors import Code, failure
from .limits import MAX_PROCESSES, Limits
from .overview import Overview
from .reception import Reception
from .wire import Kind

log = logging.getLogger(__name__)

_STACK_TIME = 2.0  # seconds that a stack has to come
_MAX_REQUEST = 4096  # bytes
_COMMANDS = "stats, health, consumers, stack N, reload, scale N, drain"


class _Refused(Exception):
    """What is asked cannot be answered."""


class Control:
    """The control address of one front.

    Args:
        order: tells the supervisor something.
    """

    def __init__(self, overview: Overview, server: str, order: Callable[..., object]) -> None:
        self._overview = overview
        self._order = order
        self._asked: dict[int, Job] = {}  # those who wait for a stack
        self._questions = itertools.count(1)
        self._dispatcher = Dispatcher(0)
        limits = Limits(max_connections=64, max_in_flight=64, max_waiting_bytes=64 * 2**20)
        self._reception = Reception(limits, self._dispatcher, self, server)
        self._commands: dict[str, Callable[[], dict[str, Any]]] = {
            "stats": overview.stats,
            "health": overview.health,
            "consumers": lambda: {"consumers": overview.consumers()},
            "reload": lambda: self._pass_on(Kind.RELOAD),
            "drain": lambda: self._pass_on(Kind.DRAIN),
        }

    def open(self, listener: socket.socket) -> None:
        """Answer whoever connects."""
        self._reception.open([listener])

    # ---- what the reception needs ----

    def on_requests(self) -> None:
        """Requests may have come in."""
        for job in self._dispatcher.expire(math.inf):
            try:
                self._obey(job)
            except _Refused as error:
                self._refuse(job, error)

    def expect(self, job: Job) -> None:
        """A job has a deadline; each answer comes within seconds anyway."""

    def cancel(self, jobs: Collection[Job]) -> list[tuple[int, int]]:
        """Nobody waits for these any more."""
        for job in jobs:
            job.client = None
        return [(0, 0)] * len(jobs)

    def refused(self, code: Code) -> None:
        """Too many requests at once, or none of this protocol; nobody counts that."""

    def credit(self, job: Job, size: int) -> None:
        """Nothing is streamed here."""

    # ---- requests ----

    def _obey(self, job: Job) -> None:
        if len(job.payload) > _MAX_REQUEST:
            raise _Refused(f"a request of {len(job.payload)} bytes: expected one of {_COMMANDS}")
        words = bytes(job.payload).decode(errors="replace").split()
        if len(words) == 1 and words[0] in self._commands:
            self._answer(job, self._commands[words[0]]())
        elif words[:1] == ["stack"]:
            self._ask_stack(job, self._number(words, "a consumer's number, as `consumers` lists them", 2**31))
        elif words[:1] == ["scale"]:
            count = self._number(words, "how many consumers there should be", MAX_PROCESSES)
            self._answer(job, self._pass_on(Kind.SCALE, processes=count))
        else:
            raise _Refused(f"{' '.join(words)[:100]!r}: expected one of {_COMMANDS}")

    def _number(self, words: list[str], what: str, most: int) -> int:
        if len(words) == 2 and words[1].isascii() and words[1].isdigit() and len(words[1]) < 11:
            number = int(words[1])
            if 1 <= number <= most:
                return number
        raise _Refused(f"{' '.join(words)[:100]!r}: expected {words[0]} N, {what}, from 1 to {most}")

    def _pass_on(self, kind: Kind, **fields: Any) -> dict[str, Any]:
        if self._overview.draining and kind is not Kind.DRAIN:
            raise _Refused(f"{kind.name.lower()}: the daemon is draining and about to stop")
        log.info("%s was ordered at the control address", " ".join([kind.name.lower(), *map(str, fields.values())]))
        self._order(kind, **fields)
        return {"ordered": kind.name.lower(), **fields}

    # ---- stacks ----

    def _ask_stack(self, job: Job, number: int) -> None:
        if not self._overview.names(number):
            raise _Refused(f"there is no consumer {number}; `consumers` lists those that there are")
        asked = next(self._questions)
        self._asked[asked] = job
        self._order(Kind.STACK, number=number, asked=asked)
        green.later(_STACK_TIME, lambda: self._give_up(asked, number))

    def on_stack(self, fields: dict[str, Any]) -> None:
        """A stack has come."""
        job = self._asked.pop(fields.pop("asked"), None)
        if job is None:
            return
        if fields["stack"]:
            self._answer(job, fields)
        else:
            self._refuse(job, _Refused(f"consumer {fields['number']} has ended"))

    def _give_up(self, asked: int, number: int) -> None:
        if job := self._asked.pop(asked, None):
            self._refuse(job, _Refused(f"the stack of consumer {number} did not come within {_STACK_TIME:g} s"))

    # ---- answers ----

    def _answer(self, job: Job, answer: dict[str, Any]) -> None:
        if job.client is not None:
            took = max(1, int((green.monotonic() - job.arrived) * 1e6))
            job.client.reply(job, json.dumps(answer).encode(), 0, took)

    def _refuse(self, job: Job, error: _Refused) -> None:
        log.warning("control address: %s", error)
        if job.client is not None:
            why = failure(Code.HANDLER_ERROR, str(error), type="ControlError")
            job.client.fail(job, why, 0, 1)
