"""Says what a caller sees of each fault, and how soon: `python benchmarks/faults.py`.

    gaspar       bin/gaspar-serve of this checkout with 2 consumers, called with plain sockets
    PPE          concurrent.futures.ProcessPoolExecutor of 2
    pebble       pebble.ProcessPool of 2, if it is installed

The same function runs in all of them (handlers.faulty), each fault several times. Ends with 0 whether targets were
reached or not, with 1 when something could not be measured. Linux only. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import re
import signal
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import handlers
import psutil
from load import Load, LoadError
from servers import HOST, Peer, Server, ServerError
from targets import Finding, Target

try:
    import pebble
except ImportError:
    pebble = None

PROCESSES = 2
LIMIT = 1.0  # seconds that a request may run
FOREVER = 6.0  # seconds after which "waits for ever" is said; what is bounded ends within 3
IMPORT_SECONDS = 2.0
MAX_WAITING = 8
_HERE = Path(__file__).parent
_PATIENCE = 20.0  # seconds for what has to come


class Unmeasured(Exception):
    """Something did not happen that had to."""


@dataclass
class Call:
    """One request of a caller, and what it saw of it in the end."""

    done: threading.Event = field(default_factory=threading.Event)
    saw: str = ""
    at: float = 0.0  # seconds, monotonic

    def end(self, saw: str) -> None:
        """It has ended."""
        self.at, self.saw = time.monotonic(), saw
        self.done.set()


class Gaspar(Server):
    """gaspar, as a caller sees it."""

    name = "gaspar"

    def __init__(self, *options: str, module: Path = _HERE / "handlers.py", handler: str = "faulty") -> None:
        def command(address: str, processes: int, name: str) -> list[str]:
            serve = [sys.executable, str(_HERE.parent / "bin" / "gaspar-serve"), "-b", address, "-p", str(processes)]
            return [*serve, *options, f"{module}:{name}"]

        super().__init__(Peer(self.name, command), PROCESSES, handler)

    def call(self, payload: bytes, limit: float = 0.0) -> Call:
        """Ask in a thread of its own. The limit is an option of the daemon."""
        call = Call()
        threading.Thread(target=self.ask, args=(payload, call), daemon=True).start()
        return call

    def ask(self, payload: bytes, call: Call) -> None:
        """Ask, and wait for the end."""
        try:
            with socket.create_connection((HOST, self.port), timeout=_PATIENCE) as sock:
                sock.sendall(struct.pack("!I", len(payload)) + payload)
                while sock.recv(65536):
                    pass
        except OSError as error:
            call.end(type(error).__name__)
        else:
            call.end("reply")

    def pids(self, role: str) -> list[int]:
        """List the pids of its fronts, forkers or consumers."""
        return self.named(f"gaspar:{role}")


class _Pool:
    """A pool of processes in this process."""

    name = ""

    def __enter__(self) -> _Pool:
        self._others = set(psutil.Process().children())
        self.pool = self._make()
        if self.call(b"echo").done.wait(_PATIENCE):
            return self
        raise Unmeasured(f"{self.name} does not answer")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in set(psutil.Process().children()) - self._others:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._end()

    def call(self, payload: bytes, limit: float = 0.0) -> Call:
        """Submit."""
        call = Call()
        try:
            future = self._submit(payload, limit)
        except Exception as error:  # a pool that is broken says so here
            call.end(type(error).__name__)
            return call
        future.add_done_callback(lambda future: call.end(_what(future)))
        return call

    def _make(self) -> Any:
        raise NotImplementedError

    def _submit(self, payload: bytes, limit: float) -> Future[bytes]:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


def _what(future: Future[bytes]) -> str:
    try:
        error = future.exception(0)
    except (NotDone, Exception) as raised:
        error = raised
    return type(error).__name__ if error else "reply"


class Executor(_Pool):
    """ProcessPoolExecutor. It knows no time limit."""

    name = "PPE"

    def _make(self) -> Any:
        return ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork"))

    def _submit(self, payload: bytes, limit: float) -> Future[bytes]:
        return self.pool.submit(handlers.faulty, payload)

    def _end(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


class Pebble(_Pool):
    """pebble.ProcessPool."""

    name = "pebble"

    def _make(self) -> Any:
        return pebble.ProcessPool(PROCESSES, context=multiprocessing.get_context("fork"))

    def _submit(self, payload: bytes, limit: float) -> Future[bytes]:
        return self.pool.schedule(handlers.faulty, args=[payload], timeout=limit or None)

    def _end(self) -> None:
        self.pool.stop()
        self.pool.join(_PATIENCE)


System = Gaspar | Executor | Pebble


@dataclass
class Cell:
    """What the callers of one system saw of one fault."""

    saw: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    broken: bool = False

    def note(self, saw: str, seconds: float | None = None) -> None:
        """Count one try."""
        self.saw[saw] = self.saw.get(saw, 0) + 1
        if seconds is not None:
            self.seconds.append(seconds)

    @property
    def text(self) -> str:
        """What was seen, the most frequent first."""
        most = sorted(self.saw, key=lambda saw: -self.saw[saw])
        return " or ".join(most) + (", broken for good" if self.broken else "") if most else "-"

    def milliseconds(self, pick: Callable[[list[float]], float]) -> str:
        """One figure of the times."""
        return f"{pick(self.seconds) * 1e3:.1f}" if self.seconds else "-"


class Scratch:
    """A folder for what requests leave behind, a new name at each call."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def path(self) -> str:
        """A file that is not there."""
        return f"{self._folder}/{next(self._numbers)}"

    def folder(self) -> str:
        """A folder that is empty."""
        path = self.path()
        os.mkdir(path)
        return path


