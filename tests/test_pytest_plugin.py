"""The pytest plugin: its fixture here, its word on bad tests in a pytest of its own, the files of docs/testing.rst."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import handlers
import psutil
import pytest
from conftest import HANDLERS, ROOT, wait_until

import gaspar
from gaspar.limits import STOPPED_LIMIT
from gaspar.testing import Daemon
from gaspar.testing.facts import is_alive

Start = Callable[..., Daemon]
PAGE = ROOT / "docs" / "testing.rst"
ECHO = f"{HANDLERS}:echo"
WAIT = f"{HANDLERS}:await_file"
ERRAND = f"{HANDLERS}:errand"


class Recorder(gaspar.Consumer):
    """Answers with all that this consumer has been asked."""

    def setup(self) -> None:
        self.asked: list[str] = []

    def handle(self, message: bytes) -> bytes:
        self.asked.append(message.decode())
        return json.dumps(self.asked).encode()


def environment(message: bytes) -> bytes:
    return os.environ.get(message.decode(), "").encode()


def ask_control(daemon: Daemon, question: bytes) -> dict[str, object]:
    told = json.loads(gaspar.request(daemon.control, question, 30))
    assert isinstance(told, dict)
    return told


# ---- start ----


def test_daemon_is_ready_and_says_where_it_is(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO, processes=3)
    assert daemon.address.startswith("127.0.0.1:")
    assert gaspar.request(daemon.address, b"hello") == daemon.ask(b"hello") == b"hello"
    pids = [daemon.pid, daemon.front, daemon.forker, *daemon.consumers]
    assert len(set(pids)) == 6
    for pid in pids[1:]:
        assert str(pid) in daemon.lines[0]
    assert ask_control(daemon, b"health")["status"] == "ok"


@pytest.mark.parametrize(
    ("line", "addresses", "control"),
    [
        ("listening on 127.0.0.1:1, 2 consumers (pid 3, 4)", "127.0.0.1:1", None),
        ("listening on 127.0.0.1:1, control unix:/tmp/c, 2 consumers (pid 3, 4)", "127.0.0.1:1", "unix:/tmp/c"),
        ("listening on [::1]:1, unix:/s, control [::1]:2, 1 consumer (pid 3)", "[::1]:1, unix:/s", "[::1]:2"),
    ],
)
def test_ready_line_is_understood_with_and_without_a_control_address(
    line: str, addresses: str, control: str | None
) -> None:
    from gaspar.testing.launched import _READY

    found = _READY.search(f"12:00 [1] INFO ready: {line}, front (pid 5), forker (pid 6), in 0.10 s")
    assert found and (found["addresses"], found["control"], found["front"]) == (addresses, control, "5")


def test_unix_socket_is_in_the_daemons_own_folder(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO, bind=["unix", "127.0.0.1:0"])
    assert daemon.address == f"unix:{daemon.folder}/s"
    assert [gaspar.request(each, b"hello") for each in daemon.addresses] == [b"hello"] * 2


@pytest.mark.parametrize("handler", [handlers.echo, handlers.Nested.echo, Recorder, bytes.upper, "handlers:echo"])
def test_handler_may_be_given_itself_or_by_name(gaspar_daemon: Start, handler: object) -> None:
    assert b"A" in gaspar_daemon(handler, cwd=ROOT / "tests").ask(b"A")


def test_handler_of_a_module_that_cannot_be_imported_by_name_is_loaded_from_its_file(
    gaspar_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden.py").write_text("def handle(message):\n    return b'hidden'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import hidden  # type: ignore[import-not-found]

    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    sys.path_importer_cache.clear()
    try:
        assert gaspar_daemon(hidden.handle).ask(b"") == b"hidden"
    finally:
        del sys.modules["hidden"]


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (lambda message: message, "a lambda"),
        (partial(handlers.echo), "an object of type partial, which has no name"),
        (handlers.a_consumer, "an object of type Consumer, which has no name"),
        (handlers.Counting.handle.__get__(object()), "another object"),
    ],
)
def test_handler_without_a_name_is_refused_with_the_way_out(gaspar_daemon: Start, handler: object, words: str) -> None:
    with pytest.raises(TypeError, match=f"{words}.*give a function or a Consumer subclass from the top level"):
        gaspar_daemon(handler)


def test_closure_is_refused_with_its_name(gaspar_daemon: Start) -> None:
    def inner(message: bytes) -> bytes:
        return message

    with pytest.raises(TypeError, match=r"refused_with_its_name.<locals>.inner is made inside a function.*top level"):
        gaspar_daemon(inner)


@pytest.mark.parametrize(
    ("handler", "options", "words"),
    [
        ("nowhere:handle", {}, "exit code 3.*no module 'nowhere'"),
        (handlers.FailingSetup, {}, "exit code 3.*RuntimeError: no database"),
        (ECHO, {"max_message": "2G"}, "exit code 2.*max-message.* is '2G'"),
        (ECHO, {"no_such_thing": 1}, "exit code 2.*No such option '?--no-such-thing"),
    ],
)
def test_start_that_fails_raises_with_the_daemons_own_words(
    gaspar_daemon: Start, handler: object, options: dict[str, object], words: str
) -> None:
    with pytest.raises(gaspar.DaemonError, match=f"(?s)did not start.*{words}"):
        gaspar_daemon(handler, **options)


def test_start_that_fails_leaves_no_folder_and_no_process() -> None:
    daemon = Daemon("nowhere:handle")
    with pytest.raises(gaspar.DaemonError):
        daemon.wait_ready()
    assert not os.path.exists(daemon.folder)
    assert daemon.process.returncode == 3
    with pytest.raises(FileNotFoundError):
        Daemon(ECHO, cwd="/no/such/folder")


def test_log_level_that_hides_the_ready_line_is_refused(gaspar_daemon: Start) -> None:
    with pytest.raises(ValueError, match="log_level is 'warning'"):
        gaspar_daemon(ECHO, log_level="warning")


def test_options_of_the_surroundings_are_not_heeded_and_those_given_are(
    gaspar_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GASPAR_MAX_MESSAGE", "1")
    monkeypatch.setenv("SURROUNDINGS", "seen")
    monkeypatch.setenv("UNWANTED", "not seen")
    daemon = gaspar_daemon(environment, env={"GASPAR_PROCESSES": "1", "GIVEN": "too", "UNWANTED": None})
    assert len(daemon.consumers) == 1
    assert [daemon.ask(name) for name in (b"SURROUNDINGS", b"GIVEN", b"UNWANTED")] == [b"seen", b"too", b""]


def test_two_daemons_do_not_meet(gaspar_daemon: Start) -> None:
    first, second = gaspar_daemon(f"{HANDLERS}:pid"), gaspar_daemon(f"{HANDLERS}:pid")
    assert int(first.ask(b"")) in first.consumers
    assert int(second.ask(b"")) in second.consumers
    assert first.folder != second.folder


# ---- log ----


def test_log_has_what_the_daemon_says_and_what_the_handler_prints(gaspar_daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text("def handle(message):\n    print('heard', message)\n    return message\n")
    daemon = gaspar_daemon(f"{tmp_path}/prints.py:handle")
    for message in (b"one", b"two"):
        daemon.ask(message)
    assert daemon.wait_for_log("^heard", count=2) == "heard b'two'"
    assert daemon.log.splitlines() == daemon.lines
    daemon.stop()
    assert daemon.lines[-1].endswith("stopped")


def test_waiting_for_what_a_daemon_that_has_ended_never_said_fails_at_once(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO)
    daemon.stop()
    with pytest.raises(AssertionError, match=r"no 1 lines 'never said' in the log:\n.*ready"):
        daemon.wait_for_log("never said", timeout=1000)


# ---- a consumer is killed ----


def test_killed_consumer_is_the_one_that_runs_a_request(gaspar_daemon: Start, tmp_path: Path) -> None:
    daemon = gaspar_daemon(f"{HANDLERS}:who", processes=3)
    with gaspar.Client(daemon.address) as client:
        lost = client.submit(str(tmp_path / "never").encode())
        pid = daemon.kill_consumer(busy=True)
        with pytest.raises(gaspar.ConsumerLost, match=f"pid {pid}.*SIGKILL"):
            lost.result(30)
    assert (tmp_path / "never.begun").read_text() == str(pid)
    assert not psutil.pid_exists(pid)
    wait_until(lambda: len(daemon.consumers) == 3)


def test_killed_consumer_is_the_one_that_has_run_for_longest(gaspar_daemon: Start, tmp_path: Path) -> None:
    daemon = gaspar_daemon(f"{HANDLERS}:who")
    with gaspar.Client(daemon.address) as client:
        futures = []
        for name in ("first", "second"):
            futures.append(client.submit(str(tmp_path / name).encode()))
            wait_until((tmp_path / f"{name}.begun").exists)
        assert str(daemon.kill_consumer()) == (tmp_path / "first.begun").read_text()
        (tmp_path / "second").touch()
        assert futures[1].result(30).decode() == (tmp_path / "second.begun").read_text()


def test_idle_consumer_is_killed_if_none_is_busy(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO)
    before = daemon.consumers
    pid = daemon.kill_consumer()
    assert pid in before
    assert pid not in daemon.consumers
    assert daemon.ask(b"served") == b"served"


# ---- frozen ----


def test_frozen_daemon_takes_connections_and_answers_nothing(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO)
    with daemon.freeze(), pytest.raises(gaspar.RequestTimeout):
        daemon.ask(b"nobody listens", timeout=0.1)
    assert daemon.ask(b"hello") == b"hello"


def test_nobody_is_replaced_while_frozen_and_what_was_sent_is_answered_afterwards(
    gaspar_daemon: Start, tmp_path: Path
) -> None:
    daemon = gaspar_daemon(WAIT, processes=1)
    family = (daemon.pid, daemon.front, daemon.forker, daemon.consumers)
    go = tmp_path / "go"
    with gaspar.Client(daemon.address) as client, ThreadPoolExecutor() as pool:
        began = client.submit(str(go).encode())
        wait_until(lambda: ask_control(daemon, b"stats")["in_flight"] == 1)
        with daemon.freeze():
            sent = client.submit(b"")
            one_shot = pool.submit(gaspar.request, daemon.address, b"")
            go.touch()
            with pytest.raises(concurrent.futures.TimeoutError):  # the consumer would have seen the file at once
                began.result(STOPPED_LIMIT + 0.3)
        assert (began.result(30), sent.result(30), one_shot.result(30)) == (str(go).encode(), b"", b"")
    assert (daemon.pid, daemon.front, daemon.forker, daemon.consumers) == family
    assert "stopped by somebody" not in daemon.log


def test_children_of_the_handler_are_frozen_too(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(f"{HANDLERS}:faulty")
    with ThreadPoolExecutor() as pool:
        hung = pool.submit(daemon.ask, b"hang in a child")
        sleeper = wait_until(
            lambda: [each for each in psutil.Process(daemon.pid).children(recursive=True) if each.name() == "sleep"]
        )[0]
        with daemon.freeze():
            assert sleeper.status() == psutil.STATUS_STOPPED
        assert sleeper.status() != psutil.STATUS_STOPPED
        assert daemon.kill_consumer(busy=True)
        with pytest.raises(gaspar.ConsumerLost):
            hung.result(30)
    sleeper.kill()  # only the consumer was killed


def test_what_is_frozen_is_not_frozen_again(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO)
    with daemon.freeze():
        for again in (daemon.freeze, daemon.fill_queue):
            with pytest.raises(gaspar.DaemonError, match="already"), again():
                pass
        with pytest.raises(gaspar.DaemonError, match="cannot be asked who is busy: it is frozen"):
            daemon.kill_consumer(busy=True)
        with pytest.raises(gaspar.RequestTimeout):
            daemon.ask(b"still frozen", timeout=0.1)
    assert daemon.ask(b"hello") == b"hello"


def test_daemon_may_be_stopped_and_killed_while_frozen(gaspar_daemon: Start) -> None:
    first, second = gaspar_daemon(ECHO), gaspar_daemon(ECHO)
    with first.freeze():
        assert first.stop() == 0
    with second.freeze():
        second.kill()
    assert not os.path.exists(second.folder)


# ---- the queue is full ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_waiting": 0},
        {"max_waiting": 1, "processes": 1},
        {"max_waiting": 700, "max_in_flight": 3, "bind": "unix"},
        {"max_waiting": 20, "depth": 1},
        {"max_waiting": 20, "depth": 8, "burst": "auto", "patience": 0.005},
    ],
)
def test_full_queue_refuses_all_and_the_handler_never_sees_what_filled_it(
    gaspar_daemon: Start, options: dict[str, object]
) -> None:
    daemon = gaspar_daemon(Recorder, **options)
    with gaspar.Client(daemon.address) as client:
        with daemon.fill_queue():
            for _ in range(5):
                with pytest.raises(gaspar.Overloaded, match="--max-waiting"):
                    client.request(b"refused")
            with pytest.raises(gaspar.ConnectionLost):
                gaspar.request(daemon.address, b"reset")
        replies = [json.loads(client.request(b"taken")) for _ in range(20)]
    assert {message for reply in replies for message in reply} == {"taken"}


def test_full_queue_may_last_for_longer_than_a_process_may_be_stopped(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO, max_waiting=5)
    family = (daemon.front, daemon.forker, daemon.consumers)
    with daemon.fill_queue(), gaspar.Client(daemon.address) as client:
        end = time.monotonic() + STOPPED_LIMIT + 0.3
        while time.monotonic() < end:
            with pytest.raises(gaspar.Overloaded):
                client.request(b"refused")
    assert daemon.ask(b"hello") == b"hello"
    assert (daemon.front, daemon.forker, daemon.consumers) == family


def test_what_ran_when_the_queue_was_filled_goes_on_afterwards(gaspar_daemon: Start, tmp_path: Path) -> None:
    daemon = gaspar_daemon(ERRAND, processes=1, max_waiting=5)
    with gaspar.Client(daemon.address) as client:
        running = client.submit(f"note {tmp_path}/begun\nawait {tmp_path}/go".encode())
        wait_until((tmp_path / "begun").exists)
        waiting = client.submit(f"note {tmp_path}/waited".encode())
        with daemon.fill_queue():
            with pytest.raises(gaspar.Overloaded):
                client.request(b"refused")
            (tmp_path / "go").touch()
        assert running.result(30).startswith(b"note")
        assert waiting.result(30).startswith(b"note")
    assert (tmp_path / "begun").stat().st_size == (tmp_path / "waited").stat().st_size == 1


# ---- the end ----


def test_another_daemon_may_take_the_address_of_one_that_was_killed(gaspar_daemon: Start) -> None:
    daemon = gaspar_daemon(ECHO)
    family = psutil.Process(daemon.pid).children(recursive=True)
    daemon.kill()
    assert not any(map(is_alive, family))
    with pytest.raises(gaspar.ConnectionLost):
        daemon.ask(b"nobody")
    assert gaspar_daemon(ECHO, bind=daemon.address).ask(b"again") == b"again"


def test_daemon_serves_without_pytest_too() -> None:
    with Daemon(ECHO) as daemon:
        assert daemon.ask(b"hello") == b"hello"
    assert daemon.process.returncode == 0
    assert not os.path.exists(daemon.folder)


def test_test_that_raises_is_not_hidden_by_leaks() -> None:
    daemon = Daemon(ECHO)

    def fail_and_leak() -> None:
        with daemon:
            Path(daemon.folder, "left").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_and_leak()
    assert not os.path.exists(daemon.folder)


@pytest.mark.parametrize(
    "patch", ["import eventlet; eventlet.monkey_patch()", "from gevent.monkey import patch_all; patch_all()"]
)
def test_daemon_serves_tests_of_patched_programs(patch: str) -> None:
    program = f"""
        {patch}
        from gaspar.testing import Daemon
        import gaspar, handlers
        with Daemon(handlers.echo, max_waiting=5) as daemon:
            with daemon.fill_queue():
                try:
                    daemon.ask(b"refused")
                except gaspar.Overloaded:
                    print("refused")
            with daemon.freeze():
                try:
                    daemon.ask(b"not heard", timeout=0.1)
                except gaspar.RequestTimeout:
                    print("not heard")
            daemon.kill_consumer()
            daemon.wait_for_log("SIGKILL")
            print(daemon.ask(b"answered").decode())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")])),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "not heard", "answered"]


