"""Faults: one bad handler per stage of a job's life, and whatever is killed, stopped, full or gone."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

import psutil
import pytest
from conftest import HANDLERS, ROOT, Daemon, Serve, read_all, wait_until
from handlers import BAD, DEADLY, HUNG

EXPECTED = {
    b"raise": "ValueError: the handler's own words",
    b"raise SystemExit": "handler raised SystemExit",
    b"return None": "handler returned None",
    b"return int": "handler returned int 7",
    b"return str": "handler returned str 'text'",
    b"return too much": "handler returned 73400320 bytes, 67108864 allowed",
    b"os._exit(0)": r"lost: its consumer \(pid \d+\) ended: exit status 0, after \d+\.\d\d s of CPU and at most \d",
    b"os._exit(7)": r"lost: .* ended: exit status 7, after",
    b"kill itself": r"lost: .* ended: SIGKILL, after",
    b"segfault": r"lost: .* ended: SIGSEGV, after",
    b"fork and return": r"lost: .* ended: exit status 71, after",
    b"hang in Python": r"lost: ran for 0\.\d+ s, 0.5 allowed \(--timeout\); hung at File .*handlers.py.* in _hang_in",
    b"hang in C": r"lost: ran for .*; hung at File .*re.*, line \d+ in match",
    b"hang in a huge power": r"lost: ran for .*; hung at File .*handlers.py.*, line \d+ in <lambda>",
    b"hang on a lock": r"lost: ran for .*; hung at File .*handlers.py.*, line \d+ in _double_acquire",
    b"hang in a child": r"lost: ran for .*; hung at File ",
    b"ignore signals and hang": r"lost: ran for .*; hung at File .* in _hang_in_python",
    b"stop itself": r"lost: (ran for .*; )?its process was stopped",
}


@pytest.mark.parametrize("situation", ["idle", "one in flight", "full queue"])
@pytest.mark.parametrize("what", sorted({**BAD, **DEADLY, **HUNG}))
def test_bad_handler_has_one_outcome_and_harms_nobody(
    serve: Serve, tmp_path: pathlib.Path, what: bytes, situation: str
) -> None:
    daemon = serve("faulty", "-p", "2", "--timeout", "0.5", "--max-waiting", "20")
    go = tmp_path / "go"
    go_name = str(go).encode()
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        others = []
        if situation == "one in flight":
            others = [pool.submit(daemon.ask, b"another")]
        faulty = pool.submit(daemon.ask, what)
        if situation == "full queue":
            others = [pool.submit(daemon.ask, b"%d" % number) for number in range(19)]
        with pytest.raises(ConnectionResetError):
            faulty.result(60)
        daemon.wait_for_line(EXPECTED[what])
        go.touch()
        assert all(other.result(60) for other in others)
    assert daemon.ask(go_name) == go_name
    wait_until(lambda: len(daemon.consumers) == 2)
    assert not [each for each in psutil.Process(daemon.forker).children(recursive=True) if each.name() == "sleep"]


def test_hung_handlers_stack_is_in_the_log(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "1", "--timeout", "0.2")
    with pytest.raises(ConnectionResetError):
        daemon.ask(b"hang in Python")
    daemon.wait_for_line("most recent call first")
    daemon.wait_for_line(r'File ".*handlers.py", line \d+ in faulty')


def test_request_that_ends_within_its_limit_is_not_killed(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "nap.py").write_text("import time\ndef handle(message):\n    time.sleep(0.2)\n    return message\n")
    daemon = serve(f"{tmp_path}/nap.py:handle", "-p", "1", "--timeout", "0.5")
    consumers = daemon.consumers
    for _ in range(4):
        assert daemon.ask(b"nap") == b"nap"
    assert daemon.consumers == consumers


def test_consumer_stopped_by_somebody_counts_as_hung(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", "--timeout", "0")
    os.kill(daemon.consumers[0], signal.SIGSTOP)
    assert daemon.ask(b"served by its successor, or after") == b"served by its successor, or after"
    daemon.wait_for_line("was stopped by somebody for 2 s")
    daemon.remember()


def test_consumer_that_is_stopped_and_goes_on_is_left_alone(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    consumers = daemon.consumers
    os.kill(consumers[0], signal.SIGSTOP)
    os.kill(consumers[0], signal.SIGCONT)
    assert daemon.ask(b"hello") == b"hello"
    assert daemon.consumers == consumers


@pytest.mark.parametrize("which", ["front", "forker"])
def test_front_or_forker_stopped_by_somebody_is_replaced(serve: Serve, which: str) -> None:
    daemon = serve("echo", "-p", "1")
    os.kill(getattr(daemon, which), signal.SIGSTOP)
    daemon.wait_for_line("was stopped by somebody for 2 s")
    daemon.wait_for_line(f"{which} .*ended: SIGKILL")
    assert daemon.ask(b"again") == b"again"
    daemon.remember()


def test_what_had_not_begun_goes_to_another_consumer(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "1", "--depth", "8", "--timeout", "0")
    never = str(tmp_path / "never").encode()
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        begun = pool.submit(daemon.ask, never)
        wait_until(lambda: daemon.connected() == 1)
        behind = [pool.submit(daemon.ask, b"%d" % number) for number in range(7)]
        wait_until(lambda: daemon.connected() == 8)
        os.kill(daemon.consumers[0], signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            begun.result(60)
        assert [each.result(60) for each in behind] == [b"%d" % number for number in range(7)]


@pytest.mark.parametrize("retries", [0, 2])
def test_what_had_begun_is_run_again_only_if_asked_for(serve: Serve, tmp_path: pathlib.Path, retries: int) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os\nruns = os.path.join(os.path.dirname(__file__), 'runs')\ndef handle(message):\n"
        "    with open(runs, 'a') as file:\n        file.write('x')\n"
        "    if os.path.getsize(runs) < 3:\n        os._exit(1)\n    return b'third time lucky'\n"
    )
    daemon = serve(f"{tmp_path}/fragile.py:handle", "-p", "1", "--retries", str(retries))
    if retries:
        assert daemon.ask(b"") == b"third time lucky"
    else:
        with pytest.raises(ConnectionResetError):
            daemon.ask(b"")
    assert (tmp_path / "runs").read_text() == "x" * (retries + 1)


def test_fatal_requests_harm_no_other(serve: Serve) -> None:
    """Not even those that the same consumer had finished just before, whose results were on their way."""
    daemon = serve("bad", "-p", "2", "--depth", "8")
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for _ in range(20):
            fatal = pool.submit(daemon.ask, b"os._exit(7)")
            others = [pool.submit(daemon.ask, b"%d" % number) for number in range(23)]
            assert [each.result(60) for each in others] == [b"%d" % number for number in range(23)]
            with pytest.raises(ConnectionResetError):
                fatal.result(60)


# ---- full ----


def test_more_requests_than_may_wait_are_refused_at_once(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1", "--depth", "1", "--max-waiting", "3")
    go = tmp_path / "go"
    name = str(go).encode()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        accepted = []
        for number in range(1, 5):  # one runs, three wait
            accepted.append(pool.submit(daemon.ask, name))
            wait_until(lambda number=number: daemon.connected() == number)  # type: ignore[misc]
        for _ in range(10):
            with pytest.raises(ConnectionResetError):
                daemon.ask(b"refused")
        daemon.wait_for_line(r"overloaded: 3 requests wait, 3 allowed \(--max-waiting\)")
        assert daemon.log.count("overloaded") == 1
        go.touch()
        assert {each.result(60) for each in accepted} == {name}
    assert daemon.ask(b"") == b""


def test_more_bytes_than_may_wait_are_refused_at_their_header(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "1", "--depth", "1", "--max-message", "1M", "--max-waiting-bytes", "2M")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = pool.submit(daemon.ask, str(go).encode())
        wait_until(lambda: daemon.connected() == 1)
        reading = [daemon.connect() for _ in range(2)]
        for sock in reading:
            sock.sendall(struct.pack("!I", 1_000_000) + b"some of it")
        daemon.ask_nothing()
        with daemon.connect() as sock:
            sock.sendall(struct.pack("!I", 1_000_000))
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        daemon.wait_for_line(r"2000000 bytes wait or are being read, 1000000 more announced, 2097152 allowed")
        for sock in reading:
            sock.close()
        go.touch()
        assert running.result(60)
        wait_until(lambda: _answered(daemon, bytes(1_000_000)))


def _answered(daemon: Daemon, message: bytes) -> bool:
    try:
        daemon.ask(message)
    except (ConnectionResetError, BrokenPipeError):
        return False
    return True


def test_clients_that_take_nothing_of_their_replies_do_not_fill_the_memory(serve: Serve) -> None:
    daemon = serve("sized", "-p", "2", "--max-waiting-bytes", "64M")
    lazy = [daemon.connect() for _ in range(20)]
    for sock in lazy:
        sock.sendall(struct.pack("!I", 8) + b"40000000")
    daemon.wait_for_line("takes nothing of its reply while", 5)
    assert daemon.ask(b"5") == bytes(5)
    assert psutil.Process(daemon.front).memory_info().rss < 500 * 2**20
    for sock in lazy:
        sock.close()


def test_request_is_refused_when_there_has_been_no_consumer_for_long(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "once.py").write_text(
        "import gaspar, os\nclass Once(gaspar.Consumer):\n    def setup(self):\n"
        "        if os.path.exists(__file__ + '.no'):\n"
        "            raise OSError('no more')\n    def handle(self, message):\n        return message\n"
    )
    daemon = serve(f"{tmp_path}/once.py:Once", "-p", "1")
    (tmp_path / "once.py.no").touch()
    os.kill(daemon.consumers[0], signal.SIGKILL)
    with pytest.raises(ConnectionResetError):
        daemon.ask(b"")
    daemon.wait_for_line(r"there has been no consumer for 1\d s")
    (tmp_path / "once.py.no").unlink()
    assert daemon.ask(b"and again") == b"and again"
    daemon.remember()


def test_request_that_waits_too_long_is_answered(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1", "--depth", "1", "--max-wait", "0.2")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(daemon.ask, str(go).encode())
        wait_until(lambda: daemon.connected() == 1)
        with pytest.raises(ConnectionResetError):
            daemon.ask(b"")
        daemon.wait_for_line(r"waited 0\.\d+ s for a consumer, 0.2 allowed \(--max-wait\)")
        assert not running.done()
        go.touch()
        assert running.result(60)


def test_request_whose_client_is_gone_when_its_turn_comes_is_not_run(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.py").write_text(
        "import os, time\nhere = os.path.dirname(__file__)\ndef handle(message):\n"
        "    with open(os.path.join(here, 'runs'), 'ab') as runs:\n        runs.write(message)\n"
        "    while not os.path.exists(os.path.join(here, 'go')):\n        time.sleep(0.002)\n    return message\n"
    )
    daemon = serve(f"{tmp_path}/log.py:handle", "-p", "1", "--depth", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(daemon.ask, b"a")
        wait_until(lambda: (tmp_path / "runs").exists())
        gone = daemon.connect()
        gone.sendall(struct.pack("!I", 1) + b"b")
        wait_until(lambda: daemon.connected() == 2)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        threading.Event().wait(0.05)  # what has waited for less is not looked at
        (tmp_path / "go").touch()
        assert running.result(60) == b"a"
    assert daemon.ask(b"c") == b"c"
    assert (tmp_path / "runs").read_bytes() == b"ac"


def test_more_clients_than_may_be_connected_wait_in_the_backlog(serve: Serve) -> None:
    daemon = serve("echo", "--max-connections", "5")
    first = [daemon.connect() for _ in range(5)]
    wait_until(lambda: daemon.connected() >= 5)
    with daemon.connect() as sixth:
        sixth.sendall(b"\0\0\0\5hello")
        for sock in first:
            sock.sendall(b"\0\0\0\1x")
            with sock:
                assert read_all(sock) == b"x"
        assert read_all(sixth) == b"hello"


def test_running_out_of_descriptors_pauses_accepting_and_says_so_once(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", files=260)
    socks = [daemon.connect() for _ in range(200)]
    daemon.wait_for_line(r"clients wait in the kernel's backlog: 60 are connected")
    front = psutil.Process(daemon.front)
    before = front.num_ctx_switches().voluntary
    assert not select.select(socks, [], [], 0.2)[0]
    assert front.num_ctx_switches().voluntary - before < 100  # it does not spin
    for sock in socks:
        sock.sendall(b"\0\0\0\5hello")
    for sock in socks:
        with sock:
            assert read_all(sock) == b"hello"
    assert daemon.log.count("backlog") == 1


# ---- killed ----


def test_front_that_is_killed_resets_its_clients_and_serves_the_backlog(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "2")
    go = tmp_path / "go"
    name = str(go).encode()
    served = daemon.connect()
    served.sendall(struct.pack("!I", len(name)) + name)
    wait_until(lambda: daemon.connected() == 1)
    os.kill(daemon.front, signal.SIGSTOP)
    waiting = [daemon.connect() for _ in range(20)]
    for sock in waiting:
        sock.sendall(struct.pack("!I", 0))
    os.kill(daemon.front, signal.SIGKILL)
    with served, pytest.raises(ConnectionResetError):
        served.recv(1)
    # one consumer is still busy for the front that died: the other one answers them all
    for sock in waiting:
        with sock:
            assert read_all(sock) == b""
    assert not go.exists()
    go.touch()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(daemon.ask, [name] * 50)) == {name}


def test_consumers_of_a_killed_forker_die_with_it_and_their_callers_are_told(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("await_file", "-p", "2")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        lost = [pool.submit(daemon.ask, str(tmp_path / "never").encode()) for _ in range(2)]
        wait_until(lambda: daemon.connected() == 2)
        os.kill(daemon.forker, signal.SIGKILL)
        for each in lost:
            with pytest.raises(ConnectionResetError):
                each.result(60)
    daemon.wait_for_line("lost: its consumer .* SIGKILL, with its forker", 2)
    assert daemon.ask(b"") == b""


def test_killed_supervisor_leaves_what_was_accepted_to_be_finished(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        accepted = [pool.submit(daemon.ask, str(go).encode()) for _ in range(5)]
        wait_until(lambda: daemon.connected() == 5)
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: not _can_connect(daemon))
        successor = serve("echo", bind=daemon.address)
        go.touch()
        assert {each.result(60) for each in accepted} == {str(go).encode()}
        assert successor.ask(b"hello") == b"hello"
    assert daemon.end() == -signal.SIGKILL


def _can_connect(daemon: Daemon) -> bool:
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return False
    return True


def test_hung_handler_of_a_killed_supervisor_is_killed_at_its_limit(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "1", "--timeout", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hung = pool.submit(daemon.ask, b"hang in Python")
        wait_until(lambda: daemon.connected() == 1)
        daemon.signal(signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            hung.result(60)
    assert daemon.end() == -signal.SIGKILL


def test_directory_of_a_daemon_that_was_killed_as_a_whole_is_swept(launch: Serve) -> None:
    killed = launch("echo").wait_ready()
    for process in killed._family:
        process.kill()
    killed.process.wait()
    assert len(os.listdir(killed.folder)) == 1
    successor = launch("echo", folder=killed.folder).wait_ready()
    assert len(os.listdir(killed.folder)) == 1
    assert successor.stop() == 0
    assert os.listdir(killed.folder) == []


# ---- service managers and containers ----


def test_sockets_are_taken_over_from_a_service_manager(tmp_path: pathlib.Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
    ):
        notices.bind(f"{tmp_path}/n" if len(str(tmp_path)) < 100 else "\0gaspar-test-notices")
        notices.settimeout(30)
        address = notices.getsockname()
        where = address if isinstance(address, str) else "@" + address[1:].decode()
        run = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2(int(sys.argv[1]), 3); "
        run += "os.execv(sys.executable, [sys.executable, '-m', 'gaspar', *sys.argv[2:]])"
        process = subprocess.Popen(
            [sys.executable, "-c", run, str(listener.fileno()), "-p", "1", f"{HANDLERS}:echo"],
            env=dict(os.environ, LISTEN_FDS="1", NOTIFY_SOCKET=where, PYTHONPATH=str(ROOT)),
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
        try:
            assert notices.recv(1000) == b"READY=1"
            with socket.create_connection(listener.getsockname()) as sock:
                sock.sendall(b"\0\0\0\5hello")
                assert read_all(sock) == b"hello"
            process.send_signal(signal.SIGHUP)
            assert notices.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert notices.recv(1000) == b"READY=1"
            process.terminate()
            assert notices.recv(1000) == b"STOPPING=1"
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


def test_supervisor_reaps_what_is_not_its_own(serve: Serve, tmp_path: pathlib.Path) -> None:
    """As PID 1 it is given the orphans; here it is made their subreaper by the handler's process tree."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a PID namespace")
    (tmp_path / "orphans.py").write_text(
        "import subprocess\ndef handle(message):\n    subprocess.run('sleep 0.5 & true', shell=True)\n"
        "    return subprocess.run(['ps', '-eo', 'pid,ppid,stat,comm'], capture_output=True).stdout\n"
    )
    process = subprocess.Popen(
        [*unshare, sys.executable, "-m", "gaspar", "-b", "127.0.0.1:0", "-p", "1", f"{tmp_path}/orphans.py:handle"],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().split("127.0.0.1:")[1].split(",")[0])

        def listing() -> bytes:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(struct.pack("!I", 0))
                return read_all(sock)

        def sleepers() -> list[str]:
            """Those that were orphaned: they run, are zombies, or are reaped."""
            return [line for line in listing().decode().splitlines() if "sleep" in line]

        assert sleepers()
        wait_until(lambda: not [line for line in sleepers() if "Z" in line.split()[2]])
    finally:
        for child in psutil.Process(process.pid).children():
            child.terminate()
        process.communicate(timeout=30)
