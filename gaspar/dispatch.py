"""Who gets which job, who holds what, what is taken back, lost or late.

Pure: no socket, clock, process or logging. What happened goes in, with the time; decisions come out.
A job is in exactly one place: waiting, in flight on one consumer, or answered.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from .frames import Payload
from .limits import AUTO_DEPTH
from .wire import job_number

MAX_AUTO_DEPTH = 24  # an outbox has room for all their results, and more
MIN_AUTO_DEPTH = 2  # one runs, one is on its way
AUTO_WORK = 3000.0  # microseconds of work that automatic depth puts behind the job that runs
PATIENCE = 0.010  # seconds that a job may run before what is behind it is taken back
_TINY, _TINY_NO_MORE = 50.0, 200.0  # microseconds that the mean job runs
_SMOOTHING = 1 / 32  # weight of the newest job in the mean run time


class Job:
    """A request on its way: its number (also its age, smaller is older), payload and whose it is."""

    __slots__ = ("arrived", "client", "deadline", "name", "number", "payload", "streamed", "tag", "tries")

    def __init__(self, number: int, payload: Payload, client: Any, tag: int, name: str, arrived: float) -> None:
        self.number = number
        self.payload = payload
        self.client = client  # None: nobody waits for it any more
        self.tag = tag  # what its client calls it
        self.name = name  # what its client wants it to be called in logs, or ""
        self.arrived = arrived  # seconds, monotonic
        self.deadline = math.inf  # seconds, monotonic
        self.tries = 0  # how often a consumer died over it
        self.streamed = False  # a part of its reply has come

    @property
    def label(self) -> str:
        """What it is called in logs."""
        return self.name or str(self.number)

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number


class _Consumer:
    __slots__ = ("dry", "in_flight", "level", "looked", "number", "occupied", "retiring", "since", "stalled")

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.in_flight: dict[int, Job] = {}
        self.level = 0  # the index of the level it stands in
        self.since = now  # when it last finished a job, or was given one while it had none
        self.dry = False  # nothing in its claim pipe: all it holds has begun
        self.looked = False  # `overdue` has named it since it last finished a job
        self.stalled = False  # its job is a long one: nothing is put behind it until it ends
        self.retiring = False
        self.occupied = False  # it still runs a job of a front that died


class Dispatcher:
    """The tables of one front.

    Args:
        generation: the front's; part of each job's number.
        depth: jobs in flight per consumer, or AUTO_DEPTH.
    """

    def __init__(self, generation: int, depth: int = AUTO_DEPTH) -> None:
        self._generation = generation
        self._counter = 0
        self._waiting: OrderedDict[int, Job] = OrderedDict()  # by number, oldest first
        self._again: list[Job] = []  # a heap: taken back from consumers, older than all that wait
        self.waiting_bytes = 0  # of the payloads of all that wait
        self._consumers: dict[int, _Consumer] = {}
        self._holder: dict[int, _Consumer] = {}  # by number of the job in flight
        self._lost: dict[int, Job] = {}  # begun by a consumer that died; a result may still come
        self._depth = depth
        self._mean_run = AUTO_WORK  # microseconds
        self.tiny = False  # the mean job is over as soon as it has begun
        self._short_run = 100.0  # microseconds; about a quarter of the jobs are shorter
        # level n: the consumers with n jobs in flight, the one that came there first, first;
        # the last level: those that get nothing now (full, stalled, retiring)
        self._levels: list[dict[int, _Consumer]] = [{} for _ in range(max(depth, MAX_AUTO_DEPTH) + 1)]

    # ---- what is where ----

    @property
    def waiting(self) -> int:
        """Jobs that no consumer has."""
        return len(self._waiting) + len(self._again)

    @property
    def in_flight(self) -> int:
        """Jobs that are with consumers."""
        return len(self._holder) + len(self._lost)

    @property
    def pending(self) -> int:
        """Jobs that are not answered."""
        return self.waiting + self.in_flight

    @property
    def consumers(self) -> list[int]:
        """The numbers of all consumers that are not retiring."""
        return [each.number for each in self._consumers.values() if not each.retiring]

    @property
    def depth(self) -> int:
        """Jobs in flight per consumer, at most; automatic: as many as make up AUTO_WORK."""
        if self._depth != AUTO_DEPTH:
            return self._depth
        wanted = 1 + int(AUTO_WORK / max(self._mean_run, 1.0))
        return max(MIN_AUTO_DEPTH, min(MAX_AUTO_DEPTH, wanted))

    @property
    def room(self) -> int:
        """How many jobs consumers would be given at once."""
        depth = self.depth
        return sum((depth - level) * len(self._levels[level]) for level in range(depth))

    # ---- consumers come and go ----

    def add_consumer(self, number: int, now: float, *, occupied: bool = False) -> None:
        """A consumer is ready, or, if `occupied`, still runs a job of a front that died (see `vacate`)."""
        self._consumers[number] = consumer = _Consumer(number, now)
        consumer.occupied = occupied
        self._levels[0][number] = consumer
        self._place(consumer)

    def vacate(self, number: int) -> None:
        """An occupied consumer is done with the job of the front that died."""
        if consumer := self._consumers.get(number):
            consumer.occupied = False
            self._place(consumer)

    def retire_consumer(self, number: int) -> None:
        """Give this consumer nothing more; the caller takes back what it has not begun."""
        if consumer := self._consumers.get(number):
            consumer.retiring = True
            self._place(consumer)

    def is_retired(self, number: int) -> bool:
        """True if a retiring consumer holds nothing any more."""
        consumer = self._consumers.get(number)
        return consumer is not None and consumer.retiring and not consumer.in_flight and not consumer.occupied

    def lose_consumer(self, number: int, unbegun: Iterable[int]) -> list[Job]:
        """A consumer is dead: what it had not begun waits again, ahead of the queue.

        Args:
            unbegun: the job numbers that its claim pipe still held.

        Returns:
            The jobs that it had begun, oldest first. Their results may still come (`done`), or they
            are given up (`give_up`).
        """
        self.give_back(number, unbegun)
        consumer = self._consumers.pop(number, None)
        if consumer is None:
            return []
        del self._levels[consumer.level][number]
        begun = list(consumer.in_flight.values())
        for job in begun:
            del self._holder[job.number]
            self._lost[job.number] = job
        return begun

    def give_up(self, number: int) -> bool:
        """Expect no result of a dead consumer's job any more. False if it came."""
        return self._lost.pop(number, None) is not None

    # ---- jobs ----

    def submit(self, payload: Payload, client: Any, now: float, tag: int = 0, name: str = "") -> Job:
        """A request is complete: it waits."""
        self._counter += 1
        number = job_number(self._generation, self._counter)
        self._waiting[number] = job = Job(number, payload, client, tag, name, now)
        self.waiting_bytes += len(payload)
        return job

    def retry(self, job: Job) -> None:
        """A job that was given up waits again, ahead of the queue."""
        job.tries += 1
        self._await_again(job)

    def drop(self, job: Job) -> bool:
        """Forget a job that waits, since nobody wants its reply any more. False if it does not wait."""
        if self._waiting.pop(job.number, None) is None:
            if job not in self._again:
                return False
            self._again.remove(job)
            heapq.heapify(self._again)
        self.waiting_bytes -= len(job.payload)
        return True

    def find(self, number: int) -> Job | None:
        """Return a job that is in flight, or is lost and may still have a result; else None."""
        consumer = self._holder.get(number)
        return consumer.in_flight[number] if consumer is not None else self._lost.get(number)

    def numbers(self, consumer_number: int) -> list[int]:
        """List the jobs that are in flight on a consumer, oldest first."""
        consumer = self._consumers.get(consumer_number)
        return list(consumer.in_flight) if consumer is not None else []

    def holder(self, number: int) -> int | None:
        """Name the consumer that a job is in flight on; None if it is on none."""
        consumer = self._holder.get(number)
        return None if consumer is None else consumer.number

    def expire(self, before: float) -> list[Job]:
        """Forget the waiting jobs that arrived before a time, oldest first."""
        expired = []
        while self._again and self._again[0].arrived < before:
            expired.append(heapq.heappop(self._again))
        while self._waiting and next(iter(self._waiting.values())).arrived < before:
            expired.append(self._waiting.popitem(last=False)[1])
        self.waiting_bytes -= sum(len(job.payload) for job in expired)
        return expired

    @property
    def oldest(self) -> float | None:
        """When the oldest waiting job arrived; None if none waits. Seconds, monotonic."""
        first = [self._again[0].arrived] if self._again else []
        if self._waiting:
            first.append(next(iter(self._waiting.values())).arrived)
        return min(first, default=None)

    def assign(self, now: float) -> list[tuple[int, Job]]:
        """Deal out what waits, the oldest to the least loaded.

        Returns:
            (consumer, job) pairs, in the order in which they are to be sent.
        """
        pairs: list[tuple[int, Job]] = []
        waiting, again, levels = self._waiting, self._again, self._levels
        level, depth = 0, self.depth
        while waiting or again:
            while level < depth and not levels[level]:
                level += 1
            if level >= depth:
                break
            job = heapq.heappop(again) if again else waiting.popitem(last=False)[1]
            self.waiting_bytes -= len(job.payload)
            consumer = next(iter(levels[level].values()))
            if not level:
                consumer.since = now
            consumer.in_flight[job.number] = job
            consumer.dry = False
            self._holder[job.number] = consumer
            self._place(consumer)
            pairs.append((consumer.number, job))
        return pairs

    def done(self, number: int, ran: int, now: float) -> Job | None:
        """A result has come.

        Args:
            number: the job's.
            ran: microseconds.

        Returns:
            The job, or None if nobody waits for it any more.
        """
        consumer = self._holder.pop(number, None)
        if consumer is None:
            return self._lost.pop(number, None)
        job = consumer.in_flight.pop(number)
        consumer.since = now
        consumer.stalled = consumer.looked = False
        # a quantile by small steps: three down for each one up keep it where a quarter is below
        self._short_run *= 1.01 if ran > self._short_run else 0.97
        self._mean_run = mean = self._mean_run + (ran - self._mean_run) * _SMOOTHING
        if mean < _TINY if not self.tiny else mean > _TINY_NO_MORE:
            self.tiny = not self.tiny
        self._place(consumer)
        return job

    def give_back(self, consumer_number: int, numbers: Iterable[int]) -> None:
        """The numbers were read from a consumer's claim pipe: these jobs wait again, ahead of the queue."""
        consumer = self._consumers.get(consumer_number)
        if consumer is None:
            return
        for number in numbers:
            job = consumer.in_flight.pop(number, None)
            if job is not None:
                del self._holder[number]
                self._await_again(job)
        self._place(consumer)

    def abandon(self, number: int) -> None:
        """An assigned job was not sent, since its client is gone: it is answered."""
        if consumer := self._holder.pop(number, None):
            del consumer.in_flight[number]
            self._place(consumer)

    def emptied(self, consumer_number: int) -> None:
        """A consumer's claim pipe was found empty: all that it holds has begun."""
        if consumer := self._consumers.get(consumer_number):
            consumer.dry = True

    # ---- what is to be taken back ----

    def donor(self) -> int | None:
        """Name a consumer that may hold unbegun jobs while another one is idle and nothing waits."""
        if not self._levels[0] or len(self._holder) < 2 or self.waiting:
            return None
        for level in reversed(self._levels[2:]):
            for consumer in level.values():
                if not consumer.dry and len(consumer.in_flight) > 1:
                    return consumer.number
        return None

    def overdue(self, now: float) -> list[int]:
        """Name the consumers whose job has run for longer than PATIENCE with others behind it, or before it.

        What has not begun is to be taken back, and what has ended to be looked for: its result may be held.
        Until that job ends nothing more is put behind it.
        """
        found = []
        for consumer in self._consumers.values():
            if len(consumer.in_flight) > 1 and not consumer.looked and now - consumer.since >= PATIENCE:
                consumer.stalled = consumer.looked = True
                self._place(consumer)
                found.append(consumer.number)
        return found

    @property
    def watched(self) -> bool:
        """True while some consumer has a job behind another, so that `overdue` is to be asked."""
        return any(len(each.in_flight) > 1 and not each.looked for each in self._consumers.values())

    def patience_ends(self, patience: float) -> float | None:
        """Say when all consumers will have been in a request for `patience` with others waiting, as it looks now.

        Returns:
            Seconds, monotonic; None if nobody waits or some consumer is idle.
        """
        if not self.waiting:
            return None
        serving = self._serving()
        if not serving or not all(each.in_flight for each in serving):
            return None
        return max(each.since for each in serving) + patience

    def to_step_aside(self, now: float, patience: float) -> list[int]:
        """Name the consumers whose place others should take: all have been in a request for longer than `patience`.

        Returns:
            Their numbers, longest first, no more than requests wait; none if one of them is about to be free.
        """
        due = self.patience_ends(patience)
        if due is None or now < due:
            return []
        longest = sorted(self._serving(), key=lambda each: each.since)
        return [each.number for each in longest[: self.waiting]]

    def _serving(self) -> list[_Consumer]:
        return [each for each in self._consumers.values() if not each.retiring and not each.occupied]

    @property
    def slack(self) -> float:
        """Seconds for which every consumer has work, and somebody waits: nothing is gained by haste. Else 0."""
        if not self.waiting:
            return 0.0
        least = next((level for level, there in enumerate(self._levels[:-1]) if there), 0)
        return max(0, least - 1) * self._short_run * 0.5e-6

    # ---- inside ----

    def _await_again(self, job: Job) -> None:
        heapq.heappush(self._again, job)
        self.waiting_bytes += len(job.payload)

    def _place(self, consumer: _Consumer) -> None:
        closed = consumer.retiring or consumer.occupied or (consumer.stalled and consumer.in_flight)
        level = len(self._levels) - 1 if closed else len(consumer.in_flight)
        if level != consumer.level:
            del self._levels[consumer.level][consumer.number]
            self._levels[level][consumer.number] = consumer
            consumer.level = level
