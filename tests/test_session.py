"""Feeds every split of every sample to the client's side of a connection, arbitrary bytes, and a model's answers."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gaspar.answer import Receipt, Reply
from gaspar.errors import BadFrame, HandlerError, RequestError, ShuttingDown
from gaspar.frames import CLIENT_KINDS, HEADER, MAX_U32, FrameKind, FrameParser, encode
from gaspar.session import Hello, Session

Answers = list[tuple[Any, bytes | RequestError]]
Take = Callable[[Session, list[bytes]], Answers]

LONG = 200_000  # bytes; such a body is read to where it stays


def hello(max_message: int = 10**6, **more: object) -> bytes:
    return encode(FrameKind.HELLO, meta=json.dumps({"max_message": max_message, **more}).encode())


def asked(*calls: str, in_parts: bool = False) -> Session:
    """A session that has asked so many requests, with ids from 1."""
    session = Session(in_parts=in_parts)
    for call in calls:
        session.begin(call, 0)
    return session


def some_splits(data: bytes) -> Iterator[list[bytes]]:
    """Cut data in up to two places, all of them, and at every byte."""
    yield [data[at : at + 1] for at in range(len(data))]
    for first, second in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        yield [data[:first], data[first:second], data[second:]]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place for place in places if place <= len(data)), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def feed(session: Session, pieces: list[bytes]) -> Answers:
    return [answer for piece in pieces for answer in session.feed(piece)]


def read_into(session: Session, pieces: list[bytes]) -> Answers:
    """Do as a socket's recv_into does while a long body is coming."""
    answers = []
    for piece in pieces:
        while piece and (space := session.space()) is not None:
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            answers += session.filled(count)
            piece = piece[count:]
        answers += session.feed(piece)
    return answers


def shown(answers: Answers) -> list[tuple[Any, ...]]:
    """Make answers comparable."""
    return [
        (call, type(answer), str(answer), answer.receipt)
        if isinstance(answer, RequestError)
        else (call, type(answer), bytes(answer), getattr(answer, "receipt", None))
        for call, answer in answers
    ]


ways = pytest.mark.parametrize("take", [feed, read_into])


def test_a_request_is_laid_out_with_its_id_length_deadline_and_meta() -> None:
    session = Session()
    assert session.greeting == b"GSP2"
    assert session.begin("first", 5) == (1, bytes.fromhex("00000005 00000001 01 00 0000 00000000 00000000"))
    name, head = session.begin("second", 0, 1500, b"{}")
    assert (name, head) == (2, bytes.fromhex("00000000 00000002 01 00 0002 000005dc 00000000") + b"{}")
    assert session.calls == {1: "first", 2: "second"}


def test_ids_wrap_around_past_0_and_those_in_use() -> None:
    session = asked("one", "two")
    session._last_id = MAX_U32 - 1
    assert [session.begin(call, 0)[0] for call in ("three", "four", "five")] == [MAX_U32, 3, 4]
    session.cancel(2)
    session._last_id = MAX_U32
    assert session.begin("six", 0)[0] == 2


def test_there_is_room_when_the_daemon_has_greeted_and_up_to_its_limit() -> None:
    session = Session()
    assert not session.has_room
    session.feed(hello(max_in_flight=2))
    assert session.has_room
    session.begin("one", 0)
    assert session.has_room
    session.begin("two", 0)
    assert not session.has_room
    session.feed(encode(FrameKind.REPLY, 1))
    assert session.has_room
    session.feed(encode(FrameKind.GOAWAY))
    assert session.leaving and not session.has_room and session.error is None


def test_there_is_no_room_after_an_error() -> None:
    session = Session()
    session.feed(hello() + encode(FrameKind.ERROR, 0, b"{}", code=1))
    assert not session.has_room


def test_a_cancelled_request_is_forgotten_and_the_daemon_is_told_once() -> None:
    session = asked("one", "two")
    session.feed(hello())
    assert session.cancel(1) == encode(FrameKind.CANCEL, 1)
    assert session.cancel(1) == b""
    assert session.calls == {2: "two"}
    late = encode(FrameKind.PART, 1, b"p") + encode(FrameKind.REPLY, 1) + encode(FrameKind.ERROR, 1, b"{}", code=8)
    assert session.feed(late) == []
    assert session.error is None


