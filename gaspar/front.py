"""The front's process: requests from the reception out as jobs, results in, replies to their clients.

One hub, no thread. What can be done at once is done in the hub's callbacks: dispatch, send to consumers,
drain results, reply. It also hears from the supervisor which consumers come, go and retire.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from . import green
from .arena import Arena, Lender
from .control import Control
from .crew import Crew
from .deadlines import Deadlines
from .dispatch import PATIENCE, Dispatcher, Job
from .doors import Doors
from .errors import Code, Failure, failure
from .frames import Payload
from .limits import Limits
from .links import Results, make_context
from .overview import Overview
from .process import Lifeline, keep_only, let_interrupt
from .reception import Reception, raise_file_limit
from .scoreboard import JOB, Scoreboard
from .stats import Stats
from .version import __version__
from .wire import CLOSE, PART, Kind, Record, Result

log = logging.getLogger(__name__)

_BATCH = 64  # results taken before consumers are given more
_SETTLE = 0.02  # seconds that a dead consumer's last results have to come through 0MQ
_WAITED = 0.01  # seconds; a client that has waited for longer is looked at before its job is sent
_SHORTEST_REST, _LONGEST_REST = 0.0002, 0.0005  # seconds
_TICK = 0.05  # seconds between looks while draining
_OCCUPIED_LOOK = 0.005  # seconds between looks at consumers that still run jobs of a front that died
_NO_CONSUMER = 10.0  # seconds that requests wait while there is no consumer at all


def main(
    doors: Doors,
    folder: str,
    scoreboard: Scoreboard,
    arena: Arena | None,
    limits: Limits,
    generation: int,
    lifeline: Lifeline,
) -> int:
    """Be a front: serve until drained. Returns the exit code."""
    keep_only([lifeline.fileno(), *(each.fileno() for each in doors.all())], files=False)
    raise_file_limit()
    green.start()
    lender = Lender(arena, scoreboard, generation, green.later)
    front = Front(folder, scoreboard, lender, limits, generation, lifeline, doors.addresses())
    front.serve(doors)
    return 0


class Front:
    """The front of one daemon."""

    def __init__(
        self,
        folder: str,
        scoreboard: Scoreboard,
        lender: Lender,
        limits: Limits,
        generation: int,
        lifeline: Lifeline,
        addresses: list[str],
    ) -> None:
        self._limits = limits
        self._lifeline = lifeline
        self._dispatcher = Dispatcher(generation, limits.depth)
        server = f"gaspar/{__version__}"
        self._reception = Reception(limits, self._dispatcher, self, server, lender.lend)
        self._deadlines = Deadlines()
        self._deadline_look: Callable[[], None] | None = None  # prevents the next look at them
        self._context, self._threads = make_context()
        self._tiny = False  # jobs are
        self._results = Results(self._context, folder, generation, lender.at)
        self._crew = Crew(self._context, folder, scoreboard, self._dispatcher, generation)
        self._stats = Stats(green.monotonic())
        self._saw_wait, self._saw_run = self._stats.waits.append, self._stats.runs.append
        self._overview = Overview(
            server, addresses, generation, limits, self._stats, self._dispatcher, self._reception, self._crew
        )
        self._control = Control(self._overview, server, lifeline.send)
        self._watching = False  # the next look at overdue jobs is scheduled
        self._looking_for_long = False  # the next look at who should step aside is scheduled
        self._asked_aside = 0.0  # when the supervisor was last asked for that
        self._expiry: float | None = None  # when the next look at who waited too long is due
        self._alone_since = green.monotonic()  # since when there is no consumer
        self._orphaned = False
        self._draining = False
        self._drain_end = 0.0
        self._done = green.Latch()

    def serve(self, doors: Doors) -> None:
        """Serve until told to drain and drained, or until the grace is over."""
        green.watch(self._results.fileno(), self._on_results)
        self._listen_to_parent()
        self._reception.open(doors.clients)
        assert doors.control
        self._control.open(doors.control)
        if doors.metrics:
            from . import metrics  # Prometheus' library may not be there

            metrics.serve(doors.metrics, self._overview)
        green.later(1.0, self._on_second)
        self._lifeline.send(Kind.READY)
        self._on_results()  # the descriptor is edge-triggered: what came before would wait for ever
        self._done.wait()

    # ---- jobs out ----

    def on_requests(self) -> None:
        """Requests may have come in, or what held them back is gone."""
        self._pump()
        self._rest()

    def _pump(self) -> None:
        """Deal out what waits; let idle consumers have what others have not begun."""
        dispatcher = self._dispatcher
        waiting = dispatcher.waiting
        if waiting > self._stats.most_waiting:
            self._stats.most_waiting = waiting
        self._send_assigned()
        while (donor := dispatcher.donor()) is not None:
            self._crew.take_back(donor)
            self._send_assigned()
        if not self._watching and dispatcher.watched:
            self._watching = True
            green.later(PATIENCE, self._on_patience_over)
        if self._limits.burst and not self._looking_for_long and dispatcher.waiting:
            self._look_for_long_later()
        oldest = dispatcher.oldest if self._limits.max_wait or not self._crew else None
        if oldest is not None and self._expiry is None:
            self._schedule_expiry(oldest)

    def _send_assigned(self) -> None:
        now = green.monotonic()
        if self._reception.holds_too_much():
            return
        while pairs := self._dispatcher.assign(now):
            left = False
            batches: dict[int, list[tuple[int, Payload]]] = {}
            for consumer, job in pairs:
                if job.deadline <= now:
                    self._dispatcher.abandon(job.number)
                    self._on_too_late(job, now)
                    left = True
                elif now - job.arrived > _WAITED and job.client.is_gone():
                    self._dispatcher.abandon(job.number)
                    self._stats.count(Code.CANCELLED)
                    job.client.drop()
                    left = True
                else:
                    if job.name:
                        self._crew.name(consumer, job)
                    batches.setdefault(consumer, []).append((job.number, job.payload))
            for consumer, jobs in batches.items():
                self._crew.send(consumer, jobs)
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
                self._warn(job, text)
                self._fail(job, failure(Code.TIMEOUT, text), now - job.arrived)
        if not self._crew and now - self._alone_since >= _NO_CONSUMER:
            for job in self._dispatcher.expire(now - _NO_CONSUMER):
                text = f"there has been no consumer for {now - self._alone_since:.0f} s"
                self._warn(job, text)
                self._fail(job, failure(Code.UNAVAILABLE, text), now - job.arrived)
        self._look_if_drained()
        self._pump()

    def _on_patience_over(self) -> None:
        self._watching = False
        for consumer in self._dispatcher.overdue(green.monotonic()):
            self._crew.take_back_all(consumer)
            self._take(self._crew.results_held(consumer))
        self._pump()

    def _look_for_long_later(self) -> None:
        """Look again when all consumers may have been in a request for too long while others wait."""
        due = self._dispatcher.patience_ends(self._limits.patience)
        if due is not None:
            self._looking_for_long = True
            due = max(due, self._asked_aside + self._limits.patience)
            green.later(max(0.0, due - green.monotonic()), self._on_long)

    def _on_long(self) -> None:
        self._looking_for_long = False
        now = green.monotonic()
        if numbers := self._dispatcher.to_step_aside(now, self._limits.patience):
            self._asked_aside = now
            self._lifeline.send(Kind.ASIDE, numbers=numbers)
        self._pump()

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
        answered = []
        for each in results:
            if each.code == PART:
                self._on_part(each)
            elif (job := self._dispatcher.done(each.number, each.ran, now)) is not None and job.client is not None:
                answered.append((job, each))
        self._pump()  # the consumers go on while the replies are sent
        self._stats.fold_if_many()
        if self._tiny != self._dispatcher.tiny:
            self._on_tiny_changed()
        self._reception.gather()
        try:
            for job, result in answered:
                self._answer(job, result)
        finally:
            self._reception.flush()
        self._tell_retired()
        self._look_if_drained()

    def _on_tiny_changed(self) -> None:
        """The 0MQ thread would take the CPU from us at the first of many tiny jobs; at others its haste saves time."""
        self._tiny = self._dispatcher.tiny
        let_interrupt(self._threads, not self._tiny)

    def _tell_retired(self) -> None:
        for number in self._crew.take_retired():
            self._lifeline.send(Kind.RETIRED, number=number)

    def _answer(self, job: Job, result: Result) -> None:
        client, job.client, job.payload = job.client, None, b""
        if client is None:  # it was let go while the consumers were given more
            return
        waited = result.begun // 1000 - int(job.arrived * 1e6)
        if waited < 0:
            waited = 0
        self._saw_wait(waited)
        self._saw_run(result.ran)
        if result.code:
            self._stats.count_result(result.code)
            client.fail(job, Failure(Code(result.code), bytes(result.body)), waited, result.ran)
        else:
            client.reply(job, result.body, waited, result.ran)

    def _warn(self, job: Job, text: str) -> None:
        client = job.client or "a client that has left"
        log.warning("request %s of %s: %s", job.label, client, text, extra={"request": job.label})

    def _fail(self, job: Job, why: Failure, waited: float, ran: float = 0.0) -> None:
        """Answer a job with an error, if somebody waits for it; seconds, `ran` 0 if it has not begun."""
        if job.client is not None:
            client, job.client = job.client, None
            self._stats.count(why.code)
            client.fail(job, why, int(waited * 1e6), int(ran * 1e6))

    def _on_part(self, result: Result) -> None:
        """A part of a streamed reply has come."""
        job = self._dispatcher.find(result.number)
        if job is None:
            return
        job.streamed = True
        if job.client is None:
            self.credit(job, CLOSE)
        else:
            job.client.part(job, result.body)

    def credit(self, job: Job, size: int) -> None:
        """A client has taken a part of a streamed reply, of so many bytes; or wants no more, CLOSE."""
        self._crew.credit(job, size)

    # ---- deadlines and cancelling ----

    def expect(self, job: Job) -> None:
        """A job has a deadline."""
        if self._deadlines.add(job):
            self._look_at_deadlines_later()

    def _look_at_deadlines_later(self) -> None:
        if self._deadline_look is not None:
            self._deadline_look()
        first = self._deadlines.first
        wait = None if first is None else max(0.0, first - green.monotonic())
        self._deadline_look = None if wait is None else green.later(wait, self._on_deadline)

    def _on_deadline(self) -> None:
        self._deadline_look = None
        now = green.monotonic()
        for job in self._deadlines.passed(now):
            self._on_too_late(job, now)
        self._look_at_deadlines_later()
        self._look_if_drained()
        self._pump()

    def _on_too_late(self, job: Job, now: float) -> None:
        client = job.client
        if client is not None:
            ((waited, ran),) = self._release([job])
            self._stats.count(Code.TIMEOUT)
            state = f"had run for {ran / 1e6:.3f} s" if ran else "had not begun"
            text = f"its deadline passed after {now - job.arrived:.3f} s; it {state}"
            client.fail(job, failure(Code.TIMEOUT, text), waited, ran)

    def refused(self, code: Code) -> None:
        """A request was not let in."""
        self._stats.count(code)

    def cancel(self, jobs: Collection[Job]) -> list[tuple[int, int]]:
        """Nobody waits for these jobs any more: drop what has not begun, let the rest end unseen.

        Returns:
            For each how long it waited and ran until now, microseconds; it ran 0 if it had not begun.
        """
        for job in jobs:
            if job.client is not None:
                self._stats.count(Code.CANCELLED)
        return self._release(jobs)

    def _release(self, jobs: Collection[Job]) -> list[tuple[int, int]]:
        dispatcher, now = self._dispatcher, green.monotonic_ns()
        in_flight = [job for job in jobs if not dispatcher.drop(job)]
        holders = {dispatcher.holder(job.number) for job in in_flight} - {None}
        for consumer in holders:
            if consumer is not None:
                self._crew.take_back_all(consumer)
        if holders:
            green.later(0, self._pump)
        for job in in_flight:
            dispatcher.drop(job)
        receipts = []
        for job in jobs:
            job.client = None
            arrived = int(job.arrived * 1e9)
            if dispatcher.holder(job.number) is None:
                receipts.append((max(0, now - arrived) // 1000, 0))
                continue
            begun = self._crew.begun(job) or now  # or it is about to begin, or has just ended
            receipts.append((max(0, begun - arrived) // 1000, max(1, (now - begun) // 1000)))
            if job.streamed:
                self.credit(job, CLOSE)
        return receipts

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
            was_occupied = self._crew.occupied
            self._crew.add(**fields, now=green.monotonic())
            if self._crew.occupied and not was_occupied:
                green.later(_OCCUPIED_LOOK, self._look_at_occupied)
        elif kind is Kind.CONSUMER_GONE:
            self._lose_consumer(fields["number"], fields)
        elif kind is Kind.RETIRE:
            self._crew.retire(fields["number"], aside=fields["aside"])
            self._tell_retired()
        elif kind is Kind.STAFF:
            self._overview.processes, self._overview.restarts = fields["processes"], fields["restarts"]
        elif kind is Kind.STACK:
            self._on_stack(fields)
        elif kind is Kind.DRAIN:
            self._drain(fields["grace"])

    def _on_stack(self, fields: dict[str, Any]) -> None:
        job = self._dispatcher.find(fields.pop("job"))
        fields["request"] = job.label if job else None
        if fields["asked"]:
            self._control.on_stack(fields)
        elif job is not None:  # else it has ended meanwhile
            text = f"has run for {fields['age']:.2f} s in consumer {fields['number']} (--slow), and runs on"
            self._warn(job, f"{text}\n{fields['stack']}")

    def _on_second(self) -> None:
        self._stats.tick(green.monotonic(), self._dispatcher.waiting)
        green.later(1.0, self._on_second)

    def _look_at_occupied(self) -> None:
        self._crew.look_at_occupied()
        self._tell_retired()
        self._pump()
        if self._crew.occupied:
            green.later(_OCCUPIED_LOOK, self._look_at_occupied)

    def _lose_consumer(self, number: int, end: dict[str, Any]) -> None:
        """A consumer has ended; `end` is what its forker said of that."""
        removed = self._crew.remove(number)
        if removed is None:
            return
        member, begun = removed
        if not self._crew:
            self._alone_since = green.monotonic()
        running = end["job"] or member.slot[JOB]  # its forker may have died with it

        def give_up(job: Job) -> None:
            self._on_results()
            if self._dispatcher.give_up(job.number):
                self._on_lost(job, end)

        for job in begun:
            if result := member.outbox.find(job.number):
                self._take([result])
            elif job.number == running:
                give_up(job)
            else:  # it had ended, with a long reply: that may be on its way
                green.later(_SETTLE, lambda job=job: give_up(job))  # type: ignore[misc]

    def _on_lost(self, job: Job, end: dict[str, Any]) -> None:
        """A job had begun, and its consumer has ended without a result."""
        if job.client is None:
            return
        if "why" in end and job.number == end["job"]:
            text = end["why"]
            why = failure(Code.TIMEOUT, text, stack=end["stack"])
        else:
            text = f"its consumer (pid {end['pid']}) ended: {end['exit']}{end.get('used', '')}"
            if job.tries < self._limits.retries and not job.streamed:
                self._warn(job, f"{text}; trying again")
                self._dispatcher.retry(job)
                self._pump()
                return
            why = failure(Code.CONSUMER_LOST, text, exit=end["exit"])
        self._warn(job, f"lost: {text}")
        now = green.monotonic()
        begun = end["begun"] / 1e9 if job.number == end["job"] else now
        self._fail(job, why, max(0.0, begun - job.arrived), max(1e-6, now - begun))
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
        for number, pid in self._crew.find_gone():
            end = {"pid": pid, "exit": "unknown, without a supervisor", "job": 0, "begun": 0}
            self._lose_consumer(number, end)
        self._pump()
        if not self._crew and self._dispatcher.waiting:
            self._drain_end = 0.0  # nobody will ever run them
