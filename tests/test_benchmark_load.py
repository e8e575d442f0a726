"""The benchmarks' load generator: it has to see each mistake of a server, or its figures are worth nothing."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
COMPILER = shutil.which("cc")
HEADER = struct.Struct("!IIBBHII")
REPLY, ERROR = 17, 18
SIZE = 64  # bytes of a payload
HELLO = HEADER.pack(0, 0, 16, 0, 2, 0, 0) + b"{}"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled load generator."""
    path = tmp_path_factory.mktemp("load") / "load"
    flags = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([str(COMPILER), *flags, "-o", str(path), *BENCHMARKS.glob("*.c")], check=True)
    return str(path)


Serve = Callable[[socket.socket], None]
Start = Callable[[Serve], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Serve each client with a function, in a thread of its own; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def run(serve: Serve, client: socket.socket) -> None:
        with client, suppress(OSError):
            serve(client)

    def accept(serve: Serve) -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                client = listener.accept()[0]
                threads.append(threading.Thread(target=run, args=[serve, client]))
                threads[-1].start()

    def begin(serve: Serve) -> int:
        threads.append(threading.Thread(target=accept, args=[serve]))
        threads[0].start()
        return int(listener.getsockname()[1])

    yield begin
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(30)


def load(program: str, protocol: str, port: int, connections: int = 2, depth: int = 1) -> dict[str, Any]:
    """Load for a moment; returns what was printed."""
    numbers = (port, min(2, connections), connections, depth, SIZE, 0, 0.3)
    command = [program, protocol, *map(str, numbers), "ab"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def framed(answer: Callable[[int, bytes], bytes]) -> Serve:
    """Serve the framed protocol: `answer` makes the bytes for a request's id and payload."""

    def serve(client: socket.socket) -> None:
        assert read(client, 4) == b"GSP2"
        client.sendall(HELLO)
        while True:
            size, name, kind, code, meta_size, a, b = HEADER.unpack(read(client, HEADER.size))
            assert (size, kind, code, meta_size, a, b) == (SIZE, 1, 0, 0, 0, 0)
            client.sendall(answer(name, read(client, size)))

    return serve


def reply(name: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), name, REPLY, 0, 0, 5, 6) + payload


def test_framed_replies_that_are_right_are_counted_by_kind(program: str, start: Start) -> None:
    found = load(program, "framed", start(framed(reply)), connections=3, depth=5)
    assert found["failures"] == {}
    assert set(found["kinds"]) == {"a", "b"}
    counted = sum(kind["count"] for kind in found["kinds"].values())
    assert 0 < counted <= found["issued"]


def test_framed_replies_may_come_in_any_order_and_in_pieces(program: str, start: Start) -> None:
    def serve(client: socket.socket) -> None:
        read(client, 4)
        client.sendall(HELLO[:7])
        client.sendall(HELLO[7:])
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = HEADER.size + SIZE
        data = b""
        while part := client.recv(65536):
            data += part
            whole = [data[at : at + length] for at in range(0, len(data) - length + 1, length)]
            data = data[len(whole) * length :]
            replies = b"".join(reply(HEADER.unpack_from(each)[1], each[HEADER.size :]) for each in reversed(whole))
            for at in range(0, len(replies), 13):
                client.sendall(replies[at : at + 13])

    found = load(program, "framed", start(serve), connections=1, depth=3)
    assert found["failures"] == {}
    assert found["kinds"]["a"]["count"] > 0


WRONG: dict[str, Callable[[int, bytes], bytes]] = {
    "another byte": lambda name, payload: reply(name, payload[:-1] + bytes([payload[-1] ^ 1])),
    "another request's number": lambda name, payload: reply(name, payload[:1] + b"\xff" * 8 + payload[9:]),
    "one byte less": lambda name, payload: reply(name, payload[:-1]),
    "one byte more": lambda name, payload: reply(name, payload + b"x"),
    "an id that nobody asked with": lambda name, payload: reply(name + 1000, payload),
    "id 0": lambda _name, payload: reply(0, payload),
    "twice": lambda name, payload: 2 * reply(name, payload),
    "a second greeting": lambda name, payload: HELLO + reply(name, payload),
    "a kind that no server sends": lambda name, payload: HEADER.pack(0, name, 1, 0, 0, 0, 0),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_framed_reply_that_is_wrong_is_seen(program: str, start: Start, answer: Callable[[int, bytes], bytes]) -> None:
    found = load(program, "framed", start(framed(answer)))
    assert set(found["failures"]) == {"wrong"}


def test_framed_errors_are_counted_by_code(program: str, start: Start) -> None:
    found = load(program, "framed", start(framed(lambda name, _: HEADER.pack(2, name, ERROR, 3, 0, 0, 0) + b"{}")))
    assert found["failures"] == {"error 3": found["issued"]}


def test_framed_connection_that_ends_is_a_reset_of_what_it_had(program: str, start: Start) -> None:
    def serve(client: socket.socket) -> None:
        read(client, 4 + 3 * (HEADER.size + SIZE))

    found = load(program, "framed", start(serve), connections=2, depth=3)
    assert found["failures"] == {"reset": 6}


@pytest.mark.parametrize("protocol", ["oneshot", "framed", "http"])
def test_nobody_listening_is_refused(program: str, protocol: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = load(program, protocol, taken.getsockname()[1])
    assert found["failures"] == {"refused": found["issued"]}


def oneshot(answer: Callable[[bytes], bytes]) -> Serve:
    def serve(client: socket.socket) -> None:
        (size,) = struct.unpack("!I", read(client, 4))
        client.sendall(answer(read(client, size)))

    return serve


def test_oneshot_replies_that_are_right_are_counted(program: str, start: Start) -> None:
    found = load(program, "oneshot", start(oneshot(lambda payload: payload)))
    assert found["failures"] == {} and found["kinds"]["a"]["count"] > 0


@pytest.mark.parametrize("cut", [0, 1, SIZE])
def test_oneshot_reply_that_is_cut_is_wrong(program: str, start: Start, cut: int) -> None:
    found = load(program, "oneshot", start(oneshot(lambda payload: payload[: SIZE - cut])))
    assert set(found["failures"]) == (set() if cut == 0 else {"wrong"})


def http(status: str, keeps: bool) -> Serve:
    def serve(client: socket.socket) -> None:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += read(client, 1)
            payload = read(client, SIZE)
            lines = f"HTTP/1.1 {status}\r\ncontent-length: {SIZE}\r\n" + ("" if keeps else "Connection: close\r\n")
            client.sendall(lines.encode() + b"\r\n" + payload)
            if not keeps:
                break

    return serve


@pytest.mark.parametrize("keeps", [True, False])
def test_http_replies_are_counted_whether_the_connection_is_kept_or_not(
    program: str, start: Start, keeps: bool
) -> None:
    found = load(program, "http", start(http("200 OK", keeps)))
    assert found["failures"] == {} and found["kinds"]["a"]["count"] > 0


def test_http_status_that_is_not_200_is_an_error(program: str, start: Start) -> None:
    found = load(program, "http", start(http("429 Too Many Requests", True)))
    assert set(found["failures"]) == {"error 429"}
