"""Feeds every split of every sample to the framed protocol's parser, and arbitrary bytes in arbitrary splits."""

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaspar.errors import BadFrame, RequestError, TooBig
from gaspar.frames import (
    CLIENT_KINDS,
    HEADER,
    MAGIC,
    MAX_U32,
    Frame,
    FrameKind,
    FrameParser,
    decode_meta,
    encode,
    encode_meta,
)

Take = Callable[[FrameParser, list[bytes]], list[Frame]]
Make = Callable[[], FrameParser]

MAX = 1000  # max_body of most parsers here
WHOLE = 65536  # bytes; the longest body that is not read to where it stays


def server_side(max_body: int = MAX) -> FrameParser:
    return FrameParser(max_body, CLIENT_KINDS, (FrameKind.REQUEST,))


def client_side(max_body: int = MAX) -> FrameParser:
    return FrameParser(max_body)


def some_splits(data: bytes) -> Iterator[list[bytes]]:
    """Cut data in up to two places, all of them, and at every byte."""
    yield [data[at : at + 1] for at in range(len(data))]
    for first, second in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        yield [data[:first], data[first:second], data[second:]]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place for place in places if place <= len(data)), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def feed(parser: FrameParser, pieces: list[bytes]) -> list[Frame]:
    return [frame for piece in pieces for frame in parser.feed(piece)]


def read_into(parser: FrameParser, pieces: list[bytes]) -> list[Frame]:
    """Do as a socket's recv_into does while a long body is coming."""
    frames = []
    for piece in pieces:
        while piece and parser.pending is not None:
            space = parser.space()
            assert len(space) > 0
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            frames += parser.filled(count)
            piece = piece[count:]
        frames += parser.feed(piece)
    return frames


def feed_some_and_read_some(parser: FrameParser, pieces: list[bytes]) -> list[Frame]:
    frames = []
    for number, piece in enumerate(pieces):
        frames += (feed if number % 2 else read_into)(parser, [piece])
    return frames


def skipping(take: Take) -> Take:
    """Throw away each frame whose long body is still to come and whose id is odd."""

    def take_and_skip(parser: FrameParser, pieces: list[bytes]) -> list[Frame]:
        frames = []
        for piece in pieces:
            frames += take(parser, [piece])
            if parser.pending is not None and parser.pending.id % 2 and not parser.skipping:
                parser.skip()
        return frames

    return take_and_skip


ways = pytest.mark.parametrize("take", [feed, read_into, feed_some_and_read_some])
sides = pytest.mark.parametrize("make", [server_side, client_side])


def parse_whole(data: bytes, max_body: int, kinds: frozenset[int], named: frozenset[int]) -> tuple[list[Frame], str]:
    """Say what is in a stream, in the plainest way: its frames, and what is wrong after them."""
    frames = []
    while len(data) >= HEADER.size:
        size, name, kind, code, meta_size, a, b = HEADER.unpack(data[: HEADER.size])
        if kind not in kinds:
            return frames, f"BadFrame kind {kind}"
        if not name and kind in named:
            return frames, "BadFrame id 0"
        if size > max_body:
            return frames, f"TooBig {name}"
        end = HEADER.size + meta_size + size
        if end > len(data):
            break
        frames.append(
            Frame(kind, name, code, a, b, data[HEADER.size : HEADER.size + meta_size], data[end - size : end])
        )
        data = data[end:]
    return frames, ""


def fault(parser: FrameParser) -> str:
    """Say what is wrong as `parse_whole` does."""
    error = parser.error
    if error is None:
        return ""
    if isinstance(error, TooBig):
        return f"TooBig {parser.error_id}"
    assert isinstance(error, BadFrame)
    assert parser.error_id == 0
    return "BadFrame id 0" if "id 0" in str(error) else f"BadFrame kind {str(error).split()[4].rstrip(',')}"


