"""Handlers for the tests, good and bad ones: the first byte of a request says what happens."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator

import gaspar


def echo(message: bytes) -> bytes:
    return message


def digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def pid(_message: bytes) -> bytes:
    return str(os.getpid()).encode()


def await_file(message: bytes) -> bytes:
    """Wait until a file is there: the test decides when a request is done. Empty: answer at once."""
    while message and not os.path.exists(message):
        time.sleep(0.002)
    return message


def long_echo(message: bytes) -> bytes:
    """FILE newline NUMBER newline DATA: note in FILE.begun that it began, wait for FILE, add so many bytes to DATA."""
    path, number, data = message.split(b"\n", 2)
    if path:
        _note(path + b".begun")
    await_file(path)
    return data + b"+" * int(number)


def _fork_and_return() -> bytes:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return b"a reply from two processes"


def _raise(error: BaseException) -> bytes:
    raise error


BAD = {
    b"raise": lambda: _raise(ValueError("the handler's own words")),
    b"raise SystemExit": lambda: sys.exit(0),
    b"return None": lambda: None,
    b"return int": lambda: 7,
    b"return str": lambda: "text",
    b"return too much": lambda: bytes(70 * 1024 * 1024),
}

DEADLY = {
    b"os._exit(0)": lambda: os._exit(0),
    b"os._exit(7)": lambda: os._exit(7),
    b"kill itself": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"segfault": lambda: ctypes.string_at(0),
    b"fork and return": _fork_and_return,
}


def _stop_itself() -> bytes:
    os.kill(os.getpid(), signal.SIGSTOP)
    return b""


def _ignore_signals_and_hang() -> bytes:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return _hang_in_python()


def _hang_in_python() -> bytes:
    while True:
        pass


def _hang_with_children() -> bytes:
    subprocess.run(["sleep", "1000"])
    return b""


HUNG = {
    b"hang in Python": _hang_in_python,
    b"hang in C": lambda: re.match(r"(a+)+$", "a" * 64 + "b"),
    b"hang in a huge power": lambda: pow(3, 10**9),
    b"hang on a lock": lambda: threading.Lock().acquire() and _double_acquire(),
    b"hang in a child": _hang_with_children,
    b"ignore signals and hang": _ignore_signals_and_hang,
    b"stop itself": _stop_itself,
}


def _double_acquire() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def faulty(message: bytes) -> object:
    """Do what the message names; wait for the file that it names; else give it back."""
    if message.startswith(b"/"):
        return await_file(message)
    return {**BAD, **DEADLY, **HUNG}.get(message, lambda: message)()


def bad(message: bytes) -> object:
    """Do what the message names; else give it back."""
    return {**BAD, **DEADLY}.get(message, lambda: message)()


def sized(message: bytes) -> bytes:
    """Answer as many bytes as the message says."""
    return bytes(int(message))


def many_types(message: bytes) -> object:
    """Answer something bytes-like that is not bytes."""
    return {
        b"bytearray": bytearray(b"reply"),
        b"memoryview": memoryview(b"--reply--")[2:-2],
        b"array": __import__("array").array("I", [1, 2, 3]),
    }[message]


class Counting(gaspar.Consumer):
    """Counts its requests; says in files what was set up and torn down."""

    folder = os.environ.get("COUNTING_FOLDER", "")

    def _note(self, what: str) -> None:
        with open(os.path.join(self.folder, f"{what}.{os.getpid()}"), "x"):
            pass

    def setup(self) -> None:
        self.count = 0
        if self.folder:
            self._note("setup")

    def handle(self, message: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def teardown(self) -> None:
        if self.folder:
            self._note("teardown")


class FailingSetup(gaspar.Consumer):
    def handle(self, message: bytes) -> bytes:
        return message

    def setup(self) -> None:
        raise RuntimeError("no database")


class Nested:
    """Dots in the attribute."""

    echo = staticmethod(echo)


# ---- what leaves a trace, and streams ----


def _note(path: bytes) -> None:
    """Make a file one byte longer: the test counts them."""
    with open(path, "ab") as file:
        file.write(b"x")


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def errand(message: bytes) -> object:
    """Do what each line says, `note FILE` or `await FILE`, and give the message back; else be `faulty`."""
    if message == b"raise at length":
        raise ValueError("word " * 100_000)
    if message == b"raise what cannot be shown":
        raise _Unspeakable
    if not message.startswith((b"note ", b"await ")):
        return faulty(message)
    for line in message.splitlines():
        word, _, path = line.partition(b" ")
        {b"note": _note, b"await": await_file}[word](path)
    return message


def _count(words: list[bytes]) -> Iterator[bytes]:
    """COUNT SIZE: so many parts of so many bytes, each of its own."""
    for number in range(int(words[0])):
        yield bytes([number % 256]) * int(words[1])


def _gate(words: list[bytes]) -> Iterator[bytes]:
    """FILE...: a part, then another as each file is there."""
    yield b"first"
    for path in words:
        await_file(path)
        yield os.path.basename(path)


def _endless(words: list[bytes]) -> Iterator[bytes]:
    """FOLDER SIZE [MOST]: parts without an end, counted in the folder, where it also says how it ended."""
    folder, size = words[0], int(words[1])
    count = 0
    try:
        while len(words) < 3 or count < int(words[2]):
            count += 1
            _note(folder + b"/yields")
            yield bytes(size)
    except GeneratorExit:
        _note(folder + b"/closed")
        raise
    finally:
        _note(folder + b"/ended")


def _ignore_exit(words: list[bytes]) -> Iterator[bytes]:
    """FOLDER: parts without an end, also after it was closed."""
    while True:
        try:
            yield b"again"
        except GeneratorExit:
            _note(words[0] + b"/closed")


def _reuse(words: list[bytes]) -> Iterator[object]:
    """COUNT SIZE: as `count`, in one buffer that changes as soon as a part was taken."""
    buffer = bytearray()
    for number in range(int(words[0])):
        buffer.clear()  # BufferError, should anybody still hold it
        buffer += bytes([number % 256]) * int(words[1])
        yield buffer if number % 2 else memoryview(buffer)


def _returning(value: object) -> Callable[[list[bytes]], Iterator[object]]:
    def generate(_words: list[bytes]) -> Generator[bytes, None, object]:
        yield b"a part"
        return value

    return generate


def _then(end: Callable[[], object]) -> Callable[[list[bytes]], Iterator[object]]:
    """[FILE]: two parts, when the file is there what ends it, then one more."""

    def generate(words: list[bytes]) -> Iterator[object]:
        yield b"one "
        yield b"two "
        for path in words:
            await_file(path)
        yield end()
        yield b"after the end"

    return generate


def _at_once(words: list[bytes]) -> Iterator[bytes]:
    raise ValueError("before the first part")
    yield words[0]


STREAMS: dict[bytes, Callable[[list[bytes]], Iterator[object]]] = {
    b"count": _count,
    b"gate": _gate,
    b"endless": _endless,
    b"ignore": _ignore_exit,
    b"reuse": _reuse,
    b"nothing": lambda _words: (part for part in ()),
    b"return": _returning(b"the last part"),
    b"return-buffer": _returning(bytearray(b"the last part")),
    b"return-nothing": _returning(None),
    b"return-str": _returning("text"),
    b"return-much": _returning(bytes(65537)),
    b"raise-first": _at_once,
    b"raise": _then(lambda: _raise(ValueError("the generator's own words"))),
    b"none": _then(lambda: None),
    b"str": _then(lambda: "text"),
    b"much": _then(lambda: bytes(65537)),
    b"exit": _then(lambda: os._exit(7)),
    b"kill": _then(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    b"fork": _then(_fork_and_return),
    b"hang": _then(_hang_in_python),
}


def streams(message: bytes) -> object:
    """Stream what the first word names; a note or an empty message is answered whole."""
    if not message or message.startswith((b"note ", b"await ")):
        return errand(message) if message else b""
    name, *words = message.split(b" ")
    if words and name in (b"raise", b"exit", b"kill"):
        _note(words[0] + b".runs")
    return STREAMS[name](words)


a_consumer = gaspar.Consumer(digest)
not_callable = 7


def who(message: bytes) -> bytes:
    """Say which process this is; if a file is named, wait for it, and first note in FILE.begun that it began."""
    if message:
        with open(message + b".begun.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(message + b".begun.new", message + b".begun")
        await_file(message)
    return str(os.getpid()).encode()


def nap(message: bytes) -> bytes:
    time.sleep(float(message))
    return b"slept"


def conform(message: bytes) -> object:
    """`stream` and what `streams` understands; else be `faulty`."""
    return streams(message[7:]) if message.startswith(b"stream ") else faulty(message)
