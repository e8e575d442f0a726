"""gaspar.aio against a scripted server, good and bad, and the real daemon; on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import pathlib
import random
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from conftest import Serve, wait_until

from gaspar.aio import Client
from gaspar.answer import Receipt, Reply
from gaspar.errors import (
    AddressError,
    BadFrame,
    Cancelled,
    Code,
    ConnectionLost,
    ConsumerLost,
    GasparError,
    HandlerError,
    Overloaded,
    RequestTimeout,
    ShuttingDown,
    TooBig,
    failure,
)
from gaspar.frames import CLIENT_KINDS, MAGIC, Frame, FrameKind, FrameParser, encode, encode_meta

pytestmark = pytest.mark.filterwarnings("error")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
MAX_MESSAGE = 64 * 1024 * 1024
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine function in debug mode; nothing may be left, and nothing complained of."""
    loop = LOOPS[request.param]()
    loop.set_debug(True)
    loop.slow_callback_duration = 60
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    def run_until_done(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop.run_until_complete(asyncio.wait_for(main(), 50))

    yield run_until_done
    left = asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    gc.collect()
    assert not complaints
    assert not left


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = FrameParser(MAX_MESSAGE, CLIENT_KINDS)
        self._frames: list[Frame] = []

    async def greet(self, max_in_flight: int = 256, max_message: int = MAX_MESSAGE) -> Peer:
        assert await self.reader.readexactly(4) == MAGIC
        meta = {"server": "a script", "max_message": max_message, "max_in_flight": max_in_flight}
        self.send(encode(FrameKind.HELLO, meta=encode_meta(meta)))
        return self

    async def frame(self) -> Frame:
        """Wait for the next frame; IncompleteReadError at the end."""
        while not self._frames:
            data = await self.reader.read(65536)
            if not data:
                raise asyncio.IncompleteReadError(b"", 20)
            self._frames += self._parser.feed(data)
        return self._frames.pop(0)

    async def request(self) -> Frame:
        frame = await self.frame()
        assert frame.kind == FrameKind.REQUEST
        return frame

    def send(self, data: bytes) -> None:
        if not self.writer.is_closing():  # uvloop minds
            self.writer.write(data)

    def reply(self, frame: Frame, body: bytes | None = None) -> None:
        self.send(encode(FrameKind.REPLY, frame.id, frame.body if body is None else body))

    def refuse(self, frame: Frame | None, code: Code, message: str, **more: str) -> None:
        why = failure(code, message, **more)
        self.send(encode(FrameKind.ERROR, frame.id if frame else 0, why.detail, code=why.code))

    async def slowly(self, data: bytes) -> None:
        """Send byte by byte."""
        for at in range(len(data)):
            self.send(data[at : at + 1])
            await self.writer.drain()
            await asyncio.sleep(0)

    def end(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        if self.writer.is_closing():
            return
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def answer_all(self) -> None:
        """Give every message back, until the client is gone."""
        while True:
            frame = await self.frame()
            if frame.kind == FrameKind.REQUEST:
                self.reply(frame)


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """A server whose n-th connection follows the n-th script, and all later ones the last."""

    def __init__(self, *scripts: Script, path: str = "") -> None:
        self._scripts = scripts
        self._path = path
        self._running: set[asyncio.Task[None]] = set()
        self.count = 0  # connections accepted
        self.failures: list[BaseException] = []

    async def __aenter__(self) -> Server:
        if self._path:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
            self.address = f"unix:{self._path}"
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.count, len(self._scripts) - 1)]
        self.count += 1
        running = asyncio.ensure_future(self._follow(script, Peer(reader, writer)))
        self._running.add(running)

    async def _follow(self, script: Script, peer: Peer) -> None:
        try:
            await script(peer)
            while await peer.reader.read(65536):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except AssertionError as error:
            self.failures.append(error)
        finally:
            peer.writer.close()
            with contextlib.suppress(ConnectionError):
                await peer.writer.wait_closed()

    def stop_listening(self) -> None:
        self._server.close()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._server.close()
        if kind is not None:
            for each in self._running:
                each.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._server.wait_closed()
        assert not self.failures, self.failures


async def echo(peer: Peer) -> None:
    await (await peer.greet()).answer_all()


