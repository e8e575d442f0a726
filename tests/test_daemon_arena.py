"""Long payloads in shared memory, in the real daemon: contents never mix, whoever gives up or dies."""

from __future__ import annotations

import concurrent.futures
import mmap
import os
import pathlib
import random
import signal
import struct

import pytest
from conftest import Daemon, Serve, read_all, wait_until
from framed_client import FramedClient, cancel, size_of

import gaspar
from gaspar.errors import Code

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="there is no arena on this system")
LONG = 1_500_000  # bytes


def pattern(seed: int, size: int = LONG) -> bytes:
    """Return bytes that no other seed gives, at no place."""
    return random.Random(seed).randbytes(size)


def held(path: pathlib.Path | str, data: bytes, more: int = 0) -> bytes:
    """Lay out a request for `handlers.long_echo`."""
    return b"%s\n%d\n%s" % (str(path).encode(), more, data)


def shared(pid: int) -> int:
    """Return how many bytes of the arena a process has touched."""
    with open(f"/proc/{pid}/smaps") as lines:
        maps: list[list[int]] = []
        name = ""
        for line in lines:
            if "-" in line.split()[0]:
                name = line
            elif "/dev/zero" in name and line.startswith(("Size:", "Rss:")):
                if line.startswith("Size:"):
                    maps.append([])
                maps[-1].append(int(line.split()[1]) * 1024)
    return max(maps)[1]  # the largest one


def begun(path: pathlib.Path) -> None:
    """Wait until a held request's handler runs."""
    wait_until(lambda: size_of(f"{path}.begun"))


@pytest.mark.parametrize("options", [(), ("--retries", "1"), ("--max-message", "4M", "--max-waiting-bytes", "4M")])
def test_long_messages_of_many_clients_never_mix(serve: Serve, options: tuple[str, ...]) -> None:
    """With the last options many find no block, and some are refused."""
    daemon = serve("long_echo", "-p", "3", *options)
    refused = 0

    def talk(seed: int) -> int:
        rng, refused = random.Random(seed), 0
        with gaspar.Client(daemon.address) as client:
            for turn in range(12):
                data = pattern(100 * seed + turn, rng.choice((60_000, 70_000, 1_000_000, 3_000_000)))
                more = rng.choice((0, 1, 1000, 300_000))
                try:
                    if turn % 2:
                        reply: bytes = client.request(held("", data, more), 60)
                    else:
                        reply = daemon.ask(held("", data, more))
                except (ConnectionError, gaspar.Overloaded):
                    refused += 1
                else:
                    assert reply == data + b"+" * more
        return refused

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        refused = sum(pool.map(talk, range(6)))
    assert refused < (40 if len(options) == 4 else 1)
    assert shared(daemon.front) > 0


