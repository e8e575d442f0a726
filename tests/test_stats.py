"""The front's counts: buckets, quantiles, the last minute, the last seconds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar.errors import Code
from gaspar.stats import OK, OUTCOMES, SECONDS, Distribution, Stats, Times, bucket, upper_bound

MICROS = st.integers(0, 2**32 - 1)


@given(MICROS)
def test_a_time_is_in_its_bucket_which_is_a_quarter_wide_at_most(micros: int) -> None:
    number = bucket(micros)
    below, above = (upper_bound(number - 1) if number else 0.0), upper_bound(number)
    assert round(below * 1e6) <= micros < round(above * 1e6)
    assert round((above - below) * 1e6) <= max(1, micros / 4)


def test_buckets_follow_one_another() -> None:
    bounds = [upper_bound(number) for number in range(bucket(2**32 - 1) + 1)]
    assert bounds == sorted(set(bounds))
    assert [bucket(micros) for micros in range(12)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9]


@given(st.lists(MICROS, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_what_so_many_are_below_and_a_quarter_too_long_at_most(times: list[int], share: float) -> None:
    found = Distribution()
    found.add(times)
    exact = sorted(times)[math.ceil(len(times) * share) - 1] / 1e6
    quantile = found.quantile(share)
    assert quantile is not None
    assert exact <= quantile + 1e-12
    assert quantile <= exact * 1.25 + 1.1e-6


@given(st.lists(MICROS), st.lists(MICROS))
def test_distributions_put_together_are_as_if_all_had_come_to_one(one: list[int], other: list[int]) -> None:
    first, second, both = Distribution(), Distribution(), Distribution()
    first.add(one)
    second.add(other)
    first.merge(second)
    both.add(one + other)
    assert first.describe() == both.describe()


def test_nothing_has_no_quantiles() -> None:
    told = Distribution().describe()
    assert told == {"count": 0, "sum": 0.0, "p50": None, "p90": None, "p99": None, "max": None, "buckets": []}


def test_the_last_minute_forgets_what_is_older_and_the_start_does_not() -> None:
    times = Times()
    times.add([7])
    for _ in range(12):
        times.turn()
    assert times.minute().count == 1
    times.turn()
    assert times.minute().count == 0
    assert times.start.count == 1


def test_results_are_counted_by_their_times_and_their_errors() -> None:
    stats = Stats(0.0)
    stats.waits += [1, 2, 3]
    stats.runs += [4, 5, 6]
    stats.count_result(Code.HANDLER_ERROR)
    stats.count(Code.OVERLOADED)
    stats.fold()
    stats.fold()
    wanted = dict.fromkeys(OUTCOMES, 0) | {OK: 2, "handler_error": 1, "overloaded": 1}
    assert stats.outcomes == wanted
    assert (stats.wait.start.sum, stats.run.start.sum) == (6, 15)
    assert (stats.waits, stats.runs) == ([], [])


def test_history_has_a_figure_for_each_of_the_last_seconds() -> None:
    stats = Stats(0.0)
    stats.waits += [1] * 5
    stats.count(Code.TIMEOUT)
    stats.tick(1.0, waiting=3)
    stats.waits += [1]
    stats.tick(2.0, waiting=0)
    history = stats.history()
    assert [len(each) for each in history.values()] == [SECONDS] * 3
    assert (history["answered"][-2:], history["failed"][-2:], history["waiting"][-2:]) == ([5, 1], [1, 0], [3, 0])


def test_lag_is_by_how_much_a_second_was_late_and_the_worst_is_kept_for_a_minute() -> None:
    stats = Stats(0.0)
    stats.tick(1.25, waiting=0)
    assert stats.lag == stats.lag_max == pytest.approx(0.25)
    for _ in range(SECONDS - 1):
        stats.tick(stats.due, waiting=0)
    assert (stats.lag, stats.lag_max) == (0.0, pytest.approx(0.25))
    stats.tick(stats.due, waiting=0)
    assert stats.lag_max == 0.0
