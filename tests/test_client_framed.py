"""gaspar.Client against daemons that do what a script says; test_client.py has it against the real one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from fake_daemon import FakeDaemon, Gone, Peer, Script

from gaspar import (
    BadFrame,
    Cancelled,
    Client,
    ConnectionLost,
    GasparError,
    HandlerError,
    Reply,
    RequestError,
    RequestTimeout,
    ShuttingDown,
    TooBig,
)
from gaspar.answer import Receipt
from gaspar.errors import Code
from gaspar.frames import MAX_U32, Frame, FrameKind, encode

Fake = Callable[..., FakeDaemon]
NOT_YET = 30  # seconds; what is waited for comes sooner


@pytest.fixture
def fake() -> Iterator[Fake]:
    """Start fake daemons; at the end their scripts must have ended well, and no thread or descriptor be left."""
    gc.collect()
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    daemons: list[FakeDaemon] = []

    def start(*scripts: Script, path: str = "") -> FakeDaemon:
        daemons.append(FakeDaemon(*scripts, path=path))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= threads)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def in_thread(function: Callable[[], object]) -> concurrent.futures.Future[object]:
    """Run a function in a thread of its own."""
    future: concurrent.futures.Future[object] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future


# ---- one request ----


def test_reply_is_bytes_with_a_receipt(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.reply(peer.request(), b"reply", waited=1500, ran=250_000)

    with Client(fake(script).address) as client:
        reply = client.request(b"message")
    assert reply == b"reply"
    assert isinstance(reply, Reply)
    assert reply.receipt == Receipt(0.0015, 0.25)


def test_requests_of_one_client_share_a_connection(fake: Fake) -> None:
    daemon = fake(Peer.echo)
    with Client(daemon.address, timeout=NOT_YET) as client:
        for message in (b"", b"one", bytearray(b"two"), memoryview(b"three")[1:], bytes(70_000), bytes(5_000_000)):
            assert client.request(message) == bytes(message)
    assert daemon.connections == 1


def test_no_connection_is_opened_before_it_is_needed(fake: Fake) -> None:
    daemon = fake(Peer.echo)
    with Client(daemon.address):
        pass
    assert daemon.connections == 0


@pytest.mark.parametrize("step", [1, 7, 23, 25])
def test_answers_that_come_in_pieces_are_put_together(fake: Fake, step: int) -> None:
    def script(peer: Peer) -> None:
        peer.step = step
        peer.greet()
        for body in (b"", b"short", bytes(500)):
            peer.reply(peer.request(), body)
        request = peer.request()
        for part in (b"in ", b"three ", b""):
            peer.part(request, part)
        peer.reply(request, b"parts")
        peer.error(peer.request(), Code.HANDLER_ERROR, "no")

    with Client(fake(script).address) as client:
        assert [client.request(b"x") for _ in range(4)] == [b"", b"short", bytes(500), b"in three parts"]
        with pytest.raises(HandlerError, match="HANDLER_ERROR: no"):
            client.request(b"x")


def test_answers_find_their_callers_in_whatever_order_they_come(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        requests = [peer.request() for _ in range(50)]
        random.Random(1).shuffle(requests)
        for request in requests:
            peer.reply(request, bytes(request.body))

    with Client(fake(script).address) as client, concurrent.futures.ThreadPoolExecutor(50) as pool:
        messages = [b"%d" % number for number in range(50)]
        assert list(pool.map(client.request, messages)) == messages


@pytest.mark.parametrize("method", ["request", "submit", "stream"])
def test_message_that_is_not_bytes_is_explained(method: str) -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="encode it first"):
            getattr(client, method)("text")
        with pytest.raises(TypeError, match="must be bytes-like, not int"):
            getattr(client, method)(7)
        with pytest.raises(TypeError, match="must be bytes-like, not int"):
            list(client.map([7]))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_must_be_above_0(timeout: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 seconds"):
        Client("127.0.0.1:1", timeout=timeout)
    with Client("127.0.0.1:1") as client:
        for method in (client.request, client.submit, client.stream, client.map):
            with pytest.raises(ValueError, match="must be above 0 seconds"):
                method(b"", timeout=timeout)


def test_numbers_must_be_1_or_more() -> None:
    with pytest.raises(ValueError, match="connections is 0"):
        Client("127.0.0.1:1", connections=0)
    with Client("127.0.0.1:1") as client, pytest.raises(ValueError, match="in_flight is 0"):
        client.map([], in_flight=0)


def test_message_too_big_is_not_sent_and_the_connection_stays(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet(max_message=10)
        peer.echo_on()

    daemon = fake(script)
    with Client(daemon.address) as client:
        for method in (client.request, client.submit, lambda message: list(client.stream(message))):
            with pytest.raises(TooBig, match=r"11 bytes, 10 allowed \(--max-message\)"):
                method(bytes(11))
        assert client.request(bytes(10)) == bytes(10)
    assert daemon.connections == 2  # the stream's own


def test_daemons_error_is_raised_with_all_that_it_says(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.error(peer.request(), Code.CONSUMER_LOST, "killed by SIGSEGV", waited=1000, ran=2000)

    with Client(fake(script).address) as client, pytest.raises(RequestError, match="killed by SIGSEGV") as caught:
        client.request(b"x")
    assert caught.value.code == Code.CONSUMER_LOST
    assert caught.value.receipt == Receipt(0.001, 0.002)


# ---- what is no daemon ----


def test_nobody_listening_is_explained() -> None:
    daemon = FakeDaemon(Peer.echo)
    daemon.close()
    with Client(daemon.address) as client:
        for ask in (client.request, client.submit, lambda message: list(client.stream(message))):
            with pytest.raises(ConnectionLost, match=f"{daemon.address}: nobody listens there") as caught:
                ask(b"x")
            assert caught.value.sent is False


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (b"", "got nothing, then the daemon closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"got b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'"),
        (b"hello", "got b'hello', then"),
        (bytes(100), "got b'.x00"),
    ],
)
def test_what_does_not_greet_is_no_daemon(fake: Fake, seen: bytes, text: str) -> None:
    def script(peer: Peer) -> None:
        peer.recv(4)
        peer.raw(seen)

    with Client(fake(script).address) as client:
        for ask in (client.request, client.submit, lambda message: list(client.stream(message))):
            with pytest.raises(ConnectionLost, match=f"expected the greeting of a gaspar daemon, {text}") as caught:
                ask(b"x")
            assert caught.value.sent is False


def test_reset_in_place_of_a_greeting_is_explained(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.recv(4)
        peer.reset()

    with Client(fake(script).address) as client:
        for ask in (client.request, lambda message: list(client.stream(message))):
            with pytest.raises(ConnectionLost, match="got nothing, then the connection was reset"):
                ask(b"x")


def test_silence_in_place_of_a_greeting_is_a_timeout_that_says_so(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.raw(b"220 mail")
        peer.until_gone()

    daemon = fake(script)
    with Client(daemon.address) as client:
        with pytest.raises(RequestTimeout, match=r"no reply within 0\.2 s: expected the greeting .* b'220 mail', then"):
            client.request(b"x", 0.2)
        with pytest.raises(RequestTimeout, match=r"no reply within 0\.1 s"):
            list(client.stream(b"x", 0.1))


# ---- time limits ----


@pytest.mark.parametrize(
    ("timeout", "least", "most"),
    [(None, 0, 0), (float("inf"), 0, 0), (1e-9, 1, 1), (20, 10_000, 20_000), (1e300, MAX_U32, MAX_U32)],
)
def test_daemon_is_told_the_deadline(fake: Fake, timeout: float | None, least: int, most: int) -> None:
    told = []

    def script(peer: Peer) -> None:
        peer.greet()
        with contextlib.suppress(Gone):
            while True:
                frame = peer.frame()
                if frame.kind == FrameKind.REQUEST:
                    told.append(frame.a)
                    peer.reply(frame)

    with Client(fake(script).address) as client:
        client.request(b"so that there is a connection")
        told.clear()
        for ask in (client.request, lambda message, timeout: client.submit(message, timeout).result()):
            with contextlib.suppress(RequestTimeout):
                ask(b"x", timeout)
    assert told
    assert all(least <= each <= most for each in told)


def test_clients_own_timeout_holds_for_requests_without_one(fake: Fake) -> None:
    told = []

    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(2):
            request = peer.request()
            told.append(request.a)
            peer.reply(request)

    with Client(fake(script).address, timeout=1000) as client:
        client.request(b"x")
        client.request(b"x", 10)
    assert 900_000 < told[0] <= 1_000_000
    assert told[1] <= 10_000


def _silent_once(frames: list[Frame]) -> Script:
    """Do not answer the first request; note what comes after it until the second, which is answered."""

    def script(peer: Peer) -> None:
        peer.greet()
        late = peer.request()
        while (frame := peer.frame()).kind != FrameKind.REQUEST:
            frames.append(frame)
        peer.reply(late, b"too late")
        peer.reply(frame, b"in time")

    return script


@pytest.mark.parametrize("method", ["request", "submit", "map", "map as ready"])
def test_request_that_is_over_time_is_cancelled_and_its_late_reply_is_nobodys(fake: Fake, method: str) -> None:
    frames: list[Frame] = []
    daemon = fake(_silent_once(frames))
    with Client(daemon.address) as client:
        ask = {
            "request": lambda: client.request(b"x", 0.1),
            "submit": lambda: client.submit(b"x", 0.1).result(NOT_YET),
            "map": lambda: list(client.map([b"x"], timeout=0.1)),
            "map as ready": lambda: list(client.map([b"x"], False, timeout=0.1)),
        }[method]
        with pytest.raises(RequestTimeout, match=f"{daemon.address}: no reply within 0.1 s") as caught:
            ask()
        assert isinstance(caught.value, TimeoutError)
        assert client.request(b"y") == b"in time"
    assert [frame.kind for frame in frames] == [FrameKind.CANCEL]
    assert daemon.connections == 1


def test_daemons_own_word_of_a_timeout_comes_first(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        threading.Event().wait(request.a / 1000)
        peer.error(request, Code.TIMEOUT, "deadline passed while running", waited=1000, ran=2000)

    with Client(fake(script).address) as client, pytest.raises(RequestTimeout, match="while running") as caught:
        client.request(b"x", 0.2)
    assert caught.value.receipt == Receipt(0.001, 0.002)


def test_futures_with_various_time_limits_end_each_at_its_own(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.until_gone()

    with Client(fake(script).address) as client:
        order: list[float] = []
        futures = []
        for timeout in (0.6, 0.2, 0.4, 1000):
            future = client.submit(b"x", timeout)
            future.add_done_callback(lambda future, timeout=timeout: order.append(timeout))
            futures.append(future)
        concurrent.futures.wait(futures[:3], NOT_YET)
        assert order == [0.2, 0.4, 0.6]
        assert all(isinstance(future.exception(), RequestTimeout) for future in futures[:3])
        assert not futures[3].done()
        client.close(wait=False)


def test_interrupt_while_asking_cancels_the_request_and_the_client_goes_on(fake: Fake) -> None:
    """The signal comes when the daemon has the request: while it is still being sent, or is waited for."""
    kinds: list[int] = []

    def script(peer: Peer) -> None:
        peer.greet()
        with contextlib.suppress(Gone):
            while True:
                frame = peer.frame()
                kinds.append(frame.kind)
                if frame.body == b"interrupt":
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                elif frame.kind == FrameKind.REQUEST:
                    peer.reply(frame, bytes(frame.body))

    with Client(fake(script).address) as client:
        for _ in range(100):
            with pytest.raises(KeyboardInterrupt):
                client.request(b"interrupt")
            assert client.request(b"goes on") == b"goes on"
        assert kinds.count(FrameKind.CANCEL) > 50  # else the connection had to be given up
        assert sum(connection.load for connection in client._pool._all) == 0


# ---- futures ----


def test_futures_are_those_of_the_standard_library(fake: Fake) -> None:
    with Client(fake(Peer.echo).address) as client:
        messages = [b"%d" % number for number in range(200)]
        futures = {client.submit(message): message for message in messages}
        for future in concurrent.futures.as_completed(futures, NOT_YET):
            assert future.result() == futures[future]
        assert concurrent.futures.wait(futures, NOT_YET).not_done == set()


def test_futures_go_with_asyncio(fake: Fake) -> None:
    frames: list[Frame] = []

    async def main(client: Client) -> None:
        future = client.submit(b"x")
        slow = asyncio.wrap_future(future)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        while not future.cancelled():
            await asyncio.sleep(0)
        assert await asyncio.wrap_future(client.submit(b"y")) == b"in time"

    with Client(fake(_silent_once(frames)).address) as client:
        asyncio.run(main(client))
    assert [frame.kind for frame in frames] == [FrameKind.CANCEL]


def test_cancelling_a_future_tells_the_daemon_and_those_who_wait(fake: Fake) -> None:
    frames: list[Frame] = []
    with Client(fake(_silent_once(frames)).address) as client:
        future = client.submit(b"x")
        waiting = in_thread(lambda: concurrent.futures.wait([future], NOT_YET))
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert waiting.result(NOT_YET).done == {future}  # type: ignore[attr-defined]
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        done = client.submit(b"y")
        assert done.result(NOT_YET) == b"in time"
        assert not done.cancel()
    assert [frame.kind for frame in frames] == [FrameKind.CANCEL]


def test_callbacks_may_submit_but_not_wait(fake: Fake) -> None:
    has_callback = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        first = peer.request()
        has_callback.wait(NOT_YET)
        peer.reply(first)
        peer.echo_on()

    with Client(fake(script).address) as client:
        second: concurrent.futures.Future[Reply] = concurrent.futures.Future()
        refused: concurrent.futures.Future[BaseException] = concurrent.futures.Future()

        def callback(first: concurrent.futures.Future[Reply]) -> None:
            with pytest.raises(GasparError, match="but not wait") as caught:
                client.request(b"third")
            refused.set_result(caught.value)
            client.submit(b"second").add_done_callback(lambda future: second.set_result(future.result()))

        client.submit(b"first").add_done_callback(callback)
        has_callback.set()
        assert second.result(NOT_YET) == b"second"
        assert refused.done()


def test_callbacks_may_submit_again_what_was_lost(fake: Fake) -> None:
    def loses(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.reset()

    with Client(fake(loses, Peer.echo).address) as client:
        again: concurrent.futures.Future[concurrent.futures.Future[Reply]] = concurrent.futures.Future()
        client.submit(b"x").add_done_callback(lambda _: again.set_result(client.submit(b"again")))
        assert again.result(NOT_YET).result(NOT_YET) == b"again"


# ---- places ----


def test_no_more_is_under_way_than_the_daemon_takes(fake: Fake) -> None:
    most = 0

    def script(peer: Peer) -> None:
        nonlocal most
        peer.greet(max_in_flight=3)
        pending: list[Frame] = []
        for _ in range(60):
            pending.append(peer.request())
            most = max(most, len(pending))
            if len(pending) == 3:
                for request in pending:
                    peer.reply(request, bytes(request.body))
                pending.clear()

    with Client(fake(script).address) as client, concurrent.futures.ThreadPoolExecutor(20) as pool:
        messages = [b"%d" % number for number in range(60)]
        assert list(pool.map(client.request, messages)) == messages
    assert most == 3


def test_waiting_for_a_place_counts_as_waiting(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet(max_in_flight=1)
        first = peer.request()
        assert peer.frame() == (FrameKind.CANCEL, first.id, 0, 0, 0, b"", b"")
        peer.reply(peer.request(), b"third")

    with Client(fake(script).address) as client:
        first = client.submit(b"first")
        for ask in (client.request, client.submit):
            with pytest.raises(RequestTimeout, match=r"no reply within 0\.1 s, it could not even be sent"):
                ask(b"second", 0.1)
        first.cancel()
        assert client.request(b"third") == b"third"


def test_who_waits_for_a_place_longest_gets_the_next(fake: Fake) -> None:
    """The callers that were served come back at once, and must not always be served again."""

    def script(peer: Peer) -> None:
        peer.greet(max_in_flight=2)
        peer.echo_on()

    with Client(fake(script).address) as client:
        served: list[int] = []
        stop = threading.Event()

        def ask(number: int) -> None:
            while not stop.is_set():
                client.request(b"")
                served.append(number)

        callers = [in_thread(lambda number=number: ask(number)) for number in range(8)]
        wait_until(lambda: set(served) == set(range(8)))
        stop.set()
        for caller in callers:
            caller.result(NOT_YET)


def test_further_connections_are_opened_when_all_are_busy_and_the_least_loaded_is_taken(fake: Fake) -> None:
    arrived: list[tuple[int, bytes]] = []
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        with contextlib.suppress(Gone):
            while True:
                request = peer.request()
                arrived.append((peer.number, bytes(request.body)))
                if request.body.startswith(b"slow"):
                    go_on.wait(NOT_YET)
                peer.reply(request)

    daemon = fake(script)
    with Client(daemon.address, connections=2) as client:
        client.request(b"alone")
        client.request(b"alone")
        assert daemon.connections == 1
        slow = [client.submit(b"slow")]
        slow += [client.submit(b"slow as well")]  # opens the second, goes where the first is
        wait_until(lambda: daemon.connections == 2)
        wait_until(lambda: client._pool._opening == set())
        for number in range(10):
            client.request(b"quick %d" % number)
        assert {where for where, message in arrived if message.startswith(b"quick")} == {1}
        go_on.set()
        concurrent.futures.wait(slow, NOT_YET)
    assert daemon.connections == 2


# ---- lost connections ----


def test_request_that_may_have_been_run_is_not_tried_again(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(3):
            peer.request()
        peer.reset()

    daemon = fake(script)
    with Client(daemon.address) as client:
        futures = [client.submit(b"%d" % number) for number in range(3)]
        errors = [future.exception(NOT_YET) for future in futures]
    for error in errors:
        assert isinstance(error, ConnectionLost)
        assert isinstance(error, ConnectionError)
        assert error.sent is True
        assert str(error) == (
            f"{daemon.address}: the connection was reset before the reply was there; the request may have been run"
        )
    assert len(set(map(id, errors))) == 3
    assert daemon.connections == 1


@pytest.mark.parametrize("body", [b"", b"half a re"])
def test_end_before_the_whole_reply_is_an_error(fake: Fake, body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        whole = request._replace(kind=FrameKind.REPLY)
        peer.raw(len(b"half a reply").to_bytes(4, "big") + whole.id.to_bytes(4, "big") + b"\x11" + bytes(11) + body)

    with Client(fake(script).address) as client:
        for ask in (client.request, lambda message: list(client.stream(message))):
            with pytest.raises(ConnectionLost, match="closed the connection before the reply was there") as caught:
                ask(b"x")
            assert caught.value.sent is True


def test_connection_that_ended_while_idle_is_replaced_unnoticed(fake: Fake) -> None:
    def once(peer: Peer) -> None:
        peer.greet()
        peer.reply(peer.request(), b"once")

    daemon = fake(once)
    with Client(daemon.address) as client:
        for _ in range(20):
            assert client.request(b"x") == b"once"
            wait_until(lambda: not client._pool._usable)
    assert daemon.connections == 20


def _dead_inside_the_request(peer: Peer) -> None:
    peer.greet()
    peer.recv(1000)
    peer.reset()


@pytest.mark.parametrize("method", ["request", "submit", "map", "stream"])
def test_request_that_was_certainly_not_sent_is_tried_again(fake: Fake, method: str) -> None:
    daemon = fake(_dead_inside_the_request, _dead_inside_the_request, Peer.echo)
    message = os.urandom(50_000_000)
    with Client(daemon.address) as client:
        ask = {
            "request": lambda: client.request(message),
            "submit": lambda: client.submit(message).result(NOT_YET),
            "map": lambda: next(client.map([message])),
            "stream": lambda: b"".join(client.stream(message)),
        }[method]
        assert ask() == message
    assert daemon.connections == 3


@pytest.mark.parametrize("method", ["request", "stream"])
def test_third_attempt_is_the_last(fake: Fake, method: str) -> None:
    daemon = fake(_dead_inside_the_request)
    with Client(daemon.address) as client:
        ask = {"request": client.request, "stream": lambda message: list(client.stream(message))}[method]
        with pytest.raises(ConnectionLost, match=r"the connection was reset \(the request was not run\)") as caught:
            ask(bytes(50_000_000))
        assert caught.value.sent is False
    assert daemon.connections == 3


@pytest.mark.parametrize("method", ["request", "stream"])
def test_what_is_unanswered_at_a_clean_end_after_goaway_is_tried_again(fake: Fake, method: str) -> None:
    def leaves(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.go_away()

    daemon = fake(leaves, leaves, Peer.echo)
    with Client(daemon.address) as client:
        ask = {"request": client.request, "stream": lambda message: b"".join(client.stream(message))}[method]
        assert ask(b"x") == b"x"
    assert daemon.connections == 3


@pytest.mark.parametrize("method", ["request", "stream"])
@pytest.mark.parametrize("count", [7, 20, 1000, 199_000])
def test_what_is_unanswered_at_an_end_inside_a_frame_after_goaway_may_have_run(
    fake: Fake, method: str, count: int
) -> None:
    def breaks(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        peer.go_away()
        peer.raw(encode(FrameKind.REPLY, request.id, bytes(199_000))[:count])

    daemon = fake(breaks, Peer.echo)
    with Client(daemon.address) as client:
        ask = {"request": client.request, "stream": lambda message: b"".join(client.stream(message))}[method]
        with pytest.raises(ConnectionLost, match="may have been run") as caught:
            ask(b"x")
    assert caught.value.sent is True
    assert daemon.connections == 1


@pytest.mark.parametrize("method", ["request", "stream"])
@pytest.mark.parametrize("body", [b"", b"part"])
def test_what_had_begun_to_stream_at_a_clean_end_after_goaway_was_run(fake: Fake, method: str, body: bytes) -> None:
    def breaks(peer: Peer) -> None:
        peer.greet()
        peer.part(peer.request(), body)
        peer.go_away()

    daemon = fake(breaks, Peer.echo)
    with Client(daemon.address) as client:
        ask = {"request": client.request, "stream": lambda message: b"".join(client.stream(message))}[method]
        with pytest.raises(ConnectionLost, match="may have been run") as caught:
            ask(b"x")
    assert caught.value.sent is True
    assert daemon.connections == 1


@pytest.mark.parametrize("method", ["request", "stream"])
def test_what_is_unanswered_at_an_end_after_goaway_may_have_run_over_a_unix_socket(
    fake: Fake, method: str, tmp_path: Path
) -> None:
    """Which has no reset: a front that was killed ends in the same way."""

    def leaves(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.go_away()

    daemon = fake(leaves, Peer.echo, path=os.path.relpath(tmp_path / "s"))
    with Client(daemon.address) as client:
        ask = {"request": client.request, "stream": lambda message: b"".join(client.stream(message))}[method]
        with pytest.raises(ConnectionLost, match="may have been run") as caught:
            ask(b"x")
        assert caught.value.sent is True
        assert daemon.connections == 1
        assert ask(b"y") == b"y"


def test_what_was_refused_before_an_end_after_goaway_is_tried_again_over_a_unix_socket(
    fake: Fake, tmp_path: Path
) -> None:
    def leaves(peer: Peer) -> None:
        peer.greet()
        peer.error(peer.request(), Code.SHUTTING_DOWN)
        peer.go_away()

    daemon = fake(leaves, Peer.echo, path=os.path.relpath(tmp_path / "s"))
    with Client(daemon.address) as client:
        assert client.request(b"x") == b"x"


def test_daemon_that_greets_and_ends_each_connection_is_given_up(fake: Fake) -> None:
    daemon = fake(Peer.greet)
    with Client(daemon.address) as client:
        with pytest.raises(ConnectionLost) as caught:
            client.request(b"x")
        assert caught.value.sent is False or "may have been run" in str(caught.value)
    assert daemon.connections <= 3


def test_reset_after_goaway_is_an_error(fake: Fake) -> None:
    def breaks(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.go_away()
        peer.reset()

    daemon = fake(breaks)
    with Client(daemon.address) as client, pytest.raises(ConnectionLost) as caught:
        client.request(b"x")
    assert caught.value.sent is True
    assert daemon.connections == 1


def test_connection_that_goes_away_gets_no_more_requests_and_answers_what_it_has(fake: Fake) -> None:
    asked = threading.Event()
    seen: list[bytes] = []

    def leaves(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        peer.go_away()
        asked.wait(NOT_YET)
        peer.reply(request, b"from the old")
        with contextlib.suppress(Gone):
            seen.append(bytes(peer.frame().body))

    daemon = fake(leaves, Peer.echo)
    with Client(daemon.address) as client:
        old = client.submit(b"first")
        wait_until(lambda: client._pool._all and not client._pool._usable)
        assert client.request(b"second") == b"second"
        asked.set()
        assert old.result(NOT_YET) == b"from the old"
        assert client.request(b"third") == b"third"
    assert seen == []
    assert daemon.connections == 2


def _shutting_down(peer: Peer) -> None:
    peer.greet()
    with contextlib.suppress(Gone):
        while True:
            peer.error(peer.request(), Code.SHUTTING_DOWN, "draining")


@pytest.mark.parametrize("method", ["request", "submit", "map", "stream"])
def test_request_that_a_draining_daemon_refused_is_tried_once_more(fake: Fake, method: str) -> None:
    with Client(fake(_shutting_down, Peer.echo).address) as good, Client(fake(_shutting_down).address) as bad:
        for client in (good, bad):
            ask = {
                "request": lambda client: client.request(b"x"),
                "submit": lambda client: client.submit(b"x").result(NOT_YET),
                "map": lambda client: next(client.map([b"x"])),
                "stream": lambda client: b"".join(client.stream(b"x")),
            }[method]
            if client is good:
                assert ask(client) == b"x"
            else:
                with pytest.raises(ShuttingDown, match="draining"):
                    ask(client)


@pytest.mark.parametrize("method", ["request", "stream"])
def test_request_refused_by_the_last_daemon_is_told_so(fake: Fake, method: str) -> None:
    daemon: FakeDaemon

    def last(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        daemon.stop_listening()
        peer.error(request, Code.SHUTTING_DOWN, "draining")

    daemon = fake(last)
    with Client(daemon.address) as client, pytest.raises(ShuttingDown, match="draining"):
        {"request": client.request, "stream": lambda message: list(client.stream(message))}[method](b"x")


def test_what_is_wrong_with_the_connection_all_its_callers_are_told(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(3):
            peer.request()
        peer.error(None, Code.BAD_FRAME, "a frame of kind 99")

    daemon = fake(script, Peer.echo)
    with Client(daemon.address) as client:
        futures = [client.submit(b"x") for _ in range(3)]
        errors = [future.exception(NOT_YET) for future in futures]
        assert all(isinstance(error, BadFrame) and "kind 99" in str(error) for error in errors)
        assert len(set(map(id, errors))) == 3
        assert client.request(b"y") == b"y"


def test_garbage_after_the_greeting_ends_the_connection(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.raw(b"\xff" * 100)
        peer.until_gone()

    with Client(fake(script).address) as client:
        for ask in (client.request, lambda message: list(client.stream(message))):
            with pytest.raises(BadFrame, match="not the framed protocol"):
                ask(b"x")


# ---- long messages, slow daemons ----


def test_caller_does_not_wait_for_a_daemon_that_does_not_read(fake: Fake) -> None:
    may_read = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        may_read.wait(NOT_YET)
        kinds = [peer.frame().kind for _ in range(2)]
        assert kinds == [FrameKind.REQUEST, FrameKind.CANCEL]
        peer.reply(peer.request(), b"in time")

    with Client(fake(script).address) as client:
        with pytest.raises(RequestTimeout):
            client.request(bytes(60_000_000), 0.2)
        never_begun = client.submit(bytes(60_000_000))
        assert never_begun.cancel()
        last = client.submit(b"x")
        may_read.set()
        assert last.result(NOT_YET) == b"in time"


def test_replies_are_read_while_a_long_request_is_sent(fake: Fake) -> None:
    """A daemon stops reading while it cannot get rid of its replies."""

    def script(peer: Peer) -> None:
        peer.greet()
        first = peer.request()
        peer.recv(100)  # a part of the second
        peer.reply(first, bytes(30_000_000))
        peer.until_gone()

    with Client(fake(script).address) as client:
        first = client.submit(b"x")
        second = client.submit(bytes(30_000_000))
        assert len(first.result(NOT_YET)) == 30_000_000
        second.cancel()
        client.close(wait=False)


def test_message_may_be_changed_once_it_is_submitted(fake: Fake) -> None:
    may_read = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        may_read.wait(NOT_YET)
        peer.echo_on()

    with Client(fake(script).address) as client:
        message = bytearray(b"a" * 20_000_000)
        future = client.submit(message)
        message[:] = b"b" * 10
        may_read.set()
        assert future.result(NOT_YET) == b"a" * 20_000_000


def test_many_threads_with_messages_of_all_sizes(fake: Fake) -> None:
    sizes = [0, 1, 1000, 65536, 65537, 300_000, 3_000_000]
    with Client(fake(Peer.echo).address, 2) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        messages = [os.urandom(size) for size in sizes * 10]
        random.Random(2).shuffle(messages)
        assert list(pool.map(client.request, messages)) == messages


# ---- map ----


def _numbers(count: int) -> Iterator[bytes]:
    return (b"%d" % number for number in range(count))


def test_map_yields_in_order_or_as_ready(fake: Fake) -> None:
    def backwards(peer: Peer) -> None:
        peer.greet()
        for _ in range(2):
            for request in reversed([peer.request() for _ in range(10)]):
                peer.reply(request, bytes(request.body))

    with Client(fake(backwards).address) as client:
        assert list(client.map(list(_numbers(10)), in_flight=10)) == list(_numbers(10))
        assert list(client.map(_numbers(10), ordered=False, in_flight=10)) == list(_numbers(10))[::-1]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("in_flight", [1, 2, 7, 500])
def test_map_is_lazy_at_both_ends(fake: Fake, ordered: bool, in_flight: int) -> None:
    taken = 0

    def messages() -> Iterator[bytes]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield b"%d" % number

    with Client(fake(Peer.echo).address) as client:
        replies = client.map(messages(), ordered, in_flight)
        assert taken == 0
        for count in range(1, 1000):
            next(replies)
            assert count <= taken < count + in_flight
        replies.close()


@pytest.mark.parametrize("ordered", [True, False])
def test_map_sends_a_message_before_it_takes_the_next(fake: Fake, ordered: bool) -> None:
    arrived: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.greet()
        with contextlib.suppress(Gone):
            while True:
                request = peer.request()
                arrived.append(bytes(request.body))
                peer.reply(request)

    def messages() -> Iterator[bytes]:
        for number, message in enumerate(_numbers(20), 1):
            yield message
            wait_until(lambda number=number: len(arrived) == number)

    with Client(fake(script).address) as client:
        assert len(list(client.map(messages(), ordered))) == 20


@pytest.mark.parametrize("ordered", [True, False])
def test_map_yields_what_is_ready_while_there_are_messages(fake: Fake, ordered: bool) -> None:
    """What lags behind a burst catches up, though nothing is waited for."""
    with Client(fake(Peer.echo).address) as client:
        futures = []
        submit = client._pool.send
        client._pool.send = lambda call: (submit(call), futures.append(call))[0]  # type: ignore[method-assign]
        lag = []
        yielded = 0

        def messages() -> Iterator[bytes]:
            for number, message in enumerate(_numbers(100)):
                if number > 30:  # from now on each is answered before the next comes
                    wait_until(lambda: all(call.answer is not None for call in futures))
                    lag.append(number - yielded)
                yield message

        for _ in client.map(messages(), ordered, in_flight=64):
            yielded += 1
        assert lag[-1] <= 2


def test_map_raises_an_error_at_its_place_and_cancels_the_rest(fake: Fake) -> None:
    cancelled = []

    def script(peer: Peer) -> None:
        peer.greet()
        requests = [peer.request() for _ in range(5)]
        peer.error(requests[1], Code.HANDLER_ERROR, "no")
        peer.reply(requests[0], b"yes")
        cancelled.extend(frame.id - requests[0].id for frame in (peer.frame() for _ in range(3)))

    with Client(fake(script).address) as client:
        replies = client.map(_numbers(5), in_flight=5)
        assert next(replies) == b"yes"
        with pytest.raises(HandlerError):
            next(replies)
        with pytest.raises(StopIteration):
            next(replies)
        wait_until(lambda: len(cancelled) == 3)
    assert sorted(cancelled) == [2, 3, 4]


@pytest.mark.parametrize("ordered", [True, False])
def test_map_yields_errors_in_place_of_replies_if_asked_to(fake: Fake, ordered: bool) -> None:
    def script(peer: Peer) -> None:
        peer.greet(max_message=5)
        with contextlib.suppress(Gone):
            while True:
                request = peer.request()
                if request.body == b"bad":
                    peer.error(request, Code.HANDLER_ERROR, "no")
                else:
                    peer.reply(request, bytes(request.body))

    with Client(fake(script).address) as client:
        messages = [b"good", b"bad", b"too long", "no bytes", b"", b"fine"]
        found = list(client.map(messages, ordered, return_exceptions=True))  # type: ignore[arg-type]
    if not ordered:
        found.sort(
            key=lambda each: [b"good", HandlerError, TooBig, TypeError, b"", b"fine"].index(
                type(each) if isinstance(each, Exception) else each  # type: ignore[arg-type]
            )
        )
    assert [type(each) for each in found] == [Reply, HandlerError, TooBig, TypeError, Reply, Reply]
    assert found[4] == b""


@pytest.mark.parametrize("ordered", [True, False])
def test_map_yields_the_replies_first_if_the_messages_fail(fake: Fake, ordered: bool) -> None:
    def messages() -> Iterator[bytes]:
        yield from _numbers(10)
        raise LookupError("no more")

    with Client(fake(Peer.echo).address) as client:
        replies = client.map(messages(), ordered)
        assert sorted(itertools.islice(replies, 10)) == list(_numbers(10))
        with pytest.raises(LookupError, match="no more"):
            next(replies)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("end", ["close", "forget"])
def test_closing_map_early_cancels_what_is_under_way(fake: Fake, ordered: bool, end: str) -> None:
    cancelled = []

    def script(peer: Peer) -> None:
        peer.greet()
        requests = [peer.request() for _ in range(5)]
        peer.reply(requests[0])
        with contextlib.suppress(Gone):
            while (frame := peer.frame()).kind == FrameKind.CANCEL:
                cancelled.append(frame.id - requests[0].id)
            peer.reply(frame, b"still there")

    with Client(fake(script).address) as client:
        replies = client.map(itertools.repeat(b"x"), ordered, in_flight=5)
        next(replies)
        if end == "close":
            replies.close()
        del replies
        assert client.request(b"y") == b"still there"
    assert sorted(cancelled) == [1, 2, 3, 4]


def test_map_of_nothing_connects_to_nobody() -> None:
    with Client("127.0.0.1:1") as client:
        assert list(client.map([])) == []


# ---- streams ----


@pytest.mark.parametrize("step", [0, 1])
def test_stream_yields_the_parts_as_they_come(fake: Fake, step: int) -> None:
    def script(peer: Peer) -> None:
        peer.step = step
        peer.greet()
        request = peer.request()
        for part in (b"one", b"", b"two"):
            peer.part(request, part)
        peer.reply(request)

    with Client(fake(script).address, timeout=NOT_YET) as client:
        assert list(client.stream(b"x")) == [b"one", b"two"]


@pytest.mark.parametrize("last", [b"", b"whole", bytes(3_000_000)])
def test_stream_of_a_handler_that_does_not_stream_is_one_part(fake: Fake, last: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.reply(peer.request(), last, ran=1000)

    with Client(fake(script).address) as client:
        (part,) = client.stream(b"x")
        assert part == last
        assert part.receipt == Receipt(0, 0.001)  # type: ignore[attr-defined]


def test_stream_raises_an_error_after_the_parts_that_came(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        peer.part(request, b"one")
        if peer.number == 0:
            peer.error(request, Code.HANDLER_ERROR, "no")

    daemon = fake(script)
    with Client(daemon.address) as client:
        for error in (HandlerError, ConnectionLost):
            parts = client.stream(b"x")
            assert next(parts) == b"one"
            with pytest.raises(error):
                next(parts)
    assert daemon.connections == 2


def test_stream_that_is_taken_slowly_holds_back_only_its_own_daemon(fake: Fake) -> None:
    sent = 0

    def script(peer: Peer) -> None:
        nonlocal sent
        if peer.number:
            return peer.echo()
        peer.greet()
        request = peer.request()
        for _ in range(100):
            peer.part(request, bytes(1_000_000))
            sent += 1
        peer.reply(request)
        return None

    with Client(fake(script).address) as client:
        parts = client.stream(b"x")
        next(parts)
        for _ in range(100):
            client.request(b"others go on")
        assert sent < 50
        assert sum(map(len, parts)) == 99_000_000


@pytest.mark.parametrize("end", ["close", "forget", "close the client"])
def test_closing_a_stream_early_closes_its_connection(fake: Fake, end: str) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        peer.part(peer.request(), b"one")
        peer.until_gone()
        gone.set()

    with Client(fake(script).address) as client:
        parts = client.stream(b"x")
        assert next(parts) == b"one"
        if end == "close":
            parts.close()
        elif end == "close the client":
            client.close(wait=False)
            with pytest.raises(Cancelled, match="the client was closed"):
                next(parts)
        del parts
        assert gone.wait(NOT_YET)


def test_stream_has_a_time_limit(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.part(peer.request(), b"one")
        peer.until_gone()

    daemon = fake(script)
    with Client(daemon.address) as client:
        parts = client.stream(b"x", 0.2)
        assert next(parts) == b"one"
        with pytest.raises(RequestTimeout, match=rf"{daemon.address}: no reply within 0\.2 s$"):
            next(parts)


# ---- the end ----


def test_close_waits_for_the_answers_under_way(fake: Fake) -> None:
    closing = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        requests = [peer.request() for _ in range(2)]
        closing.wait(NOT_YET)
        for request in requests:
            peer.reply(request, b"reply")

    client = Client(fake(script).address)
    futures = [client.submit(b"x") for _ in range(2)]
    closed = in_thread(client.close)
    wait_until(lambda: client._pool._state.value == "closing")
    with pytest.raises(GasparError, match="the client is closed"):
        client.request(b"y")
    assert not closed.done()
    closing.set()
    closed.result(NOT_YET)
    assert [future.result(0) for future in futures] == [b"reply"] * 2


def test_close_without_waiting_cancels(fake: Fake) -> None:
    arrived = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet(max_in_flight=2)
        [peer.request() for _ in range(2)]
        arrived.set()
        peer.until_gone()

    client = Client(fake(script).address)
    future = client.submit(b"x")
    asked = in_thread(lambda: client.request(b"x"))
    assert arrived.wait(NOT_YET)
    waits = in_thread(lambda: client.request(b"x"))
    wait_until(lambda: client._pool.waiting)
    client.close(wait=False)
    assert future.cancelled()
    with pytest.raises(Cancelled, match="the client was closed"):
        asked.result(NOT_YET)
    with pytest.raises(GasparError, match=r"the client (is|was) closed"):
        waits.result(NOT_YET)


def test_closed_client_is_of_no_use_and_may_be_closed_again(fake: Fake) -> None:
    daemon = fake(Peer.echo)
    client = Client(daemon.address)
    client.request(b"x")
    replies = client.map(_numbers(1000), in_flight=2)
    next(replies)
    for wait in (True, False, True):
        client.close(wait)
    for method in (client.request, client.submit, client.stream):
        with pytest.raises(GasparError, match=f"{daemon.address}: the client is closed"):
            method(b"x")
    with pytest.raises(GasparError, match="the client is closed"):
        list(replies)
    Client(daemon.address).close()


def test_leaving_by_an_exception_does_not_wait(fake: Fake) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.until_gone()

    futures = []

    def leave() -> None:
        with Client(fake(script).address) as client:
            futures.append(client.submit(b"x"))
            raise LookupError

    with pytest.raises(LookupError):
        leave()
    assert futures[0].cancelled()


def test_client_that_is_forgotten_leaves_nothing(fake: Fake) -> None:
    client = Client(fake(Peer.echo).address)
    client.request(b"x")
    client.submit(b"x", 1000).result(NOT_YET)
    forgotten = weakref.ref(client)
    del client
    gc.collect()
    assert forgotten() is None  # the fixture looks for threads and descriptors


def test_future_keeps_its_client_until_it_is_done(fake: Fake) -> None:
    forgotten = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        request = peer.request()
        forgotten.wait(NOT_YET)
        peer.reply(request, b"reply")
        peer.until_gone()

    future = Client(fake(script).address).submit(b"x")
    gc.collect()
    forgotten.set()
    assert future.result(NOT_YET) == b"reply"


def test_requests_leave_no_garbage_to_collect(fake: Fake) -> None:
    with Client(fake(Peer.echo).address) as client:
        client.request(b"x")
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                client.request(b"x")
                client.submit(b"x", 1000).result()
            list(client.map(_numbers(100)))
            list(client.map(_numbers(100), ordered=False))
            assert gc.collect() < 100
        finally:
            gc.enable()


def test_fork_gives_the_child_a_client_of_its_own_and_leaves_the_parents_alone(fake: Fake) -> None:
    may_answer = threading.Event()

    def slow_once(peer: Peer) -> None:
        peer.greet()
        peer.reply(peer.request(), b"connected")
        request = peer.request()
        may_answer.wait(NOT_YET)
        peer.reply(request, b"the parent's")
        peer.echo_on()

    daemon = fake(slow_once, Peer.echo)
    with Client(daemon.address, timeout=NOT_YET) as client:
        assert client.request(b"x") == b"connected"
        future = client.submit(b"asked before the fork")
        replies = client.map([b"also before", b"and after"])
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                assert client.request(b"child") == b"child"
                assert list(client.map(_numbers(100))) == list(_numbers(100))
                assert b"".join(client.stream(b"stream")) == b"stream"
                client.close()
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert daemon.connections == 3
        may_answer.set()
        assert future.result(NOT_YET) == b"the parent's"
        assert list(replies) == [b"also before", b"and after"]
    assert daemon.connections == 3


def test_waiting_requests_of_the_parent_end_in_a_forked_child(fake: Fake) -> None:
    with Client(fake(lambda peer: (peer.greet(), peer.until_gone())[0]).address, timeout=NOT_YET) as client:  # type: ignore[func-returns-value]
        window = client.map([b"x", b"y"], in_flight=2, return_exceptions=True)
        waiting = in_thread(lambda: next(window))
        wait_until(lambda: client._pool._all and next(iter(client._pool._all)).load == 2)
        calls = next(iter(client._pool._all)).session.calls
        child = os.fork()
        if not child:
            os._exit(0 if all(isinstance(call.answer, ConnectionLost) for call in calls.values()) else 1)
        assert os.waitpid(child, 0)[1] == 0
        client.close(wait=False)
        assert isinstance(waiting.result(NOT_YET), Cancelled)


# ---- all at once ----


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_daemon_does_each_request_gets_its_own_reply_or_an_error(fake: Fake, seed: int) -> None:
    ran: list[bytes] = []

    def script(peer: Peer) -> None:
        chance = random.Random(seed * 1000 + peer.number)
        peer.step = chance.choice([0, 0, 1000, 50])
        if chance.random() < 0.1:
            return None
        peer.greet(max_in_flight=chance.choice([1, 5, 100]))
        with contextlib.suppress(Gone):
            while True:
                request = peer.frame()
                if request.kind != FrameKind.REQUEST:
                    continue
                fate = chance.random()
                if fate < 0.01:
                    return peer.reset()
                if fate < 0.02:
                    return peer.go_away()
                if fate < 0.03:
                    peer.error(request, Code.SHUTTING_DOWN)
                elif fate < 0.04:
                    continue
                else:
                    ran.append(bytes(request.body[:8]))
                    peer.reply(request, bytes(request.body))
        return None

    number = itertools.count()
    outcomes: list[bool] = []

    def ask(client: Client, chance: random.Random) -> None:
        for _ in range(60):
            size = chance.choice([0, 10, 1000, 100_000])
            messages = [b"%08d" % next(number) + bytes(size) for _ in range(chance.choice([1, 5]))]
            if chance.random() < 0.5:
                answers = list(client.map(messages, timeout=0.3, in_flight=3, return_exceptions=True))
            else:
                answers = []
                for message in messages:
                    try:
                        answers.append(client.request(message, 0.3))
                    except GasparError as error:
                        answers.append(error)
            for message, answer in zip(messages, answers, strict=True):
                assert answer == message or isinstance(answer, GasparError), answer
                outcomes.append(answer == message)

    with Client(fake(script).address, 2) as client:
        callers = [in_thread(lambda each=each: ask(client, random.Random(each))) for each in range(6)]
        end = time.monotonic() + 100
        for caller in callers:
            caller.result(end - time.monotonic())
    assert len(set(ran)) == len(ran)  # nothing was run twice
    assert sum(outcomes) > len(outcomes) / 2
