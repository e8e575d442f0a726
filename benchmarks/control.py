"""Says how soon the control address answers while the daemon is busy: `python benchmarks/control.py`.

    idle        nobody asks anything else
    echo        two processes keep 64 tiny requests in flight each: the front is the busiest process
    1 ms        two processes keep 16 requests in flight each that take 1 ms of CPU
    100 ms      two processes keep 32 requests in flight each that take 100 ms: all consumers are held all the time

2 consumers, 300 questions in each state. Takes about 20 seconds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import gaspar

_HERE = Path(__file__).parent
_QUESTIONS = ("stats", "health", "consumers", "stack 1")
_ROUNDS = 75
_LIMIT = 50.0  # milliseconds


@contextmanager
def daemon() -> Any:
    """Serve; yields the address for clients and the control address."""
    command = [sys.executable, str(_HERE.parent / "bin" / "gaspar-serve"), "-p", "2", "-b", "127.0.0.1:0"]
    server = subprocess.Popen(
        [*command, "--timeout", "60", f"{_HERE / 'handlers.py'}:spin"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr
    found = re.search(r"listening on (\S+), control (\S+),", server.stderr.readline())
    assert found
    try:
        yield found[1], found[2]
    finally:
        server.send_signal(3)
        server.communicate()


def _load(address: str, message: bytes, in_flight: int) -> None:
    with gaspar.Client(address) as client:
        for _ in client.map(itertools.repeat(message), ordered=False, in_flight=in_flight):
            pass


@contextmanager
def loaded(address: str, message: bytes, in_flight: int) -> Any:
    """Keep the daemon busy."""
    clients = [multiprocessing.Process(target=_load, args=(address, message, in_flight)) for _ in range(2)]
    for each in clients:
        each.start()
    time.sleep(1)
    try:
        yield
    finally:
        for each in clients:
            each.kill()
            each.join()


def ask(control: str) -> list[float]:
    """Return how long each answer took, milliseconds."""
    took = []
    with gaspar.Client(control, timeout=30) as client:
        client.request(b"stats")
        for _ in range(_ROUNDS):
            for question in _QUESTIONS:
                begun = time.perf_counter()
                with suppress(gaspar.HandlerError):  # consumer 1 may have left
                    client.request(question.encode())
                took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)


def main() -> int:
    """Measure and print."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs; milliseconds until the answer, {_LIMIT:g} wanted\n")
    print(f"{'':12}{'p50':>9}{'p99':>9}{'max':>9}")
    for name, state in _STATES.items():
        with daemon() as (address, control), state(address, control):
            took = ask(control)
        print(f"{name:12}{took[len(took) // 2]:9.2f}{took[int(len(took) * 0.99)]:9.2f}{took[-1]:9.2f}")
    return 0


_STATES: dict[str, Callable[[str, str], AbstractContextManager[Any]]] = {
    "idle": lambda address, control: nullcontext(),
    "echo": lambda address, control: loaded(address, b"e" * 64, 64),
    "1 ms": lambda address, control: loaded(address, b"s" * 64, 16),
    "100 ms": lambda address, control: loaded(address, b"l" * 64, 32),
}

if __name__ == "__main__":
    sys.exit(main())
