"""The library: Producer and Consumer, in callers of every kind."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
from conftest import ROOT, wait_until
from handlers import FailingSetup

import gaspar
from gaspar.errors import AddressError, BindError, ConnectionLost, DaemonError, HandlerLoadError, LimitError


def echo(message: bytes) -> bytes:
    return message


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    fds = psutil.Process().num_fds()
    yield
    wait_until(lambda: set(psutil.Process().children(recursive=True)) <= before)
    assert psutil.Process().num_fds() <= fds


def ask(producer: gaspar.Producer, message: bytes) -> bytes:
    return gaspar.request(producer.address, message, timeout=30)


def test_context_serves_and_stops() -> None:
    with gaspar.Producer(gaspar.Consumer(echo), 0) as producer:
        assert ask(producer, b"hello") == b"hello"
        assert producer.running.ready()
        assert not producer.stopped.ready()
    assert producer.stopped.ready()
    assert not producer.running.ready()
    with pytest.raises(ConnectionLost, match="nobody listens"):
        ask(producer, b"hello")


def test_blocking_start_returns_when_another_thread_stops_it() -> None:
    producer = gaspar.Producer(gaspar.Consumer(echo), 0)
    thread = threading.Thread(target=producer.start)
    thread.start()
    assert producer.running.wait(30)
    assert ask(producer, b"hello") == b"hello"
    assert not producer.stopped.wait(0.01)
    producer.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert producer.stopped.wait(0)


def test_forker_lists_the_consumers() -> None:
    producer = gaspar.Producer(gaspar.Consumer(echo), 0, processes=3)
    assert producer.forker.processes == []
    producer.start(blocking=False)
    consumers = producer.forker.processes
    assert len(consumers) == 3
    assert all(consumer.is_alive() and psutil.pid_exists(consumer.pid) for consumer in consumers)
    os.kill(consumers[0].pid, signal.SIGKILL)
    wait_until(lambda: not consumers[0].is_alive())
    wait_until(lambda: len(producer.forker.processes) == 3)
    producer.stop()
    assert len(producer.forker.processes) == 3
    assert not any(consumer.is_alive() for consumer in producer.forker.processes)


def test_second_start_after_stop_works_and_before_it_is_refused() -> None:
    producer = gaspar.Producer(gaspar.Consumer(echo), 0, processes=1)
    for _ in range(2):
        producer.start(blocking=False)
        with pytest.raises(DaemonError, match="already"):
            producer.start()
        assert ask(producer, b"hello") == b"hello"
        producer.stop()
        producer.stop()


def test_handlers_may_be_closures_bound_methods_and_see_what_the_caller_had() -> None:
    secret = os.urandom(8)

    class Service:
        def __init__(self) -> None:
            self.prefix = b"bound "

        def handle(self, message: bytes) -> bytes:
            return self.prefix + message

    with gaspar.Producer(gaspar.Consumer(lambda message: secret + message), 0, processes=1) as producer:
        assert ask(producer, b"!") == secret + b"!"
    with gaspar.Producer(gaspar.Consumer(Service().handle), 0, processes=1) as producer:
        assert ask(producer, b"!") == b"bound !"


def test_closure_may_use_an_open_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_bytes(b"0123456789")
    with (tmp_path / "data").open("rb") as file:
        consumer = gaspar.Consumer(lambda message: os.pread(file.fileno(), 3, int(message)))
        with gaspar.Producer(consumer, 0, processes=1) as producer:
            assert ask(producer, b"4") == b"456"


def test_subclass_with_handle_setup_and_teardown(tmp_path: pathlib.Path) -> None:
    class Noting(gaspar.Consumer):
        def setup(self) -> None:
            self.ready = b"set up"

        def handle(self, message: bytes) -> bytes:
            return self.ready

        def teardown(self) -> None:
            (tmp_path / "torn down").touch()

    with gaspar.Producer(Noting(), 0, processes=1) as producer:
        assert ask(producer, b"") == b"set up"
    assert (tmp_path / "torn down").exists()


def test_address_in_use_is_an_error_in_the_caller() -> None:
    with gaspar.Producer(gaspar.Consumer(echo), 0, processes=1) as first:
        second = gaspar.Producer(gaspar.Consumer(echo), first.server_addr[1])
        with pytest.raises(BindError, match="Address already in use") as caught:
            second.start()
        assert isinstance(caught.value, OSError)
        assert second.stopped.ready()


def test_setup_that_fails_is_an_error_in_the_caller() -> None:
    with pytest.raises(HandlerLoadError, match="no database") as caught:
        gaspar.Producer(FailingSetup(), 0).start(blocking=False)
    assert "RuntimeError" in caught.value.traceback


def test_daemon_that_is_killed_has_stopped() -> None:
    producer = gaspar.Producer(gaspar.Consumer(echo), 0)
    producer.start(blocking=False)
    os.kill(producer._pid, signal.SIGKILL)
    assert producer.stopped.wait(30)
    producer.stop()


def test_stop_finishes_what_was_accepted(tmp_path: pathlib.Path) -> None:
    go = tmp_path / "go"

    def wait(message: bytes) -> bytes:
        wait_until(go.exists)
        return message

    producer = gaspar.Producer(gaspar.Consumer(wait), 0, processes=1)
    producer.start(blocking=False)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(ask, producer, b"%d" % n) for n in range(3)]
        port = producer.server_addr[1]
        ours = psutil.Process()
        wait_until(lambda: sum(each.raddr and each.raddr.port == port for each in ours.net_connections("tcp")) == 3)
        stopping = pool.submit(producer.stop)
        go.touch()
        stopping.result(60)
        assert [reply.result(60) for reply in replies] == [b"0", b"1", b"2"]


def test_fork_of_the_caller_does_not_keep_or_stop_the_daemon() -> None:
    producer = gaspar.Producer(gaspar.Consumer(echo), 0)
    producer.start(blocking=False)
    child = os.fork()
    if child == 0:
        producer.stop()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert ask(producer, b"still") == b"still"
    producer.stop()


def test_daemon_holds_no_socket_of_its_caller() -> None:
    import socket

    ours, theirs = socket.socketpair()
    with gaspar.Producer(gaspar.Consumer(echo), 0):
        theirs.close()
        ours.settimeout(30)
        assert ours.recv(1) == b""
    ours.close()


@pytest.mark.parametrize(
    ("arguments", "more", "error", "words"),
    [
        ((gaspar.Consumer(echo), 70000), {}, AddressError, "70000 is not a number from 0 to 65535"),
        ((gaspar.Consumer(echo), "80"), {}, TypeError, "port must be a number"),
        ((echo, 0), {}, TypeError, r"must be a gaspar.Consumer, like gaspar.Consumer\(handler\)"),
        ((gaspar.Consumer(echo), 0), {"depht": 1}, TypeError, "unknown limit depht; there are: depth, "),
        ((gaspar.Consumer(echo), 0), {"depth": 0}, LimitError, "from 1 to 64"),
        ((gaspar.Consumer(echo), 0), {"max_message": "2G"}, LimitError, "just under 1G"),
        ((gaspar.Consumer(echo), 0, 0), {}, LimitError, "processes"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: tuple[object, ...], more: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gaspar.Producer(*arguments, **more)  # type: ignore[arg-type]


def test_consumer_without_a_handler_is_explained() -> None:
    with pytest.raises(TypeError, match="give Consumer a handler, or write handle"):
        gaspar.Consumer()
    with pytest.raises(TypeError, match="must be callable, not int"):
        gaspar.Consumer(7)  # type: ignore[arg-type]


# ---- callers in processes of their own ----

SERVE = """
import gaspar, os
def echo(message): return message
producer = gaspar.Producer(gaspar.Consumer(echo), 0, processes=2)
"""
ANNOUNCE = """
import threading
def announce():
    producer.running.wait()
    print(producer.server_addr[1], flush=True)