def test_an_answered_request_is_not_cancelled() -> None:
    session = asked("one")
    session.feed(hello() + encode(FrameKind.REPLY, 1))
    assert session.cancel(1) == b""
    assert session.cancel(77) == b""


def test_a_call_may_be_anything_none_too() -> None:
    session = Session()
    session.feed(hello())
    session.begin(None, 0)
    assert session.cancel(1) == encode(FrameKind.CANCEL, 1)
    session.begin(None, 0)
    assert session.feed(encode(FrameKind.REPLY, 2)) == [(None, b"")]


def test_the_parts_of_a_cancelled_request_are_not_those_of_the_next_with_its_id() -> None:
    session = asked("one")
    session.feed(hello() + encode(FrameKind.PART, 1, b"old"))
    session.cancel(1)
    session._last_id = 0
    assert session.begin("next", 0)[0] == 1
    assert session.feed(encode(FrameKind.REPLY, 1, b"new")) == [("next", b"new")]


TALK = b"".join(
    [
        hello(),
        encode(FrameKind.REPLY, 2, b"B", a=1, b=MAX_U32),
        encode(FrameKind.PONG),
        encode(FrameKind.ERROR, 1, b'{"message":"x"}', code=4),
        encode(FrameKind.PART, 3, b"C"),
        encode(FrameKind.REPLY, 9, b"nobody's"),
        encode(FrameKind.GOAWAY),
        encode(FrameKind.REPLY, 3),
    ]
)


@ways
@pytest.mark.parametrize("in_parts", [False, True])
def test_answers_are_the_same_at_every_split(take: Take, in_parts: bool) -> None:
    expected = shown(asked("a", "b", "c", in_parts=in_parts).feed(TALK))
    assert [each[0] for each in expected] == (["b", "a", "c", "c"] if in_parts else ["b", "a", "c"])
    for pieces in some_splits(TALK):
        session = asked("a", "b", "c", in_parts=in_parts)
        assert shown(take(session, pieces)) == expected, pieces
        assert session.leaving and session.error is None and session.calls == {}


def test_a_reply_is_bytes_with_a_receipt_in_seconds() -> None:
    session = asked("a", "b")
    session.feed(hello())
    ((call, reply),) = session.feed(encode(FrameKind.REPLY, 1, b"body", a=1_500_000, b=2))
    assert call == "a" and reply == b"body"
    assert isinstance(reply, Reply)
    assert reply.receipt == Receipt(waited=1.5, ran=0.000002)


def test_an_error_of_a_request_is_its_answer() -> None:
    session = asked("a")
    session.feed(hello())
    body = b'{"type":"ValueError","message":"no","traceback":"Traceback ..."}'
    ((call, error),) = session.feed(encode(FrameKind.ERROR, 1, body, code=6, a=3, b=1))
    assert call == "a" and isinstance(error, HandlerError)
    assert (error.type, error.traceback, error.receipt) == ("ValueError", "Traceback ...", Receipt(3e-6, 1e-6))
    assert session.error is None and session.calls == {}


@ways
def test_long_replies_come_in_any_order_at_any_split(take: Take) -> None:
    bodies = {name: bytes([name]) * (LONG + name) for name in (1, 2, 3)}
    data = hello() + b"".join(encode(FrameKind.REPLY, name, bodies[name]) for name in (3, 1, 2))
    for places in [[], [100], [100_000], [100, 200_100, 400_200], list(range(0, len(data), 4096))]:
        session = asked("a", "b", "c")
        answers = take(session, cut(data, places))
        assert answers == [("c", bodies[3]), ("a", bodies[1]), ("b", bodies[2])]
        assert all(isinstance(answer, Reply) for _, answer in answers)


