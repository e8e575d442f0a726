"""The front's process: clients in, jobs out, results in, replies out.

One hub, no thread. What can be done at once is done in the hub's callbacks: accept, dispatch, send to
consumers, drain results, reply.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Callable

import zmq

from . import green
from .dispatch import PATIENCE, Dispatcher, Job
from .errors import Code, Failure, failure
from .limits import Limits
from .links import ConsumerLink, Results
from .oneshot import OneShot, UnixOneShot
from .process import FRONT_LOCK, Lifeline, hold, keep_only
from .wire import Kind, Record, Result

log = logging.getLogger(__name__)

_BATCH = 64  # connections accepted, or results taken, before others have their turn
_SETTLE = 0.02  # seconds that a dead consumer's last results have to come through 0MQ
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE = 0.1  # seconds without accepting when descriptors have run out
_TICK = 0.05  # seconds between looks while draining
_STALE = 1.0  # seconds without a byte after which a stop does not wait for a request any more


def main(listeners: list[socket.socket], folder: str, limits: Limits, generation: int, lifeline: Lifeline) -> int:
    """Be a front: serve until drained. Returns the exit code."""
    keep_only([lifeline.fileno(), *(each.fileno() for each in listeners)], files=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    hold(f"{folder}/{FRONT_LOCK}")
    green.start()
    front = Front(folder, limits, generation, lifeline)
    front.serve(listeners)
    return 0


class Front:
    """The front of one daemon."""

    def __init__(self, folder: str, limits: Limits, generation: int, lifeline: Lifeline) -> None:
        self.limits = limits
        self.busy: set[OneShot] = set()
        self._folder = folder
        self._lifeline = lifeline
        self._dispatcher = Dispatcher(generation, limits.depth)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._results = Results(self._context, folder, generation)
        self._links: dict[int, ConsumerLink] = {}
        self._pids: dict[int, int] = {}
        self._stop_accepting: list[Callable[[], None]] = []
        self._watching = False  # the next look at overdue jobs is scheduled
        self._paused = False  # out of descriptors, said so
        self._orphaned = False
        self._draining = False
        self._drain_end = 0.0
        self._done = green.Latch()

    def serve(self, listeners: list[socket.socket]) -> None:
        """Serve until told to drain and drained, or until the grace is over."""
        green.watch(self._results.fileno(), self._on_results)
        self._listen_to_parent()
        self._listeners = listeners
        for listener in listeners:
            self._start_accepting(listener)
        self._lifeline.send(Kind.READY)
        self._on_results()  # the descriptor is edge-triggered: what came before would wait for ever
        self._done.wait()

    # ---- clients in ----

    def _start_accepting(self, listener: socket.socket) -> None:
        kind = UnixOneShot if listener.family == socket.AF_UNIX else OneShot
        stop = green.watch(listener.fileno(), lambda: self._on_accept(listener, kind, _BATCH))
        self._stop_accepting.append(stop)

    def _on_accept(self, listener: socket.socket, kind: type[OneShot], most: int) -> None:
        for _ in range(most):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except ConnectionError:
                continue
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._pause_accepting(error)
                break
            kind(self, sock, peer).begin()
        self._pump()

    def _pause_accepting(self, error: OSError) -> None:
        if not self._paused:
            log.error("cannot accept clients for now: %s; they wait in the kernel's backlog", error.strerror)
            self._paused = True
        for stop in self._stop_accepting:
            stop()
        self._stop_accepting.clear()

        def resume() -> None:
            if not self._draining and not self._stop_accepting:
                for listener in self._listeners:
                    self._start_accepting(listener)

        green.later(_ACCEPT_PAUSE, resume)

    def submit(self, payload: bytes | bytearray, client: OneShot) -> None:
        """A client's request is complete."""
        self._dispatcher.submit(payload, client, green.monotonic())
        if client in self.busy:  # it comes from its green thread, not from a batch
            self.busy.discard(client)
            self._pump()

    # ---- jobs out ----

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

    def _send_assigned(self) -> None:
        for consumer, job in self._dispatcher.assign(green.monotonic()):
            self._links[consumer].send(job.number, job.payload)

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
        while True:
            results = self._results.drain(_BATCH)
            if not results:
                return
            now = green.monotonic()
            answered = [(self._dispatcher.done(each.number, each.ran, now), each) for each in results]
            self._pump()  # the consumers go on while the replies are sent
            for job, result in answered:
                if job is not None:
                    self._answer(job, result)
            if self._draining:
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
            self._add_consumer(fields["number"], fields["pid"])
        elif kind is Kind.CONSUMER_GONE:
            self._lose_consumer(fields["number"], fields["exit"], fields["job"])
        elif kind is Kind.DRAIN:
            self._drain(fields["grace"])

    def _add_consumer(self, number: int, pid: int) -> None:
        try:
            self._links[number] = ConsumerLink(self._context, self._folder, number)
        except OSError as error:  # it is gone again; the supervisor is about to say so
            log.debug("consumer %d: %s", number, error)
            return
        self._pids[number] = pid
        self._dispatcher.add_consumer(number, green.monotonic())

    def _lose_consumer(self, number: int, ended: str, running: int) -> None:
        link = self._links.pop(number, None)
        if link is None:
            return
        pid = self._pids.pop(number)
        begun = self._dispatcher.lose_consumer(number, link.drain())
        link.close(gone=True)

        def give_up(job: Job) -> None:
            self._on_results()
            if self._dispatcher.give_up(job.number):
                why = f"its consumer (pid {pid}) ended: {ended}"
                log.warning("request %d of %s lost: %s", job.number, job.client, why)
                job.client.fail(failure(Code.CONSUMER_LOST, why, exit=ended))
                self._look_if_drained()

        for job in begun:
            if job.number == running:
                give_up(job)
            else:  # it had ended: its result may be on its way
                green.later(_SETTLE, lambda job=job: give_up(job))  # type: ignore[misc]

    # ---- the end ----

    def _drain(self, grace: float) -> None:
        """Accept what is pending, listen no more, finish what was accepted."""
        if self._draining:
            return
        self._draining = True
        self._drain_end = green.monotonic() + grace
        for stop in self._stop_accepting:
            stop()
        for listener in self._listeners:
            kind = UnixOneShot if listener.family == socket.AF_UNIX else OneShot
            self._on_accept(listener, kind, most=1_000_000)
            listener.close()
        self._on_tick()

    def _on_orphaned(self) -> None:
        self._orphaned = True
        self._drain(self.limits.grace)

    def _on_tick(self) -> None:
        now = green.monotonic()
        if now >= self._drain_end:
            left = self._dispatcher.pending + len(self.busy)
            if left:
                log.warning("%d requests were not finished within the grace", left)
            self._done.open()
            return
        for client in list(self.busy):
            if client.reading and now - client.moved > _STALE:
                client.abort()
        if self._orphaned:
            self._look_for_consumers()
        self._look_if_drained()
        green.later(_TICK, self._on_tick)

    def _look_if_drained(self) -> None:
        if self._draining and not self._dispatcher.pending and not self.busy:
            self._done.open()

    def _look_for_consumers(self) -> None:
        """Without a supervisor nobody says which consumers are gone."""
        for number, pid in list(self._pids.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                self._lose_consumer(number, "unknown", 0)
        self._pump()
        if not self._pids and self._dispatcher.waiting:
            self._drain_end = 0.0  # nobody will ever run them
