"""Walks the supervisor's state table; its processes are tested by the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar.lifecycle import Event, Exit, State, step

ALIVE = [state for state in State if state is not State.STOPPED]
ORDER = list(State)  # a daemon's life, in order


def reachable(start: State, events: list[Event]) -> set[State]:
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for event in events:
            if (after := step(state, event)) not in found:
                found.add(after)
                new.append(after)
    return found


# ---- the table ----


@pytest.mark.parametrize("state", State)
def test_every_state_reaches_stopped(state: State) -> None:
    assert State.STOPPED in reachable(state, list(Event))


@pytest.mark.parametrize("state", ALIVE)
def test_being_told_to_stop_at_once_ends_every_state(state: State) -> None:
    assert step(step(state, Event.QUIT), Event.EMPTY) is State.STOPPED


@pytest.mark.parametrize("state", ALIVE)
def test_being_asked_to_stop_ends_every_state(state: State) -> None:
    assert State.STOPPED in reachable(step(state, Event.TERM), [Event.DRAINED, Event.EMPTY])


@pytest.mark.parametrize("state", [State.STARTING, State.SERVING])
def test_a_stop_in_order_drains_then_leaves_then_stops(state: State) -> None:
    seen = []
    for event in (Event.TERM, Event.DRAINED, Event.EMPTY):
        state = step(state, event)
        seen.append(state)
    assert seen == [State.DRAINING, State.LEAVING, State.STOPPED]


@pytest.mark.parametrize("state", [State.DRAINING, State.LEAVING])
@pytest.mark.parametrize("event", [Event.TERM, Event.QUIT, Event.LATE, Event.FAILED])
def test_a_stop_that_is_late_or_asked_for_again_kills(state: State, event: Event) -> None:
    assert step(state, event) is State.KILLING


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.EMPTY])
def test_only_the_end_of_all_children_ends_killing(event: Event) -> None:
    assert step(State.KILLING, event) is State.KILLING


@pytest.mark.parametrize("event", Event)
def test_stopped_is_the_end(event: Event) -> None:
    assert step(State.STOPPED, event) is State.STOPPED


@pytest.mark.parametrize("event", [Event.READY, Event.FAILED, Event.DRAINED, Event.LATE, Event.EMPTY])
def test_only_an_order_ends_serving(event: Event) -> None:
    assert step(State.SERVING, event) is State.SERVING


@pytest.mark.parametrize("state", ALIVE)
def test_ready_means_something_only_while_starting(state: State) -> None:
    after = step(state, Event.READY)
    assert after is (State.SERVING if state is State.STARTING else state)


def test_a_handler_that_fails_at_the_start_ends_the_daemon() -> None:
    assert step(State.STARTING, Event.FAILED) is State.KILLING


@given(st.lists(st.sampled_from(Event)))
def test_no_sequence_of_events_leads_back(events: list[Event]) -> None:
    state = State.STARTING
    for event in events:
        after = step(state, event)
        assert ORDER.index(after) >= ORDER.index(state)
        state = after


def test_exit_codes_are_apart_and_none_is_pythons_own() -> None:
    assert len(set(Exit)) == len(list(Exit))
    assert 1 not in set(Exit)  # an uncaught exception's
