"""The real daemon for tests: started by its command, ended, and looked after for what it leaves behind."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psutil
import pytest

T = TypeVar("T")
ROOT = pathlib.Path(__file__).resolve().parent.parent
HANDLERS = str(ROOT / "tests" / "handlers.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", default=20.0, type=float, help="how long the chaos test's load lasts")
    parser.addoption("--chaos-seed", default=None, type=int, help="what the chaos test draws, to do it again")


class Daemon:
    """One `gaspar-serve` process and all that it started."""

    def __init__(
        self,
        handler: str,
        *options: str,
        bind: str = "127.0.0.1:0",
        files: int = 0,
        folder: str = "",
        **environment: str,
    ) -> None:
        if "--burst" not in options:  # most tests hold up a consumer to see what waits behind it
            options = (*options, "--burst", "0")
        self.folder = folder or tempfile.mkdtemp(prefix="g-", dir="/tmp")  # short: sockets live in it
        env = dict(os.environ, TMPDIR=self.folder, PYTHONPATH=str(ROOT), PYTHONWARNINGS="error", **environment)
        env.pop("XDG_RUNTIME_DIR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gaspar", "-b", bind, *options, handler],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=ROOT / "tests",
            env=env,
            start_new_session=True,
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._family: set[psutil.Process] = set()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self.lines.append("<end of log>")
            self._news.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, count: int = 1, timeout: float = 30) -> str:
        """Wait until so many log lines match; returns the last of them."""
        found: list[str] = []

        def enough() -> bool:
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            return len(found) >= count or self.lines[-1:] == ["<end of log>"]

        with self._news:
            self._news.wait_for(enough, timeout)
        assert len(found) >= count, f"no {count} lines {pattern!r} in the log:\n{self.log}"
        return found[count - 1]

    def wait_ready(self) -> Daemon:
        line = self.wait_for_line(r"ready: listening on ")
        match = re.search(
            r"listening on (.+?), \d+ consumers? \(pid (.+?)\), front \(pid (\d+)\), forker \(pid (\d+)\)", line
        )
        assert match, line
        self.address = match[1].split(", ")[0]
        self.addresses = match[1].split(", ")
        self.front, self.forker = int(match[3]), int(match[4])
        self.remember()
        return self

    def remember(self) -> None:
        """Note all processes that there are, to look for them later."""
        root = psutil.Process(self.process.pid)
        self._family |= {root, *root.children(recursive=True)}

    @property
    def consumers(self) -> list[int]:
        return sorted(child.pid for child in psutil.Process(self.forker).children())

    def connect(self, address: str = "") -> socket.socket:
        address = address or self.address
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(60)
            sock.connect(address[5:])
            return sock
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), 60)

    def ask(self, message: bytes) -> bytes:
        """Send a request with plain sockets; ConnectionResetError if it fails."""
        with self.connect() as sock:
            sock.sendall(struct.pack("!I", len(message)) + message)
            return read_all(sock)

    def connected(self) -> int:
        """How many client connections the front holds."""
        port = int(self.address.rpartition(":")[2])
        found = psutil.Process(self.front).net_connections("tcp")
        return sum(each.laddr.port == port and each.status == "ESTABLISHED" for each in found)

    def ask_nothing(self) -> None:
        """Wait until the front has taken in what was sent to it before."""
        with self.connect() as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until the daemon has ended; returns its exit code. Fails if it leaves something behind."""
        code = self.process.wait(60)
        self._reader.join(60)
        _, alive = psutil.wait_procs(self._family, timeout=5)
        assert not alive, f"left running: {alive}\n{self.log}"
        assert os.listdir(self.folder) == []
        return code

    def stop(self) -> int:
        """TERM, then `end`."""
        if self.process.poll() is None:
            self.remember()
            self.signal(signal.SIGTERM)
        return self.end()

    def kill(self) -> None:
        """The last resort of a failed test."""
        for process in self._family | {psutil.Process()} - {psutil.Process()}:
            if process.is_running():
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def read_all(sock: socket.socket) -> bytes:
    """Read until end-of-file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def wait_until(happened: Callable[[], T]) -> T:
    """Wait for a fact that nobody announces; returns it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if fact := happened():
            return fact
        select.select([], [], [], 0.005)
    raise AssertionError("it never happened")


Serve = Callable[..., Daemon]


@pytest.fixture
def launch() -> Iterator[Serve]:
    """Start daemons that need not become ready; the test ends them, or they are killed."""
    daemons: list[Daemon] = []

    def start(handler: str, *options: str, **more: Any) -> Daemon:
        name = handler if ":" in handler or not handler.isidentifier() else f"{HANDLERS}:{handler}"
        daemons.append(Daemon(name, *options, **more))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def serve(launch: Serve) -> Iterator[Serve]:
    """Start daemons, wait until they are ready; at the end they must stop in order and leave nothing."""
    daemons: list[Daemon] = []

    def start(handler: str, *options: str, **more: Any) -> Daemon:
        daemons.append(launch(handler, *options, **more))
        return daemons[-1].wait_ready()

    yield start
    for daemon in daemons:
        if daemon.process.returncode is None:
            assert daemon.stop() == 0, daemon.log
            assert "Traceback" not in daemon.log or "handler raised" in daemon.log, daemon.log
