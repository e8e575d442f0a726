"""Walks the dispatcher's decisions one by one, then by a machine that plays the front and its consumers."""

from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from gaspar.dispatch import AUTO_WORK, MAX_AUTO_DEPTH, MIN_AUTO_DEPTH, PATIENCE, Dispatcher, Job
from gaspar.wire import generation_of


def dispatcher(depth: int, consumers: int) -> Dispatcher:
    found = Dispatcher(generation=1, depth=depth)
    for number in range(1, consumers + 1):
        found.add_consumer(number, 0.0)
    return found


def submit(to: Dispatcher, count: int, now: float = 0.0, size: int = 0) -> list[int]:
    return [to.submit(bytes(size), None, now).number for _ in range(count)]


def assign(by: Dispatcher, now: float = 0.0) -> list[tuple[int, int]]:
    """Return (consumer, job number) pairs."""
    return [(consumer, job.number) for consumer, job in by.assign(now)]


def numbers(jobs: Iterable[Job]) -> list[int]:
    return [job.number for job in jobs]


# ---- who gets what ----


def test_a_job_keeps_what_it_was_submitted_with() -> None:
    table = Dispatcher(generation=3)
    client = object()
    job = table.submit(b"payload", client, 12.5)
    assert (job.payload, job.client, job.arrived) == (b"payload", client, 12.5)
    assert generation_of(job.number) == 3


def test_job_numbers_grow_and_none_comes_twice() -> None:
    table = dispatcher(2, consumers=1)
    found = []
    for _ in range(50):
        found += submit(table, 2)
        for _, number in assign(table):
            table.done(number, 1, 0.0)
    assert found == sorted(set(found))


def test_without_consumers_all_wait() -> None:
    table = Dispatcher(generation=1)
    submit(table, 3)
    assert assign(table) == []
    assert (table.waiting, table.in_flight, table.pending) == (3, 0, 3)
    assert table.donor() is None


def test_the_oldest_job_goes_to_the_least_loaded_consumer() -> None:
    table = dispatcher(3, consumers=3)
    jobs = submit(table, 9)
    assert assign(table) == list(zip([1, 2, 3] * 3, jobs, strict=True))
    table.done(jobs[1], 1, 0.0)  # consumer 2 has two, then 3 has one
    table.done(jobs[2], 1, 0.0)
    table.done(jobs[5], 1, 0.0)
    more = submit(table, 3)
    assert assign(table) == list(zip([3, 2, 3], more, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 8, 64])
def test_no_consumer_has_more_jobs_than_the_depth(depth: int) -> None:
    table = dispatcher(depth, consumers=2)
    jobs = submit(table, 2 * depth + 5)
    assert len(assign(table)) == 2 * depth
    assert table.waiting == 5
    table.done(jobs[0], 1, 0.0)
    assert assign(table) == [(1, jobs[2 * depth])]


def test_each_job_is_counted_in_one_place() -> None:
    table = dispatcher(1, consumers=2)
    jobs = submit(table, 3)
    assert (table.waiting, table.in_flight, table.pending) == (3, 0, 3)
    assign(table)
    assert (table.waiting, table.in_flight, table.pending) == (1, 2, 3)
    table.done(jobs[0], 1, 0.0)
    assert (table.waiting, table.in_flight, table.pending) == (1, 1, 2)


def test_a_result_answers_its_job_once() -> None:
    table = dispatcher(2, consumers=1)
    (number,) = submit(table, 1)
    assign(table)
    job = table.done(number, 10, 1.0)
    assert job is not None and job.number == number
    assert table.done(number, 10, 1.0) is None


def test_a_result_of_an_unknown_job_answers_nobody() -> None:
    table = dispatcher(2, consumers=1)
    (waiting,) = submit(table, 1)
    assert table.done(99, 10, 1.0) is None
    assert table.done(waiting, 10, 1.0) is None  # nobody was given it
    assert table.waiting == 1


def test_what_happens_to_an_unknown_consumer_changes_nothing() -> None:
    table = dispatcher(1, consumers=1)
    jobs = submit(table, 2)
    assign(table)
    table.retire_consumer(9)
    table.give_back(9, jobs)
    table.emptied(9)
    assert table.lose_consumer(9, jobs) == []
    assert not table.is_retired(9)
    assert (table.waiting, table.in_flight, table.consumers) == (1, 1, [1])


# ---- taking back ----


