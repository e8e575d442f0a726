"""Forks real children: lifelines, signals, descriptors and how they end."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gaspar import process
from gaspar.folders import hold, is_held
from gaspar.process import (
    EXIT_CRASHED,
    Child,
    Lifeline,
    Wakeup,
    describe_exit,
    die_with_parent,
    fork,
    keep_only,
    wait_readable,
)
from gaspar.wire import Kind, Record, encode_record

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long
GROUP = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU]
LONG = ["x" * 100_000] * 7  # a record's texts alone are cut, a list of them is longer than the kernel's buffer
RESET = [signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2]

Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Forks children; ends and reaps at the end those that the test did not."""
    children: list[Child] = []

    def start(main: Callable[[Lifeline], int], **more: Any) -> Child:
        children.append(fork(main, "test:child", **more))
        return children[-1]

    yield start
    for child in children:
        child.lifeline.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def reap(child: Child) -> str:
    return describe_exit(os.waitpid(child.pid, 0)[1])


def hear(lifeline: Lifeline) -> list[Record] | None:
    """Wait for what the other side says, or for its end."""
    assert lifeline.wait(TIMEOUT)
    return lifeline.recv()


def fields(child: Child) -> dict[str, Any]:
    """Return what a child says in its one record."""
    records = hear(child.lifeline)
    assert records is not None, f"the child said nothing: {reap(child)}"
    return records[0].fields


def until_end(lifeline: Lifeline) -> None:
    while hear(lifeline) is not None:
        pass


