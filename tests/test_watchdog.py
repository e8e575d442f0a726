"""Watches real forked children through real slots; the time is passed in, so that nothing here waits for a limit."""

import faulthandler
import logging
import mmap
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from gaspar.limits import STOPPED_LIMIT
from gaspar.process import Child, Lifeline, describe_exit, fork, wait_readable
from gaspar.scoreboard import BEGUN, JOB, Scoreboard
from gaspar.watchdog import STACK_SIGNAL, MemoryWatch, StackReader, Verdict, Watchdog
from gaspar.wire import Kind

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long
LIMIT = 5.0  # seconds that a request may run
BEGAN = 1000.0  # when the child's job began
LATE = BEGAN + LIMIT  # when its time is over
SOON = 0.005  # seconds between looks while something is about to happen
SECOND = 10**9  # nanoseconds


Live = Callable[[Lifeline, memoryview], None]


class Watched:
    """A child that runs job 7 since BEGAN and says when it is where it is to be, and its watchdog."""

    def __init__(self, live: Live, timeout: float = LIMIT, slow: float = 0) -> None:
        board = Scoreboard(1)
        self.slot = board.slot(0)
        self.stack, writer = os.pipe()
        self.told, told_writer = os.pipe()
        for fd in (self.stack, writer, told_writer):
            os.set_blocking(fd, False)

        def main(lifeline: Lifeline) -> int:
            os.setpgid(0, 0)
            # beside what a consumer does: a byte in `told` once the whole stack is written, also inside C code
            signal.signal(STACK_SIGNAL, lambda number, frame: None)
            signal.set_wakeup_fd(told_writer)
            faulthandler.register(STACK_SIGNAL, file=writer, all_threads=False, chain=True)
            self.slot[BEGUN], self.slot[JOB] = int(BEGAN) * SECOND, 7
            live(lifeline, self.slot)
            return 0

        self.child: Child = fork(main, "test:consumer")
        os.close(writer)
        os.close(told_writer)
        self.ended = ""
        self.hear()
        self.reader = StackReader(self.child.pid, self.stack)
        self.watchdog = Watchdog(self.child.pid, self.slot, self.reader, timeout, slow)

    def hear(self) -> None:
        """Wait until the child says something."""
        assert self.child.lifeline.wait(TIMEOUT)
        assert self.child.lifeline.recv() is not None

    def await_stack(self) -> None:
        assert wait_readable([self.told], TIMEOUT)
        assert os.read(self.told, 1) == bytes([STACK_SIGNAL])

    def condemn(self, now: float) -> Verdict:
        """Look a few times in a row until it is killed."""
        for step in range(10):
            self.watchdog.look(now + step * SOON)
            if verdict := self.watchdog.verdict:
                return verdict
        raise AssertionError("it was not killed")

    def stop(self) -> None:
        """Stop it, as somebody may."""
        os.kill(self.child.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, self.child.pid, os.WSTOPPED | os.WNOWAIT)

    def is_alive(self) -> bool:
        """Ask it, and wait for its answer."""
        self.child.lifeline.send(Kind.LEAVE)
        self.hear()
        return True

    def reap(self) -> str:
        if not self.ended:
            self.ended = describe_exit(os.waitpid(self.child.pid, 0)[1])
        return self.ended

    def close(self) -> None:
        if not self.ended:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.reap()
        self.child.lifeline.close()
        os.close(self.stack)
        os.close(self.told)


Watch = Callable[..., Watched]


class Ending:
    """A slot whose job ends in the moment in which its process stops."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def __getitem__(self, word: int) -> int:
        if os.waitid(os.P_PID, self._watched.child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
            self._watched.slot[BEGUN], self._watched.slot[JOB] = int(LATE) * SECOND, 8
        return self._watched.slot[word]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Starts children that live as they are told; ends those that still do."""
    found: list[Watched] = []

    def start(live: Live, timeout: float = LIMIT) -> Watched:
        found.append(Watched(live, timeout))
        return found[-1]

    yield start
    for each in found:
        each.close()


def spin(lifeline: Lifeline, _slot: memoryview) -> None:
    lifeline.send(Kind.READY)
    while True:
        pass