def test_what_is_given_back_goes_ahead_of_the_queue_in_order_of_age() -> None:
    table = dispatcher(3, consumers=2)
    jobs = submit(table, 8)
    assign(table)  # 1: 0 2 4, 2: 1 3 5, waiting: 6 7
    table.give_back(2, [jobs[3], jobs[5]])
    table.give_back(1, [jobs[4]])
    assert table.waiting == 5
    assert [number for _, number in assign(table)] == jobs[3:6]
    table.done(jobs[0], 1, 0.0)
    assert assign(table) == [(1, jobs[6])]


def test_numbers_of_other_consumers_and_of_other_fronts_are_not_given_back() -> None:
    table = dispatcher(1, consumers=2)
    jobs = submit(table, 2)
    assign(table)
    table.give_back(1, [jobs[1], 7 << 32 | 1])
    assert (table.waiting, table.in_flight) == (0, 2)


def test_who_has_more_than_one_job_gives_to_an_idle_one() -> None:
    table = dispatcher(4, consumers=1)
    jobs = submit(table, 3)
    assign(table)
    assert table.donor() is None  # nobody is idle
    table.add_consumer(2, 0.0)
    assert table.donor() == 1
    table.give_back(1, [jobs[0]])
    assert table.donor() is None  # first what waits
    assert assign(table) == [(2, jobs[0])]
    assert table.donor() is None


def test_the_most_loaded_consumer_gives_first() -> None:
    table = dispatcher(4, consumers=2)
    jobs = submit(table, 5)  # 1: 0 2 4, 2: 1 3
    assign(table)
    table.add_consumer(3, 0.0)
    assert table.donor() == 1
    table.emptied(1)
    assert table.donor() == 2
    table.emptied(2)
    assert table.donor() is None
    table.done(jobs[0], 1, 0.0)
    assert table.donor() is None  # what it has has begun, still


def test_a_consumer_whose_pipe_was_empty_may_give_again_after_it_was_given_more() -> None:
    table = dispatcher(3, consumers=1)
    submit(table, 2)
    assign(table)
    table.emptied(1)
    submit(table, 1)
    assign(table)
    table.add_consumer(2, 0.0)
    assert table.donor() == 1


def test_a_consumer_with_one_job_gives_nothing() -> None:
    table = dispatcher(4, consumers=3)
    submit(table, 2)
    assign(table)
    assert table.donor() is None


# ---- long jobs ----


def test_a_job_that_runs_for_long_is_overdue_if_others_are_behind_it() -> None:
    table = dispatcher(2, consumers=3)
    jobs = submit(table, 4)
    assign(table, now=10.0)  # 1 has two, 2 and 3 have one
    assert table.watched
    assert table.overdue(10.0 + PATIENCE / 2) == []
    assert table.overdue(10.0 + 2 * PATIENCE) == [1]
    table.give_back(1, [jobs[3]])
    assert table.overdue(10.0 + 9 * PATIENCE) == []


def test_patience_begins_again_with_each_result() -> None:
    table = dispatcher(3, consumers=1)
    jobs = submit(table, 3)
    assign(table, now=10.0)
    table.done(jobs[0], 1, 20.0)
    assert table.overdue(20.0 + PATIENCE / 2) == []
    assert table.overdue(20.0 + 2 * PATIENCE) == [1]


def test_patience_begins_with_the_first_job_of_an_idle_consumer() -> None:
    table = dispatcher(2, consumers=1)
    submit(table, 2)
    assign(table, now=100.0)
    assert table.overdue(100.0) == []
    assert table.overdue(100.0 + 2 * PATIENCE) == [1]


def test_nothing_is_watched_when_nothing_waits_behind_another() -> None:
    table = dispatcher(2, consumers=2)
    submit(table, 2)
    assign(table)
    assert not table.watched
    submit(table, 1)
    assign(table)
    assert table.watched
    assert table.overdue(2 * PATIENCE) == [1]
    assert not table.watched  # until it has ended a job


def test_nothing_is_put_behind_a_long_job_until_it_ends() -> None:
    table = dispatcher(2, consumers=2)
    jobs = submit(table, 4)  # 1: 0 2, 2: 1 3
    assign(table, now=0.0)
    table.done(jobs[1], 1, 1.0)
    assert table.overdue(1.0) == [1]
    table.give_back(1, [jobs[2]])
    table.emptied(1)
    assert assign(table, 1.0) == [(2, jobs[2])]
    more = submit(table, 1)
    assert assign(table, 1.0) == []
    assert table.done(jobs[0], 10**6, 2.0) is not None
    assert assign(table, 2.0) == [(1, more[0])]