FROM_CLIENT = b"".join(
    [
        encode(FrameKind.REQUEST, 1, b"hello", a=250),
        encode(FrameKind.PING),
        encode(FrameKind.REQUEST, MAX_U32, meta=b'{"k":1}'),
        encode(FrameKind.CANCEL, 1),
        encode(FrameKind.REQUEST, 7, b"x", meta=b"{}"),
    ]
)
FROM_SERVER = b"".join(
    [
        encode(FrameKind.HELLO, meta=b'{"max_message":9}'),
        encode(FrameKind.PART, 1, b"part"),
        encode(FrameKind.REPLY, 1, a=3, b=MAX_U32),
        encode(FrameKind.ERROR, 2, b"{}", code=4),
        encode(FrameKind.GOAWAY),
    ]
)


def test_a_frame_is_header_then_meta_then_body() -> None:
    data = encode(FrameKind.ERROR, 0x01020304, b"body!", code=6, a=0x0A0B0C0D, b=0xF0E0D0C0, meta=b"{}")
    assert data == bytes.fromhex("00000005 01020304 12 06 0002 0a0b0c0d f0e0d0c0") + b"{}" + b"body!"
    assert encode(FrameKind.PING) == bytes.fromhex("00000000 00000000 03 00 0000 00000000 00000000")
    assert HEADER.size == 20
    assert MAGIC == b"GSP2"


def test_kinds_below_16_are_the_clients() -> None:
    assert set(CLIENT_KINDS) == {kind for kind in FrameKind if kind < 16}


def test_meta_comes_back_as_it_was() -> None:
    assert encode_meta({}) == b""
    assert decode_meta(b"") == {}
    fields = {"a": 1, "ü": [None, True, "\u2028"]}
    assert decode_meta(encode_meta(fields)) == fields


def test_meta_that_is_too_long_to_announce_is_not_laid_out() -> None:
    assert len(encode_meta({"k": "x" * (65535 - 8)})) == 65535
    with pytest.raises(ValueError, match="meta of 65536 bytes, the protocol can announce 65535"):
        encode_meta({"k": "x" * (65536 - 8)})


@pytest.mark.parametrize(
    "meta",
    [
        b"{",
        b"{}}",
        b"\0",
        b"\xff\xfe",
        b'{"k":"\xff"}',
        b"nonsense",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        "{}".encode("utf-8-sig"),
        b"[]",
        b"[{}]",
        b"7",
        b'"text"',
        b"null",
        b"[" * 65535,
        b"[" * 30000 + b"]" * 30000,
        b'{"":' * 16000,
        b'{"number":' + b"9" * 60000 + b"x}",
    ],
)
def test_meta_that_is_no_object_in_utf_8_is_a_mistake(meta: bytes) -> None:
    with pytest.raises(BadFrame, match="meta is") as caught:
        decode_meta(meta)
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(st.binary(max_size=50) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str).map(str.encode))
def test_meta_is_an_object_or_a_mistake_whatever_it_is(meta: bytes) -> None:
    try:
        fields = decode_meta(meta)
    except BadFrame:
        return
    assert isinstance(fields, dict)


@ways
@pytest.mark.parametrize(("make", "data"), [(server_side, FROM_CLIENT), (client_side, FROM_SERVER + FROM_CLIENT)])
def test_frames_are_the_same_at_every_split(make: Make, data: bytes, take: Take) -> None:
    expected, wrong = parse_whole(data, MAX, frozenset(range(256)), frozenset())
    assert expected and not wrong
    for pieces in some_splits(data):
        parser = make()
        assert take(parser, pieces) == expected, pieces
        assert parser.error is None and not parser.inside and parser.count == len(expected)


@ways
@sides
def test_a_frame_is_complete_with_its_last_byte_and_not_before(make: Make, take: Take) -> None:
    parser = make()
    data = encode(FrameKind.REQUEST, 3, b"body", meta=b"{}")
    for at in range(len(data) - 1):
        assert take(parser, [data[at : at + 1]]) == []
        assert parser.inside and parser.held == at + 1
    assert take(parser, [data[-1:]]) == [Frame(FrameKind.REQUEST, 3, 0, 0, 0, b"{}", b"body")]
    assert not parser.inside and parser.held == 0


