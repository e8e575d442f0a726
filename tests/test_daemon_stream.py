"""Streamed replies by the wire: parts as they are made, who holds whom up, and every way in which a stream ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import psutil
import pytest
from conftest import HANDLERS, Daemon, Serve, read_all, wait_until
from framed_client import FramedClient, cancel, request, shown, size_of

from gaspar.errors import Code
from gaspar.frames import MAGIC, Frame, FrameKind

MAX = 65536  # max_message of the daemon that most tests share
HELD = 16 * 2**20  # bytes; more than gaspar and the kernel together keep for one client that does not read


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that all tests use that leave it as it was."""
    where = f"unix:{tmp_path_factory.mktemp('s')}/s"
    daemon = Daemon(f"{HANDLERS}:streams", "-p", "2", "-b", where, "--max-message", str(MAX))
    try:
        yield daemon.wait_ready()
        assert daemon.stop() == 0, daemon.log
        assert_unharmed(daemon)
    finally:
        daemon.kill()


@pytest.fixture(params=["tcp", "unix"])
def where(shared: Daemon, request: pytest.FixtureRequest) -> str:
    """Both ways to the shared daemon."""
    return shared.addresses[request.param == "unix"]


def assert_unharmed(daemon: Daemon) -> None:
    assert "unexpected error" not in daemon.log, daemon.log
    assert f"front (pid {daemon.front}) ended" not in daemon.log, daemon.log


def stream(client: FramedClient, message: bytes) -> tuple[list[bytes], Frame]:
    """Ask, and take all that comes of it; returns the parts, and the frame that ends them."""
    return rest_of(client, client.ask(message))


def rest_of(client: FramedClient, name: int) -> tuple[list[bytes], Frame]:
    parts = []
    while True:
        frame = client.next()
        assert frame is not None, f"end-of-file after {len(parts)} parts"
        if frame.kind == FrameKind.PART:
            assert (frame.id, frame.code, frame.a, frame.b, frame.meta) == (name, 0, 0, 0, b"")
            parts.append(bytes(frame.body))
        elif frame.kind != FrameKind.HELLO:
            assert frame.id == name, shown(frame)
            return parts, frame


def one_shot(daemon: Daemon, message: bytes, address: str = "") -> socket.socket:
    sock = daemon.connect(address)
    sock.sendall(struct.pack("!I", len(message)) + message)
    return sock


def read_until_reset(sock: socket.socket) -> bytes:
    """Read what comes before a reset; end-of-file is a failure."""
    got = b""
    try:
        while part := sock.recv(65536):
            got += part
    except ConnectionResetError:
        return got
    raise AssertionError(f"a failure looks like success, after {got[:100]!r}")


def settled(value: Callable[[], int], others: Callable[[], object]) -> int:
    """Return a number that has not changed while much else was done."""
    before = -1
    while before != (now := value()):
        before = now
        for _ in range(200):
            others()
    return now


# ---- parts ----


@pytest.mark.parametrize("size", [0, 1, 1000, 65535, 65536])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100])
def test_parts_come_in_order_and_a_reply_ends_them(shared: Daemon, count: int, size: int) -> None:
    with FramedClient(shared) as client:
        parts, end = stream(client, b"count %d %d" % (count, size))
        assert parts == [bytes([number]) * size for number in range(count)]
        assert (end.kind, end.body) == (FrameKind.REPLY, b"")
        assert end.b > 0


def test_parts_come_as_they_are_made(shared: Daemon, where: str, tmp_path: pathlib.Path) -> None:
    files = [tmp_path / name for name in ("second", "third", "fourth")]
    with FramedClient(shared, address=where) as client:
        name = client.ask(b"gate " + b" ".join(map(bytes, files)))
        assert client.take(FrameKind.PART, name).body == b"first"
        for file in files:
            file.touch()
            assert client.take(FrameKind.PART, name).body == file.name.encode()
        client.take(FrameKind.REPLY, name)


