"""Runs the client for node as a user does, against the real daemon and against a server that misbehaves."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Serve

from gaspar.frames import CLIENT_KINDS, MAGIC, Frame, FrameKind, FrameParser, encode

NODE = shutil.which("node")
CLIENT = ROOT / "examples" / "javascript_client.mjs"
TIMEOUT = 60.0  # seconds until something that hangs is ended; nothing here takes that long
HELLO = encode(FrameKind.HELLO, meta=b'{"server":"fake","max_message":9,"max_in_flight":9}')

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(NODE), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    process = start(*arguments)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def parts_of(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host, port


def ask(address: str, *messages: str) -> subprocess.CompletedProcess[str]:
    """Ask with the example's own command."""
    return run(CLIENT, *parts_of(address), *messages)


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run statements that use `client`, connected to an address, and `args`."""

    def run_script(address: str, statements: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "user.mjs"
        path.write_text(
            f"import {{ Client }} from {json.dumps(CLIENT.as_uri())};\n"
            'import fs from "node:fs";\n'
            "const [host, port, ...args] = process.argv.slice(2);\n"
            "const client = new Client(host, Number(port));\n"
            f"{statements}\nclient.close();\n"
        )
        return run(path, *parts_of(address), *arguments)

    return run_script


def test_it_is_short() -> None:
    assert len(CLIENT.read_text().splitlines()) < 60


def test_each_message_gets_its_reply(serve: Serve) -> None:
    done = ask(serve("echo").address, "hello", "", "grüße", "x" * 100_000)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "hello -> hello",
        " -> ",
        "grüße -> grüße",
        f"{'x' * 100_000} -> {'x' * 100_000}",
    ]


def test_an_error_has_its_name_and_the_handlers_traceback(serve: Serve) -> None:
    done = ask(serve("bad").address, "fine", "raise", "return None", "os._exit(7)")
    assert done.returncode == 1
    assert done.stdout == "fine -> fine\n"
    assert "raise failed: HANDLER_ERROR: the handler's own words\nTraceback (most recent call last):\n" in done.stderr
    assert "\nValueError: the handler's own words\n" in done.stderr
    assert "return None failed: BAD_REPLY: handler returned None" in done.stderr
    assert "os._exit(7) failed: CONSUMER_LOST: " in done.stderr


def test_many_are_answered_over_one_connection_each_with_its_own(serve: Serve, script: Script) -> None:
    daemon = serve("digest", "--processes", "2")
    done = script(
        daemon.address,
        """
        const { createHash } = await import("node:crypto");
        const messages = Array.from({ length: 250 }, (_, number) => "x".repeat(number * 37));
        const replies = await Promise.all(messages.map((message) => client.request(message)));
        const wrong = replies.filter((reply, at) => !reply.equals(createHash("sha256").update(messages[at]).digest()));
        console.log(replies.length, wrong.length);
        """,
    )
    assert (done.stdout, done.stderr) == ("250 0\n", "")


def test_a_slow_request_does_not_delay_one_asked_after_it(serve: Serve, script: Script, tmp_path: Path) -> None:
    daemon = serve("await_file", "--processes", "2")
    done = script(
        daemon.address,
        """
        const slow = client.request(args[0]).then(() => console.log("slow"));
        await client.request("").then(() => console.log("fast"));
        fs.writeFileSync(args[0], "");
        await slow;
        """,
        tmp_path / "let go",
    )
    assert (done.stdout, done.stderr) == ("fast\nslow\n", "")


def test_long_requests_and_long_replies_come_whole(serve: Serve, script: Script) -> None:
    done = script(
        serve("echo").address,
        """
        const long = Buffer.alloc(20_000_000, "0123456789abcde");
        const replies = await Promise.all([long, "short", long.subarray(1)].map((each) => client.request(each)));
        console.log(replies[0].equals(long), replies[1].toString(), replies[2].equals(long.subarray(1)));
        """,
    )
    assert (done.stdout, done.stderr) == ("true short true\n", "")


def test_a_streamed_reply_is_put_together(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "streaming.py").write_text(
        "def count(message):\n"
        "    for number in range(int(message)):\n"
        "        yield b'%d,' % number\n"
        "    return b'end'\n"
    )
    done = ask(serve(f"{tmp_path}/streaming.py:count").address, "0", "3", "100")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{count} -> {''.join(f'{number},' for number in range(count))}end" for count in (0, 3, 100)
    ]


def test_a_deadline_that_passes_is_a_timeout(serve: Serve, script: Script, tmp_path: Path) -> None:
    done = script(
        serve("await_file").address,
        """
        await client.request(args[0], 1).catch((error) => console.log(error.name));
        fs.writeFileSync(args[0], "");
        console.log(String(await client.request("", 60000)) === "");
        """,
        tmp_path / "let go",
    )
    assert (done.stdout, done.stderr) == ("TIMEOUT\ntrue\n", "")


def test_what_is_beyond_the_daemons_limit_is_overloaded(serve: Serve, script: Script, tmp_path: Path) -> None:
    done = script(
        serve("await_file", "--max-in-flight", "2").address,
        """
        const held = [client.request(args[0]), client.request(args[0])];
        await client.request("").catch((error) => console.log(error.name));
        fs.writeFileSync(args[0], "");
        console.log((await Promise.all(held)).length);
        """,
        tmp_path / "let go",
    )
    assert (done.stdout, done.stderr) == ("OVERLOADED\n2\n", "")


class Fake:
    """A server that accepts one client and does with it what the test says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(TIMEOUT)
        self.address = "{}:{}".format(*self.listener.getsockname())

    def accept(self, count: int) -> tuple[socket.socket, list[Frame]]:
        """Wait for a client and for so many of its frames."""
        sock, _ = self.listener.accept()
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert sock.recv(4, socket.MSG_WAITALL) == MAGIC
        parser, frames = FrameParser(1 << 20, CLIENT_KINDS, (FrameKind.REQUEST,)), []
        while len(frames) < count:
            data = sock.recv(65536)
            assert data
            frames += parser.feed(data)
        assert parser.error is None
        return sock, frames


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    with server.listener:
        yield server


