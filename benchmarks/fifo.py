"""A simulated perfect queue: first come, first served, no server idles. Pure: no socket, no clock."""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import cycle

_START = 0.0


def simulate(
    kinds: str, service: Mapping[str, float], clients: int, servers: int, warmup: float, seconds: float
) -> dict[str, list[float]]:
    """Return the latencies in seconds, sorted, by kind, of what completes within `seconds` after `warmup`.

    The load is the load generator's: a closed loop without a pause, the kinds in turn, repeated for ever.

    Args:
        service: seconds that a request of each kind takes on a server.
    """
    sequence = cycle(kinds)
    queue = deque((_START, next(sequence)) for _ in range(clients))  # (issued at, kind)
    serving: list[tuple[float, float, str]] = []  # heap of (completes at, issued at, kind)
    latencies: dict[str, list[float]] = {kind: [] for kind in kinds}
    now = _START
    while now < warmup + seconds:
        while queue and len(serving) < servers:
            issued_at, kind = queue.popleft()
            heapq.heappush(serving, (now + service[kind], issued_at, kind))
        now, issued_at, kind = heapq.heappop(serving)
        if warmup <= now < warmup + seconds:
            latencies[kind].append(now - issued_at)
        queue.append((now, next(sequence)))
    return {kind: sorted(values) for kind, values in latencies.items()}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the sorted values are; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(int(percent / 100 * len(ordered)), len(ordered) - 1)]
