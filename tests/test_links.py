"""Joins the real ends of front and consumer: 0MQ over Unix sockets, and claim pipes."""

import contextlib
import itertools
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import zmq

from gaspar.folders import forget_consumer
from gaspar.links import ConsumerEnd, ConsumerLink, Results
from gaspar.process import Lifeline, describe_exit, fork, wait_readable
from gaspar.wire import APART, CLAIM, CLOSE, JOB, MAX_U32, PART, Kind, Result, job_number

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long
CONSUMER = 1
GENERATION = 3
SIZES = [0, 1, 1000, APART - 1, APART, APART + 1, 5_000_000]


def n(counter: int, generation: int = GENERATION) -> int:
    return job_number(generation, counter)


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
def folder() -> Iterator[str]:
    """A private directory, its path short enough for a Unix address in it."""
    path = tempfile.mkdtemp(prefix="gaspar-")
    yield path
    shutil.rmtree(path)


class Ends:
    """A consumer's end, and a front's two ends for it, in one process with a 0MQ context each."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.watched, self.watched_writer = os.pipe()
        self.end = ConsumerEnd(folder, CONSUMER, self.watched)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.results = Results(self.context, folder, GENERATION)
        self.link = ConsumerLink(self.context, folder, CONSUMER)

    def recv(self) -> tuple[int, bytes]:
        """Return the next job that is to be run, when there is one."""
        while (job := self.end.recv()) is None:
            self.end.wait()
        return job

    def drain(self, count: int, most: int = 100) -> list[Result]:
        """Return the next results, when they are there."""
        got: list[Result] = []
        while len(got) < count:
            now = self.results.drain(most)
            assert len(now) <= most
            got += now
            if not now:
                assert wait_readable([self.results.fileno()], TIMEOUT)
        return got

    def close(self) -> None:
        self.link.close()
        self.results.close()
        self.context.term()
        self.end.close()
        os.close(self.watched)
        os.close(self.watched_writer)


@pytest.fixture
def ends(folder: str) -> Iterator[Ends]:
    ends = Ends(folder)
    yield ends
    ends.close()


# ---- jobs ----


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", SIZES)
def test_a_job_of_any_size_comes_as_it_was_sent(ends: Ends, size: int, kind: type) -> None:
    ends.link.send(n(1), kind(content(size)))
    number, payload = ends.recv()
    assert number == n(1)
    assert type(payload) is bytes
    assert payload == content(size)


def test_jobs_come_in_the_order_in_which_they_were_sent_long_and_short(ends: Ends) -> None:
    payloads = [content(APART * (counter % 3)) + b"%d" % counter for counter in range(30)]
    for counter, payload in enumerate(payloads, 1):
        ends.link.send(n(counter), payload)
    assert [ends.recv() for _ in payloads] == [(n(counter), payload) for counter, payload in enumerate(payloads, 1)]
    assert ends.end.recv() is None


def test_waiting_ends_when_the_watched_descriptor_is_readable(ends: Ends) -> None:
    os.write(ends.watched_writer, b"!")
    ends.end.wait()
    assert ends.end.recv() is None


# ---- claims ----


def test_a_job_that_was_taken_back_is_skipped(ends: Ends) -> None:
    for counter in (1, 2, 3):
        ends.link.send(n(counter), b"%d" % counter)
    assert ends.link.take_back() == n(1)
    assert [ends.recv(), ends.recv()] == [(n(2), b"2"), (n(3), b"3")]
    assert ends.end.recv() is None


def test_a_long_job_that_was_taken_back_is_skipped_whole(ends: Ends) -> None:
    ends.link.send(n(1), content(APART))
    assert ends.link.take_back() == n(1)
    ends.link.send(n(2), b"2")
    assert ends.recv() == (n(2), b"2")


def test_all_can_be_taken_back_and_sent_again(ends: Ends) -> None:
    for counter in (1, 2):
        ends.link.send(n(counter), b"first")
    assert ends.link.drain() == [n(1), n(2)]
    assert ends.link.drain() == []
    assert ends.link.take_back() == 0
    for counter in (2, 1):
        ends.link.send(n(counter), b"%d" % counter)
    # the first messages may be taken with the second claims: each number is run once
    assert sorted(ends.recv()[0] for _ in range(2)) == [n(1), n(2)]
    ends.link.send(n(3), b"3")
    assert ends.recv() == (n(3), b"3")


def test_a_job_that_was_begun_cannot_be_taken_back(ends: Ends) -> None:
    ends.link.send(n(1), b"1")
    ends.link.send(n(2), b"2")
    assert ends.recv() == (n(1), b"1")
    assert ends.link.drain() == [n(2)]


def test_what_is_taken_back_after_any_number_of_jobs_is_what_has_not_begun(ends: Ends) -> None:
    for begun in range(5):
        numbers = [n(10 * begun + counter) for counter in range(1, 6)]
        for number in numbers:
            ends.link.send(number, b"")
        assert [ends.recv()[0] for _ in range(begun)] == numbers[:begun]
        assert ends.link.drain() == numbers[begun:]


def test_each_job_is_run_or_taken_back_and_none_both(folder: str) -> None:
    """Race a consumer in a process of its own for a few thousand claims."""
    count = 3000

    def main(lifeline: Lifeline) -> int:
        end = ConsumerEnd(folder, CONSUMER, lifeline.fileno())
        lifeline.send(Kind.READY)
        while lifeline.recv() is not None:
            end.wait()
            while job := end.recv():
                end.send(job[0], 0, 0, 0, b"")
        end.close()
        return 0

    child = fork(main, "test:consumer")
    assert child.lifeline.wait(TIMEOUT)
    with zmq.Context() as context:
        results, link = Results(context, folder, GENERATION), ConsumerLink(context, folder, CONSUMER)
        back, run, sent = [], [], 0
        while len(run) + len(back) < count:
            for _ in range(min(8, count - sent)):
                sent += 1
                link.send(n(sent), b"")
            if sent % 3 and (number := link.take_back()):
                back.append(number)
            came = [each.number for each in results.drain(100)]
            run += came
            if sent == count and not came:  # all have been drained: the next one makes the descriptor readable
                assert wait_readable([results.fileno()], TIMEOUT)
        assert sorted(run + back) == [n(counter) for counter in range(1, count + 1)]
        assert run == sorted(run)
        link.close()
        results.close()
    child.lifeline.close()
    assert describe_exit(os.waitpid(child.pid, 0)[1]) == "exit status 0"


def test_an_unbegun_job_outlives_its_consumer_in_the_pipe(folder: str) -> None:
    def main(lifeline: Lifeline) -> int:
        end = ConsumerEnd(folder, CONSUMER, lifeline.fileno())
        lifeline.send(Kind.READY)
        while (job := end.recv()) is None:
            end.wait()
        lifeline.send(Kind.READY, job=job[0])
        signal.pause()
        return 0

    child = fork(main, "test:consumer")
    assert child.lifeline.wait(TIMEOUT)
    assert child.lifeline.recv() is not None
    with zmq.Context() as context:
        link = ConsumerLink(context, folder, CONSUMER)
        for counter in (1, 2, 3):
            link.send(n(counter), b"")
        assert child.lifeline.wait(TIMEOUT)
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        link.send(n(4), b"")  # nobody has said yet that it is dead
        assert link.drain() == [n(2), n(3), n(4)]
        link.close()
    forget_consumer(folder, CONSUMER)
    child.lifeline.close()
    assert list(Path(folder).glob("*.claims")) == []


# ---- fronts come and go ----


def test_a_claim_that_a_dead_front_left_is_dropped(ends: Ends) -> None:
    claims = os.open(f"{ends.folder}/c{CONSUMER}.claims", os.O_WRONLY | os.O_NONBLOCK)
    for counter in (1, 2, 3):  # it died between the claim and the job
        os.write(claims, CLAIM.pack(n(counter, GENERATION - 1)))
    os.close(claims)
    ends.link.send(n(1), b"1")
    ends.link.send(n(2), b"2")
    assert [ends.recv(), ends.recv()] == [(n(1), b"1"), (n(2), b"2")]


def test_a_claim_that_was_read_for_a_dead_fronts_job_is_dropped(ends: Ends) -> None:
    """The consumer holds a claim whose job never comes, because it skipped a job that was taken back."""
    with zmq.Context() as context:
        old = ConsumerLink(context, ends.folder, CONSUMER)
        old.send(n(1, 1), b"taken back")
        assert old.take_back() == n(1, 1)
        claims = os.open(f"{ends.folder}/c{CONSUMER}.claims", os.O_WRONLY | os.O_NONBLOCK)
        os.write(claims, CLAIM.pack(n(2, 1)))
        os.close(claims)
        ends.end.wait()
        assert ends.end.recv() is None
        old.close()
    ends.link.send(n(1), b"1")
    assert ends.recv() == (n(1), b"1")


def test_a_job_without_a_claim_is_not_run(ends: Ends) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as bare:
        bare.connect(f"ipc://{ends.folder}/c{CONSUMER}")
        bare.send(JOB.pack(n(9), 0) + b"nobody's")
        ends.end.wait()
        assert ends.end.recv() is None
    ends.link.send(n(1), b"1")
    assert ends.recv() == (n(1), b"1")


def test_a_late_job_of_an_old_front_costs_the_new_one_no_claim(ends: Ends) -> None:
    """The old front's job comes without its claim, while the new front's claims are in the pipe."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as old:
        old.connect(f"ipc://{ends.folder}/c{CONSUMER}")
        for counter in (1, 2, 3):
            claims = os.open(f"{ends.folder}/c{CONSUMER}.claims", os.O_WRONLY | os.O_NONBLOCK)
            os.write(claims, CLAIM.pack(n(counter)))  # of the new front; its job is on its way
            os.close(claims)
            old.send(JOB.pack(n(counter, GENERATION - 1), 0) + b"late")
            ends.end.wait()
            assert ends.end.recv() is None
    with ends.context.socket(zmq.PUSH) as jobs:
        jobs.connect(f"ipc://{ends.folder}/c{CONSUMER}")
        for counter in (1, 2, 3):
            jobs.send(JOB.pack(n(counter), 0) + b"%d" % counter)
        assert [ends.recv() for _ in range(3)] == [(n(counter), b"%d" % counter) for counter in (1, 2, 3)]


