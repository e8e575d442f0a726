"""Reload and scale: new code without a failed request, and the old code goes on if the new does not load."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
from collections.abc import Callable

import psutil
import pytest
from conftest import Daemon, Serve, wait_until


@pytest.fixture
def module(tmp_path: pathlib.Path) -> Callable[[str], str]:
    """Write the handler's module; returns its HANDLER."""

    def write(text: str) -> str:
        (tmp_path / "versioned.py").write_text(text)
        return f"{tmp_path}/versioned.py:handle"

    return write


def version(number: int) -> str:
    return f"def handle(message):\n    return b'{number}' + message\n"


class Load:
    """Clients that ask for as long as the context lasts, and keep what they got."""

    def __init__(self, daemon: Daemon, clients: int) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self.replies: list[bytes] = []
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.replies.append(self._daemon.ask(b"!"))
            except Exception as error:
                self.failures.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.replies) > 50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_reload_under_load_fails_no_request(serve: Serve, module: Callable[[str], str]) -> None:
    daemon = serve(module(version(1)), "-p", "2")
    with Load(daemon, 32) as load:
        for number in range(2, 6):
            module(version(number))  # the same size, within the same second
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_line("reloaded in", number - 1)
            daemon.remember()
            assert daemon.ask(b"?") == b"%d?" % number
    assert load.failures == []
    assert set(load.replies) == {b"%d!" % number for number in range(1, 6)}


def test_what_runs_during_a_reload_is_finished_by_the_old_code(
    serve: Serve, module: Callable[[str], str], tmp_path: pathlib.Path
) -> None:
    go = tmp_path / "go"
    slow = f"import os, time\ndef handle(message):\n    while message and not os.path.exists({str(go)!r}):\n"
    daemon = serve(module(slow + "        time.sleep(0.002)\n    return b'1' + message\n"), "-p", "2")
    with daemon.connect() as old:
        old.sendall(b"\0\0\0\5hello")
        daemon.ask(b"")
        module(version(2))
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: daemon.ask(b"") == b"2")
        go.touch()
        assert old.recv(100) == b"1hello"
    daemon.wait_for_line("reloaded in")
    assert daemon.ask(b"") == b"2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def handle(message)\n    return message\n", "SyntaxError"),
        ("import a_module_that_is_not_there\n", r"needs 'a_module_that_is_not_there', .*line 1"),
        ("x = 1\n\n1 / 0\n", r"ZeroDivisionError.*versioned.py, line 3"),
        ("handel = print\n", "did you mean 'handel'"),
        ("import os\nos._exit(9)\n", "the process that loads the handler ended: exit status 9"),
        (
            "import gaspar\nclass handle(gaspar.Consumer):\n    def setup(self):\n        raise OSError('no disk')\n"
            "    def handle(self, message):\n        return message\n",
            r"setup failed: OSError: no disk \(.*versioned.py, line 4\)",
        ),
        (
            "import gaspar, os\nclass handle(gaspar.Consumer):\n    def setup(self):\n        os._exit(3)\n"
            "    def handle(self, message):\n        return message\n",
            "a consumer ended before it was ready: exit status 3",
        ),
    ],
)
def test_new_code_that_does_not_load_leaves_the_old_going(
    serve: Serve, module: Callable[[str], str], text: str, words: str
) -> None:
    daemon = serve(module(version(1)), "-p", "2")
    consumers = daemon.consumers
    module(text)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_line(f"reload failed, the old code goes on: .*{words}")
    assert daemon.consumers == consumers
    assert daemon.ask(b"!") == b"1!"
    module(version(2))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_line("reloaded in")
    daemon.remember()
    assert daemon.ask(b"!") == b"2!"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_reload_outlives_the_death_of_both_forkers(
    serve: Serve, module: Callable[[str], str], tmp_path: pathlib.Path, order: tuple[int, int]
) -> None:
    slow = tmp_path / "slow"
    daemon = serve(
        module(
            "import gaspar, os, time\nclass handle(gaspar.Consumer):\n    def setup(self):\n"
            f"        while os.path.exists({str(slow)!r}):\n            time.sleep(0.01)\n"
            "    def handle(self, message):\n        return message\n"
        ),
        "-p",
        "2",
    )
    slow.touch()
    daemon.signal(signal.SIGHUP)
    supervisor = psutil.Process(daemon.process.pid)

    def both() -> list[int]:
        """The old forker and the new one, when that has forked its first consumer."""
        found = [each for each in supervisor.children() if each.pid != daemon.front and each.children()]
        return sorted(each.pid for each in found) if len(found) == 2 else []

    forkers = wait_until(both)
    for which in order:
        os.kill(forkers[which], signal.SIGKILL)
        daemon.wait_for_line(rf"forker \(pid {forkers[which]}\) ended: SIGKILL|reload failed")
    slow.unlink()
    assert daemon.ask(b"served again") == b"served again"
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_line("reloaded in")
    assert daemon.ask(b"and again") == b"and again"
    daemon.remember()


