"""Feeds every split of every sample to the parsers, and arbitrary bytes in arbitrary splits."""

import itertools
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaspar.errors import BadFrame, TooBig
from gaspar.frames import MAGIC
from gaspar.wire import (
    JOB,
    LENGTH,
    MAX_TEXT,
    RESULT,
    Kind,
    OneShotParser,
    Record,
    RecordParser,
    encode_record,
    generation_of,
    job_number,
)

Take = Callable[[OneShotParser, list[bytes]], None]

MAX = 1000  # max_message of most parsers here


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Cut data in all 2 ** (len - 1) ways."""
    for cuts in itertools.product((False, True), repeat=max(0, len(data) - 1)):
        places = [0, *(at for at, cut in enumerate(cuts, 1) if cut), len(data)]
        yield [data[begin:end] for begin, end in itertools.pairwise(places)]


def some_splits(data: bytes) -> Iterator[list[bytes]]:
    """Cut data in up to two places, all of them, and at every byte."""
    yield [data[at : at + 1] for at in range(len(data))]
    for first, second in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        yield [data[:first], data[first:second], data[second:]]


def feed(parser: OneShotParser, pieces: list[bytes]) -> None:
    for piece in pieces:
        parser.feed(piece)


def read_into(parser: OneShotParser, pieces: list[bytes]) -> None:
    """Do as a socket's recv_into does once the length is known, and feed what comes after the request."""
    for piece in pieces:
        if parser.size < 0 or parser.complete:
            parser.feed(piece)
            continue
        space = parser.space()
        count = min(len(space), len(piece))
        space[:count] = piece[:count]
        parser.filled(count)
        if count < len(piece):
            parser.feed(piece[count:])


ways = pytest.mark.parametrize("take", [feed, read_into])


# ---- one-shot ----


@ways
@pytest.mark.parametrize("excess", [b"", b"!", b"GET"])
@pytest.mark.parametrize("payload", [b"", b"x", b"abcd"])
def test_a_request_is_complete_at_every_split(take: Take, payload: bytes, excess: bytes) -> None:
    for pieces in every_split(LENGTH.pack(len(payload)) + payload + excess):
        parser = OneShotParser(MAX)
        take(parser, pieces)
        assert parser.complete and parser.begun and parser.missing == 0
        assert (bytes(parser.payload), parser.excess) == (payload, excess), pieces
        parser.eof()


@ways
def test_a_request_is_complete_with_its_last_byte_and_not_before(take: Take) -> None:
    data = LENGTH.pack(3) + b"abc"
    parser = OneShotParser(MAX)
    for at, missing in enumerate([4, 3, 2, 1, 3, 2, 1]):  # of the header, then of the payload
        assert not parser.complete
        assert parser.missing == missing
        take(parser, [data[at : at + 1]])
    assert parser.complete


def test_a_length_0_is_complete_with_its_header() -> None:
    parser = OneShotParser(MAX)
    parser.feed(bytes(4))
    assert parser.complete
    assert parser.payload == b""


@pytest.mark.parametrize(
    ("size", "max_message"),
    [(0, 1), (1, 1), (MAX, MAX), (300, MAX), (65536, 2**20), (70000, 2**20)],
)
def test_a_length_up_to_max_message_is_taken(size: int, max_message: int) -> None:
    payload = bytes(at % 251 for at in range(size))
    parser = OneShotParser(max_message)
    for piece in (LENGTH.pack(size), payload[:100], payload[100:]):
        parser.feed(piece)
    assert parser.complete
    assert parser.payload == payload


@pytest.mark.parametrize(("size", "max_message"), [(2, 1), (MAX + 1, MAX), (2**30 - 1, 2**30 - 2), (2**24, 2**24 - 1)])
def test_a_longer_message_is_refused_at_its_header(size: int, max_message: int) -> None:
    for pieces in every_split(LENGTH.pack(size)):
        parser = OneShotParser(max_message)
        feed(parser, pieces[:-1])
        with pytest.raises(TooBig, match=rf"{size} bytes announced, {max_message} allowed \(--max-message\)"):
            parser.feed(pieces[-1])
        assert parser.payload == b""  # no buffer was made for it


@pytest.mark.parametrize("first", [0x40, 0x47, 0x80, 0xFF])
def test_another_protocol_is_refused_at_its_first_byte(first: int) -> None:
    for more in (b"", b"XP2", b"ET / HTTP/1.1\r\n"):
        if first == MAGIC[0] and not more:
            continue
        parser = OneShotParser(2**30 - 1)
        with pytest.raises(BadFrame, match="no known protocol"):
            parser.feed(bytes([first]) + more)
        assert parser.payload == b""


