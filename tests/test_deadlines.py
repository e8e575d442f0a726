"""Passes time by some deadlines by hand, then by many against a plain list."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from gaspar.deadlines import Deadlines
from gaspar.dispatch import Dispatcher, Job

CLIENT = object()
TABLE = Dispatcher(generation=1)


def job(deadline: float) -> Job:
    """Make a job that somebody waits for until then."""
    made = TABLE.submit(b"", CLIENT, 0.0)
    made.deadline = deadline
    return made


def test_without_deadlines_there_is_nothing_to_look_at() -> None:
    deadlines = Deadlines()
    assert len(deadlines) == 0
    assert deadlines.first is None
    assert deadlines.passed(math.inf) == []


def test_only_a_deadline_before_all_others_changes_when_to_look() -> None:
    deadlines = Deadlines()
    assert deadlines.add(job(5.0))
    assert not deadlines.add(job(6.0))
    assert deadlines.add(job(4.0))
    assert not deadlines.add(job(4.0))  # whoever looks at the first sees this one too
    assert deadlines.first == 4.0


def test_a_deadline_has_passed_when_its_time_has_come_and_not_before() -> None:
    deadlines = Deadlines()
    jobs = {at: job(at) for at in (3.0, 1.0, 2.0)}
    for each in jobs.values():
        deadlines.add(each)
    assert deadlines.passed(0.999) == []
    assert deadlines.passed(2.0) == [jobs[1.0], jobs[2.0]]
    assert deadlines.first == 3.0
    assert deadlines.passed(2.0) == []
    assert deadlines.passed(9.0) == [jobs[3.0]]
    assert deadlines.first is None


def test_jobs_of_the_same_deadline_come_in_order_of_age() -> None:
    deadlines = Deadlines()
    jobs = [job(1.0) for _ in range(10)]
    for each in reversed(jobs):
        deadlines.add(each)
    assert deadlines.passed(1.0) == jobs


def test_what_was_answered_is_never_late() -> None:
    deadlines = Deadlines()
    answered, waited_for = job(1.0), job(1.0)
    deadlines.add(answered)
    deadlines.add(waited_for)
    answered.client = None
    assert deadlines.passed(1.0) == [waited_for]


def test_what_was_answered_is_forgotten_though_its_deadline_is_far_away() -> None:
    deadlines = Deadlines()
    kept = [job(1e6 + n) for n in range(100)]
    for each in kept:
        deadlines.add(each)
    most = 0
    for _ in range(20_000):
        done = job(1e9)
        deadlines.add(done)
        done.client = None
        most = max(most, len(deadlines))
    assert most <= 2 * (len(kept) + 1) + 1024
    assert deadlines.passed(1e8) == kept


def test_jobs_that_all_wait_are_all_kept() -> None:
    deadlines = Deadlines()
    kept = [job(float(n % 7)) for n in range(10_000)]
    for each in kept:
        deadlines.add(each)
    assert len(deadlines) == 10_000
    assert sorted(deadlines.passed(7.0)) == kept


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.floats(0, 100)),
            st.tuples(st.just("answer"), st.integers(0, 50)),
            st.tuples(st.just("pass"), st.floats(0, 20)),
        ),
        max_size=60,
    )
)
def test_any_course_of_events_is_as_by_a_plain_list(events: list[tuple[str, float]]) -> None:
    deadlines, now = Deadlines(), 0.0
    waiting: list[Job] = []
    for what, value in events:
        if what == "add":
            made = job(now + value)
            before = deadlines.first
            if not deadlines.add(made):
                assert before is not None and before <= made.deadline
            waiting.append(made)
        elif what == "answer" and int(value) < len(waiting):
            waiting.pop(int(value)).client = None
        elif what == "pass":
            now += value
            late = [each for each in waiting if each.deadline <= now]
            assert deadlines.passed(now) == sorted(late, key=lambda each: (each.deadline, each.number))
            waiting = [each for each in waiting if each.deadline > now]
        if waiting:
            assert deadlines.first is not None
            assert deadlines.first <= min(each.deadline for each in waiting)