async def nowhere() -> str:
    """Return an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


async def lost(awaitable: Awaitable[Any], *, sent: bool, match: str) -> None:
    with pytest.raises(ConnectionLost, match=match) as caught:
        await awaitable
    assert caught.value.sent is sent
    assert ("was not run" in str(caught.value)) is not sent
    assert ("may have been run" in str(caught.value)) is sent


async def whole(client: Client, method: str) -> bytes:
    """Send b"x" in one way or the other; returns the whole reply."""
    if method == "request":
        return await client.request(b"x")
    return b"".join([part async for part in client.stream(b"x")])


# requests


@pytest.mark.parametrize("size", [0, 1, 20, 65535, 65536, 65537, 200_000, 5_000_000])
def test_request_returns_exactly_the_reply(run: Run, size: int) -> None:
    async def main() -> None:
        message = os.urandom(size)
        async with Server(echo) as server, Client(server.address) as client:
            assert await client.request(message, 30) == message
            assert await client.request(message) == message

    run(main)


def test_what_is_bytes_like_is_sent_as_it_was(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            message = bytearray(b"xabcx")
            replies = [client.submit(message), client.submit(memoryview(message)[1:4])]
            message[:] = b"another"
            assert await asyncio.gather(*replies) == [b"xabcx", b"abc"]

    run(main)


def test_many_requests_of_all_sizes_get_their_own_replies(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address, 2) as client:
            messages = [bytes([n % 256]) * (n * n * 3) for n in range(300)]
            assert await asyncio.gather(*map(client.request, messages)) == messages

    run(main)


def test_replies_carry_their_receipts(run: Run) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.send(encode(FrameKind.REPLY, frame.id, b"reply", a=1500, b=2_000_000))
        frame = await peer.request()
        why = failure(Code.HANDLER_ERROR, "no such thing", type="KeyError", traceback="its story")
        peer.send(encode(FrameKind.ERROR, frame.id, why.detail, code=why.code, a=7, b=9))

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            reply = await client.request(b"x")
            assert type(reply) is Reply
            assert reply.receipt == Receipt(pytest.approx(0.0015), pytest.approx(2.0))
            with pytest.raises(HandlerError, match="KeyError: no such thing") as caught:
                await client.request(b"x")
            assert caught.value.traceback == "its story"
            assert caught.value.receipt == Receipt(pytest.approx(7e-6), pytest.approx(9e-6))

    run(main)


def test_replies_out_of_order_find_their_requests(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        frames = [await peer.request() for _ in range(20)]
        for frame in reversed(frames):
            peer.reply(frame)

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            messages = [b"%d" % n for n in range(20)]
            assert await asyncio.gather(*map(client.request, messages)) == messages

    run(main)


def test_replies_that_come_byte_by_byte_are_whole(run: Run) -> None:
    async def script(peer: Peer) -> None:
        meta = encode_meta({"max_message": 1000, "max_in_flight": 2})
        await peer.slowly(encode(FrameKind.HELLO, meta=meta))
        assert await peer.reader.readexactly(4) == MAGIC
        for _ in range(2):
            frame = await peer.request()
            await peer.slowly(encode(77, 3, b"a kind of the future") + encode(FrameKind.PART, frame.id, b"in parts "))
            await peer.slowly(encode(FrameKind.REPLY, frame.id, frame.body, meta=b'{"unknown": 1}'))

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            assert await asyncio.gather(client.request(b"one"), client.request(b"two")) == [
                b"in parts one",
                b"in parts two",
            ]

    run(main)


def test_a_message_of_the_wrong_type_is_explained(run: Run) -> None:
    async def main() -> None:
        async with Client("127.0.0.1:1") as client:
            for use in (client.request, client.submit, client.stream):
                with pytest.raises(TypeError, match="encode it first"):
                    await use("text")
                with pytest.raises(TypeError, match="must be bytes-like, not int"):
                    await use(7)

    run(main)


def test_a_wrong_address_is_explained() -> None:
    with pytest.raises(AddressError):
        Client("localhost")
    assert repr(Client("localhost:1")) == "<gaspar.aio.Client of localhost:1>"


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_that_is_not_above_0_is_explained(run: Run, timeout: float) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=f"timeout is {timeout}, it must be above 0 seconds"):
            Client("127.0.0.1:1", timeout=timeout)
        async with Client("127.0.0.1:1") as client:
            for use in (client.request, client.submit, client.stream):
                with pytest.raises(ValueError, match=f"timeout is {timeout}"):
                    await use(b"x", timeout)
            with pytest.raises(ValueError, match=f"timeout is {timeout}"):
                client.map([], timeout=timeout)
            with pytest.raises(ValueError, match="in_flight is 0, it must be 1 or more"):
                client.map([], in_flight=0)
        with pytest.raises(ValueError, match="connections is 0, it must be 1 or more"):
            Client("127.0.0.1:1", 0)

    run(main)


def test_a_message_that_is_too_long_is_refused_at_once_and_alone(run: Run) -> None:
    served = asyncio.Event()

    async def script(peer: Peer) -> None:
        first = await (await peer.greet(max_message=1000, max_in_flight=1)).request()
        await served.wait()
        peer.reply(first)
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            with pytest.raises(TooBig, match=r"1001 bytes, 1000 allowed \(--max-message\)"):
                await client.request(bytes(1001))
            first, second = client.submit(b"1"), client.submit(bytes(1000))
            with pytest.raises(TooBig, match="70000 bytes"):  # there is no place, but no need to wait for one
                await client.request(bytes(70000))
            served.set()
            assert await asyncio.gather(first, second) == [b"1", bytes(1000)]
            assert server.count == 1

    run(main)


def test_over_a_unix_socket(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        path = os.path.relpath(tmp_path / "s")
        async with Server(echo, path=path) as server, Client(server.address) as client:
            assert await client.request(b"x") == b"x"
            assert [part async for part in client.stream(b"x")] == [b"x"]

    run(main)


def test_tcp_does_not_wait_for_more_and_notices_a_host_that_vanished(run: Run) -> None:
    """Both loops set TCP_NODELAY by themselves; the client relies on it."""

    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            await client.request(b"x")
            (connection,) = client._pool._open
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60

    run(main)


# who may use a client, and when


def test_a_client_can_be_made_outside_of_a_loop(run: Run) -> None:
    clients = [Client("127.0.0.1:1", timeout=30)]

    async def main() -> None:
        async with Server(echo) as server:
            clients.append(Client(server.address))
            async with clients[1]:
                assert await clients[1].request(b"x") == b"x"
            await clients[0].close()

    run(main)


def test_use_in_another_loop_is_explained(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:

            async def use_it_there() -> None:
                for use in (client.request, client.submit):
                    with pytest.raises(GasparError, match="belongs to another event loop"):
                        await use(b"x")
                for use in (client.map, client.stream):
                    with pytest.raises(GasparError, match="belongs to another event loop"):
                        await use(b"xyz").__anext__()
                with pytest.raises(GasparError, match="belongs to another event loop"):
                    await client.close()

            assert await client.request(b"x") == b"x"
            await asyncio.get_running_loop().run_in_executor(None, asyncio.run, use_it_there())
            assert await client.request(b"x") == b"x"

    run(main)


def test_after_close_use_is_explained(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server:
            client = Client(server.address)
            assert await client.request(b"x") == b"x"
            await client.close()
            await client.close()
            for use in (client.request, client.submit):
                with pytest.raises(GasparError, match=f"{server.address}: the client is closed"):
                    await use(b"x")
            for use in (client.map, client.stream):
                with pytest.raises(GasparError, match="the client is closed"):
                    await use([b"x"] if use == client.map else b"x").__anext__()
            with pytest.raises(GasparError, match="the client is closed"):
                await client.__aenter__()

    run(main)


def test_leaving_waits_for_the_answers_under_way(run: Run) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.greet(max_in_flight=2)
        frames = [await peer.request() for _ in "ab"]
        asked.set()
        await go.wait()
        for frame in frames:
            peer.reply(frame)
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server:
            async with Client(server.address) as client:
                replies = [client.submit(b"%d" % n) for n in range(5)]  # of which two are under way
                await asked.wait()
                leaving = asyncio.ensure_future(client.close())
                await asyncio.sleep(0)
                with pytest.raises(GasparError, match="the client is closed"):
                    client.submit(b"late")
                assert not leaving.done()
                go.set()
                await leaving
            assert [reply.result() for reply in replies] == [b"0", b"1", b"2", b"3", b"4"]

    run(main)


def test_leaving_by_an_exception_cancels_what_is_under_way(run: Run) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await (await peer.greet()).request()
        await peer.request()
        assert await peer.reader.read() == b""
        gone.set()

    async def main() -> None:
        async with Server(script) as server:
            client = Client(server.address)
            with contextlib.suppress(ZeroDivisionError):
                async with client:
                    client.submit(b"nobody ever looks at its reply")
                    waiting = asyncio.ensure_future(client.request(b"x"))
                    while server.count == 0:
                        await asyncio.sleep(0)
                    raise ZeroDivisionError
            with pytest.raises(Cancelled, match="the client was closed"):
                await waiting

    run(main)


def test_close_without_waiting_cancels_also_before_there_is_a_connection(run: Run) -> None:
    async def silent(peer: Peer) -> None:
        assert await peer.reader.read() == MAGIC

    async def main() -> None:
        async with Server(silent) as server:
            client = Client(server.address)
            early = client.submit(b"x")
            await client.close(wait=False)
            with pytest.raises(Cancelled, match="the client was closed"):
                await early
            client = Client(server.address)
            late = client.submit(b"x")
            while server.count == 0:
                await asyncio.sleep(0)
            await client.close(wait=False)
            with pytest.raises(Cancelled):
                await late

    run(main)


def test_close_that_is_cancelled_closes_all_the_same(run: Run) -> None:
    async def silent(peer: Peer) -> None:
        await (await peer.greet()).request()
        assert await peer.reader.read() == b""

    async def main() -> None:
        async with Server(silent) as server:
            client = Client(server.address)
            reply = client.submit(b"x")
            closing = asyncio.ensure_future(client.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            with pytest.raises(Cancelled):
                await reply

    run(main)


def test_a_forked_child_is_told_and_does_the_parent_no_harm(run: Run) -> None:
    def in_child(client: Client, address: str) -> int:
        async def main() -> None:
            with pytest.raises(GasparError, match=f"belongs to process {os.getppid()}, which forked"):
                await client.request(b"x")
            with pytest.raises(GasparError, match="which forked"):
                await client.close()

        try:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
        except BaseException:
            return 1
        return 0

    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            assert await client.request(b"x") == b"x"
            child = os.fork()
            if not child:
                asyncio._set_running_loop(None)
                os._exit(in_child(client, server.address))
            assert os.waitpid(child, 0)[1] == 0
            assert await client.request(b"x") == b"x"
            assert server.count == 1

    run(main)


# deadlines and cancelling


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [(None, 0), (0.0000001, 1), (30, 30000), (1.0005, 1001), (1e9, 2**32 - 1), (math.inf, 0)],
)
def test_the_daemon_is_told_the_deadline(run: Run, timeout: float | None, milliseconds: int) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.reply(frame)
        frame = await peer.request()
        peer.reply(frame, b"%d" % frame.a)

    async def main() -> None:
        async with Server(script) as server, Client(server.address, timeout=timeout) as client:
            await client.request(b"the connection is made", 30)
            told = int(await client.request(b"x"))
            assert told == milliseconds or 0 < milliseconds - 1000 < told < milliseconds

    run(main)


def test_past_its_deadline_a_request_is_an_error_and_the_daemon_is_told(run: Run) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        cancel = await peer.frame()
        assert (cancel.kind, cancel.id) == (FrameKind.CANCEL, frame.id)
        peer.reply(frame, b"too late")
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            with pytest.raises(RequestTimeout, match=f"{server.address}: no reply within 0.1 s") as caught:
                await client.request(b"x", 0.1)
            assert isinstance(caught.value, TimeoutError)
            assert await client.request(b"next", 30) == b"next"
            assert server.count == 1

    run(main)


def test_the_daemons_own_word_of_a_timeout_is_told(run: Run) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.refuse(frame, Code.TIMEOUT, "ran into its deadline", stack="where it was")

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            with pytest.raises(RequestTimeout, match="ran into its deadline") as caught:
                await client.request(b"x", 30)
            assert caught.value.stack == "where it was"

    run(main)


def test_the_deadline_holds_while_connecting_and_waiting_for_a_place(run: Run) -> None:
    async def silent(peer: Peer) -> None:
        assert await peer.reader.read() == MAGIC

    async def narrow(peer: Peer) -> None:
        frame = await (await peer.greet(max_in_flight=1)).request()
        cancel = await peer.frame()  # and the one that waited behind it was never sent
        assert (cancel.kind, cancel.id) == (FrameKind.CANCEL, frame.id)

    async def main() -> None:
        async with Server(silent, narrow) as server, Client(server.address) as client:
            with pytest.raises(RequestTimeout, match=r"no reply within 0\.1 s: .* got nothing, then silence"):
                await client.request(b"x", 0.1)
            first = client.submit(b"first")
            with pytest.raises(RequestTimeout, match=r"no reply within 0\.2 s, it could not even be sent"):
                await client.request(b"x", 0.2)
            first.cancel()
            assert server.count == 2  # who asks next does not wait for the silent one

    run(main)


def test_cancelling_who_awaits_cancels_the_request(run: Run) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        asked.set()
        cancel = await peer.frame()
        assert (cancel.kind, cancel.id) == (FrameKind.CANCEL, frame.id)
        peer.refuse(frame, Code.CANCELLED, "cancelled")
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            waiting = asyncio.ensure_future(client.request(b"x"))
            await asked.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await client.request(b"next", 30) == b"next"

    run(main)


def test_cancelling_a_future_cancels_the_request(run: Run) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        asked.set()
        cancel = await peer.frame()
        assert (cancel.kind, cancel.id) == (FrameKind.CANCEL, frame.id)
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            future = client.submit(b"x")
            await asked.wait()
            assert future.cancel()
            assert not future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
            done = client.submit(b"next")
            assert await done == b"next"
            assert not done.cancel()

    run(main)


def test_what_is_cancelled_at_once_is_never_sent(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            assert await client.request(b"x") == b"x"
            futures = [client.submit(bytes(size)) for size in (1, 100_000, 2)]
            futures[1].cancel()
            assert await asyncio.gather(futures[0], futures[2]) == [bytes(1), bytes(2)]

    run(main)


def test_many_that_are_cancelled_together_do_not_take_each_others_places(run: Run) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await (await peer.greet(max_in_flight=3)).request()
        for _ in "ab":
            await peer.request()
        asked.set()
        for _ in "abc":
            assert (await peer.frame()).kind == FrameKind.CANCEL
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            futures = [client.submit(b"x") for _ in range(1000)]
            await asked.wait()
            for future in futures:
                future.cancel()
            assert await client.request(b"next") == b"next"

    run(main)


# places and connections


def test_no_more_are_under_way_than_the_daemon_allows_and_who_waits_is_served_in_order(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_in_flight=3)
        frames = [await peer.request() for _ in range(3)]
        for number in range(10):
            # the fourth would be here by now: it is sent in the turn in which the client may
            assert [frame.body for frame in frames] == [b"%d" % n for n in range(number, min(number + 3, 10))]
            peer.reply(frames.pop(0))
            if number + 3 < 10:
                frames.append(await peer.request())

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            messages = [b"%d" % n for n in range(10)]
            assert await asyncio.gather(*map(client.request, messages)) == messages

    run(main)


def test_several_connections_share_the_load(run: Run) -> None:
    peers: list[Peer] = []
    held: list[tuple[Peer, Frame]] = []

    async def script(peer: Peer) -> None:
        await peer.greet()
        peers.append(peer)
        while True:
            frame = await peer.request()
            if frame.body != b"hold":
                peer.reply(frame)
                continue
            held.append((peer, frame))
            if len(held) == 8:
                for each, frame in held:
                    each.reply(frame)

    async def main() -> None:
        async with Server(script) as server, Client(server.address, 4) as client:
            assert len(await asyncio.gather(*(client.request(b"x") for _ in range(4)))) == 4
            while len(client._pool._open) < 4:
                await asyncio.sleep(0)
            await asyncio.gather(*(client.request(b"hold") for _ in range(8)))
            assert [[each for each, _ in held].count(peer) for peer in peers] == [2, 2, 2, 2]

    run(main)


def test_one_at_a_time_needs_one_connection(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address, 4) as client:
            for _ in range(20):
                await client.request(b"x")
            assert server.count == 1

    run(main)


def test_a_connection_more_that_cannot_be_had_disturbs_nobody(run: Run) -> None:
    async def refuse(peer: Peer) -> None:
        peer.reset()

    async def main() -> None:
        async with Server(echo, refuse) as server, Client(server.address, 2) as client:
            assert await client.request(b"x") == b"x"
            for _ in range(5):
                assert await asyncio.gather(*(client.request(b"x") for _ in range(20))) == [b"x"] * 20
            assert server.count == 2  # it is not tried again and again

    run(main)


def test_a_daemon_that_reads_slowly_holds_requests_back(run: Run) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        meta = encode_meta({"max_message": MAX_MESSAGE, "max_in_flight": 256})
        peer.send(encode(FrameKind.HELLO, meta=meta))
        await go.wait()
        peer.writer.transport.resume_reading()
        assert await peer.reader.readexactly(4) == MAGIC
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            replies = [client.submit(bytes(4_000_000)) for _ in range(8)]
            small = client.submit(b"small")
            while not (client._pool._open and client._pool._open[0]._full):
                await asyncio.sleep(0)
            (connection,) = client._pool._open
            assert connection.transport.get_write_buffer_size() <= 4_000_020
            late = client.submit(b"waits")
            assert late in client._pool.waiting
            go.set()
            assert await asyncio.gather(*replies) == [bytes(4_000_000)] * 8
            assert [await small, await late] == [b"small", b"waits"]

    run(main)


# connections that end


def test_nobody_there_is_explained(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        for address in (await nowhere(), f"unix:{os.path.relpath(tmp_path)}/nobody"):
            async with Client(address, 3) as client:
                await lost(client.request(b"x"), sent=False, match=f"{address}: nobody listens there")
                await lost(client.stream(b"x").__anext__(), sent=False, match=f"{address}: nobody listens there")
                errors = await asyncio.gather(*(client.request(b"x") for _ in range(3)), return_exceptions=True)
                assert len(set(map(id, errors))) == 3
        async with Client((await nowhere()).replace("127.0.0.1", "localhost")) as client:
            await lost(client.request(b"x"), sent=False, match="nobody listens there")
        async with Client("a..b:1") as client:
            await lost(client.request(b"x"), sent=False, match=r"a\.\.b:1: not a host name")

    run(main)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", encode(FrameKind.PONG, 5), b"\0" * 20])
def test_what_is_no_gaspar_is_explained(run: Run, words: bytes) -> None:
    async def script(peer: Peer) -> None:
        peer.send(words)

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            with pytest.raises(ConnectionLost) as caught:
                await client.request(b"x")
            assert f"expected the greeting of a gaspar daemon, got {words[:48]!r}" in str(caught.value)
            assert not caught.value.sent
            assert server.count == 1

    run(main)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_connection_that_ends_before_its_greeting_is_tried_three_times(run: Run, how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readexactly(4)
        getattr(peer, how)()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            await lost(
                client.request(b"x"),
                sent=False,
                match=f"{server.address}: expected the greeting of a gaspar daemon, got nothing, then the .*connection",
            )
            assert server.count == 3
        async with Server(script, script, echo) as server, Client(server.address) as client:
            assert await client.request(b"x") == b"x"

    run(main)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_request_that_may_have_run_is_not_sent_again(run: Run, how: str) -> None:
    async def script(peer: Peer) -> None:
        await (await peer.greet()).request()
        peer.send(b"\0\0\0")  # half a header
        getattr(peer, how)()

    async def main() -> None:
        async with Server(script, echo) as server, Client(server.address) as client:
            await lost(client.request(b"x"), sent=True, match=f"{server.address}: the .*connection.* before the reply")
            assert server.count == 1
            assert await client.request(b"x") == b"x"

    run(main)


def test_a_long_message_that_did_not_get_out_whole_is_sent_again(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await (await peer.greet()).reader.readexactly(1000)
        peer.reset()

    async def main() -> None:
        message = bytes(40_000_000)
        async with Server(script, echo) as server, Client(server.address) as client:
            assert await client.request(message) == message
            assert server.count == 2
        async with Server(script) as server, Client(server.address) as client:
            await lost(client.request(message), sent=False, match=server.address)
            assert server.count == 3

    run(main)


def test_an_error_of_the_connection_reaches_all_each_with_its_own_exception(run: Run) -> None:
    async def refuse(peer: Peer) -> None:
        await (await peer.greet()).request()
        await peer.request()
        peer.refuse(None, Code.BAD_FRAME, "this cannot be read")

    async def babble(peer: Peer) -> None:
        await (await peer.greet()).request()
        await peer.request()
        peer.send(b"\xff" * 20)

    async def main() -> None:
        async with Server(refuse, babble, echo) as server, Client(server.address) as client:
            for text in ("this cannot be read", "what the daemon sends is not the framed protocol"):
                errors = await asyncio.gather(*map(client.request, (b"a", b"b")), return_exceptions=True)
                assert [type(error) for error in errors] == [BadFrame] * 2
                assert all(text in str(error) for error in errors)
                assert errors[0] is not errors[1]
            assert await client.request(b"x") == b"x"
            assert server.count == 3

    run(main)


def test_an_error_for_one_request_leaves_the_others_alone(run: Run) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.refuse(frame, Code.OVERLOADED, "the queue is full")
        await peer.answer_all()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            replies = await asyncio.gather(*map(client.request, (b"a", b"b")), return_exceptions=True)
            assert isinstance(replies[0], Overloaded)
            assert replies[1] == b"b"

    run(main)


def test_an_idle_connection_that_ends_is_replaced(run: Run) -> None:
    async def once(peer: Peer) -> None:
        peer.reply(await (await peer.greet()).request())
        peer.end()

    async def main() -> None:
        async with Server(once, once, echo) as server, Client(server.address) as client:
            for _ in range(3):
                assert await client.request(b"x") == b"x"
                while server.count < 3 and client._pool.sockets.open:
                    await asyncio.sleep(0)
            assert server.count == 3

    run(main)


def test_after_goaway_what_is_under_way_ends_there_and_what_comes_goes_elsewhere(run: Run) -> None:
    go = asyncio.Event()

    async def drain(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.send(encode(FrameKind.GOAWAY))
        await go.wait()
        peer.reply(frame, b"from the old one")
        assert await peer.reader.read() == b""  # no request came after

    async def main() -> None:
        async with Server(drain, echo) as server, Client(server.address) as client:
            first = client.submit(b"first")
            while not (client._pool.sockets.open and next(iter(client._pool.sockets.open)).session.leaving):
                await asyncio.sleep(0)
            assert await client.request(b"second") == b"second"
            assert not first.done()
            go.set()
            assert await first == b"from the old one"
            assert server.count == 2

    run(main)


def test_what_a_drained_connection_did_not_answer_is_sent_again(run: Run) -> None:
    async def drain(peer: Peer) -> None:
        await peer.greet(max_in_flight=3)
        for _ in "abc":
            await peer.request()
        peer.send(encode(FrameKind.GOAWAY))
        peer.end()

    async def main() -> None:
        async with Server(drain, echo) as server, Client(server.address) as client:
            messages = [b"%d" % n for n in range(6)]
            assert await asyncio.gather(*map(client.request, messages)) == messages
            assert server.count == 2

    run(main)


@pytest.mark.parametrize("count", [7, 20, 1000, 199_000])
def test_what_a_drained_connection_did_not_answer_may_have_run_if_it_ended_inside_a_frame(run: Run, count: int) -> None:
    async def drain(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.send(encode(FrameKind.GOAWAY) + encode(FrameKind.REPLY, frame.id, bytes(199_000))[:count])
        peer.end()

    async def main() -> None:
        for method in ("request", "stream"):
            async with Server(drain, echo) as server, Client(server.address) as client:
                await lost(whole(client, method), sent=True, match="closed the connection")
                assert server.count == 1

    run(main)


@pytest.mark.parametrize("body", [b"", b"part"])
def test_what_had_begun_to_stream_when_a_drained_connection_ended_was_run(run: Run, body: bytes) -> None:
    async def drain(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.send(encode(FrameKind.PART, frame.id, body) + encode(FrameKind.GOAWAY))
        peer.end()

    async def main() -> None:
        for method in ("request", "stream"):
            async with Server(drain, echo) as server, Client(server.address) as client:
                await lost(whole(client, method), sent=True, match="closed the connection")
                assert server.count == 1

    run(main)


def test_what_a_drained_connection_did_not_answer_may_have_run_over_a_unix_socket(
    run: Run, tmp_path: pathlib.Path
) -> None:
    """Which has no reset: a front that was killed ends in the same way."""

    async def drain(peer: Peer) -> None:
        await (await peer.greet()).request()
        peer.send(encode(FrameKind.GOAWAY))
        peer.end()

    async def main() -> None:
        for method in ("request", "stream"):
            path = os.path.relpath(tmp_path / method)
            async with Server(drain, echo, path=path) as server, Client(server.address) as client:
                await lost(whole(client, method), sent=True, match="closed the connection")
                assert server.count == 1
                assert await whole(client, method) == b"x"

    run(main)


def test_what_was_reset_after_goaway_may_have_run(run: Run) -> None:
    async def drain(peer: Peer) -> None:
        await (await peer.greet()).request()
        peer.send(encode(FrameKind.GOAWAY))
        await peer.writer.drain()
        await go.wait()
        peer.reset()

    go = asyncio.Event()

    async def main() -> None:
        async with Server(drain) as server, Client(server.address) as client:
            reply = client.submit(b"x")
            while not (client._pool.sockets.open and next(iter(client._pool.sockets.open)).session.leaving):
                await asyncio.sleep(0)
            go.set()
            await lost(reply, sent=True, match="reset before the reply was there")
            assert server.count == 1

    run(main)


def test_a_request_that_met_a_drain_is_sent_again_once(run: Run) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.greet()
        while True:
            peer.refuse(await peer.request(), Code.SHUTTING_DOWN, "draining")

    async def main() -> None:
        async with Server(refuse, echo) as server, Client(server.address) as client:
            assert await asyncio.gather(*map(client.request, (b"a", b"b"))) == [b"a", b"b"]
            assert server.count == 2
        async with Server(refuse) as server, Client(server.address) as client:
            with pytest.raises(ShuttingDown, match="draining"):
                await client.request(b"x")
            assert server.count == 2

    run(main)


def test_a_request_that_met_a_drain_and_finds_nobody_else_says_so(run: Run) -> None:
    servers: list[Server] = []

    async def refuse(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        servers[0].stop_listening()
        peer.refuse(frame, Code.SHUTTING_DOWN, "draining")

    async def main() -> None:
        async with Server(refuse) as server, Client(server.address) as client:
            servers.append(server)
            with pytest.raises(ShuttingDown, match="draining"):
                await client.request(b"x")

    run(main)


@pytest.mark.parametrize("early", [True, False])
def test_a_daemon_that_only_drains_is_not_asked_for_ever(run: Run, early: bool) -> None:
    async def drain(peer: Peer) -> None:
        await peer.greet()
        if not early:
            await peer.writer.drain()
            await peer.request()
        peer.send(encode(FrameKind.GOAWAY))
        peer.end()

    async def main() -> None:
        async with Server(drain) as server, Client(server.address) as client:
            await lost(client.request(b"x"), sent=False, match=server.address)
            assert server.count == 3

    run(main)


# map


async def slowly(messages: list[bytes], go: asyncio.Event) -> AsyncIterator[bytes]:
    """Give the first message at once, the rest when told to."""
    for number, message in enumerate(messages):
        if number:
            await go.wait()
        yield message


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("in_flight", [1, 2, 64])
def test_map_yields_all_replies(run: Run, ordered: bool, in_flight: int) -> None:
    async def main() -> None:
        go = asyncio.Event()
        go.set()
        messages = [b"%d" % n for n in range(200)]
        async with Server(echo) as server, Client(server.address) as client:
            for source in (messages, iter(messages), slowly(messages, go)):
                replies = [reply async for reply in client.map(source, ordered, in_flight, timeout=30)]
                assert (replies if ordered else sorted(replies, key=int)) == messages
            assert [reply async for reply in client.map([], ordered)] == []

    run(main)


def test_map_in_order_waits_for_the_first_and_out_of_order_for_any(run: Run) -> None:
    async def backwards(peer: Peer) -> None:
        await peer.greet()
        while True:
            for frame in reversed([await peer.request() for _ in range(4)]):
                peer.reply(frame)

    async def main() -> None:
        async with Server(backwards) as server, Client(server.address) as client:
            messages = [b"1", b"2", b"3", b"4"]
            assert [reply async for reply in client.map(messages)] == messages
            assert [reply async for reply in client.map(messages, False)] == messages[::-1]

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_map_reads_its_messages_no_further_than_it_may(run: Run, ordered: bool) -> None:
    async def main() -> None:
        given: list[int] = []

        def endless() -> Iterator[bytes]:
            for number in range(10**9):
                given.append(number)
                yield b"x"

        async with Server(echo) as server, Client(server.address) as client:
            replies = client.map(endless(), ordered, 5)
            assert not given
            taken = 0
            async for _ in replies:
                taken += 1
                for _ in range(20):  # turns in which more could be read, if it were
                    await asyncio.sleep(0)
                assert len(given) <= taken + 5
                if taken == 30:
                    break
            await replies.aclose()

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_source_holds_no_reply_back(run: Run, ordered: bool) -> None:
    async def main() -> None:
        go = asyncio.Event()
        async with Server(echo) as server, Client(server.address) as client:
            replies = client.map(slowly([b"1", b"2"], go), ordered)
            assert await replies.__anext__() == b"1"
            go.set()
            assert [reply async for reply in replies] == [b"2"]

    run(main)


def test_an_error_in_a_map_is_raised_at_its_place_and_ends_it(run: Run) -> None:
    cancelled = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.greet()
        for number in range(4):
            frame = await peer.request()
            if number == 1:
                peer.refuse(frame, Code.HANDLER_ERROR, "no", type="ValueError")
            elif number != 3:
                peer.reply(frame)
        cancel = await peer.frame()
        assert (cancel.kind, cancel.id) == (FrameKind.CANCEL, frame.id)
        cancelled.set()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            replies = client.map([b"1", b"2", b"3", b"4"])
            assert await replies.__anext__() == b"1"
            with pytest.raises(HandlerError, match="ValueError: no"):
                await replies.__anext__()
            with pytest.raises(StopAsyncIteration):
                await replies.__anext__()
            await cancelled.wait()

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_errors_in_a_map_can_be_yielded(run: Run, ordered: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        while True:
            frame = await peer.frame()
            if frame.body == b"bad":
                peer.refuse(frame, Code.HANDLER_ERROR, "no", type="ValueError")
            elif frame.kind == FrameKind.REQUEST:
                peer.reply(frame)

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            messages: list[Any] = [b"1", b"bad", "a str", b"2"]
            kinds = [type(each) async for each in client.map(messages, ordered, return_exceptions=True)]
            expected = [Reply, HandlerError, TypeError, Reply]
            assert kinds == expected if ordered else sorted(map(str, kinds)) == sorted(map(str, expected))
            replies = client.map(messages[2:])
            with pytest.raises(TypeError, match="encode it first"):
                await replies.__anext__()

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_what_the_source_of_a_map_raises_comes_after_the_replies_before_it(run: Run, ordered: bool) -> None:
    def broken() -> Iterator[bytes]:
        yield b"1"
        yield b"2"
        raise ZeroDivisionError

    async def broken_too() -> AsyncIterator[bytes]:
        for message in broken():
            yield message

    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            for source in (broken(), broken_too()):
                replies = client.map(source, ordered, return_exceptions=True)
                assert [await replies.__anext__(), await replies.__anext__()] == [b"1", b"2"]
                with pytest.raises(ZeroDivisionError):
                    await replies.__anext__()
            with pytest.raises(TypeError, match="not iterable"):
                await client.map(7).__anext__()

    run(main)


def test_closing_a_map_early_cancels_what_is_under_way(run: Run) -> None:
    cancelled = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.greet()
        frames = [await peer.request() for _ in range(5)]
        peer.reply(frames[0])
        missing = {frame.id for frame in frames[1:]}
        while missing:
            frame = await peer.frame()
            if frame.kind == FrameKind.REQUEST:
                missing.add(frame.id)
            else:
                missing.discard(frame.id)
        cancelled.set()

    async def main() -> None:
        never = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"x"
            await never.wait()

        async with Server(script) as server, Client(server.address) as client:
            replies = client.map(source())
            assert await replies.__anext__() == b"x"
            await replies.aclose()
            await cancelled.wait()

    run(main)


def test_cancelling_who_takes_from_a_map_cancels_what_is_under_way(run: Run) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await (await peer.greet()).request()
        await peer.request()
        asked.set()
        for _ in "ab":
            assert (await peer.frame()).kind == FrameKind.CANCEL
        cancelled.set()

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:

            async def take() -> None:
                async for _ in client.map([b"1", b"2"]):
                    pass

            taking = asyncio.ensure_future(take())
            await asked.wait()
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            await cancelled.wait()

    run(main)


def test_failures_in_a_map_that_is_closed_early_are_nobodys_business(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        frames = [await peer.request() for _ in range(3)]
        for frame in frames:
            peer.refuse(frame, Code.HANDLER_ERROR, "no", type="ValueError")

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            with pytest.raises(HandlerError):
                async for _ in client.map([b"1", b"2", b"3"]):
                    pass

    run(main)


# streams


async def take_all(stream: AsyncIterator[bytes], parts: list[bytes], got: asyncio.Event | None = None) -> None:
    async for part in stream:
        parts.append(part)
        if got is not None:
            got.set()


def parts_of(count: int, size: int) -> Script:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        for number in range(count):
            peer.send(encode(FrameKind.PART, frame.id, bytes([number % 256]) * size))
            peer.send(encode(FrameKind.PART, frame.id))  # nothing
            await peer.writer.drain()
        peer.send(encode(FrameKind.REPLY, frame.id))

    return script


@pytest.mark.parametrize(("count", "size"), [(3, 1), (2000, 10), (40, 300_000), (2, 5_000_000), (0, 0)])
def test_a_stream_gives_the_parts(run: Run, count: int, size: int) -> None:
    async def main() -> None:
        async with Server(parts_of(count, size)) as server, Client(server.address) as client:
            parts = [part async for part in client.stream(b"x")]
            assert parts == [bytes([number % 256]) * size for number in range(count)] or not count
            assert parts == [b""] or count

    run(main)


def test_a_stream_ends_with_what_its_last_frame_brings(run: Run) -> None:
    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        await peer.slowly(encode(FrameKind.PART, frame.id, b"part"))
        await peer.slowly(encode(FrameKind.REPLY, frame.id, b"last"))

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            assert [part async for part in client.stream(b"x")] == [b"part", b"last"]

    run(main)


def test_a_handler_that_does_not_stream_gives_one_part(run: Run) -> None:
    async def main() -> None:
        async with Server(echo) as server, Client(server.address) as client:
            for message in (b"", b"x", bytes(300_000)):
                assert [part async for part in client.stream(message)] == [message]
            assert await client.request(b"x") == b"x"
            assert server.count == 4  # each stream has a connection of its own

    run(main)


def test_a_stream_that_is_not_read_is_held_up(run: Run) -> None:
    async def script(peer: Peer) -> None:
        nonlocal sent
        peers.append(peer)
        frame = await (await peer.greet()).request()
        for _ in range(400):
            peer.send(encode(FrameKind.PART, frame.id, bytes(100_000)))
            sent += 1
            await peer.writer.drain()
        peer.send(encode(FrameKind.REPLY, frame.id))

    sent = 0
    peers: list[Peer] = []

    async def main() -> None:
        async with Server(script) as server, Client(server.address) as client:
            stream = client.stream(b"x")
            assert await stream.__anext__() == bytes(100_000)
            (pool,) = client._streams
            (connection,) = pool.sockets.open
            while connection.transport.is_reading():
                await asyncio.sleep(0)
            (call,) = connection.session.calls.values()
            assert call._unread < 1_300_000
            while not peers[0].writer.transport.get_write_buffer_size():
                await asyncio.sleep(0)
            assert sent < 400
            assert len([part async for part in stream]) == 399
            assert sent == 400

    run(main)


def test_leaving_a_stream_early_closes_its_connection(run: Run) -> None:
    gone: list[bytes] = []

    async def endless(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        try:
            while True:
                peer.send(encode(FrameKind.PART, frame.id, b"x" * 1000))
                await peer.writer.drain()
                await asyncio.sleep(0)
        finally:
            gone.append(b"x")

    async def main() -> None:
        async with Server(endless) as server, Client(server.address) as client:
            stream = client.stream(b"x")
            async for _ in stream:
                break
            await stream.aclose()
            while not gone:
                await asyncio.sleep(0)
            async for _ in client.stream(b"x"):
                break
            while len(gone) < 2:
                await asyncio.sleep(0)
            assert not client._streams

    run(main)


def test_closing_the_client_lets_its_streams_go_on_or_cancels_them(run: Run) -> None:
    async def main() -> None:
        async with Server(parts_of(400, 100_000)) as server:
            async with Client(server.address) as client:
                stream = client.stream(b"x")
                assert await stream.__anext__() == bytes(100_000)
            parts: list[bytes] = []
            await take_all(stream, parts)
            assert len(parts) == 399
            client = Client(server.address)
            stream = client.stream(b"x")
            assert await stream.__anext__() == bytes(100_000)
            await client.close(wait=False)
            with pytest.raises(Cancelled, match="the client was closed"):
                await take_all(stream, parts)
            with pytest.raises(GasparError, match="the client is closed"):
                await client.stream(b"x").__anext__()

    run(main)


@pytest.mark.parametrize("how", ["an error", "end", "reset", "nothing"])
def test_what_ends_a_stream_in_the_middle_is_raised_after_the_parts(run: Run, how: str) -> None:
    got = asyncio.Event()

    async def script(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        for _ in range(3):
            peer.send(encode(FrameKind.PART, frame.id, b"part"))
        if how == "an error":
            peer.refuse(frame, Code.HANDLER_ERROR, "no", type="ValueError")
        elif how != "nothing":
            await got.wait()
            getattr(peer, how)()

    async def main() -> None:
        expected = {"an error": HandlerError, "nothing": RequestTimeout}.get(how, ConnectionLost)
        async with Server(script) as server, Client(server.address) as client:
            parts: list[bytes] = []
            with pytest.raises(expected) as caught:
                await take_all(client.stream(b"x", 0.1 if how == "nothing" else 30), parts, got)
            assert parts == [b"part"] * 3
            assert getattr(caught.value, "sent", True)
            assert server.count == 1

    run(main)


def test_a_stream_that_met_a_drain_is_asked_for_again_unless_it_has_begun(run: Run) -> None:
    async def refuse(peer: Peer) -> None:
        peer.refuse(await (await peer.greet()).request(), Code.SHUTTING_DOWN, "draining")

    async def refuse_later(peer: Peer) -> None:
        frame = await (await peer.greet()).request()
        peer.send(encode(FrameKind.PART, frame.id, b"part"))
        peer.refuse(frame, Code.SHUTTING_DOWN, "draining")

    async def main() -> None:
        async with Server(refuse, parts_of(3, 3), refuse_later) as server, Client(server.address) as client:
            assert len([part async for part in client.stream(b"x")]) == 3
            stream = client.stream(b"x")
            assert await stream.__anext__() == b"part"
            with pytest.raises(ShuttingDown):
                await stream.__anext__()

    run(main)


def test_two_streams_do_not_hold_each_other_up(run: Run) -> None:
    async def main() -> None:
        async with Server(parts_of(200, 100_000)) as server, Client(server.address) as client:
            slow, fast = client.stream(b"x"), client.stream(b"x")
            await slow.__anext__()
            assert len([part async for part in fast]) == 200
            assert len([part async for part in slow]) == 199

    run(main)


# all of it at once


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_daemon_does_each_request_ends_once_in_its_own_reply_or_an_error(run: Run, seed: int) -> None:
    dice = random.Random(seed)

    async def moody(peer: Peer) -> None:
        most = dice.choice((1, 7, 64))
        await peer.greet(most)
        held: list[Frame] = []
        while True:
            # what it keeps to itself it tells as soon as nothing more is asked
            with contextlib.suppress(asyncio.TimeoutError):
                frame = await asyncio.wait_for(peer.frame(), 0.05 if held else None)
                if frame.kind == FrameKind.REQUEST:
                    held.append(frame)
                    dice.shuffle(held)
                    if react(peer, dice.random(), held):
                        continue
                else:
                    held = [each for each in held if each.id != frame.id]
            for each in held:
                peer.reply(each)
            held.clear()

    def react(peer: Peer, mood: float, held: list[Frame]) -> bool:
        if mood < 0.004:
            peer.reset()
        elif mood < 0.008:
            peer.send(encode(FrameKind.REPLY, held[0].id, bytes(1000))[:-1])
            peer.end()
        elif mood < 0.012:
            peer.send(encode(FrameKind.GOAWAY))
            peer.end()
        elif mood < 0.014:
            peer.refuse(None, Code.BAD_FRAME, "on a whim")
        elif mood < 0.03:
            peer.refuse(held.pop(), Code.SHUTTING_DOWN, "draining")
        elif mood < 0.05:
            peer.refuse(held.pop(), Code.HANDLER_ERROR, "no", type="ValueError")
        else:
            return mood > 0.9
        return True

    async def main() -> None:
        async with Server(moody) as server, Client(server.address, 3) as client:

            async def ask(number: int) -> None:
                message = b"%d:" % number + bytes(dice.choice((0, 10, 100_000)))
                future = client.submit(message, 0.01 if dice.random() < 0.05 else 45)
                if dice.random() < 0.1:
                    asyncio.get_running_loop().call_later(dice.random() / 10, future.cancel)
                try:
                    assert await future == message
                except (GasparError, asyncio.CancelledError) as error:
                    ends[type(error)] = ends.get(type(error), 0) + 1
                else:
                    ends[Reply] = ends.get(Reply, 0) + 1

            ends: dict[type, int] = {}
            await asyncio.gather(*map(ask, range(600)))
            assert sum(ends.values()) == 600
            assert ends[Reply]
            pool = client._pool
            assert not pool.waiting and not pool._unanswered
            assert not any(connection.session.calls for connection in pool.sockets.open)

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
@pytest.mark.parametrize("run", ["asyncio"], indirect=True)  # uvloop 0.23 does not get along with them
def test_eager_tasks_change_nothing(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with Client(f"unix:{os.path.relpath(tmp_path)}/nobody", 3) as client:
            await lost(client.request(b"x"), sent=False, match="nobody listens there")
        async with Server(echo) as server, Client(server.address) as client:
            messages = [b"%d" % n for n in range(100)]
            assert await asyncio.gather(*map(client.request, messages)) == messages
            assert [reply async for reply in client.map(messages)] == messages
            assert [part async for part in client.stream(b"x")] == [b"x"]
        asyncio.get_running_loop().set_task_factory(None)

    run(main)


# the real daemon


def test_the_daemon_answers_many_at_once(run: Run, serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")

    async def main() -> None:
        messages = [b"%d:" % n + bytes(n * n) for n in range(500)]
        async with Client(daemon.address, 2, timeout=30) as client:
            replies = await asyncio.gather(*map(client.request, messages))
            assert replies == messages
            assert any(reply.receipt.ran > 0 for reply in replies)
            assert [reply async for reply in client.map(messages)] == messages
            assert sorted([reply async for reply in client.map(messages, False)]) == sorted(messages)
            assert await client.request(bytes(20_000_000)) == bytes(20_000_000)
            with pytest.raises(TooBig, match="--max-message"):
                await client.request(bytes(70_000_000))
            assert await client.request(b"") == b""

    run(main)


def test_the_daemons_errors_come_as_what_they_are(run: Run, serve: Serve) -> None:
    daemon = serve("errand", "-p", "2")

    async def main() -> None:
        async with Client(daemon.address, timeout=30) as client:
            with pytest.raises(HandlerError, match="ValueError: the handler's own words") as caught:
                await client.request(b"raise")
            assert "handlers.py" in caught.value.traceback
            with pytest.raises(ConsumerLost):
                await client.request(b"os._exit(7)")
            assert await client.request(b"x") == b"x"

    run(main)


def test_the_daemon_keeps_the_deadline_and_drops_what_is_cancelled(
    run: Run, serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("errand", "-p", "1")

    async def main() -> None:
        async with Client(daemon.address) as client:
            go, ran = tmp_path / "go", tmp_path / "ran"
            with pytest.raises(RequestTimeout):
                await client.request(b"await %s" % bytes(go), 0.2)
            never = client.submit(b"note %s" % bytes(ran))
            last = client.submit(b"last")
            await asyncio.sleep(0)
            never.cancel()
            await asyncio.sleep(0)
            await asyncio.get_running_loop().run_in_executor(None, daemon.ask_nothing)
            go.touch()
            assert await last == b"last"
            assert not ran.exists()

    run(main)


def test_the_daemon_streams(run: Run, serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("streams", "-p", "2")

    async def main() -> None:
        async with Client(daemon.address, timeout=60) as client:
            parts = [part async for part in client.stream(b"count 300 100000")]
            assert parts == [bytes([number % 256]) * 100_000 for number in range(300)]
            assert await client.request(b"count 3 2") == b"\0\0\1\1\2\2"
            got: list[bytes] = []
            with pytest.raises(HandlerError, match="the generator's own words"):
                await take_all(client.stream(b"raise"), got)
            assert b"".join(got) == b"one two "
            endless = client.stream(b"endless %s 1000" % bytes(tmp_path))
            assert await endless.__anext__() == bytes(1000)
            await endless.aclose()
            await asyncio.get_running_loop().run_in_executor(None, wait_until, (tmp_path / "closed").exists)

    run(main)


def test_a_daemon_that_stops_answers_what_it_has(run: Run, serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("await_file", "-p", "2")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Client(daemon.address, timeout=60) as client:
            assert await client.request(b"") == b""
            go = bytes(tmp_path / "go")
            replies = [client.submit(go) for _ in range(5)]
            await asyncio.sleep(0)
            await loop.run_in_executor(None, daemon.ask_nothing)
            daemon.remember()
            daemon.signal(signal.SIGTERM)
            (connection,) = client._pool.sockets.open
            while not connection.session.leaving:
                await asyncio.sleep(0.001)
            with pytest.raises((ConnectionLost, ShuttingDown)):
                await client.request(b"")
            (tmp_path / "go").touch()
            assert await asyncio.gather(*replies) == [go] * 5
            assert await loop.run_in_executor(None, daemon.end) == 0
            await lost(client.request(b""), sent=False, match="nobody listens there")

    run(main)


def test_a_front_that_is_killed_costs_what_is_under_way_and_no_more(
    run: Run, serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("await_file", "-p", "1")

    async def main() -> None:
        async with Client(daemon.address, timeout=60) as client:
            assert await client.request(b"") == b""
            reply = client.submit(bytes(tmp_path / "go"))
            await asyncio.sleep(0)
            os.kill(daemon.front, signal.SIGKILL)
            await lost(reply, sent=True, match="before the reply was there")
            (tmp_path / "go").touch()
            assert await client.request(b"") == b""

    run(main)
