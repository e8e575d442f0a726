"""The one-shot protocol by the wire: what each input gets, while the daemon serves others."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import select
import socket
import struct
import time

import psutil
import pytest
from conftest import Daemon, Serve, read_all, wait_until
from handlers import BAD, DEADLY

LENGTH = struct.Struct("!I")


@pytest.fixture(params=["tcp", "unix"])
def bind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "tcp":
        return "127.0.0.1:0"
    return f"unix:{tmp_path_factory.mktemp('s')}/s"


def fails(sock: socket.socket) -> bool:
    """True if the connection ends with a reset, False if it ends with end-of-file."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_reply_is_whole_and_ends_with_end_of_file(serve: Serve, bind: str) -> None:
    daemon = serve("echo", bind=bind)
    for message in (b"hello", b"", b"x", b"y" * 65531, b"y" * 65532, b"y" * 65533, bytes(range(256)) * 40_000):
        assert daemon.ask(message) == message


def test_request_may_arrive_in_any_pieces(serve: Serve, bind: str) -> None:
    daemon = serve("echo", bind=bind)
    for message in (b"", b"a", b"abcdef"):
        data = LENGTH.pack(len(message)) + message
        for split in range(len(data)):
            with daemon.connect() as sock:
                sock.sendall(data[:split])
                daemon.ask(b"something between")  # so that the first piece has been read
                sock.sendall(data[split:])
                assert read_all(sock) == message


def test_request_that_arrives_byte_by_byte_is_answered(serve: Serve, bind: str) -> None:
    daemon = serve("echo", bind=bind)
    with daemon.connect() as sock:
        for byte in LENGTH.pack(5) + b"hello":
            sock.sendall(bytes([byte]))
            daemon.ask(b"between")
        assert read_all(sock) == b"hello"


def test_length_zero_is_a_request(serve: Serve, bind: str) -> None:
    assert len(serve("digest", bind=bind).ask(b"")) == 32


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "array"])
def test_anything_bytes_like_is_a_reply(serve: Serve, kind: str) -> None:
    expected = {"bytearray": b"reply", "memoryview": b"reply", "array": struct.pack("3I", 1, 2, 3)}
    assert serve("many_types").ask(kind.encode()) == expected[kind]


def test_announced_length_above_the_limit_is_reset_at_once(serve: Serve, bind: str) -> None:
    daemon = serve("echo", "--max-message", "64K", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(65537))
        assert fails(sock)
    daemon.wait_for_line(r"65537 bytes announced, 65536 allowed \(--max-message\)")
    assert daemon.ask(b"z" * 65536) == b"z" * 65536


