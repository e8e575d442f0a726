"""Goes through starts, rows and memory, round after round, contenders in turn, and gathers what was found."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import memory
from cells import MORE_PROCESSES, PROCESSES, Results, Start, measure
from load import Load, LoadError
from rows import Entry, Row
from servers import Peer, Server, ServerError, request

_Each = TypeVar("_Each")


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and for how long."""

    rows: Sequence[Row]  # with the entries that take part
    starts: Sequence[Peer]
    has_memory: bool
    rounds: int
    warmup: float  # seconds
    seconds: float  # of load per entry and round, after the warm-up
    memory_seconds: float  # of 100 MB messages


class Run:
    """One run of the benchmark."""

    def __init__(self, load: Load, plan: Plan) -> None:
        self.results = Results()
        self._load = load
        self._plan = plan

    def measure(self) -> None:
        """Measure all that is planned."""
        for peer in self._turns(self._plan.starts, "start and memory"):
            self._measure_start(peer)
        for handler in dict.fromkeys(row.handler for row in self._plan.rows):
            self._measure_rows(handler, [row for row in self._plan.rows if row.handler == handler])
        for size in self._turns([memory.SIZE] if self._plan.has_memory else [], "the front's memory"):
            self._measure_memory(size)

    def _turns(self, several: Sequence[_Each], what: str) -> Iterator[_Each]:
        """Yield each in each round; each round begins with another, so that none is always the last."""
        rounds = self._plan.rounds if several else 0
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}: {what}")
            first = number * len(several) // rounds
            yield from several[first:]
            yield from several[:first]

    def _measure_start(self, peer: Peer) -> None:
        """Start a server with few and with more processes, nothing else running."""
        start = None
        try:
            start = _start(peer)
        except ServerError as error:
            self._note(str(error))
        self.results.starts.setdefault(peer.name, []).append(start)

    def _measure_rows(self, handler: str, rows: Sequence[Row]) -> None:
        """Go through rows with the same handler: they share their running servers."""
        peers = dict.fromkeys(entry.contender.peer for row in rows for entry in row.entries)
        try:
            with ExitStack() as stack:
                servers = dict(self._enter(stack, [peer for peer in peers if peer], handler))
                for row in rows:
                    for entry in self._turns(row.entries, row.title):
                        peer = entry.contender.peer
                        if peer is None or peer in servers:
                            self._measure_cell(servers[peer] if peer else None, row, entry)
        except ServerError as error:
            self._note(str(error))

    def _enter(self, stack: ExitStack, peers: Sequence[Peer], handler: str) -> Iterator[tuple[Peer, Server]]:
        for peer in peers:
            try:
                yield peer, stack.enter_context(Server(peer, PROCESSES, handler))
            except ServerError as error:
                self._note(str(error))

    def _measure_cell(self, server: Server | None, row: Row, entry: Entry) -> None:
        cell, failed = None, ""
        try:
            cell, failures = measure(self._load, server, row, entry, self._plan.warmup, self._plan.seconds)
            failed = ", ".join(f"{count} {what}" for what, count in failures.items())
            if not cell and not failed:  # nothing wrong, only too slow
                say(f"{entry.name}: every reply came after the window")
        except LoadError as error:
            failed = str(error)
        if failed:
            cell = None
            self._note(f"{entry.name}, {row.title}: requests that failed: {failed}")
        self.results.cells.setdefault((row.key, entry.name), []).append(cell)

    def _measure_memory(self, size: int) -> None:
        try:
            self.results.memory.append(memory.measure(self._load, size, self._plan.memory_seconds))
        except (LoadError, ServerError) as error:
            self._note(f"the front's memory: {error}")

    def _note(self, failure: str) -> None:
        say(failure)
        self.results.failures.append(failure)


def _start(peer: Peer) -> Start:
    sizes = []
    after = 0.0
    for processes in (PROCESSES, MORE_PROCESSES):
        with Server(peer, processes, "echo") as server:
            after = after or server.first_reply_after
            for _ in range(10 * processes):  # so that each has served
                (peer.ask or request)(server.port, b"e")
            sizes.append(server.pss())
    return Start(after, sizes[0], (sizes[1] - sizes[0]) / (MORE_PROCESSES - PROCESSES))


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)
