"""Reads every limit from numbers and from text, and counts the CPUs of real processes."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar import limits
from gaspar.errors import LimitError
from gaspar.limits import AUTO_DEPTH, MAX_PROCESSES, MAX_WIRE_MESSAGE, Limits, available_cpus
from gaspar.process import Lifeline, fork
from gaspar.wire import Kind

SECONDS = ["read_timeout", "write_timeout", "grace"]
COUNTS = {"processes": (1, MAX_PROCESSES), "depth": (1, 64)}


# ---- what is taken ----


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (65536, 65536),
        ("65536", 65536),
        ("64K", 2**16),
        ("64k", 2**16),
        ("64KB", 2**16),
        ("64KiB", 2**16),
        (" 64 M ", 2**26),
        ("1023m", 1023 * 2**20),
        (MAX_WIRE_MESSAGE, MAX_WIRE_MESSAGE),
        (str(MAX_WIRE_MESSAGE), MAX_WIRE_MESSAGE),
    ],
)
def test_a_size_is_a_number_or_text_with_a_unit(value: object, size: int) -> None:
    assert Limits(max_message=value).max_message == size


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(("value", "seconds"), [(30, 30.0), (0.5, 0.5), ("0.5", 0.5), ("1e3", 1000.0), (1e8, 1e8)])
def test_seconds_are_a_number_or_text(name: str, value: object, seconds: float) -> None:
    found = getattr(Limits(**{name: value}), name)
    assert found == seconds
    assert type(found) is float


def test_a_grace_of_no_seconds_is_a_grace() -> None:
    assert Limits(grace=0).grace == 0.0


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_in_its_range(name: str) -> None:
    for count in (*COUNTS[name], 3):
        for value in (count, str(count), f" {count} "):
            assert getattr(Limits(**{name: value}), name) == count


@pytest.mark.parametrize("auto", ["auto", None])
def test_auto_is_the_cpus_and_a_depth_that_follows_the_jobs(auto: object) -> None:
    found = Limits(processes=auto, depth=auto)
    assert found.processes == available_cpus()
    assert found.depth == AUTO_DEPTH


def test_a_default_is_read_like_a_given_value() -> None:
    assert Limits() == Limits(
        processes="auto", depth="auto", max_message="64M", read_timeout="30", write_timeout="30", grace="30"
    )


def test_limits_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().grace = 1.0  # type: ignore[misc]


def test_each_limit_says_what_it_means_to_the_commands_help() -> None:
    assert limits.names() == [each.name for each in dataclasses.fields(Limits)]
    for each in dataclasses.fields(Limits):
        assert each.metadata["meaning"]
        assert each.metadata["metavar"].isupper() or each.metadata["metavar"] == "N|auto"


# ---- what is refused, and how ----

NO_SIZES = ["", "K", "1.5M", "-1", "64T", "6 4M", "1e6", 1.5, True, None, b"64M", "9" * 16]
NO_SECONDS = ["", "x", "nan", "inf", "-1", -0.1, float("nan"), float("inf"), 1e8 + 1, "1e10", True, None, b"3"]
NO_COUNTS = ["", "x", 0, "0", -1, "-1", "+1", 1.0, "1.0", True, 10**9, "1" * 10, "Auto", b"1", "٣"]

BAD = [
    *[("max_message", value, "a size like 65536, 64K, 64M or 1G") for value in NO_SIZES],
    *[("max_message", value, f"1 to {MAX_WIRE_MESSAGE} bytes") for value in (0, "0", -1, MAX_WIRE_MESSAGE + 1, "1G")],
    *[(name, value, "seconds") for name in SECONDS for value in NO_SECONDS],
    *[(name, value, "more than 0 seconds") for name in ("read_timeout", "write_timeout") for value in (0, "0", -0.0)],
    *[
        (name, value, f"a whole number from {low} to {high} or auto")
        for name, (low, high) in COUNTS.items()
        for value in (*NO_COUNTS, high + 1, str(high + 1))
    ],
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_an_error_names_the_limit_its_option_its_value_and_what_is_right(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(LimitError) as caught:
        Limits(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} (--{name.replace('_', '-')}) is {value!r}: expected ")
    assert expected in message
    assert "\n" not in message


@given(st.text(max_size=12), st.sampled_from(limits.names()))
def test_any_text_is_a_value_or_a_limit_error(text: str, name: str) -> None:
    try:
        value = getattr(Limits(**{name: text}), name)
    except LimitError:
        return
    assert value >= 0


# ---- CPUs ----


def cpus_in_a_child(prepare: Callable[[], object]) -> int:
    def main(lifeline: Lifeline) -> int:
        prepare()
        lifeline.send(Kind.READY, cpus=available_cpus())
        return 0

    child = fork(main, "test:cpus")
    assert child.lifeline.wait(60.0)
    records = child.lifeline.recv()
    os.waitpid(child.pid, 0)
    child.lifeline.close()
    assert records is not None
    return int(records[0].fields["cpus"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this kernel has no affinity")
def test_no_more_cpus_are_counted_than_the_affinity_allows() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for count in range(1, len(allowed) + 1):
        cpus = cpus_in_a_child(lambda count=count: os.sched_setaffinity(0, allowed[:count]))
        assert cpus == min(count, available_cpus())


def test_there_is_at_least_one_cpu() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": ""}, 0),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.cfs_quota_us": "50000\n"}, 0),
    ],
)
def test_a_cgroups_quota_is_read_as_the_kernel_writes_it(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert limits._cpu_quota(str(tmp_path)) == cpus


def test_a_cgroup_that_is_not_there_sets_no_quota(tmp_path: Path) -> None:
    assert limits._cpu_quota(str(tmp_path / "gone")) == 0