def test_the_longest_length_orders_no_memory(serve: Serve) -> None:
    daemon = serve("echo")
    before = psutil.Process(daemon.front).memory_info().vms
    for _ in range(20):
        with daemon.connect() as sock:
            sock.sendall(LENGTH.pack(2**30 - 1))
            assert fails(sock)
    assert psutil.Process(daemon.front).memory_info().vms - before < 500 * 2**20  # a thread's heap takes 128


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\xff", b"@", b"GSP1"])
def test_another_protocols_first_byte_is_reset(serve: Serve, bind: str, start: bytes) -> None:
    daemon = serve("echo", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(start)
        assert fails(sock)
    assert daemon.ask(b"next") == b"next"


def test_fewer_bytes_than_announced_are_reset_and_reach_no_handler(serve: Serve, bind: str) -> None:
    daemon = serve("Counting", "-p", "1", bind=bind)
    for part in (
        b"\0",
        b"\0\0\0",
        LENGTH.pack(10),
        LENGTH.pack(10) + b"123456789",
        LENGTH.pack(200_000) + bytes(100_000),
    ):
        with daemon.connect() as sock:
            sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
            assert fails(sock), part[:20]
    assert daemon.ask(b"") == b"1"


def test_probe_is_closed_quietly(serve: Serve, bind: str) -> None:
    daemon = serve("echo", bind=bind)
    lines = len(daemon.lines)
    with daemon.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert not fails(sock)
    daemon.connect().close()
    assert daemon.ask(b"next") == b"next"
    assert len(daemon.lines) == lines


@pytest.mark.parametrize("start", [b"", b"\0", LENGTH.pack(100), LENGTH.pack(100) + b"some of it"])
def test_silent_client_is_reset_after_the_read_timeout(serve: Serve, bind: str, start: bytes) -> None:
    daemon = serve("echo", "--read-timeout", "0.3", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(start)
        assert daemon.ask(b"meanwhile") == b"meanwhile"
        # with nothing sent, a Unix socket has nothing that could be left unread
        assert fails(sock) or (not start and bind.startswith("unix"))


def test_byte_a_while_is_no_progress(serve: Serve, bind: str) -> None:
    """Each byte comes within the timeout, all of them do not."""
    daemon = serve("echo", "--read-timeout", "0.4", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(1000))
        try:
            for _ in range(1000):
                sock.sendall(b"x")
                if select.select([sock], [], [], 0.05)[0]:
                    break
            reset = fails(sock)
        except (ConnectionResetError, BrokenPipeError):
            reset = True
        assert reset


def test_slow_upload_that_keeps_moving_is_served(serve: Serve, bind: str) -> None:
    """It takes several read timeouts, and each of them brings 64 KiB."""
    daemon = serve("digest", "--read-timeout", "0.5", bind=bind)
    message = bytes(400_000)
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(len(message)))
        for start in range(0, len(message), 40_000):
            sock.sendall(message[start : start + 40_000])
            select.select([sock], [], [], 0.1)
        assert len(read_all(sock)) == 32


@pytest.mark.parametrize("excess", [1, 100, 70_000])
def test_bytes_after_the_request_are_ignored(serve: Serve, bind: str, excess: int) -> None:
    daemon = serve("echo", bind=bind)
    message = b"m" * 500_000
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(4) + b"ping" + b"!" * excess)
        assert read_all(sock) == b"ping"
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(len(message)) + message + b"!" * excess)
        assert read_all(sock) == message


