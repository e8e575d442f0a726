"""The real daemon under test, and bad days for it: what pytest_plugin.py makes a fixture of, without pytest.

Linux tells it most: elsewhere a daemon may outlive a test run that was killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import psutil

from ..client import Client, request
from ..errors import DaemonError
from .facts import TIME, is_alive, is_stopped, wait_until
from .filler import Filler
from .launched import Launched

__all__ = ["Daemon", "wait_until"]


class Daemon(Launched):
    """A real daemon, in processes of its own, on a free port of the loopback interface.

    It is started at once; `with`, or `wait_ready`, waits until it serves. The end of `with` stops it and looks for
    what it leaves behind.

    Args:
        handler: "package.module:attribute", "path/to/file.py:attribute", a function or a Consumer subclass; the
            last two from the top level of a module.
        arguments: of the command `gaspar-serve`, as they are.
        bind: where it listens, one address or several; "unix": a socket in its private directory.
        env: environment variables beside those of this process; None removes one.
        cwd: its current directory; None: that of this process.
        folder: where its private directory goes; "": a new one in /tmp.
        allow_tracebacks: do not mind tracebacks in its log which no handler raised.
        popen: of subprocess.Popen.
        options: of the command, with underscores: `processes=4`, `max_waiting=2`. `defaults` has those that are
            not as the command's. GASPAR_... variables of this process are not heeded.

    Raises:
        TypeError: the handler is a lambda, a closure or an object: it has no name to import it by.
    """

    def ask(self, message: bytes | bytearray | memoryview, timeout: float = TIME) -> bytes:
        """Send a request on a connection of its own and return the reply.

        Args:
            timeout: seconds.

        Raises: as `gaspar.Client.request`, so that each failure has its name.
        """
        with Client(self.address) as client:
            return client.request(message, timeout)

    # ---- bad days ----

    def kill_consumer(self, *, busy: bool = False) -> int:
        """Kill a consumer with SIGKILL, as the kernel does when memory runs out: `ConsumerLost` for its request.

        The one that has run its request for longest; any, if none runs one. The daemon replaces it.

        Args:
            busy: wait until one runs a request. Else a request that is still on its way may miss its fate.

        Returns:
            Its pid. It is gone.

        Raises:
            DaemonError: `busy`, and the daemon is frozen, or has no control address to ask.
        """
        if busy and (self._frozen or not self.control):
            why = "it is frozen" if self._frozen else "it has no control address"
            raise DaemonError(f"the daemon cannot be asked who is busy: {why}")
        running = wait_until(self._running) if busy else self._running()
        pid = (running or wait_until(lambda: self.consumers))[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim = psutil.Process(pid)
            victim.kill()
            wait_until(lambda: not is_alive(victim))
        return pid

    def _running(self) -> list[int]:
        """List the consumers that run requests, the longest first."""
        if self._frozen or not self.control:
            return []
        told = json.loads(request(self.control, b"consumers", TIME))["consumers"]
        busy = sorted((each for each in told if each["age"] is not None), key=lambda each: -float(each["age"]))
        return [int(each["pid"]) for each in busy]

    @contextlib.contextmanager
    def freeze(self) -> Iterator[None]:
        """Let nothing answer inside `with`: the port takes connections, as the kernel does, and that is all.

        All processes of the daemon are stopped (SIGSTOP), the supervisor first: it kills a child that somebody stops
        for 2 seconds, as a forker does its consumers, and neither can while it is stopped itself. They go on in the
        opposite order, so that no parent sees its child stopped. Time passes meanwhile: a request that has then run
        for longer than `timeout` is killed, one that has waited for longer than `max_wait` is refused.

        Raises:
            DaemonError: it is frozen, or its queue is filled, already.
        """
        with self._stopped(keep=0):
            yield

    @contextlib.contextmanager
    def fill_queue(self) -> Iterator[None]:
        """Let all requests be refused inside `with`: `Overloaded`; one-shot ones are reset.

        The consumers are stopped, with the supervisor and the forker (see `freeze`), and the front is sent empty
        requests until it refuses one, as many as may wait (`max_waiting`: 10000 take 0.1 s, fewer take less).
        At the end they are cancelled before the consumers go on: the handler sees none of them. What a consumer ran
        before goes on afterwards. With `max_wait` the queue lasts for that long.

        Raises:
            DaemonError: it is frozen, or its queue is filled, already.
        """
        fillers: list[Filler] = []
        with self._stopped(keep=self.front):
            try:
                while not fillers or not fillers[-1].fill():
                    fillers.append(Filler(self.address))
                yield
            finally:
                for each in fillers:
                    with contextlib.suppress(OSError):  # the daemon was killed meanwhile
                        each.take_back()
                    each.close()

    @contextlib.contextmanager
    def _stopped(self, keep: int) -> Iterator[None]:
        """Stop all processes but one, parents before their children."""
        if self._frozen:
            raise DaemonError("the daemon is frozen, or its queue filled, already")
        try:
            waiting = [psutil.Process(self.pid)]
            while waiting:
                process = waiting.pop(0)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                    self._frozen.append(process)
                    wait_until(lambda process=process: is_stopped(process))  # type: ignore[misc]
                    waiting += [each for each in process.children() if each.pid != keep]  # there will be no others
            yield
        finally:
            self._thaw()
