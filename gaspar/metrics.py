"""HTTP for machines that look after daemons: `/healthz`, and `/metrics` in the format of Prometheus."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from . import green
from .overview import HEALTHY, Overview

# upper bounds of the exported histograms, seconds: three for each factor of ten
_BOUNDS = [float(f"{base}e{exponent}") for exponent in range(-5, 3) for base in (1, 2, 5)]


def serve(listener: socket.socket, overview: Overview) -> None:
    """Answer HTTP on a listening socket."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Front(overview))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        status, kind, body = "404 Not Found", "text/plain", b"there are /healthz and /metrics\n"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"only GET and HEAD\n"
        elif environ["PATH_INFO"] == "/healthz":
            health = overview.health()
            status = "200 OK" if health["status"] == HEALTHY else "503 Service Unavailable"
            kind, body = "application/json", json.dumps(health).encode() + b"\n"
        elif environ["PATH_INFO"] == "/metrics":
            status, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest(registry)
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    green.serve_http(listener, application)


class _Front(Collector):
    """What one front tells Prometheus. Source of the names: Prometheus' naming conventions."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        stats = self._overview.stats()
        yield _counter("gaspar_requests", "Requests that ended, by outcome.", "outcome", stats["requests"])
        yield _counter("gaspar_consumer_restarts", "Consumers that ended, by reason.", "reason", stats["restarts"])
        yield _counter("gaspar_bytes", "Bytes that clients sent (in) and took (out).", "direction", stats["bytes"])
        accepted = stats["connections"]["accepted"]
        yield _counter("gaspar_connections_accepted", "Connections, by protocol.", "protocol", accepted)
        yield _histogram("gaspar_wait_seconds", "Time until a consumer began the request.", stats["wait"]["start"])
        yield _histogram("gaspar_run_seconds", "Time in the handler.", stats["run"]["start"])
        yield _gauge("gaspar_consumers", "Consumers now, by state.", "state", stats["consumers"])
        now = {name: stats["connections"][name] for name in ("one_shot", "framed")}
        yield _gauge("gaspar_connections", "Connections now, by protocol.", "protocol", now)
        waiting, front = stats["waiting"], stats["front"]
        for name, text, value in (
            ("gaspar_waiting", "Requests that wait for a consumer.", waiting["now"]),
            ("gaspar_waiting_bytes", "Bytes of the requests that wait.", waiting["bytes"]),
            ("gaspar_oldest_waiting_seconds", "Age of the oldest waiting request; 0: none.", waiting["oldest"]),
            ("gaspar_in_flight", "Requests that are with consumers.", stats["in_flight"]),
            ("gaspar_processes", "Consumers that there should be.", stats["processes"]),
            ("gaspar_healthy", "1 if a request would be answered soon.", stats["health"]["status"] == HEALTHY),
            ("gaspar_draining", "1 while it finishes what was accepted and stops.", stats["draining"]),
            ("gaspar_hub_lag_seconds", "By how much the front was late; worst of the last minute.", front["lag_max"]),
            ("gaspar_front_cpu_ratio", "Share of one CPU that the front uses.", front["cpu"]),
            ("gaspar_front_memory_bytes", "Memory of the front.", front["memory"]),
            ("gaspar_front_generation", "How many fronts there have been.", front["generation"]),
            ("gaspar_start_time_seconds", "When the front began, since 1970.", stats["started"]),
        ):
            yield GaugeMetricFamily(name, text, value=float(value or 0))


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _gauge(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _histogram(name: str, text: str, times: dict[str, Any]) -> HistogramMetricFamily:
    buckets = [(str(bound), float(_below(times["buckets"], bound))) for bound in _BOUNDS]
    buckets.append(("+Inf", float(times["count"])))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=times["sum"])


def _below(buckets: Iterable[tuple[float, int]], bound: float) -> int:
    """Count what was shorter than a bound, exact up to the width of one of our buckets."""
    return sum(count for end, count in buckets if end <= bound)