@ways
@pytest.mark.parametrize("excess", [b"", b"!", b"GSP2"])
def test_the_framed_protocols_name_is_known_at_every_split(take: Take, excess: bytes) -> None:
    for pieces in every_split(MAGIC + excess):
        parser = OneShotParser(MAX)
        rest = list(pieces)
        while not parser.is_framed:
            take(parser, [rest.pop(0)])
        assert parser.excess + b"".join(rest) == excess, pieces
        assert not parser.complete
        assert parser.payload == b""


def test_the_framed_protocols_name_is_known_with_its_last_byte_and_not_before() -> None:
    parser = OneShotParser(MAX)
    for at, missing in enumerate([4, 3, 2, 1]):
        assert not parser.is_framed
        assert parser.missing == missing
        parser.feed(MAGIC[at : at + 1])
    assert parser.is_framed


@pytest.mark.parametrize("start", [b"H", b"GT", b"GSQ", b"GSP1", b"GSP3", b"gsp2", b"GSP\x00", b"\x7fGSP"])
def test_a_name_that_is_none_is_refused_at_its_first_wrong_byte(start: bytes) -> None:
    for pieces in every_split(start[:4]):
        parser = OneShotParser(MAX)
        with pytest.raises(BadFrame, match="no known protocol begins with"):
            feed(parser, pieces)
        assert not parser.is_framed


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_end_inside_the_framed_protocols_name_is_an_error(size: int) -> None:
    parser = OneShotParser(MAX)
    parser.feed(MAGIC[:size])
    with pytest.raises(BadFrame, match=f"the stream ended after {size} of 4 header bytes"):
        parser.eof()


def test_a_request_is_not_framed() -> None:
    parser = OneShotParser(MAX)
    parser.feed(LENGTH.pack(4) + MAGIC)
    assert parser.complete and not parser.is_framed


def test_the_largest_first_byte_is_a_length() -> None:
    parser = OneShotParser(2**30 - 1)
    parser.feed(b"\x3f")
    assert parser.begun
    assert parser.missing == 3


def fill(parser: OneShotParser, data: bytes) -> int:
    """Read as much as there is space for; return how much that was."""
    with parser.space() as space:
        count = min(len(space), len(data))
        space[:count] = data[:count]
    parser.filled(count)
    return count


@pytest.mark.parametrize("first", [b"", b"the first bytes"])
def test_an_announcement_alone_orders_little_memory(first: bytes) -> None:
    tracemalloc.start()
    try:
        parser = OneShotParser(2**30 - 1)
        parser.feed(LENGTH.pack(64 * 2**20) + first)
        parser.space().release()
        assert parser.missing == 64 * 2**20 - len(first)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_the_space_grows_with_what_has_come_and_never_past_the_end() -> None:
    size = 5_000_001
    payload = bytes(at % 251 for at in range(size))
    parser = OneShotParser(size)
    parser.feed(LENGTH.pack(size))
    have, steps = 0, 0
    while not parser.complete:
        with parser.space() as space:
            assert 0 < len(space) <= parser.missing
            assert len(space) <= max(2**20, have)  # at most as much again as there is
        have += fill(parser, payload[have:])
        steps += 1
    assert parser.payload == payload
    assert steps < 10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400_000)), max_size=12))
def test_a_long_request_may_be_fed_and_read_in_turns(pieces: list[tuple[bool, int]]) -> None:
    size = 1_000_000
    payload = bytes(range(250)) * (size // 250)
    parser = OneShotParser(size)
    parser.feed(LENGTH.pack(size))
    have = 0
    for fed, count in [*pieces, (True, size)]:
        part = payload[have : have + count]
        if fed:
            parser.feed(part)
            have += len(part)
        else:
            have += fill(parser, part)
        assert parser.missing == size - have
    assert parser.complete
    assert parser.payload == payload
    assert parser.excess == b""


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0", "1 of 4 header bytes"),
        (b"\0\0\0", "3 of 4 header bytes"),
        (LENGTH.pack(3), "0 of 3 bytes"),
        (LENGTH.pack(3) + b"ab", "2 of 3 bytes"),
    ],
)
def test_an_end_inside_a_request_is_an_error_that_says_where(data: bytes, what: str) -> None:
    parser = OneShotParser(MAX)
    parser.feed(data)
    with pytest.raises(BadFrame, match=f"the stream ended after {what}"):
        parser.eof()


def test_an_end_before_the_first_byte_is_no_error() -> None:
    parser = OneShotParser(MAX)
    parser.feed(b"")
    assert not parser.begun
    parser.eof()


def outcome(take: Take, pieces: list[bytes]) -> object:
    parser = OneShotParser(MAX)
    try:
        for at, piece in enumerate(pieces):
            take(parser, [piece])
            if parser.is_framed:
                return "framed", parser.excess + b"".join(pieces[at + 1 :])
        parser.eof()
    except (BadFrame, TooBig) as error:
        return type(error)
    return bytes(parser.payload), parser.excess, parser.begun


