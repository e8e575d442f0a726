"""Walks the supervisor's state table and its backoff; its processes are tested by the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar.supervisor import Backoff, Event, Exit, State, step

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


# ---- backoff ----


def test_the_first_early_deaths_cost_nothing() -> None:
    backoff = Backoff()
    for _ in range(Backoff.FREE):
        assert backoff.died(0.0, useful=False) == 0.0
        assert not backoff.slowed


def test_each_further_death_doubles_the_wait_up_to_the_longest() -> None:
    backoff = Backoff()
    waits = [backoff.died(0.0, useful=False) for _ in range(40)][Backoff.FREE :]
    assert backoff.slowed
    assert waits[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert set(waits[7:]) == {Backoff.LONGEST}


@pytest.mark.parametrize(("lived", "useful"), [(0.0, True), (Backoff.EARLY + 0.1, False), (1e9, True)])
def test_one_that_lived_or_worked_begins_a_new_row(lived: float, useful: bool) -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.died(0.0, useful=False)
    assert backoff.died(lived, useful) == 0.0
    assert not backoff.slowed
    assert [backoff.died(0.0, useful=False) for _ in range(Backoff.FREE)] == [0.0] * Backoff.FREE
    assert backoff.died(0.0, useful=False) == Backoff.FIRST


def test_dying_exactly_at_the_border_is_early() -> None:
    backoff = Backoff()
    waits = [backoff.died(Backoff.EARLY, useful=False) for _ in range(Backoff.FREE + 1)]
    assert waits[-1] == Backoff.FIRST


@given(st.lists(st.tuples(st.floats(0, 1e9), st.booleans()), max_size=60))
def test_a_wait_is_bounded_and_there_is_one_only_when_slowed(deaths: list[tuple[float, bool]]) -> None:
    backoff = Backoff()
    for lived, useful in deaths:
        wait = backoff.died(lived, useful)
        assert (Backoff.FIRST <= wait <= Backoff.LONGEST) if backoff.slowed else wait == 0.0