@ways
@sides
@pytest.mark.parametrize("size", [WHOLE, WHOLE + 1, 2**20, 2**20 + 1, 2_500_000])
@pytest.mark.parametrize("meta", [b"", b"{}", b'{"k":"' + bytes(60000).replace(b"\0", b" ") + b'"}'])
def test_a_long_body_is_the_same_at_every_kind_of_split(
    make: Callable[..., FrameParser], take: Take, size: int, meta: bytes
) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    data = encode(FrameKind.PING) + encode(FrameKind.REQUEST, 2, body, meta=meta) + FROM_CLIENT
    begin = 20 + 20 + len(meta)  # of the body
    end = begin + size
    expected, _ = parse_whole(data, size, frozenset(range(256)), frozenset())
    near = [20, 30, 40, begin - 1, begin, begin + 1, begin + WHOLE, end - 1, end, end + 1, end + 20, len(data) - 1]
    for places in [[], *itertools.combinations(near, 1), *itertools.combinations(near, 2), range(1000, end, 65536)]:
        parser = make(size)
        frames = take(parser, cut(data, list(places)))
        assert frames == expected, places
        assert parser.count == len(expected) and parser.error is None and not parser.inside


@sides
def test_a_long_frame_is_known_before_its_body_has_come(make: Callable[..., FrameParser]) -> None:
    data = encode(FrameKind.REQUEST, 5, bytes(WHOLE + 1), a=7, meta=b"{}")
    parser = make(WHOLE + 1)
    parser.feed(data[:21])
    assert parser.pending is None  # its meta is not complete
    parser.feed(data[21:22])
    assert parser.pending == Frame(FrameKind.REQUEST, 5, 0, 7, 0, b"{}", b"")
    assert (parser.size, parser.held, parser.inside) == (WHOLE + 1, 0, True)
    parser.feed(data[22:122])
    assert parser.pending is not None and parser.held == 100
    assert len(parser.feed(data[122:])) == 1
    assert parser.pending is None


@sides
def test_a_short_frame_is_never_pending(make: Callable[..., FrameParser]) -> None:
    parser = make(WHOLE)
    parser.feed(encode(FrameKind.REQUEST, 5, bytes(WHOLE))[:-1])
    assert parser.pending is None


@ways
@sides
@pytest.mark.parametrize("size", [WHOLE + 1, 2_500_000])
def test_a_skipped_frame_is_not_returned_and_those_after_it_are(
    make: Callable[..., FrameParser], take: Take, size: int
) -> None:
    before, behind = encode(FrameKind.PING, 4), encode(FrameKind.REQUEST, 6, b"x") + FROM_CLIENT
    data = before + encode(FrameKind.REQUEST, 1, bytes(size)) + behind
    expected, _ = parse_whole(before + behind, size, frozenset(range(256)), frozenset())
    end = 40 + size
    near = [40, 41, 40 + WHOLE, end - 1, end, end + 1, end + 20, len(data) - 1]
    for places in [*itertools.combinations(near, 1), *itertools.combinations(near, 2), range(1000, end, 65536)]:
        if not any(40 <= place < end for place in places):
            continue  # it comes whole
        parser = make(size)
        assert skipping(take)(parser, cut(data, list(places))) == expected, places
        assert parser.count == len(expected) + 1 and not parser.inside and not parser.skipping


def test_a_frame_may_be_skipped_when_much_of_it_has_come() -> None:
    data = encode(FrameKind.REQUEST, 1, bytes(5_000_000))
    parser = server_side(5_000_000)
    read_into(parser, [data[:3_000_000]])
    parser.skip()
    assert (parser.size, parser.held) == (5_000_000, 3_000_000 - 20)
    assert read_into(parser, [data[3_000_000:]]) == []
    assert parser.feed(encode(FrameKind.PING, 9)) == [Frame(FrameKind.PING, 9, 0, 0, 0, b"", b"")]


