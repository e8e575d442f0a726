"""What a front says of itself and its consumers to those who ask at the control address. Looks, changes nothing."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from . import green
from .crew import STATES, Crew
from .dispatch import Dispatcher
from .gauges import Gauges
from .limits import Limits
from .reception import Reception
from .roster import REASONS
from .stats import Stats

FAILING, HEALTHY = "failing", "ok"


class Overview:
    """One front, seen from outside.

    Args:
        server: name and version.
        addresses: where the daemon listens.
        generation: the front's.
    """

    def __init__(
        self,
        server: str,
        addresses: list[str],
        generation: int,
        limits: Limits,
        stats: Stats,
        dispatcher: Dispatcher,
        reception: Reception,
        crew: Crew,
    ) -> None:
        self._server = server
        self._addresses = addresses
        self._generation = generation
        self._limits = limits
        self._stats = stats
        self._dispatcher = dispatcher
        self._reception = reception
        self._crew = crew
        self._gauges = Gauges()
        self._started = time.time()
        self._supervisor = os.getppid()
        self.processes = limits.processes  # consumers wanted
        self.restarts = dict.fromkeys(
            REASONS, 0
        )  # consumers that ended; the supervisor says, as soon as it hears of us

    def stats(self) -> dict[str, Any]:
        """Lay out all numbers, as docs/control.rst has them."""
        stats, dispatcher, reception = self._stats, self._dispatcher, self._reception
        stats.fold()
        standing = self._crew.standing()
        front = self._gauges_of([each.pid for each in standing]).get(os.getpid())
        now, oldest = green.monotonic(), dispatcher.oldest
        return {
            "server": self._server,
            "pid": self._supervisor,
            "time": time.time(),
            "started": self._started,
            "addresses": self._addresses,
            "draining": self.draining,
            "health": self.health(),
            "front": {
                "pid": os.getpid(),
                "generation": self._generation,
                "cpu": front.cpu if front else 0.0,
                "memory": front.private + front.shared if front else 0,
                "lag": stats.lag,
                "lag_max": stats.lag_max,
            },
            "limits": dataclasses.asdict(self._limits),
            "processes": self.processes,
            "requests": dict(stats.outcomes),
            "waiting": {
                "now": dispatcher.waiting,
                "most": max(stats.most_waiting, dispatcher.waiting),
                "bytes": dispatcher.waiting_bytes,
                "oldest": None if oldest is None else max(0.0, now - oldest),
            },
            "in_flight": dispatcher.in_flight,
            "wait": stats.wait.describe(),
            "run": stats.run.describe(),
            "bytes": {"in": reception.bytes_in, "out": reception.bytes_out},
            "connections": reception.connections(),
            "consumers": {state: sum(each.state == state for each in standing) for state in STATES},
            "restarts": dict(self.restarts),
            "history": stats.history(),
        }

    @property
    def draining(self) -> bool:
        """True once the daemon was told to stop."""
        return self._reception.draining

    def health(self) -> dict[str, Any]:
        """Say whether a request would be answered soon, and if not, why; sentences for people."""
        now, limit = green.monotonic(), self._limits.health_wait
        reasons = ["draining: it is about to stop"] if self.draining else []
        oldest = self._dispatcher.oldest
        if not self._crew:
            reasons.append("there is no consumer")
        elif self._crew.all_held(now, limit, self._limits.burst):
            reasons.append(f"each consumer has been in one request for longer than {limit:g} s (--health-wait)")
        if oldest is not None and now - oldest > limit:
            reasons.append(f"a request has waited for {now - oldest:.1f} s, {limit:g} allowed (--health-wait)")
        return {"status": FAILING if reasons else HEALTHY, "reasons": reasons}

    def consumers(self) -> list[dict[str, Any]]:
        """Lay out what is known of each consumer."""
        standing = self._crew.standing()
        gauges = self._gauges_of([each.pid for each in standing])
        now = time.monotonic()
        found = []
        for each in standing:
            gauge = gauges.get(each.pid)
            found.append(
                {
                    "number": each.number,
                    "pid": each.pid,
                    "state": each.state,
                    "age": each.age,
                    "request": each.request,
                    "done": each.done,
                    "cpu": gauge.cpu if gauge else 0.0,
                    "private": gauge.private if gauge else 0,
                    "shared": gauge.shared if gauge else 0,
                    "started": time.time() - (now - each.forked),
                    "generation": each.generation,
                }
            )
        return found

    def names(self, number: int) -> bool:
        """True if there is a consumer of this number."""
        return any(each.number == number for each in self._crew.standing())

    def _gauges_of(self, pids: list[int]) -> Any:
        return self._gauges.look([os.getpid(), *pids])