def hang_in_c(lifeline: Lifeline, _slot: memoryview) -> None:
    lifeline.send(Kind.READY)
    re.match(r"(a+)+$", "a" * 64 + "b")


def rest(lifeline: Lifeline, _slot: memoryview) -> None:
    lifeline.send(Kind.READY)
    while True:
        signal.pause()


def answer(lifeline: Lifeline, _slot: memoryview) -> None:
    lifeline.send(Kind.READY)
    while lifeline.wait(TIMEOUT) and lifeline.recv():
        lifeline.send(Kind.READY)


# ---- a request that runs for too long ----


@pytest.mark.parametrize(("hang", "where"), [(spin, "in spin"), (hang_in_c, "in hang_in_c"), (rest, "in rest")])
def test_one_that_hangs_is_killed_with_its_stack(watch: Watch, hang: Live, where: str) -> None:
    watched = watch(hang)
    watchdog = watched.watchdog
    watchdog.look(LATE)
    assert watchdog.verdict is None  # first it may say where it is
    watched.await_stack()
    verdict = watched.condemn(LATE + SOON)
    assert verdict.job == 7
    said, _, place = verdict.why.partition("; hung at ")
    assert re.fullmatch(rf"ran for {LIMIT:g}\.\d\d s, {LIMIT:g} allowed \(--timeout\)", said)
    assert place.startswith("File ")
    assert place in verdict.stack
    assert where in verdict.stack
    assert "test_watchdog.py" in verdict.stack
    assert watched.reap() == "SIGKILL"


def test_what_one_that_hangs_has_started_is_killed_with_it(watch: Watch) -> None:
    reader, writer = os.pipe()

    def live(lifeline: Lifeline, _slot: memoryview) -> None:
        with subprocess.Popen(["sleep", "1000"], pass_fds=[writer]):
            lifeline.send(Kind.READY)

    watched = watch(live)
    os.close(writer)
    watched.watchdog.look(LATE)
    watched.await_stack()
    watched.condemn(LATE + SOON)
    assert watched.reap() == "SIGKILL"
    assert wait_readable([reader], TIMEOUT)
    assert os.read(reader, 1) == b""  # nobody holds the other end any more
    os.close(reader)


def test_one_that_cannot_say_where_it_hangs_is_killed_without_a_stack(watch: Watch) -> None:
    def live(lifeline: Lifeline, slot: memoryview) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [STACK_SIGNAL])
        rest(lifeline, slot)

    watched = watch(live)
    watchdog = watched.watchdog
    watchdog.look(LATE)
    watchdog.look(LATE + 0.01)
    assert watchdog.verdict is None
    watchdog.look(LATE + 1.0)
    assert watchdog.verdict is not None
    assert watchdog.verdict.why.endswith("allowed (--timeout); its process was stopped")
    assert watchdog.verdict.stack == "stopped"
    assert watched.reap() == "SIGKILL"


@pytest.mark.parametrize("now", [BEGAN, BEGAN + LIMIT / 2, LATE - 0.001])
def test_one_that_has_time_left_is_left_alone(watch: Watch, now: float) -> None:
    watched = watch(rest)
    watched.watchdog.look(now)
    watched.watchdog.look(now)
    assert watched.watchdog.verdict is None
    assert not wait_readable([watched.stack], 0.0)


@pytest.mark.parametrize(("job", "timeout"), [(0, LIMIT), (7, 0.0)])
def test_one_that_does_nothing_or_has_no_limit_is_left_alone(watch: Watch, job: int, timeout: float) -> None:
    watched = watch(rest, timeout)
    watched.slot[JOB] = job
    for now in (LATE, LATE + 1e6):
        watched.watchdog.look(now)
    assert watched.watchdog.verdict is None
    assert not wait_readable([watched.stack], 0.0)


@pytest.mark.parametrize("after", [0, 8])
def test_one_that_ends_just_in_time_goes_on(watch: Watch, after: int) -> None:
    def live(lifeline: Lifeline, slot: memoryview) -> None:
        lifeline.send(Kind.READY)
        lifeline.wait(TIMEOUT)
        lifeline.recv()
        slot[BEGUN], slot[JOB] = int(LATE) * SECOND, after
        answer(lifeline, slot)

    watched = watch(live)
    watched.watchdog.look(LATE)
    watched.await_stack()
    assert watched.is_alive()  # and now it runs another job or none
    for now in (LATE + 0.01, LATE + 1.0):
        watched.watchdog.look(now)
    assert watched.watchdog.verdict is None
    assert watched.is_alive()


