"""Calls good and bad handlers and runs good and bad generators, as a consumer does."""

from __future__ import annotations

import array
import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from gaspar import outcome
from gaspar.errors import MAX_DETAIL, Code

MAX = 1000  # max_message


class Forks:
    """Stands for a ForkWatch: the real one changes what each fork of this process does."""

    noted = False
    checked = 0

    def check(self) -> None:
        self.checked += 1
        self.noted = False


def call(handle: Callable[[bytes], Any], payload: bytes = b"payload") -> tuple[int, Any]:
    return outcome.of_call(handle, payload, MAX, Forks())  # type: ignore[arg-type]


def run(parts: Generator[Any, None, Any], wanted: int = 10**9) -> tuple[list[bytes], int, Any]:
    """Run a generator whose client wants so many parts; returns them, the code and the body."""
    got: list[bytes] = []

    def send(part: bytes | memoryview) -> bool:
        if len(got) >= wanted:
            return False
        got.append(bytes(part))
        return True

    code, body = outcome.of_stream(parts, send, MAX, Forks())  # type: ignore[arg-type]
    return got, code, body


def told(body: Any) -> dict[str, str]:
    assert len(body) <= MAX_DETAIL
    found: dict[str, str] = json.loads(body)
    return found


# ---- one reply ----


def test_bytes_are_the_reply_as_they_are() -> None:
    reply = b"a reply"
    assert call(lambda _: reply) == (0, reply)
    assert call(lambda _: reply)[1] is reply
    assert call(lambda message: message, b"given") == (0, b"given")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"-abc-")[1:4], b"abc"),
        (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
        (memoryview(array.array("d", [1.5])), array.array("d", [1.5]).tobytes()),
        (memoryview(bytes(6)).cast("B", (2, 3)), bytes(6)),
        (b"", b""),
        (bytearray(), b""),
        (bytes(MAX), bytes(MAX)),
        (bytearray(MAX), bytes(MAX)),
    ],
)
def test_what_is_bytes_like_is_a_reply(reply: Any, expected: bytes) -> None:
    code, body = call(lambda _: reply)
    assert code == 0
    assert bytes(body) == expected
    assert len(body) == len(expected)  # in bytes, whatever its items are


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "handler returned None, not bytes or anything bytes-like"),
        (7, "handler returned int 7, not bytes"),
        ("text", "handler returned str 'text', not bytes or anything bytes-like; encode it first"),
        ("x" * 1000, "handler returned str 'xxx"),
        ([b"a"], "handler returned list [b'a'], not bytes"),
        (Unshowable(), "handler returned Unshowable ?, not bytes"),
        (memoryview(b"abcd")[::2], "handler returned memoryview <memory at "),
        (bytes(MAX + 1), "handler returned 1001 bytes, 1000 allowed (--max-message)"),
        (bytearray(MAX + 1), "handler returned 1001 bytes, 1000 allowed (--max-message)"),
        (array.array("d", [0] * 126), "handler returned 1008 bytes, 1000 allowed (--max-message)"),
        (iter([b"a"]), "handler returned list_iterator"),
    ],
)
def test_anything_else_is_a_bad_reply(reply: Any, words: str) -> None:
    code, body = call(lambda _: reply)
    assert code == Code.BAD_REPLY
    assert told(body)["type"] == "BAD_REPLY"
    assert told(body)["message"].startswith(words)
    assert len(told(body)["message"]) < 250


class OwnError(Exception):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("wrong"), "ValueError", "wrong"),
        (OwnError("größer"), f"{__name__}.OwnError", "größer"),
        (SystemExit(0), "SystemExit", "0"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (GeneratorExit(), "GeneratorExit", ""),
        (StopIteration("x"), "StopIteration", "x"),
        (MemoryError(), "MemoryError", ""),
        (Unspeakable(), f"{__name__}.Unspeakable", "its message cannot be shown: __str__ raised"),
        pytest.param(ValueError("\ud800 alone"), "ValueError", "\ud800 alone", id="half a pair"),
    ],
)
def test_whatever_is_raised_is_told(error: BaseException, kind: str, message: str) -> None:
    def handle(_message: bytes) -> bytes:
        raise error

    code, body = call(handle)
    assert code == Code.HANDLER_ERROR
    assert told(body)["type"] == kind
    assert told(body)["message"] == message
    story = told(body)["traceback"].splitlines()
    assert story[0] == "Traceback (most recent call last):"
    assert any("in handle" in line for line in story)
    assert not any(os.path.dirname(outcome.__file__) in line for line in story), "gaspar's own part is the same for all"


def test_a_long_message_is_cut_to_what_the_protocol_allows() -> None:
    def handle(_message: bytes) -> bytes:
        raise ValueError("ü" * 1_000_000)

    code, body = call(handle)
    assert code == Code.HANDLER_ERROR
    assert told(body)["message"].startswith("üüü")


def test_deep_recursion_is_told() -> None:
    def handle(message: bytes) -> bytes:
        return handle(message) + b""

    code, body = call(handle)
    assert (code, told(body)["type"]) == (Code.HANDLER_ERROR, "RecursionError")