def test_a_late_job_of_an_old_front_that_still_has_its_claim_is_run(ends: Ends) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as old:
        claims = os.open(f"{ends.folder}/c{CONSUMER}.claims", os.O_WRONLY | os.O_NONBLOCK)
        os.write(claims, CLAIM.pack(n(1, GENERATION - 1)))
        os.close(claims)
        ends.link.send(n(1), b"new")  # comes first, whatever is behind it in the pipe
        assert ends.recv() == (n(1), b"new")
        old.connect(f"ipc://{ends.folder}/c{CONSUMER}")
        old.send(JOB.pack(n(1, GENERATION - 1), 0) + b"old")
        ends.end.wait()
        assert ends.end.recv() is None  # its claim was dropped for the new one's
    ends.link.send(n(2), b"2")
    assert ends.recv() == (n(2), b"2")


def test_a_job_of_an_old_front_is_run_and_its_result_disturbs_nobody(ends: Ends) -> None:
    with zmq.Context() as context:
        old = ConsumerLink(context, ends.folder, CONSUMER)
        old.send(n(1, GENERATION - 1), b"old")
        assert ends.recv() == (n(1, GENERATION - 1), b"old")
        old.close()
    ends.end.send(n(1, GENERATION - 1), 0, 0, 0, b"to nobody")
    ends.link.send(n(1), b"new")
    assert ends.recv() == (n(1), b"new")
    ends.end.send(n(1), 0, 0, 0, b"reply")
    assert [(each.number, each.body) for each in ends.drain(1)] == [(n(1), b"reply")]