def test_a_streamed_reply_is_put_together() -> None:
    session = asked("a", "b")
    session.feed(hello() + encode(FrameKind.PART, 2, b"other"))
    assert (
        session.feed(
            encode(FrameKind.PART, 1, b"one,") + encode(FrameKind.PART, 1) + encode(FrameKind.PART, 1, b"two,")
        )
        == []
    )
    ((call, reply),) = session.feed(encode(FrameKind.REPLY, 1, b"three", a=1))
    assert (call, reply) == ("a", b"one,two,three")
    assert isinstance(reply, Reply) and reply.receipt.waited == 1e-6
    assert session.feed(encode(FrameKind.REPLY, 2)) == [("b", b"other")]


def test_a_stream_that_ends_in_an_error_is_an_error() -> None:
    session = asked("a")
    session.feed(hello() + encode(FrameKind.PART, 1, b"half of it"))
    ((call, error),) = session.feed(encode(FrameKind.ERROR, 1, b"{}", code=5))
    assert call == "a" and isinstance(error, RequestError)
    session._last_id = 0
    session.begin("next", 0)
    assert session.feed(encode(FrameKind.REPLY, 1, b"whole")) == [("next", b"whole")]


@ways
def test_each_part_is_an_answer_if_parts_are_wanted(take: Take) -> None:
    session = asked("a", in_parts=True)
    long = bytes(range(256)) * 1000
    data = (
        hello()
        + encode(FrameKind.PART, 1, b"one")
        + encode(FrameKind.PART, 1, long)
        + encode(FrameKind.REPLY, 1, b"end")
    )
    answers = take(session, cut(data, [100, 1000, 100_000]))
    assert answers == [("a", b"one"), ("a", long), ("a", b"end")]
    assert [type(answer) for _, answer in answers] == [bytes, bytes, Reply]


@ways
def test_it_is_inside_from_the_first_byte_of_a_frame_to_its_last(take: Take) -> None:
    frames = [hello(), encode(FrameKind.REPLY, 1, b"A"), encode(FrameKind.GOAWAY), encode(FrameKind.REPLY, 2)]
    data = b"".join(frames)
    ends = [0, *itertools.accumulate(map(len, frames))]
    for at in range(len(data) + 1):
        session = asked("a", "b")
        take(session, [data[:at]])
        assert session.inside is (at not in ends), at


@ways
def test_it_is_inside_of_a_long_frame_too(take: Take) -> None:
    data = encode(FrameKind.REPLY, 1, bytes(LONG))
    session = asked("a")
    take(session, [hello() + data[:100], data[100:-1]])
    assert session.inside
    take(session, [data[-1:]])
    assert not session.inside


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("body", [b"", b"part"])
def test_it_is_inside_of_a_streamed_reply_until_that_ends(in_parts: bool, body: bytes) -> None:
    part = encode(FrameKind.PART, 1, body)
    for end in (encode(FrameKind.REPLY, 1), encode(FrameKind.ERROR, 1, b"{}", code=6)):
        session = asked("a", in_parts=in_parts)
        session.feed(hello() + part + part)
        assert session.inside
        session.feed(end)
        assert not session.inside
    session = asked("a", in_parts=in_parts)
    session.feed(hello() + part)
    session.cancel(1)
    assert not session.inside
    session.feed(part)
    assert not session.inside


@pytest.mark.parametrize("kind", [*range(16), FrameKind.HELLO, FrameKind.PONG, 22, 255])
def test_what_a_client_does_not_know_is_ignored(kind: int) -> None:
    session = asked("a")
    session.feed(hello())
    assert session.feed(HEADER.pack(3, 1, kind, 9, 2, 7, 7) + b"[]xyz") == []
    assert session.error is None and session.calls == {1: "a"} and not session.leaving


@pytest.mark.parametrize(
    ("meta", "greeting"),
    [
        (b'{"server":"gaspar/2","max_message":9,"max_in_flight":7,"new":[]}', Hello("gaspar/2", 9, 7)),
        (b'{"max_message":1}', Hello("", 1, 256)),
    ],
)
def test_a_greeting_says_the_daemons_limits(meta: bytes, greeting: Hello) -> None:
    session = Session()
    assert session.feed(encode(FrameKind.HELLO, meta=meta)) == []
    assert session.hello == greeting and session.error is None


