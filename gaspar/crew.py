"""The consumers of one front: the ends to each, what each runs, who retires, who still works for another front."""

from __future__ import annotations

import logging
import os
import time
from typing import NamedTuple

import zmq

from .dispatch import Dispatcher, Job
from .frames import Payload
from .links import ConsumerLink
from .scoreboard import BEGUN, DONE, JOB, Outbox, Scoreboard
from .wire import CLOSE, Result, generation_of, job_number

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """One consumer, as its front sees it."""

    pid: int
    link: ConsumerLink
    slot: memoryview
    outbox: Outbox
    forked: float  # seconds, monotonic
    generation: int  # of its code


STATES = ("idle", "busy", "aside", "leaving")  # of a consumer; the last two get no more requests


class Standing(NamedTuple):
    """What one consumer does now."""

    number: int
    pid: int
    state: str  # one of STATES
    age: float | None  # seconds since the request that it runs has begun
    request: str | None  # what that is called
    done: int  # requests
    forked: float  # seconds, monotonic
    generation: int


class Crew:
    """All consumers of one front. Tells the dispatcher who comes, goes and retires.

    Args:
        generation: the front's.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: str,
        scoreboard: Scoreboard,
        dispatcher: Dispatcher,
        generation: int,
    ) -> None:
        self._context = context
        self._folder = folder
        self._scoreboard = scoreboard
        self._dispatcher = dispatcher
        self._generation = generation
        self._members: dict[int, Member] = {}
        self._retiring: set[int] = set()
        self._going: dict[int, str] = {}  # those that have been told to, and the state that this is
        self._occupied: set[int] = set()  # those that run jobs of a front that died

    def __bool__(self) -> bool:
        return bool(self._members)

    # ---- who comes and goes ----

    def add(self, number: int, slot: int, pid: int, forked: float, generation: int, now: float) -> None:
        """A consumer is ready."""
        try:
            link = ConsumerLink(self._context, self._folder, number)
        except OSError as error:  # it is gone again; the supervisor is about to say so
            log.debug("consumer %d: %s", number, error)
            return
        member = Member(pid, link, self._scoreboard.slot(slot), self._scoreboard.outbox(slot), forked, generation)
        self._members[number] = member
        link.drain()  # what a front that died had given it: nobody waits for it any more
        link.credit(job_number(self._generation, 0), CLOSE)  # whatever it streams to a front that died
        occupied = self._works_for_another(member)
        if occupied:
            self._occupied.add(number)
        self._dispatcher.add_consumer(number, now, occupied=occupied)

    @property
    def occupied(self) -> bool:
        """True while some of them run jobs of a front that died, so that `look_at_occupied` is to be called."""
        return bool(self._occupied)

    def look_at_occupied(self) -> None:
        """Let those go to work that have ended what they did for a front that died."""
        for number in list(self._occupied):
            if not self._works_for_another(self._members[number]):
                self._occupied.discard(number)
                self._dispatcher.vacate(number)

    def _works_for_another(self, member: Member) -> bool:
        job = member.slot[JOB]
        return bool(job) and generation_of(job) != self._generation

    def retire(self, number: int, *, aside: bool = False) -> None:
        """Give a consumer nothing more; `take_retired` says when it holds nothing any more."""
        if number in self._members:
            self._retiring.add(number)
            self._going[number] = "aside" if aside else "leaving"
            self._dispatcher.retire_consumer(number)
            self.take_back_all(number)

    def take_retired(self) -> list[int]:
        """Return those that have retired since the last call."""
        if not self._retiring:
            return []
        retired = [number for number in self._retiring if self._dispatcher.is_retired(number)]
        self._retiring.difference_update(retired)
        return retired

    def remove(self, number: int) -> tuple[Member, list[Job]] | None:
        """A consumer has ended: what it had not begun waits again. Returns it and what it had begun."""
        member = self._members.pop(number, None)
        if member is None:
            return None
        self._occupied.discard(number)
        self._retiring.discard(number)
        self._going.pop(number, None)
        begun = self._dispatcher.lose_consumer(number, member.link.drain())
        member.link.close()
        return member, begun

    def find_gone(self) -> list[tuple[int, int]]:
        """Look who has ended, when nobody else says so; returns (number, pid) pairs."""
        return [(number, each.pid) for number, each in self._members.items() if not _is_there(each.pid)]

    # ---- what they do ----

    def standing(self) -> list[Standing]:
        """Say what each does now."""
        now = time.monotonic_ns()
        found = []
        for number, each in self._members.items():
            job, begun = each.slot[JOB], each.slot[BEGUN]
            known = self._dispatcher.find(job) if job else None
            state = self._going.get(number) or ("busy" if job else "idle")
            age = max(0, now - begun) / 1e9 if job else None
            request = None if not job else known.label if known else str(job)
            found.append(Standing(number, each.pid, state, age, request, each.slot[DONE], each.forked, each.generation))
        return found

    def all_held(self, now: float, seconds: float, burst: int) -> bool:
        """True if each has been in one request for that long, and no further ones may take their places."""
        aside = sum(state == "aside" for state in self._going.values())
        serving = [each.slot for number, each in self._members.items() if number not in self._going]
        limit = (now - seconds) * 1e9
        return aside >= burst and all(slot[JOB] and slot[BEGUN] < limit for slot in serving)

    # ---- jobs ----

    def name(self, number: int, job: Job) -> None:
        """Tell a consumer what a job that is about to be sent is called in logs."""
        self._members[number].link.name(job.number, job.name)

    def send(self, number: int, jobs: list[tuple[int, Payload]]) -> None:
        """Send a consumer jobs, (number, payload) each."""
        self._members[number].link.send_all(jobs)

    def take_back(self, number: int) -> None:
        """Take back the oldest job that a consumer has not begun, if there is one."""
        job = self._members[number].link.take_back()
        if job:
            self._dispatcher.give_back(number, [job])
        else:
            self._dispatcher.emptied(number)

    def take_back_all(self, number: int) -> None:
        """Take back all jobs that a consumer has not begun."""
        self._dispatcher.give_back(number, self._members[number].link.drain())
        self._dispatcher.emptied(number)

    def results_held(self, number: int) -> list[Result]:
        """Return the results that a consumer has noted, and perhaps not sent yet, of jobs that are in flight on it."""
        outbox = self._members[number].outbox
        found = [outbox.find(job) for job in self._dispatcher.numbers(number)]
        return [result for result in found if result is not None]

    def credit(self, job: Job, size: int) -> None:
        """Say that a part of a job's streamed reply, of so many bytes, was taken; CLOSE: that no more is wanted."""
        number = self._dispatcher.holder(job.number)
        if number is not None:
            self._members[number].link.credit(job.number, size)

    def begun(self, job: Job) -> int:
        """Say when a consumer began a job that it runs now; nanoseconds, 0 if none runs it."""
        number = self._dispatcher.holder(job.number)
        if number is None:
            return 0
        slot = self._members[number].slot
        begun = slot[BEGUN]
        return begun if slot[JOB] == job.number else 0


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