def test_a_generator_is_returned_before_it_has_begun() -> None:
    began = []

    def handle(_message: bytes) -> Iterator[bytes]:
        began.append(True)
        yield b""

    code, parts = call(handle)
    assert code == outcome.STREAM
    assert not began
    parts.close()


def test_forks_are_looked_at_also_if_the_handler_raised() -> None:
    forks = Forks()

    def handle(message: bytes) -> bytes:
        forks.noted = True
        return bytes(1 // len(message))

    outcome.of_call(handle, b"x", MAX, forks)  # type: ignore[arg-type]
    outcome.of_call(handle, b"", MAX, forks)  # type: ignore[arg-type]
    assert forks.checked == 2


# ---- a stream ----


def test_parts_are_sent_in_order_and_what_is_returned_is_the_last() -> None:
    def parts() -> Generator[Any, None, Any]:
        yield b"one"
        yield bytearray(b"two")
        yield array.array("H", [1])
        yield b""
        return memoryview(b"last")

    assert run(parts()) == ([b"one", b"two", array.array("H", [1]).tobytes(), b""], 0, b"last")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nothing_returned_is_an_empty_end(count: int) -> None:
    assert run(bytes(1) for _ in range(count)) == ([bytes(1)] * count, 0, b"")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "handler yielded None"),
        ("text", "handler yielded str 'text', not bytes or anything bytes-like; encode it first"),
        (7, "handler yielded int 7"),
        (bytes(MAX + 1), "handler yielded 1001 bytes, 1000 allowed (--max-message)"),
    ],
)
def test_a_bad_part_ends_the_stream_and_closes_the_generator(bad: Any, words: str) -> None:
    closed = []

    def parts() -> Iterator[Any]:
        try:
            yield b"good"
            yield bad
            yield b"never"
        except GeneratorExit:
            closed.append(True)
            raise

    got, code, body = run(parts())
    assert (got, code) == ([b"good"], Code.BAD_REPLY)
    assert told(body)["message"].startswith(words)
    assert closed


@pytest.mark.parametrize("value", ["text", 7, bytes(MAX + 1)])
def test_a_bad_end_is_a_bad_reply(value: Any) -> None:
    def parts() -> Generator[bytes, None, Any]:
        yield b"good"
        return value

    got, code, body = run(parts())
    assert (got, code) == ([b"good"], Code.BAD_REPLY)
    assert told(body)["message"].startswith("handler returned ")


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt("wrong")])
def test_an_exception_ends_the_stream_and_is_told(error: BaseException) -> None:
    def parts() -> Iterator[bytes]:
        yield b"good"
        raise error

    got, code, body = run(parts())
    assert (got, code) == ([b"good"], Code.HANDLER_ERROR)
    assert told(body)["type"] == type(error).__name__
    assert "in parts" in told(body)["traceback"]


def test_a_generator_nobody_wants_more_of_is_closed() -> None:
    steps = []

    def parts() -> Iterator[bytes]:
        try:
            while True:
                steps.append("made")
                yield b"part"
        except GeneratorExit:
            steps.append("closed")
            raise
        finally:
            steps.append("ended")

    got, code, body = run(parts(), wanted=2)
    assert got == [b"part"] * 2
    assert code == Code.CANCELLED and told(body)["type"] == "CANCELLED"
    assert steps == ["made"] * 3 + ["closed", "ended"]


def test_a_generator_that_will_not_be_closed_is_an_error() -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(3):
            with contextlib.suppress(GeneratorExit):
                yield b"part"

    _, code, body = run(parts(), wanted=1)
    assert (code, told(body)["type"]) == (Code.HANDLER_ERROR, "RuntimeError")


def test_what_a_generator_raises_when_it_is_closed_is_told() -> None:
    def parts() -> Iterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            raise OSError("cannot tidy up")

    _, code, body = run(parts(), wanted=1)
    assert (code, told(body)["message"]) == (Code.HANDLER_ERROR, "cannot tidy up")


def test_what_sending_raises_is_not_lost() -> None:
    def send(_part: Any) -> bool:
        raise OSError("no link")

    closed = []

    def parts() -> Iterator[bytes]:
        try:
            yield b"part"
        finally:
            closed.append(True)

    code, body = outcome.of_stream(parts(), send, MAX, Forks())  # type: ignore[arg-type]
    assert (code, told(body)["message"]) == (Code.HANDLER_ERROR, "no link")


def test_nothing_of_a_part_is_held_while_the_next_is_made() -> None:
    buffer = bytearray()

    def parts() -> Iterator[bytearray]:
        for size in (1, 500, 3, 1000):
            buffer.clear()  # BufferError while somebody holds it
            buffer.extend(bytes(size))
            yield buffer

    got, code, _ = run(parts())
    assert code == 0
    assert [len(part) for part in got] == [1, 500, 3, 1000]


def test_forks_are_looked_at_after_each_part() -> None:
    forks = Forks()

    def parts() -> Iterator[bytes]:
        for _ in range(3):
            forks.noted = True
            yield b""
        forks.noted = True

    assert outcome.of_stream(parts(), lambda _: True, MAX, forks) == (0, b"")  # type: ignore[arg-type]
    assert forks.checked == 4
