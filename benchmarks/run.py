"""Compares gaspar with its peers, one-shot and framed: `python benchmarks/run.py`.

    gaspar         bin/gaspar-serve of this checkout, its defaults and 2 consumers; loaded from C, one-shot and
                   framed, and through each of its Python clients
    bare one-shot  a prefork accept loop in plain Python, 2 processes, no dispatch: the floor
    bare kept      the same with kept connections and the framed protocol's bytes: the upper bound
    asyncio+PPE    an asyncio server with a ProcessPoolExecutor of 2: what one would write today
    PPE.submit, run_in_executor, pebble     pools of 2 within the calling program
    mosec, gunicorn, RPyC, zerorpc          where they are installed

All serve the same functions (handlers.py) and are loaded in turn, round after round, on the same 2 CPUs,
which the load shares. Every reply is checked. Ends with 0 when all went well, whether targets were reached or
not, with 1 when a reply was wrong or missing or a server failed, with 2 when nothing could be measured.
Linux only, needs a C compiler. Takes about half an hour; nothing else should run meanwhile.
"""

import argparse
import importlib.util
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import contenders
import plot
import report
from cells import PROCESSES
from contenders import Contender
from load import Load, LoadError
from rounds import Plan, Run, say
from rows import ROWS, Row
from servers import Peer

_START, _MEMORY = "start", "memory"  # rows of another kind
_WARMUP = 0.3  # seconds
_MEMORY_SECONDS = 3.0
_SMOKE_WARMUP, _SMOKE_SECONDS = 0.05, 0.15
_SMOKE_ROW = "64B"  # in which a smoke run tries the others too


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load per cell and round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders in turn (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="single cells: ROW, CONTENDER or ROW/CONTENDER, * matches anything; may be repeated. "
        f"Rows: {', '.join(row.key for row in ROWS)}, {_START}, {_MEMORY}. Contenders: see --list",
    )
    parser.add_argument("--list", action="store_true", help="list the cells and end")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results too (PNG, SVG, PDF; matplotlib)")
    parser.add_argument("--smoke", action="store_true", help="one very short round: does everything work?")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 60 or not 0 < options.rounds <= 100:
        parser.error("--seconds must be above 0 and at most 60, --rounds 1 to 100")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib (pip install matplotlib)")
    return options


def _is_wanted(patterns: Sequence[str] | None, row: str, *names: str) -> bool:
    """Return whether a pattern matches a row's key, one of the names of a contender in it, or both together."""
    tags = [row, *names, *(f"{row}/{name}" for name in names)]
    return not patterns or any(fnmatchcase(tag, pattern) for tag in tags for pattern in patterns)


def _rows(options: argparse.Namespace, missing: set[Contender]) -> list[Row]:
    """Return the rows that are wanted, each with the entries that are wanted and installed."""
    rows = []
    for row in ROWS:
        entries = [
            entry
            for entry in row.entries
            if _is_wanted(options.only, row.key, entry.contender.name, entry.name)
            and entry.contender not in missing
            and (not options.smoke or options.only or row.key == _SMOKE_ROW or entry.contender.is_gaspar)
        ]
        if entries:
            rows.append(replace(row, entries=tuple(entries)))
    return rows


def _plan(options: argparse.Namespace) -> Plan:
    every = dict.fromkeys(entry.contender for row in ROWS for entry in row.entries)
    missing = {each for each in every if each.is_missing}
    for each in every:
        if each in missing and _is_wanted(options.only, "", each.name):
            say(f"{each.name}: not installed, skipped (pip install {each.needs})")
    absent = {each.peer for each in missing}

    def starts() -> list[Peer]:
        some = [contenders.GASPAR] if options.smoke else contenders.STARTS
        return [peer for peer in some if peer not in absent and _is_wanted(options.only, _START, peer.name)]

    return Plan(
        rows=_rows(options, missing),
        starts=starts(),
        has_memory=_is_wanted(options.only, _MEMORY, contenders.FRAMED.name),
        rounds=1 if options.smoke else options.rounds,
        warmup=_SMOKE_WARMUP if options.smoke else _WARMUP,
        seconds=_SMOKE_SECONDS if options.smoke else options.seconds,
        memory_seconds=_SMOKE_SECONDS if options.smoke else _MEMORY_SECONDS,
    )


def _pin() -> int:
    """Keep this process and all that it starts on two CPUs; return how many they are."""
    cpus = sorted(os.sched_getaffinity(0))[:PROCESSES]
    os.sched_setaffinity(0, cpus)
    return len(cpus)


def _print_cells(plan: Plan) -> None:
    for peer in plan.starts:
        print(f"{_START}/{peer.name}")
    for row in plan.rows:
        for entry in row.entries:
            print(f"{row.key}/{entry.name}")
    if plan.has_memory:
        print(f"{_MEMORY}/{contenders.FRAMED.name}")


def _print_report(run: Run, plan: Plan, is_smoke: bool, cpus: int) -> None:
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {cpus} CPUs", end=", ")
    print(f"{plan.rounds} rounds of {plan.seconds:g} s")
    print(report.disturbance(run.results))
    if is_smoke:
        print("A smoke run: far too short for its numbers to mean anything.")
    print()
    if plan.rows:
        print(*report.table(plan.rows, run.results), "", sep="\n")
    if run.results.starts:
        print(*report.starts(run.results), "", sep="\n")
    if run.results.memory:
        print(*report.memory(run.results), "", sep="\n")
    print(report.LEGEND, "", sep="\n")
    print(*report.targets(run.results), sep="\n")
    if run.results.failures:
        print("", "FAILURES", *run.results.failures, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = _parse(arguments)
    plan = _plan(options)
    if options.list:
        _print_cells(plan)
        return 0
    if not (plan.rows or plan.starts or plan.has_memory):
        say(f"no cell matches {', '.join(options.only)}; --list shows them")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are ended
    cpus = _pin()
    if cpus < PROCESSES:
        say(f"only {cpus} CPU: the targets are for {PROCESSES}")
    with tempfile.TemporaryDirectory() as directory:
        try:
            run = Run(Load(Path(directory)), plan)
        except LoadError as error:
            say(str(error))
            return 2
        run.measure()
    _print_report(run, plan, options.smoke, cpus)
    if options.plot:
        try:
            plot.draw(plan.rows, run.results, options.plot)
        except (OSError, ValueError) as error:
            say(f"--plot: {error}")
            return 1
    return 1 if run.results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
