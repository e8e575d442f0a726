"""Long requests step aside: other consumers take their consumers' places, and the kernel shares the CPUs."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import psutil
import pytest
from conftest import Daemon, Serve, read_all, wait_until

SHORT = b""  # `who` answers at once
BURST = ("--burst", "auto")
FOREVER = (*BURST, "--patience", "3600")


def ask(daemon: Daemon, message: bytes) -> socket.socket:
    """Send a request; the reply is read later."""
    sock = daemon.connect()
    sock.sendall(struct.pack("!I", len(message)) + message)
    return sock


def begin_long(daemon: Daemon, folder: Path, name: str) -> tuple[socket.socket, int, Path]:
    """Send a request that takes until its file is there; returns when it runs, with the pid that runs it."""
    path = folder / name
    sock = ask(daemon, os.fsencode(path))
    begun = folder / f"{name}.begun"
    wait_until(begun.exists)
    return sock, int(wait_until(begun.read_text)), path


def end_long(long: tuple[socket.socket, int, Path]) -> bytes:
    sock, _, path = long
    path.touch()
    with sock:
        return read_all(sock)


def test_a_short_request_is_answered_while_long_ones_hold_all_consumers(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "2", *BURST)
    longs = [begin_long(daemon, tmp_path, name) for name in ("one", "two")]
    running = {pid for _, pid, _ in longs}
    assert int(daemon.ask(SHORT)) not in running
    assert [int(end_long(each)) for each in longs] == [pid for _, pid, _ in longs]


def test_a_consumer_that_stepped_aside_has_a_lower_priority_and_leaves_after_its_request(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("who", "-p", "1", *BURST)
    long = begin_long(daemon, tmp_path, "one")
    other = int(daemon.ask(SHORT))
    wait_until(lambda: psutil.Process(long[1]).nice() > psutil.Process().nice())
    assert psutil.Process(other).nice() == psutil.Process().nice()
    assert len(daemon.consumers) == 2
    end_long(long)
    wait_until(lambda: daemon.consumers == [other])
    assert int(daemon.ask(SHORT)) == other


def test_no_consumer_steps_aside_while_nobody_waits(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST, "--patience", "0.001")
    long = begin_long(daemon, tmp_path, "one")
    daemon.ask_nothing()
    assert daemon.consumers == [long[1]]
    end_long(long)
    assert int(daemon.ask(SHORT)) == long[1]


@pytest.mark.parametrize("options", [("--burst", "0"), FOREVER])
def test_without_burst_or_within_patience_short_requests_wait(
    serve: Serve, tmp_path: Path, options: tuple[str, ...]
) -> None:
    daemon = serve("who", "-p", "1", *options)
    long = begin_long(daemon, tmp_path, "one")
    with ask(daemon, SHORT) as short:
        daemon.ask_nothing()
        assert int(end_long(long)) == long[1]
        assert int(read_all(short)) == long[1]


def test_no_more_step_aside_than_burst_allows(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", "--burst", "2")
    longs = [begin_long(daemon, tmp_path, name) for name in ("one", "two", "three")]
    assert len({pid for _, pid, _ in longs}) == 3
    with ask(daemon, SHORT) as short:
        daemon.ask_nothing()
        assert sorted(daemon.consumers) == sorted(pid for _, pid, _ in longs)
        end_long(longs[0])
        assert int(read_all(short)) not in {pid for _, pid, _ in longs[1:]} - {longs[2][1]}
    for each in longs[1:]:
        end_long(each)
    wait_until(lambda: len(daemon.consumers) == 1)


def test_a_consumer_that_stepped_aside_and_dies_harms_its_own_request_alone(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST)
    long = begin_long(daemon, tmp_path, "one")
    other = int(daemon.ask(SHORT))
    os.kill(long[1], signal.SIGKILL)
    with long[0], pytest.raises(ConnectionResetError):
        read_all(long[0])
    assert int(daemon.ask(SHORT)) == other
    wait_until(lambda: daemon.consumers == [other])


def test_the_time_limit_holds_for_what_stepped_aside(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST, "--timeout", "0.5")
    long = begin_long(daemon, tmp_path, "one")
    assert int(daemon.ask(SHORT)) != long[1]
    with long[0], pytest.raises(ConnectionResetError):
        read_all(long[0])
    daemon.wait_for_line("ran for longer than|--timeout")


def test_a_stop_finishes_what_stepped_aside(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST)
    long = begin_long(daemon, tmp_path, "one")
    daemon.ask(SHORT)
    daemon.remember()
    daemon.signal(signal.SIGTERM)
    daemon.wait_for_line("stopping|draining")
    assert int(end_long(long)) == long[1]
    assert daemon.end() == 0


def test_a_reload_goes_past_what_stepped_aside(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST)
    long = begin_long(daemon, tmp_path, "one")
    before = int(daemon.ask(SHORT))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: int(daemon.ask(SHORT)) not in (before, long[1]))
    assert int(end_long(long)) == long[1]
    daemon.wait_for_line("reloaded in")
    daemon.remember()


def test_a_new_front_knows_what_stepped_aside_before(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("who", "-p", "1", *BURST)
    long = begin_long(daemon, tmp_path, "one")
    other = int(daemon.ask(SHORT))
    os.kill(daemon.front, signal.SIGKILL)
    daemon.wait_for_line("starting another")
    assert int(daemon.ask(SHORT)) == other
    long[2].touch()
    long[0].close()
    wait_until(lambda: daemon.consumers == [other])
    daemon.remember()


def test_more_long_requests_than_consumers_are_all_answered(serve: Serve) -> None:
    daemon = serve("nap", "-p", "2", "--burst", "4", "--patience", "0.005")
    socks = [ask(daemon, b"%.3f" % (0.05 if number % 4 == 0 else 0.001)) for number in range(60)]
    for sock in socks:
        with sock:
            assert read_all(sock) == b"slept"
    wait_until(lambda: len(daemon.consumers) == 2)
    daemon.remember()