# ---- consumers come and go ----


def test_a_retiring_consumer_gets_nothing_and_finishes_what_it_has() -> None:
    table = dispatcher(2, consumers=2)
    jobs = submit(table, 3)  # 1: 0 2, 2: 1
    assign(table)
    table.retire_consumer(1)
    assert table.consumers == [2]
    assert not table.is_retired(1)
    table.give_back(1, [jobs[2]])
    more = submit(table, 1)
    assert assign(table) == [(2, jobs[2])]
    assert table.done(jobs[0], 1, 0.0) is not None
    assert table.is_retired(1)
    assert assign(table) == []
    assert table.lose_consumer(1, []) == []
    table.done(jobs[1], 1, 0.0)
    assert assign(table) == [(2, more[0])]


def test_an_idle_consumer_is_retired_at_once_and_takes_nothing_back() -> None:
    table = dispatcher(2, consumers=2)
    assert not table.is_retired(1)
    table.retire_consumer(1)
    assert table.is_retired(1)
    jobs = submit(table, 2)
    assert assign(table) == [(2, job) for job in jobs]
    assert table.donor() is None  # the retired one is not idle


def test_a_new_consumer_gets_what_waits() -> None:
    table = Dispatcher(generation=1, depth=2)
    jobs = submit(table, 3)
    table.add_consumer(7, 0.0)
    assert assign(table) == [(7, jobs[0]), (7, jobs[1])]


def test_what_a_dead_consumer_had_not_begun_goes_ahead_of_the_queue() -> None:
    table = dispatcher(3, consumers=1)
    jobs = submit(table, 5)
    assign(table)  # 0 1 2, of which 2 was in its pipe; 3 and 4 wait
    assert numbers(table.lose_consumer(1, [jobs[2]])) == jobs[:2]
    assert (table.waiting, table.in_flight, table.consumers) == (3, 2, [])
    table.add_consumer(2, 0.0)
    assert assign(table) == [(2, job) for job in jobs[2:]]


def test_a_dead_consumers_last_result_answers_its_job_until_it_is_given_up() -> None:
    table = dispatcher(2, consumers=1)
    came, never = submit(table, 2)
    assign(table)
    assert numbers(table.lose_consumer(1, [])) == [came, never]
    job = table.done(came, 5, 0.0)
    assert job is not None and job.number == came
    assert not table.give_up(came)
    assert table.give_up(never)
    assert not table.give_up(never)
    assert table.done(never, 5, 0.0) is None
    assert table.pending == 0


def test_a_consumer_is_lost_once() -> None:
    table = dispatcher(1, consumers=1)
    (job,) = submit(table, 1)
    assign(table)
    assert numbers(table.lose_consumer(1, [])) == [job]
    assert table.lose_consumer(1, [job]) == []
    assert table.waiting == 0


# ---- a consumer that still runs a job of a front that died ----


def test_an_occupied_consumer_gets_nothing_until_it_is_vacated() -> None:
    table = Dispatcher(generation=2, depth=2)
    table.add_consumer(1, 0.0, occupied=True)
    assert table.consumers == [1]
    assert table.room == 0
    jobs = submit(table, 3)
    assert assign(table) == []
    table.vacate(1)
    assert table.room == 2
    assert assign(table) == [(1, jobs[0]), (1, jobs[1])]


def test_an_occupied_consumer_is_no_idle_one() -> None:
    table = dispatcher(2, consumers=1)
    table.add_consumer(2, 0.0, occupied=True)
    submit(table, 2)
    assign(table)
    assert table.donor() is None
    table.vacate(2)
    assert table.donor() == 1


def test_a_retiring_consumer_is_not_retired_while_it_is_occupied() -> None:
    table = dispatcher(2, consumers=0)
    table.add_consumer(1, 0.0, occupied=True)
    table.retire_consumer(1)
    assert not table.is_retired(1)
    table.vacate(1)
    assert table.is_retired(1)
    submit(table, 1)
    assert assign(table) == []


def test_an_occupied_consumer_that_dies_had_nothing_of_this_front() -> None:
    table = dispatcher(2, consumers=0)
    table.add_consumer(1, 0.0, occupied=True)
    (job,) = submit(table, 1)
    assert table.lose_consumer(1, [5]) == []
    table.vacate(1)  # found out too late
    table.add_consumer(2, 0.0)
    assert assign(table) == [(2, job)]


# ---- what nobody wants any more, and where a job is ----


