"""What the person at the keys of `gaspar-top` has chosen to see, and how each key changes that. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Answer = Mapping[str, Any]  # what `stats` or `stack N` says, or one consumer of what `consumers` says

# by what consumers can be sorted, and whether the largest comes first then
SORTS = {
    "number": False,
    "pid": False,
    "state": False,
    "age": True,
    "done": True,
    "cpu": True,
    "private": True,
    "shared": True,
    "started": False,
    "generation": True,
}
_STEPS = {"up": -1, "down": 1, "pgup": -10, "pgdn": 10}


class Pane(enum.Enum):
    """What stands below the charts."""

    CONSUMERS = enum.auto()
    STACK = enum.auto()
    HELP = enum.auto()


class Order(enum.Enum):
    """What a key asks of the program; most keys change the view alone."""

    QUIT = enum.auto()
    REFRESH = enum.auto()
    RELOAD = enum.auto()


@dataclass
class View:
    """What is to be seen, and what is said to the person."""

    sort: str = "number"
    backwards: bool = False  # against the direction of SORTS
    chosen: int | None = None  # a consumer's number
    pane: Pane = Pane.CONSUMERS
    paused: bool = False
    question: str = ""
    notice: str = ""  # what came of an order, until the next key
    trouble: str = ""  # why there are no fresh numbers
    stack: Answer | None = None  # of the chosen consumer, when it has come
    scroll: int = 0  # lines of the stack above the first one to be shown

    def press(self, key: str, consumers: Sequence[Answer]) -> Order | None:
        """Change by a key, named as by `gaspar.top`; returns what is not for the view to do."""
        self.notice = ""
        if self.question:
            self.question = ""
            return Order.RELOAD if key == "y" else None
        if key == "q":
            return Order.QUIT
        if key == "r":
            self.question = "Load the handler's code anew? y/n"
        elif key == "s":
            names = list(SORTS)
            self.sort, self.backwards = names[(names.index(self.sort) + 1) % len(names)], False
        elif key == "S":
            self.backwards = not self.backwards
        elif key == "space":
            self.paused = not self.paused
            return None if self.paused else Order.REFRESH
        elif key in _STEPS:
            return self._step(_STEPS[key], consumers)
        elif key in ("enter", "esc", "?"):
            return self._turn(key, consumers)
        return None

    def ordered(self, consumers: Sequence[Answer]) -> list[Answer]:
        """Sort consumers; those without a value come last, equal ones by their numbers."""
        by_number = sorted(consumers, key=lambda each: int(each["number"]))
        known = [each for each in by_number if each[self.sort] is not None]
        known.sort(key=lambda each: each[self.sort], reverse=SORTS[self.sort] != self.backwards)
        return known + [each for each in by_number if each[self.sort] is None]

    def stack_lines(self) -> list[str]:
        """Return the lines of the chosen consumer's stack."""
        return str(self.stack.get("stack", "")).splitlines() if self.stack else []

    def _step(self, step: int, consumers: Sequence[Answer]) -> Order | None:
        if self.pane is Pane.STACK and abs(step) > 1:
            self.scroll = max(0, min(self.scroll + step, len(self.stack_lines()) - 1))
            return None
        numbers = [each["number"] for each in self.ordered(consumers)]
        if not numbers or self.pane is Pane.HELP:
            return None
        if self.chosen in numbers:
            self.chosen = numbers[max(0, min(numbers.index(self.chosen) + step, len(numbers) - 1))]
        else:
            self.chosen = numbers[0 if step > 0 else -1]
        return self._look() if self.pane is Pane.STACK else None

    def _turn(self, key: str, consumers: Sequence[Answer]) -> Order | None:
        if key == "?" and self.pane is not Pane.HELP:
            self.pane = Pane.HELP
        elif self.pane is not Pane.CONSUMERS:
            self.pane = Pane.CONSUMERS
        elif key == "esc":
            self.chosen = None
        elif consumers:
            if self.chosen not in [each["number"] for each in consumers]:
                self.chosen = self.ordered(consumers)[0]["number"]
            self.pane = Pane.STACK
            return self._look()
        return None

    def _look(self) -> Order:
        self.stack, self.scroll = None, 0
        return Order.REFRESH