MISTAKES = [
    (HEADER.pack(0, 1, 0, 0, 0, 0, 0), "BadFrame kind 0"),
    (HEADER.pack(0, 1, 4, 0, 0, 0, 0), "BadFrame kind 4"),
    (HEADER.pack(0, 0, FrameKind.HELLO, 0, 0, 0, 0), "BadFrame kind 16"),
    (HEADER.pack(MAX + 1, 1, FrameKind.REPLY, 0, 0, 0, 0), "BadFrame kind 17"),
    (HEADER.pack(0, 0, 255, 0, 0, 0, 0), "BadFrame kind 255"),
    (HEADER.pack(0, 0, FrameKind.REQUEST, 0, 0, 0, 0), "BadFrame id 0"),
    (HEADER.pack(MAX + 1, 0, FrameKind.REQUEST, 0, 0, 0, 0), "BadFrame id 0"),
    (HEADER.pack(MAX + 1, 9, FrameKind.REQUEST, 0, 0, 0, 0), "TooBig 9"),
    (HEADER.pack(MAX_U32, MAX_U32, FrameKind.REQUEST, 0, 65535, 0, 0), f"TooBig {MAX_U32}"),
    (HEADER.pack(MAX + 1, 0, FrameKind.PING, 0, 0, 0, 0), "TooBig 0"),
    (HEADER.pack(MAX + 1, 3, FrameKind.CANCEL, 0, 0, 0, 0), "TooBig 3"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "BadFrame kind 84"),
]


@ways
@pytest.mark.parametrize(("mistake", "wrong"), MISTAKES)
def test_the_first_mistake_ends_the_stream_behind_the_frames_before_it(take: Take, mistake: bytes, wrong: str) -> None:
    data = FROM_CLIENT + mistake + FROM_CLIENT + HEADER.pack(0, 1, 99, 0, 0, 0, 0)
    expected, _ = parse_whole(FROM_CLIENT, MAX, frozenset(range(256)), frozenset())
    for pieces in some_splits(data):
        parser = server_side()
        assert take(parser, pieces) == expected, pieces
        assert fault(parser) == wrong, pieces
        assert not parser.inside and parser.pending is None and parser.count == len(expected)


@pytest.mark.parametrize(("mistake", "wrong"), MISTAKES)
def test_a_mistake_is_known_with_its_header_and_not_before(mistake: bytes, wrong: str) -> None:
    parser = server_side()
    parser.feed(mistake[:19])
    assert parser.error is None
    parser.feed(mistake[19:20])
    assert fault(parser) == wrong


def test_a_body_that_is_too_long_says_both_numbers_and_the_way_out() -> None:
    parser = server_side()
    parser.feed(HEADER.pack(MAX + 1, 9, FrameKind.REQUEST, 0, 0, 0, 0))
    assert isinstance(parser.error, TooBig)
    assert str(parser.error) == "1001 bytes announced, 1000 allowed (--max-message)"


@sides
def test_a_body_of_the_longest_length_is_taken(make: Callable[..., FrameParser]) -> None:
    for size in (0, 1, MAX, 2 * WHOLE):
        parser = make(size)
        assert len(parser.feed(encode(FrameKind.REQUEST, 1, bytes(size)))) == 1
        assert parser.error is None


def test_an_id_of_0_is_a_mistake_in_a_request_only() -> None:
    parser = server_side()
    assert [frame.kind for frame in parser.feed(encode(FrameKind.CANCEL) + encode(FrameKind.PING))] == [2, 3]
    assert parser.error is None


def test_a_client_is_given_kinds_that_it_does_not_know() -> None:
    parser = client_side()
    data = b"".join(HEADER.pack(1, 0, kind, 0, 0, 0, 0) + b"x" for kind in range(256))
    assert [frame.kind for frame in parser.feed(data)] == list(range(256))