def test_a_job_that_waits_can_be_dropped_once() -> None:
    table = dispatcher(1, consumers=1)
    jobs = [table.submit(bytes(10), None, 0.0) for _ in range(4)]
    assert table.drop(jobs[1])
    assert not table.drop(jobs[1])
    assert (table.waiting, table.waiting_bytes, table.pending) == (3, 30, 3)
    assert assign(table) == [(1, jobs[0].number)]
    table.done(jobs[0].number, 1, 0.0)
    assert assign(table) == [(1, jobs[2].number)]


def test_a_job_that_was_taken_back_can_be_dropped() -> None:
    table = dispatcher(4, consumers=1)
    jobs = [table.submit(bytes(10), None, float(n)) for n in range(4)]
    assign(table)
    assert not table.drop(jobs[2])  # it is with a consumer
    table.give_back(1, numbers(jobs[1:]))
    assert table.drop(jobs[1])
    assert table.drop(jobs[3])
    assert (table.waiting, table.waiting_bytes, table.oldest) == (1, 10, 2.0)
    assert assign(table) == [(1, jobs[2].number)]


def test_the_last_of_many_that_are_dropped_leaves_nothing() -> None:
    table = dispatcher(1, consumers=0)
    jobs = [table.submit(bytes(3), None, 0.0) for _ in range(100)]
    assert all(table.drop(job) for job in reversed(jobs))
    assert (table.waiting, table.waiting_bytes, table.pending, table.oldest) == (0, 0, 0, None)
    table.add_consumer(1, 0.0)
    assert assign(table) == []


def test_a_job_that_is_answered_given_up_or_expired_cannot_be_dropped() -> None:
    table = dispatcher(1, consumers=1)
    answered, given_up, expired = (table.submit(b"", None, 0.0) for _ in range(3))
    assign(table)
    table.done(answered.number, 1, 0.0)
    assign(table)
    table.lose_consumer(1, [])
    assert not table.drop(given_up)
    table.give_up(given_up.number)
    table.expire(1.0)
    assert not any(table.drop(each) for each in (answered, given_up, expired))
    assert table.pending == 0


def test_a_job_is_found_while_a_result_of_it_may_come() -> None:
    table = dispatcher(2, consumers=1)
    job = table.submit(b"", None, 0.0)
    assert (table.find(job.number), table.holder(job.number)) == (None, None)
    assign(table)
    assert (table.find(job.number), table.holder(job.number)) == (job, 1)
    table.give_back(1, [job.number])
    assert (table.find(job.number), table.holder(job.number)) == (None, None)
    assign(table)
    table.lose_consumer(1, [])
    assert (table.find(job.number), table.holder(job.number)) == (job, None)
    table.done(job.number, 1, 0.0)
    assert (table.find(job.number), table.holder(job.number)) == (None, None)
    assert (table.find(99), table.holder(99)) == (None, None)


def test_a_consumers_jobs_are_listed_the_oldest_first() -> None:
    table = dispatcher(3, consumers=2)
    jobs = submit(table, 6)
    assign(table)
    assert table.numbers(1) == jobs[0::2]
    table.done(jobs[2], 1, 0.0)
    assert table.numbers(1) == [jobs[0], jobs[4]]
    assert table.numbers(9) == []


def test_a_job_keeps_its_clients_name_for_it() -> None:
    table = dispatcher(1, consumers=1)
    job = table.submit(b"", None, 0.0, tag=77)
    assert (job.tag, job.streamed) == (77, False)
    assert job.deadline > 1e300


# ---- how much waits, and for how long ----


def test_the_bytes_that_wait_are_those_that_no_consumer_has() -> None:
    table = dispatcher(2, consumers=1)
    assert table.waiting_bytes == 0
    jobs = [submit(table, 1, size=size)[0] for size in (1, 20, 300, 4000)]
    assert table.waiting_bytes == 4321
    assign(table)
    assert table.waiting_bytes == 4300
    table.give_back(1, [jobs[1]])
    assert table.waiting_bytes == 4320
    table.give_back(1, [jobs[1]])
    assert table.waiting_bytes == 4320
    (begun,) = table.lose_consumer(1, [])
    assert table.waiting_bytes == 4320
    assert table.give_up(begun.number)
    table.retry(begun)
    assert table.waiting_bytes == 4321
    table.expire(before=1.0)
    assert table.waiting_bytes == 0