def talk(fake: Fake, messages: list[str], answers: Callable[[list[Frame]], list[bytes]]) -> tuple[int, str, str]:
    """Let the example ask a server that sends these pieces and ends the stream."""
    process = start(CLIENT, *parts_of(fake.address), *messages)
    try:
        sock, frames = fake.accept(len(messages))
        with sock:
            for piece in answers(frames):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def test_answers_in_any_order_and_any_pieces_reach_their_requests(fake: Fake) -> None:
    def answers(frames: list[Frame]) -> list[bytes]:
        a, b, c = (frame.id for frame in frames)
        data = b"".join(
            [
                HELLO,
                encode(FrameKind.PART, c, b"three"),
                encode(FrameKind.REPLY, b, b"B", a=1, b=2, meta=b'{"new":1}'),
                encode(FrameKind.PONG),
                encode(FrameKind.REPLY, 99, b"nobody's"),
                encode(FrameKind.PART, c, b" parts"),
                encode(FrameKind.ERROR, a, b'{"type":"CANCELLED","message":"no"}', code=8),
                encode(FrameKind.PART, 99, b"nobody's"),
                encode(FrameKind.REPLY, c),
            ]
        )
        return [data[at : at + 1] for at in range(len(data))]

    code, out, err = talk(fake, ["a", "b", "c"], answers)
    assert (code, out, err) == (1, "b -> B\nc -> three parts\n", "a failed: CANCELLED: no\n\n")


def test_what_is_unanswered_when_the_connection_ends_has_failed(fake: Fake) -> None:
    whole = encode(FrameKind.REPLY, 2, b"reply")
    for cut in (0, 10, 20, len(whole) - 1):
        code, out, err = talk(
            fake, ["a", "b"], lambda _, cut=cut: [HELLO + encode(FrameKind.REPLY, 1, b"A") + whole[:cut]]
        )
        assert (code, out, err) == (1, "a -> A\n", "b failed: Error: the connection ended\n\n")


def test_an_error_of_the_connection_is_told_to_all_that_is_unanswered(fake: Fake) -> None:
    end = encode(FrameKind.ERROR, 0, b'{"type":"BAD_FRAME","message":"a frame of kind 9"}', code=1)
    code, out, err = talk(fake, ["a", "b"], lambda _: [HELLO, end])
    assert (code, out) == (1, "")
    assert err == "a failed: BAD_FRAME: a frame of kind 9\n\nb failed: BAD_FRAME: a frame of kind 9\n\n"


def test_an_exception_named_like_a_code_is_still_the_handlers_error(fake: Fake) -> None:
    body = b'{"type":"TIMEOUT","message":"mine","traceback":"Traceback ..."}'
    _, _, err = talk(fake, ["a"], lambda _: [HELLO, encode(FrameKind.ERROR, 1, body, code=6)])
    assert err == "a failed: HANDLER_ERROR: mine\nTraceback ...\n"


def test_nobody_listens_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = ask("{}:{}".format(*taken.getsockname()), "a")
    assert done.returncode == 1
    assert done.stderr.startswith("a failed: Error: connect ECONNREFUSED ")


def test_it_needs_nothing_but_node() -> None:
    assert [line for line in CLIENT.read_text().splitlines() if line.startswith("import")] == [
        'import net from "node:net";'
    ]
    assert not os.path.exists(ROOT / "package.json")