def test_what_a_generator_returns_is_the_last_part(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        for message, last in (
            (b"return", b"the last part"),
            (b"return-buffer", b"the last part"),
            (b"return-nothing", b""),
        ):
            parts, end = stream(client, message)
            assert parts == [b"a part"]
            assert (end.kind, end.body) == (FrameKind.REPLY, last)


def test_a_generator_without_parts_is_an_empty_reply(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        parts, end = stream(client, b"nothing")
        assert (parts, end.kind, end.body) == ([], FrameKind.REPLY, b"")
    with one_shot(shared, b"nothing", where) as sock:
        assert read_all(sock) == b""


@pytest.mark.parametrize("size", [1, 1000, 65535, 65536])
def test_a_buffer_may_be_used_again_for_the_next_part(shared: Daemon, where: str, size: int) -> None:
    expected = [bytes([number]) * size for number in range(30)]
    with FramedClient(shared, address=where) as client:
        parts, end = stream(client, b"reuse 30 %d" % size)
        assert end.kind == FrameKind.REPLY, shown(end)
        assert parts == expected
    with one_shot(shared, b"reuse 30 %d" % size, where) as sock:
        assert read_all(sock) == b"".join(expected)


def test_max_message_holds_for_each_part(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        parts, end = stream(client, b"count 50 %d" % MAX)
        assert sum(map(len, parts)) == 50 * MAX
        assert end.kind == FrameKind.REPLY


def test_streams_and_replies_of_one_connection_mix(shared: Daemon) -> None:
    """As many streams as consumers at a time; each in order, whatever comes between."""
    with FramedClient(shared) as client:
        client.send(b"".join(request(n, b"count %d %d" % (n, n * 100)) for n in range(1, 31)))
        client.send(b"".join(request(n, b"") for n in range(101, 131)))
        parts: dict[int, list[bytes]] = {}
        ended = set()
        while len(ended) < 60:
            frame = client.next()
            assert frame is not None
            if frame.kind == FrameKind.PART:
                assert frame.id not in ended
                parts.setdefault(frame.id, []).append(bytes(frame.body))
            elif frame.kind != FrameKind.HELLO:
                assert frame.kind == FrameKind.REPLY, shown(frame)
                ended.add(frame.id)
    assert parts == {n: [bytes([part]) * n * 100 for part in range(n)] for n in range(1, 31)}


def test_a_long_stream_costs_the_front_no_memory(shared: Daemon) -> None:
    front = psutil.Process(shared.front)
    with FramedClient(shared) as client:
        stream(client, b"count 100 65536")
        before = most = front.memory_info().rss
        name = client.ask(b"count 1600 65536")
        for _ in range(1600):
            client.take(FrameKind.PART, name)
            most = max(most, front.memory_info().rss)
        client.take(FrameKind.REPLY, name)
    assert most - before < HELD


def test_the_end_of_a_short_stream_does_not_wait_for_the_request_behind_it(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon, go = serve("streams", "-p", "1", "--depth", "8"), tmp_path / "go"
    with FramedClient(daemon) as client:
        for _ in range(100):  # so that it is known to take no time
            client.call(b"")
        client.send(request(1, b"nothing") + request(2, b"count 1 1") + request(3, b"await %s" % bytes(go)))
        assert sorted(client.answers(2)) == [1, 2]
        go.touch()
        assert rest_of(client, 3)[1].kind == FrameKind.REPLY


# ---- one-shot ----


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 0), (100, 1000), (200, 65536)])
def test_one_shot_gets_the_parts_as_one_reply(shared: Daemon, where: str, count: int, size: int) -> None:
    with one_shot(shared, b"count %d %d" % (count, size), where) as sock:
        assert read_all(sock) == b"".join(bytes([number]) * size for number in range(count))


def test_one_shot_gets_the_parts_as_they_are_made(shared: Daemon, where: str, tmp_path: pathlib.Path) -> None:
    files = [tmp_path / name for name in ("second", "third")]
    with one_shot(shared, b"gate " + b" ".join(map(bytes, files)), where) as sock:
        assert sock.recv(100) == b"first"
        for file in files:
            file.touch()
            assert sock.recv(100) == file.name.encode()
        assert sock.recv(100) == b""


def test_one_shot_gets_what_is_returned_as_the_end(shared: Daemon, where: str) -> None:
    with one_shot(shared, b"return", where) as sock:
        assert read_all(sock) == b"a partthe last part"


def test_one_shot_may_half_close_and_still_gets_the_parts(shared: Daemon, tmp_path: pathlib.Path) -> None:
    with one_shot(shared, b"gate %s" % bytes(tmp_path / "go")) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"first"
        (tmp_path / "go").touch()
        assert read_all(sock) == b"go"


@pytest.mark.parametrize("message", [b"raise", b"none", b"str", b"much", b"return-str", b"return-much"])
def test_one_shot_that_fails_after_its_first_part_is_reset(shared: Daemon, where: str, message: bytes) -> None:
    with one_shot(shared, message, where) as sock:
        assert b"one two a part".find(read_until_reset(sock)) >= 0


def test_one_shot_that_fails_before_its_first_part_is_reset(shared: Daemon, where: str) -> None:
    with one_shot(shared, b"raise-first x", where) as sock:
        assert read_until_reset(sock) == b""


# ---- errors ----


@pytest.mark.parametrize(
    ("message", "before", "code", "words"),
    [
        (b"raise-first x", [], Code.HANDLER_ERROR, "before the first part"),
        (b"raise", [b"one ", b"two "], Code.HANDLER_ERROR, "the generator's own words"),
        (b"none", [b"one ", b"two "], Code.BAD_REPLY, "handler yielded None"),
        (b"str", [b"one ", b"two "], Code.BAD_REPLY, "handler yielded str 'text'"),
        (b"much", [b"one ", b"two "], Code.BAD_REPLY, f"handler yielded 65537 bytes, {MAX} allowed (--max-message)"),
        (b"return-str", [b"a part"], Code.BAD_REPLY, "handler returned str 'text'"),
        (b"return-much", [b"a part"], Code.BAD_REPLY, f"handler returned 65537 bytes, {MAX} allowed"),
    ],
)
def test_an_error_comes_after_the_parts_that_were_good(
    shared: Daemon, where: str, message: bytes, before: list[bytes], code: Code, words: str
) -> None:
    with FramedClient(shared, address=where) as client:
        name = client.ask(message)
        parts = [bytes(client.take(FrameKind.PART, name).body) for _ in before]
        assert parts == before
        told = client.error(code, name)
        assert told["message"].startswith(words)
        assert told["ran"] > 0
        if code == Code.HANDLER_ERROR:
            assert told["type"] == "ValueError"
            assert "handlers.py" in told["traceback"]
        assert client.call(b"") == b""


def test_time_limit_ends_a_stream(serve: Serve) -> None:
    daemon = serve("streams", "-p", "1", "--timeout", "0.4")
    with FramedClient(daemon) as client:
        name = client.ask(b"hang")
        client.take(FrameKind.PART, name)
        client.take(FrameKind.PART, name)
        told = client.error(Code.TIMEOUT, name)
        assert "_hang_in_python" in told["stack"]
        assert told["ran"] >= 400_000
        assert client.call(b"") == b""
    with one_shot(daemon, b"hang") as sock:
        assert read_until_reset(sock) == b"one two "
    assert daemon.ask(b"") == b""
    daemon.remember()


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize(("message", "end"), [(b"exit", "exit status 7"), (b"kill", "SIGKILL")])
def test_consumer_that_dies_in_a_stream_is_told_after_the_parts_and_nothing_is_repeated(
    serve: Serve, tmp_path: pathlib.Path, retries: int, message: bytes, end: str
) -> None:
    daemon = serve("streams", "-p", "2", "--retries", str(retries))
    go = tmp_path / "go"
    with FramedClient(daemon) as client:
        name = client.ask(b"%s %s" % (message, bytes(go)))
        assert client.take(FrameKind.PART, name).body == b"one "
        assert client.take(FrameKind.PART, name).body == b"two "
        go.touch()
        assert client.error(Code.CONSUMER_LOST, name)["exit"] == end
        assert client.call(b"") == b""
    assert size_of(f"{go}.runs") == 1
    go.unlink()
    with one_shot(daemon, b"%s %s" % (message, bytes(go))) as sock:
        got = sock.recv(4)
        while len(got) < 8:
            got += sock.recv(4)
        assert got == b"one two "
        go.touch()
        assert read_until_reset(sock) == b""
    daemon.remember()


def test_generator_that_forks_and_goes_on_twice_is_ended(serve: Serve) -> None:
    daemon = serve("streams", "-p", "1")
    with FramedClient(daemon) as client:
        parts, end = stream(client, b"fork")
        assert parts in ([b"one ", b"two "], [b"one "], [])  # what it had sent may die with it
        assert (end.kind, end.code) == (FrameKind.ERROR, Code.CONSUMER_LOST), shown(end)
        assert client.call(b"") == b""
    daemon.remember()


def test_consumer_killed_from_outside_in_a_stream_never_looks_like_success(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("streams", "-p", "1")
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with FramedClient(daemon) as client, one_shot(daemon, b"endless %s 10000" % bytes(folder)) as sock:
            assert sock.recv(1)
            os.kill(daemon.consumers[0], signal.SIGKILL)
            read_until_reset(sock)
            name = client.ask(b"endless %s 10000" % bytes(folder))
            client.take(FrameKind.PART, name)
            os.kill(daemon.consumers[0], signal.SIGKILL)
            parts, end = rest_of(client, name)
            assert set(parts) <= {bytes(10000)}
            assert (end.kind, end.code) == (FrameKind.ERROR, Code.CONSUMER_LOST), shown(end)
    daemon.remember()


# ---- who holds whom up ----


@pytest.mark.parametrize("size", [1000, 60_000])
@pytest.mark.parametrize("protocol", ["framed", "one-shot", "one-shot by Unix socket"])
def test_a_client_that_does_not_read_stops_its_generator_and_nobody_else(
    serve: Serve, tmp_path: pathlib.Path, protocol: str, size: int
) -> None:
    daemon = serve("streams", "-p", "2", "-b", f"unix:{tmp_path}/s")
    total = 40_000_000 // size
    message = b"endless %s %d %d" % (bytes(tmp_path), size, total)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(FramedClient(daemon))
        slow: FramedClient | socket.socket
        if protocol == "framed":
            slow = stack.enter_context(FramedClient(daemon, buffer=16_384))
            name = slow.ask(message)
        else:
            slow = stack.enter_context(one_shot(daemon, message, daemon.addresses["Unix" in protocol]))
        wait_until(lambda: size_of(tmp_path / "yields") > 8)
        made = settled(lambda: size_of(tmp_path / "yields"), lambda: other.call(b""))
        assert made * size < HELD
        assert daemon.ask(b"") == b""
        if isinstance(slow, FramedClient):
            parts, end = rest_of(slow, name)
            assert end.kind == FrameKind.REPLY
            assert b"".join(parts) == bytes(total * size)
        else:
            assert read_all(slow) == bytes(total * size)
    assert size_of(tmp_path / "yields") == total
    assert not (tmp_path / "closed").exists()


def test_a_slow_reader_gets_all_of_it(shared: Daemon) -> None:
    with FramedClient(shared, buffer=4096) as client, FramedClient(shared) as other:
        name = client.ask(b"count 60 60000")
        for number in range(60):
            assert client.take(FrameKind.PART, name).body == bytes([number]) * 60_000
            for _ in range(10):
                assert other.call(b"") == b""
        client.take(FrameKind.REPLY, name)


def test_a_client_that_never_reads_its_stream_is_reset_and_its_generator_closed(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("streams", "-p", "1", "--write-timeout", "0.4")
    with FramedClient(daemon, buffer=4096) as client:
        client.ask(b"endless %s 60000" % bytes(tmp_path))
        wait_until(lambda: size_of(tmp_path / "ended") == 1)
        assert not client.end()
    with one_shot(daemon, b"endless %s 60000" % bytes(tmp_path)) as sock:
        wait_until(lambda: size_of(tmp_path / "ended") == 2)
        read_until_reset(sock)
    assert size_of(tmp_path / "closed") == 2
    assert daemon.ask(b"") == b""


# ---- who goes ----

GO: dict[str, Callable[[FramedClient], None]] = {
    "closes": lambda client: client.sock.close(),
    "half-closes": lambda client: client.sock.shutdown(socket.SHUT_WR),
    "resets": FramedClient.reset,
    "is malformed": lambda client: client.send(request(0)),
}


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never reads"])
@pytest.mark.parametrize("how", GO)
def test_generator_is_closed_when_its_client_goes(
    shared: Daemon, where: str, tmp_path: pathlib.Path, how: str, reads: bool
) -> None:
    consumers = shared.consumers
    with FramedClient(shared, address=where) as client, FramedClient(shared) as other:
        client.ask(b"endless %s 60000" % bytes(tmp_path))
        client.take(FrameKind.PART)
        for _ in range(100 if reads else 0):
            client.take(FrameKind.PART)
        if not reads:
            settled(lambda: size_of(tmp_path / "yields"), lambda: other.call(b""))
        GO[how](client)
        wait_until((tmp_path / "ended").exists)
    assert size_of(tmp_path / "closed") == 1
    assert shared.ask(b"") == b""
    assert shared.consumers == consumers
    assert_unharmed(shared)


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never reads"])
def test_generator_is_closed_when_its_one_shot_client_goes(
    shared: Daemon, where: str, tmp_path: pathlib.Path, reads: bool
) -> None:
    with one_shot(shared, b"endless %s 60000" % bytes(tmp_path), where) as sock, FramedClient(shared) as other:
        assert sock.recv(1)
        if not reads:
            settled(lambda: size_of(tmp_path / "yields"), lambda: other.call(b""))
    wait_until((tmp_path / "ended").exists)
    assert size_of(tmp_path / "closed") == 1


def test_cancelled_stream_is_answered_and_its_generator_closed(shared: Daemon, tmp_path: pathlib.Path) -> None:
    with FramedClient(shared) as client:
        name = client.ask(b"endless %s 60000" % bytes(tmp_path))
        for _ in range(20):
            client.take(FrameKind.PART, name)
        client.send(cancel(name) + request(name, b"count 1 5"))
        parts, end = rest_of(client, name)
        assert set(parts) <= {bytes(60_000)}
        assert (end.kind, end.code) == (FrameKind.ERROR, Code.CANCELLED)
        assert end.b > 0
        # the id was free again at once: nothing of the first stream comes any more
        assert rest_of(client, name)[0] == [bytes(5)]
        wait_until((tmp_path / "ended").exists)
        assert size_of(tmp_path / "closed") == 1
        client.pong()
        assert client.is_silent()


def test_stream_that_is_cancelled_before_its_first_part_is_closed(shared: Daemon, tmp_path: pathlib.Path) -> None:
    with FramedClient(shared) as client, FramedClient(shared) as other:
        for number in range(50):
            folder = tmp_path / str(number)
            folder.mkdir()
            client.send(request(1, b"endless %s 100" % bytes(folder)))
            other.pong()
            client.send(cancel(1))
            _, end = rest_of(client, 1)
            assert (end.kind, end.code) == (FrameKind.ERROR, Code.CANCELLED), shown(end)
            if end.b:
                wait_until((folder / "ended").exists)


def test_stream_whose_deadline_passes_is_answered_and_its_generator_closed(
    shared: Daemon, tmp_path: pathlib.Path
) -> None:
    with FramedClient(shared) as client:
        name = client.ask(b"endless %s 60000" % bytes(tmp_path), milliseconds=200)
        parts, end = rest_of(client, name)
        assert parts
        assert (end.kind, end.code) == (FrameKind.ERROR, Code.TIMEOUT)
        assert end.a + end.b >= 200_000
        wait_until((tmp_path / "ended").exists)
        assert size_of(tmp_path / "closed") == 1


def test_generator_that_will_not_be_closed_is_left_behind(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("streams", "-p", "1")
    consumers = daemon.consumers
    with FramedClient(daemon) as client:
        name = client.ask(b"ignore %s" % bytes(tmp_path))
        client.take(FrameKind.PART, name)
        client.send(cancel(name))
        assert rest_of(client, name)[1].code == Code.CANCELLED
        assert client.call(b"") == b""
        assert (tmp_path / "closed").exists()
        client.pong()
        assert client.is_silent()
    with one_shot(daemon, b"ignore %s" % bytes(tmp_path)) as sock:
        assert sock.recv(1)
    assert daemon.ask(b"") == b""
    assert daemon.consumers == consumers
    daemon.wait_for_line("handler raised RuntimeError")


# ---- what goes on, and what is killed ----


def test_front_that_is_killed_closes_the_streams_and_the_next_one_serves(serve: Serve, tmp_path: pathlib.Path) -> None:
    """One of them waits for its client to read, one for a file, as its front dies."""
    daemon = serve("streams", "-p", "2")
    consumers, go = daemon.consumers, tmp_path / "go"
    with FramedClient(daemon) as stuck, FramedClient(daemon) as client:
        stuck.ask(b"endless %s 60000" % bytes(tmp_path))
        wait_until(lambda: size_of(tmp_path / "yields") > 8)
        waiting = client.ask(b"gate %s" % bytes(go))
        client.take(FrameKind.PART, waiting)
        os.kill(daemon.front, signal.SIGKILL)
        assert not stuck.end()
        assert not client.end()
    wait_until((tmp_path / "ended").exists)
    assert size_of(tmp_path / "closed") == 1
    go.touch()
    with FramedClient(daemon) as client:
        for number in range(1, 51):
            assert len(stream(client, b"count %d 10" % number)[0]) == number
    assert daemon.consumers == consumers
    daemon.remember()


def test_fronts_that_are_killed_again_and_again_leave_no_consumer_hanging(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("streams", "-p", "2")
    consumers = daemon.consumers
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        clients = [FramedClient(daemon) for _ in range(4)]
        for client in clients:
            client.ask(b"endless %s 60000" % bytes(folder))
            client.ask(b"count 1000 1000")
        wait_until(lambda folder=folder: size_of(folder / "yields") > 8)  # type: ignore[misc]
        front = _front_of(daemon)
        os.kill(front, signal.SIGKILL)
        for client in clients:
            assert not client.end()
        wait_until(lambda front=front: _front_of(daemon) not in (0, front))  # type: ignore[misc]
    with FramedClient(daemon) as first, FramedClient(daemon) as second:
        go = tmp_path / "go"
        names = [client.ask(b"gate %s" % bytes(go)) for client in (first, second)]
        for client in (first, second):
            client.take(FrameKind.PART)
        go.touch()
        for client, name in zip((first, second), names, strict=True):
            assert rest_of(client, name)[0] == [b"go"]
    assert daemon.consumers == consumers
    daemon.remember()


def _front_of(daemon: Daemon) -> int:
    fronts = [each for each in psutil.Process(daemon.process.pid).children() if each.name() == "gaspar:front"]
    return fronts[0].pid if fronts else 0


def test_reload_lets_a_stream_go_on_to_its_end(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon, go = serve("streams", "-p", "1"), tmp_path / "go"
    with FramedClient(daemon) as client, one_shot(daemon, b"count 1 1") as sock:
        assert read_all(sock) == bytes(1)
        name = client.ask(b"gate %s" % bytes(go))
        client.take(FrameKind.PART, name)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: daemon.ask(b"") == b"")  # by the new consumer
        go.touch()
        assert rest_of(client, name)[0] == [b"go"]
    daemon.wait_for_line("reloaded in")
    daemon.remember()


def test_drain_lets_a_stream_go_on_to_its_end(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon, go = serve("streams", "-p", "2"), tmp_path / "go"
    with FramedClient(daemon) as client, one_shot(daemon, b"gate %s" % bytes(go)) as sock:
        assert sock.recv(5) == b"first"
        name = client.ask(b"gate %s" % bytes(go))
        client.take(FrameKind.PART, name)
        daemon.signal(signal.SIGTERM)
        client.take(FrameKind.GOAWAY)
        go.touch()
        assert rest_of(client, name)[0] == [b"go"]
        assert client.next() is None
        assert read_all(sock) == b"go"
    assert daemon.end() == 0


def test_endless_stream_ends_with_the_grace(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("streams", "-p", "2", "--grace", "0.3")
    with FramedClient(daemon) as client, one_shot(daemon, b"endless %s 1000" % bytes(tmp_path)) as sock:
        client.ask(b"endless %s 1000" % bytes(tmp_path))
        client.take(FrameKind.PART)
        assert sock.recv(1)
        daemon.signal(signal.SIGTERM)
        going = {client.sock, sock}
        while going:
            for each in select.select(going, [], [], 60)[0]:
                try:
                    assert each.recv(1 << 20), "a failure looks like success"
                except ConnectionResetError:
                    going.remove(each)
    assert daemon.end() == 0


def test_a_stream_may_come_right_behind_the_protocols_name(shared: Daemon, where: str) -> None:
    with FramedClient(shared, MAGIC + request(1, b"count 3 4"), address=where) as client:
        assert rest_of(client, 1)[0] == [bytes([number]) * 4 for number in range(3)]
