"""gaspar.client against the real daemon, and `request` against servers that misbehave."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT, Serve, wait_until

from gaspar.client import Client, pack, request
from gaspar.errors import (
    AddressError,
    ConnectionLost,
    ConsumerLost,
    GasparError,
    HandlerError,
    RequestTimeout,
    TooBig,
)


@pytest.mark.parametrize("message", [b"", b"x", b"hello" * 1000, bytearray(b"abc"), memoryview(b"abcdef")[1:3]])
def test_pack_is_a_length_and_the_message(message: bytes) -> None:
    assert pack(message) == struct.pack("!I", len(message)) + bytes(message)


def test_message_that_is_not_bytes_is_explained() -> None:
    for function in (pack, lambda message: request("127.0.0.1:1", message)):
        with pytest.raises(TypeError, match="encode it first"):
            function("text")
        with pytest.raises(TypeError, match="must be bytes-like, not int"):
            function(7)


def test_message_too_long_for_the_protocol_is_refused_before_it_is_sent() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 2**30

    with pytest.raises(TooBig, match="1073741824 bytes, the protocol can announce 1073741823"):
        pack(Long())


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 5_000_000])
def test_request_returns_exactly_the_reply(serve: Serve, size: int) -> None:
    assert request(serve("echo").address, bytes(size), 30) == bytes(size)


def test_request_over_ipv6_and_unix(serve: Serve, tmp_path: pathlib.Path) -> None:
    for bind in ("[::1]:0", f"unix:{tmp_path}/s" if len(str(tmp_path)) < 100 else "[::1]:0"):
        daemon = serve("bad", bind=bind)
        assert request(daemon.address, b"hello", 30) == b"hello"
        with pytest.raises(ConnectionLost, match="reset before the reply was whole"):
            request(daemon.address, b"raise", 30)


def test_request_works_in_many_threads(serve: Serve) -> None:
    address = serve("echo").address
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        messages = [b"%d" % number for number in range(500)]
        assert list(pool.map(lambda message: request(address, message, 30), messages)) == messages


# ---- servers that misbehave ----


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Serve one connection with a function; returns the address."""
    threads: list[threading.Thread] = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener, listener.accept()[0] as connection:
                behave(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_reply_cut_by_a_reset_is_no_reply(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def half(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"half a re")
        _reset(connection)

    with pytest.raises(ConnectionLost) as caught:
        request(server(half), b"x", 30)
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value, GasparError)


def test_reset_during_a_long_request_is_an_error(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4)
        _reset(connection)

    address = server(refuse)
    with pytest.raises(ConnectionLost, match=address):
        request(address, bytes(50_000_000), 30)


def test_timeout_holds_for_the_whole_request(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    """Each part of the reply comes in time, all of it does not."""
    gone = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not gone.wait(0.05):
            connection.sendall(b"drip")

    address = server(drip)
    try:
        with pytest.raises(RequestTimeout, match=f"{address}: no reply within 0.3 s") as caught:
            request(address, b"x", 0.3)
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, GasparError)
    finally:
        gone.set()


def test_nobody_there_is_explained(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for nowhere in (address, "unix:nobody/here"):
        with pytest.raises(ConnectionLost, match=f"{nowhere}: nobody listens there"):
            request(nowhere, b"x", 30)


@pytest.mark.parametrize(
    "address", ["localhost", ":80", "::1:80", "[::1]80", "host:99999", "unix:", "unix:" + "x" * 108]
)
def test_wrong_address_is_explained(address: str) -> None:
    with pytest.raises(AddressError):
        request(address, b"x")


# ---- Client and the real daemon ----


def test_client_gets_replies_and_receipts(serve: Serve) -> None:
    with Client(serve("echo").address, timeout=60) as client:
        for size in (0, 1, 65536, 65537, 20_000_000):
            message = os.urandom(size)
            reply = client.request(message)
            assert reply == message
            assert 0 < reply.receipt.ran < 60
            assert 0 <= reply.receipt.waited < 60


def test_client_over_ipv6_and_unix(serve: Serve, tmp_path: pathlib.Path) -> None:
    for bind in ("[::1]:0", f"unix:{tmp_path}/s" if len(str(tmp_path)) < 100 else "[::1]:0"):
        with Client(serve("echo", bind=bind).address, timeout=60) as client:
            assert list(client.map([b"one", b"two"])) == [b"one", b"two"]


def test_client_learns_what_went_wrong(serve: Serve) -> None:
    with Client(serve("bad").address, timeout=60) as client:
        with pytest.raises(HandlerError, match="ValueError: the handler's own words") as raised:
            client.request(b"raise")
        assert raised.value.type == "ValueError"
        assert "in _raise" in raised.value.traceback
        with pytest.raises(ConsumerLost, match="SIGKILL") as lost:
            client.request(b"kill itself")
        assert "SIGKILL" in lost.value.exit
        assert client.request(b"goes on") == b"goes on"


def test_client_keeps_to_the_daemons_limits(serve: Serve) -> None:
    with Client(serve("echo", "--max-message", "1000").address, timeout=60) as client:
        with pytest.raises(TooBig, match=r"1001 bytes, 1000 allowed \(--max-message\)"):
            client.request(bytes(1001))
        futures = [client.submit(b"%d" % number) for number in range(3000)]  # more than one connection may have
        assert [future.result() for future in futures] == [b"%d" % number for number in range(3000)]


def test_clients_deadline_is_kept_by_the_daemon(serve: Serve, tmp_path: pathlib.Path) -> None:
    gate = bytes(tmp_path / "gate")
    with Client(serve("await_file", "-p", "1").address) as client:
        with pytest.raises(RequestTimeout) as running:
            client.request(gate, 0.2)
        assert running.value.receipt is not None  # it is the daemon's word
        with pytest.raises(RequestTimeout):
            client.request(b"", 0.2)  # behind the first, which still runs
        (tmp_path / "gate").touch()
        assert client.request(b"", 60) == b""


def test_client_streams(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("streams")
    with Client(daemon.address, timeout=60) as client:
        assert list(client.stream(b"count 3 5")) == [b"\0" * 5, b"\1" * 5, b"\2" * 5]
        assert client.request(b"count 3 5") == b"\0" * 5 + b"\1" * 5 + b"\2" * 5
        parts = client.stream(b"gate %s" % bytes(tmp_path / "second"))
        assert next(parts) == b"first"
        (tmp_path / "second").touch()
        assert list(parts) == [b"second"]
        parts = client.stream(b"raise")
        assert [next(parts), next(parts)] == [b"one ", b"two "]
        with pytest.raises(HandlerError, match="the generator's own words"):
            next(parts)


def test_stream_that_is_closed_early_ends_its_generator(serve: Serve, tmp_path: pathlib.Path) -> None:
    with Client(serve("streams").address, timeout=60) as client:
        parts = client.stream(b"endless %s 100000" % bytes(tmp_path))
        next(parts)
        parts.close()
        wait_until((tmp_path / "closed").exists)


def test_client_outlives_the_daemons_front(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "2")
    with Client(daemon.address, timeout=60) as client:
        assert client.request(b"") == b""
        waiting = client.submit(bytes(tmp_path / "gate"))
        client.request(b"")  # the other was sent before
        os.kill(daemon.front, signal.SIGKILL)
        with pytest.raises(ConnectionLost, match="the request may have been run") as caught:
            waiting.result(60)
        assert caught.value.sent is True
        (tmp_path / "gate").touch()
        assert client.request(b"") == b""
    daemon.remember()


def test_draining_daemon_answers_its_clients(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "1")
    with Client(daemon.address, timeout=60) as client:
        futures = [client.submit(message) for message in [bytes(tmp_path / "gate")] * 3]
        client.submit(b"").cancel()
        daemon.ask_nothing()
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_for_line("draining")
        wait_until(lambda: not client._pool._usable)
        with pytest.raises(ConnectionLost, match="nobody listens there") as caught:
            client.request(b"")
        assert caught.value.sent is False
        (tmp_path / "gate").touch()
        assert [future.result() for future in futures] == [bytes(tmp_path / "gate")] * 3
    assert daemon.end() == 0


GREEN = """
import sys
library, address, folder = sys.argv[1:]
if library == "eventlet":
    import eventlet
    eventlet.monkey_patch()
elif library == "gevent":
    import gevent.monkey
    gevent.monkey.patch_all()

import concurrent.futures, contextlib, os, threading
import gaspar

def path(name):
    return os.path.join(folder, name).encode()

def touch(name):
    open(path(name), "x").close()

client = gaspar.Client(address, timeout=60)
found = []
asking = threading.Thread(target=lambda: found.append(client.request(path("a"))))
asking.start()
future = client.submit(path("b"))
touch("a")  # comes to this only if the two others wait greenly
asking.join()
touch("b")
assert found == [path("a")] and future.result() == path("b")

messages = [b"%d" % number for number in range(500)]
with concurrent.futures.ThreadPoolExecutor(30) as pool:
    assert list(pool.map(client.request, messages)) == messages
for ordered in (True, False):
    assert sorted(client.map(messages, ordered)) == sorted(messages)
large = b"-" + os.urandom(10_000_000)  # no path that `faulty` would wait for
assert client.request(large) == large
assert b"".join(client.stream(large)) == large

for ask in (client.request, lambda message, timeout: client.submit(message, timeout).result()):
    try:
        ask(path("c"), 0.1)
    except gaspar.RequestTimeout:
        found.append("timeout")
assert found[1:] == ["timeout"] * 2
with {"plain": lambda *_: contextlib.nullcontext(), "eventlet": lambda *args: eventlet.Timeout(*args),
      "gevent": lambda *args: gevent.Timeout(*args)}[library](0.1, False):
    if library == "plain":
        touch("d")
    client.request(path("d"))
touch("c")  # their consumers are free again
library != "plain" and touch("d")
assert client.request(b"goes on") == b"goes on"

future = client.submit(path("e"))
child = os.fork()
if not child:
    code = 1
    try:
        assert list(client.map(messages)) == messages
        client.close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
touch("e")
assert future.result() == path("e")

slow = client.submit(path("f"))
touch("f")
client.close()
assert slow.result(0) == path("f")
print("all is well")
"""


@pytest.mark.parametrize("library", ["plain", "eventlet", "gevent"])
def test_client_works_unchanged_in_green_threads(serve: Serve, tmp_path: pathlib.Path, library: str) -> None:
    daemon = serve("faulty", "-p", "4")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREEN, library, daemon.address, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.stderr == ""
    assert (done.stdout, done.returncode) == ("all is well\n", 0)