def test_a_result_goes_to_the_front_that_sent_its_job(ends: Ends) -> None:
    ends.end.send(n(1), 0, 0, 0, b"for the old")
    assert [each.number for each in ends.drain(1)] == [n(1)]
    with zmq.Context() as context:
        new = Results(context, ends.folder, GENERATION + 1)
        ends.end.send(n(1, GENERATION + 1), 0, 0, 0, b"for the new")
        assert wait_readable([new.fileno()], TIMEOUT)
        ends.results, old = new, ends.results
        assert [each.number for each in ends.drain(1)] == [n(1, GENERATION + 1)]
        ends.results = old
        assert old.drain(100) == []
        new.close()


# ---- results ----


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("size", SIZES)
def test_a_result_of_any_size_comes_as_it_was_sent(ends: Ends, size: int, kind: type) -> None:
    ends.end.send(n(7), 2**63 + 5, 1234, 6, kind(content(size)))
    (result,) = ends.drain(1)
    assert result[:4] == (n(7), 2**63 + 5, 1234, 6)
    assert result.body == content(size)


def test_a_long_reply_that_changes_after_it_was_sent_comes_as_it_was(ends: Ends) -> None:
    body = bytearray(content(5_000_000))
    ends.end.send(n(1), 0, 0, 0, memoryview(body))
    body[:] = bytes(len(body))
    (result,) = ends.drain(1)
    assert result.body == content(5_000_000)