# ---- the plugin in another pytest ----


def run_pytest(folder: Path, *arguments: str, load: str = "-pgaspar.pytest_plugin", **more: str) -> tuple[int, str]:
    """Run pytest in a folder, with no plugin but the named ones; returns its exit code and what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), **more}
    environment.setdefault("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    environment = {key: value for key, value in environment.items() if value}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *([load] if load else []), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout


def write(folder: Path, program: str, name: str = "test_it.py") -> None:
    (folder / name).write_text(textwrap.dedent(program))


def outcomes(output: str) -> dict[str, int]:
    """Read the last line of a run: how many passed, failed, ..."""
    found = re.findall(r"(\d+) (passed|failed|errors?)\b", output.splitlines()[-1])
    return {word.removesuffix("s"): int(count) for count, word in found}


def files_of_page() -> dict[str, str]:
    """Return the files of the page."""
    blocks = re.findall(
        r"^\.\. code-block:: python\n    :caption: (\S+)\n\n((?:(?:    .*)?\n)+)", PAGE.read_text(), re.MULTILINE
    )
    return {name: textwrap.dedent(block).strip() + "\n" for name, block in blocks}


TESTS_OF_PAGE = {"test_jobs.py": 3, "test_signin.py": 4, "test_shared.py": 2, "test_unittest.py": 1}


def test_page_has_the_test_files_that_are_run_here() -> None:
    assert len(files_of_page()) == PAGE.read_text().count("code-block:: python")
    assert {name for name in files_of_page() if name.startswith("test_")} == set(TESTS_OF_PAGE)


@pytest.mark.parametrize("name", TESTS_OF_PAGE)
def test_each_test_file_of_the_page_passes_as_it_stands(name: str, tmp_path: Path) -> None:
    for file, text in files_of_page().items():
        (tmp_path / file).write_text(text)
    code, output = run_pytest(tmp_path, name, "-W", "error")
    assert code == 0, output
    assert outcomes(output) == {"passed": TESTS_OF_PAGE[name]}


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("subprocess.Popen(['sleep', '1000'], start_new_session=True)", "left processes running: .*sleep"),
        ("open(os.environ['XDG_RUNTIME_DIR'] + '/forgotten', 'w').close()", "left files in /tmp/.*: forgotten"),
        ("logging.info('Traceback (most recent call last): made up')", "a traceback which no handler raised"),
    ],
)
def test_test_whose_daemon_leaves_something_fails(tmp_path: Path, handler: str, words: str) -> None:
    write(
        tmp_path,
        f"""
        import logging, os, subprocess

        def handle(message):
            {handler}
            return b""

        def test_it(gaspar_daemon):
            gaspar_daemon(handle).ask(b"")
        """,
    )
    code, output = run_pytest(tmp_path)
    assert (code, outcomes(output)) == (1, {"passed": 1, "error": 1}), output
    assert re.search(words, output), output
    assert "log of <gaspar.testing.Daemon at 127.0.0.1:" in output


def test_tracebacks_of_teardown_count_unless_they_are_allowed(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import gaspar, pytest

        class Failing(gaspar.Consumer):
            def handle(self, message):
                return message

            def teardown(self):
                raise OSError("no disk")

        @pytest.mark.parametrize("allowed", [False, True])
        def test_it(gaspar_daemon, allowed):
            gaspar_daemon(Failing, processes=1, allow_tracebacks=allowed)
        """,
    )
    code, output = run_pytest(tmp_path)
    assert (code, outcomes(output)) == (1, {"passed": 2, "error": 1}), output
    assert "which no handler raised" in output
    assert "OSError: no disk" in output