threading.Thread(target=announce, daemon=True).start()
"""


def script(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        start_new_session=True,
    )


def finish(caller: subprocess.Popen[str]) -> str:
    out, err = caller.communicate(timeout=60)
    assert caller.returncode == 0, err
    assert err == ""
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True])
def test_signal_to_a_blocking_caller_drains_the_daemon(number: int, whole_group: bool) -> None:
    caller = script(SERVE + ANNOUNCE + "producer.start(); print('returned')")
    assert caller.stdout is not None
    port = int(caller.stdout.readline())
    family = psutil.Process(caller.pid).children(recursive=True)
    assert gaspar.request(f"127.0.0.1:{port}", b"hello", 30) == b"hello"
    if whole_group:
        os.killpg(caller.pid, number)
    else:
        caller.send_signal(number)
    assert finish(caller) == "returned\n"
    assert not psutil.wait_procs(family, 10)[1]


@pytest.mark.parametrize("end", ["", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit"])
def test_daemon_ends_with_its_caller(end: str) -> None:
    caller = script(SERVE + "producer.start(blocking=False); print(flush=True); input()\n" + end)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "\n"
    family = psutil.Process(caller.pid).children(recursive=True)
    assert len(family) == 5
    caller.communicate("\n", timeout=30)
    assert not psutil.wait_procs(family, 10)[1]


PATCHED = {
    "eventlet": """
