"""Reads docs/protocol.rst as a person who writes a client does: its bytes, its tables, its example."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, Serve

from gaspar.errors import Cancelled, Code, ShuttingDown
from gaspar.frames import CLIENT_KINDS, HEADER, MAGIC, Frame, FrameKind, FrameParser, decode_meta, encode
from gaspar.session import Session

TEXT = (ROOT / "docs" / "protocol.rst").read_text()
# "    client  00 00 00 05 ...  what it says"; the side is not repeated in the lines of one frame
ROW = re.compile(r"^    (client|server|      )  ([0-9a-f]{2}(?: [0-9a-f]{2})*)(?:  +(.*))?$")
LIMIT = 2**30 - 1


class Row(NamedTuple):
    side: str
    data: bytes
    note: str


class Dump(NamedTuple):
    """One literal block of hex: what was said of it before, and its lines."""

    title: str
    rows: list[Row]

    def sent_by(self, side: str) -> bytes:
        return b"".join(row.data for row in self.rows if row.side == side)


def framed_part() -> str:
    return TEXT[TEXT.index("\nThe framed protocol\n====") :]


def dumps() -> list[Dump]:
    found: list[Dump] = []
    for title, block in re.findall(r"((?:^\S.*\n)+)\n((?:^ +.*\n)+)", framed_part(), re.MULTILINE):
        if not ROW.match(block.splitlines()[0]):
            continue
        rows, side = [], ""
        for line in block.splitlines():
            if line.strip() in ("client  FIN", "server  FIN"):
                continue
            match = ROW.match(line)
            assert match, line
            side = match[1].strip() or side
            rows.append(Row(side, bytes.fromhex(match[2]), match[3] or ""))
        found.append(Dump(" ".join(title.split()), rows))
    return found


def parse(side: str, data: bytes) -> list[Frame]:
    """Read what one side sent, as the other does."""
    parser = FrameParser(LIMIT)
    if side == "client":
        data = data.removeprefix(MAGIC)
        parser = FrameParser(LIMIT, CLIENT_KINDS, (FrameKind.REQUEST,))
    frames = parser.feed(data)
    assert parser.error is None and not parser.inside
    return frames


def described(frame: Frame) -> str:
    """What stands beside a header."""
    numbers = {"id": frame.id, "code": frame.code, "a": frame.a, "b": frame.b}
    numbers |= {"meta": len(frame.meta), "body": len(frame.body)}
    return ", ".join([FrameKind(frame.kind).name, *(f"{key} {n}" for key, n in numbers.items() if n or key == "id")])


def printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data).rstrip()


DUMPS = dumps()
HELLO = encode(FrameKind.HELLO, meta=b'{"server": "gaspar/2.0.0", "max_message": 67108864, "max_in_flight": 256}')
FAILED = b'{"type": "ValueError", "message": "empty", "traceback": "Traceback (most recent call last):\\n..."}'
# each dump's first words, and what is in it
FRAMES = {
    "Hexadecimal; the header is in a line of its own. A REQUEST with id 1 and the body ``hello``": encode(
        FrameKind.REQUEST, 1, b"hello"
    ),
    "A REQUEST that is to be answered within 1500 milliseconds": encode(
        FrameKind.REQUEST, 2, a=1500, meta=b'{"trace": "7f3a"}'
    ),
    "CANCEL of the request with id 2": encode(FrameKind.CANCEL, 2),
    "PING": encode(FrameKind.PING, 4711),
    "HELLO": HELLO,
    "REPLY to the first request, which waited for 118 microseconds and ran for 1204": encode(
        FrameKind.REPLY, 1, b"HELLO", a=118, b=1204
    ),
    "ERROR in place of it, since the handler raised": encode(FrameKind.ERROR, 1, FAILED, code=6, a=118, b=1204),
    "PART of a streamed reply, its last part, which is empty, PONG and GOAWAY": encode(FrameKind.PART, 3, b"one,")
    + encode(FrameKind.REPLY, 3, a=95, b=2048)
    + encode(FrameKind.PONG, 4711)
    + encode(FrameKind.GOAWAY),
}


@pytest.mark.parametrize(("title", "data"), FRAMES.items(), ids=[title[:30] for title in FRAMES])
def test_each_dump_is_what_is_said_of_it(title: str, data: bytes) -> None:
    (dump,) = [each for each in DUMPS if each.title.startswith(title)]
    assert b"".join(row.data for row in dump.rows) == data


def test_every_dump_is_looked_at() -> None:
    assert len(DUMPS) == len(FRAMES) + 1  # the conversation


def test_every_kind_is_dumped() -> None:
    assert {frame.kind for dump in DUMPS for row in dump.rows for frame in parse(row.side, dump.sent_by(row.side))} == {
        *FrameKind
    }


@pytest.mark.parametrize("dump", DUMPS, ids=[dump.title[:30] for dump in DUMPS])
def test_a_dump_is_laid_out_and_read_as_gaspar_does(dump: Dump) -> None:
    for side in ("client", "server"):
        data = dump.sent_by(side)
        frames = parse(side, data)
        again = b"".join(
            encode(FrameKind(each.kind), each.id, bytes(each.body), code=each.code, a=each.a, b=each.b, meta=each.meta)
            for each in frames
        )
        assert again == data.removeprefix(MAGIC)
        for frame in frames:
            decode_meta(frame.meta)


@pytest.mark.parametrize("dump", DUMPS, ids=[dump.title[:30] for dump in DUMPS])
def test_the_notes_beside_the_bytes_are_true(dump: Dump) -> None:
    rows = [row for row in dump.rows if row.data != MAGIC]
    for side in ("client", "server"):
        frames = iter(parse(side, dump.sent_by(side)))
        missing = 0
        for row in (row for row in rows if row.side == side):
            if missing:
                assert row.note == printable(row.data)
                missing -= len(row.data)
                assert missing >= 0
            else:
                frame = next(frames)
                assert row.note == described(frame)
                assert len(row.data) == HEADER.size
                missing = len(frame.meta) + len(frame.body)


def test_the_conversation_is_what_a_client_of_gaspar_says_and_understands() -> None:
    dump = DUMPS[-1]
    session = Session()
    sent, answers, given = session.greeting, [], b""
    messages = {b"hello": 0, b"slow": 5000, b"count": 0, b"late": 0}

    def ask(message: bytes) -> bytes:
        return session.begin(message, len(message), messages[message])[1] + message

    sent += ask(b"hello") + ask(b"slow") + ask(b"count")
    for row in dump.rows:
        if row.side == "server":
            given += row.data
            answers += session.feed(row.data)
        elif row.data == b"late":
            assert session.leaving
            sent += ask(b"late")
        elif row.note == "CANCEL, id 2":
            sent += encode(FrameKind.CANCEL, 2)  # as Session.cancel, which forgets it
    assert sent == dump.sent_by("client")
    assert dump.rows[0].data == MAGIC
    outcomes: dict[Any, object] = dict(answers)
    assert isinstance(outcomes.pop(b"slow"), Cancelled)
    assert isinstance(outcomes.pop(b"late"), ShuttingDown)
    assert outcomes == {b"hello": b"HELLO", b"count": b"one,two"}
    assert session.calls == {} and session.error is None


def table(*heads: str) -> list[list[str]]:
    """The rows of the table with these first heads, by its columns; what goes on in the next line is left out."""
    match = re.search(
        rf"^(=+(?: +=+)+)\n{' +'.join(heads)}.*\n=[= ]+\n((?:\S.*\n| .*\n)+?)=[= ]+$", framed_part(), re.MULTILINE
    )
    assert match
    columns = [each.span() for each in re.finditer("=+", match[1])]
    columns[-1] = (columns[-1][0], 200)
    return [[line[begin:end].strip() for begin, end in columns] for line in match[2].splitlines() if line[0] != " "]


def test_the_table_of_kinds_is_that_of_the_code() -> None:
    rows = table("kind", "name", "sent by")
    assert [(int(kind), name) for kind, name, *_ in rows] == [(kind.value, kind.name) for kind in FrameKind]
    assert all((side == "client") == (int(kind) in CLIENT_KINDS) for kind, _, side, *_ in rows)


def test_the_table_of_errors_is_that_of_the_code() -> None:
    assert [(int(code), name) for code, name, *_ in table("code", "name")] == [(each.value, each.name) for each in Code]


def test_the_table_of_the_header_is_that_of_the_code() -> None:
    rows = [(int(offset), int(size), name) for offset, size, name, *_ in table("offset", "bytes", "name")]
    assert [name for _, _, name in rows] == ["size", "id", "kind", "code", "meta_size", "a", "b"]
    assert sum(size for _, size, _ in rows) == HEADER.size
    frame = HEADER.pack(*range(1, 8))
    for value, (offset, size, _) in enumerate(rows, 1):
        assert int.from_bytes(frame[offset : offset + size], "big") == value


def example(heading: str) -> dict[str, Any]:
    """Run a Python example of the text; returns its names."""
    section = TEXT[TEXT.index(f"\n{heading}\n---") :]
    match = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", section)
    assert match
    code = re.sub("^    ", "", match[1], flags=re.MULTILINE)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, heading, "exec"), names)
    return names


def test_the_one_shot_client_gets_its_reply(serve: Serve) -> None:
    host, _, port = serve("bad").address.rpartition(":")
    request = example("A client in Python")["request"]
    assert request(host, int(port), b"hello") == b"hello"
    with pytest.raises(ConnectionResetError):
        request(host, int(port), b"raise")


def test_the_framed_client_gets_replies_and_errors(serve: Serve) -> None:
    host, _, port = serve("bad").address.rpartition(":")
    request_all = example("A framed client in Python")["request_all"]
    messages = [b"one", b"raise", b"", bytes(100_000)]
    one, error, empty, long = request_all(host, int(port), messages)
    assert (one, empty, long) == (b"one", b"", bytes(100_000))
    assert isinstance(error, RuntimeError) and str(error) == "error 6: the handler's own words"
    assert request_all(host, int(port), []) == []


def test_the_examples_put_a_streamed_reply_together(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "streaming.py").write_text("def count(message):\n    yield b'one,'\n    yield b'two'\n")
    host, _, port = serve(f"{tmp_path}/streaming.py:count").address.rpartition(":")
    assert example("A client in Python")["request"](host, int(port), b"") == b"one,two"
    assert example("A framed client in Python")["request_all"](host, int(port), [b"", b"x"]) == [b"one,two"] * 2