def lay_out(kind: int, name: int, code: int, a: int, b: int, meta: bytes, size: int) -> bytes:
    return HEADER.pack(size, name, kind, code, len(meta), a, b) + meta + (b"%d/" % name * (size // 2 + 1))[:size]


ids = st.integers(0, 3) | st.integers(0, MAX_U32)
frames_of = st.builds(
    lay_out,
    st.sampled_from(list(FrameKind)) | st.sampled_from(sorted(CLIENT_KINDS)) | st.integers(0, 255),
    ids,
    st.integers(0, 255),
    st.integers(0, MAX_U32),
    st.integers(0, MAX_U32),
    st.sampled_from([b"", b"{}", b"[", bytes(65535)]) | st.binary(max_size=50),
    st.sampled_from([0, 1, 19, 20, 21, WHOLE - 1, WHOLE, WHOLE + 1, 2 * WHOLE, 300_000]),
)
streams = st.lists(frames_of | st.binary(max_size=60), max_size=8).map(b"".join)


@settings(deadline=None, max_examples=300)
@given(streams, st.lists(st.integers(0, 700_000), max_size=12), st.sampled_from([0, 20, WHOLE, 10**6]), st.data())
@example(encode(FrameKind.REQUEST, 1, bytes(200_000)) + FROM_CLIENT, [20, 100_000], 200_000, None)
def test_any_bytes_in_any_split_give_the_same_frames_and_the_same_mistake(
    data: bytes, places: list[int], max_body: int, draw: st.DataObject | None
) -> None:
    take = draw.draw(st.sampled_from([feed, read_into, feed_some_and_read_some])) if draw else feed
    pieces = cut(data, places)
    every = frozenset(range(256))
    for parser, kinds, named in [
        (server_side(max_body), CLIENT_KINDS, frozenset({FrameKind.REQUEST})),
        (client_side(max_body), every, frozenset()),
    ]:
        expected, wrong = parse_whole(data, max_body, kinds, named)  # type: ignore[arg-type]
        assert take(parser, pieces) == expected
        assert fault(parser) == wrong
        assert parser.count == len(expected)


@settings(deadline=None, max_examples=300)
@given(streams, st.lists(st.integers(0, 700_000), max_size=12), st.sampled_from([feed, read_into]))
def test_any_bytes_in_any_split_give_all_frames_that_are_not_skipped(
    data: bytes, places: list[int], take: Take
) -> None:
    parser = server_side(10**6)
    frames = skipping(take)(parser, cut(data, places))
    expected, wrong = parse_whole(data, 10**6, CLIENT_KINDS, frozenset({FrameKind.REQUEST}))  # type: ignore[arg-type]
    assert parser.count == len(expected)
    assert fault(parser) == wrong
    left = iter(expected)
    for frame in frames:  # in their order; what is missing may be missing
        for other in left:
            if other == frame:
                break
            assert other.id % 2 and len(other.body) > WHOLE
        else:
            raise AssertionError(f"never sent: {frame}")
    assert all(other.id % 2 and len(other.body) > WHOLE for other in left)


def peak(act: Callable[[], object]) -> int:
    """Say how many bytes were held at most."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LONGEST = 2**30 - 1


@sides
def test_an_announcement_alone_orders_nothing(make: Callable[..., FrameParser]) -> None:
    header = HEADER.pack(LONGEST, 1, FrameKind.REQUEST, 0, 0, 0, 0)
    assert peak(lambda: make(LONGEST).feed(header)) < 10_000


@sides
def test_a_short_announcement_orders_what_has_come(make: Callable[..., FrameParser]) -> None:
    header = HEADER.pack(WHOLE, 1, FrameKind.REQUEST, 0, 65535, 0, 0)
    assert peak(lambda: make(LONGEST).feed(header + bytes(100))) < 10_000


@ways
def test_the_memory_for_a_long_body_grows_with_what_has_come(take: Take) -> None:
    piece = bytes(WHOLE)
    for count in (1, 10, 100, 400):
        parser = server_side(LONGEST)
        parser.feed(HEADER.pack(LONGEST, 1, FrameKind.REQUEST, 0, 0, 0, 0))
        come = count * WHOLE

        def receive(parser: FrameParser = parser, count: int = count) -> None:
            for _ in range(count):
                take(parser, [piece])

        assert peak(receive) <= 2**20 + 3 * come + 100_000


@ways
def test_a_skipped_body_is_not_kept(take: Take) -> None:
    parser = server_side(LONGEST)
    piece = bytes(WHOLE)
    parser.feed(HEADER.pack(LONGEST, 1, FrameKind.REQUEST, 0, 0, 0, 0) + piece)
    parser.skip()

    def receive() -> None:
        for _ in range(1000):
            take(parser, [piece])

    assert peak(receive) < 4 * WHOLE
    assert parser.held == 1001 * WHOLE


def test_nothing_is_kept_after_a_mistake() -> None:
    parser = server_side()
    parser.feed(bytes(20))
    assert isinstance(parser.error, RequestError)

    def receive() -> None:
        for _ in range(100):
            parser.feed(bytes(10_000))

    assert peak(receive) < 50_000


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_any_meta_comes_back(fields: dict[str, object]) -> None:
    assert decode_meta(encode_meta(fields)) == json.loads(json.dumps(fields)) == fields
