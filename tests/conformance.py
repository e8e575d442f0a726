"""What each client does, whatever it runs on. A program: `conformance.py LOOP ADDRESS` prints how each went, as JSON.

The behaviours are written once, as coroutines against `Any`. For the blocking client these never really wait: they
run in a thread, or in a green one, from their beginning to their end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

LOOPS = ("threads", "eventlet", "gevent", "asyncio", "uvloop")
Behaviour = Callable[[Any], Coroutine[Any, Any, None]]
BEHAVIOURS: list[Behaviour] = []


def behaviour(function: Behaviour) -> Behaviour:
    """Note one of them."""
    BEHAVIOURS.append(function)
    return function


class Blocking:
    """gaspar.Client, as the behaviours see it."""

    def __init__(self, address: str) -> None:
        import gaspar

        self._address = address
        self._client = gaspar.Client(address)

    async def request(self, message: Any, **more: Any) -> Any:
        return self._client.request(message, **more)

    async def map(self, messages: Any, **more: Any) -> Any:
        for reply in self._client.map(messages, **more):
            yield reply

    async def stream(self, message: bytes, **more: Any) -> Any:
        for part in self._client.stream(message, **more):
            yield part

    async def begin(self, message: bytes) -> Any:
        return self._client.submit(message)

    async def end(self, future: Any) -> Any:
        return future.result(timeout=30)

    async def at_once(self, messages: list[bytes]) -> list[Any]:
        import threading

        replies: dict[bytes, Any] = {}

        def ask(message: bytes) -> None:
            replies[message] = self._client.request(message)

        threads = [threading.Thread(target=ask, args=[message]) for message in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [replies[message] for message in messages]

    async def close(self) -> None:
        self._client.close()

    def another(self, address: str) -> Blocking:
        return Blocking(address)


class Looped:
    """gaspar.aio.Client, as the behaviours see it."""

    def __init__(self, address: str) -> None:
        import gaspar.aio

        self._client = gaspar.aio.Client(address)
        self.request, self.map, self.stream = self._client.request, self._client.map, self._client.stream
        self.close = self._client.close

    async def begin(self, message: bytes) -> Any:
        return self._client.submit(message)

    async def end(self, future: Any) -> Any:
        return await asyncio.wait_for(future, 30)

    async def at_once(self, messages: list[bytes]) -> list[Any]:
        return list(await asyncio.gather(*map(self._client.request, messages)))

    def another(self, address: str) -> Looped:
        return Looped(address)


async def error_of(waited: Awaitable[Any]) -> Any:
    """Return the exception that it raises."""
    try:
        await waited
    except Exception as error:
        return error
    raise AssertionError("no error")


async def all_of(parts: Any) -> list[Any]:
    return [part async for part in parts]


@behaviour
async def a_reply_is_what_the_handler_made_and_has_a_receipt(client: Any) -> None:
    reply = await client.request(b"hello")
    assert reply == b"hello" and isinstance(reply, bytes)
    assert reply.receipt.waited >= 0 and 0 < reply.receipt.ran < 30


@behaviour
async def messages_may_be_empty_long_and_of_any_buffer(client: Any) -> None:
    assert await client.request(b"") == b""
    long = bytes(range(256)) * 4000
    assert await client.request(long) == long
    assert await client.request(bytearray(b"array")) == b"array"
    assert await client.request(memoryview(b"a view")[2:]) == b"view"


@behaviour
async def many_at_once_get_each_its_own(client: Any) -> None:
    messages = [b"%d" % number for number in range(60)]
    assert await client.at_once(messages) == messages


@behaviour
async def a_handler_that_raises_is_told_with_its_own_traceback(client: Any) -> None:
    error = await error_of(client.request(b"raise"))
    assert type(error).__name__ == "HandlerError" and error.code == 6 and error.type == "ValueError"
    assert "the handler's own words" in str(error) and "handlers.py" in error.traceback
    assert error.receipt.ran > 0
    shown = "".join(traceback.format_exception(error))
    assert shown.index("conformance.py") < shown.index("handlers.py"), "the remote traceback is below the local one"
    assert await client.request(b"on it goes") == b"on it goes"


@behaviour
async def a_reply_that_is_none_is_told(client: Any) -> None:
    error = await error_of(client.request(b"return None"))
    assert type(error).__name__ == "BadReply" and "None" in str(error)


@behaviour
async def a_consumer_that_dies_is_told_with_how(client: Any) -> None:
    error = await error_of(client.request(b"os._exit(7)"))
    assert type(error).__name__ == "ConsumerLost" and "7" in error.exit
    assert await client.request(b"on it goes") == b"on it goes"


@behaviour
async def a_time_limit_is_kept(client: Any) -> None:
    error = await error_of(client.request(b"hang on a lock", timeout=0.2))
    assert type(error).__name__ == "RequestTimeout" and isinstance(error, TimeoutError)
    assert await client.request(b"on it goes", timeout=20) == b"on it goes"


@behaviour
async def a_message_that_is_too_long_is_refused_here(client: Any) -> None:
    await client.request(b"hello")
    error = await error_of(client.request(bytes(2 * 2**20)))
    assert type(error).__name__ == "TooBig" and "2097152" in str(error) and "--max-message" in str(error)
    assert await client.request(b"on it goes") == b"on it goes"


@behaviour
async def what_is_no_message_is_a_type_error(client: Any) -> None:
    for wrong in ("text", 7, None):
        assert isinstance(await error_of(client.request(wrong)), TypeError)


@behaviour
async def a_map_is_in_order_lazy_and_endless(client: Any) -> None:
    taken = []

    def endless() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield b"%d" % number

    seen = []
    replies = client.map(endless(), in_flight=8)
    async for reply in replies:
        seen.append(reply)
        if len(seen) == 20:
            break
    await replies.aclose()
    assert seen == [b"%d" % number for number in range(20)]
    assert len(taken) <= 20 + 8


@behaviour
async def a_map_without_order_yields_each_once(client: Any) -> None:
    messages = [b"%d" % number for number in range(100)]
    assert sorted(await all_of(client.map(messages, ordered=False))) == sorted(messages)


@behaviour
async def a_maps_error_comes_in_its_place(client: Any) -> None:
    messages = [b"1", b"raise", b"2"]
    first, error, last = await all_of(client.map(messages, return_exceptions=True))
    assert (first, last) == (b"1", b"2") and type(error).__name__ == "HandlerError"
    got = []

    async def take() -> None:
        async for reply in client.map(messages):
            got.append(reply)

    assert type(await error_of(take())).__name__ == "HandlerError"
    assert got == [b"1"]


@behaviour
async def a_stream_gives_parts(client: Any) -> None:
    assert await all_of(client.stream(b"stream count 3 2")) == [b"\0\0", b"\1\1", b"\2\2"]
    assert await all_of(client.stream(b"whole")) == [b"whole"]
    assert await client.request(b"stream count 3 2") == b"\0\0\1\1\2\2"


@behaviour
async def a_streams_error_comes_after_its_parts(client: Any) -> None:
    got = []

    async def take() -> None:
        async for part in client.stream(b"stream raise"):
            got.append(part)

    error = await error_of(take())
    assert type(error).__name__ == "HandlerError" and "the generator's own words" in str(error)
    assert got == [b"one ", b"two "]


@behaviour
async def a_stream_may_be_left(client: Any) -> None:
    parts = client.stream(b"stream count 1000000 10")
    async for part in parts:
        assert part == bytes(10)
        break
    await parts.aclose()
    assert await client.request(b"on it goes") == b"on it goes"


@behaviour
async def a_cancelled_request_holds_up_nobody(client: Any) -> None:
    futures = [await client.begin(b"hello") for _ in range(50)]
    assert [each.cancel() for each in futures[::2]].count(True) + sum(each.done() for each in futures[::2]) >= 25
    assert [await client.end(each) for each in futures[1::2]] == [b"hello"] * 25


@behaviour
async def nobody_listening_is_told_and_that_nothing_was_sent(client: Any) -> None:
    other = client.another("unix:/nowhere/at/all")
    error = await error_of(other.request(b"hello", timeout=10))
    assert type(error).__name__ == "ConnectionLost" and isinstance(error, ConnectionError) and error.sent is False
    await other.close()


@behaviour
async def a_closed_client_says_so(client: Any) -> None:
    await client.close()
    error = await error_of(client.request(b"hello"))
    assert type(error).__name__ == "GasparError" and "closed" in str(error)


async def try_all(new: Callable[[], Any]) -> dict[str, str]:
    """Run them all, each with a client of its own; returns what went wrong, "" where nothing did."""
    outcome = {}
    for each in BEHAVIOURS:
        client = new()
        try:
            await each(client)
            outcome[each.__name__] = ""
        except BaseException:
            outcome[each.__name__] = traceback.format_exc()
        await client.close()
    return outcome


def drive(coroutine: Coroutine[Any, Any, dict[str, str]]) -> dict[str, str]:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: dict[str, str] = end.value
        return result
    raise AssertionError("it waits")


def main(loop: str, address: str) -> None:
    """Run them on one kind of loop."""
    if loop == "eventlet":
        import eventlet

        eventlet.monkey_patch()
    elif loop == "gevent":
        from gevent import monkey

        monkey.patch_all()
    if loop in ("asyncio", "uvloop"):
        if loop == "uvloop":
            import uvloop

            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        outcome = asyncio.run(try_all(lambda: Looped(address)))
    else:
        outcome = drive(try_all(lambda: Blocking(address)))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
