"""The framed protocol by the wire: requests and answers, each error by what causes it, and clients without manners."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from conftest import HANDLERS, Daemon, Serve, read_all, wait_until
from framed_client import FramedClient, cancel, ping, request, shown, size_of
from handlers import BAD, DEADLY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gaspar
from gaspar.errors import MAX_DETAIL, Code
from gaspar.frames import MAGIC, FrameKind, encode

MAX = 8 * 2**20  # max_message of the daemon that most tests share
LENGTH = struct.Struct("!I")
LEAVE: dict[str, Callable[[FramedClient], None]] = {
    "closed": lambda client: client.sock.close(),
    "half-closed": lambda client: client.sock.shutdown(socket.SHUT_WR),
    "reset": FramedClient.reset,
}
KINDS_TO_SEND = (FrameKind.REQUEST, FrameKind.CANCEL, FrameKind.PING)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that all tests use that leave it as it was."""
    where = f"unix:{tmp_path_factory.mktemp('s')}/s"
    daemon = Daemon(f"{HANDLERS}:errand", "-p", "2", "-b", where, "--max-message", str(MAX))
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


@pytest.fixture
def go(tmp_path: pathlib.Path) -> pathlib.Path:
    """The file that requests wait for."""
    return tmp_path / "go"


def assert_unharmed(daemon: Daemon) -> None:
    assert "unexpected error" not in daemon.log, daemon.log
    assert f"front (pid {daemon.front}) ended" not in daemon.log, daemon.log


def awaiting(path: pathlib.Path, *notes: pathlib.Path) -> bytes:
    """Lay out an errand that notes something, then waits for a file."""
    return b"\n".join([*(b"note %s" % bytes(each) for each in notes), b"await %s" % bytes(path)])


def noting(path: pathlib.Path) -> bytes:
    return b"note %s" % bytes(path)


def occupy(client: FramedClient, consumers: int, go: pathlib.Path) -> list[int]:
    """Have so many consumers run a request until `go` is there; returns their ids."""
    begun = go.with_name("begun")
    names = [client.ask(awaiting(go, begun)) for _ in range(consumers)]
    wait_until(lambda: size_of(begun) == consumers)
    return names


# ---- the greeting ----


def test_hello_is_the_first_that_comes_and_says_what_the_daemon_allows(serve: Serve) -> None:
    daemon = serve("errand", "-p", "1", "--max-message", "1000", "--max-in-flight", "7")
    with daemon.connect() as sock:
        sock.sendall(b"GSP2" + bytes.fromhex("00000000 0000002a 03 00 0000 00000000 00000000"))
        header = sock.recv(20, socket.MSG_WAITALL)
        size, name, kind, code, meta_size, a, b = struct.unpack("!IIBBHII", header)
        assert (size, name, kind, code, a, b) == (0, 0, 16, 0, 0, 0)
        meta = json.loads(sock.recv(meta_size, socket.MSG_WAITALL))
        assert meta == {"server": f"gaspar/{gaspar.__version__}", "max_message": 1000, "max_in_flight": 7}
        pong = sock.recv(20, socket.MSG_WAITALL)
        assert pong == bytes.fromhex("00000000 0000002a 14 00 0000 00000000 00000000")


