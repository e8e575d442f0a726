"""Runs each example as a user does, in a process of its own with a real daemon."""

import base64
import contextlib
import hashlib
import http.client
import importlib.util
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

import psutil
import pytest
from conftest import ROOT, Serve

import gaspar.client

EXAMPLES = ROOT / "examples"
TIMEOUT = 60.0  # seconds until something that hangs is ended; nothing here takes that long
GONE = 5.0  # seconds until a daemon must have followed the process that started it


class Commands:
    """Runs a user's commands in `folder`. A mark in their environment finds what they leave behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "GASPAR_TEST_MARK": self._mark}
        self.started: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def start(self, *command: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end: to the end of all that have its standard error, so of its daemon too."""
        process = self.start(*command)
        out, err = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ignore(self, pipe: IO[str]) -> None:
        """Read the rest of a pipe: a full one would stop who writes to it."""
        reader = threading.Thread(target=pipe.read, daemon=True)
        reader.start()
        self._readers.append(reader)

    def end_all(self) -> list[str]:
        """End what runs still, the started politely; return what did not go by itself."""
        stuck = []
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                stuck.append(f"{process.args} ignores SIGTERM")
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(GONE)  # the end of standard error: the last of its daemon's processes is gone
        for left in filter(self._is_ours, psutil.process_iter()):
            stuck.append(f"left behind: {left}")
            left.kill()
        for reader in self._readers:
            reader.join(TIMEOUT)
        return stuck

    def close_pipes(self) -> None:
        for process in self.started:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("GASPAR_TEST_MARK") == self._mark
        except (psutil.Error, OSError):  # not ours, or just gone
            return False


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    running = Commands(tmp_path)
    yield running
    stuck = running.end_all()
    running.close_pipes()
    assert stuck == []


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A tree of five readable Python files and one that is no text in the encoding that it declares."""
    root = tmp_path / "sources"
    (root / "package" / "deep").mkdir(parents=True)
    (root / "index.py").write_text("def first():\n    return 1\n")
    (root / "empty.py").write_bytes(b"")
    (root / "package" / "<a & b>.py").write_text("# 'größer' is UTF-8\n", encoding="utf-8")
    (root / "package" / "latin.py").write_bytes("# coding: latin-1\n# größer\n".encode("latin-1"))
    (root / "package" / "deep" / "last.py").write_text("import os\n" * 100)
    (root / "package" / "broken.py").write_bytes(b"# coding: utf-8\nx = '\xff'\n")
    (root / "package" / "not python.txt").write_text("x")
    return root


PAGES = ["empty.py", "index.py", "package/<a & b>.py", "package/deep/last.py", "package/latin.py"]


def test_highlight_is_served_by_gaspar_serve(serve: Serve) -> None:
    address = serve(f"{EXAMPLES}/highlight.py:highlight").address
    page = gaspar.client.request(address, b"def f():\n    return '<'\n", timeout=TIMEOUT)
    assert page.startswith(b"<!DOCTYPE html")
    assert page.rstrip().endswith(b"</html>")
    assert b'<span class="k">def</span>' in page
    assert b"'&lt;'" in page


def test_highlight_tree_writes_a_page_for_each_file_and_links_it(commands: Commands, sources: Path) -> None:
    done = commands.run(EXAMPLES / "highlight_tree.py", sources, "out")
    assert done.returncode == 0, done.stderr
    out = commands.folder / "out"
    assert _files(out) == sorted(["index.html", *(f"{name}.html" for name in PAGES)])
    assert "skipped package/broken.py: " in done.stderr
    assert "skipped" not in done.stdout
    index = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall('href="(.*?)"', index) == [
        "empty.py.html",
        "index.py.html",
        "package/%3Ca%20%26%20b%3E.py.html",
        "package/deep/last.py.html",
        "package/latin.py.html",
    ]
    assert ">package/&lt;a &amp; b&gt;.py<" in index
    latin = (out / "package" / "latin.py.html").read_text(encoding="utf-8")
    assert "# größer" in latin
    assert "<title>package/latin.py</title>" in latin


def test_highlight_tree_prints_files_per_second_beside_one_process(commands: Commands, sources: Path) -> None:
    done = commands.run(EXAMPLES / "highlight_tree.py", sources, "out")
    rates = re.findall(r"^(gaspar|one process) +([\d.]+) files/s +5 files in", done.stdout, re.MULTILINE)
    assert [name for name, _ in rates] == ["gaspar", "one process"]
    assert re.search(r"^ratio +[\d.]+$", done.stdout, re.MULTILINE)
    assert "6/6" in done.stderr  # the progress bar


def test_highlight_tree_highlights_the_standard_library_unless_told_otherwise(commands: Commands) -> None:
    done = commands.run(EXAMPLES / "highlight_tree.py", "--limit", 20, "--skip-baseline")
    assert done.returncode == 0, done.stderr
    assert len(_files(commands.folder / "highlighted")) == 21
    assert "20 files in" in done.stdout
    assert "ratio" not in done.stdout


def test_highlight_tree_uses_a_running_daemon(commands: Commands, serve: Serve, sources: Path) -> None:
    address = serve(f"{EXAMPLES}/highlight.py:highlight").address
    done = commands.run(EXAMPLES / "highlight_tree.py", "--address", address, "--skip-baseline", sources, "out")
    assert done.returncode == 0, done.stderr
    highlight = _load("highlight").highlight
    page = (commands.folder / "out" / "index.py.html").read_bytes()
    expected = highlight((sources / "index.py").read_bytes())
    assert page == expected.replace(b"<title></title>", b"<title>index.py</title>")


def test_highlight_tree_names_failed_requests_and_does_the_rest(
    commands: Commands, serve: Serve, sources: Path
) -> None:
    (sources / "long.py").write_text("x = 1\n" * 5000)
    address = serve(f"{EXAMPLES}/highlight.py:highlight", "--max-message", "25K").address
    done = commands.run(EXAMPLES / "highlight_tree.py", "--address", address, "--skip-baseline", sources, "out")
    assert done.returncode == 1
    assert re.findall("^failed (.*?): ", done.stderr, re.MULTILINE) == ["long.py"]
    assert "Traceback" not in done.stderr
    assert _files(commands.folder / "out") == sorted(["index.html", *(f"{name}.html" for name in PAGES)])
    assert "long.py" not in (commands.folder / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["folder"], "no .py file below folder"),
        (["sources", "sources/index.py"], "'sources/index.py' is a file"),
        (["--address", "nonsense", "sources"], "--address nonsense: "),
        (["--address", "127.0.0.1:{closed}", "sources"], "--address 127.0.0.1:{closed}: "),
        (["--limit", "0", "sources"], "--limit"),
    ],
)
def test_highlight_tree_says_what_is_wrong_with_its_arguments(
    commands: Commands, sources: Path, closed_port: int, arguments: list[str], complaint: str
) -> None:
    (commands.folder / "folder").mkdir()
    done = commands.run(EXAMPLES / "highlight_tree.py", *(text.format(closed=closed_port) for text in arguments))
    assert done.returncode != 0
    assert complaint.format(closed=closed_port) in done.stderr
    assert "Traceback" not in done.stderr


def test_highlight_tree_refuses_a_daemon_with_another_handler(commands: Commands, serve: Serve, sources: Path) -> None:
    (commands.folder / "echo.py").write_text("def echo(message):\n    return message\n")
    address = serve(f"{commands.folder}/echo.py:echo").address
    done = commands.run(EXAMPLES / "highlight_tree.py", "--address", address, sources, "out")
    assert done.returncode == 1
    assert "not as examples/highlight.py:highlight does" in done.stderr


@pytest.fixture
def web(commands: Commands) -> Iterator[Callable[[], http.client.HTTPConnection]]:
    """The web application of passwords.py on a free port: a function that makes a connection to it."""
    process = commands.start(EXAMPLES / "passwords.py", "--port", 0)
    assert process.stdout is not None
    assert process.stderr is not None
    with _ended_if_hung(process):
        line = process.stdout.readline()
    address = re.fullmatch(r"ready on http://(127\.0\.0\.1):(\d+)\n", line)
    if address is None:
        pytest.fail(f"{line!r}, {process.communicate(timeout=TIMEOUT)}")
    commands.ignore(process.stderr)
    with contextlib.ExitStack() as connections:

        def connect() -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection(address[1], int(address[2]), timeout=TIMEOUT)
            connection.connect()
            return connections.enter_context(contextlib.closing(connection))

        yield connect


def test_passwords_hashes_and_verifies(web: Callable[[], http.client.HTTPConnection]) -> None:
    connection = web()
    status, stored = _ask(connection, "POST", "/hash", b"secret\n1")
    assert (status, stored[:22]) == (200, b"$scrypt$ln=15,r=8,p=3$")
    assert _ask(connection, "POST", "/hash", b"secret\n1")[1] != stored  # another salt
    assert _ask(connection, "POST", "/verify", stored + b"\nsecret\n1") == (200, b"yes")
    assert _ask(connection, "POST", "/verify", stored + b"\nsecret\n2") == (200, b"no")


def test_passwords_refuses_what_it_cannot_hash(web: Callable[[], http.client.HTTPConnection]) -> None:
    assert _ask(web(), "POST", "/verify", b"$scrypt$ln=30,r=8,p=3$AAAA$AAAA\nsecret")[0] == 400
    assert _ask(web(), "POST", "/verify", b"$scrypt$ln=15,r=8,p=3$?$AAAA\nsecret")[0] == 400
    assert _ask(web(), "POST", "/verify", b"")[0] == 400
    assert _ask(web(), "POST", "/hash", b"x" * 1025)[0] == 413
    assert _ask(web(), "GET", "/", None)[0] == 404
    assert _ask(web(), "GET", "/ping", None) == (200, b"pong")


def test_passwords_answers_pings_while_it_hashes(web: Callable[[], http.client.HTTPConnection]) -> None:
    # Hashed here, in the web server's process, all would be done before the second ping is read.
    hashing = [web() for _ in range(4 * (os.cpu_count() or 1))]
    pinging = web()
    for connection in hashing:
        connection.request("POST", "/hash", b"secret")
    for _ in range(20):
        assert _ask(pinging, "GET", "/ping", None) == (200, b"pong")
    answered, _, _ = select.select([connection.sock for connection in hashing], [], [], 0)
    assert len(answered) < len(hashing)
    for connection in hashing:
        assert connection.getresponse().status == 200


def test_passwords_ends_at_ctrl_c_with_its_daemon(
    commands: Commands, web: Callable[[], http.client.HTTPConnection]
) -> None:
    assert _ask(web(), "GET", "/ping", None) == (200, b"pong")
    (process,) = commands.started
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 0


def test_passwords_hash_is_what_hashlib_says() -> None:
    hash_password = _load("passwords").hash_password
    stored = b"$scrypt$ln=15,r=8,p=3$c2FsdA==$"
    key = hashlib.scrypt(b"secret", salt=b"salt", n=2**15, r=8, p=3, maxmem=2**26)
    assert hash_password(stored + b"x\nsecret") == stored + base64.b64encode(key)


def test_asyncio_client_starts_a_daemon_and_gets_all_replies(commands: Commands) -> None:
    done = commands.run(EXAMPLES / "asyncio_client.py", "-n", 50)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "1000000 -> 78498"  # https://oeis.org/A006880
    assert len(lines) == 51
    assert lines[-1].startswith("50 replies, 0 failures in ")


def test_asyncio_client_asks_a_running_daemon(commands: Commands, serve: Serve) -> None:
    address = serve(f"{EXAMPLES}/asyncio_client.py:count_primes").address
    done = commands.run(EXAMPLES / "asyncio_client.py", address, "-n", 300)
    assert done.returncode == 0, done.stderr
    assert "\n300 replies, 0 failures in " in done.stdout


def test_asyncio_client_counts_a_handler_that_raises_as_failure(commands: Commands, serve: Serve) -> None:
    (commands.folder / "odd.py").write_text(
        "def odd(message):\n    if int(message) % 2 == 0:\n        raise ValueError\n    return message\n"
    )
    address = serve(f"{commands.folder}/odd.py:odd").address
    done = commands.run(EXAMPLES / "asyncio_client.py", address, "-n", 10)
    assert done.returncode == 1
    assert "\n5 replies, 5 failures in " in done.stdout
    assert re.findall(r"^(\d+) failed: ConnectionResetError: ", done.stderr, re.MULTILINE) == [
        str(1_000_000 + number) for number in range(0, 10, 2)
    ]


def test_asyncio_client_counts_half_a_reply_and_a_reset_as_failure(commands: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        address = "{}:{}".format(*listener.getsockname())
        client = commands.start(EXAMPLES / "asyncio_client.py", address, "-n", 1)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            message = gaspar.client.pack(b"1000000")
            assert connection.recv(len(message), socket.MSG_WAITALL) == message
            connection.sendall(b"784")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        out, err = client.communicate(timeout=TIMEOUT)
    assert client.returncode == 1
    assert "0 replies, 1 failures in " in out
    assert "1000000 failed: ConnectionResetError: " in err


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", ":1"])
def test_asyncio_client_says_what_is_wrong_with_an_address(commands: Commands, address: str) -> None:
    done = commands.run(EXAMPLES / "asyncio_client.py", address)
    assert done.returncode == 2
    assert f"'{address}' is not host:port" in done.stderr


def test_asyncio_client_says_that_nobody_listens(commands: Commands, closed_port: int) -> None:
    done = commands.run(EXAMPLES / "asyncio_client.py", f"127.0.0.1:{closed_port}", "-n", 1)
    assert done.returncode == 1
    assert "failed: ConnectionRefusedError: " in done.stderr


@pytest.mark.parametrize(("below", "primes"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 2), (10, 4), (1000, 168)])
def test_count_primes_counts(below: int, primes: int) -> None:
    assert _load("asyncio_client").count_primes(b"%d" % below) == b"%d" % primes


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def _ended_if_hung(process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read().removesuffix(b"\n")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