def expected(data: bytes) -> object:
    """Say what the protocol says of a whole stream."""
    if not data:
        return b"", b"", False
    if data.startswith(MAGIC):
        return "framed", data[4:]
    if data[0] >= 0x40 or len(data) < 4:
        return BadFrame
    (size,) = struct.unpack("!I", data[:4])
    if size > MAX:
        return TooBig
    return (data[4 : 4 + size], data[4 + size :], True) if len(data) >= 4 + size else BadFrame


lengths = st.integers(0, MAX + 20).map(LENGTH.pack)
streams = st.one_of(
    st.binary(max_size=20),
    st.tuples(lengths, st.binary(max_size=2 * MAX)).map(b"".join),
    st.tuples(st.integers(0, 30).map(LENGTH.pack), st.binary(max_size=40)).map(b"".join),
    st.tuples(st.just(MAGIC), st.binary(max_size=40)).map(b"".join),
    st.tuples(st.integers(1, 4).map(lambda size: MAGIC[:size]), st.binary(max_size=3)).map(b"".join),
)


@settings(deadline=None, max_examples=300)
@given(streams, st.lists(st.integers(0, 2 * MAX + 4), max_size=12))
@example(LENGTH.pack(MAX + 1), [1, 2, 3])
@example(LENGTH.pack(MAX) + bytes(MAX), [4])
@example(MAGIC + b"more", [2])
def test_any_bytes_mean_the_same_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    assert outcome(feed, pieces) == expected(data)
    assert outcome(read_into, pieces) == expected(data)


# ---- lifeline records ----

SAMPLES = [
    [],
    [Record(Kind.READY, {})],
    [Record(Kind.FORK, {"number": 1, "slot": 0}), Record(Kind.DRAIN, {"grace": 2.5})],
    [
        Record(Kind.STOP, {}),
        Record(Kind.LOAD_FAILED, {"message": "größer", "traceback": '"\n'}),
        Record(Kind.READY, {}),
    ],
]


@pytest.mark.parametrize("records", SAMPLES, ids=len)
def test_records_come_out_of_every_split_as_they_went_in(records: list[Record]) -> None:
    for pieces in some_splits(b"".join(encode_record(*record) for record in records)):
        parser = RecordParser()
        assert list(itertools.chain.from_iterable(map(parser.feed, pieces))) == records, pieces


def test_a_record_comes_out_with_its_last_byte_and_not_before() -> None:
    data = encode_record(Kind.LEAVE, {"number": 7})
    parser = RecordParser()
    assert [parser.feed(data[at : at + 1]) for at in range(len(data) - 1)] == [[]] * (len(data) - 1)
    assert parser.feed(data[-1:]) == [Record(Kind.LEAVE, {"number": 7})]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
records = st.builds(Record, st.sampled_from(Kind), st.dictionaries(st.text(), json_values, max_size=4))


@settings(deadline=None, max_examples=100)
@given(st.lists(records, max_size=5), st.integers(1, 64))
def test_any_records_come_out_of_pieces_of_any_size(sent: list[Record], size: int) -> None:
    data = b"".join(encode_record(*record) for record in sent)
    parser = RecordParser()
    got = []
    for at in range(0, len(data), size):
        got += parser.feed(data[at : at + size])
    assert got == sent


def test_a_record_is_laid_out_as_its_table_says() -> None:
    data = encode_record(Kind.DRAIN, {"grace": 1})
    assert struct.unpack("!IB", data[:5]) == (len(data) - 5, Kind.DRAIN)
    assert json.loads(data[5:]) == {"grace": 1}


def test_a_text_in_a_record_is_cut_at_its_front() -> None:
    story = "".join(f"line {number}\n" for number in range(10_000))
    (record,) = RecordParser().feed(encode_record(Kind.LOAD_FAILED, {"message": "x" * MAX_TEXT, "traceback": story}))
    assert record.fields == {"message": "x" * MAX_TEXT, "traceback": story[-MAX_TEXT:]}


# ---- jobs and results ----


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_job_number_fits_its_field_and_names_its_front(generation: int, counter: int) -> None:
    number = job_number(generation, counter)
    assert generation_of(number) == generation
    assert JOB.unpack(JOB.pack(number, 1)) == (number, 1)


def test_job_numbers_of_two_fronts_never_meet() -> None:
    assert job_number(1, 2**32 - 1) < job_number(2, 0)


def test_headers_keep_what_follows_them_aligned() -> None:
    assert JOB.size % 8 == 0
    assert RESULT.size % 8 == 0
