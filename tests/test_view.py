"""The keys of `gaspar-top`: what each changes, and what it asks for."""

from __future__ import annotations

from typing import Any

import pytest

from gaspar.view import SORTS, Order, Pane, View


def consumers(*ages: float | None) -> list[dict[str, Any]]:
    """Return consumers 1, 2, ... that differ in the age of their requests."""
    return [{"number": number, "age": age} for number, age in enumerate(ages, 1)]


def pressed(view: View, *keys: str, among: list[dict[str, Any]]) -> list[Order | None]:
    return [view.press(key, among) for key in keys]


def test_s_sorts_by_each_column_in_turn_and_begins_again() -> None:
    view, seen = View(), []
    for _ in SORTS:
        view.press("s", [])
        seen.append(view.sort)
    assert seen == [*list(SORTS)[1:], "number"]


def test_the_oldest_request_comes_first_and_idle_consumers_last() -> None:
    view = View(sort="age")
    everyone = consumers(None, 1.0, 30.0, None, 1.0)
    assert [each["number"] for each in view.ordered(everyone)] == [3, 2, 5, 1, 4]
    view.press("S", everyone)
    assert [each["number"] for each in view.ordered(everyone)] == [2, 5, 3, 1, 4]
    view.press("s", everyone)
    assert not view.backwards


def test_up_and_down_choose_in_the_order_that_is_seen() -> None:
    view, everyone = View(sort="age"), consumers(1, 3, 2)
    chosen = []
    for key in ("down", "down", "down", "down", "up", "pgup", "pgdn"):
        view.press(key, everyone)
        chosen.append(view.chosen)
    assert chosen == [2, 3, 1, 1, 3, 2, 1]


def test_up_begins_with_the_last_consumer() -> None:
    view = View()
    view.press("up", consumers(1, 2, 3))
    assert view.chosen == 3


def test_a_consumer_that_has_gone_is_chosen_no_more() -> None:
    view = View(chosen=9)
    assert pressed(view, "enter", among=consumers(1, 2)) == [Order.REFRESH]
    assert view.chosen == 1
    view = View(chosen=9)
    assert pressed(view, "down", among=consumers(1, 2)) == [None]
    assert view.chosen == 1


def test_without_consumers_there_is_nothing_to_choose() -> None:
    view = View()
    assert pressed(view, "down", "up", "enter", among=[]) == [None] * 3
    assert (view.chosen, view.pane) == (None, Pane.CONSUMERS)


def test_enter_asks_for_the_stack_and_up_for_the_next_ones() -> None:
    view, everyone = View(), consumers(1, 2)
    assert pressed(view, "down", "down", "enter", among=everyone) == [None, None, Order.REFRESH]
    assert (view.pane, view.chosen) == (Pane.STACK, 2)
    view.stack = {"number": 2, "stack": "one\ntwo"}
    assert pressed(view, "up", among=everyone) == [Order.REFRESH]
    assert (view.chosen, view.stack) == (1, None)
    assert pressed(view, "esc", among=everyone) == [None]
    assert (view.pane, view.chosen) == (Pane.CONSUMERS, 1)
    assert pressed(view, "esc", among=everyone) == [None]
    assert view.chosen is None


def test_a_long_stack_is_scrolled_to_its_last_line_and_no_further() -> None:
    view = View(pane=Pane.STACK, chosen=1, stack={"number": 1, "stack": "\n".join("abcdefghijklmno")})
    seen = []
    for key in ("pgdn", "pgdn", "pgup", "pgup"):
        assert view.press(key, consumers(1)) is None
        seen.append(view.scroll)
    assert seen == [10, 14, 4, 0]
    view.stack = {"number": 1, "error": "there is no consumer 1"}
    view.press("pgdn", [])
    assert view.scroll == 0


def test_a_reload_is_ordered_by_y_alone() -> None:
    view = View()
    assert pressed(view, "r", "y", "y", among=[]) == [None, Order.RELOAD, None]
    for other in ("n", "q", "esc", "x"):
        assert pressed(view, "r", other, among=[]) == [None, None]
        assert view.question == ""


def test_after_a_pause_there_are_fresh_numbers_at_once() -> None:
    view = View()
    assert pressed(view, "space", "space", among=[]) == [None, Order.REFRESH]
    assert not view.paused


def test_help_goes_as_it_came() -> None:
    view = View()
    for key in ("?", "esc", "enter"):
        view.press("?", [])
        assert view.pane is Pane.HELP
        view.press(key, consumers(1))
        assert view.pane is Pane.CONSUMERS


def test_q_leaves() -> None:
    assert View().press("q", []) is Order.QUIT


@pytest.mark.parametrize("key", ["x", "\x1b[Z", ""])
def test_a_key_without_a_meaning_takes_a_notice_away_and_no_more(key: str) -> None:
    view = View(notice="reload ordered")
    assert view.press(key, consumers(1)) is None
    assert view == View()