def test_failed_test_shows_the_log_and_a_passed_one_does_not(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        def handle(message):
            print("heard", message)
            return message

        def test_it(gaspar_daemon):
            assert gaspar_daemon(handle).ask(b"yes") == b"yes"

        def test_other(gaspar_daemon):
            assert gaspar_daemon(handle).ask(b"no") == b"yes"
        """,
    )
    code, output = run_pytest(tmp_path)
    assert (code, outcomes(output)) == (1, {"passed": 1, "failed": 1}), output
    assert "heard b'no'" in output
    assert "heard b'yes'" not in output


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_test_that_is_ended_by_pytest_timeout_leaves_no_daemon(tmp_path: Path, method: str) -> None:
    write(
        tmp_path,
        """
        import os, psutil, signal, threading

        def test_it(gaspar_daemon):
            first, second = gaspar_daemon("handlers:echo"), gaspar_daemon("handlers:echo", bind="unix")
            root = psutil.Process()
            with open("pids.new", "w") as file:
                print(first.folder, second.folder, file=file)
                print(*[each.pid for each in root.children(recursive=True)], file=file)
            os.rename("pids.new", "pids")
            with second.freeze():  # and now its time is over
                for timer in threading.enumerate():
                    if isinstance(timer, threading.Timer):
                        timer.function(*timer.args)
                signal.raise_signal(signal.SIGALRM)
        """,
    )
    options = ["-ppytest_timeout", "--timeout=90", f"--timeout-method={method}"]
    code, output = run_pytest(tmp_path, *options, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert code == 1, output
    assert "Timeout" in output
    folders, pids = (line.split() for line in (tmp_path / "pids").read_text().splitlines())
    assert len(pids) == 10
    wait_until(lambda: not any(map(lives, pids)))
    for folder in folders:
        if os.path.exists(folder):  # pytest was not there any more to remove it
            wait_until(lambda folder=folder: set(os.listdir(folder)) <= {"s"})  # type: ignore[misc]
            shutil.rmtree(folder)


def lives(pid: str) -> bool:
    """True of a process that has not ended."""
    try:
        return is_alive(psutil.Process(int(pid)))
    except psutil.NoSuchProcess:
        return False


def test_tests_may_run_in_several_processes_at_once(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    write(
        tmp_path,
        """
        import pytest

        def handle(message):
            return message

        @pytest.mark.parametrize("number", range(8))
        def test_it(gaspar_daemon, number):
            daemon = gaspar_daemon(handle, bind=["127.0.0.1:0", "unix"][number % 2])
            with daemon.freeze():
                pass
            daemon.kill_consumer()
            assert daemon.ask(b"%d" % number) == b"%d" % number
        """,
    )
    code, output = run_pytest(tmp_path, "-pxdist", "-n4")
    assert (code, outcomes(output)) == (0, {"passed": 8}), output


# ---- how it is loaded ----

ONE_TEST = """
    def test_it(gaspar_daemon):
        assert gaspar_daemon("builtins:bytes.upper").ask(b"hello") == b"HELLO"
"""


def install(folder: Path) -> None:
    """Let gaspar look as if it were installed in a folder of the path."""
    info = folder / "gaspar-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gaspar\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\ngaspar.pytest_plugin = gaspar.pytest_plugin\n")


@pytest.mark.parametrize(
    ("load", "conftest"),
    [
        ("", ""),
        ("-pgaspar.pytest_plugin", ""),
        ("", "pytest_plugins = ['gaspar.pytest_plugin']"),
        ("", "from gaspar.pytest_plugin import gaspar_daemon"),
        ("-pgaspar.pytest_plugin", "from gaspar.pytest_plugin import gaspar_daemon"),
    ],
)
def test_plugin_of_an_installed_gaspar_may_be_loaded_once_more(tmp_path: Path, load: str, conftest: str) -> None:
    install(tmp_path)
    write(tmp_path, ONE_TEST)
    write(tmp_path, conftest, "conftest.py")
    code, output = run_pytest(tmp_path, load=load, PYTEST_DISABLE_PLUGIN_AUTOLOAD="")
    assert (code, outcomes(output)) == (0, {"passed": 1}), output


def test_plugin_that_is_loaded_loads_nothing_until_its_fixture_is_used() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import gaspar.pytest_plugin; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert set(done.stdout.split()) == {"gaspar", "gaspar.version", "gaspar.pytest_plugin"}