@pytest.mark.parametrize(
    "data",
    [
        encode(FrameKind.HELLO),
        encode(FrameKind.HELLO, meta=b"[]"),
        encode(FrameKind.HELLO, meta=b"{"),
        encode(FrameKind.HELLO, meta=b'{"max_message":"1"}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":1.5}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":0}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":-1}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":1,"max_in_flight":0}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":1,"max_in_flight":null}'),
        encode(FrameKind.HELLO, meta=b'{"max_message":null,"server":"' + b"x" * 60000 + b'"}'),
        encode(FrameKind.PONG),
        encode(FrameKind.REPLY, 1, b"reply"),
        encode(FrameKind.ERROR, 1, b"{}", code=1),
    ],
)
def test_a_first_frame_that_does_not_greet_ends_the_session(data: bytes) -> None:
    for behind in ([hello() + TALK], [hello(), TALK], [b""]):
        session = asked("a", "b", "c")
        assert feed(session, [data, *behind]) == []
        assert feed(session, [data + behind[0]]) == []
        assert isinstance(session.error, BadFrame) and session.hello is None
        assert str(session.error).startswith("expected the greeting of a gaspar daemon, got ")
        assert len(str(session.error)) < 400
        assert not session.has_room


@ways
def test_an_error_of_the_connection_in_place_of_a_greeting_is_told_as_it_came_at_every_split(take: Take) -> None:
    end = encode(FrameKind.ERROR, 0, b'{"message":"it drains"}', code=9)
    for pieces in some_splits(end + hello() + encode(FrameKind.REPLY, 1)):
        session = asked("a")
        assert take(session, pieces) == [], pieces
        assert isinstance(session.error, ShuttingDown) and str(session.error) == "it drains"
        assert session.hello is None and not session.has_room and session.calls == {1: "a"}


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", b"220 mail.example.org ESMTP\r\n", b"\xff" * 20]
)
def test_what_another_server_sends_ends_the_session(data: bytes) -> None:
    for pieces in some_splits(data):
        session = asked("a")
        assert feed(session, pieces) == []
        assert isinstance(session.error, BadFrame)
        assert session.error is not None and "is not the framed protocol" in str(session.error)


@ways
def test_the_greetings_limit_holds_for_the_frame_behind_it_at_every_split(take: Take) -> None:
    greeting = hello(LONG)
    data = greeting + encode(FrameKind.REPLY, 1, bytes(LONG))
    for at in [0, *range(len(greeting) - 20, len(greeting) + 41), len(data)]:
        session = asked("a")
        assert take(session, [data[:at], data[at:]]) == [("a", bytes(LONG))], at
        assert session.error is None


@ways
def test_a_reply_that_is_longer_than_the_greeting_allows_ends_the_session(take: Take) -> None:
    greeting = hello(LONG)
    data = greeting + HEADER.pack(LONG + 1, 1, FrameKind.REPLY, 0, 0, 0, 0) + bytes(LONG + 1)
    for at in [0, *range(len(greeting) - 20, len(greeting) + 41), len(data)]:
        session = asked("a")
        assert take(session, [data[:at], data[at:]]) == []
        assert isinstance(session.error, BadFrame) and session.calls == {1: "a"}


def test_an_error_may_be_longer_than_the_longest_message() -> None:
    session = asked("a")
    body = json.dumps({"message": "no", "traceback": "x" * 60000}).encode()
    ((_, error),) = session.feed(hello(1) + encode(FrameKind.ERROR, 1, body, code=6))
    assert isinstance(error, HandlerError) and len(error.traceback) == 60000


@ways
def test_an_error_of_the_connection_ends_the_session_at_every_split(take: Take) -> None:
    first = encode(FrameKind.REPLY, 1, b"A")
    end = encode(FrameKind.ERROR, 0, b'{"message":"a frame of kind 99"}', code=1)
    behind = encode(FrameKind.REPLY, 2, b"B") + encode(FrameKind.ERROR, 0, b"{}", code=9) + encode(FrameKind.GOAWAY)
    for pieces in some_splits(hello() + first + end + behind):
        session = asked("a", "b")
        assert take(session, pieces) == [("a", b"A")], pieces
        assert isinstance(session.error, BadFrame) and str(session.error) == "a frame of kind 99"
        assert session.calls == {2: "b"} and not session.leaving