def test_unix_clients_and_all_kinds_of_answers_to_long_requests(serve: Serve, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    daemon = serve("long_echo", "-p", "1", bind=f"unix:{path}")
    data = pattern(1)
    assert daemon.ask(held("", data)) == data
    assert daemon.ask(held("", data, LONG)) == data + b"+" * LONG  # too long for its request's place
    with FramedClient(daemon) as client:
        assert "ValueError" in client.error(Code.HANDLER_ERROR, client.ask(b"no such words" * 20_000))["type"]
        assert client.call(held("", data)) == data
        assert client.call(held("", b"short")) == b"short"


def test_long_requests_of_streams_and_with_short_replies(serve: Serve) -> None:
    daemon = serve("streams", "-p", "1")
    with gaspar.Client(daemon.address) as client:
        message = b"count 3 200000" + b" x" * LONG
        assert list(client.stream(message)) == [bytes([each]) * 200_000 for each in range(3)]
        assert client.request(b"return-nothing" + b" x" * LONG) == b"a part"


@pytest.mark.parametrize("how", ["cancel", "deadline", "leave"])
def test_late_reply_of_a_job_that_was_given_up_harms_no_other(serve: Serve, tmp_path: pathlib.Path, how: str) -> None:
    daemon = serve("long_echo", "-p", "1", "--depth", "4")
    go = tmp_path / "go"
    with FramedClient(daemon) as giving_up, FramedClient(daemon) as client:
        name = giving_up.ask(held(go, pattern(0)), milliseconds=300 if how == "deadline" else 0)
        if how != "deadline":
            begun(go)
        if how == "cancel":
            giving_up.send(cancel(name))
            giving_up.error(Code.CANCELLED, name)
        elif how == "deadline":
            giving_up.error(Code.TIMEOUT, name)
        else:
            giving_up.reset()
        asked = {client.ask(held("", pattern(seed))): pattern(seed) for seed in range(1, 9)}
        client.pong()  # all of it has come, and waits in the arena
        go.touch()
        answers = client.answers(8)
    assert {name: bytes(frame.body) for name, frame in answers.items()} == asked


def test_request_that_is_run_again_is_as_it_was(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("long_echo", "-p", "1", "--retries", "1")
    go = tmp_path / "go"
    with FramedClient(daemon) as client:
        name = client.ask(held(go, pattern(0)))
        begun(go)
        os.kill(daemon.consumers[0], signal.SIGKILL)
        wait_until(lambda: size_of(f"{go}.begun") == 2)
        go.touch()
        assert client.take(name=name).body == pattern(0)


def test_consumers_killed_under_long_messages_lose_their_own_alone(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")
    lost = 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for turn in range(6):
            asked = [pool.submit(daemon.ask, pattern(10 * turn + each, 8_000_000)) for each in range(8)]
            concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
            pids = wait_until(lambda: daemon.consumers)
            os.kill(pids[0], signal.SIGKILL)
            for each, answer in enumerate(asked):
                try:
                    assert answer.result() == pattern(10 * turn + each, 8_000_000)
                except ConnectionResetError:
                    lost += 1
            daemon.remember()
    assert lost <= 6 * 3


def test_successor_of_a_killed_front_leaves_alone_what_a_consumer_still_has(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("long_echo", "-p", "2", "--depth", "4")
    go, second = tmp_path / "go", tmp_path / "second"
    socks = []
    for path in (go, second, second, second):  # two run, two are behind them
        data = held(path, pattern(0))
        socks.append(daemon.connect())
        socks[-1].sendall(struct.pack("!I", len(data)) + data)
    begun(go)
    begun(second)
    daemon.ask_nothing()
    os.kill(daemon.front, signal.SIGKILL)
    for sock in socks:
        with sock, pytest.raises(ConnectionResetError):
            read_all(sock)
    second.touch()
    for seed in range(20):
        assert daemon.ask(held("", pattern(seed))) == pattern(seed)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(daemon.ask, held("", pattern(seed))) for seed in range(8)]
        go.touch()
        assert [each.result() for each in asked] == [pattern(seed) for seed in range(8)]
    daemon.front = front_of(daemon)

    def uses_the_arena() -> int:
        assert daemon.ask(held("", pattern(3))) == pattern(3)
        return shared(daemon.front) >= LONG

    wait_until(uses_the_arena)
    daemon.remember()


def front_of(daemon: Daemon) -> int:
    """Return the pid of the front that there is now."""
    import psutil

    children = psutil.Process(daemon.process.pid).children()
    (front,) = [each.pid for each in children if each.pid != daemon.forker and each.pid != daemon.front]
    return front


def test_memory_goes_back_when_long_messages_are_over(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = pool.map(daemon.ask, [pattern(each, 30_000_000) for each in range(8)])
        assert [len(each) for each in replies] == [30_000_000] * 8
    pids = [daemon.front, *daemon.consumers]
    assert any(shared(pid) for pid in pids)
    wait_until(lambda: all(shared(pid) <= mmap.PAGESIZE for pid in pids))


def test_client_that_takes_its_long_reply_late_gets_it_whole(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")
    data = pattern(1, 20_000_000)
    with daemon.connect() as late:
        late.sendall(struct.pack("!I", len(data)) + data)
        for seed in range(2, 12):
            assert daemon.ask(pattern(seed)) == pattern(seed)
        assert read_all(late) == data
