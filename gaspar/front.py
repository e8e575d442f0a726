"""The front's process: requests from the reception out as jobs, results in, replies to their clients.

One hub, no thread. What can be done at once is done in the hub's callbacks: dispatch, send to consumers,
drain results, reply. It also hears from the supervisor which consumers come, go and retire.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import zmq

from . import green
from .dispatch import PATIENCE, Dispatcher, Job
from .errors import Code, Failure, failure
from .limits import Limits
from .links import ConsumerLink, Results
from .process import Lifeline, keep_only
from .reception import Reception, raise_file_limit
from .scoreboard import JOB, Scoreboard
from .wire import Kind, Record, Result, generation_of

log = logging.getLogger(__name__)

_BATCH = 64  # results taken before consumers are given more
_SETTLE = 0.02  # seconds that a dead consumer's last results have to come through 0MQ
_WAITED = 0.01  # seconds; a client that has waited for longer is looked at before its job is sent
_SHORTEST_REST, _LONGEST_REST = 0.0002, 0.0005  # seconds
_TICK = 0.05  # seconds between looks while draining
_OCCUPIED_LOOK = 0.005  # seconds between looks at consumers that still run jobs of a front that died
_NO_CONSUMER = 10.0  # seconds that requests wait while there is no consumer at all


def main(
    listeners: list[socket.socket],
    folder: str,
    scoreboard: Scoreboard,
    limits: Limits,
    generation: int,
    lifeline: Lifeline,
) -> int:
    """Be a front: serve until drained. Returns the exit code."""
    keep_only([lifeline.fileno(), *(each.fileno() for each in listeners)], files=False)
    raise_file_limit()
    green.start()
    front = Front(folder, scoreboard, limits, generation, lifeline)
    front.serve(listeners)
    return 0


class Front:
    """The front of one daemon."""

    def __init__(
        self, folder: str, scoreboard: Scoreboard, limits: Limits, generation: int, lifeline: Lifeline
    ) -> None:
        self._limits = limits
        self._folder = folder
        self._scoreboard = scoreboard
        self._generation = generation
        self._lifeline = lifeline
        self._dispatcher = Dispatcher(generation, limits.depth)
        self._reception = Reception(limits, self._dispatcher, self._on_requests)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._results = Results(self._context, folder, generation)
        self._links: dict[int, ConsumerLink] = {}
        self._pids: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._watching = False  # the next look at overdue jobs is scheduled
        self._expiry: float | None = None  # when the next look at who waited too long is due
        self._alone_since = green.monotonic()  # since when there is no consumer
        self._occupied: dict[int, memoryview] = {}  # slots of consumers that run jobs of a front that died
        self._orphaned = False
        self._retiring: set[int] = set()
        self._draining = False
        self._drain_end = 0.0
        self._done = green.Latch()

    def serve(self, listeners: list[socket.socket]) -> None:
        """Serve until told to drain and drained, or until the grace is over."""
        green.watch(self._results.fileno(), self._on_results)
        self._listen_to_parent()
        self._reception.open(listeners)
        self._lifeline.send(Kind.READY)
        self._on_results()  # the descriptor is edge-triggered: what came before would wait for ever
        self._done.wait()

    # ---- jobs out ----

    def _on_requests(self) -> None:
        """Requests may have come in, or what held them back is gone."""
        self._pump()
        self._rest()

    def _pump(self) -> None:
        """Deal out what waits; let idle consumers have what others have not begun."""
        dispatcher = self._dispatcher
        self._send_assigned()
        while (donor := dispatcher.donor()) is not None:
            number = self._links[donor].take_back()
            if not number:
                dispatcher.emptied(donor)
                continue
            dispatcher.give_back(donor, [number])
            self._send_assigned()
        if not self._watching and dispatcher.watched:
            self._watching = True
            green.later(PATIENCE, self._on_patience_over)
        oldest = dispatcher.oldest if self._limits.max_wait or not self._links else None
        if oldest is not None and self._expiry is None:
            self._schedule_expiry(oldest)

    def _send_assigned(self) -> None:
        now = green.monotonic()
        if self._reception.holds_too_much():
            return
        while pairs := self._dispatcher.assign(now):
            left = False
            for consumer, job in pairs:
                if now - job.arrived > _WAITED and job.client.is_gone():
                    self._dispatcher.abandon(job.number)
                    job.client.drop()
                    left = True
                else:
                    self._links[consumer].send(job.number, job.payload)
            if not left:
                return

    def _schedule_expiry(self, oldest: float) -> None:
        """Look again when the oldest waiting job has waited for as long as it may."""
        wait = self._limits.max_wait or _NO_CONSUMER
        self._expiry = max(oldest + wait, green.monotonic()) + 0.001
        green.later(self._expiry - green.monotonic(), self._on_expiry)

    def _on_expiry(self) -> None:
        self._expiry = None
        now = green.monotonic()
        if self._limits.max_wait:
            for job in self._dispatcher.expire(now - self._limits.max_wait):
                text = (
                    f"waited {now - job.arrived:.3f} s for a consumer, {self._limits.max_wait:g} allowed (--max-wait)"
                )
                log.warning("request %d of %s: %s", job.number, job.client, text)
                job.client.fail(failure(Code.TIMEOUT, text))
        if not self._links and now - self._alone_since >= _NO_CONSUMER:
            for job in self._dispatcher.expire(now - _NO_CONSUMER):
                text = f"there has been no consumer for {now - self._alone_since:.0f} s"
                log.warning("request %d of %s: %s", job.number, job.client, text)
                job.client.fail(failure(Code.UNAVAILABLE, text))
        self._look_if_drained()
        self._pump()

    def _on_patience_over(self) -> None:
        self._watching = False
        for consumer in self._dispatcher.overdue(green.monotonic()):
            self._take_back_all(consumer)
        self._pump()

    def _take_back_all(self, consumer: int) -> None:
        self._dispatcher.give_back(consumer, self._links[consumer].drain())
        self._dispatcher.emptied(consumer)

    # ---- results in, replies out ----

    def _on_results(self) -> None:
        while results := self._results.drain(_BATCH):
            self._take(results)
        self._rest()

    def _rest(self) -> None:
        """Let events gather while all consumers are busy and requests wait, as network cards do.

        Each turn of the hub costs wake-ups of threads and processes that the handlers could use.
        """
        slack = self._dispatcher.slack
        if slack >= _SHORTEST_REST:
            green.rest(min(slack, _LONGEST_REST))

    def _take(self, results: list[Result]) -> None:
        now = green.monotonic()
        answered = [(self._dispatcher.done(each.number, each.ran, now), each) for each in results]
        self._pump()  # the consumers go on while the replies are sent
        for job, result in answered:
            if job is not None:
                self._answer(job, result)
        for number in [each for each in self._retiring if self._dispatcher.is_retired(each)]:
            self._on_retired(number)
        self._look_if_drained()

    def _answer(self, job: Job, result: Result) -> None:
        if result.code:
            job.client.fail(Failure(Code(result.code), bytes(result.body)))
        else:
            job.client.reply(result.body)

    # ---- what the supervisor says ----

    def _listen_to_parent(self) -> None:
        def on_record() -> None:
            records = self._lifeline.recv()
            if records is None:
                stop()
                self._on_orphaned()
                return
            for record in records:
                self._on_record(record)
            self._pump()

        stop = green.watch(self._lifeline.fileno(), on_record)

    def _on_record(self, record: Record) -> None:
        kind, fields = record
        if kind is Kind.CONSUMER_READY:
            self._add_consumer(fields["number"], fields["slot"], fields["pid"])
        elif kind is Kind.CONSUMER_GONE:
            self._lose_consumer(fields["number"], fields)
        elif kind is Kind.RETIRE:
            self._retire(fields["number"])
        elif kind is Kind.DRAIN:
            self._drain(fields["grace"])

    def _add_consumer(self, number: int, slot: int, pid: int) -> None:
        try:
            self._links[number] = link = ConsumerLink(self._context, self._folder, number)
        except OSError as error:  # it is gone again; the supervisor is about to say so
            log.debug("consumer %d: %s", number, error)
            return
        self._pids[number], self._slots[number] = pid, slot
        link.drain()  # what a front that died had given it: nobody waits for it any more
        running = self._scoreboard.slot(slot)
        occupied = self._is_of_another_front(running[JOB])
        self._dispatcher.add_consumer(number, green.monotonic(), occupied=occupied)
        if occupied:
            if not self._occupied:
                green.later(_OCCUPIED_LOOK, self._look_at_occupied)
            self._occupied[number] = running

    def _is_of_another_front(self, job: int) -> bool:
        return bool(job) and generation_of(job) != self._generation

    def _look_at_occupied(self) -> None:
        for number, running in list(self._occupied.items()):
            if not self._is_of_another_front(running[JOB]):
                del self._occupied[number]
                self._dispatcher.vacate(number)
                if self._dispatcher.is_retired(number):
                    self._on_retired(number)
        self._pump()
        if self._occupied:
            green.later(_OCCUPIED_LOOK, self._look_at_occupied)

    def _retire(self, number: int) -> None:
        """Give a consumer nothing more; say so when it holds nothing any more."""
        if number in self._links:
            self._retiring.add(number)
            self._dispatcher.retire_consumer(number)
            self._take_back_all(number)
            if self._dispatcher.is_retired(number):
                self._on_retired(number)

    def _on_retired(self, number: int) -> None:
        self._retiring.discard(number)
        self._lifeline.send(Kind.RETIRED, number=number)

    def _lose_consumer(self, number: int, end: dict[str, Any]) -> None:
        """A consumer has ended; `end` is what its forker said of that."""
        link = self._links.pop(number, None)
        if link is None:
            return
        if not self._links:
            self._alone_since = green.monotonic()
        self._pids.pop(number)
        slot = self._slots.pop(number)
        outbox = self._scoreboard.outbox(slot)
        running = end["job"] or self._scoreboard.slot(slot)[JOB]  # its forker may have died with it
        self._occupied.pop(number, None)
        self._retiring.discard(number)
        begun = self._dispatcher.lose_consumer(number, link.drain())
        link.close()

        def give_up(job: Job) -> None:
            self._on_results()
            if self._dispatcher.give_up(job.number):
                self._on_lost(job, end)

        for job in begun:
            if result := outbox.find(job.number):
                self._take([result])
            elif job.number == running:
                give_up(job)
            else:  # it had ended, with a long reply: that may be on its way
                green.later(_SETTLE, lambda job=job: give_up(job))  # type: ignore[misc]

    def _on_lost(self, job: Job, end: dict[str, Any]) -> None:
        """A job had begun, and its consumer has ended without a result."""
        if "why" in end and job.number == end["job"]:
            text = end["why"]
            why = failure(Code.TIMEOUT, text, stack=end["stack"])
        else:
            text = f"its consumer (pid {end['pid']}) ended: {end['exit']}{end.get('used', '')}"
            if job.tries < self._limits.retries:
                log.warning("request %d of %s: %s; trying again", job.number, job.client, text)
                self._dispatcher.retry(job)
                self._pump()
                return
            why = failure(Code.CONSUMER_LOST, text, exit=end["exit"])
        log.warning("request %d of %s lost: %s", job.number, job.client, text)
        job.client.fail(why)
        self._look_if_drained()

    # ---- the end ----

    def _drain(self, grace: float) -> None:
        """Accept what is pending, listen no more, finish what was accepted."""
        if self._draining:
            return
        self._draining = True
        self._drain_end = green.monotonic() + grace
        self._reception.close()
        self._on_tick()

    def _on_orphaned(self) -> None:
        self._orphaned = True
        self._drain(self._limits.grace)

    def _on_tick(self) -> None:
        now = green.monotonic()
        if now >= self._drain_end:
            left = self._dispatcher.pending + len(self._reception.busy)
            if left:
                log.warning("%d requests were not finished within the grace", left)
            self._done.open()
            return
        self._reception.end_stale_readers(now)
        if self._orphaned:
            self._look_for_consumers()
        self._look_if_drained()
        green.later(_TICK, self._on_tick)

    def _look_if_drained(self) -> None:
        if self._draining and not self._dispatcher.pending and not self._reception.busy:
            self._done.open()

    def _look_for_consumers(self) -> None:
        """Without a supervisor nobody says which consumers are gone."""
        for number, pid in list(self._pids.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                self._lose_consumer(number, {"pid": pid, "exit": "unknown, without a supervisor", "job": 0})
        self._pump()
        if not self._pids and self._dispatcher.waiting:
            self._drain_end = 0.0  # nobody will ever run them