def test_the_first_error_is_the_one_that_is_told() -> None:
    session = Session()
    session.feed(hello() + encode(FrameKind.ERROR, 0, b"{}", code=9) + b"\xff" * 40)
    assert isinstance(session.error, ShuttingDown)


def lay_out(kind: int, name: int, code: int, meta: bytes, body: bytes) -> bytes:
    return HEADER.pack(len(body), name, kind, code, len(meta), 1, 2) + meta + body


details = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "message", "traceback", "exit", "stack", "x"]), inner, max_size=4)
    ),
).map(lambda value: json.dumps(value).encode())
streams = st.lists(
    st.builds(
        lay_out,
        st.sampled_from(list(FrameKind)) | st.integers(0, 255),
        st.integers(0, 5),
        st.integers(0, 12),
        st.sampled_from([b"", b"{}", b'{"max_message":300000}']) | details,
        st.sampled_from([b"", b"x" * LONG]) | details | st.binary(max_size=30),
    )
    | st.binary(max_size=60),
    max_size=8,
).map(b"".join)


@settings(deadline=None, max_examples=300)
@given(
    st.booleans(),
    st.sampled_from([b"", hello()]),
    streams,
    st.lists(st.integers(0, 600_000), max_size=10),
    st.booleans(),
)
def test_any_bytes_in_any_split_raise_nothing_and_give_the_same_answers(
    in_parts: bool, greeting: bytes, data: bytes, places: list[int], into: bool
) -> None:
    whole, split = asked("a", "b", "c", in_parts=in_parts), asked("a", "b", "c", in_parts=in_parts)
    expected = shown(whole.feed(greeting + data))
    assert shown((read_into if into else feed)(split, cut(greeting + data, places))) == expected
    assert (str(split.error), type(split.error)) == (str(whole.error), type(whole.error))
    assert (split.hello, split.leaving, split.calls) == (whole.hello, whole.leaving, whole.calls)


CODES = st.integers(1, 12)
BODIES = st.binary(max_size=20) | st.integers(1, 3).map(lambda number: b"%d" % number * 70_000)


