"""gaspar.client against real servers that behave and misbehave."""

from __future__ import annotations

import concurrent.futures
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from conftest import Serve

from gaspar.client import pack, request
from gaspar.errors import AddressError, ConnectionLost, GasparError, RequestTimeout, TooBig


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
