"""One set of behaviours for all clients, on each kind of loop: conformance.py, in a process of its own for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conformance import BEHAVIOURS, LOOPS
from conftest import HANDLERS, ROOT, Daemon

Outcomes = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Outcomes]:
    """How each behaviour went on each loop."""
    daemon = Daemon(f"{HANDLERS}:conform", "-p", "2", "--max-message", "1M", "--timeout", "1")
    try:
        daemon.wait_ready()
        found = {}
        for loop in LOOPS:
            done = subprocess.run(
                [sys.executable, ROOT / "tests" / "conformance.py", loop, daemon.address],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env=dict(os.environ, PYTHONPATH=str(ROOT)),
            )
            assert done.returncode == 0, done.stderr
            found[loop] = json.loads(done.stdout)
        yield found
    finally:
        daemon.kill()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", [each.__name__ for each in BEHAVIOURS])
def test_all_clients_behave_alike(outcomes: Outcomes, name: str, loop: str) -> None:
    assert not outcomes[loop][name]