class Conversation(RuleBasedStateMachine):
    """A daemon that answers in any order, parts between them, and a client that reads in any pieces.

    What the daemon sends is known whole to the model, with the place where each frame ends; the session gets it
    piece by piece, while requests are made and cancelled.
    """

    @initialize(
        in_parts=st.booleans(), last_id=st.sampled_from([0, MAX_U32 - 3]), most=st.integers(1, 5), at=st.integers(0, 50)
    )
    def connect(self, in_parts: bool, last_id: int, most: int, at: int) -> None:
        self.session = Session(in_parts=in_parts)
        self.session._last_id = last_id
        self.in_parts, self.most = in_parts, most
        self.server = FrameParser(10**6, CLIENT_KINDS, (FrameKind.REQUEST,))
        self.open: list[int] = []  # ids that the daemon has not answered
        self.coming = b""  # sent by the daemon, not read by the client
        self.ends: list[tuple[int, int, int, bytes]] = []  # where in it each frame ends; kind, id, what it brings
        self.calls: dict[int, int] = {}  # the model's: id to call
        self.parts: dict[int, bytes] = {}
        self.made = 0
        self.leaving = False
        greeting = hello(max_in_flight=most)
        assert feed(self.session, [greeting[:at], greeting[at:]]) == []

    def _send(self, data: bytes, kind: int, name: int, body: bytes) -> None:
        self.coming += data
        self.ends.append((len(self.coming), kind, name, body))

    def _ask(self, data: bytes) -> None:
        for frame in self.server.feed(data):
            if frame.kind == FrameKind.REQUEST:
                assert frame.id not in self.open
                self.open.append(frame.id)
        assert self.server.error is None

    @precondition(lambda self: self.session.has_room)
    @rule(bodies=st.lists(BODIES, min_size=1, max_size=3))
    def ask(self, bodies: list[bytes]) -> None:
        for body in bodies:
            if self.session.has_room:
                self.made += 1
                name, head = self.session.begin(self.made, len(body))
                self._ask(head + body)
                self.calls[name] = self.made

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.calls)))
        self._ask(self.session.cancel(name))
        del self.calls[name]
        self.parts.pop(name, None)
        if name in self.open:  # else its answer is on its way
            self.open.remove(name)
            self._send(encode(FrameKind.ERROR, name, b"{}", code=8), FrameKind.ERROR, name, b"8")

    @rule(name=st.integers(0, MAX_U32))
    def cancel_what_was_not_asked(self, name: int) -> None:
        if name not in self.calls:
            assert self.session.cancel(name) == b""

    @precondition(lambda self: self.open)
    @rule(data=st.data(), body=BODIES)
    def reply(self, data: st.DataObject, body: bytes) -> None:
        name = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self._send(encode(FrameKind.REPLY, name, body, a=5), FrameKind.REPLY, name, body)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), body=BODIES)
    def send_a_part(self, data: st.DataObject, body: bytes) -> None:
        name = data.draw(st.sampled_from(self.open))
        self._send(encode(FrameKind.PART, name, body), FrameKind.PART, name, body)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), code=CODES)
    def fail(self, data: st.DataObject, code: int) -> None:
        name = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self._send(encode(FrameKind.ERROR, name, b"{}", code=code), FrameKind.ERROR, name, b"%d" % code)

    @rule(kind=st.integers(22, 255) | st.integers(0, 16), name=st.integers(0, 9), body=BODIES)
    def send_what_nobody_knows(self, kind: int, name: int, body: bytes) -> None:
        self._send(HEADER.pack(len(body), name, kind, 0, 0, 0, 0) + body, kind, name, body)

    @rule(kind=st.sampled_from([FrameKind.REPLY, FrameKind.PART, FrameKind.ERROR]), name=st.integers(10**6, 10**7))
    def answer_what_nobody_asked(self, kind: FrameKind, name: int) -> None:
        self._send(encode(kind, name, b"{}", code=1), kind, name, b"")

    @precondition(lambda self: self.made > 10)
    @rule()
    def go_away(self) -> None:
        self._send(encode(FrameKind.GOAWAY), FrameKind.GOAWAY, 0, b"")

    @precondition(lambda self: self.coming)
    @rule(data=st.data(), into=st.booleans())
    def read(self, data: st.DataObject, into: bool) -> None:
        count = data.draw(st.just(len(self.coming)) | st.integers(1, len(self.coming)))
        piece, self.coming = self.coming[:count], self.coming[count:]
        arrived = [each for each in self.ends if each[0] <= count]
        self.ends = [(end - count, *rest) for end, *rest in self.ends if end > count]  # type: ignore[misc]
        expected = [answer for _, kind, name, body in arrived for answer in self._expect(kind, name, body)]
        answers = (read_into if into else feed)(self.session, [piece])
        assert [(call, self._content(answer)) for call, answer in answers] == expected

    @staticmethod
    def _content(answer: bytes | RequestError) -> object:
        if isinstance(answer, RequestError):
            return int(answer.code)
        return (bytes(answer), answer.receipt) if isinstance(answer, Reply) else answer

    def _expect(self, kind: int, name: int, body: bytes) -> list[tuple[int, object]]:
        if kind == FrameKind.GOAWAY:
            self.leaving = True
        if name not in self.calls:
            return []
        if kind == FrameKind.PART:
            if self.in_parts:
                return [(self.calls[name], body)]
            self.parts[name] = self.parts.get(name, b"") + body
        elif kind == FrameKind.REPLY:
            whole = self.parts.pop(name, b"") + body
            return [(self.calls.pop(name), (whole, Receipt(5e-6, 0)))]
        elif kind == FrameKind.ERROR:
            self.parts.pop(name, None)
            return [(self.calls.pop(name), int(body))]
        return []

    @invariant()
    def it_knows_what_is_unanswered(self) -> None:
        if not hasattr(self, "session"):
            return
        assert self.session.calls == self.calls
        assert list(self.session.calls) == list(self.calls)  # oldest first
        assert self.session.error is None
        assert self.session.leaving == self.leaving
        if self.session.hello is not None:
            assert self.session.has_room == (len(self.calls) < self.most and not self.leaving)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)