def test_there_is_room_for_as_many_jobs_as_consumers_would_be_given_at_once() -> None:
    table = dispatcher(2, consumers=0)
    assert table.room == 0
    table.add_consumer(1, 0.0)
    assert table.room == 2
    table.add_consumer(2, 0.0)
    assert table.room == 4
    jobs = submit(table, 3)
    assert table.room == 4  # nobody was given any
    assign(table)
    assert table.room == 1
    table.done(jobs[0], 1, 0.0)
    assert table.room == 2
    table.retire_consumer(1)
    assert table.room == 1
    submit(table, 2)
    assign(table)
    assert (table.room, table.waiting) == (0, 1)


def test_those_that_waited_too_long_expire_the_oldest_first() -> None:
    table = dispatcher(2, consumers=1)
    jobs = [submit(table, 1, now=float(second))[0] for second in range(5)]
    assert table.oldest == 0.0
    assign(table)
    assert table.oldest == 2.0
    table.give_back(1, [jobs[1]])
    assert table.oldest == 1.0
    assert table.expire(before=1.0) == []
    assert numbers(table.expire(before=3.5)) == jobs[1:4]
    assert (table.waiting, table.in_flight, table.oldest) == (1, 1, 4.0)
    assert numbers(table.expire(before=99.0)) == jobs[4:]
    assert table.oldest is None
    assert table.done(jobs[0], 1, 99.0) is not None  # what a consumer has does not expire


def test_a_job_that_is_tried_again_goes_ahead_of_the_queue_and_counts_its_tries() -> None:
    table = dispatcher(1, consumers=1)
    jobs = submit(table, 2)
    for tries in (1, 2, 3):
        assert assign(table) == [(tries, jobs[0])]
        (job,) = table.lose_consumer(tries, [])
        assert table.give_up(job.number)
        table.retry(job)
        assert job.tries == tries
        table.add_consumer(tries + 1, 0.0)
    assert assign(table) == [(4, jobs[0])]
    assert table.done(jobs[0], 1, 0.0) is job
    assert assign(table) == [(4, jobs[1])]


def test_a_late_result_of_an_earlier_try_answers_nobody_while_the_job_waits() -> None:
    table = dispatcher(1, consumers=1)
    (number,) = submit(table, 1)
    assign(table)
    (job,) = table.lose_consumer(1, [])
    table.give_up(number)
    table.retry(job)
    assert table.done(number, 1, 0.0) is None
    assert table.waiting == 1


def test_a_job_that_is_abandoned_is_with_nobody() -> None:
    table = dispatcher(1, consumers=1)
    jobs = submit(table, 2)
    assign(table)
    table.abandon(jobs[0])
    table.abandon(jobs[0])
    assert (table.waiting, table.in_flight) == (1, 0)
    assert assign(table) == [(1, jobs[1])]
    assert table.done(jobs[0], 1, 0.0) is None


def test_a_retiring_consumer_whose_last_job_is_abandoned_is_retired() -> None:
    table = dispatcher(1, consumers=1)
    jobs = submit(table, 1)
    assign(table)
    table.retire_consumer(1)
    assert not table.is_retired(1)
    table.abandon(jobs[0])
    assert table.is_retired(1)


# ---- depth ----


def run(table: Dispatcher, ran: int, times: int) -> None:
    for _ in range(times):
        submit(table, 1)
        for _, number in assign(table):
            table.done(number, ran, 0.0)


@pytest.mark.parametrize(
    ("ran", "depth"),
    [
        (0, MAX_AUTO_DEPTH),
        (1, MAX_AUTO_DEPTH),
        (int(AUTO_WORK / 4), 5),  # one runs, four are behind it
        (int(AUTO_WORK) * 2, MIN_AUTO_DEPTH),
        (2**32 - 1, MIN_AUTO_DEPTH),
    ],
)
def test_automatic_depth_follows_how_long_jobs_run(ran: int, depth: int) -> None:
    table = dispatcher(0, consumers=1)
    assert table.depth == MIN_AUTO_DEPTH
    run(table, ran, times=500)
    assert table.depth == pytest.approx(depth, abs=1 if ran == int(AUTO_WORK / 4) else 0)
    submit(table, MAX_AUTO_DEPTH + 4)
    assert len(assign(table)) == table.depth


def test_automatic_depth_comes_back_from_one_very_long_job() -> None:
    table = dispatcher(0, consumers=1)
    run(table, 2**32 - 1, times=1)
    run(table, 1, times=1000)
    assert table.depth == MAX_AUTO_DEPTH