def test_hello_comes_before_anything_was_asked(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        hello = client.next()
        assert hello is not None and hello.kind == FrameKind.HELLO


# ---- requests and answers ----


def test_a_reply_has_its_requests_id_and_bytes(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        for name in (1, 2, 2**31, 2**32 - 1, int.from_bytes(MAGIC, "big")):
            for body in (b"", b"x", bytes(range(256))):
                client.send(request(name, body))
                assert client.take(FrameKind.REPLY, name).body == body


def test_a_request_may_come_together_with_the_protocols_name(shared: Daemon, where: str) -> None:
    with FramedClient(shared, MAGIC + request(7, b"hello") + ping(8), address=where) as client:
        answers = client.next(), client.next(), client.next()
        assert sorted(each.kind for each in answers if each) == [FrameKind.HELLO, FrameKind.REPLY, FrameKind.PONG]
        client.pong()
        assert client.is_silent()


def test_the_stream_means_the_same_at_every_split(shared: Daemon, where: str) -> None:
    data = MAGIC + request(1, b"one") + ping(2) + request(3, b"three", meta=b'{"a":1}') + cancel(9)
    with FramedClient(shared, address=where) as other:
        for at in range(1, len(data)):
            with FramedClient(shared, data[:at], address=where) as client:
                other.pong()  # so that the first piece has been read
                client.send(data[at:])
                found = {frame.id: bytes(frame.body) for frame in client.answers(2).values()}
                assert found == {1: b"one", 3: b"three"}


def test_a_stream_that_comes_byte_by_byte_is_answered(shared: Daemon, where: str) -> None:
    with FramedClient(shared, b"", address=where) as client, FramedClient(shared, address=where) as other:
        for byte in MAGIC + request(1, b"hello", meta=b"{}"):
            client.send(bytes([byte]))
            other.pong()
        assert client.take(FrameKind.REPLY, 1).body == b"hello"


def test_many_frames_in_one_write_are_all_answered_once(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        for _ in range(3):
            client.send(b"".join(request(n, b"%d" % n) + ping(n) for n in range(1, 201)))
            pongs: list[int] = []
            replies: dict[int, bytes] = {}
            while len(replies) + len(pongs) < 400:
                frame = client.next()
                assert frame is not None
                if frame.kind == FrameKind.PONG:
                    pongs.append(frame.id)
                elif frame.kind == FrameKind.REPLY:
                    assert replies.setdefault(frame.id, bytes(frame.body)) == b"%d" % frame.id
            assert pongs == list(range(1, 201))
            assert sorted(replies) == pongs
        client.pong()
        assert client.is_silent()


def test_replies_come_as_they_are_ready(shared: Daemon, where: str, go: pathlib.Path) -> None:
    with FramedClient(shared, address=where) as client:
        slow = client.ask(awaiting(go))
        for _ in range(100):
            assert client.call(b"quick") == b"quick"
        go.touch()
        client.take(FrameKind.REPLY, slow)


def test_an_id_may_be_used_again_once_it_is_answered(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        for number in range(100):
            client.send(request(5, b"%d" % number))
            assert client.take(FrameKind.REPLY, 5).body == b"%d" % number


def test_long_bodies_go_both_ways_among_short_ones(shared: Daemon, where: str) -> None:
    bodies = {
        n: bytes([n]) * size for n, size in enumerate([5_000_000, 1, 65536, 65537, 0, 5_000_000, 300_000, 2, MAX], 1)
    }
    data = b"".join(request(n, body) for n, body in bodies.items())
    with FramedClient(shared, address=where) as client:
        found = client.exchange(data, len(bodies))
    assert {n: bytes(frame.body) for n, frame in found.items()} == bodies


def test_the_receipt_says_how_long_a_request_waited_and_ran(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1")
    with FramedClient(daemon) as client:
        client.pong()
        asked = time.monotonic()
        (running,) = occupy(client, 1, go)
        begun = time.monotonic()
        waiting = client.ask(b"quick")
        client.pong()
        queued = time.monotonic()
        gone = client.ask(b"quick")
        client.send(cancel(gone))
        assert client.error(Code.CANCELLED, gone)["ran"] == 0
        let_go = time.monotonic()
        go.touch()
        first, second = client.take(FrameKind.REPLY, running), client.take(FrameKind.REPLY, waiting)
        end = time.monotonic()
    assert let_go - begun <= first.b / 1e6 <= end - asked
    assert first.a / 1e6 <= begun - asked
    assert let_go - queued <= second.a / 1e6 <= end - begun
    assert 1 <= second.b <= (end - let_go) * 1e6
    assert (first.a + first.b) / 1e6 <= end - asked


def test_both_protocols_are_spoken_on_one_port(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        for number in range(20):
            with shared.connect(where) as sock:
                client.send(request(1, b"framed %d" % number))
                sock.sendall(LENGTH.pack(8) + b"one-shot")
                assert read_all(sock) == b"one-shot"
                assert client.take(FrameKind.REPLY, 1).body == b"framed %d" % number


def test_many_connections_are_multiplexed(shared: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(FramedClient(shared)) for _ in range(50)]
        for n, client in enumerate(clients):
            client.send(b"".join(request(m, b"%d %d" % (n, m)) for m in range(1, 51)))
        for n, client in enumerate(clients):
            assert {m: bytes(frame.body) for m, frame in client.answers(50).items()} == {
                m: b"%d %d" % (n, m) for m in range(1, 51)
            }


# ---- the protocol's name ----


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_name_that_is_cut_off_by_the_end_is_reset(shared: Daemon, where: str, size: int) -> None:
    with FramedClient(shared, MAGIC[:size], address=where) as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert not client.end()


@pytest.mark.parametrize("start", [b"X", b"GX", b"GSX", b"GSP1", b"GSP3", b"GSP\0", b"GET / HTTP/1.1\r\n\r\n"])
def test_another_name_is_reset(shared: Daemon, where: str, start: bytes) -> None:
    for at in range(len(start) if len(start) <= 4 else 1):
        with FramedClient(shared, start[:at], address=where) as client:
            shared.ask_nothing()
            client.send(start[at:])
            assert not client.end()


def test_half_a_name_and_then_silence_is_reset_after_the_read_timeout(serve: Serve, tmp_path: pathlib.Path) -> None:
    for bind in ("127.0.0.1:0", f"unix:{tmp_path}/s"):
        daemon = serve("echo", "-p", "1", "--read-timeout", "0.3", bind=bind)
        clients = [FramedClient(daemon, MAGIC[:size]) for size in (1, 2, 3)]
        for client in clients:
            with client:
                assert not client.end()


# ---- time ----


def test_a_connection_may_be_idle_for_longer_than_the_read_timeout(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", "--read-timeout", "0.3")
    with FramedClient(daemon) as client:
        assert client.call(b"before") == b"before"
        for _ in range(2):
            with FramedClient(daemon, MAGIC[:3]) as late:
                assert not late.end()  # a read timeout has passed
        assert client.call(b"after") == b"after"


def test_a_frame_that_begins_and_stalls_is_reset(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", "--read-timeout", "0.3")
    short = request(1, bytes(100), meta=b'{"a":1}')
    long = request(1, bytes(500_000))
    starts = [short[:at] for at in (1, 19, 20, 23, 27, 28, len(short) - 1)]
    starts += [long[:at] for at in (20, 21, 65_000, 70_000, 300_000, len(long) - 1)]
    clients = [FramedClient(daemon, MAGIC + request(9, b"whole") + start) for start in starts]
    for client, start in zip(clients, starts, strict=True):
        with client:
            assert client.take(FrameKind.REPLY, 9).body == b"whole"
            assert not client.end(), len(start)


def test_a_long_body_may_take_several_read_timeouts_if_each_brings_64_kib(serve: Serve) -> None:
    daemon = serve("digest", "-p", "1", "--read-timeout", "0.5")
    data = request(1, bytes(400_000))
    with FramedClient(daemon) as client:
        for start in range(0, len(data), 40_000):
            client.send(data[start : start + 40_000])
            select.select([], [], [], 0.1)
        assert len(client.take(FrameKind.REPLY, 1).body) == 32


def test_a_client_that_never_reads_is_not_read_for_ever_and_then_reset(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2", "--write-timeout", "0.5")
    front = psutil.Process(daemon.front)
    daemon.ask(bytes(1_000_000))
    before = front.memory_info().rss
    data = b"".join(request(n, bytes(100_000)) for n in range(1, 2001))
    with FramedClient(daemon, buffer=4096) as client, FramedClient(daemon) as other:
        sent, most = 0, 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < len(data):
                select.select([], [client.sock], [], 0.02)
                sent += client.push(data[sent : sent + 500_000])
                assert other.call(b"meanwhile") == b"meanwhile"
                most = max(most, front.memory_info().rss)
    assert sent < 40_000_000
    assert most - before < 60 * 2**20
    daemon.wait_for_line(r"took nothing of its answers for 0.5 s, \d+ bytes left")


def test_pings_whose_answers_nobody_reads_fill_no_memory(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", "--write-timeout", "0.5")
    front = psutil.Process(daemon.front)
    before = front.memory_info().rss
    data = ping() * 50_000
    with FramedClient(daemon, buffer=4096) as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for _ in range(10_000):
            select.select([], [client.sock], [], 0.02)
            client.push(data)
    daemon.wait_for_line("took nothing of its answers")
    assert front.memory_info().rss - before < 40 * 2**20


def test_a_client_that_reads_late_gets_all_its_answers(shared: Daemon) -> None:
    bodies = {n: b"%d " % n * 60_000 for n in range(1, 251)}
    data = b"".join(request(n, body) for n, body in bodies.items())
    with FramedClient(shared) as client:
        sent = 0
        while select.select([], [client.sock], [], 0.2)[1]:  # until it is not read any more
            sent += client.push(data[sent : sent + 500_000])
        assert sent < len(data)
        found = client.exchange(data[sent:], len(bodies))
    assert {name: bytes(frame.body) for name, frame in found.items()} == bodies


def test_clients_that_hold_too_much_are_let_go_and_others_get_their_answers(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    """They are let go while results are taken in, theirs among them."""
    (tmp_path / "late.py").write_text(
        "import os, time\ndef handle(message):\n    size, _, path = message.partition(b' ')\n"
        "    while path and not os.path.exists(path):\n        time.sleep(0.002)\n    return bytes(int(size))\n"
    )
    daemon = serve(
        f"{tmp_path}/late.py:handle", "-p", "1", "--depth", "8", "--max-message", "16M", "--max-waiting-bytes", "16M"
    )
    with contextlib.ExitStack() as stack:
        lazy = stack.enter_context(FramedClient(daemon, buffer=4096))
        others = [stack.enter_context(FramedClient(daemon)) for _ in range(5)]
        late = b"1000000 %s" % bytes(go)
        lazy.send(request(1, b"12000000") + b"".join(request(n, late) for n in range(2, 32)))
        assert lazy.sock.recv(1)
        others[0].error(Code.TIMEOUT, others[0].ask(late, milliseconds=1200))  # for so long nothing was taken of it
        for other in others:
            for _ in range(10):
                other.ask(b"3 %s" % bytes(go))
        daemon.ask_nothing()
        go.touch()
        for other in others:
            assert {bytes(frame.body) for frame in other.answers(10).values()} == {bytes(3)}
        daemon.wait_for_line("takes nothing of its reply while")
        assert_unharmed(daemon)


# ---- BAD_FRAME and TOO_BIG ----

DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
MALFORMED = {
    **{f"kind {kind}": encode(kind, 5, b"body") for kind in (0, 4, 15, 16, 17, 21, 255)},  # type: ignore[arg-type]
    "request 0": request(0, b"body"),
    "meta is no JSON": request(5, b"body", meta=b"{"),
    "meta is a list": request(5, b"body", meta=b"[]"),
    "meta is a text": request(5, b"body", meta=b'"text"'),
    "meta is null": request(5, b"body", meta=b"null"),
    "meta is no UTF-8": request(5, b"body", meta=b'{"a":"\xff"}'),
    "meta is a deep list": request(5, b"body", meta=b"[" * 65_535),
    "meta is a deep object": request(5, b"body", meta=DEEP),
    "meta is no JSON, the body long": request(5, bytes(200_000), meta=b"!"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_frame_is_answered_and_ends_the_connection(shared: Daemon, where: str, what: str) -> None:
    with FramedClient(shared, address=where) as client:
        assert client.call(b"before") == b"before"
        client.send(MALFORMED[what] + request(6, b"after"))
        assert client.error(Code.BAD_FRAME, 0)["message"]
        assert client.next() is None
    shared.ask_nothing()


def test_an_id_that_is_still_unanswered_is_malformed(
    shared: Daemon, where: str, go: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    for body in (noting(run), noting(run) + bytes(100_000)):
        with FramedClient(shared, address=where) as client:
            client.send(request(5, awaiting(go)) + request(6, awaiting(go)))
            client.pong()
            client.send(request(5, body))
            assert "5" in client.error(Code.BAD_FRAME, 0)["message"]
            assert client.next() is None
    go.touch()
    with FramedClient(shared, address=where) as client:
        assert client.call(b"next") == b"next"
    assert not run.exists()


def test_what_is_sent_after_a_malformed_frame_resets_nothing(shared: Daemon) -> None:
    with FramedClient(shared, MAGIC + request(1, b"before") + request(0)) as client:
        for _ in range(10):
            client.send(bytes(50_000))
        assert [client.next(), client.next(), client.next()][-1] is None or client.end()


def test_a_malformed_frame_is_told_while_the_client_goes_on_sending(shared: Daemon) -> None:
    with FramedClient(shared, MAGIC + request(0)) as client:
        client.error(Code.BAD_FRAME, 0)
        assert client.next() is None
        for _ in range(9):
            client.send(bytes(100_000))  # it is read, and thrown away
            shared.ask_nothing()
        assert client.end()


def test_client_that_goes_on_for_ever_after_a_malformed_frame_harms_nobody(shared: Daemon) -> None:
    with FramedClient(shared, MAGIC + request(0)) as client:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(1000):
                client.send(bytes(100_000))
        assert FramedClient(shared).call(b"meanwhile") == b"meanwhile"
    assert_unharmed(shared)


def test_frames_before_a_malformed_one_count_and_those_behind_it_do_not(
    shared: Daemon, where: str, tmp_path: pathlib.Path
) -> None:
    behind = tmp_path / "behind"
    with FramedClient(shared, address=where) as client:
        client.send(ping(1) + encode(99, 2) + request(3, noting(behind)))  # type: ignore[arg-type]
        client.take(FrameKind.PONG, 1)
        client.error(Code.BAD_FRAME, 0)
        assert client.next() is None
    shared.ask_nothing()
    assert not behind.exists()


def test_requests_of_a_connection_that_was_malformed_do_not_run(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    daemon, run = serve("errand", "-p", "1"), tmp_path / "run"
    with FramedClient(daemon) as bad, FramedClient(daemon) as other:
        occupy(bad, 1, go)
        for _ in range(5):
            bad.ask(noting(run))
        bad.send(request(0))
        bad.error(Code.BAD_FRAME, 0)
        assert bad.next() is None
        go.touch()
        assert other.call(b"next") == b"next"
    assert not run.exists()


@pytest.mark.parametrize("size", [MAX + 1, 2**30, 2**32 - 1])
def test_body_longer_than_max_message_is_answered_by_its_id_and_ends_the_connection(
    shared: Daemon, where: str, size: int
) -> None:
    with FramedClient(shared, address=where) as client:
        client.send(struct.pack("!IIBBHII", size, 77, FrameKind.REQUEST, 0, 0, 0, 0) + bytes(1000))
        told = client.error(Code.TOO_BIG, 77)
        assert told["message"] == f"{size} bytes announced, {MAX} allowed (--max-message)"
        assert client.next() is None


def test_the_longest_announcements_order_no_memory(shared: Daemon) -> None:
    before = psutil.Process(shared.front).memory_info().vms
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(FramedClient(shared))
            client.send(struct.pack("!IIBBHII", MAX, 1, FrameKind.REQUEST, 0, 0, 0, 0) + bytes(70_000))
            client = stack.enter_context(FramedClient(shared))
            client.send(struct.pack("!IIBBHII", 2**32 - 1, 1, FrameKind.REQUEST, 0, 65535, 0, 0) + bytes(1000))
        shared.ask_nothing()
        assert psutil.Process(shared.front).memory_info().vms - before < 80 * 2**20


def test_other_frames_than_requests_may_be_long_and_are_not_kept(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        client.send(encode(FrameKind.CANCEL, 3, bytes(1_000_000)) + request(4, b"behind it"))
        assert client.take(FrameKind.REPLY, 4).body == b"behind it"


# ---- OVERLOADED ----


def test_more_than_max_in_flight_are_refused_and_the_connection_goes_on(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1", "--max-in-flight", "3")
    with FramedClient(daemon) as client, FramedClient(daemon) as other:
        client.send(b"".join(request(n, awaiting(go)) for n in (1, 2, 3)))
        for size in (0, 1, 65_536, 65_537, 200_000, 5_000_000):
            client.send(request(4, bytes(size)) + ping(size))
            told = client.error(Code.OVERLOADED, 4)
            assert "3 " in told["message"] and "--max-in-flight" in told["message"]
            assert (told["waited"], told["ran"]) == (0, 0)
            client.take(FrameKind.PONG, size)
        theirs = other.ask(b"of another connection")
        go.touch()
        assert sorted(client.answers(3)) == [1, 2, 3]
        assert other.take(FrameKind.REPLY, theirs)
        client.send(b"".join(request(n, b"again") for n in (1, 2, 3)))
        assert sorted(client.answers(3)) == [1, 2, 3]


def test_more_than_may_wait_are_refused_and_the_connection_goes_on(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    daemon, run = serve("errand", "-p", "1", "--depth", "1", "--max-waiting", "3"), tmp_path / "run"
    with FramedClient(daemon) as client:
        begun = occupy(client, 1, go)
        waiting = [client.ask(b"waits") for _ in range(3)]
        client.pong()
        for size in (0, 65_536, 200_000, 5_000_000):
            refused = client.ask(noting(run) + b"x" * size)
            told = client.error(Code.OVERLOADED, refused)
            assert told["message"] == "3 requests wait, 3 allowed (--max-waiting)"
        go.touch()
        assert sorted(client.answers(4)) == begun + waiting
        assert client.call(b"again") == b"again"
    assert not list(tmp_path.glob("run*"))
    assert daemon.log.count("overloaded") == 1


def test_no_more_wait_than_may_when_all_come_at_once(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1", "--depth", "1", "--max-waiting", "3")
    with FramedClient(daemon) as client:
        assert client.call(b"there is a consumer") == b"there is a consumer"
        client.send(b"".join(request(n, awaiting(go)) for n in range(1, 21)))
        refused = [client.error(Code.OVERLOADED) for _ in range(16)]
        assert len(refused) == 16
        go.touch()
        assert all(frame.kind == FrameKind.REPLY for frame in client.answers(4).values())


def test_more_bytes_than_may_wait_are_refused_at_their_header(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1", "--depth", "1", "--max-message", "1M", "--max-waiting-bytes", "2M")
    with FramedClient(daemon) as client, FramedClient(daemon) as other:
        (begun,) = occupy(client, 1, go)
        waiting = [client.ask(bytes(1_000_000)) for _ in range(2)]
        client.pong()
        refused = request(99, bytes(1_000_000))
        other.send(refused[:70_000])
        assert "2000000 bytes" in other.error(Code.OVERLOADED, 99)["message"]
        other.send(refused[70_000:] + ping(1))
        other.take(FrameKind.PONG, 1)
        go.touch()
        assert sorted(client.answers(3)) == [begun, *waiting]
        assert other.call(bytes(1_000_000)) == bytes(1_000_000)


def test_bytes_of_requests_that_were_never_complete_are_not_counted_for_ever(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1", "--max-message", "1M", "--max-waiting-bytes", "1M")
    data = request(1, bytes(900_000))
    for leave in LEAVE.values():
        client = FramedClient(daemon, MAGIC + data[:100_000])
        daemon.ask_nothing()
        with FramedClient(daemon) as other:
            wait_until(lambda: other.exchange(data, 1)[1].kind == FrameKind.ERROR)
            leave(client)
            client.sock.close()
            wait_until(lambda: other.exchange(data, 1)[1].kind == FrameKind.REPLY)


# ---- TIMEOUT ----


def test_deadline_that_passes_while_waiting_is_answered_and_its_request_never_run(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    daemon, run = serve("errand", "-p", "1"), tmp_path / "run"
    with FramedClient(daemon) as client:
        (begun,) = occupy(client, 1, go)
        names = [client.ask(noting(run), milliseconds=milliseconds) for milliseconds in (150, 50, 1, 100)]
        found = [client.take(FrameKind.ERROR) for _ in names]
        assert [frame.id for frame in found] == [names[at] for at in (2, 1, 3, 0)]
        assert all((frame.code, frame.b) == (Code.TIMEOUT, 0) for frame in found)
        for frame, milliseconds in zip(found, (1, 50, 100, 150), strict=True):
            assert frame.a >= milliseconds * 1000
        go.touch()
        client.take(FrameKind.REPLY, begun)
        assert client.call(b"next") == b"next"
    assert not run.exists()


def test_deadline_that_passes_while_running_is_answered_at_once_and_kills_nothing(
    serve: Serve, go: pathlib.Path
) -> None:
    daemon = serve("errand", "-p", "1")
    consumers, begun = daemon.consumers, go.with_name("begun")
    with FramedClient(daemon) as client:
        late = client.ask(awaiting(go, begun), milliseconds=200)
        wait_until(begun.exists)
        told = client.error(Code.TIMEOUT, late)
        assert told["waited"] + told["ran"] >= 200_000
        assert told["ran"] > 0
        assert "stack" not in told
        behind = client.ask(b"behind it")
        client.pong()
        go.touch()
        client.take(FrameKind.REPLY, behind)
        client.pong()
        assert client.is_silent()
    assert daemon.consumers == consumers


@pytest.mark.parametrize("milliseconds", [10_000, 2**31 - 1, 2**31, 2**32 - 1])
def test_deadline_that_is_far_away_changes_nothing(serve: Serve, go: pathlib.Path, milliseconds: int) -> None:
    """It is the only thing that the front waits for."""
    daemon = serve("errand", "-p", "2")
    with FramedClient(daemon) as client:
        slow = client.ask(awaiting(go), milliseconds=milliseconds)
        for _ in range(10):
            client.take(FrameKind.REPLY, client.ask(b"", milliseconds=milliseconds))
        go.touch()
        client.take(FrameKind.REPLY, slow)
    assert_unharmed(daemon)


def test_time_limits_may_be_as_long_as_they_may(serve: Serve, tmp_path: pathlib.Path) -> None:
    """They are the only thing that the front waits for."""
    longest = str(10**8)
    daemon = serve(
        *("errand", "-p", "1", "--read-timeout", longest, "--write-timeout", longest, "--max-wait", longest),
        *("--timeout", longest, "--grace", longest),
    )
    with FramedClient(daemon, MAGIC[:2]), FramedClient(daemon, MAGIC + request(1, b"half")[:20]) as half:
        with FramedClient(daemon) as client:
            occupy(client, 1, tmp_path / "go")
            waiting = client.ask(b"waits")
            client.pong()
            (tmp_path / "go").touch()
            assert waiting in client.answers(2)
        half.send(b"half")
        half.take(FrameKind.REPLY, 1)
    assert_unharmed(daemon)


def test_deadline_begins_with_the_frames_last_byte(shared: Daemon, go: pathlib.Path) -> None:
    data = request(1, bytes(100_000), milliseconds=300)
    with FramedClient(shared, MAGIC + data[:90_000]) as client, FramedClient(shared) as clock:
        clock.error(Code.TIMEOUT, clock.ask(awaiting(go), milliseconds=400))
        client.send(data[90_000:])
        assert len(client.take(FrameKind.REPLY, 1).body) == 100_000
        go.touch()


def test_thousands_of_deadlines_that_are_never_reached_are_forgotten(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        for start in range(1, 5001, 200):
            client.send(b"".join(request(n, b"", milliseconds=3_600_000) for n in range(start, start + 200)))
            assert all(frame.kind == FrameKind.REPLY for frame in client.answers(200).values())


def test_time_limit_of_the_daemon_tells_where_the_handler_was(serve: Serve) -> None:
    daemon = serve("errand", "-p", "1", "--timeout", "0.3")
    with FramedClient(daemon) as client:
        told = client.error(Code.TIMEOUT, client.ask(b"hang in Python"))
        assert "0.3 allowed (--timeout)" in told["message"]
        lines = told["stack"].splitlines()
        assert "handlers.py" in lines[1] and "_hang_in_python" in lines[1]
        assert told["ran"] >= 300_000
        assert client.call(b"next") == b"next"
        assert not [line for line in lines if f"{os.sep}gaspar{os.sep}" in line and "handlers.py" not in line]


def test_max_wait_is_answered(serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path) -> None:
    daemon, run = serve("errand", "-p", "1", "--depth", "1", "--max-wait", "0.2"), tmp_path / "run"
    with FramedClient(daemon) as client:
        (begun,) = occupy(client, 1, go)
        told = client.error(Code.TIMEOUT, client.ask(noting(run)))
        assert "0.2 allowed (--max-wait)" in told["message"]
        assert told["waited"] >= 200_000 and told["ran"] == 0
        go.touch()
        client.take(FrameKind.REPLY, begun)
    assert not run.exists()


# ---- CONSUMER_LOST, HANDLER_ERROR, BAD_REPLY ----


def test_dead_consumer_is_told_with_how_it_ended(serve: Serve) -> None:
    daemon = serve("errand", "-p", "2")
    ends = {
        b"os._exit(0)": "exit status 0",
        b"os._exit(7)": "exit status 7",
        b"kill itself": "SIGKILL",
        b"segfault": "SIGSEGV",
        b"fork and return": "exit status 71",
    }
    assert ends.keys() == DEADLY.keys()
    with FramedClient(daemon) as client:
        for what, end in ends.items():
            told = client.error(Code.CONSUMER_LOST, client.ask(what))
            assert told["exit"] == end
            assert told["ran"] > 0
            assert client.call(b"next") == b"next"
    daemon.remember()


def test_exception_of_the_handler_is_told_with_its_type_message_and_traceback(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        told = client.error(Code.HANDLER_ERROR, client.ask(b"raise"))
        assert told["type"] == "ValueError"
        assert told["message"] == "the handler's own words"
        assert told["traceback"].startswith("Traceback (most recent call last):\n")
        assert told["traceback"].endswith("ValueError: the handler's own words\n")
        assert "handlers.py" in told["traceback"]
        assert told["ran"] > 0
        told = client.error(Code.HANDLER_ERROR, client.ask(b"raise SystemExit"))
        assert told["type"] == "SystemExit"
        told = client.error(Code.HANDLER_ERROR, client.ask(b"raise what cannot be shown"))
        assert told["type"].endswith("_Unspeakable")


def test_exception_with_a_long_story_is_cut_to_what_the_protocol_allows(shared: Daemon) -> None:
    with FramedClient(shared) as client:
        frame = client.take(FrameKind.ERROR, client.ask(b"raise at length"))
        assert frame.code == Code.HANDLER_ERROR
        assert 1000 < len(frame.body) <= MAX_DETAIL
        assert json.loads(bytes(frame.body))["type"] == "ValueError"


@pytest.mark.parametrize("what", sorted(what for what in BAD if what.startswith(b"return")))
def test_bad_reply_is_told(shared: Daemon, what: bytes) -> None:
    words = {
        b"return None": "handler returned None",
        b"return int": "handler returned int 7",
        b"return str": "handler returned str 'text'",
        b"return too much": f"handler returned 73400320 bytes, {MAX} allowed (--max-message)",
    }[what]
    with FramedClient(shared) as client:
        told = client.error(Code.BAD_REPLY, client.ask(what))
        assert told["message"].startswith(words)
        assert told["type"] == "BAD_REPLY"
        assert client.call(b"next") == b"next"


# ---- CANCELLED ----


def test_cancelled_while_waiting_is_answered_and_never_run(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    daemon, run = serve("errand", "-p", "1", "--depth", "1"), tmp_path / "run"
    with FramedClient(daemon) as client:
        (begun,) = occupy(client, 1, go)
        names = [client.ask(noting(run)) for _ in range(5)]
        for name in reversed(names):
            client.send(cancel(name))
            assert client.error(Code.CANCELLED, name)["ran"] == 0
        together = client.ask(noting(run))
        client.send(request(900, noting(run)) + cancel(900) + cancel(together) + request(900, b"again") + cancel(900))
        assert sorted(frame.id for frame in (client.take(FrameKind.ERROR) for _ in range(3))) == sorted(
            [900, 900, together]
        )
        go.touch()
        client.take(FrameKind.REPLY, begun)
        assert client.call(b"next") == b"next"
    assert not run.exists()


def test_cancelled_in_a_consumers_pipe_is_answered_and_never_run(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path
) -> None:
    daemon, run = serve("errand", "-p", "1", "--depth", "8"), tmp_path / "run"
    with FramedClient(daemon) as client:
        for attempt in range(20):
            go = tmp_path / f"go{attempt}"
            client.send(request(1, awaiting(go)) + b"".join(request(n, noting(run)) for n in (2, 3, 4)))
            client.pong()  # they are with the consumer now, for at least as long as its request is no long one
            client.send(cancel(3) + cancel(2) + cancel(4))
            for name in (3, 2, 4):
                assert client.error(Code.CANCELLED, name)["ran"] == 0
            go.touch()
            client.take(FrameKind.REPLY, 1)
    assert not run.exists()


def test_cancelled_while_running_is_answered_at_once_and_ends_unseen(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1")
    consumers, end = daemon.consumers, go.with_name("end")
    with FramedClient(daemon) as client:
        client.send(request(1, awaiting(go, go.with_name("begun")) + b"\n" + noting(end)))
        wait_until(go.with_name("begun").exists)
        client.send(cancel(1))
        assert client.error(Code.CANCELLED, 1)["ran"] > 0
        client.send(cancel(1) + request(1, b"the id is free again") + ping(2))
        client.take(FrameKind.PONG, 2)
        assert client.is_silent()
        go.touch()
        assert client.take(FrameKind.REPLY, 1).body == b"the id is free again"
        assert end.exists()
    assert daemon.consumers == consumers


def test_cancel_of_what_is_not_there_does_nothing(shared: Daemon, where: str) -> None:
    with FramedClient(shared, address=where) as client:
        client.send(cancel(0) + cancel(1) + cancel(2**32 - 1) + request(1, b"x"))
        assert client.take(FrameKind.REPLY, 1).body == b"x"
        client.send(cancel(1) * 1000)
        client.pong()
        assert client.is_silent()


def test_cancel_of_anothers_request_does_nothing(shared: Daemon, go: pathlib.Path) -> None:
    with FramedClient(shared) as client, FramedClient(shared) as other:
        client.send(request(1, awaiting(go)))
        client.pong()
        other.send(cancel(1))
        other.pong()
        go.touch()
        assert client.take(FrameKind.REPLY, 1)


# ---- SHUTTING_DOWN ----


def test_drain_answers_what_was_asked_before_and_refuses_the_rest(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1")
    with FramedClient(daemon) as client, FramedClient(daemon) as idle:
        names = [*occupy(client, 1, go), *(client.ask(b"%d" % n) for n in range(5))]
        idle.pong()
        client.pong()
        daemon.signal(signal.SIGTERM)
        client.take(FrameKind.GOAWAY, 0)
        idle.take(FrameKind.GOAWAY, 0)
        assert idle.next() is None
        for size in (0, 10, 200_000):
            assert client.error(Code.SHUTTING_DOWN, client.ask(bytes(size)))["ran"] == 0
        client.pong()
        go.touch()
        assert sorted(client.answers(len(names))) == names
        assert client.next() is None
    assert daemon.end() == 0
    assert_unharmed(daemon)


@pytest.mark.parametrize("rest", [b"", request(1, b"late"), request(0)], ids=["nothing", "a request", "a bad frame"])
def test_connection_that_becomes_a_framed_one_during_a_drain_is_told_so(
    serve: Serve, go: pathlib.Path, rest: bytes
) -> None:
    daemon = serve("errand", "-p", "1")
    with FramedClient(daemon) as client, FramedClient(daemon, MAGIC[:3]) as late:
        (begun,) = occupy(client, 1, go)
        daemon.ask_nothing()
        daemon.signal(signal.SIGTERM)
        client.take(FrameKind.GOAWAY)
        late.send(MAGIC[3:] + rest)
        late.take(FrameKind.GOAWAY)
        while (frame := late.next()) is not None:
            assert frame.kind == FrameKind.ERROR and frame.code in (Code.SHUTTING_DOWN, Code.BAD_FRAME), shown(frame)
        go.touch()
        client.take(FrameKind.REPLY, begun)
        assert client.next() is None
    assert daemon.end() == 0
    assert_unharmed(daemon)


def test_requests_that_are_on_their_way_when_a_drain_begins_are_answered(serve: Serve) -> None:
    daemon = serve("errand", "-p", "1")
    clients = [FramedClient(daemon) for _ in range(20)]
    for client in clients:
        client.pong()
    os.kill(daemon.front, signal.SIGSTOP)
    for client in clients:
        client.send(request(1, b"hello"))
    fresh = [FramedClient(daemon, MAGIC + request(1, b"hello")) for _ in range(20)]
    daemon.signal(signal.SIGTERM)
    daemon.wait_for_line("draining")
    os.kill(daemon.front, signal.SIGCONT)
    for client in (*clients, *fresh):
        with client:
            frames = list(iter(client.next, None))
            (answer,) = [each for each in frames if each.kind in (FrameKind.REPLY, FrameKind.ERROR)]
            assert answer.body == b"hello" or answer.code == Code.SHUTTING_DOWN
    assert daemon.end() == 0
    assert_unharmed(daemon)


def test_drain_that_meets_a_connection_that_was_refused_ends(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1")
    with FramedClient(daemon) as client, FramedClient(daemon, MAGIC + request(0)) as bad:
        (begun,) = occupy(client, 1, go)
        bad.error(Code.BAD_FRAME)
        daemon.signal(signal.SIGTERM)
        client.take(FrameKind.GOAWAY)
        go.touch()
        client.take(FrameKind.REPLY, begun)
        assert bad.end()
    assert daemon.end() == 0
    assert_unharmed(daemon)


def test_drain_waits_for_a_client_to_take_its_answers(serve: Serve) -> None:
    daemon = serve("sized", "-p", "1")
    with FramedClient(daemon, buffer=4096) as client:
        names = [client.ask(b"5000000") for _ in range(3)]
        client.take(FrameKind.REPLY, names.pop(0))
        assert daemon.ask(b"3") == bytes(3)  # all of it has run
        daemon.signal(signal.SIGTERM)
        daemon.wait_for_line("draining")
        frames = list(iter(client.next, None))
        assert [each.id for each in frames if each.kind == FrameKind.REPLY] == names
    assert daemon.end() == 0


# ---- UNAVAILABLE ----


def test_request_is_refused_when_there_has_been_no_consumer_for_long(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "once.py").write_text(
        "import gaspar, os\nclass Once(gaspar.Consumer):\n    def setup(self):\n"
        "        if os.path.exists(__file__ + '.no'):\n"
        "            raise OSError('no more')\n    def handle(self, message):\n        return message\n"
    )
    daemon = serve(f"{tmp_path}/once.py:Once", "-p", "1")
    (tmp_path / "once.py.no").touch()
    with FramedClient(daemon) as client:
        client.pong()
        os.kill(daemon.consumers[0], signal.SIGKILL)
        told = client.error(Code.UNAVAILABLE, client.ask(b""))
        assert "no consumer" in told["message"] and told["ran"] == 0
        (tmp_path / "once.py.no").unlink()
        assert client.call(b"and again") == b"and again"
    daemon.remember()


# ---- clients that go, and what is killed ----


@pytest.mark.parametrize("how", LEAVE)
def test_client_that_goes_has_what_it_had_waiting_dropped(
    serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path, how: str
) -> None:
    daemon, run = serve("errand", "-p", "1", "--depth", "4"), tmp_path / "run"
    consumers = daemon.consumers
    with FramedClient(daemon) as client, FramedClient(daemon) as other:
        occupy(client, 1, go)
        for _ in range(20):
            client.ask(noting(run))
        client.pong()
        mine = other.ask(b"behind them")
        other.pong()
        connected = daemon.connected()
        LEAVE[how](client)
        wait_until(lambda: daemon.connected() == connected - 1)
        go.touch()
        other.take(FrameKind.REPLY, mine)
        assert other.call(b"next") == b"next"
    assert not run.exists()
    assert daemon.consumers == consumers
    assert_unharmed(daemon)


def test_connection_may_be_cut_at_every_byte(serve: Serve, tmp_path: pathlib.Path, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "2", "-b", f"unix:{tmp_path}/s", "--max-in-flight", "2")
    conversation = b"".join(
        [
            MAGIC,
            ping(1),
            request(1, b"hello", meta=b'{"a":1}'),
            request(2, b"raise", milliseconds=1000),
            cancel(2),
            request(3, b"x" * 20),
            request(4, b"y" * 20),
            request(4, b"repeated, or refused"),
            request(0, b"bad"),
        ]
    )
    with FramedClient(daemon) as other:
        names = occupy(other, 2, go)  # each consumer has a connection of its own for its results
        go.touch()
        assert sorted(other.answers(2)) == names
        front = psutil.Process(daemon.front)
        wait_until(lambda: daemon.connected() == 1)
        before = front.num_fds()
        for at, (how, address) in zip(
            range(len(conversation) + 1), itertools.cycle(itertools.product(LEAVE, daemon.addresses)), strict=False
        ):
            client = FramedClient(daemon, conversation[:at], address=address)
            LEAVE[how](client)
            assert other.call(b"%d" % at) == b"%d" % at
            client.sock.close()
        wait_until(lambda: front.num_fds() == before)
        assert other.call(b"after") == b"after"
    assert_unharmed(daemon)


def test_many_connections_come_and_go_and_leave_no_descriptor(shared: Daemon, go: pathlib.Path) -> None:
    front = psutil.Process(shared.front)
    FramedClient(shared).sock.close()
    before = wait_until(lambda: shared.connected() == 0 and front.num_fds())
    for _ in range(5):
        clients = [FramedClient(shared, address=shared.addresses[n % 2]) for n in range(100)]
        for n, client in enumerate(clients):
            client.send(
                [request(1, b"x"), request(0), request(1, awaiting(go)), request(1, bytes(10_000))[:5000]][n % 4]
            )
        for n, client in enumerate(clients):
            client.reset() if n % 3 else client.sock.close()
    go.touch()
    wait_until(lambda: front.num_fds() <= before)


def test_reload_under_load_loses_nothing_and_sends_nobody_away(serve: Serve, tmp_path: pathlib.Path) -> None:
    module = tmp_path / "versioned.py"
    module.write_text("def handle(message):\n    return b'1' + message\n")
    daemon = serve(f"{module}:handle", "-p", "2")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(FramedClient(daemon)) for _ in range(4)]

        def ask_all() -> set[bytes]:
            for client in clients:
                client.send(b"".join(request(n, b"!") for n in range(1, 51)))
            frames = [frame for client in clients for frame in client.answers(50).values()]
            assert all(frame.kind == FrameKind.REPLY for frame in frames)
            return {bytes(frame.body) for frame in frames}

        assert ask_all() == {b"1!"}
        for number in (2, 3):
            module.write_text(f"def handle(message):\n    return b'{number}' + message\n")
            daemon.signal(signal.SIGHUP)
            while f"{daemon.log.count('reloaded in')}" != f"{number - 1}":
                assert ask_all() <= {b"%d!" % (number - 1), b"%d!" % number}
            daemon.remember()
            assert ask_all() == {b"%d!" % number}
        for client in clients:
            client.pong()
            assert client.is_silent()


def test_front_that_is_killed_resets_its_clients_and_the_next_one_serves(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "2")
    consumers = daemon.consumers
    with FramedClient(daemon) as client, FramedClient(daemon) as idle:
        occupy(client, 1, go)
        idle.pong()
        for _ in range(10):
            client.ask(b"waits")
        os.kill(daemon.front, signal.SIGKILL)
        assert not client.end()
        assert not idle.end()
    with FramedClient(daemon) as client:
        assert client.call(b"the other consumer") == b"the other consumer"
        go.touch()
        for n in range(100):
            assert client.call(b"%d" % n) == b"%d" % n
    assert daemon.consumers == consumers
    daemon.remember()


def test_consumer_that_is_killed_costs_only_what_it_had_begun(serve: Serve, go: pathlib.Path) -> None:
    daemon = serve("errand", "-p", "1", "--depth", "8")
    with FramedClient(daemon) as client:
        (begun,) = occupy(client, 1, go)
        behind = [client.ask(b"%d" % n) for n in range(20)]
        client.pong()
        os.kill(daemon.consumers[0], signal.SIGKILL)
        assert client.error(Code.CONSUMER_LOST, begun)["exit"] == "SIGKILL"
        assert sorted(client.answers(20)) == behind
    daemon.remember()


# ---- any bytes ----


def is_harmless(body: bytes) -> bool:
    return body not in DEADLY and not body.startswith((b"await ", b"note ", b"/"))


u32 = st.integers(0, 2**32 - 1)
frames = st.one_of(
    st.builds(
        lambda kind, name, body, a: encode(kind, name, body, a=a),
        st.sampled_from(KINDS_TO_SEND),
        st.integers(0, 5) | u32,
        st.binary(max_size=50).filter(
            lambda body: body not in DEADLY and not body.startswith((b"await", b"note", b"/"))
        ),
        st.sampled_from([0, 0, 1, 1000]) | u32,
    ),
    st.builds(lambda name, meta: request(name, b"x", meta=meta), st.integers(0, 5), st.binary(max_size=20)),
    st.builds(  # whatever it announces may come or not
        lambda *fields: struct.pack("!IIBBHII", *fields),
        st.integers(0, 100) | st.integers(65_000, 70_000) | u32,
        st.integers(0, 5) | u32,
        st.sampled_from([1, 1, 2, 3]) | st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 50) | st.integers(0, 65535),
        u32,
        u32,
    ),
    st.binary(max_size=60),
    st.integers(60_000, 140_000).map(bytes),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(frames, max_size=8).map(b"".join),
    st.lists(st.integers(0, 400), max_size=6),
    st.sampled_from(sorted(LEAVE)),
    st.integers(0, 1),
)
@example(b"", [], "closed", 0)
@example(request(1, b"x", milliseconds=2**32 - 1), [], "half-closed", 0)
def test_whatever_bytes_come_the_daemon_serves_on(
    shared: Daemon, data: bytes, cuts: list[int], how: str, which: int
) -> None:
    client = FramedClient(shared, address=shared.addresses[which])
    places = [0, *sorted(cuts), len(data)]
    with contextlib.suppress(ConnectionResetError, BrokenPipeError), client:
        for begin, end in itertools.pairwise(places):
            client.send(data[begin:end])
        LEAVE[how](client)
    with FramedClient(shared) as other:
        assert other.call(b"served") == b"served"
    assert_unharmed(shared)
