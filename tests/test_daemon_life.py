"""The daemon's life: ready, stopping, exit codes, what is said on standard error, what is replaced."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from conftest import HANDLERS, ROOT, Serve, wait_until


def test_ready_line_names_addresses_pids_and_time(serve: Serve) -> None:
    daemon = serve("echo", "-p", "3")
    line = daemon.wait_for_line("ready: ")
    assert len(daemon.consumers) == 3
    for pid in (daemon.front, daemon.forker, *daemon.consumers):
        assert str(pid) in line
    assert daemon.address in line
    assert line.endswith(" s")


def test_processes_default_to_the_cpus_that_may_be_used(serve: Serve) -> None:
    assert len(serve("echo").consumers) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_stop_signal_finishes_what_was_accepted(
    serve: Serve, tmp_path: pathlib.Path, number: int, whole_group: bool
) -> None:
    daemon = serve("await_file", "-p", "2")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        replies = [pool.submit(daemon.ask, str(go).encode()) for _ in range(20)]
        wait_until(lambda: daemon.connected() == 20)
        if whole_group:
            os.killpg(daemon.process.pid, number)
        else:
            daemon.signal(number)
        daemon.wait_for_line("draining")
        go.touch()
        assert {reply.result(60) for reply in replies} == {str(go).encode()}
    assert daemon.end() == 0
    with pytest.raises(ConnectionRefusedError):
        daemon.connect()


def test_clients_in_the_backlog_when_a_stop_begins_are_served(serve: Serve) -> None:
    daemon = serve("echo")
    os.kill(daemon.front, signal.SIGSTOP)
    socks = [daemon.connect() for _ in range(50)]
    for sock in socks:
        sock.sendall(b"\0\0\0\5hello")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for_line("draining")
    os.kill(daemon.front, signal.SIGCONT)
    for sock in socks:
        with sock:
            assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
    assert daemon.end() == 0


def test_second_stop_signal_ends_at_once(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reply = pool.submit(daemon.ask, str(tmp_path / "never").encode())
        wait_until(lambda: daemon.connected() == 1)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for_line("draining")
        daemon.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            reply.result(60)
    assert daemon.end() == 0


def test_quit_ends_at_once(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reply = pool.submit(daemon.ask, str(tmp_path / "never").encode())
        wait_until(lambda: daemon.connected() == 1)
        daemon.signal(signal.SIGQUIT)
        with pytest.raises(ConnectionResetError):
            reply.result(60)
    assert daemon.end() == 0


def test_what_is_not_finished_within_the_grace_is_reset(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1", "--grace", "0.3")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(daemon.ask, str(tmp_path / "never").encode()) for _ in range(2)]
        wait_until(lambda: daemon.connected() == 2)
        daemon.signal(signal.SIGTERM)
        for reply in replies:
            with pytest.raises(ConnectionResetError):
                reply.result(60)
    assert daemon.end() == 0
    daemon.wait_for_line("2 requests were not finished within the grace")


def test_client_that_sends_nothing_does_not_hold_up_a_stop(serve: Serve) -> None:
    daemon = serve("echo", "--read-timeout", "100", "--grace", "100")
    with daemon.connect(), daemon.connect() as half:
        half.sendall(b"\0\0\0\5he")
        daemon.ask(b"both are accepted")
        assert daemon.stop() == 0


def test_setup_and_teardown_run_once_in_each_consumer(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("Counting", "-p", "3", COUNTING_FOLDER=str(tmp_path))
    consumers = daemon.consumers
    assert daemon.ask(b"") == b"1"
    assert daemon.stop() == 0
    noted = sorted(each.name for each in tmp_path.iterdir())
    assert noted == sorted(f"{what}.{pid}" for what in ("setup", "teardown") for pid in consumers)


def test_what_a_handler_prints_passes_through_at_once(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prints.py").write_text("def handle(message):\n    print('heard', message)\n    return message\n")
    daemon = serve(f"{tmp_path}/prints.py:handle")
    daemon.ask(b"one")
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.readline() == b"heard b'one'\n"


def test_consumers_have_one_maths_thread_unless_told_otherwise(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "env.py").write_text(
        "import os\ndef handle(message):\n    return os.environ[message.decode()].encode()\n"
    )
    daemon = serve(f"{tmp_path}/env.py:handle", MKL_NUM_THREADS="3")
    assert daemon.ask(b"OMP_NUM_THREADS") == b"1"
    assert daemon.ask(b"MKL_NUM_THREADS") == b"3"


def test_consumers_draw_different_random_numbers(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "dice.py").write_text(
        "import random, numpy, os\nrandom.seed(1)\nnumpy.random.seed(1)\n"
        "def handle(message):\n    return repr((os.getpid(), random.random(), numpy.random.random())).encode()\n"
    )
    daemon = serve(f"{tmp_path}/dice.py:handle", "-p", "4")
    first: dict[int, tuple[float, float]] = {}
    while len(first) < 4:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for reply in pool.map(daemon.ask, [b""] * 64):
                pid, *numbers = eval(reply)
                first.setdefault(pid, tuple(numbers))
    assert len(set(first.values())) == 4


def test_module_that_leaves_threads_running_is_warned_about(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "threads.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,), name='the-ticker', daemon=True).start()\n"
        "def handle(message):\n    return message\n"
    )
    daemon = serve(f"{tmp_path}/threads.py:handle")
    daemon.wait_for_line("left threads running.*the-ticker")
    assert daemon.ask(b"still") == b"still"


def test_bind_beyond_loopback_is_warned_about_once(serve: Serve) -> None:
    daemon = serve("echo", bind="0.0.0.0:0")
    daemon.wait_for_line("no authentication")
    assert daemon.log.count("no authentication") == 1


def test_front_that_dies_is_replaced_on_the_same_port(serve: Serve) -> None:
    daemon = serve("echo")
    os.kill(daemon.front, signal.SIGKILL)
    daemon.wait_for_line(r"front \(pid \d+\) ended: SIGKILL")
    assert [daemon.ask(b"%d" % n) for n in range(50)] == [b"%d" % n for n in range(50)]


def test_forker_that_dies_is_replaced_with_its_consumers(serve: Serve) -> None:
    daemon = serve("pid", "-p", "2")
    old = daemon.consumers
    os.kill(daemon.forker, signal.SIGKILL)
    daemon.wait_for_line(r"forker \(pid \d+\) ended: SIGKILL")
    assert int(daemon.ask(b"")) not in old
    psutil.wait_procs([psutil.Process(pid) for pid in old if psutil.pid_exists(pid)], timeout=10)
    assert not any(map(psutil.pid_exists, old))


def test_everything_leaves_when_the_supervisor_is_killed(serve: Serve) -> None:
    daemon = serve("echo", bind="127.0.0.1:0")
    address = daemon.address
    daemon.signal(signal.SIGKILL)
    assert daemon.end() == -signal.SIGKILL
    assert serve("echo", bind=address).ask(b"again") == b"again"


def test_consumers_that_keep_dying_are_replaced_more_and_more_slowly(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    for count in range(1, 6):
        wait_until(lambda: daemon.consumers)
        os.kill(daemon.consumers[0], signal.SIGKILL)
        daemon.wait_for_line(r"consumer \d+ \(pid \d+\) ended: SIGKILL", count)
    daemon.wait_for_line("again and again.*slows down")
    assert daemon.log.count("slows down") == 1
    assert daemon.ask(b"served at last") == b"served at last"


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        ("missing_module:handle", 3, "no module 'missing_module'"),
        (f"{HANDLERS}:ecko", 3, "has no attribute 'ecko'; did you mean 'echo'?"),
        (f"{HANDLERS}:not_callable", 3, "is of type int; expected a callable"),
        (f"{HANDLERS}:FailingSetup", 3, r"setup failed: RuntimeError: no database \(.*handlers.py, line \d+\)"),
        ("nocolon", 2, r"expected module.path:attribute"),
    ],
)
def test_handler_that_cannot_be_loaded_ends_the_start(launch: Serve, handler: str, code: int, words: str) -> None:
    daemon = launch(handler if ":" in handler else "no-colon")
    daemon.wait_for_line(words)
    assert daemon.end() == code
    assert "Traceback" not in daemon.log
    assert "ready" not in daemon.log


def test_address_in_use_ends_the_start(launch: Serve, serve: Serve) -> None:
    first = serve("echo")
    second = launch("echo", bind=first.address)
    second.wait_for_line(f"cannot listen on {first.address}: Address already in use")
    assert second.end() == 4


def test_unix_socket_of_a_killed_daemon_is_taken_over_and_of_a_live_one_not(
    launch: Serve, serve: Serve, tmp_path: pathlib.Path
) -> None:
    where = "unix:" + os.path.relpath(tmp_path / "s", ROOT / "tests")
    killed = serve("echo", bind=where)
    killed.signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    serve("echo", bind=where)
    other = launch("echo", bind=where)
    other.wait_for_line("Address already in use")
    assert other.end() == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-message", "2G", "a:b"],
        ["--processes", "0", "a:b"],
        ["--read-timeout", "soon", "a:b"],
        ["-b", "localhost", "a:b"],
        ["-b", "unix:/" + "x" * 200, "a:b"],
        [],
        ["--no-such-option", "a:b"],
    ],
)
def test_wrong_usage_is_explained(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, ROOT / "bin/gaspar-serve", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_options_come_from_the_environment_too(serve: Serve) -> None:
    daemon = serve("echo", GASPAR_PROCESSES="3", GASPAR_MAX_MESSAGE="10")
    assert len(daemon.consumers) == 3
    with pytest.raises(ConnectionResetError):
        daemon.ask(b"eleven byte")


def test_check_says_what_was_found() -> None:
    command = [sys.executable, ROOT / "bin/gaspar-serve", "--check"]
    done = subprocess.run([*command, f"{HANDLERS}:Nested.echo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "handler echo" in done.stdout
    assert "handlers.py, line" in done.stdout
    done = subprocess.run([*command, f"{HANDLERS}:FailingSetup"], capture_output=True, text=True)
    assert done.returncode == 3
    assert "no database" in done.stderr


def test_module_in_the_current_directory_can_be_named(serve: Serve) -> None:
    assert serve("handlers:Nested.echo").ask(b"hello") == b"hello"


def test_version_is_printed() -> None:
    done = subprocess.run([sys.executable, "-m", "gaspar", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "gaspar, version 2.0.0.dev0\n"