def test_one_that_ends_while_it_is_stopped_goes_on(watch: Watch) -> None:
    watched = watch(answer)
    watchdog = Watchdog(watched.child.pid, Ending(watched), watched.reader, LIMIT, 0)  # type: ignore[arg-type]
    watchdog.look(LATE)
    watched.await_stack()
    for step in range(1, 10):
        watchdog.look(LATE + step * SOON)
    assert watched.slot[JOB] == 8  # it was stopped
    assert watchdog.verdict is None
    assert watched.is_alive()


def test_the_stack_of_one_that_went_on_is_not_told_of_the_next(watch: Watch) -> None:
    def live(lifeline: Lifeline, slot: memoryview) -> None:
        first_job(lifeline, slot)
        second_job(lifeline, slot)

    def first_job(lifeline: Lifeline, slot: memoryview) -> None:
        lifeline.send(Kind.READY)
        lifeline.wait(TIMEOUT)
        slot[BEGUN], slot[JOB] = int(LATE) * SECOND, 8

    def second_job(lifeline: Lifeline, slot: memoryview) -> None:
        spin(lifeline, slot)

    watched = watch(live)
    watched.watchdog.look(LATE)
    watched.await_stack()
    assert watched.is_alive()
    watched.watchdog.look(LATE + 0.01)  # the first job ended: what it wrote is still in the pipe
    watched.watchdog.look(LATE + LIMIT)
    watched.await_stack()
    verdict = watched.condemn(LATE + LIMIT + SOON)
    assert verdict.job == 8
    assert "in second_job" in verdict.stack
    assert "in first_job" not in verdict.stack


# ---- one that somebody has stopped ----


@pytest.mark.parametrize("job", [7, 0])
def test_one_that_somebody_stopped_for_too_long_is_killed(watch: Watch, job: int) -> None:
    watched = watch(rest, timeout=0.0)
    watched.slot[JOB] = job
    watched.stop()
    watchdog = watched.watchdog
    watchdog.on_stopped(BEGAN + 1.0)
    watchdog.look(BEGAN + 1.0)
    watchdog.look(BEGAN + 1.0 + STOPPED_LIMIT - 0.001)
    assert watchdog.verdict is None
    watchdog.look(BEGAN + 1.0 + STOPPED_LIMIT)
    assert watchdog.verdict is not None
    why = f"its process was stopped by somebody for {STOPPED_LIMIT:g} s"
    assert watchdog.verdict == ("stopped", job, why, "stopped")
    assert watched.reap() == "SIGKILL"


def test_one_that_was_continued_in_time_goes_on(watch: Watch) -> None:
    watched = watch(answer, timeout=0.0)
    watched.stop()
    watched.watchdog.on_stopped(BEGAN)
    os.kill(watched.child.pid, signal.SIGCONT)
    watched.watchdog.on_continued()
    watched.watchdog.look(BEGAN + STOPPED_LIMIT)
    assert watched.watchdog.verdict is None
    assert watched.is_alive()


def test_one_that_is_stopped_at_its_limit_is_killed_without_a_stack(watch: Watch) -> None:
    watched = watch(spin)
    watched.stop()
    watched.watchdog.look(LATE)
    watched.watchdog.look(LATE + 1.0)
    assert watched.watchdog.verdict is not None
    assert watched.watchdog.verdict.stack == "stopped"
    assert watched.reap() == "SIGKILL"


# ---- when to look, and what is said ----


def test_the_next_look_is_when_the_first_limit_is_due(watch: Watch) -> None:
    watched = watch(rest)
    watchdog = watched.watchdog
    assert watchdog.next_look(BEGAN) == LATE
    assert watchdog.next_look(LATE + 1.0) == LATE  # overdue
    watched.slot[JOB] = 0
    assert watchdog.next_look(BEGAN + 3.0) == BEGAN + 3.0 + LIMIT  # at the earliest, if a job begins now
    watchdog.on_stopped(BEGAN + 3.0)
    assert watchdog.next_look(BEGAN + 4.0) == BEGAN + 3.0 + STOPPED_LIMIT
    watchdog.on_continued()
    assert watchdog.next_look(BEGAN + 4.0) == BEGAN + 4.0 + LIMIT