import warnings; warnings.simplefilter("ignore")
import eventlet; eventlet.monkey_patch()
spawn, pause = eventlet.spawn, eventlet.sleep
""",
    "gevent": """
from gevent import monkey; monkey.patch_all()
import gevent
spawn, pause = gevent.spawn, gevent.sleep
""",
}
GREEN = """
import time, gaspar, gaspar.client
order = []
def slow(message):
    time.sleep(float(message)); return message
with gaspar.Producer(gaspar.Consumer(slow), 0, processes=2) as producer:
    address = producer.address
    def ask(message):
        order.append(gaspar.client.request(address, message, timeout=30))
    threads = [spawn(ask, message) for message in (b"0.3", b"0.0")]
    def tick():
        order.append("tick")
    threads.append(spawn(tick))
    while len(order) < 3:
        pause(0.001)
    assert order[0] == "tick" and set(order[1:]) == {b"0.3", b"0.0"} and order[2] == b"0.3", order
    try:
        gaspar.client.request(address, b"30", timeout=0.05)
    except TimeoutError as error:
        print(error)
    producer_stopped = spawn(producer.stop)
assert producer.stopped.ready()
try:
    gaspar.client.request(address, b"0")
except ConnectionError as error:
    print(error)
"""


@pytest.mark.parametrize("library", sorted(PATCHED))
def test_producer_and_client_work_under_monkey_patching(library: str) -> None:
    out = finish(script(PATCHED[library] + GREEN.replace('b"30"', 'b"0.5"'))).splitlines()
    assert "no reply within 0.05 s" in out[0]
    assert "nobody listens there" in out[1]


@pytest.mark.parametrize("library", sorted(PATCHED))
def test_handler_of_a_patched_caller_has_real_threads_processes_and_sockets(library: str) -> None:
    text = """
import gaspar, os, queue, socket, subprocess, threading, time
def handle(message):
    done = queue.Queue()
    thread = threading.Thread(target=lambda: (time.sleep(0.01), done.put(threading.get_native_id())))
    thread.start()
    thread.join()
    assert done.get() != threading.get_native_id() == os.getpid()
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    one, other = socket.socketpair()
    other.sendall(subprocess.run(["cat"], input=message, capture_output=True).stdout)
    return one.recv(100)
with gaspar.Producer(gaspar.Consumer(handle), 0, processes=1) as producer:
    print(gaspar.request(producer.address, b'hello'))
"""
    text = PATCHED[library] + "import warnings; warnings.simplefilter('ignore')" + text  # of threads and fork
    assert finish(script(text)) == "b'hello'\n"


@pytest.mark.parametrize("library", sorted(PATCHED))
def test_blocking_start_gives_way_under_monkey_patching(library: str) -> None:
    text = SERVE + "spawn(producer.start)\nproducer.running.wait()\nprint(gaspar.request(producer.address, b'hello'))"
    assert finish(script(PATCHED[library] + text + "\nproducer.stop()")) == "b'hello'\n"


def test_producer_works_in_an_asyncio_program() -> None:
    text = """
import asyncio
async def main():
    producer.start(blocking=False)
    reader, writer = await asyncio.open_connection(*producer.server_addr)
    writer.write(gaspar.pack(b"hello"))
    print(await reader.read())
    writer.close()
    producer.stop()
asyncio.run(main())
"""
    assert finish(script(SERVE + text)) == "b'hello'\n"


def test_producer_works_in_a_program_with_threads() -> None:
    text = """
import threading, time
stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(5)]
for thread in threads: thread.start()
with producer:
    print(gaspar.request(producer.address, b'hello'))
stop.set()
"""
    assert finish(script(SERVE + text)) == "b'hello'\n"


def test_the_control_address_is_known_once_the_daemon_has_started() -> None:
    producer = gaspar.Producer(gaspar.Consumer(bytes.upper), 0, processes=1)
    assert producer.control == ""
    with producer:
        assert json.loads(gaspar.request(producer.control, b"health")) == {"status": "ok", "reasons": []}