def _await(happened: Callable[[], Any], what: str) -> Any:
    ends_at = time.monotonic() + _PATIENCE
    while time.monotonic() < ends_at:
        if fact := happened():
            return fact
        time.sleep(0.0005)
    raise Unmeasured(f"{what} within {_PATIENCE:g} s")


def _begun(path: str) -> tuple[int, float]:
    """Wait until a request has begun; returns its pid and when, in seconds, monotonic."""
    _await(lambda: os.path.exists(path), "no request began")
    pid, at = Path(path).read_text().split()
    return int(pid), int(at) / 1e9


@dataclass(frozen=True)
class Fault:
    """One row: what the request does, and what is then done to whom."""

    title: str
    what: str  # that the request does
    hit: Callable[[System, int], None] | None = None  # of the system and the pid that runs the request
    limit: float = 0.0
    ours: bool = False  # only gaspar has what is hit


def _kill(_system: System, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _stop(_system: System, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def _kill_role(role: str) -> Callable[[System, int], None]:
    def kill(system: System, _pid: int) -> None:
        assert isinstance(system, Gaspar)
        os.kill(system.pids(role)[0], signal.SIGKILL)

    return kill


FAULTS = (
    Fault("SIGKILL while it runs a request", "run", _kill),
    Fault("os._exit in the handler", "exit"),
    Fault("segmentation fault", "segfault"),
    Fault(f"hangs, limit {LIMIT:g} s", "hang", limit=LIMIT),
    Fault("SIGSTOP while it runs a request", "run", _stop),
    Fault("front SIGKILLed", "wait", _kill_role("front"), ours=True),
    Fault("forker SIGKILLed", "run", _kill_role("forker"), ours=True),
)


def _try(system: System, fault: Fault, scratch: Scratch, cell: Cell) -> bool:
    """Do it once; returns whether the system serves on."""
    path = scratch.path()
    call = system.call(f"{fault.what} {path}".encode(), fault.limit)
    pid, at = _begun(path)
    if fault.hit:
        at = time.monotonic()
        fault.hit(system, pid)
    ended = call.done.wait(FOREVER)
    os.unlink(path)  # what still runs may end
    if ended:
        cell.note(call.saw, call.at - at)
    else:
        cell.note("waits for ever")
        return False
    again = system.call(b"echo")
    if again.done.wait(FOREVER) and again.saw == "reply":
        return True
    cell.broken = True
    return False


def measure_fault(start: Callable[[], Any], fault: Fault, tries: int, scratch: Scratch) -> Cell:
    """Do one fault to one system again and again; a system that does not serve on is started anew."""
    cell = Cell()
    while tries:
        with start() as system:
            while tries:
                tries -= 1
                if not _try(system, fault, scratch, cell):
                    break
        if "waits for ever" in cell.saw:
            break  # once is enough
    return cell


def measure_again(start: Callable[[], Any], tries: int, scratch: Scratch) -> Cell:
    """Kill a process that runs a request; how long until two requests run side by side?"""
    cell = Cell()
    with start() as system:
        for _ in range(tries):
            path, folder = scratch.path(), scratch.folder()
            system.call(f"run {path}".encode())
            pid, _ = _begun(path)
            at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            pair = [system.call(f"pair {folder}".encode()) for _ in range(2)]
            if not all(each.done.wait(_PATIENCE) for each in pair):
                cell.note("waits for ever")
                break
            saw = {each.saw for each in pair}
            if saw != {"reply"}:
                cell.note(" and ".join(sorted(saw)))
                cell.broken = True
                break
            cell.note("two replies", max(each.at for each in pair) - at)
    return cell


def measure_full(tries: int, scratch: Scratch) -> Cell:
    """Ask gaspar again and again while its queue is full."""
    cell = Cell()
    with Gaspar("--max-waiting", str(MAX_WAITING), "--depth", "1") as system:
        paths = [scratch.path() for _ in range(PROCESSES)]
        calls = [system.call(f"wait {path}".encode()) for path in paths]
        for path in paths:
            _begun(path)
        while not (last := system.call(b"echo")).done.wait(0.1):
            calls.append(last)
            if len(calls) > 2 * (MAX_WAITING + PROCESSES):
                raise Unmeasured(f"{len(calls)} requests wait, {MAX_WAITING} allowed")
        for _ in range(tries):
            at, call = time.monotonic(), Call()
            system.ask(b"echo", call)
            cell.note(call.saw, call.at - at)
        for path in paths:
            os.unlink(path)
        if not all(each.done.wait(_PATIENCE) and each.saw == "reply" for each in calls):
            raise Unmeasured("what waited while the queue was full was not answered")
    return cell


@dataclass(frozen=True)
class Reloads:
    """What reloads did to the load."""

    reloads: int
    requests: int
    failures: dict[str, int]
    seconds: float


def measure_reloads(load: Load, clients: int, seconds: float) -> Reloads:
    """Reload again and again under load."""
    over = threading.Event()
    trouble: list[Unmeasured] = []

    def ended() -> int:
        return len(re.findall("reloaded in|reload failed", system.log))

    def reload() -> None:
        for number in itertools.count():
            if over.is_set():
                break
            os.kill(system.pid, signal.SIGHUP)
            try:
                _await(lambda least=number: ended() > least, "no reload ended")  # type: ignore[misc]
            except Unmeasured as error:
                trouble.append(error)
                break

    with Gaspar(handler="echo") as system:
        thread = threading.Thread(target=reload)
        thread.start()
        try:
            outcome = load.run("oneshot", system.port, clients, 1, 64, 0.1, seconds, "e")
        finally:
            over.set()
            thread.join()
        reloads = ended()
    if trouble:
        raise trouble[0]
    return Reloads(reloads, outcome.issued, outcome.failures, seconds)


# ---- the report ----

_CLIENTS = 32
_NO_POOL = "-"
_UNBOUNDED = "no bound: it waits with the others"


@dataclass
class Run:
    """All that is measured, and what of it could not be."""

    tries: int
    scratch: Scratch
    failures: list[str] = field(default_factory=list)

    def measure(self, title: str, function: Callable[..., Cell], *arguments: Any) -> Cell | None:
        """Return a cell; None if it failed, which is noted."""
        print(f"... {title}", file=sys.stderr, flush=True)
        try:
            return function(*arguments)
        except (Unmeasured, ServerError, LoadError) as error:
            self.failures.append(f"{title}: {error}")
            return None


def _line(title: str, system: str, cell: Cell | None, instead: str = "FAILED") -> None:
    cells = ["-", "-", "-"]
    if cell is not None:
        instead = cell.text
        cells = [cell.milliseconds(statistics.median), cell.milliseconds(max), str(sum(cell.saw.values()))]
    median, most, tries = cells
    print(f"{title:36}{system:8}{instead:44}{median:>10}{most:>10}{tries:>7}", flush=True)


def _faults(run: Run, systems: Sequence[Any]) -> dict[str, Cell | None]:
    """Print a line for each fault and system; returns gaspar's cells."""
    ours: dict[str, Cell | None] = {}
    print(f"{'fault':36}{'':8}{'the caller saw':44}{'median ms':>10}{'max ms':>10}{'tries':>7}")
    for fault in FAULTS:
        for system in systems:
            start = (lambda: Gaspar("--timeout", f"{LIMIT:g}")) if system is Gaspar and fault.limit else system
            if system is Executor and fault.limit:
                _line(fault.title, system.name, None, "knows no limit: waits for ever")
            elif system is not Gaspar and fault.ours:
                _line(fault.title, system.name, None, _NO_POOL)
            else:
                name = f"{fault.title}, {system.name}"
                cell = run.measure(name, measure_fault, start, fault, run.tries, run.scratch)
                _line(fault.title, system.name, cell)
                if system is Gaspar:
                    ours[fault.title] = cell
    ours["full"] = run.measure("queue full", measure_full, 20 * run.tries, run.scratch)
    _line("queue full", Gaspar.name, ours["full"])
    for system in systems[1:]:
        _line("queue full", system.name, None, _UNBOUNDED)
    return ours


def _recovery(run: Run, systems: Sequence[Any], slow: Path) -> dict[str, Cell | None]:
    """Print how soon two requests run side by side again after a kill; returns gaspar's cells."""
    ours: dict[str, Cell | None] = {}
    starts = [(f"importing takes {IMPORT_SECONDS:g} s", Gaspar, lambda: Gaspar(module=slow))]
    starts[:0] = [("", system, system) for system in systems]
    for extra, system, start in starts:
        title = "two serve again after SIGKILL"
        cell = run.measure(f"{title}, {system.name} {extra}", measure_again, start, run.tries, run.scratch)
        _line("  " + extra if extra else title, system.name, cell)
        if system is Gaspar:
            ours["again slow" if extra else "again"] = cell
    return ours


def _reloads(run: Run, folder: Path, seconds: float) -> Reloads | None:
    print("... reloads under load", file=sys.stderr, flush=True)
    try:
        found = measure_reloads(Load(folder), _CLIENTS, seconds)
    except (Unmeasured, ServerError, LoadError) as error:
        run.failures.append(f"reloads under load: {error}")
        return None
    failed = ", ".join(f"{count} {what}" for what, count in found.failures.items()) or "none failed"
    print(
        f"{found.reloads} reloads in {found.seconds:g} s under {_CLIENTS} clients: {found.requests} requests, {failed}"
    )
    return found


def _targets(ours: dict[str, Cell | None], reloads: Reloads | None) -> Iterator[str]:
    def figure(key: str, pick: Callable[[list[float]], float]) -> Finding | None:
        cell = ours.get(key)
        return Finding(pick(cell.seconds) * 1e3, "") if cell and cell.seconds else None

    killed = FAULTS[0].title
    failed = Finding(sum(reloads.failures.values()), f"of {reloads.requests}") if reloads else None
    rows = (
        ("error after a consumer's SIGKILL: median, ms", 20.0, figure(killed, statistics.median)),
        ("error after a consumer's SIGKILL: longest, ms", 100.0, figure(killed, max)),
        ("two consumers serve again: longest, ms", 100.0, figure("again", max)),
        ("the same, importing takes 2 s: longest, ms", 100.0, figure("again slow", max)),
        ("overload answer, queue full: median, ms", 5.0, figure("full", statistics.median)),
        (f"reloads under {_CLIENTS} clients: failed requests", 0.0, failed),
    )
    yield f"{'targets of gaspar':58}{'found':>9}{'wanted':>12}"
    for what, bound, finding in rows:
        if finding is None:
            yield f"  {'not run':9}{what}"
            continue
        target = Target(what, bound, False, lambda _results, finding=finding: finding)  # type: ignore[misc]
        verdict = "reached" if target.is_reached(finding.value) else "MISSED"
        yield f"  {verdict:9}{what:47}{finding.value:>9.2f}{f'<= {bound:g}':>12}   {finding.parts}".rstrip()


LEGEND = f"""\
Counted from the fault (for a hang: from its beginning, the limit of {LIMIT:g} s included) to the caller's exception.
waits for ever    no answer {FOREVER:g} s after the fault
broken for good   the pool answers nothing more; it was made anew for the next try
two serve again   from the kill to the replies of two requests that wait for each other
queue full        {PROCESSES} requests run, {MAX_WAITING} wait, as many as may"""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10, help="of each fault (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load with reloads (%(default)s)")
    options = parser.parse_args(arguments)
    if not 1 <= options.tries <= 1000 or not 0 < options.seconds <= 600:
        parser.error("--tries must be 1 to 1000, --seconds above 0 and at most 600")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are ended
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: the pools fork beside threads
    systems: list[Any] = [Gaspar, Executor, *([Pebble] if pebble else [])]
    cpus = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {cpus} CPUs,", end=" ")
    print(f"pebble {version('pebble')}" if pebble else "pebble is not installed: pip install pebble", end="\n\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slow = folder / "slow_import.py"
        slow.write_text(
            f"import sys, time\ntime.sleep({IMPORT_SECONDS})\nsys.path.insert(0, {str(_HERE)!r})\n"
            "from handlers import faulty\n"
        )
        run = Run(options.tries, Scratch(name))
        ours = _faults(run, systems) | _recovery(run, systems, slow)
        reloads = _reloads(run, folder, options.seconds)
    print("", LEGEND, "", *_targets(ours, reloads), sep="\n")
    if run.failures:
        print("", "FAILURES", *run.failures, sep="\n")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