def test_one_without_a_limit_is_looked_at_only_if_it_is_stopped(watch: Watch) -> None:
    watchdog = watch(rest, timeout=0.0).watchdog
    assert watchdog.next_look(BEGAN) is None
    watchdog.on_stopped(BEGAN)
    assert watchdog.next_look(BEGAN) == BEGAN + STOPPED_LIMIT


def test_a_suspect_is_looked_at_again_soon_and_a_killed_one_never(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch(spin)
    watchdog = watched.watchdog
    watchdog.look(LATE)
    due = watchdog.next_look(LATE)
    assert due is not None and LATE < due < LATE + 0.1
    watched.await_stack()
    with caplog.at_level(logging.WARNING):
        verdict = watched.condemn(due)
        assert watchdog.next_look(due) is None
        watchdog.on_stopped(due)
        for _ in range(3):
            watchdog.look(due + STOPPED_LIMIT)
    assert watchdog.verdict is verdict
    (line,) = [record.getMessage() for record in caplog.records]  # said once
    assert line.startswith(f"killing consumer (pid {watched.child.pid}), request 7 ran for ")
    assert line.endswith(verdict.stack.rstrip())


# ---- memory ----


def test_what_one_takes_privately_is_watched_and_what_it_shares_is_not(watch: Watch) -> None:
    mib = 2**20

    def live(lifeline: Lifeline, _slot: memoryview) -> None:
        kept = []
        lifeline.send(Kind.READY)
        while lifeline.wait(TIMEOUT) and (records := lifeline.recv()):
            # a map, since what malloc is given back it may keep
            kept.append(mmap.mmap(-1, records[0].fields["number"] * mib, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for page in range(0, len(kept[-1]), mmap.PAGESIZE):
                kept[-1][page] = 1
            lifeline.send(Kind.READY)

    def take(number: int) -> tuple[str, bool]:
        watched.child.lifeline.send(Kind.LEAVE, number=number)
        watched.hear()
        return memory.look(BEGAN)

    shared = b"x" * (100 * mib)  # before the fork
    watched = watch(live)
    memory = MemoryWatch(watched.child.pid, 32 * mib, BEGAN)
    assert memory.look(BEGAN) == ("", False)
    assert take(8) == ("", False)
    text, kill = take(30)
    assert re.fullmatch(r"its private memory grew by (3[89]|4\d) MiB, 32 MiB allowed \(--max-memory\)", text)
    assert not kill
    assert take(20)[1]
    assert len(shared) == 100 * mib


def test_one_that_has_ended_has_grown_by_nothing(watch: Watch) -> None:
    watched = watch(rest)
    memory = MemoryWatch(watched.child.pid, 1, BEGAN)
    assert memory.next_look > BEGAN
    os.kill(watched.child.pid, signal.SIGKILL)
    assert os.waitid(os.P_PID, watched.child.pid, os.WEXITED | os.WNOWAIT)
    assert memory.look(BEGAN) == ("", False)
    assert MemoryWatch(watched.child.pid, 1, BEGAN).look(BEGAN) == ("", False)


def test_a_stack_that_comes_in_pieces_is_told_whole(watch: Watch) -> None:
    def live(lifeline: Lifeline, slot: memoryview) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [STACK_SIGNAL])
        rest(lifeline, slot)

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    watched = watch(live)
    watched.watchdog = Watchdog(watched.child.pid, watched.slot, StackReader(watched.child.pid, reader), LIMIT, 0)
    watched.watchdog.look(LATE)
    os.write(writer, b"Stack (most recent call first):\n")
    watched.watchdog.look(LATE + SOON)
    assert watched.watchdog.verdict is None
    os.write(writer, b'  File "x.py", line 1 in f\n')
    assert watched.condemn(LATE + 2 * SOON).why.endswith('hung at File "x.py", line 1 in f')
    os.close(reader)
    os.close(writer)