@pytest.mark.parametrize("ran", [0, 1, MAX_U32])
def test_how_long_a_job_ran_comes_as_it_was_sent(ends: Ends, ran: int) -> None:
    ends.end.send(n(1), 0, ran, 0, b"")
    assert [each.ran for each in ends.drain(1)] == [ran]


@pytest.mark.parametrize("most", [1, 7, 100])
def test_results_are_drained_in_order_and_no_more_than_asked_for(ends: Ends, most: int) -> None:
    bodies = [content(APART * (counter % 2)) + b"%d" % counter for counter in range(20)]
    for counter, body in enumerate(bodies):
        ends.end.send(n(counter), 0, 0, 0, body)
    results = ends.drain(20, most)
    assert [each.number for each in results] == [n(counter) for counter in range(20)]
    assert [each.body for each in results] == bodies
    assert ends.results.drain(most) == []


def test_a_leaving_consumers_last_results_get_out(folder: str) -> None:
    count = 40

    def main(lifeline: Lifeline) -> int:
        end = ConsumerEnd(folder, CONSUMER, lifeline.fileno())
        for counter in range(count):
            end.send(n(counter), 0, 0, 0, content(10_000 * (counter % 10)))
        end.close()
        return 0

    child = fork(main, "test:consumer")
    with zmq.Context() as context:
        results = Results(context, folder, GENERATION)
        got: list[Result] = []
        while len(got) < count:
            came = results.drain(100)
            got += came
            if not came:
                assert wait_readable([results.fileno()], TIMEOUT)
        assert [each.number for each in got] == [n(counter) for counter in range(count)]
        assert [len(each.body) for each in got] == [10_000 * (counter % 10) for counter in range(count)]
        results.close()
    child.lifeline.close()
    assert describe_exit(os.waitpid(child.pid, 0)[1]) == "exit status 0"


# ---- parts of a stream, and what a client has taken of them ----


class Sender(threading.Thread):
    """A consumer's thread of control: sends parts, and notes what came of each."""

    def __init__(self, end: ConsumerEnd, number: int, parts: Iterable[bytes | memoryview]) -> None:
        super().__init__()
        self.said: list[bool] = []
        self._end, self._number, self._parts = end, number, parts
        self.start()

    def run(self) -> None:
        self._end.begin_stream()
        for part in self._parts:
            self.said.append(self._end.send_part(self._number, 5, part))
            if not self.said[-1]:
                break


def bodies(results: list[Result], number: int) -> list[bytes]:
    assert all(each[:4] == (number, 5, 0, PART) for each in results)
    return [bytes(each.body) for each in results]


def test_eight_parts_are_under_way_and_each_that_is_taken_makes_room_for_one(ends: Ends) -> None:
    parts = [b"%d" % number for number in range(20)]
    sender = Sender(ends.end, n(1), parts)
    got = bodies(ends.drain(8), n(1))
    while len(got) < 20:
        assert ends.results.drain(100) == []
        ends.link.credit(n(1), len(parts[len(got) - 8]))
        came = bodies(ends.drain(1), n(1))
        assert len(came) == 1
        got += came
    sender.join(TIMEOUT)
    assert got == parts
    assert sender.said == [True] * 20


