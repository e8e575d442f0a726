"""Compiles and runs what loads a server, load.c and caller.py, and reads what it found out."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from meter import Job

HERE = Path(__file__).parent
_SOURCES = ("load.c", "request.c", "connect.c", "oneshot.c", "framed.c", "http.c")
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
    """What one run of a load generator saw."""

    seconds: float  # the window; the run took longer by its warm-up
    issued: int  # requests, warm-up included
    failures: dict[str, int]  # what went wrong how often
    cpu_seconds: float  # of the load generator itself
    kinds: dict[str, Latency]
    # Of the processes that a caller in Python has for the work, such as a pool's.
    server_cpu_seconds: float = field(default=0.0, kw_only=True)
    server_pss: int = field(default=0, kw_only=True)  # bytes

    @property
    def completed(self) -> int:
        """Requests that completed within the window."""
        return sum(latency.count for latency in self.kinds.values())


def environment() -> dict[str, str]:
    """Return variables with which Python finds the modules here and the gaspar of this checkout."""
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def call(job: Job) -> Outcome:
    """Run callers written in Python.

    Raises:
        LoadError: they could not go on.
    """
    return _run([sys.executable, "-m", "caller", json.dumps(dataclasses.asdict(job))], job.warmup + job.seconds)


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
        sources = [str(HERE / name) for name in _SOURCES]
        command = [*compiler.split(), "-O2", "-std=c11", "-pthread", "-o", str(self._program), *sources]
        try:
            compiled = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise LoadError(f"cannot run the C compiler {compiler}: {error}") from error
        if compiled.returncode:
            raise LoadError(f"{' '.join(command)} failed:\n{compiled.stderr}")

    def run(
        self,
        protocol: str,
        port: int,
        connections: int,
        depth: int,
        size: int,
        warmup: float,
        seconds: float,
        kinds: str,
    ) -> Outcome:
        """Load 127.0.0.1:`port` with `connections` x `depth` requests of `size` bytes at once; see load.c.

        Two threads if there are two connections: one alone is slower than `bare`, and would measure itself.

        Raises:
            LoadError: the load generator could not go on.
        """
        numbers = (port, min(connections, 2), connections, depth, size, warmup, seconds)
        return _run([str(self._program), protocol, *map(str, numbers), kinds], warmup + seconds)


def _run(command: list[str], seconds: float) -> Outcome:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _AFTERWARDS, env=environment())
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"no end {_AFTERWARDS} s after the load's time was up") from error
    if done.returncode:
        raise LoadError(f"the load ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return _read_outcome(done.stdout)


def _read_outcome(text: str) -> Outcome:
    found = json.loads(text)
    kinds = {
        kind: Latency(each["count"], each["p50_us"] / 1e6, each["p95_us"] / 1e6, each["p99_us"] / 1e6)
        for kind, each in found["kinds"].items()
    }
    return Outcome(
        found["seconds"],
        found["issued"],
        found["failures"],
        found["cpu_seconds"],
        kinds,
        server_cpu_seconds=found.get("server_cpu_seconds", 0.0),
        server_pss=found.get("server_pss", 0),
    )