@pytest.fixture
def ends() -> Iterator[tuple[Lifeline, socket.socket]]:
    """A lifeline, and the bare other end of it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)
    with ours, theirs:
        yield Lifeline(ours), theirs


# ---- lifelines ----


def test_records_go_both_ways(ends: tuple[Lifeline, socket.socket]) -> None:
    one, other = ends[0], Lifeline(ends[1])
    assert one.send(Kind.FORK, number=1, slot=0)
    assert one.send(Kind.LEAVE)
    assert other.send(Kind.READY)
    assert other.recv() == [Record(Kind.FORK, {"number": 1, "slot": 0}), Record(Kind.LEAVE, {})]
    assert one.recv() == [Record(Kind.READY, {})]


def test_nothing_is_received_where_nothing_was_sent(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, _ = ends
    assert lifeline.recv() == []
    assert not lifeline.wait(0.0)


def test_a_record_in_pieces_is_received_once(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    data = encode_record(Kind.DRAIN, {"grace": 1.5})
    got = []
    for at in range(len(data)):
        other.sendall(data[at : at + 1])
        got.append(lifeline.recv())
    assert got == [[]] * (len(data) - 1) + [[Record(Kind.DRAIN, {"grace": 1.5})]]


def test_what_was_said_last_comes_before_the_end(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    other.sendall(encode_record(Kind.READY, {}))
    other.close()
    assert lifeline.wait(TIMEOUT)
    assert lifeline.recv() == [Record(Kind.READY, {})]
    assert lifeline.recv() is None
    assert lifeline.recv() is None
    assert lifeline.wait(0.0)  # at end-of-file there is no waiting


def test_an_end_with_something_unread_is_an_end_too(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    lifeline.send(Kind.LEAVE)
    other.close()
    assert lifeline.wait(TIMEOUT)
    assert lifeline.recv() is None


def test_sending_to_somebody_gone_says_so(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    other.close()
    assert not lifeline.send(Kind.LEAVE)


def test_a_full_lifeline_refuses_and_cuts_no_record(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    sent = 0
    while lifeline.send(Kind.FORK, number=sent, slot=0):
        sent += 1
    reader = Lifeline(other)
    got = reader.recv()
    assert got == [Record(Kind.FORK, {"number": number, "slot": 0}) for number in range(sent)]
    assert lifeline.send(Kind.LEAVE)
    assert reader.recv() == [Record(Kind.LEAVE, {})]


def test_a_record_longer_than_the_kernels_buffer_arrives_whole(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        while not (records := hear(lifeline)):
            pass
        lifeline.send(Kind.READY, lengths=[len(each) for each in records[0].fields["texts"]])
        return 0

    child = start(main)
    assert child.lifeline.send(Kind.LOAD_FAILED, texts=LONG)
    assert fields(child) == {"lengths": [len(each) for each in LONG]}


def test_a_record_that_nobody_takes_is_cut_and_ends_the_stream(
    ends: tuple[Lifeline, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifeline, other = ends
    monkeypatch.setattr(process, "_SEND_TIME", 0.01)
    assert lifeline.send(Kind.FORK, number=1, slot=0)
    assert not lifeline.send(Kind.LOAD_FAILED, texts=LONG)
    assert not lifeline.send(Kind.LEAVE)  # nothing follows a record that is cut
    reader = Lifeline(other)
    assert reader.recv() == [Record(Kind.FORK, {"number": 1, "slot": 0})]
    assert reader.recv() is None


def test_a_lifeline_whose_record_was_cut_still_hears_and_never_waits(
    ends: tuple[Lifeline, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifeline, other = ends
    monkeypatch.setattr(process, "_SEND_TIME", 0.01)
    assert not lifeline.send(Kind.LOAD_FAILED, texts=LONG)
    assert os.get_blocking(lifeline.fileno()) is False
    assert lifeline.recv() == []
    other.sendall(encode_record(Kind.READY, {}))
    assert lifeline.recv() == [Record(Kind.READY, {})]
    other.close()
    assert lifeline.recv() is None


def test_a_record_whose_reader_goes_away_in_the_middle_is_not_sent(ends: tuple[Lifeline, socket.socket]) -> None:
    lifeline, other = ends
    sender = threading.Thread(target=lambda: sent.append(lifeline.send(Kind.LOAD_FAILED, texts=LONG)))
    sent: list[bool] = []
    sender.start()
    assert other.recv(1, socket.MSG_PEEK)  # a part of it is sent
    other.close()
    sender.join(TIMEOUT)
    assert sent == [False]


# ---- forking ----


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_a_child_ends_with_what_its_main_returns(start: Start, code: int) -> None:
    assert reap(start(lambda _lifeline: code)) == f"exit status {code}"


@pytest.mark.parametrize("error", [RuntimeError("expected in the log"), SystemExit(0), KeyboardInterrupt()])
def test_a_child_that_raises_never_ends_like_one_that_is_done(start: Start, error: BaseException) -> None:
    def main(_lifeline: Lifeline) -> int:
        raise error

    assert reap(start(main)) == f"exit status {EXIT_CRASHED}"


def test_parent_and_child_talk_over_the_lifeline(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        lifeline.send(Kind.READY, pid=os.getpid(), parent=os.getppid())
        records = hear(lifeline)
        return 7 if records == [Record(Kind.LEAVE, {})] else 1

    child = start(main)
    assert fields(child) == {"pid": child.pid, "parent": os.getpid()}
    child.lifeline.send(Kind.LEAVE)
    assert reap(child) == "exit status 7"
    assert hear(child.lifeline) is None


def test_a_child_sees_the_end_of_its_parents_end(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        until_end(lifeline)
        return 8

    child = start(main)
    child.lifeline.close()
    assert reap(child) == "exit status 8"


def test_a_child_does_not_hold_its_siblings_lifelines(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        lifeline.send(Kind.READY)
        until_end(lifeline)
        return 0

    first = start(main)
    second = start(main, close=[first.lifeline])
    assert fields(second) == {}
    first.lifeline.close()
    assert reap(first) == "exit status 0"  # the second lives and would keep it alive


@pytest.mark.parametrize("signum", GROUP)
def test_a_signal_to_the_whole_group_does_nothing_to_a_child(start: Start, signum: int) -> None:
    def main(lifeline: Lifeline) -> int:
        lifeline.send(Kind.READY)
        return 9 if hear(lifeline) == [Record(Kind.LEAVE, {})] else 1

    child = start(main)
    assert fields(child) == {}
    os.kill(child.pid, signum)
    child.lifeline.send(Kind.LEAVE)
    assert reap(child) == "exit status 9"


def test_a_child_begins_with_signals_of_its_own(start: Start) -> None:
    def inner(lifeline: Lifeline) -> int:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        lifeline.send(
            Kind.READY,
            blocked=sorted(mask),
            default=[int(each) for each in RESET if signal.getsignal(each) is signal.SIG_DFL],
            ignored=[int(each) for each in GROUP if signal.getsignal(each) is signal.SIG_IGN],
            wakeup=signal.set_wakeup_fd(-1),
        )
        return 0

    def main(lifeline: Lifeline) -> int:
        """Be a parent with all of these changed."""
        wakeup = Wakeup([signal.SIGCHLD])
        for each in (*GROUP, signal.SIGUSR1):
            signal.signal(each, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2, signal.SIGWINCH])
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        child = fork(inner, "test:grandchild")
        told = fields(child)
        os.waitpid(child.pid, 0)
        lifeline.send(Kind.READY, same=signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, **told)
        wakeup.close()
        return 0

    assert fields(start(main)) == {
        "same": True,  # the parent's mask is as it was
        "blocked": [signal.SIGWINCH],  # what is not gaspar's business is inherited
        "default": [int(each) for each in RESET],
        "ignored": [],
        "wakeup": -1,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the name is set on Linux")
def test_a_child_has_a_name(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        lifeline.send(Kind.READY, name=Path(f"/proc/{os.getpid()}/comm").read_text())
        return 0

    assert fields(start(main)) == {"name": "test:child\n"}


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_parent_had_printed_is_not_printed_again() -> None:
    program = """
