"""The command `gaspar-call` as a user runs it: against the real daemon, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Serve, wait_until

from gaspar.errors import Code, failure
from gaspar.frames import MAGIC, Frame, FrameKind, FrameParser, encode, encode_meta

COMMAND = [sys.executable, str(ROOT / "bin" / "gaspar-call")]
TIMEOUT = 60.0  # seconds until something that hangs is ended; nothing here takes that long
EVERYTHING = bytes(range(256)) * 3 + b"\r\n\n"
BOTH = pytest.mark.parametrize("protocol", [[], ["--one-shot"]], ids=["framed", "one-shot"])


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out, err.decode()
        assert "call.py" not in self.err, f"a traceback of gaspar-call itself:\n{self.err}"

    def __repr__(self) -> str:
        return f"exit code {self.code}, {self.out[:1000]!r}\n{self.err}"


class Running(subprocess.Popen[bytes]):
    """A `gaspar-call` that runs; Ctrl-C works in it even if the tests run in the background of a shell."""

    def __init__(self, *arguments: object, **more: Any) -> None:
        super().__init__(
            [*COMMAND, *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,
            env={**os.environ, "PYTHONWARNINGS": "error", "COLUMNS": "100"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def done(self) -> Done:
        out, err = self.communicate(timeout=TIMEOUT)
        return Done(self.returncode, out or b"", err or b"")


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start commands; they are ended at the end."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: object, **more: Any) -> Running:
            process = Running(*arguments, **more)
            stack.callback(_end, process)
            return process

        yield begin


def _end(process: Running) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def call(*arguments: object, message: bytes | None = None) -> Done:
    """Run a command to its end; `message` is its standard input."""
    ran = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=b"" if message is None else message,
        capture_output=True,
        env={**os.environ, "PYTHONWARNINGS": "error", "COLUMNS": "100"},
        timeout=TIMEOUT,
        check=False,
    )
    return Done(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write each content to a file of its own."""

    def write(*contents: bytes) -> list[Path]:
        paths = [tmp_path / f"{number}.txt" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return paths

    return write


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# messages and replies


@BOTH
def test_standard_input_is_the_message_and_nothing_is_added_to_the_reply(serve: Serve, protocol: list[str]) -> None:
    address = serve("echo").address
    for message in (EVERYTHING, b"", os.urandom(3_000_000)):
        done = call(*protocol, address, message=message)
        assert (done.code, done.out, done.err) == (0, message, "")
    assert call(*protocol, address, "-", message=EVERYTHING).out == EVERYTHING


@BOTH
def test_replies_come_in_the_order_of_the_files(
    serve: Serve, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    contents = [bytes([number]) * (1000 * (50 - number)) for number in range(50)]
    paths = files(*contents)
    done = call(*protocol, serve("echo").address, *paths[:20], "-", *paths[20:], message=b"typed")
    assert (done.code, done.err) == (0, "")
    assert done.out == b"".join([*contents[:20], b"typed", *contents[20:]])


@BOTH
def test_more_bytes_than_may_be_read_ahead_all_arrive(
    serve: Serve, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    paths = files(*[bytes([number]) * 30_000_000 for number in range(4)])
    done = call(*protocol, serve("echo").address, *paths)
    assert (done.code, done.err) == (0, "")
    assert done.out == b"".join(path.read_bytes() for path in paths)


def test_ipv6_and_unix_addresses(serve: Serve, tmp_path: Path) -> None:
    for bind in ("[::1]:0", f"unix:{tmp_path}/s" if len(str(tmp_path)) < 100 else "[::1]:0"):
        address = serve("echo", bind=bind).address
        assert call(address, message=b"hello").out == b"hello"
        assert call("--one-shot", address, message=b"hello").out == b"hello"


def test_a_fifo_is_a_file_like_others(serve: Serve, tmp_path: Path, start: Callable[..., Running]) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = start(serve("echo").address, tmp_path / "fifo")
    (tmp_path / "fifo").write_bytes(b"through a pipe")
    assert process.done().out == b"through a pipe"


# servers that are fakes, but speak over real sockets


class Server:
    """Serves each connection with a function, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                self._threads.append(threading.Thread(target=self._run, args=(self._listener.accept()[0],)))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def framed(behave: Callable[[Frame, Callable[[bytes], None]], None]) -> Callable[[socket.socket], None]:
    """Return what serves a framed connection: it calls a function with each request and a way to send."""

    def serve(connection: socket.socket) -> None:
        meta = encode_meta({"server": "fake", "max_message": 1000, "max_in_flight": 8})
        connection.sendall(encode(FrameKind.HELLO, meta=meta))
        if connection.recv(len(MAGIC), socket.MSG_WAITALL) != MAGIC:
            return
        parser = FrameParser(2**20)
        while data := connection.recv(65536):
            for frame in parser.feed(data):
                if frame.kind == FrameKind.REQUEST:
                    behave(frame, connection.sendall)

    return serve


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Start servers that serve each connection with a function; returns the address."""
    servers: list[Server] = []

    def begin(serve: Callable[[socket.socket], None]) -> str:
        servers.append(Server(serve))
        return servers[-1].address

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def fake(raw: Callable[[Callable[[socket.socket], None]], str]) -> Callable[..., str]:
    """Start framed servers that call a function with each request; returns the address."""
    return lambda behave: raw(framed(behave))


def test_several_files_are_in_flight_at_once(fake: Callable[..., str], files: Callable[..., list[Path]]) -> None:
    """The first reply comes when the last request is there."""
    requests: list[Frame] = []

    def last_first(request: Frame, send: Callable[[bytes], None]) -> None:
        requests.append(request)
        if len(requests) == 3:
            for each in reversed(requests):
                send(encode(FrameKind.REPLY, each.id, bytes(each.body)))

    assert call(fake(last_first), *files(b"a", b"b", b"c")).out == b"abc"


def test_parts_of_a_reply_are_written_as_they_come(fake: Callable[..., str], start: Callable[..., Running]) -> None:
    written = threading.Event()

    def in_parts(request: Frame, send: Callable[[bytes], None]) -> None:
        send(encode(FrameKind.PART, request.id, b"first, "))
        assert written.wait(TIMEOUT)
        send(encode(FrameKind.PART, request.id, b"second, "))
        send(encode(FrameKind.REPLY, request.id, b"last", a=1000, b=2500))

    process = start("-v", fake(in_parts))
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"first, "
    written.set()
    done = process.done()
    assert (done.code, done.out) == (0, b"second, last")
    assert done.err == "gaspar-call: 0 bytes sent, 19 received; waited 1.000 ms, ran 2.500 ms\n"


def test_a_streamed_reply_is_written_while_its_handler_runs(
    serve: Serve, start: Callable[..., Running], files: Callable[..., list[Path]], tmp_path: Path
) -> None:
    gate = tmp_path / "second"
    process = start(serve("streams").address, *files(b"gate " + os.fsencode(gate)))
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"first"
    gate.touch()
    done = process.done()
    assert (done.code, done.out, done.err) == (0, b"second", "")


def test_a_reader_that_has_enough_ends_the_stream_and_its_handler(
    serve: Serve, start: Callable[..., Running], files: Callable[..., list[Path]], tmp_path: Path
) -> None:
    process = start(serve("streams").address, *files(b"endless " + os.fsencode(tmp_path) + b" 1000"))
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 10) == bytes(10)
    process.stdout.close()
    process.stdout = None
    done = process.done()
    assert (done.code, done.err) == (141, "")
    wait_until((tmp_path / "closed").exists)


def test_parts_of_replies_to_several_files_are_put_together(
    fake: Callable[..., str], files: Callable[..., list[Path]]
) -> None:
    requests: list[Frame] = []

    def entangled(request: Frame, send: Callable[[bytes], None]) -> None:
        requests.append(request)
        if len(requests) == 2:
            for kind in (FrameKind.PART, FrameKind.PART, FrameKind.REPLY):
                for each in requests:
                    send(encode(kind, each.id, bytes(each.body)))

    assert call(fake(entangled), *files(b"a", b"b")).out == b"aaabbb"


def test_a_reply_that_fails_after_its_first_parts_is_a_failure(fake: Callable[..., str]) -> None:
    def broken(request: Frame, send: Callable[[bytes], None]) -> None:
        send(encode(FrameKind.PART, request.id, b"half"))
        detail = failure(Code.CONSUMER_LOST, "its consumer died: SIGKILL", exit="SIGKILL").detail
        send(encode(FrameKind.ERROR, request.id, detail, code=5))

    done = call(fake(broken))
    assert (done.code, done.out) == (15, b"half")
    assert done.err == "gaspar-call: CONSUMER_LOST: its consumer died: SIGKILL\n"


# failures


@pytest.mark.parametrize("code", Code)
def test_each_error_of_the_wire_has_its_exit_code(fake: Callable[..., str], code: Code) -> None:
    def refuse(request: Frame, send: Callable[[bytes], None]) -> None:
        send(encode(FrameKind.ERROR, request.id, failure(code, "the\nreason").detail, code=code))

    done = call(fake(refuse))
    assert (done.code, done.out) == (10 + code, b"")
    assert re.fullmatch(rf"gaspar-call: {code.name}: (HANDLER_ERROR: )?the reason\n", done.err)


def test_an_error_of_a_newer_daemon_is_told(fake: Callable[..., str]) -> None:
    def refuse(request: Frame, send: Callable[[bytes], None]) -> None:
        send(encode(FrameKind.ERROR, request.id, b'{"message": "too early"}', code=77))

    done = call(fake(refuse))
    assert done.code == 10
    assert done.err == "gaspar-call: unknown error: error 77, which this client does not know: too early\n"


@pytest.mark.parametrize(
    ("message", "code", "pattern"),
    [
        (
            b"raise",
            16,
            r"gaspar-call: HANDLER_ERROR: ValueError: the handler's own words\n"
            r"  In the handler:\n  Traceback (.+\n)+  ValueError: the handler's own words\n",
        ),
        (b"os._exit(7)", 15, r"gaspar-call: CONSUMER_LOST: .*7.*\n"),
        (b"kill itself", 15, r"gaspar-call: CONSUMER_LOST: .*SIGKILL.*\n"),
        (b"return None", 17, r"gaspar-call: BAD_REPLY: handler returned None, .*\n"),
        (b"return too much", 17, r"gaspar-call: BAD_REPLY: .*73400320.*\n"),
    ],
)
def test_what_goes_wrong_in_the_handler_is_told(serve: Serve, message: bytes, code: int, pattern: str) -> None:
    done = call(serve("bad").address, message=message)
    assert (done.code, done.out) == (code, b"")
    assert re.fullmatch(pattern, done.err), done.err


def test_a_handler_beyond_the_daemons_limit_is_told_with_its_stack(serve: Serve) -> None:
    done = call(serve("faulty", "--timeout", "0.3").address, message=b"hang in Python")
    assert done.code == 14
    assert re.match(r"gaspar-call: TIMEOUT: .*0\.3.*\n  Where the handler was:\n  ", done.err)
    assert "_hang_in_python" in done.err


def test_a_message_that_is_too_long_is_told_with_the_limit(serve: Serve, files: Callable[..., list[Path]]) -> None:
    address = serve("echo", "--max-message", "1000").address
    done = call(address, message=bytes(1001))
    assert (done.code, done.out) == (12, b"")
    assert re.fullmatch(r"gaspar-call: TOO_BIG: 1001 bytes.* 1000 .*\n", done.err)
    done = call(address, *files(b"a", bytes(5000), b"c"))
    assert (done.code, done.out) == (12, b"ac")
    assert re.fullmatch(r"gaspar-call: \S+1.txt: TOO_BIG: 5000 bytes.* 1000 .*\n", done.err)


def test_a_full_daemon_says_no(serve: Serve, start: Callable[..., Running], tmp_path: Path) -> None:
    daemon = serve("await_file", "-p", "1", "--depth", "1", "--max-waiting", "0")
    busy = start(daemon.address, stdin=subprocess.PIPE)
    assert busy.stdin is not None
    busy.stdin.write(os.fsencode(tmp_path / "go"))
    busy.stdin.close()
    busy.stdin = None
    wait_until(lambda: daemon.connected() == 1)
    done = wait_until(lambda: (now := call(daemon.address)).code and now)  # the first answers at once until it is busy
    assert done.code == 13
    assert done.err.startswith("gaspar-call: OVERLOADED: ")
    (tmp_path / "go").touch()
    assert busy.done().code == 0


@BOTH
def test_time_that_is_over_here_is_told(
    serve: Serve, tmp_path: Path, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    daemon = serve("await_file", "-p", "1", "--depth", "1")
    never = os.fsencode(tmp_path / "never")
    done = call(*protocol, "--timeout", "0.2", daemon.address, message=never)
    assert (done.code, done.out) == (14, b"")
    assert re.match(r"gaspar-call: TIMEOUT: .*\n", done.err)
    done = call(*protocol, "--timeout", "0.2", daemon.address, *files(never, never))
    assert (done.code, done.out) == (14, b"")
    assert re.findall(r"(?m)^gaspar-call: \S+(\d).txt: TIMEOUT: ", done.err) == ["0", "1"]
    (tmp_path / "never").touch()


@BOTH
def test_one_failure_does_not_lose_the_other_replies(
    serve: Serve, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    paths = files(b"one ", b"raise", b"two ", b"return None", b"three")
    done = call(*protocol, serve("bad").address, *paths)
    assert done.out == b"one two three"
    assert done.code == (1 if protocol else 16)
    assert re.findall(r"(?m)^gaspar-call: (.+?): ", done.err) == [str(paths[1]), str(paths[3])]


@BOTH
def test_nobody_there_is_told(
    closed_port: int, files: Callable[..., list[Path]], tmp_path: Path, protocol: list[str]
) -> None:
    for address in (f"127.0.0.1:{closed_port}", f"[::1]:{closed_port}", f"unix:{tmp_path}/s"[:100]):
        done = call(*protocol, address)
        assert (done.code, done.out) == (1, b"")
        assert done.err.startswith(f"gaspar-call: {address}: nobody listens there; is the daemon running?")
        assert done.err.count("\n") == 1
    done = call(*protocol, f"127.0.0.1:{closed_port}", *files(b"a", b"b"))
    assert (done.code, done.out) == (1, b"")
    assert done.err.count("0.txt: ") == done.err.count("1.txt: ") == 1


@BOTH
def test_a_connection_that_is_lost_is_told(
    raw: Callable[[Callable[[socket.socket], None]], str], protocol: list[str]
) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(4)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    address = raw(reset)
    done = call(*protocol, address, message=b"x")
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith(f"gaspar-call: {address}: ")
    assert done.err.count("\n") == 1


def test_a_server_that_speaks_something_else_is_told(raw: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    done = call(raw(http), message=b"x")
    assert (done.code, done.out) == (1, b"")
    assert "greeting of a gaspar daemon" in done.err
    assert done.err.count("\n") == 1


def test_a_server_that_says_nothing_is_waited_for_until_the_timeout(
    raw: Callable[[Callable[[socket.socket], None]], str],
) -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(100):
            pass

    done = call("--timeout", "0.2", raw(silent), message=b"x")
    assert (done.code, done.out) == (14, b"")
    assert done.err.startswith("gaspar-call: TIMEOUT: ")


def test_what_a_daemon_says_does_nothing_to_the_terminal(fake: Callable[..., str]) -> None:
    def refuse(request: Frame, send: Callable[[bytes], None]) -> None:
        detail = failure(Code.HANDLER_ERROR, "\x1b[2J\udc80 é", traceback="one\n\ttwo\x07\n").detail
        send(encode(FrameKind.ERROR, request.id, detail, code=6))

    done = call(fake(refuse))
    assert done.err == (
        "gaspar-call: HANDLER_ERROR: HANDLER_ERROR: \\x1b[2J\\xdc80 é\n  In the handler:\n  one\n  \ttwo\\x07\n"
    )


# standard streams


@pytest.mark.parametrize("options", [[], ["--one-shot"], ["--repeat", "3"], [__file__]])
def test_a_reader_that_leaves_ends_it_quietly(
    serve: Serve, start: Callable[..., Running], files: Callable[..., list[Path]], options: list[str]
) -> None:
    daemon = serve("echo")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        named = [option for option in options if option == __file__]  # a second file
        rest = [option for option in options if option not in named]
        process = start(*rest, daemon.address, *named, *files(b"message"), stdout=writing)
    finally:
        os.close(writing)
    done = process.done()
    assert (done.code, done.err) == (141, "")


def test_a_reader_that_leaves_in_the_middle_ends_it_quietly(serve: Serve, start: Callable[..., Running]) -> None:
    process = start(serve("sized").address, stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"5000000")
    process.stdin.close()
    process.stdin = None
    assert os.read(process.stdout.fileno(), 10) == bytes(10)
    process.stdout.close()
    process.stdout = None
    done = process.done()
    assert (done.code, done.err) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told(serve: Serve, start: Callable[..., Running]) -> None:
    with open("/dev/full", "wb") as full:
        process = start(serve("echo").address, __file__, stdout=full)
    done = process.done()
    assert (done.code, done.err) == (1, "gaspar-call: standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        ("<&-", 2, "gaspar-call: standard input: it is closed\n"),
        (">&-", 1, "gaspar-call: standard output: it is closed\n"),
    ],
)
def test_a_standard_stream_that_is_closed_is_told(
    serve: Serve, files: Callable[..., list[Path]], redirection: str, code: int, words: str
) -> None:
    name = "-" if "<" in redirection else str(files(b"message")[0])
    shell = ["sh", "-c", f'exec "$0" "$@" {redirection}', *COMMAND, serve("echo").address, name]
    ran = subprocess.run(shell, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", words)


class Terminal:
    """A pseudo-terminal; what is written to it is read to the end."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while part := os.read(self.master, 65536):
                self._parts.append(part)

    def close_slave(self) -> None:
        os.close(self.slave)
        self._thread.start()

    def text(self) -> str:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        os.close(self.master)
        return b"".join(self._parts).decode()


def test_a_message_that_is_typed_is_asked_for(serve: Serve, start: Callable[..., Running]) -> None:
    terminal = Terminal()
    process = start(serve("echo").address, stdin=terminal.slave)
    terminal.close_slave()
    os.write(terminal.master, b"hello\n\x04")
    done = process.done()
    assert (done.code, done.out) == (0, b"hello\n")
    assert re.fullmatch(r"gaspar-call: the message is what you type.*Ctrl-D.*\n", done.err)
    terminal.text()


def test_standard_input_without_data_yet_is_not_taken_for_its_end(serve: Serve, start: Callable[..., Running]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        done = start(serve("echo").address, stdin=reading).done()
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.code, done.out) == (2, b"")
    assert done.err == "gaspar-call: standard input: Resource temporarily unavailable\n"


def test_progress_is_shown_on_a_terminal(serve: Serve, start: Callable[..., Running]) -> None:
    terminal = Terminal()
    process = start("--repeat", 1003, serve("echo").address, stderr=terminal.slave)
    terminal.close_slave()
    done = process.done()
    shown = terminal.text()
    assert done.code == 0
    assert done.out.startswith(b"requests    1003 in ")
    assert "\r" in shown
    assert "1003/1003" in shown
    assert "100%" in shown


# --verbose, --repeat


@BOTH
def test_verbose_tells_sizes_and_receipts(serve: Serve, files: Callable[..., list[Path]], protocol: list[str]) -> None:
    address = serve("bad").address
    receipt = "" if protocol else r"; waited \d+\.\d{3} ms, ran \d+\.\d{3} ms"
    done = call(*protocol, "-v", address, message=b"hello")
    assert (done.code, done.out) == (0, b"hello")
    assert re.fullmatch(rf"gaspar-call: 5 bytes sent, 5 received{receipt}\n", done.err)
    done = call(*protocol, "--verbose", address, *files(b"one", b"raise"), "-")
    assert re.search(rf"(?m)^gaspar-call: \S+0.txt: 3 bytes sent, 3 received{receipt}$", done.err)
    assert re.search(rf"(?m)^gaspar-call: \S+1.txt: 5 bytes sent, 0 received{receipt}$", done.err)
    assert re.search(rf"(?m)^gaspar-call: standard input: 0 bytes sent, 0 received{receipt}$", done.err)


def _table(summary: bytes) -> dict[str, list[float]]:
    """Read the summary's table: milliseconds at min, p50, p90, p99 and max."""
    head, *rows = summary.decode().partition("\n\n")[2].splitlines()
    assert head.split() == ["ms", "min", "p50", "p90", "p99", "max"]
    return {row.split()[0]: [float(each) for each in row.split()[1:]] for row in rows}


@BOTH
def test_repeat_measures_in_place_of_replies(
    serve: Serve, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    done = call(*protocol, "--repeat", 200, "--concurrency", 7, serve("echo").address, *files(b"a", bytes(100_000)))
    assert (done.code, done.err) == (0, "")
    assert re.match(
        rb"requests    400 in \d+\.\d\d s, 7 in flight\nerrors      none\nrequests/s  \d+\.\d\n\n", done.out
    )
    table = _table(done.out)
    assert list(table) == (["latency"] if protocol else ["latency", "waited", "ran"])
    for times in table.values():
        assert times == sorted(times)
    assert table["latency"][0] > 0


@BOTH
def test_repeat_counts_errors_by_name_and_tells_the_first(
    serve: Serve, files: Callable[..., list[Path]], protocol: list[str]
) -> None:
    done = call(*protocol, "--repeat", 30, serve("bad").address, *files(b"raise", b"return None", b"good"))
    assert done.code == (1 if protocol else 16) or done.code == 17
    errors = b"60 connection lost" if protocol else b"30 BAD_REPLY, 30 HANDLER_ERROR"
    assert re.match(rb"requests    90 in .+\nerrors      " + errors + rb"\nrequests/s  \d+\.\d without", done.out)
    assert len(re.findall(r"(?m)^gaspar-call: ", done.err)) == 1


def test_repeat_sends_no_more_at_once_than_it_was_told(fake: Callable[..., str]) -> None:
    held: list[tuple[Frame, Callable[[bytes], None]]] = []
    most = 0

    def hold(request: Frame, send: Callable[[bytes], None]) -> None:
        nonlocal most
        held.append((request, send))
        most = max(most, len(held))
        if len(held) == 5:
            for each, answer in held:
                answer(encode(FrameKind.REPLY, each.id))
            held.clear()

    done = call("--repeat", 50, "-c", 5, fake(hold))
    assert (done.code, most) == (0, 5)


@BOTH
def test_repeat_gives_up_where_there_is_no_daemon(closed_port: int, protocol: list[str]) -> None:
    done = call(*protocol, "--repeat", 10**7, f"127.0.0.1:{closed_port}")
    assert done.code == 1
    assert re.match(
        rb"requests    \d{3} of 10000000 in .+\nerrors      \d{3} connection lost\nrequests/s  0\.0 ", done.out
    )
    assert done.err.startswith(f"gaspar-call: 127.0.0.1:{closed_port}: nobody listens there")


# Ctrl-C


@BOTH
@pytest.mark.parametrize("how", ["one", "several", "repeat"])
def test_ctrl_c_ends_it_at_once(
    serve: Serve,
    start: Callable[..., Running],
    tmp_path: Path,
    files: Callable[..., list[Path]],
    protocol: list[str],
    how: str,
) -> None:
    daemon = serve("await_file", "-p", "1")
    paths = files(b"", os.fsencode(tmp_path / "go"))
    options = {"one": paths[1:], "several": paths, "repeat": ["--repeat", 3, *paths]}[how]
    process = start(*protocol, daemon.address, *options)
    wait_until(lambda: daemon.connected() >= 1)
    process.send_signal(signal.SIGINT)
    done = process.done()
    (tmp_path / "go").touch()
    assert (done.code, done.err) == (130, "")
    assert bool(re.match(rb"requests    [0-5] of 6 in ", done.out)) == (how == "repeat")


# wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'ADDRESS'"),
        (["localhost"], "'localhost': expected host:port, [v6]:port or unix:PATH"),
        (["::1:80"], "write an IPv6 address in brackets"),
        (["localhost:99999"], "port '99999' is not a number from 0 to 65535"),
        (["unix:"], "a path must follow"),
        (["127.0.0.1:1", "/no/such/file"], "File '/no/such/file' does not exist"),
        (["127.0.0.1:1", "/"], "File '/' is a directory"),
        (["127.0.0.1:1", "-", "-"], "standard input (-) can be read once only"),
        (["--timeout", "0", "127.0.0.1:1"], "0: expected more than 0 seconds"),
        (["--timeout", "-1", "127.0.0.1:1"], "-1: expected more than 0 seconds"),
        (["--timeout", "nan", "127.0.0.1:1"], "nan: expected more than 0 seconds"),
        (["--timeout", "inf", "127.0.0.1:1"], "inf: expected more than 0 seconds, at most 1000000"),
        (["--timeout", "soon", "127.0.0.1:1"], "'soon' is not a valid float"),
        (["--repeat", "0", "127.0.0.1:1"], "0 is not in the range"),
        (["--repeat", "1.5", "127.0.0.1:1"], "'1.5' is not a valid integer"),
        (["-c", "0", "127.0.0.1:1"], "0 is not in the range"),
        (["-c", "1025", "127.0.0.1:1"], "1025 is not in the range"),
        (["--shout", "127.0.0.1:1"], "No such option"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, b"")
    assert words in done.err
    assert done.err.startswith("Usage: gaspar-call [OPTIONS] ADDRESS [FILE]...")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(files: Callable[..., list[Path]]) -> None:
    (path,) = files(b"secret")
    path.chmod(0)
    done = call("127.0.0.1:1", path)
    assert done.code == 2
    assert "is not readable" in done.err


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here that opens and cannot be read")
def test_a_file_that_fails_while_it_is_read_loses_no_other_reply(
    serve: Serve, files: Callable[..., list[Path]]
) -> None:
    address = serve("echo").address
    done = call(address, "/proc/self/mem")
    assert (done.code, done.out, done.err) == (2, b"", "gaspar-call: /proc/self/mem: Input/output error\n")
    first, last = files(b"first ", b"last")
    done = call(address, first, "/proc/self/mem", last)
    assert (done.code, done.out) == (2, b"first last")
    assert done.err == "gaspar-call: /proc/self/mem: Input/output error\n"


def test_a_file_without_an_end_is_too_long(serve: Serve) -> None:
    done = call(serve("echo").address, "/dev/zero")
    assert done.code == 12
    assert done.err.startswith("gaspar-call: TOO_BIG: ")


def test_help_has_each_exit_code_of_the_wire_and_examples() -> None:
    done = call("--help")
    assert done.code == 0
    for code in Code:
        assert re.search(rf"(?m)^ +{10 + code} +{code.name}\b", done.out.decode())
    assert b"printf hello | gaspar-call 127.0.0.1:10123" in done.out


def test_version_is_that_of_gaspar() -> None:
    import gaspar

    assert gaspar.__version__ in call("--version").out.decode()


def test_setup_installs_the_command() -> None:
    assert "gaspar-call=gaspar.call:call" in (ROOT / "setup.py").read_text()
