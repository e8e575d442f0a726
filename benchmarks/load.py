"""Compiles and runs the load generator, load.c, and reads what it found out. Knows nothing of servers."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("load.c")
_AFTERWARDS = 30  # seconds; load.c itself waits at most 10 for what is outstanding


class LoadError(Exception):
    """The load generator could not be built or could not run."""


@dataclass(frozen=True)
class Latency:
    """Of the requests of one kind that completed within the window; percentiles in seconds."""

    count: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Outcome:
    """What one run of the load generator saw."""

    seconds: float  # the window; the run took longer by its warm-up
    issued: int  # requests, warm-up included
    failures: dict[str, int]  # what went wrong how often, names of load.c's
    cpu_seconds: float  # of the load generator itself
    kinds: dict[str, Latency]

    @property
    def completed(self) -> int:
        """Requests that completed within the window."""
        return sum(latency.count for latency in self.kinds.values())


class Load:
    """The compiled load generator."""

    def __init__(self, directory: Path) -> None:
        """Compile into `directory`.

        Raises:
            LoadError: there is no C compiler, or it refused.
        """
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
        if compiler is None:
            raise LoadError("no C compiler: none of cc, gcc, clang is on PATH (set CC, or install one)")
        self._program = directory / "load"
        command = [*compiler.split(), "-O2", "-std=c11", "-pthread", "-o", str(self._program), str(_SOURCE)]
        try:
            compiled = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise LoadError(f"cannot run the C compiler {compiler}: {error}") from error
        if compiled.returncode:
            raise LoadError(f"{' '.join(command)} failed:\n{compiled.stderr}")

    def run(self, port: int, clients: int, size: int, warmup: float, seconds: float, kinds: str) -> Outcome:
        """Load 127.0.0.1:`port` with `clients` requests of `size` bytes at once; see load.c.

        Two threads if there are two clients: one alone is slower than `bare`, and would measure itself.

        Raises:
            LoadError: the load generator could not go on.
        """
        threads = min(clients, 2)
        numbers = (port, threads, clients, size, warmup, seconds)
        try:
            done = subprocess.run(
                [str(self._program), *map(str, numbers), kinds],
                capture_output=True,
                text=True,
                timeout=warmup + seconds + _AFTERWARDS,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"no end {_AFTERWARDS} s after the load's time was up") from error
        if done.returncode:
            raise LoadError(f"load ended with {done.returncode}: {done.stderr.strip()}")
        return _read_outcome(done.stdout)


def _read_outcome(text: str) -> Outcome:
    found = json.loads(text)
    failures = {name: found[name] for name in ("wrong", "reset", "refused", "unanswered") if found[name]}
    kinds = {
        kind: Latency(each["count"], each["p50_us"] / 1e6, each["p95_us"] / 1e6, each["p99_us"] / 1e6)
        for kind, each in found["kinds"].items()
    }
    return Outcome(found["seconds"], found["issued"], failures, found["cpu_seconds"], kinds)