import os
from gaspar.process import fork
print("parent")  # to a pipe: it stays in the buffer
child = fork(lambda lifeline: print("child") or 0, "test:child")
os.waitpid(child.pid, 0)
"""
    assert run_python(program) == "parent\nchild\n"


@pytest.mark.parametrize("patched", ["eventlet", ""])
def test_a_child_of_a_green_program_blocks_as_the_standard_library_does(patched: str) -> None:
    program = f"""
import os, warnings
warnings.simplefilter("ignore")
if {patched!r}:
    import eventlet
    eventlet.monkey_patch()
from gaspar.process import Lifeline, fork, wait_readable
from gaspar.wire import Kind

def main(lifeline):
    import select, socket, threading, time
    foreign = [each for each in (socket.socket, select.poll, time.sleep, threading.Lock, threading.current_thread)
               if each.__module__.startswith("eventlet")]
    one, other = socket.socketpair()
    other.sendall(b"x")
    ready = wait_readable([one.fileno()], None) == {{one.fileno()}}
    lifeline.send(Kind.READY, foreign=list(map(repr, foreign)), ready=ready)
    return 0

child = fork(main, "test:child")
child.lifeline.wait({TIMEOUT})
print(child.lifeline.recv()[0].fields)
os.waitpid(child.pid, 0)
"""
    assert run_python(program) == "{'foreign': [], 'ready': True}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
def test_a_process_dies_with_its_parent_if_it_asked_to(start: Start) -> None:
    reader, writer = os.pipe()

    def inner(lifeline: Lifeline) -> int:
        die_with_parent(parent)
        lifeline.send(Kind.READY)
        signal.pause()
        return 0

    def main(lifeline: Lifeline) -> int:
        nonlocal parent
        parent = os.getpid()
        child = fork(inner, "test:grandchild")
        fields(child)
        lifeline.send(Kind.READY)
        signal.pause()
        return 0

    parent = 0
    child = start(main)
    os.close(writer)  # the two children hold it
    assert fields(child) == {}
    os.kill(child.pid, signal.SIGKILL)
    assert wait_readable([reader], TIMEOUT) == {reader}
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_process_whose_parent_is_gone_already_ends_at_once(start: Start) -> None:
    def main(_lifeline: Lifeline) -> int:
        die_with_parent(os.getpid())  # not its parent
        return 1

    assert reap(start(main)) == "exit status 0"


# ---- descriptors ----


class Opened:
    """One descriptor of each kind."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.socket, self.kept = socket.socketpair()
        self.reader, self.writer = os.pipe()
        self.file = os.open(__file__, os.O_RDONLY)
        self.numbers = {
            "listener": self.listener.fileno(),
            "socket": self.socket.fileno(),
            "kept": self.kept.fileno(),
            "pipe": self.reader,
            "file": self.file,
        }
        if hasattr(select, "epoll"):
            self.epoll = select.epoll()
            self.numbers["epoll"] = self.epoll.fileno()

    def close(self) -> None:
        for each in vars(self).values():
            if isinstance(each, int):
                os.close(each)
            elif not isinstance(each, dict):
                each.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    opened.close()