def test_a_consumer_with_more_than_a_shrunken_depth_gets_nothing() -> None:
    table = dispatcher(0, consumers=1)
    run(table, 1, times=500)
    jobs = submit(table, MAX_AUTO_DEPTH + 1)
    assign(table)
    table.done(jobs[0], 2**32 - 1, 0.0)
    assert table.depth == MIN_AUTO_DEPTH
    assert assign(table) == []
    for job in jobs[1:-MIN_AUTO_DEPTH]:
        assert table.waiting == 1
        table.done(job, 2**32 - 1, 0.0)
        assign(table)
    assert table.waiting == 0


@pytest.mark.parametrize("ran", [0, 10**7])
def test_a_given_depth_stays(ran: int) -> None:
    table = dispatcher(3, consumers=1)
    run(table, ran, times=200)
    assert table.depth == 3


# ---- all of it ----


class FakeConsumer:
    """A consumer with its claim pipe, as the kernel and the process keep them."""

    def __init__(self) -> None:
        self.pipe: deque[int] = deque()  # unbegun
        self.running = 0
        self.results: deque[int] = deque()  # ended, on their way to the front
        self.retiring = False
        self.occupied = False  # by a job of a front that died
        self.long = False  # found overdue, and no result since

    @property
    def has(self) -> int:
        """Count what the front thinks it holds."""
        return len(self.pipe) + bool(self.running) + len(self.results)

    @property
    def may_get(self) -> bool:
        """True unless it is closed to jobs, however few it holds."""
        return not (self.retiring or self.occupied or (self.long and self.has))


