"""What `gaspar-top` draws, from answers to lines of text."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

pytest.importorskip("rich")

from rich.console import Console

from gaspar.dashboard import dashboard
from gaspar.view import Pane, View

NOW = 1_800_000_000.0
DIST = {
    "count": 100,
    "sum": 3.0,
    "p50": 0.00033,
    "p90": 0.0019,
    "p99": 2.5,
    "max": 12.0,
    "buckets": [[0.0004, 60], [0.002, 30], [2.6, 8], [12.4, 2]],
}
EMPTY = {"count": 0, "sum": 0.0, "p50": None, "p90": None, "p99": None, "max": None, "buckets": []}
STATS: dict[str, Any] = {
    "server": "gaspar/2.0.0",
    "pid": 123,
    "time": NOW,
    "started": NOW - 11000,
    "addresses": ["127.0.0.1:10123"],
    "draining": False,
    "health": {"status": "ok", "reasons": []},
    "front": {"pid": 124, "generation": 1, "cpu": 0.12, "memory": 30 * 2**20, "lag": 0.0001, "lag_max": 0.004},
    "limits": {"processes": 4},
    "processes": 4,
    "requests": {"ok": 1234567, "bad_frame": 0, "overloaded": 140, "timeout": 3, "handler_error": 17},
    "waiting": {"now": 12, "most": 40, "bytes": 1200, "oldest": 2.5},
    "in_flight": 3,
    "wait": {"minute": DIST, "start": DIST},
    "run": {"minute": EMPTY, "start": DIST},
    "bytes": {"in": 10**9, "out": 3 * 10**9},
    "connections": {"one_shot": 0, "framed": 3, "accepted": {"one_shot": 10, "framed": 4}},
    "consumers": {"idle": 1, "busy": 2, "aside": 1, "leaving": 0},
    "restarts": {"crashed": 2, "timeout": 0, "memory": 1, "requests": 0, "reload": 4},
    "history": {"answered": list(range(60)), "failed": [0] * 59 + [3], "waiting": [12] * 60},
}


def consumer(number: int, **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "pid": 4000 + number,
        "state": "busy",
        "age": 0.012,
        "request": str((1 << 32) + number),
        "done": 1700 * number,
        "cpu": 0.93,
        "private": 3 * 2**20,
        "shared": 27 * 2**20,
        "started": NOW - 300,
        "generation": 1,
    } | more


CONSUMERS = [
    consumer(1),
    consumer(2, state="aside", age=31.2),
    consumer(3, state="idle", age=None, request=None, cpu=None, private=None),
    consumer(4, age=2.5, generation=2),
]
MANY = [consumer(number) for number in range(1, 65)]


def stats(**changes: Any) -> dict[str, Any]:
    """Return the numbers with some changed; a dict's keys are changed one by one."""
    changed = copy.deepcopy(STATS)
    for name, value in changes.items():
        changed[name] = {**changed[name], **value} if isinstance(value, dict) else value
    return changed


