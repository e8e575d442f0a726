"""Compares gaspar with the plain alternatives, one connection per request: `python benchmarks/oneshot.py`.

    gaspar       bin/gaspar-serve of this checkout, its defaults and 2 consumers
    bare         a prefork accept loop in plain Python, 2 processes: no dispatch, the floor
    asyncio+PPE  an asyncio server with a ProcessPoolExecutor of 2: what one would write today

All serve the same functions (handlers.py) and are loaded in turn, round after round, on the same 2 CPUs,
which the load shares. Every reply is checked. Ends with 0 when all went well, whether targets were reached or
not, with 1 when a reply was wrong or missing or a server failed, with 2 when nothing could be measured.
Linux only. Takes about six minutes; nothing else should run meanwhile.
"""

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import report
from cells import MB, MORE_PROCESSES, PROCESSES, Results, Row, Start, measure
from load import Load, LoadError
from servers import PEERS, Peer, Server, ServerError, request

_STARTS = "start"  # the row of start and memory
_WARMUP = 0.3  # seconds
_SMOKE_WARMUP, _SMOKE_SECONDS = 0.1, 0.3


def _mix(blocks: int = 200, block: int = 20) -> str:
    """Return kinds of which one of 20 is long, at a random place of its block; the same at each call."""
    places = random.Random(block)
    return "".join(
        "".join("l" if i == long else "s" for i in range(block))
        for long in (places.randrange(block) for _ in range(blocks))
    )


ROWS = (
    Row("64B-1", "64 bytes, 1 at once", "echo", clients=1, size=64, kinds="e"),
    Row("64B-32", "64 bytes, 32 at once", "echo", clients=32, size=64, kinds="e"),
    Row("1MB-1", "1 MB both ways, 1 at once", "echo", clients=1, size=int(MB), kinds="e"),
    Row("1MB-32", "1 MB both ways, 32 at once", "echo", clients=32, size=int(MB), kinds="e"),
    Row("cpu", "1 ms of CPU per request, 16 at once", "spin", clients=16, size=64, kinds="s"),
    Row("mix", "1 of 20 takes 100 ms of CPU, the others 1 ms, 32 at once", "spin", 32, 64, _mix()),
)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [row.key for row in ROWS] + [_STARTS]
    peers = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load per server, row and round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all servers in turn (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        choices=names + peers,
        metavar="NAME",
        help=f"a row or a server, may be repeated: {', '.join(names + peers)}",
    )
    parser.add_argument("--smoke", action="store_true", help="one very short round: does everything work?")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 60 or not 0 < options.rounds <= 100:
        parser.error("--seconds must be above 0 and at most 60, --rounds 1 to 100")
    if options.smoke:
        options.rounds, options.seconds = 1, _SMOKE_SECONDS
    only = set(options.only or ())
    options.rows = [name for name in names if name in only] or names
    options.peers = [peer for peer in PEERS if peer.name in only] or list(PEERS)
    return options


def _pin() -> int:
    """Keep this process and all that it starts on two CPUs; return how many they are."""
    cpus = sorted(os.sched_getaffinity(0))[:PROCESSES]
    os.sched_setaffinity(0, cpus)
    return len(cpus)


class Run:
    """One run of the benchmark: goes through starts and rows and gathers the results."""

    def __init__(self, load: Load, options: argparse.Namespace) -> None:
        self.results = Results()
        self.rows = [row for row in ROWS if row.key in options.rows]
        self._load = load
        self._peers: list[Peer] = options.peers
        self._rounds: int = options.rounds
        self._seconds: float = options.seconds
        self._warmup = _SMOKE_WARMUP if options.smoke else _WARMUP

    def measure_starts(self) -> None:
        """Start each server with few and with more processes, nothing else running."""
        for number in range(self._rounds):
            for peer in self._peers:
                _say(f"round {number + 1}/{self._rounds}: start of {peer.name}")
                try:
                    start = _measure_start(peer)
                except ServerError as error:
                    start = None
                    self._note(str(error))
                self.results.starts.setdefault(peer.name, []).append(start)

    def measure_rows(self) -> None:
        """Go through the rows; rows with the same handler share their running servers."""
        for handler in dict.fromkeys(row.handler for row in self.rows):
            try:
                with ExitStack() as stack:
                    servers = list(self._start(stack, handler))
                    for row in (row for row in self.rows if row.handler == handler):
                        for number in range(self._rounds):
                            _say(f"round {number + 1}/{self._rounds}: {row.title}")
                            for server in servers:
                                self._measure_cell(server, row)
            except ServerError as error:
                self._note(str(error))

    def _start(self, stack: ExitStack, handler: str) -> Iterator[Server]:
        for peer in self._peers:
            try:
                yield stack.enter_context(Server(peer, PROCESSES, handler))
            except ServerError as error:
                self._note(str(error))

    def _measure_cell(self, server: Server, row: Row) -> None:
        name = server.peer.name
        cell = None
        try:
            cell, failures = measure(self._load, server, row, self._warmup, self._seconds)
        except LoadError as error:
            self._note(f"{name}, {row.title}: {error}")
        else:
            if failures:
                cell = None
                counts = ", ".join(f"{count} {what}" for what, count in failures.items())
                self._note(f"{name}, {row.title}: requests that failed: {counts}")
        self.results.cells.setdefault((row.key, name), []).append(cell)

    def _note(self, failure: str) -> None:
        _say(failure)
        self.results.failures.append(failure)


def _measure_start(peer: Peer) -> Start:
    memory = []
    after = 0.0
    for processes in (PROCESSES, MORE_PROCESSES):
        with Server(peer, processes, "echo") as server:
            after = after or server.first_reply_after
            for _ in range(10 * processes):  # so that each has served
                request(server.port, b"e")
            memory.append(server.pss())
    return Start(after, memory[0], (memory[1] - memory[0]) / (MORE_PROCESSES - PROCESSES))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_report(run: Run, options: argparse.Namespace, cpus: int) -> None:
    names = [peer.name for peer in options.peers]
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {cpus} CPUs", end=", ")
    print(f"{options.rounds} rounds of {options.seconds:g} s")
    print(report.disturbance(run.results))
    if options.smoke:
        print("A smoke run: far too short for its numbers to mean anything.")
    print()
    if run.rows:
        print(*report.table(run.rows, names, run.results), "", sep="\n")
    if _STARTS in options.rows:
        print(*report.starts(names, run.results), "", sep="\n")
    print(report.LEGEND, "", sep="\n")
    print(*report.targets(run.results), sep="\n")
    if run.results.failures:
        print("", "FAILURES", *run.results.failures, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are ended
    cpus = _pin()
    if cpus < PROCESSES:
        _say(f"only {cpus} CPU: the targets are for {PROCESSES}")
    with tempfile.TemporaryDirectory() as directory:
        try:
            run = Run(Load(Path(directory)), options)
        except LoadError as error:
            _say(str(error))
            return 2
        if _STARTS in options.rows:
            run.measure_starts()
        run.measure_rows()
    _print_report(run, options, cpus)
    return 1 if run.results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