def test_client_may_half_close_after_its_request(serve: Serve, bind: str) -> None:
    daemon = serve("echo", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(5) + b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"hello"


def test_client_that_is_gone_before_its_reply_harms_nobody(serve: Serve, bind: str, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1", bind=bind)
    lines = len(daemon.lines)
    go = tmp_path / "go"
    with daemon.connect() as sock:
        name = str(go).encode()
        sock.sendall(LENGTH.pack(len(name)) + name)
    go.touch()
    assert daemon.ask(b"") == b""
    assert len(daemon.lines) == lines


def test_client_that_never_reads_is_reset_after_the_write_timeout(serve: Serve, bind: str) -> None:
    daemon = serve("sized", "--write-timeout", "0.5", bind=bind)
    with daemon.connect() as sock:
        sock.sendall(LENGTH.pack(8) + b"60000000")
        for _ in range(20):
            assert daemon.ask(b"10") == bytes(10)
        daemon.wait_for_line("took nothing of its reply")
        assert sum(map(len, iter(lambda: _recv(sock), b""))) < 60_000_000


def _recv(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_reply_is_a_reset_and_a_log_line(serve: Serve, bind: str, what: bytes) -> None:
    daemon = serve("bad", bind=bind)
    consumers = daemon.consumers
    with pytest.raises(ConnectionResetError):
        daemon.ask(what)
    expected = {
        b"raise": r"ValueError: the handler's own words",
        b"raise SystemExit": "handler raised SystemExit",
        b"return None": "handler returned None, not bytes",
        b"return int": "handler returned int 7, not bytes",
        b"return str": "handler returned str 'text', not bytes.*encode",
        b"return too much": r"handler returned 73400320 bytes, 67108864 allowed \(--max-message\)",
    }[what]
    daemon.wait_for_line(expected)
    assert daemon.ask(b"next") == b"next"
    assert daemon.consumers == consumers


@pytest.mark.parametrize("what", sorted(DEADLY))
def test_dead_consumer_is_a_reset_and_is_replaced(serve: Serve, bind: str, what: bytes) -> None:
    daemon = serve("bad", "-p", "2", bind=bind)
    before = daemon.consumers
    with pytest.raises(ConnectionResetError):
        daemon.ask(what)
    daemon.wait_for_line(r"consumer \d+ \(pid \d+\) ended")
    assert [daemon.ask(b"%d" % n) for n in range(20)] == [b"%d" % n for n in range(20)]
    wait_until(lambda: len(daemon.consumers) == 2 and daemon.consumers != before)


def test_consumer_killed_from_outside_is_a_reset_and_harms_no_other(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "2")
    go, never = tmp_path / "go", tmp_path / "never"
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        victim = pool.submit(daemon.ask, str(never).encode())
        busy = wait_until(lambda: [pid for pid in daemon.consumers if _is_polling(pid)])
        others = [pool.submit(daemon.ask, str(go).encode()) for _ in range(8)]
        os.kill(busy[0], 9)
        with pytest.raises(ConnectionResetError):
            victim.result(60)
        go.touch()
        for other in others:
            assert other.result(60) == str(go).encode()


def _is_polling(pid: int) -> bool:
    """True if the consumer is in `await_file`: it wakes up of its own."""
    before = psutil.Process(pid).num_ctx_switches().voluntary
    time.sleep(0.05)
    return psutil.Process(pid).num_ctx_switches().voluntary - before > 5


def test_two_thousand_clients_at_once_are_answered(serve: Serve) -> None:
    daemon = serve("echo")
    socks = [daemon.connect() for _ in range(2000)]
    for number, sock in enumerate(socks):
        sock.sendall(LENGTH.pack(4) + LENGTH.pack(number))
    for number, sock in enumerate(socks):
        with sock:
            assert read_all(sock) == LENGTH.pack(number)


def test_slow_job_does_not_delay_others(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "2")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(daemon.ask, str(go).encode())
        for _ in range(200):
            assert daemon.ask(b"") == b""
        assert not slow.done()
        go.touch()
        assert slow.result(60) == str(go).encode()


def test_what_waits_behind_a_slow_job_is_taken_back(serve: Serve, tmp_path: pathlib.Path) -> None:
    """With many jobs in flight per consumer, some are queued behind the slow ones; the free consumer gets them."""
    daemon = serve("await_file", "-p", "2", "--depth", "8")
    go = tmp_path / "go"
    with concurrent.futures.ThreadPoolExecutor(33) as pool:
        slow = pool.submit(daemon.ask, str(go).encode())
        for _ in range(5):
            assert set(pool.map(daemon.ask, [b""] * 32)) == {b""}
        assert not slow.done()
        go.touch()
        slow.result(60)


def test_several_addresses_are_served_at_once(serve: Serve, tmp_path: pathlib.Path) -> None:
    where = f"unix:{os.path.realpath(tmp_path)}/s" if len(str(tmp_path)) < 90 else "127.0.0.1:0"
    daemon: Daemon = serve("echo", "-b", "[::1]:0", "-b", where)
    assert len(daemon.addresses) == 3
    for address in daemon.addresses:
        with daemon.connect(address) as sock:
            sock.sendall(LENGTH.pack(5) + b"hello")
            assert read_all(sock) == b"hello"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has it")
def test_the_fronts_0mq_thread_interrupts_nobody_while_requests_are_tiny(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "1")

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(name)) for name in os.listdir(f"/proc/{daemon.front}/task")}

    assert policies() == {os.SCHED_OTHER}
    wait_until(lambda: daemon.ask(b"") == b"" and policies() == {os.SCHED_OTHER, os.SCHED_BATCH})
    assert os.sched_getscheduler(daemon.front) == os.SCHED_OTHER
    assert {os.sched_getscheduler(pid) for pid in daemon.consumers} == {os.SCHED_OTHER}
