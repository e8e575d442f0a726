"""The pytest plugin: the fixture `gaspar_daemon`. Each run of pytest loads it, so it imports nothing before its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import Daemon

_MOST_LOG = 20_000  # characters of a log that are shown


@pytest.fixture
def gaspar_daemon(request: pytest.FixtureRequest) -> Iterator[Callable[..., Daemon]]:
    """Start real daemons: `daemon = gaspar_daemon("myapp.jobs:handle", processes=2, timeout=5)`.

    Returns when the daemon serves; `DaemonError` with its own words if it does not start. Arguments and what a daemon
    has to offer: `gaspar.testing.Daemon`. At the end of the test each is stopped in order, and the test fails if one
    leaves processes or files, or has a traceback in its log which no handler raised. A failed test shows the logs.
    """
    from .testing import Daemon

    daemons: list[Daemon] = []

    def start(handler: object, *arguments: str, **options: Any) -> Daemon:
        daemons.append(Daemon(handler, *arguments, **options))
        return daemons[-1].wait_ready()

    problems = []
    try:
        yield start
        for daemon in daemons:
            try:
                daemon.close()
            except AssertionError as error:
                problems.append(str(error))
    finally:
        for daemon in daemons:
            daemon.kill()
            request.node.add_report_section("teardown", f"log of {daemon!r}", daemon.log[-_MOST_LOG:])
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)