@pytest.mark.parametrize(("size", "under_way"), [(300_000, 3), (2**19, 2), (2**20, 1), (2**20 + 1, 1), (3_000_000, 1)])
def test_a_mebibyte_is_under_way_or_one_part_that_is_longer(ends: Ends, size: int, under_way: int) -> None:
    parts = [bytes([number]) * size for number in range(6)]
    sender = Sender(ends.end, n(1), parts)
    got = bodies(ends.drain(under_way), n(1))
    assert len(got) == under_way
    while len(got) < 6:
        assert ends.results.drain(100) == []
        ends.link.credit(n(1), size)
        came = bodies(ends.drain(1), n(1))
        assert len(came) == 1
        got += came
    sender.join(TIMEOUT)
    assert got == parts


def test_parts_of_any_size_make_room_when_enough_is_taken(ends: Ends) -> None:
    sizes = [2**20 - 2, 1, 1, 2**20, 5]
    sender = Sender(ends.end, n(1), [bytes(size) for size in sizes])
    assert [len(each.body) for each in ends.drain(3)] == sizes[:3]
    for size in sizes[:2]:
        ends.link.credit(n(1), size)
        assert ends.results.drain(100) == []  # not even one byte may be under way beside the next
    ends.link.credit(n(1), sizes[2])
    assert [len(each.body) for each in ends.drain(1)] == sizes[3:4]
    ends.link.credit(n(1), sizes[3])
    assert [len(each.body) for each in ends.drain(1)] == sizes[4:]
    sender.join(TIMEOUT)


def test_a_closed_stream_sends_nothing_more_also_while_it_waits(ends: Ends) -> None:
    sender = Sender(ends.end, n(1), itertools.repeat(b"part"))
    ends.drain(8)
    ends.link.credit(n(1), CLOSE)
    sender.join(TIMEOUT)
    assert sender.said == [True] * 8 + [False]
    assert ends.results.drain(100) == []


def test_a_stream_that_was_closed_before_its_first_part_sends_none(ends: Ends) -> None:
    ends.link.credit(n(1), CLOSE)
    ends.end.begin_stream()
    assert not ends.end.send_part(n(1), 5, b"part")


def test_what_is_said_of_other_streams_opens_and_closes_nothing(ends: Ends) -> None:
    for counter in range(1, 400):  # left by streams that have ended
        ends.link.credit(n(counter), 1)
        ends.link.credit(n(counter), CLOSE)
    sender = Sender(ends.end, n(500), [b"p"] * 10)
    assert len(ends.drain(8)) == 8
    ends.link.credit(n(0), CLOSE)
    ends.link.credit(n(499), 1)
    assert ends.results.drain(100) == []
    ends.link.credit(n(500), 1)
    ends.link.credit(n(500), 1)
    assert len(ends.drain(2)) == 2
    sender.join(TIMEOUT)
    assert sender.said == [True] * 10


def test_a_new_front_closes_the_streams_of_those_before_it(ends: Ends) -> None:
    ends.link.credit(n(0, GENERATION + 1), CLOSE)
    ends.end.begin_stream()
    assert not ends.end.send_part(n(1), 5, b"part")
    assert ends.end.send_part(n(1, GENERATION + 1), 5, b"part")


def test_a_stream_begins_with_nothing_under_way(ends: Ends) -> None:
    for counter in (1, 2, 3):
        sender = Sender(ends.end, n(counter), [b"part"] * 8)  # nobody says that they were taken
        assert bodies(ends.drain(8), n(counter)) == [b"part"] * 8
        sender.join(TIMEOUT)


def test_saying_what_was_taken_never_blocks_though_nobody_listens(ends: Ends) -> None:
    for counter in range(10_000):
        ends.link.credit(n(counter), 1)
    ends.link.send(n(1), b"a job")
    assert ends.recv() == (n(1), b"a job")


def test_a_part_may_be_changed_once_it_is_sent(ends: Ends) -> None:
    ends.end.begin_stream()
    for size in (10, APART, 500_000):
        body = bytearray(content(size))
        with memoryview(body) as view:
            assert ends.end.send_part(n(1), 5, view)
        body[:] = bytes(size)
        assert bodies(ends.drain(1), n(1)) == [content(size)]
        ends.link.credit(n(1), size)