def still_open(start: Start, opened: Opened, *, files: bool) -> set[str]:
    """Say which descriptors are what they were after keep_only in a child."""

    def identity(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def main(lifeline: Lifeline) -> int:
        before = {name: identity(fd) for name, fd in opened.numbers.items()}
        keep_only([lifeline.fileno(), opened.numbers["kept"]], files=files)
        nothing = os.stat(os.devnull)
        after = {name: identity(fd) for name, fd in opened.numbers.items()}
        assert all(each in (before[name], (nothing.st_dev, nothing.st_ino)) for name, each in after.items())
        same = [name for name, each in after.items() if each == before[name]]
        lifeline.send(
            Kind.READY, same=same, inheritable=[fd for fd in opened.numbers.values() if os.get_inheritable(fd)]
        )
        opened.close()  # as a collector would: it closes nobody else's
        lifeline.send(Kind.READY)
        return 0

    child = start(main)
    told = fields(child)
    assert told["inheritable"] == []
    assert reap(child) == "exit status 0"
    return set(told["same"])


def test_a_process_without_files_lets_go_of_sockets_epolls_and_pipes(start: Start, opened: Opened) -> None:
    assert still_open(start, opened, files=False) - {"file"} == {"kept"}


def test_a_process_with_files_keeps_files_and_pipes(start: Start, opened: Opened) -> None:
    assert still_open(start, opened, files=True) == {"kept", "file", "pipe"}


def test_letting_go_leaves_the_standard_streams(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        before = [os.fstat(fd).st_ino for fd in range(3)]
        keep_only([lifeline.fileno()], files=False)
        return 0 if [os.fstat(fd).st_ino for fd in range(3)] == before else 1

    assert reap(start(main)) == "exit status 0"


def test_a_listener_let_go_by_its_child_is_free_when_its_parent_closes_it(start: Start) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def main(lifeline: Lifeline) -> int:
        keep_only([lifeline.fileno()], files=True)
        lifeline.send(Kind.READY)
        until_end(lifeline)
        return 0

    fields(start(main))
    where = listener.getsockname()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, TIMEOUT)


# ---- locks ----


def test_a_lock_is_held_until_its_holder_is_killed(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "lock")

    def main(lifeline: Lifeline) -> int:
        hold(path)
        lifeline.send(Kind.READY)
        signal.pause()
        return 0

    assert not is_held(path)  # there is no such file yet
    child = start(main)
    assert fields(child) == {}
    assert is_held(path)
    assert is_held(path)  # looking changes nothing
    os.kill(child.pid, signal.SIGKILL)
    assert reap(child) == "SIGKILL"
    assert not is_held(path)


def test_a_lock_that_is_held_is_waited_for(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "lock")

    def first(lifeline: Lifeline) -> int:
        hold(path)
        lifeline.send(Kind.READY)
        until_end(lifeline)
        return 0

    def second(lifeline: Lifeline) -> int:
        lifeline.send(Kind.READY)
        hold(path)
        lifeline.send(Kind.READY, held=True)
        return 0

    holder = start(first)
    assert fields(holder) == {}
    waiter = start(second, close=[holder.lifeline])
    assert fields(waiter) == {}
    assert not waiter.lifeline.wait(0.0)
    holder.lifeline.close()
    assert fields(waiter) == {"held": True}


# ---- signals as notes ----


def test_signals_leave_notes_in_order_and_nothing_after_close(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        wakeup = Wakeup([signal.SIGTERM, signal.SIGUSR1])
        empty = wakeup.notes()
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(each)
        readable = wait_readable([wakeup.fileno()], TIMEOUT) == {wakeup.fileno()}
        noted = wakeup.notes()
        again = wakeup.notes()
        wakeup.close()
        signal.raise_signal(signal.SIGTERM)
        lifeline.send(Kind.READY, empty=empty, readable=readable, noted=noted, again=again)
        return 0

    child = start(main)
    assert fields(child) == {
        "empty": [],
        "readable": True,
        "noted": [signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM],
        "again": [],
    }
    assert reap(child) == "exit status 0"


def test_a_childs_end_is_a_note(start: Start) -> None:
    def main(lifeline: Lifeline) -> int:
        wakeup = Wakeup([signal.SIGCHLD])
        child = fork(lambda _lifeline: 0, "test:grandchild")
        wait_readable([wakeup.fileno()], TIMEOUT)
        lifeline.send(Kind.READY, notes=wakeup.notes(), ended=os.waitpid(child.pid, os.WNOHANG)[0] == child.pid)
        return 0

    assert fields(start(main)) == {"notes": [signal.SIGCHLD], "ended": True}


def test_more_signals_than_the_pipe_holds_do_not_block(start: Start) -> None:
    def main(_lifeline: Lifeline) -> int:
        wakeup = Wakeup([signal.SIGUSR1])
        for _ in range(20_000):
            signal.raise_signal(signal.SIGUSR1)
        return 0 if set(wakeup.notes()) == {signal.SIGUSR1} else 1

    assert reap(start(main)) == "exit status 0"


# ---- waiting ----


def test_waiting_names_those_that_are_readable_or_ended() -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    quiet, talking, ended = (ours for ours, _ in pairs)
    pairs[1][1].sendall(b"x")
    pairs[2][1].close()
    assert wait_readable([each.fileno() for each in (quiet, talking, ended)], None) == {
        talking.fileno(),
        ended.fileno(),
    }
    for pair in pairs:
        for each in pair:
            each.close()


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_waiting_for_nobody_ends_with_its_time(timeout: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert wait_readable([ours.fileno()], timeout) == set()


# ---- how a process ended ----


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit status 0"),
        (70 << 8, "exit status 70"),
        (255 << 8, "exit status 255"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGSEGV | 0x80, "SIGSEGV"),  # with a core dump
        (40, "signal 40"),
    ],
)
def test_an_end_is_told_by_name_or_status(status: int, text: str) -> None:
    assert describe_exit(status) == text


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGUSR1, signal.SIGUSR2])
def test_a_killed_child_is_told_by_its_signal(start: Start, signum: signal.Signals) -> None:
    def main(_lifeline: Lifeline) -> int:
        os.kill(os.getpid(), signum)
        return 0

    assert reap(start(main)) == signum.name
