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


a_consumer = gaspar.Consumer(digest)
not_callable = 7
