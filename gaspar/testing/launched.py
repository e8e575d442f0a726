"""One real daemon: started by its command, waited for, looked at, ended, and searched for what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import psutil

from ..errors import DaemonError
from .facts import TIME, is_alive, wait_until
from .names import as_arguments, as_list, import_path, name_of

L = TypeVar("L", bound="Launched")

_LEAVE_TIME = 5.0  # seconds that processes have to go, once the daemon has ended
_MARK = "GASPAR_UNDER_TEST"  # in the environment of all that a daemon starts: its folder
# A group of its own: Ctrl-C is for the tests. No session of its own: should the tests be killed while the daemon is
# frozen, the kernel continues the processes of groups that nobody controls any more, _exit(2).
_PROGRAM = """
import os, sys
from gaspar.cli import serve
from gaspar.process import die_with_parent
os.setpgid(0, 0)
parent = int(sys.argv[1])
if parent:
    die_with_parent(parent)
serve(sys.argv[2:], prog_name="gaspar-serve")
"""
_FOREIGN = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")  # of the service that the tests run in
_READY = re.compile(
    r"ready: listening on (?P<addresses>.+?)(?:, control (?P<control>\S+))?, \d+ consumers? \(pid .+?\)"
    r", front \(pid (?P<front>\d+)\), forker \(pid \d+\)"
)
_RECORD = re.compile(r"\d{4}-\d\d-\d\d |\{")  # how a record of the log begins, as text or as JSON
_TRACEBACK = "Traceback (most recent call last)"


class Launched:
    """A daemon from its start to its end; `Daemon` says what its arguments are."""

    defaults: ClassVar[Mapping[str, object]] = {"processes": 2, "burst": 0, "grace": 1}

    def __init__(
        self,
        handler: object,
        *arguments: str,
        bind: str | list[str] = "127.0.0.1:0",
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        folder: str = "",
        allow_tracebacks: bool = False,
        popen: Mapping[str, Any] | None = None,
        **options: object,
    ) -> None:
        if str(options.get("log_level", "info")).lower() not in ("info", "debug"):
            raise ValueError(f"log_level is {options['log_level']!r}: less than info does not say when it is ready")
        name, env = name_of(handler), env or {}
        self.folder = folder or tempfile.mkdtemp(prefix="g-", dir="/tmp")  # short: sockets live in it
        self.addresses: list[str] = []
        self.control = ""  # the address that answers questions about the daemon
        self._allow_tracebacks = allow_tracebacks
        self._first_front = 0
        self._family: set[psutil.Process] = set()
        self._frozen: list[psutil.Process] = []  # parents first
        self._over = False  # ended, and searched for leaks or killed
        self._read = (0, "")  # the log: bytes, text
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe would need a thread, green under some loops
        defaults = {key: value for key, value in self.defaults.items() if "GASPAR_" + key.upper() not in env}
        where = [f"unix:{self.folder}/s" if each == "unix" else each for each in as_list(bind)]
        # the kernel tells of the end of the thread that starts a process, so only the main one may ask for that
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        command = [sys.executable, "-c", _PROGRAM, str(parent), *as_arguments({**defaults, "bind": where}), *arguments]
        try:
            self.process = subprocess.Popen(
                [*command, *as_arguments(options), name],
                cwd=cwd,
                env=self._environment(env),
                **{"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log, **(popen or {})},
            )
        except BaseException:
            self._clean()
            raise
        self.pid = self.process.pid  # of the supervisor

    def _environment(self, more: Mapping[str, str | None]) -> dict[str, str]:
        usual = {k: v for k, v in os.environ.items() if not k.startswith("GASPAR_") and k not in _FOREIGN}
        own = {"XDG_RUNTIME_DIR": self.folder, "PYTHONPATH": import_path(), _MARK: self.folder}
        return {key: value for key, value in {**usual, **own, **more}.items() if value is not None}

    def __repr__(self) -> str:
        where = ", ".join(self.addresses) or "no address yet"
        return f"<gaspar.testing.{type(self).__name__} at {where}, pid {self.pid}>"

    def __enter__(self: L) -> L:
        return self.wait_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self.kill()

    # ---- the start ----

    def wait_ready(self: L, timeout: float = 60) -> L:
        """Wait until it serves.

        Args:
            timeout: seconds; loading the handler is part of it.

        Raises:
            DaemonError: it ended instead, or is not ready in time. The message is what it said.
        """
        with contextlib.suppress(AssertionError):
            wait_until(lambda: _READY.search(self.log) or self.process.poll() is not None, timeout)
        code = self.process.poll()
        found = _READY.search(self.log)
        if found is None:
            log = self.log
            self.kill()
            why = f"is not ready after {timeout:g} s" if code is None else f"did not start, exit code {code}"
            raise DaemonError(f"the daemon {why}. It said:\n{log}")
        self.addresses = found["addresses"].split(", ")
        self.control = found["control"] or ""
        self._first_front = int(found["front"])
        self.remember()
        return self

    # ---- what there is to see ----

    @property
    def address(self) -> str:
        """The first address that it listens on, as `gaspar.request` and `gaspar.Client` take it."""
        if not self.addresses:
            raise DaemonError("the daemon is not ready yet")
        return self.addresses[0]

    @property
    def log(self) -> str:
        """What it has said until now, and what its handler has printed."""
        if self._log.closed:
            return self._read[1]
        size = os.fstat(self._log.fileno()).st_size
        if size != self._read[0]:
            self._read = (size, os.pread(self._log.fileno(), size, 0).decode(errors="replace"))
        return self._read[1]

    @property
    def lines(self) -> list[str]:
        """The whole lines of `log`."""
        return [line[:-1] for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_log(self, pattern: str, count: int = 1, timeout: float = TIME) -> str:
        """Wait until so many lines of the log match, those that are there already included.

        Args:
            pattern: a regular expression, looked for anywhere in a line.
            timeout: seconds.

        Returns:
            The last of these lines.

        Raises:
            AssertionError: they did not come, or the daemon has ended without them.
        """
        found: list[str] = []

        def enough() -> bool:
            over = self.process.poll() is not None and not self._relatives()  # first: nothing is said after that
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            return over or len(found) >= count

        with contextlib.suppress(AssertionError):
            wait_until(enough, timeout)
        if len(found) < count:
            raise AssertionError(f"no {count} lines {pattern!r} in the log:\n{self.log}")
        return found[count - 1]

    @property
    def front(self) -> int:
        """The pid of the process that holds the clients' connections, as it is now."""
        front, _ = self._children()
        if not front:
            raise DaemonError("the daemon has no front now")
        return front[0].pid

    @property
    def forker(self) -> int:
        """The pid of the process that has loaded the handler and forks consumers; the newest, during a reload."""
        _, forkers = self._children()
        if not forkers:
            raise DaemonError("the daemon has no forker now")
        return forkers[-1].pid

    @property
    def consumers(self) -> list[int]:
        """The pids of the consumers, as they are now."""
        _, forkers = self._children()
        found = []
        for forker in forkers:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [each.pid for each in forker.children() if is_alive(each)]
        return sorted(found)

    def _children(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """Return the front, and the forkers, oldest first."""
        try:
            children = [each for each in psutil.Process(self.pid).children() if is_alive(each)]
            front = [each for each in children if each.pid == self._first_front or each.name() == "gaspar:front"]
        except psutil.NoSuchProcess:
            return [], []
        return front, sorted(set(children) - set(front), key=lambda each: (each.create_time(), each.pid))

    def _thaw(self) -> None:
        """Let go on what was stopped, children before their parents."""
        while self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._frozen[-1].resume()
            self._frozen.pop()

    # ---- the end ----

    def remember(self) -> None:
        """Note the processes that there are, to look for them at the end; those with a strange environment, that is."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            self._family |= {root, *root.children(recursive=True)}

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop it in order (SIGTERM), and look for what it leaves behind. Returns its exit code, 0.

        Raises:
            AssertionError: processes or files are left; or it does not stop.
        """
        self._thaw()
        if self.process.poll() is None:
            self.remember()
            self.signal(signal.SIGTERM)
        return self.end()

    def end(self, timeout: float = 60) -> int:
        """Wait until it has ended, and look for what it leaves behind. Returns its exit code.

        Raises:
            AssertionError: processes or files are left; or it has not ended within `timeout` seconds.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon has not ended within {timeout:g} s:\n{self.log}") from None
        try:
            wait_until(lambda: not self._relatives(), _LEAVE_TIME)
        except AssertionError:
            raise AssertionError(f"the daemon left processes running: {self._relatives()}\n{self.log}") from None
        if left := os.listdir(self.folder):
            raise AssertionError(f"the daemon left files in {self.folder}: {', '.join(left)}\n{self.log}")
        self._over = True
        return code

    def close(self) -> None:
        """Stop it, unless that is done, and see that all was well.

        Raises:
            AssertionError: as `stop`; or its exit code is not 0, or its log has a traceback which no handler raised.
        """
        if self._over:
            return
        code = self.stop()
        if code:
            raise AssertionError(f"the daemon ended with exit code {code}:\n{self.log}")
        if not self._allow_tracebacks and (found := self.tracebacks()):
            raise AssertionError("the daemon's log has a traceback which no handler raised:\n" + "\n".join(found))

    def tracebacks(self) -> list[str]:
        """List the records of the log with a traceback which no handler raised."""
        records: list[str] = []
        for line in self.log.splitlines():
            if _RECORD.match(line) or not records:
                records.append(line)
            else:
                records[-1] += "\n" + line
        return [each for each in records if _TRACEBACK in each and "handler raised" not in each.partition("\n")[0]]

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut does, and remove its files. Nothing is looked for."""
        if self._log.closed:
            return
        self._over = True
        if self.process.poll() is None:
            self.process.kill()  # first: it would replace the others
        self.process.wait()
        wait_until(self._kill_relatives)
        self._frozen.clear()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self._clean()

    def _clean(self) -> None:
        _ = self.log  # the last look
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_relatives(self) -> bool:
        """Kill what there is; True if that is nothing."""
        left = self._relatives()
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        return not left

    def _relatives(self) -> list[psutil.Process]:
        """List what lives of the processes that were noted, and of all others that have the daemon's environment."""
        found = set(self._family)
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get(_MARK) == self.folder:
                    found.add(each)
        return [each for each in found if is_alive(each)]