def test_parts_and_the_result_behind_them_come_in_order(ends: Ends) -> None:
    for counter in range(1, 50):
        ends.end.begin_stream()
        for size in (0, 5, APART, 5):
            assert ends.end.send_part(n(counter), 5, content(size))
        ends.end.send(n(counter), 5, 1, 0, b"end")
        results = ends.drain(5)
        assert [(each.number, each.code, len(each.body)) for each in results] == [
            *((n(counter), PART, size) for size in (0, 5, APART, 5)),
            (n(counter), 0, 3),
        ]


@pytest.mark.parametrize("when", ["before the part", "while it waits"])
def test_a_stream_ends_when_its_consumer_has_lost_its_parent(folder: str, when: str) -> None:
    """Nobody is left to say what was taken."""
    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        parent = os.getpid()
        if not os.fork():
            told = b"?"
            try:
                end = ConsumerEnd(folder, CONSUMER, reader)
                end.begin_stream()
                told = b"".join(b"%d" % end.send_part(n(1), 5, b"") for _ in range(8))
                os.write(writer, b"%d\n" % os.getpid())
                while when == "before the part" and os.getppid() == parent:
                    wait_readable([], 0.001)
                told += b"%d" % end.send_part(n(1), 5, b"")
            finally:
                os.write(writer, told)
                os._exit(0)
        signal.pause()
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as news:
        child = int(news.read(100))
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        try:
            assert wait_readable([reader], 10)
            assert news.read(100) == b"111111110"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


# ---- the directory ----


def test_nobody_else_can_open_the_claim_pipe(ends: Ends) -> None:
    mode = os.stat(f"{ends.folder}/c{CONSUMER}.claims").st_mode
    assert stat.S_ISFIFO(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_new_front_removes_the_socket_files_of_those_that_died(folder: str) -> None:
    for generation in (1, 2):

        def main(lifeline: Lifeline, generation: int = generation) -> int:
            with zmq.Context() as context:
                Results(context, folder, generation)
                lifeline.send(Kind.READY)
                signal.pause()
            return 0

        child = fork(main, "test:front")
        assert child.lifeline.wait(TIMEOUT)
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        child.lifeline.close()
        assert os.listdir(folder) == [f"f{generation}"]
    with zmq.Context() as context:
        results = Results(context, folder, 3)
        assert os.listdir(folder) == ["f3"]
        results.close()


def test_a_dead_consumer_leaves_no_file_when_its_front_closes_for_good(folder: str) -> None:
    def main(lifeline: Lifeline) -> int:
        end = ConsumerEnd(folder, CONSUMER, lifeline.fileno())
        lifeline.send(Kind.READY)
        end.wait()
        return 0

    child = fork(main, "test:consumer")
    assert child.lifeline.wait(TIMEOUT)
    with zmq.Context() as context:
        link = ConsumerLink(context, folder, CONSUMER)
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        child.lifeline.close()
        assert sorted(os.listdir(folder)) == [f"c{CONSUMER}", f"c{CONSUMER}.claims", f"c{CONSUMER}.credits"]
        link.close()
    forget_consumer(folder, CONSUMER)
    assert os.listdir(folder) == []


def test_joining_a_consumer_that_never_was_is_an_error(folder: str) -> None:
    with zmq.Context() as context, pytest.raises(FileNotFoundError):
        ConsumerLink(context, folder, 99)


def descriptors_of(path: str) -> int:
    """Count the descriptors by which this process holds a file."""
    count = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the one that listed them, closed by now
            count += os.path.samestat(os.fstat(int(name)), os.stat(path))
    return count


def test_a_front_that_closes_its_end_holds_no_descriptor_of_it(ends: Ends) -> None:
    path = f"{ends.folder}/c{CONSUMER}.claims"
    before = descriptors_of(path)
    with zmq.Context() as context:
        link = ConsumerLink(context, ends.folder, CONSUMER)
        assert descriptors_of(path) == before + 1
        link.close()
        assert descriptors_of(path) == before