class Machine(RuleBasedStateMachine):
    """Plays a front, its consumers and their deaths, and keeps its own books of where each job is."""

    names = Bundle("names")

    @initialize(depth=st.sampled_from([0, 1, 2, 3, 8, 20]))
    def begin(self, depth: int) -> None:
        self.table = Dispatcher(generation=5, depth=depth)
        self.most = depth or MAX_AUTO_DEPTH
        self.now = 0.0
        self.next = 1
        self.consumers: dict[int, FakeConsumer] = {}
        self.queue: deque[int] = deque()  # waiting, never given
        self.again: list[int] = []  # waiting, taken back
        self.lost: set[int] = set()  # begun by a dead one
        self.late: set[int] = set()  # of these, those whose result is on its way
        self.begun: set[int] = set()
        self.ended: set[int] = set()  # answered or given up
        self.submitted: set[int] = set()
        self.jobs: dict[int, Job] = {}  # what is not answered
        self.gone: set[int] = set()  # those whose client is gone

    # what the front does after everything that happens, as front._pump

    def pump(self) -> None:
        self.deal()
        steps = 0
        while (donor := self.table.donor()) is not None:
            pipe = self.consumers[donor].pipe
            if pipe:
                self.back(donor, [pipe.popleft()])
            else:
                self.table.emptied(donor)
            self.deal()
            steps += 1
            assert steps <= 2 * len(self.submitted) + len(self.consumers), "this never ends"

    def deal(self) -> None:
        while pairs := self.table.assign(self.now):
            unsent = []
            for number, job in pairs:
                expected = min(self.again) if self.again else self.queue[0]
                assert job.number == expected, "neither the oldest of those taken back nor the head of the queue"
                self.again.remove(expected) if self.again else self.queue.popleft()
                consumer = self.consumers[number]
                assert consumer.may_get
                assert consumer.has == min(each.has for each in self.consumers.values() if each.may_get) < self.most
                consumer.pipe.append(expected)
                if expected in self.gone:
                    unsent.append((consumer, expected))
            for consumer, number in unsent:
                consumer.pipe.remove(number)
                self.table.abandon(number)
                self.ended.add(number)

    def back(self, number: int, taken: list[int]) -> None:
        self.again += taken
        self.table.give_back(number, taken)

    def drain(self, number: int) -> list[int]:
        taken = list(self.consumers[number].pipe)
        self.consumers[number].pipe.clear()
        return taken

    def answered(self, number: int, job: Job | None) -> None:
        assert job is not None and job.number == number, "a result that answers nobody"
        self.ended.add(number)

    # what happens

    @rule(count=st.integers(1, 6), size=st.integers(0, 1000))
    def submit(self, count: int, size: int) -> None:
        for _ in range(count):
            job = self.table.submit(bytes(size), None, self.now)
            assert job.number not in self.submitted
            self.submitted.add(job.number)
            self.jobs[job.number] = job
            self.queue.append(job.number)
        self.pump()

    @rule(target=names, occupied=st.booleans())
    def consumer_comes(self, occupied: bool) -> int:
        number, self.next = self.next, self.next + 1
        self.consumers[number] = FakeConsumer()
        self.consumers[number].occupied = occupied
        self.table.add_consumer(number, self.now, occupied=occupied)
        self.pump()
        return number

    @rule(name=names)
    def consumer_is_vacated(self, name: int) -> None:
        if name in self.consumers:
            self.consumers[name].occupied = False
        self.table.vacate(name)
        self.pump()

    @rule(data=st.data())
    def client_goes(self, data: st.DataObject) -> None:
        if waiting := [*self.queue, *self.again]:
            self.gone.add(data.draw(st.sampled_from(waiting)))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def client_cancels(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.jobs)))
        waits = number in self.queue or number in self.again
        assert self.table.drop(self.jobs[number]) == waits
        if waits:
            self.queue = deque(each for each in self.queue if each != number)
            self.again = [each for each in self.again if each != number]
            self.ended.add(number)
        self.pump()

    @rule(age=st.sampled_from([0.0, PATIENCE, 5.0]))
    def those_that_waited_too_long_expire(self, age: float) -> None:
        before = self.now - age
        expired = numbers(self.table.expire(before))
        assert expired == sorted(each for each in (*self.queue, *self.again) if self.jobs[each].arrived < before)
        self.queue = deque(each for each in self.queue if each not in expired)
        self.again = [each for each in self.again if each not in expired]
        self.ended |= set(expired)

    @rule(name=names)
    def job_begins(self, name: int) -> None:
        consumer = self.consumers.get(name)
        if consumer and consumer.pipe and not consumer.running:
            consumer.running = consumer.pipe.popleft()
            assert consumer.running not in self.begun, "begun twice"
            self.begun.add(consumer.running)

    @rule(name=names)
    def job_ends(self, name: int) -> None:
        consumer = self.consumers.get(name)
        if consumer and consumer.running:
            consumer.results.append(consumer.running)
            consumer.running = 0

    @rule(name=names, ran=st.sampled_from([0, 10, 300, 10**6]))
    def result_comes(self, name: int, ran: int) -> None:
        consumer = self.consumers.get(name)
        if consumer and consumer.results:
            number = consumer.results.popleft()
            self.answered(number, self.table.done(number, ran, self.now))
            consumer.long = False
            self.pump()

    @rule(seconds=st.sampled_from([0.0, PATIENCE / 2, PATIENCE * 1.01, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for number in self.table.overdue(self.now):
            assert self.consumers[number].has > 1
            self.consumers[number].long = True
            self.back(number, self.drain(number))
            self.table.emptied(number)
        if seconds > PATIENCE:
            behind = [each for each in self.consumers.values() if each.pipe and each.has > 1]
            assert not behind, "behind a job for longer than patience"
            assert not self.table.watched
        self.pump()

    @rule(name=names)
    def consumer_retires(self, name: int) -> None:
        if name in self.consumers:
            self.consumers[name].retiring = True
            self.table.retire_consumer(name)
            self.back(name, self.drain(name))
            self.pump()

    @rule(name=consumes(names), behind=st.booleans())
    def consumer_dies(self, name: int, behind: bool) -> None:
        unbegun = self.drain(name)
        consumer = self.consumers.pop(name)
        self.again += unbegun
        lost = {*consumer.results, *filter(None, [consumer.running])}
        found = numbers(self.table.lose_consumer(name, unbegun))
        assert set(found) == lost and found == sorted(found)
        self.lost |= lost
        self.late |= set(consumer.results)
        self.pump()

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def late_result_comes(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.late)))
        self.late.remove(number)
        job = self.table.done(number, 5, self.now)
        if number in self.lost:
            self.lost.remove(number)
            self.answered(number, job)
        else:
            assert job is None, "a job that was given up is answered"

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), again=st.booleans())
    def lost_job_is_given_up(self, data: st.DataObject, again: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.lost)))
        self.lost.remove(number)
        assert self.table.give_up(number)
        assert not self.table.give_up(number)
        if again and number not in self.late:
            self.begun.remove(number)
            self.again.append(number)
            self.table.retry(self.jobs[number])
            self.pump()
        else:
            self.ended.add(number)

    # what is always so

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        places: list[int] = [*self.queue, *self.again, *self.lost, *self.ended]
        for each in self.consumers.values():
            places += [*each.pipe, *filter(None, [each.running]), *each.results]
        assert sorted(places) == sorted(self.submitted)

    @invariant()
    def the_tables_count_as_the_books_do(self) -> None:
        held = sum(each.has for each in self.consumers.values())
        assert self.table.waiting == len(self.queue) + len(self.again)
        assert self.table.in_flight == held + len(self.lost)
        assert self.table.pending == len(self.submitted) - len(self.ended)
        assert self.table.consumers == [number for number, each in self.consumers.items() if not each.retiring]
        waiting = [self.jobs[number] for number in (*self.queue, *self.again)]
        assert self.table.waiting_bytes == sum(len(job.payload) for job in waiting)
        assert self.table.oldest == min((job.arrived for job in waiting), default=None)

    @invariant()
    def each_job_is_found_where_it_is(self) -> None:
        for name, each in self.consumers.items():
            held = sorted([*each.pipe, *filter(None, [each.running]), *each.results])
            assert sorted(self.table.numbers(name)) == held
            for number in held:
                assert (self.table.find(number), self.table.holder(number)) == (self.jobs[number], name)
        for number in self.lost:
            assert (self.table.find(number), self.table.holder(number)) == (self.jobs[number], None)
        for number in (*self.queue, *self.again, *self.ended):
            assert (self.table.find(number), self.table.holder(number)) == (None, None)

    @invariant()
    def no_consumer_has_more_than_it_may(self) -> None:
        assert all(each.has <= self.most for each in self.consumers.values())

    @invariant()
    def nothing_waits_beside_an_idle_consumer(self) -> None:
        if any(not each.has and each.may_get for each in self.consumers.values()):
            assert self.table.waiting == 0
            assert all(not each.pipe or each.has == 1 for each in self.consumers.values())

    @invariant()
    def what_can_be_given_is_given(self) -> None:
        room = sum(max(0, self.table.depth - each.has) for each in self.consumers.values() if each.may_get)
        assert self.table.room == room
        assert not room or self.table.waiting == 0

    @invariant()
    def retired_is_who_retires_and_holds_nothing(self) -> None:
        for number, each in self.consumers.items():
            assert self.table.is_retired(number) == (each.retiring and not each.has and not each.occupied)

    def teardown(self) -> None:
        """Let everything end: then each job is answered or given up."""
        if not hasattr(self, "table"):
            return
        self.consumer_comes(occupied=False)
        while any(each.has for each in self.consumers.values()):
            for name in list(self.consumers):
                self.job_ends(name)
                self.result_comes(name, 10)
                self.job_begins(name)
        for number in list(self.lost):
            assert self.table.give_up(number)
            self.ended.add(number)
        assert self.ended == self.submitted
        assert self.table.pending == 0


