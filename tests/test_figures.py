"""The numbers and bars of `gaspar-top`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar.figures import bar, bars, columns, count, duration, percent, printable, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (-0.5, "0 s"),  # two clocks
        (4.2e-6, "4.2 µs"),
        (0.00012, "120 µs"),
        (0.0009994, "999 µs"),
        (0.0009996, "1.0 ms"),
        (0.00996, "10 ms"),
        (0.9996, "1.0 s"),
        (12.4, "12 s"),
        (119.4, "119 s"),
        (119.6, "2.0 min"),
        (7199, "2.0 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 d"),
    ],
)
def test_a_time_has_two_or_three_digits_and_its_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e9))
def test_a_time_fits_its_column(seconds: float) -> None:
    assert len(duration(seconds)) <= 7


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (18300, "18,300"), (9_999_999, "9,999,999"), (12_345_678, "12.3 M"), (2.5e10, "25.0 G")],
)
def test_a_count_has_its_thousands_apart(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (29 * 2**20, "29 MiB"), (2**60, "1024 PiB")],
)
def test_a_size_has_the_unit_that_fits(number: float | None, text: str) -> None:
    assert size(number) == text


def test_a_share_is_told_in_percent() -> None:
    assert (percent(None), percent(0), percent(0.934)) == ("-", "0 %", "93 %")


def test_what_could_steer_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[31m\n\x7fü") == "a\\x1b[31m\\x0a\\x7fü"


@pytest.mark.parametrize(
    ("share", "drawn"), [(None, "    "), (0, "    "), (0.25, "█   "), (0.375, "█▌  "), (1, "████"), (1.7, "████")]
)
def test_a_bar_is_as_long_as_its_share(share: float | None, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_bars_are_as_high_as_the_largest_lets_them() -> None:
    assert bars([0, 1, 4, 8], 1) == [" ▁▄█"]
    assert bars([0, 1, 8, 16], 2) == ["   █", " ▁██"]
    assert bars([], 2) == ["", ""]
    assert bars([0, 0], 1) == ["  "]


def test_the_smallest_value_is_seen_beside_the_largest() -> None:
    assert bars([1, 10**9], 1) == ["▁█"]


@given(st.lists(st.tuples(st.floats(min_value=1e-9, max_value=1e6), st.integers(1, 10**9)), max_size=20))
def test_columns_hold_all_that_the_buckets_do(buckets: list[tuple[float, int]]) -> None:
    found = columns(buckets, 1e-6, 8, 4)
    assert len(found) == 32
    assert math.isclose(sum(found), sum(number for _, number in buckets), abs_tol=1e-6)


def test_equally_full_buckets_make_even_columns() -> None:
    buckets = [(1e-6 * 2 ** (each / 4), 100) for each in range(110)]
    found = columns(buckets, 1e-6, 8, 5)[1:39]
    assert max(found) == pytest.approx(min(found))


def test_what_is_beyond_the_axis_is_in_its_outermost_columns() -> None:
    assert columns([(1e-9, 3), (1e9, 4)], 1e-6, 8, 1) == pytest.approx([3, 0, 0, 0, 0, 0, 0, 4])
