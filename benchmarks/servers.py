"""Starts the servers that are compared, looks at their processes from outside, ends them. Sends no load."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import processes
import psutil
from load import environment

HOST = "127.0.0.1"
_START_SECONDS = 20  # until ready, or until the first reply
_STOP_SECONDS = 15  # from SIGTERM to the end, then SIGKILL
_POLL_SECONDS = 0.001
_LOG_BYTES = 1 << 20
_FIRST = b"e"  # kind "e", handlers.py


class ServerError(Exception):
    """A server did not start, did not answer or did not end as it should."""


@dataclass(frozen=True)
class Peer:
    """One of the servers that are compared: how to start it, and how to see that it is there."""

    name: str
    command: Callable[[str, int, str], list[str]]  # of address, number of processes, name in handlers.py
    ask: Callable[[int, bytes], bytes | None] | None = None  # of port and payload; None: one-shot
    says: bytes = b"ready"  # in its log
    ends_with: int = 0  # after SIGTERM


class Server:
    """A running server; as a context manager it is ready at the beginning and gone at the end.

    Raises:
        ServerError: it ended early, was not ready in time, or did not end with status 0 after SIGTERM.
    """

    def __init__(self, peer: Peer, processes: int, handler: str, *options: str) -> None:
        self.peer = peer
        self.first_reply_after = 0.0  # seconds from exec
        self.port = _find_port()
        self._log = os.memfd_create("log")  # unlike a pipe, nobody has to read it
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            [*peer.command(f"{HOST}:{self.port}", processes, handler), *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment(),
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends its servers itself
        )

    def __enter__(self) -> "Server":
        try:
            ask = self.peer.ask or request
            self._wait(lambda: ask(self.port, _FIRST) == _FIRST, "answering")
            self.first_reply_after = time.monotonic() - self._started_at
            self._wait(lambda: self.peer.says in self._read_log(), "ready")
        except BaseException:
            _kill(processes.family(self.pid))
            self._process.wait()
            os.close(self._log)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server; a failure of its end does not hide an error that is under way."""
        try:
            self._stop()
        except ServerError:
            if error is None:
                raise
        finally:
            os.close(self._log)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's processes have used so far."""
        return processes.cpu_seconds(processes.family(self.pid))

    def pss(self) -> int:
        """Return the memory of its processes in bytes; a page counts in equal parts for all that map it."""
        return processes.pss(processes.family(self.pid))

    def named(self, title: str) -> list[int]:
        """List the pids of those of its processes that are called `title`."""
        found = []
        for each in processes.family(self.pid):
            with suppress(psutil.Error):
                if each.name() == title:
                    found.append(each.pid)
        return found

    @property
    def pid(self) -> int:
        """The process that was started: the parent of the others."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to standard output and error so far."""
        return self._read_log().decode(errors="replace")

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        give_up_at = self._started_at + _START_SECONDS
        while not is_done():
            if self._process.poll() is not None:
                raise self._error(f"ended with {self._process.returncode} instead of {what}")
            if time.monotonic() > give_up_at:
                raise self._error(f"was not {what} after {_START_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def _stop(self) -> None:
        family = processes.family(self.pid)
        try:
            self._process.terminate()
            status = self._process.wait(_STOP_SECONDS)
            left = psutil.wait_procs(family[1:], timeout=_STOP_SECONDS)[1]
        except subprocess.TimeoutExpired:
            raise self._error(f"had not ended {_STOP_SECONDS} s after SIGTERM") from None
        finally:
            _kill(family)
            self._process.wait()
        if left:
            raise self._error(f"left {len(left)} processes behind")
        if status != self.peer.ends_with:
            raise self._error(f"ended with {status} after SIGTERM")

    def _read_log(self) -> bytes:
        # pread: the server writes at the same descriptor's position, which a seek would move.
        return os.pread(self._log, _LOG_BYTES, 0)

    def _error(self, what: str) -> ServerError:
        return ServerError(f"{self.peer.name} {what}:\n{self._read_log().decode(errors='replace')[-2000:]}")


def request(port: int, payload: bytes) -> bytes | None:
    """Return the reply to one request; None if there was none."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=_START_SECONDS) as connection:
        connection.sendall(struct.pack("!I", len(payload)) + payload)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)
    return None


def _kill(family: list[psutil.Process]) -> None:
    """Kill those that are left; psutil compares start times, so a reused pid is not hit."""
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _find_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