TestDispatcher = Machine.TestCase
TestDispatcher.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# ---- long ones step aside ----


def test_all_step_aside_when_each_has_run_for_longer_than_patience_while_others_wait() -> None:
    table = Dispatcher(1, depth=1)
    for number in (1, 2):
        table.add_consumer(number, 0.0)
    submit(table, 2)
    table.assign(1.0)
    assert table.patience_ends(0.02) is None, "nobody waits"
    submit(table, 2)
    assert table.patience_ends(0.02) == 1.02
    assert table.to_step_aside(1.01, 0.02) == []
    assert table.to_step_aside(1.03, 0.02) == [1, 2]


def test_no_more_step_aside_than_requests_wait_the_longest_first() -> None:
    table = Dispatcher(1, depth=1)
    table.add_consumer(1, 0.0)
    submit(table, 1)
    table.assign(1.0)
    table.add_consumer(2, 0.0)
    submit(table, 1)
    table.assign(0.5)
    submit(table, 1)
    assert table.to_step_aside(2.0, 0.02) == [2]


def test_none_steps_aside_while_one_is_about_to_be_free() -> None:
    table = Dispatcher(1, depth=1)
    for number in (1, 2):
        table.add_consumer(number, 0.0)
    jobs = [table.submit(b"", None, 0.0) for _ in range(4)]
    table.assign(0.0)
    table.done(jobs[0].number, 10, 1.0)
    table.assign(1.0)
    assert table.to_step_aside(1.01, 0.02) == []
    assert table.patience_ends(0.02) == 1.02


def test_none_steps_aside_while_one_is_idle_retiring_or_another_fronts() -> None:
    table = Dispatcher(1, depth=1)
    table.add_consumer(1, 0.0)
    table.add_consumer(2, 0.0, occupied=True)
    table.add_consumer(3, 0.0)
    table.retire_consumer(3)
    submit(table, 2)
    table.assign(0.0)
    assert table.to_step_aside(1.0, 0.02) == [1]
    table.vacate(2)
    assert table.to_step_aside(1.0, 0.02) == []
