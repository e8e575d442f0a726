"""The real daemon for gaspar's own tests: the one of gaspar.testing, stricter, and asked with plain sockets."""

from __future__ import annotations

import pathlib
import re
import resource
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import gaspar.testing
from gaspar.pytest_plugin import gaspar_daemon
from gaspar.testing import wait_until

__all__ = ["gaspar_daemon", "wait_until"]  # the fixture is here also where gaspar is not installed

ROOT = pathlib.Path(__file__).resolve().parent.parent
HANDLERS = str(ROOT / "tests" / "handlers.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", default=20.0, type=float, help="how long the chaos test's load lasts")
    parser.addoption("--chaos-seed", default=None, type=int, help="what the chaos test draws, to do it again")


class Daemon(gaspar.testing.Daemon):
    """A daemon as gaspar's own tests want it: warnings are errors, and nothing may be left in TMPDIR either."""

    defaults = {"burst": 0}  # most tests hold up a consumer to see what waits behind it  # noqa: RUF012
    front = forker = 0  # as the ready line has them, also when they are dead
    wait_for_line = gaspar.testing.Daemon.wait_for_log

    def __init__(
        self,
        handler: str,
        *options: str,
        bind: str = "127.0.0.1:0",
        files: int = 0,
        folder: str = "",
        **environment: str,
    ) -> None:
        folder = folder or tempfile.mkdtemp(prefix="g-", dir="/tmp")
        own = {"TMPDIR": folder, "XDG_RUNTIME_DIR": None, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        popen: dict[str, Any] = {"stdout": subprocess.PIPE}
        if files:
            popen["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        super().__init__(
            handler, *options, bind=bind, env={**own, **environment}, cwd=ROOT / "tests", folder=folder, popen=popen
        )

    def wait_ready(self, timeout: float = 60) -> Daemon:
        super().wait_ready(timeout)
        line = self.wait_for_line("ready: listening on ")
        self.front, self.forker = (int(re.search(rf"{role} \(pid (\d+)\)", line)[1]) for role in ("front", "forker"))
        return self

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


def read_all(sock: socket.socket) -> bytes:
    """Read until end-of-file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


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
            daemon.close()