def drawn(
    found: dict[str, Any] | None = None,
    consumers: list[dict[str, Any]] = CONSUMERS,
    view: View | None = None,
    width: int = 80,
    height: int | None = 24,
    colour: bool = False,
) -> list[str]:
    """Draw a screen as a terminal of that width would have it."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    for line in dashboard(found or STATS, consumers, view or View(), width, height):
        console.print(line)
    return file.getvalue().splitlines()


def line_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.lstrip().startswith(start))


@pytest.mark.parametrize("width", [40, 80, 120, 165, 200])
@pytest.mark.parametrize("height", [5, 15, 24, 50])
@pytest.mark.parametrize("consumers", [[], CONSUMERS, MANY], ids=len)
@pytest.mark.parametrize("pane", Pane)
def test_a_screen_is_filled_and_not_more(width: int, height: int, consumers: list[dict[str, Any]], pane: Pane) -> None:
    view = View(pane=pane, chosen=1, stack={**consumer(1), "stack": "File\n" * 30})
    failing = stats(health={"status": "failing", "reasons": ["the oldest request waits"] * 9}, addresses=["x" * 90] * 3)
    for found in STATS, failing:
        lines = drawn(found, consumers, view, width, height)
        assert len(lines) == height
        assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")


def test_the_head_says_who_it_is_and_how_it_is() -> None:
    lines = drawn()
    assert lines[0] == f"{'gaspar 2.0.0   ok   127.0.0.1:10123':63}pid 123, up 3.1 h"
    head = " ".join(lines[:5])
    for text in (
        "in flight 3",
        "waiting 12, oldest 2.5 s, 1.2 KiB, most 40",
        "in 954 MiB, out 2.8 GiB",
        "consumers 4: 1 idle, 2 busy, 1 aside",
        "restarts 7: 2 crashed, 1 memory, 4 reload",
        "front 12 %, 30 MiB",
        "lag 100 µs, worst 4.0 ms",
        "connections 3 framed, 0 one-shot",
    ):
        assert text in head


def test_nothing_that_waits_has_no_age() -> None:
    lines = drawn(stats(waiting={"now": 0, "bytes": 0, "oldest": None}))
    assert "waiting 0, most 40   " in lines[1]


def test_failing_is_red_and_its_reasons_are_told() -> None:
    reasons = ["draining", "the oldest request has waited 12.0 s, allowed are 10.0 s (--health-wait)"]
    failing = stats(health={"status": "failing", "reasons": reasons})
    lines = drawn(failing)
    assert " FAILING " in lines[0]
    assert " ".join(lines[1:3]) == "; ".join(reasons)
    assert "\x1b[1;37;41m FAILING " in drawn(failing, colour=True)[0]
    assert "\x1b[30;42m ok " in drawn(colour=True)[0]


def test_a_daemon_that_does_not_answer_is_not_called_ok() -> None:
    lines = drawn(view=View(trouble="no answer for 3.0 s, trying again: unix:/x: nobody listens there"))
    assert " NO ANSWER " in lines[0]
    assert " ok " not in lines[0]
    assert lines[1] == "no answer for 3.0 s, trying again: unix:/x: nobody listens there"


def test_a_sparkline_has_a_cell_for_each_of_the_last_60_seconds() -> None:
    lines = drawn()
    answered, failed, waiting = (line_of(lines, name) for name in ("answered/s", "failed/s", "waiting  "))
    assert answered[12:14] == "·▁" and answered[70:] == "██      59"
    assert failed[12:] == "·" * 59 + "█       3"
    assert waiting[12:] == "█" * 60 + "      12"


def test_a_narrow_screen_has_the_last_seconds() -> None:
    lines = drawn(width=50)
    assert line_of(lines, "failed/s") == f"{'failed/s':12}{'·' * 29}█       3"


def test_a_wide_screen_tells_the_most_of_the_minute() -> None:
    assert line_of(drawn(width=100), "waiting  ").endswith("█      12  most 12")


def test_the_histogram_has_its_bars_where_its_axis_says() -> None:
    lines = drawn()
    axis, wait, run = (line_of(lines, name) for name in ("last minute", "wait  ", "run"))
    assert axis[12:].split() == ["1", "µs", "100", "µs", "10", "ms", "1", "s", "p50", "p90", "p99", "max"]
    bars = wait[12:44]
    assert bars.startswith("·" * 9) and "█" in bars[axis.index("100 µs") - 12 : axis.index("10 ms") - 12]
    assert set(bars[axis.index("1 s") - 12 :]) == {"·", "▁", "▂"}
    assert wait.endswith("  330 µs  1.9 ms   2.5 s    12 s")
    assert run == f"{'run':12}{'·' * 32}{'-':>8}{'-':>8}{'-':>8}{'-':>8}"


def test_outcomes_that_failed_are_told_the_most_frequent_first() -> None:
    assert (
        line_of(drawn(), "since start") == "since start  1,234,567 ok   140 overloaded   17 handler_error   3 timeout"
    )
    none = stats(requests={"ok": 5, "overloaded": 0, "timeout": 0, "handler_error": 0})
    assert line_of(drawn(none), "since start") == "since start  5 ok   none failed"


def test_each_consumer_has_a_row() -> None:
    lines = drawn()
    at = next(at for at, line in enumerate(lines) if "pid  state" in line)
    assert lines[at : at + 5] == [
        "    #▲     pid  state        age      done   cpu  private   shared   up for  gen",
        "     1    4001  busy       12 ms     1,700  93 %  3.0 MiB   27 MiB  5.0 min    1",
        "     2    4002  aside       31 s     3,400  93 %  3.0 MiB   27 MiB  5.0 min    1",
        "     3    4003  idle           -     5,100     -        -   27 MiB  5.0 min    1",
        "     4    4004  busy       2.5 s     6,800  93 %  3.0 MiB   27 MiB  5.0 min    2",
    ]


def test_a_wide_screen_shows_ids_and_bars_too() -> None:
    row = line_of(drawn(width=200, height=50), "1    4001")
    assert "█████████▎" in row
    assert row.split()[-1] == "4294967297"


@pytest.mark.parametrize(("age", "colour"), [(0.9, "32m"), (9.9, "33m"), (10.1, "1;31m")])
def test_the_age_of_a_request_has_the_colour_of_how_long_it_is(age: float, colour: str) -> None:
    row = line_of(drawn(consumers=[consumer(7, age=age)], colour=True), "7 ")
    assert f"\x1b[{colour}" in row[: row.index(" s\x1b") if " s\x1b" in row else row.index(" ms\x1b")]


def test_as_many_consumers_as_fit_and_how_many_more() -> None:
    for width, height in ((80, 24), (200, 50)):
        lines = drawn(consumers=MANY, width=width, height=height)
        rows = sum("busy " in line and "27 MiB" in line for line in lines)
        assert rows >= height / 3
        assert lines[-2] == f"  … {64 - rows} more"
    assert sum("27 MiB" in line for line in drawn(consumers=MANY, height=90)) == 64


def test_taller_charts_only_where_all_consumers_fit() -> None:
    def tall(**more: Any) -> int:
        lines = drawn(width=200, height=50, **more)
        at = next(at for at, line in enumerate(lines) if line.startswith("answered/s"))
        return next(after for after, line in enumerate(lines) if line.startswith("failed/s")) - at

    assert (tall(consumers=CONSUMERS), tall(consumers=MANY)) == (3, 1)


def test_the_chosen_consumer_is_on_the_screen_however_many_there_are() -> None:
    lines = drawn(consumers=MANY, view=View(chosen=40))
    assert line_of(lines, "▶   40    4040")
    rows = sum("27 MiB" in line for line in lines)
    assert lines[-2] == f"  … {64 - rows} more, {40 - rows} of them above"


def test_the_column_that_is_sorted_by_says_so() -> None:
    lines = drawn(view=View(sort="age"))
    at = next(at for at, line in enumerate(lines) if "pid  state" in line)
    assert "age▼" in lines[at]
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == ["2", "4", "1", "3"]
    assert "age▲" in line_of(drawn(view=View(sort="age", backwards=True)), "#")


def test_a_stack_pushes_the_charts_away_if_it_needs_the_room() -> None:
    stack = {"number": 2, "pid": 4002, "request": "4294967301", "age": 31.2, "stack": "Stack:\n\tone\x1b[2J\n  two"}
    lines = drawn(view=View(pane=Pane.STACK, chosen=2, stack=stack))
    at = lines.index("consumer 2, pid 4002: request 4294967301, for 31 s")
    assert lines[at + 1 : at + 4] == ["Stack:", "    one\\x1b[2J", "  two"]
    assert line_of(lines, "run")
    view = View(pane=Pane.STACK, chosen=2, stack={**stack, "stack": "\n".join(f"line {n}" for n in range(40))})
    lines = drawn(view=view)
    assert not any(line.startswith("run") for line in lines)
    shown = sum(line.startswith("line ") for line in lines)
    assert shown >= 15
    assert lines[-2] == f"… {40 - shown} more lines"
    view.scroll = 30
    assert drawn(view=view)[-2 - 30 + shown :].count("line 39") <= 1
    assert "line 39" in drawn(view=view)


def test_an_idle_consumer_and_one_that_has_gone_have_words_in_place_of_a_stack() -> None:
    stack = {"number": 2, "pid": 4002, "request": None, "age": None, "stack": "waits"}
    assert "consumer 2, pid 4002: runs no request" in drawn(view=View(pane=Pane.STACK, chosen=2, stack=stack))
    view = View(pane=Pane.STACK, chosen=2, stack={"number": 2, "error": "there is no consumer 2"})
    assert "consumer 2: there is no consumer 2" in drawn(view=view)
    assert "consumer 2: asking for its stack" in drawn(view=View(pane=Pane.STACK, chosen=2))


def test_all_of_the_help_is_seen_at_80_by_24() -> None:
    lines = drawn(view=View(pane=Pane.HELP))
    assert line_of(lines, "lag  ").endswith("what it has to do")
    assert not any("…" in line for line in lines[5:])


def test_questions_and_notices_take_the_place_of_the_keys() -> None:
    assert drawn(view=View(question="Load it anew? y/n"))[-1] == "Load it anew? y/n"
    assert drawn(view=View(notice="reload ordered"))[-1] == "reload ordered"
    assert " PAUSED " in drawn(view=View(paused=True))[0] + " "


def test_without_a_height_all_consumers_are_shown_and_no_keys() -> None:
    lines = drawn(consumers=MANY, height=None)
    assert sum("27 MiB" in line for line in lines) == 64
    assert lines[-1].startswith("    64    4064")


def test_no_text_of_the_daemon_reaches_the_terminal_as_it_is() -> None:
    evil = "\x1b[31mred\x07\n"
    found = stats(
        server=evil,
        addresses=[evil],
        health={"status": "failing", "reasons": [evil]},
        requests={evil: 1},
        restarts={evil: 1},
    )
    found["consumers"] = {evil: 1}
    stack = {"number": 1, "pid": 1, "request": evil, "age": 1.0, "stack": evil}
    for view in View(), View(trouble=evil), View(notice=evil), View(pane=Pane.STACK, chosen=1, stack=stack):
        text = "\n".join(drawn(found, [consumer(1, state=evil, request=evil)], view, 200))
        assert "\x1b" not in text and "\x07" not in text
