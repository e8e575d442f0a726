"""A daemon's life: its states, what can happen to it, and its exit codes. Pure."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of the daemon, and of `gaspar-serve`."""

    STOPPED = 0
    USAGE = 2  # a wrong option or value
    HANDLER = 3  # the handler cannot be loaded or set up
    BIND = 4  # an address cannot be listened on
    CRASHED = 70  # an error in gaspar itself


class State(enum.Enum):
    """Where a daemon is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # the front finishes what was accepted
    LEAVING = "leaving"  # the front is gone, the consumers go
    KILLING = "killing"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What can happen to a daemon as a whole."""

    READY = "ready"  # front and all first consumers
    FAILED = "failed"  # the handler does not load or set up
    TERM = "term"  # asked to stop
    QUIT = "quit"  # told to stop at once
    DRAINED = "drained"  # the front is gone
    LATE = "late"  # a step took longer than it may
    EMPTY = "empty"  # no child is left


_TABLE: dict[State, dict[Event, State]] = {
    State.STARTING: {
        Event.READY: State.SERVING,
        Event.FAILED: State.KILLING,
        Event.TERM: State.DRAINING,
        Event.QUIT: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.SERVING: {
        Event.TERM: State.DRAINING,
        Event.QUIT: State.KILLING,
    },
    State.DRAINING: {
        Event.FAILED: State.KILLING,
        Event.TERM: State.KILLING,
        Event.QUIT: State.KILLING,
        Event.DRAINED: State.LEAVING,
        Event.LATE: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.LEAVING: {
        Event.FAILED: State.KILLING,
        Event.TERM: State.KILLING,
        Event.QUIT: State.KILLING,
        Event.LATE: State.KILLING,
        Event.EMPTY: State.STOPPED,
    },
    State.KILLING: {
        Event.EMPTY: State.STOPPED,
    },
    State.STOPPED: {},
}


ALIVE = (State.STARTING, State.SERVING, State.DRAINING)  # consumers that die are replaced


def step(state: State, event: Event) -> State:
    """Return the state after an event; an event that means nothing in a state leaves it as it is."""
    return _TABLE[state].get(event, state)
