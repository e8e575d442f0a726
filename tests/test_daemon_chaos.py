"""Chaos: a mixed load by the wire while everything but the supervisor is killed, stopped, reloaded and scaled.

`--chaos-seconds` says how long the load lasts, `--chaos-seed` replays what was drawn: the daemon's options, the
requests of each client and the faults. When each of them happens is up to the kernel.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import heapq
import os
import pathlib
import random
import re
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil
import pytest
from conftest import Daemon, Serve, read_all, wait_until

CLIENTS = 48
PATIENCE = 60.0  # seconds; a request that has not ended by then hangs
CALM = 15.0  # seconds that the daemon has, after the last fault, to be as before
MIB = 1 << 20
POOL = random.Random(0).randbytes(9 * MIB)  # what payloads are cut from

# number, kind of work, microseconds of it, bytes to echo, and then filler
HEAD = struct.Struct("!QBII")
NOTHING, SPIN, SLEEP, HANG, EXIT = range(5)
HANDLER = f"""
import hashlib, os, struct, time
import gaspar

HEAD = struct.Struct("{HEAD.format}")
runs = os.open(os.path.join(os.path.dirname(__file__), "runs"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
time.sleep(LOAD)

class Proof(gaspar.Consumer):
    def setup(self):
        time.sleep(SETUP)

    def handle(self, message):
        if not message:
            return b""
        number, work, microseconds, echo = HEAD.unpack_from(message)
        os.write(runs, b"%d\\n" % number)
        end = time.monotonic() + microseconds / 1e6
        if work == {SLEEP}:
            time.sleep(microseconds / 1e6)
        elif work == {EXIT}:
            os._exit(1)
        while work == {HANG} or work == {SPIN} and time.monotonic() < end:
            pass
        return hashlib.sha256(message).digest() + message[HEAD.size : HEAD.size + echo]
"""


class Request(NamedTuple):
    """What one client does."""

    payload: bytes
    expected: bytes
    leaves_after: int  # bytes sent and received, then it goes away; -1: it stays
    resets: bool  # how it goes away
    chunk: int  # bytes that it sends or takes at a time
    pause: float  # seconds in between
    half_closes: bool


class Outcome(NamedTuple):
    """How one request ended."""

    what: str  # "answered", "failed", "left", or what should not have happened
    took: float  # seconds


def draw_requests(seed: str) -> Iterator[Request]:
    """Draw one client's requests."""
    rng = random.Random(seed)
    base = rng.getrandbits(40) << 20
    for number in range(base, base + (1 << 20)):
        size = rng.choices(
            [0, rng.randrange(100), rng.randrange(4096), rng.randrange(100_000), rng.randrange(MIB), 8 * MIB],
            [10, 50, 25, 12, 2.5, 0.3],
        )[0]
        work, microseconds = rng.choices(
            [(NOTHING, 0), (SPIN, rng.randrange(3000)), (SLEEP, rng.randrange(50_000)), (HANG, 0), (EXIT, 0)],
            [65, 30, 4, 0.03, 0.1],
        )[0]
        echo = rng.choice([0, rng.randrange(size + 1), size])
        start = rng.randrange(MIB)
        payload = HEAD.pack(number, work, microseconds, echo) + POOL[start : start + size] if size else b""
        expected = hashlib.sha256(payload).digest() + payload[HEAD.size : HEAD.size + echo] if size else b""
        slow = rng.random() < 0.05
        yield Request(
            payload,
            expected,
            leaves_after=rng.randrange(4 + len(payload) + len(expected) + 1) if rng.random() < 0.08 else -1,
            resets=rng.random() < 0.5,
            chunk=rng.choice([1, 3, 1000]) + size // 50 if slow else MIB,
            pause=rng.uniform(0.0, 0.05) if slow else 0.0,
            half_closes=rng.random() < 0.1,
        )


class Client:
    """One client at a time of one place: connects, sends, receives, tells how it ended, begins again.

    `step` is called when its socket is ready or its pause is over.
    """

    def __init__(self, load: Load, name: str, address: str) -> None:
        self._load = load
        self._requests = draw_requests(name)
        self._address = address
        self._sock: socket.socket | None = None
        self.begin()

    def begin(self) -> None:
        """Connect for the next request."""
        self._request = next(self._requests)
        self._data = struct.pack("!I", len(self._request.payload)) + self._request.payload
        self._sent = 0
        self._reply = bytearray()
        self._began = time.monotonic()
        self._connected = False
        self._connect()

    def _connect(self) -> None:
        if self._address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            where: str | tuple[str, int] = self._address[5:]
        else:
            sock = socket.socket()
            where = ("127.0.0.1", int(self._address.rpartition(":")[2]))
        sock.setblocking(False)
        code = sock.connect_ex(where)
        if code == errno.EAGAIN:  # a Unix socket's backlog is full
            sock.close()
            self._load.call_later(0.01, self.step)
            return
        self._sock = sock
        if code not in (0, errno.EINPROGRESS):
            self._end(f"connect: {os.strerror(code)}")
            return
        self._load.watch(sock, selectors.EVENT_WRITE, self.step)

    def step(self) -> None:
        """Go on."""
        if time.monotonic() - self._began > PATIENCE:
            self._end("hung")
        elif self._sock is None:
            self._connect()
        else:
            try:
                self._advance(self._sock)
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                self._end("failed")
            except OSError as error:
                self._end(f"socket: {error.strerror}")

    def _advance(self, sock: socket.socket) -> None:
        request = self._request
        if not self._connected:
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            self._connected = True
        may = request.chunk
        if request.leaves_after >= 0:
            may = min(may, request.leaves_after - self._sent - len(self._reply))
            if may <= 0:
                self._leave(sock)
                return
        if self._sent < len(self._data):
            self._sent += sock.send(memoryview(self._data)[self._sent : self._sent + may])
            if self._sent == len(self._data):
                if request.half_closes:
                    sock.shutdown(socket.SHUT_WR)
                self._load.watch(sock, selectors.EVENT_READ, self.step)
        else:
            part = sock.recv(may)
            self._reply += part
            if not part:
                self._end(self._judge())
                return
        if request.pause:
            self._load.unwatch(sock)
            self._load.call_later(request.pause, self._resume)

    def _resume(self) -> None:
        if self._sock is not None:
            sending = self._sent < len(self._data)
            self._load.watch(self._sock, selectors.EVENT_WRITE if sending else selectors.EVENT_READ, self.step)

    def _judge(self) -> str:
        if self._reply == self._request.expected:
            return "answered"
        wanted = f"{len(self._request.expected)} for a request of {len(self._request.payload)}"
        return f"WRONG: {len(self._reply)} bytes and then end-of-file, not {wanted}"

    def _leave(self, sock: socket.socket) -> None:
        if self._request.resets and sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end("left")

    def _end(self, what: str) -> None:
        if self._sock is not None:
            self._load.unwatch(self._sock)
            self._sock.close()
            self._sock = None
        self._load.ended(self, Outcome(what, time.monotonic() - self._began), self._request)

    def look(self) -> None:
        """End it if it hangs."""
        if time.monotonic() - self._began > PATIENCE:
            self.step()


class Load:
    """All clients, and the one loop that they live in."""

    def __init__(self, seed: int, addresses: list[str]) -> None:
        self.outcomes: list[Outcome] = []
        self.unusual: list[str] = []  # those that should not be
        self.empty = 0  # requests without a payload
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._stopping = False
        self._clients: set[Client] = set()
        for number in range(CLIENTS):
            # every fourth by the Unix socket
            self._clients.add(Client(self, f"{seed} {number}", addresses[1 if number % 4 == 0 else 0]))

    def watch(self, sock: socket.socket, events: int, callback: Callable[[], None]) -> None:
        """Call back when the socket is ready."""
        try:
            self._selector.modify(sock, events, callback)
        except KeyError:
            self._selector.register(sock, events, callback)

    def unwatch(self, sock: socket.socket) -> None:
        """Call back no more."""
        if sock in self._selector.get_map():
            self._selector.unregister(sock)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in a while."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, callback))

    def ended(self, client: Client, outcome: Outcome, request: Request) -> None:
        """Take note; the client begins again while the load lasts, after a failure only in a while."""
        self.outcomes.append(outcome)
        if outcome.what not in ("answered", "failed", "left"):
            work = HEAD.unpack_from(request.payload)[:3] if request.payload else "empty"
            self.unusual.append(f"{outcome.what} (after {outcome.took:.1f} s, {work}, {request[2:]})")
        if self._stopping:
            self._clients.discard(client)
        else:
            self.call_later(0.05 if outcome.what != "answered" else 0.0, lambda: self._again(client))

    def _again(self, client: Client) -> None:
        if self._stopping:
            self._clients.discard(client)
        else:
            client.begin()

    def run(self, seconds: float) -> None:
        """Let the clients work for so long, then until each request has ended."""
        end = time.monotonic() + seconds
        look = 0.0
        while self._clients:
            now = time.monotonic()
            self._stopping = now >= end
            if now >= look:
                look = now + 1.0
                for client in list(self._clients):
                    client.look()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            timeout = min(0.1, max(0.0, self._timers[0][0] - now)) if self._timers else 0.1
            for key, _ in self._selector.select(timeout):
                key.data()
        self._selector.close()


class Faults(threading.Thread):
    """Kills, stops, reloads and scales a daemon, again and again."""

    KINDS = (
        ("kill", "consumer", 8.0),
        ("pause", "consumer", 3.0),
        ("stop", "consumer", 1.5),
        ("kill", "forker", 0.8),
        ("pause", "forker", 1.0),
        ("stop", "forker", 0.3),
        ("kill", "front", 0.8),
        ("pause", "front", 1.0),
        ("stop", "front", 0.3),
        ("HUP", "", 2.0),
        ("TTIN", "", 1.5),
        ("TTOU", "", 1.5),
    )
    MEAN = 0.15  # seconds from one to the next

    def __init__(self, seed: int, daemon: Daemon) -> None:
        super().__init__(name="faults")
        self.done: collections.Counter[str] = collections.Counter()
        self.error: BaseException | None = None
        self._rng = random.Random(f"faults {seed}")
        self._daemon = daemon
        self._end = threading.Event()
        self._paused: list[tuple[float, psutil.Process]] = []
        self._balance = 0  # more TTIN than TTOU

    def stop(self) -> None:
        """End; what was to go on goes on."""
        self._end.set()
        self.join()
        if self.error:
            print("\n".join(self._daemon.lines[-60:]))  # what the daemon said last
            raise self.error

    def run(self) -> None:
        try:
            while not self._end.wait(self._rng.expovariate(1 / self.MEAN)):
                self._continue(time.monotonic())
                # drawn before it is known what there is, so that the seed alone decides
                what, whom, _ = self._rng.choices(self.KINDS, [weight for *_, weight in self.KINDS])[0]
                which, seconds = self._rng.random(), self._rng.uniform(0.01, 1.5)
                self._daemon.remember()
                if whom:
                    self._hit(what, whom, which, seconds)
                else:
                    self._order(what)
            self._continue(float("inf"))
        except BaseException as error:
            self.error = error

    def _continue(self, now: float) -> None:
        for each in [each for each in self._paused if each[0] <= now]:
            self._paused.remove(each)
            _signal(each[1], signal.SIGCONT)

    def _order(self, what: str) -> None:
        change = {"TTIN": 1, "TTOU": -1}.get(what, 0)
        if abs(self._balance + change) <= 2:
            self._balance += change
            self._daemon.signal(getattr(signal, f"SIG{what}"))
            self.done[what] += 1

    def _hit(self, what: str, whom: str, which: float, seconds: float) -> None:
        found = processes(self._daemon, whom)
        if not found:
            return
        process = found[int(which * len(found))]
        _signal(process, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if what == "pause":
            self._paused.append((time.monotonic() + seconds, process))
        self.done[f"{what} {whom}"] += 1


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def processes(daemon: Daemon, role: str) -> list[psutil.Process]:
    """List the daemon's fronts, forkers or consumers, oldest first."""
    found = []
    for each in psutil.Process(daemon.process.pid).children(recursive=True):
        try:
            if each.name() == f"gaspar:{role}" and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except psutil.NoSuchProcess:
            pass
    return sorted(found, key=lambda each: (each.create_time(), each.pid))


def relatives(daemon: Daemon) -> list[psutil.Process]:
    """List all processes that have the daemon's environment, whoever is their parent now."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get("TMPDIR") == daemon.folder:
                found.append(each)
        except psutil.Error:
            pass
    return found


def is_calm(daemon: Daemon) -> bool:
    """True if one front and one forker are there, and as many consumers as were asked for last."""
    wanted = re.findall(r"(\d+) consumers from now on", daemon.log)
    wanted = wanted or re.findall(r"listening on .+?, (\d+) consumers?", daemon.log)
    counts = [len(processes(daemon, role)) for role in ("front", "forker", "consumer")]
    return counts == [1, 1, int(wanted[-1])]


def await_calm(daemon: Daemon) -> None:
    """Wait until the daemon is as before; fails if it does not come to that."""
    end = time.monotonic() + CALM
    while not is_calm(daemon):
        counts = {role: [each.pid for each in processes(daemon, role)] for role in ("front", "forker", "consumer")}
        assert time.monotonic() < end, f"not as before {CALM:g} s after the last fault: {counts}\n{tail(daemon)}"
        threading.Event().wait(0.05)
    daemon.front = processes(daemon, "front")[0].pid
    daemon.forker = processes(daemon, "forker")[0].pid


def tail(daemon: Daemon) -> str:
    """Return the end of the log."""
    return "\n".join(daemon.lines[-200:])


def draw_options(seed: int) -> tuple[list[str], float, float]:
    """Draw the daemon's options, and how many seconds loading the handler and setting up a consumer take."""
    rng = random.Random(f"options {seed}")
    options = ["-p", str(rng.choice([2, 3, 4])), "--timeout", rng.choice(["0.3", "1"])]
    options += rng.choice([[], ["--depth", "1"], ["--depth", "8"]])
    options += rng.choice([["--burst", "0"], ["--burst", "auto"], ["--burst", "8", "--patience", "0.003"]])
    options += rng.choice([[], ["--max-requests", "200"]])
    options += rng.choice([[], ["--max-memory", "100M"]])
    return options, rng.choice([0.0, 0.0, 0.3]), rng.choice([0.0, 0.0, 0.2])


@pytest.mark.timeout(3600)  # every wait in here has a bound of its own
def test_nothing_hangs_or_lies_or_stays_whatever_is_killed(
    serve: Serve, tmp_path: pathlib.Path, pytestconfig: pytest.Config
) -> None:
    seconds = float(pytestconfig.getoption("--chaos-seconds"))
    seed = pytestconfig.getoption("--chaos-seed")
    seed = random.SystemRandom().randrange(10**6) if seed is None else int(seed)
    options, load_seconds, setup_seconds = draw_options(seed)
    print(f"--chaos-seed {seed}: {' '.join(options)}, load {load_seconds:g} s, setup {setup_seconds:g} s")
    (tmp_path / "proof.py").write_text(f"LOAD, SETUP = {load_seconds}, {setup_seconds}\n{HANDLER}")
    shared_memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    unix = tmp_path / "s"
    daemon = serve(f"{tmp_path}/proof.py:Proof", *options, "-b", f"unix:{unix}")

    load, faults = Load(seed, daemon.addresses), Faults(seed, daemon)
    faults.start()
    try:
        load.run(seconds)
    finally:
        faults.stop()
    report(load, faults, seconds, seed)
    await_calm(daemon)

    assert not load.unusual, "\n".join([f"seed {seed}", *load.unusual, tail(daemon)])
    check_runs(tmp_path / "runs", seed)
    answered = sum(each.what == "answered" for each in load.outcomes)
    failed = sum(each.what == "failed" for each in load.outcomes)
    assert answered > 5 * failed, f"seed {seed}: {answered} answered, {failed} failed"
    check_service(daemon)
    check_growth(daemon)
    check_files(daemon)
    assert stop(daemon) == 0, tail(daemon)
    assert not relatives(daemon)
    assert not unix.exists()
    assert not os.path.isdir("/dev/shm") or set(os.listdir("/dev/shm")) <= shared_memory
    assert "Traceback" not in daemon.log and "unexpected" not in daemon.log, f"seed {seed}\n{daemon.log}"


def report(load: Load, faults: Faults, seconds: float, seed: int) -> None:
    """Print what was done and how it ended."""
    counts = collections.Counter(each.what for each in load.outcomes)
    waits = sorted(each.took for each in load.outcomes)
    print(f"{len(waits)} requests in {seconds:g} s:", ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"longest {waits[-1]:.2f} s, median {waits[len(waits) // 2] * 1000:.1f} ms")
    print(f"{faults.done.total()} faults:", ", ".join(f"{n} {what}" for what, n in faults.done.most_common()))


def check_runs(path: pathlib.Path, seed: int) -> None:
    """No request was run twice."""
    runs = collections.Counter(path.read_bytes().split())
    more = {number: count for number, count in runs.items() if count > 1}
    assert not more, f"seed {seed}: run more than once: {more}"


def check_service(daemon: Daemon) -> None:
    """It answers everybody, and a reload comes to its end."""
    message = HEAD.pack(1, NOTHING, 0, 5) + b"hello"
    for address in daemon.addresses * 20:
        with daemon.connect(address) as sock:
            sock.sendall(struct.pack("!I", len(message)) + message)
            assert read_all(sock).endswith(b"hello")
    done = r"reloaded in|reload failed"
    before = len(re.findall(done, daemon.log))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_line(done, before + 1)
    await_calm(daemon)


def check_files(daemon: Daemon) -> None:
    """The private directory holds three files of each consumer that there is, and a few of all."""
    (folder,) = (each for each in os.listdir(daemon.folder) if each.startswith("gaspar-"))
    names = sorted(os.listdir(f"{daemon.folder}/{folder}"))
    consumers = len(daemon.consumers)
    assert len(names) <= 3 * consumers + 4, f"{consumers} consumers, {len(names)} files: {' '.join(names)}"


def check_growth(daemon: Daemon) -> None:
    """Front, forker and supervisor hold no more than new ones; a new front is what there is to compare with."""
    wait_until(lambda: daemon.connected() == 0)

    def held(pid: int) -> tuple[int, int]:
        process = psutil.Process(pid)
        return process.num_fds(), process.memory_info().rss

    old = {"front": held(daemon.front), "forker": held(daemon.forker), "supervisor": held(daemon.process.pid)}
    os.kill(daemon.front, signal.SIGKILL)
    daemon.wait_for_line(rf"front \(pid {daemon.front}\) ended")
    await_calm(daemon)
    check_service(daemon)
    new = {"front": held(daemon.front), "forker": held(daemon.forker), "supervisor": held(daemon.process.pid)}
    for role, (fds, memory) in old.items():
        new_fds, new_memory = new[role]
        print(f"{role}: {fds} descriptors and {memory >> 20} MiB, a new one {new_fds} and {new_memory >> 20} MiB")
        assert fds <= new_fds + 8, f"{role} holds {fds} descriptors, a new one {new_fds}"
        assert memory <= new_memory + 64 * MIB, f"{role} holds {memory >> 20} MiB, a new one {new_memory >> 20}"


def stop(daemon: Daemon) -> int:
    """Stop it as `Daemon.stop` does, which also looks for what it leaves; in bounded time."""
    began = time.monotonic()
    code = daemon.stop()
    assert time.monotonic() - began < 10, tail(daemon)
    return code