def test_hup_during_a_reload_starts_one_more_after_it(serve: Serve, module: Callable[[str], str]) -> None:
    slow = "import time\ntime.sleep(0.5)\n"
    daemon = serve(module(version(1)))
    module(slow + version(2))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_line("reloading: ")
    for _ in range(3):
        daemon.signal(signal.SIGHUP)
    daemon.wait_for_line("during a reload")
    daemon.wait_for_line("reloaded in", 2)
    daemon.remember()
    assert daemon.log.count("reloading: ") == 2


def test_scaling_adds_and_removes_consumers_under_load(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")
    with Load(daemon, 8) as load:
        for number, count in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)):
            daemon.signal(number)
            wait_until(lambda count=count: len(daemon.consumers) == count)  # type: ignore[misc]
        daemon.signal(signal.SIGTTOU)
        daemon.signal(signal.SIGTTOU)
        wait_until(lambda: len(daemon.consumers) == 1)
    assert load.failures == []
    assert daemon.ask(b"the last one stays") == b"the last one stays"


def test_consumer_is_replaced_after_its_requests_without_a_failed_one(serve: Serve) -> None:
    daemon = serve("pid", "-p", "2", "--max-requests", "50")
    with Load(daemon, 8) as load:
        wait_until(lambda: len(set(load.replies)) > 6)
        daemon.remember()
    assert load.failures == []
    assert "--max-requests" in daemon.log


def test_consumer_that_grew_is_replaced_after_its_request_and_one_that_grows_on_is_killed(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "hoard.py").write_text(
        "import os, time\nhoard = []\ndef handle(message):\n    hoard.append(os.urandom(int(message) << 20))\n"
        "    while int(message) > 50:\n        time.sleep(0.01)\n    return str(os.getpid()).encode()\n"
    )
    daemon = serve(f"{tmp_path}/hoard.py:handle", "-p", "1", "--max-memory", "40M")
    first = daemon.ask(b"45")
    daemon.wait_for_line(r"is to be replaced: its private memory grew by 4\d MiB, 40 MiB allowed \(--max-memory\)")
    wait_until(lambda: daemon.ask(b"1") != first)
    daemon.remember()
    with pytest.raises(ConnectionResetError):
        daemon.ask(b"100")
    daemon.wait_for_line(r"lost: .*SIGKILL, since its private memory grew by \d+ MiB")


def test_object_cannot_be_loaded_anew_but_its_consumers_are_forked_afresh() -> None:
    import logging

    import gaspar

    class Lines(logging.Handler):
        """Holds a pipe: the daemon's processes log through what their caller set up."""

    reader, writer = os.pipe()
    logging.getLogger("gaspar").addHandler(handler := logging.StreamHandler(os.fdopen(writer, "w")))
    logging.getLogger("gaspar").setLevel(logging.INFO)
    try:
        with gaspar.Producer(gaspar.Consumer(lambda message: b"same" + message), 0, processes=2) as producer:
            old = {each.pid for each in producer.forker.processes}
            os.kill(producer._pid, signal.SIGHUP)
            wait_until(lambda: not old & {each.pid for each in producer.forker.processes})
            wait_until(lambda: len(producer.forker.processes) == 2)
            assert gaspar.request(producer.address, b"!") == b"same!"
    finally:
        logging.getLogger("gaspar").removeHandler(handler)
        handler.stream.close()
        os.close(reader)
