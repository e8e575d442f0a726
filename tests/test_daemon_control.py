"""The control address of the real daemon, by the wire: what it says, what it does, and when it says no."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import stat
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import framed_client
import pytest
from conftest import ROOT, Daemon, Serve, wait_until

import gaspar

Ask = Callable[[str], Any]


def asker(daemon: Daemon) -> Ask:
    return lambda command: json.loads(gaspar.request(daemon.control, command.encode(), 30))


@contextlib.contextmanager
def held(daemon: Daemon, folder: pathlib.Path, count: int) -> Iterator[None]:
    """Requests that run until the end of the context."""
    gate = folder / f"gate{count}"
    with gaspar.Client(daemon.address) as client:
        futures = [client.submit(bytes(gate)) for _ in range(count)]
        try:
            yield
        finally:
            gate.touch()
            for future in futures:
                with contextlib.suppress(gaspar.GasparError):
                    future.result(60)


def busy(ask: Ask, count: int) -> bool:
    return bool(ask("stats")["consumers"]["busy"] == count)


# ---- where it is ----


def test_the_control_address_is_a_socket_for_its_user_alone_in_the_private_directory(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    path = daemon.control.removeprefix("unix:")
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_control_address_can_be_chosen(serve: Serve, tmp_path: pathlib.Path, kind: str) -> None:
    chosen = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/c"
    daemon = serve("echo", "-p", "1", "--control", chosen)
    assert daemon.control.startswith(chosen.removesuffix("0"))
    assert asker(daemon)("health") == {"status": "ok", "reasons": []}
    assert daemon.stop() == 0
    assert not (tmp_path / "c").exists()


def test_a_control_address_that_cannot_be_listened_on_ends_the_start(serve: Serve, launch: Serve) -> None:
    taken = serve("echo", "-p", "1").address
    daemon = launch("echo", "--control", taken)
    assert daemon.end() == 4
    assert f"cannot listen on {taken}" in daemon.log


# ---- numbers ----


def test_each_outcome_is_counted(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "1", "--max-message", "1K", "--depth", "1", "--max-waiting", "2")
    ask = asker(daemon)
    with gaspar.Client(daemon.address) as client:
        assert client.request(b"x" * 100) == b"x" * 100
        for message in (b"raise", b"return None", b"os._exit(7)"):
            with pytest.raises(gaspar.RequestError):
                client.request(message)
        wait_until(lambda: ask("stats")["consumers"]["idle"] == 1)
        gate = tmp_path / "gate"
        begun = client.submit(bytes(gate))
        wait_until(lambda: busy(ask, 1))
        with pytest.raises(gaspar.RequestTimeout):
            client.request(b"late", 0.01)
        cancelled = client.submit(b"never")
        filling = client.submit(b"last")
        with pytest.raises(gaspar.Overloaded):
            client.request(b"too many")
        now = ask("stats")
        assert (now["in_flight"] + now["waiting"]["now"], now["connections"]["framed"]) == (3, 1)
        cancelled.cancel()
        gate.touch()
        assert (begun.result(), filling.result()) == (bytes(gate), b"last")
    for refused in (b"nonsense", struct.pack("!I", 1025)):
        with daemon.connect() as sock:
            sock.sendall(refused)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert daemon.ask(b"one-shot") == b"one-shot"
    stats = ask("stats")
    wanted = {"ok": 4, "handler_error": 1, "bad_reply": 1, "consumer_lost": 1, "too_big": 1}
    wanted |= {"timeout": 1, "overloaded": 1, "cancelled": 1, "bad_frame": 1, "shutting_down": 0, "unavailable": 0}
    assert stats["requests"] == wanted
    assert stats["wait"]["start"]["count"] == stats["run"]["minute"]["count"] == 6  # those that a consumer answered
    assert stats["restarts"]["crashed"] == 1
    assert stats["bytes"]["in"] > 100 and stats["bytes"]["out"] > 100
    assert stats["connections"]["accepted"]["one_shot"] >= 2


def test_consumers_say_what_each_does(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "2")
    ask = asker(daemon)
    with held(daemon, tmp_path, 1):
        wait_until(lambda: busy(ask, 1))
        one, other = sorted(ask("consumers")["consumers"], key=lambda each: each["state"])
        assert {one["pid"], other["pid"]} == set(daemon.consumers)
        assert (one["state"], other["state"], other["age"], other["request"]) == ("busy", "idle", None, None)
        assert one["age"] >= 0 and int(one["request"]) > 0
        assert all(each["private"] > 0 and each["shared"] > 0 and each["generation"] == 1 for each in (one, other))
        assert abs(one["started"] - time.time()) < 3600
    wait_until(lambda: ask("consumers")["consumers"][0]["done"] + ask("consumers")["consumers"][1]["done"] == 1)


def test_a_new_front_goes_on_answering_and_knows_the_restarts(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "1")
    ask = asker(daemon)
    with pytest.raises(ConnectionError):
        daemon.ask(b"os._exit(7)")
    wait_until(lambda: ask("stats")["restarts"]["crashed"] == 1)
    os.kill(daemon.front, signal.SIGKILL)
    daemon.wait_for_line("front .* ended")
    stats = ask("stats")  # the backlog waited for it
    assert (stats["front"]["generation"], stats["requests"]["consumer_lost"]) == (2, 0)
    wait_until(lambda: ask("stats")["restarts"]["crashed"] == 1)


# ---- while it goes badly ----


def test_all_is_answered_while_every_consumer_hangs_and_health_fails_when_they_cannot_answer(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "2", "--health-wait", "0.05", "--timeout", "60")
    ask = asker(daemon)
    with gaspar.Client(daemon.address) as client:
        hung = [client.submit(b"hang in Python"), client.submit(b"hang in C")]
        wait_until(lambda: busy(ask, 2))
        health = wait_until(lambda: (told := ask("health"))["status"] == "failing" and told)
        assert "each consumer has been in one request for longer than 0.05 s (--health-wait)" in health["reasons"]
        waiting = client.submit(b"waits")
        wait_until(lambda: any("a request has waited for" in each for each in ask("health")["reasons"]))
        stats = ask("stats")
        assert stats["waiting"]["oldest"] > 0.05 and stats["health"]["status"] == "failing"
        stacks = [ask(f"stack {each['number']}") for each in ask("consumers")["consumers"]]
        assert all("handlers.py" in each["stack"] and each["age"] > 0 and each["request"] for each in stacks)
        for future in (*hung, waiting):
            future.cancel()
    daemon.signal(signal.SIGQUIT)


def test_the_stack_of_an_idle_consumer_says_that_it_waits_and_harms_nothing(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    ask = asker(daemon)
    for _ in range(20):
        told = ask("stack 1")
        assert (told["number"], told["pid"], told["age"], told["request"]) == (1, daemon.consumers[0], None, None)
        assert "in wait" in told["stack"]
    assert daemon.ask(b"well") == b"well"


def test_a_stack_that_nobody_can_give_is_an_error_in_bounded_time(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    os.kill(daemon.forker, signal.SIGSTOP)
    try:
        with gaspar.Client(daemon.control) as client, pytest.raises(gaspar.HandlerError, match="did not come within"):
            client.request(b"stack 1")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.forker, signal.SIGCONT)
    wait_until(lambda: daemon.ask(b"well") == b"well")
    daemon.remember()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (b"", "expected one of stats, health"),
        (b"foo", "'foo': expected one of"),
        (b"stats please", "expected one of"),
        (b"stack", "expected stack N"),
        (b"stack x", "expected stack N"),
        (b"stack 77", "no consumer 77"),
        (b"stack " + b"9" * 5000, "a request of 5006 bytes"),
        (b"scale 0", "from 1 to 1024"),
        (b"scale 2000", "from 1 to 1024"),
        (b"scale -1", "from 1 to 1024"),
        ("scale ²".encode(), "from 1 to 1024"),
        (b"\xff\xfe", "expected one of"),
    ],
)
def test_what_cannot_be_answered_is_an_error_that_says_what_there_is(serve: Serve, command: bytes, says: str) -> None:
    daemon = serve("echo", "-p", "1")
    with gaspar.Client(daemon.control) as client, pytest.raises(gaspar.HandlerError, match=says):
        client.request(command)
    with pytest.raises(ConnectionError):  # one-shot: no whole reply
        gaspar.request(daemon.control, command)
    assert asker(daemon)("health")["status"] == "ok"


# ---- orders ----


def test_reload_scale_and_drain_do_what_the_signals_do(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "1")
    ask = asker(daemon)
    assert ask("scale 3\n") == {"ordered": "scale", "processes": 3}
    wait_until(lambda: ask("stats")["consumers"]["idle"] == 3)
    assert ask("stats")["processes"] == 3
    assert ask("reload") == {"ordered": "reload"}
    daemon.wait_for_line("reloaded in")
    wait_until(lambda: {each["generation"] for each in ask("consumers")["consumers"]} == {2})
    wait_until(lambda: ask("stats")["restarts"]["reload"] == 3)
    assert ask("scale 1")["processes"] == 1
    wait_until(lambda: ask("stats")["restarts"]["scaled"] == 2)
    daemon.remember()
    with held(daemon, tmp_path, 1):
        wait_until(lambda: busy(ask, 1))
        assert ask("drain") == {"ordered": "drain"}
        daemon.wait_for_line("draining")
        wait_until(lambda: ask("health")["status"] == "failing")
        assert ask("health")["reasons"] == ["draining: it is about to stop"]
        ask("drain")  # a second one does not stop it at once
        assert ask("stats")["draining"] is True
        for order in (b"reload", b"scale 2"):
            with gaspar.Client(daemon.control) as client, pytest.raises(gaspar.HandlerError, match="is draining"):
                client.request(order)
    assert daemon.end() == 0


# ---- in the log ----


def test_a_slow_request_is_logged_with_its_stack_while_it_runs_under_its_clients_name(
    serve: Serve, tmp_path: pathlib.Path
) -> None:
    daemon = serve("faulty", "-p", "1", "--slow", "0.05")
    meta = {"request_id": "order 17", "traceparent": "not this one"}
    with held_by_meta(daemon, bytes(tmp_path / "gate"), meta) as finish:
        line = daemon.wait_for_line(r"request order 17 of 127.* has run for .* \(--slow\), and runs on")
        assert "WARNING" in line
        daemon.wait_for_line("in await_file")
        (tmp_path / "gate").touch()
        assert finish() == bytes(tmp_path / "gate")
    assert daemon.log.count("--slow") == 1


@pytest.mark.parametrize(
    ("meta", "called"),
    [
        ({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "00-4bf92f3577b34da6a3ce929d0e"),
        ({"request_id": "two\nlines"}, "[0-9]+: handler raised"),
        ({"request_id": 17}, "[0-9]+: handler raised"),
        ({"request_id": "x" * 129}, "[0-9]+: handler raised"),
    ],
)
def test_lines_about_a_request_name_it(serve: Serve, meta: dict[str, object], called: str) -> None:
    daemon = serve("faulty", "-p", "1")
    with pytest.raises(gaspar.HandlerError), held_by_meta(daemon, b"raise", meta) as finish:
        finish()
    daemon.wait_for_line("request " + called)


def test_both_clients_name_their_requests(serve: Serve) -> None:
    daemon = serve("streams", "-p", "1")

    async def ask() -> None:
        async with gaspar.aio.Client(daemon.address) as client:
            with pytest.raises(gaspar.HandlerError):
                await client.request(b"raise", request_id="three")
            with pytest.raises(gaspar.HandlerError):
                async for _ in client.stream(b"raise", request_id="four"):
                    pass

    with gaspar.Client(daemon.address) as client:
        for name in ("x" * 129, "two\nlines"):
            with pytest.raises(ValueError, match="1 to 128 printable"):
                client.request(b"", request_id=name)
        with pytest.raises(gaspar.HandlerError):
            client.request(b"raise", request_id="one")
        with pytest.raises(gaspar.HandlerError):
            client.submit(b"raise", request_id="two").result()
        with pytest.raises(gaspar.HandlerError):
            list(client.stream(b"raise", request_id="five"))
    asyncio.run(ask())
    for name in ("one", "two", "three", "four", "five"):
        daemon.wait_for_line(f"request {name}: handler raised")


def test_json_lines_can_be_read_by_machines(serve: Serve) -> None:
    daemon = serve("faulty", "-p", "1", "--log-format", "json")
    with pytest.raises(gaspar.HandlerError), held_by_meta(daemon, b"raise", {"request_id": "r1"}) as finish:
        finish()
    daemon.wait_for_line("handler raised")
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert all({"time", "level", "logger", "pid", "message"} <= line.keys() for line in lines)
    raised = next(line for line in lines if "handler raised" in line["message"])
    assert raised["request"] == "r1" and "ValueError: the handler's own words" in raised["exception"]


@contextlib.contextmanager
def held_by_meta(daemon: Daemon, message: bytes, meta: dict[str, object]) -> Iterator[Callable[[], bytes]]:
    """A request with meta, over plain frames; yields what waits for its reply."""
    with framed_client.FramedClient(daemon) as client:
        client.send(framed_client.request(1, message, meta=json.dumps(meta).encode()))

        def finish() -> bytes:
            frame = client.answers(1)[1]
            if frame.code:
                raise gaspar.errors.restore(frame.code, bytes(frame.body), None)
            return bytes(frame.body)

        yield finish


# ---- HTTP ----


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_prometheus_reads_what_the_control_address_says(serve: Serve, tmp_path: pathlib.Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    daemon = serve("faulty", "-p", "2", "--metrics", "127.0.0.1:0")
    url = metrics_url(daemon)
    for _ in range(5):
        daemon.ask(b"well")
    status, text = get(url + "/metrics")
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert status == 200
    outcomes = {sample.labels["outcome"]: sample.value for sample in families["gaspar_requests"].samples}
    assert outcomes["ok"] == 5
    runs = families["gaspar_run_seconds"].samples
    assert {sample.value for sample in runs if sample.labels.get("le") == "+Inf"} == {5}
    counts = [sample.value for sample in runs if sample.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert {sample.labels["state"]: sample.value for sample in families["gaspar_consumers"].samples}["idle"] == 2
    assert get(url + "/healthz") == (200, '{"status": "ok", "reasons": []}\n')
    assert get(url + "/")[0] == 404


def test_healthz_says_503_while_draining(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve("faulty", "-p", "1", "--metrics", "127.0.0.1:0")
    url = metrics_url(daemon)
    with held(daemon, tmp_path, 1):
        wait_until(lambda: busy(asker(daemon), 1))
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_for_line("draining")
        _, text = wait_until(lambda: (told := get(url + "/healthz"))[0] == 503 and told)
        assert json.loads(text)["status"] == "failing"
    assert daemon.end() == 0


def metrics_url(daemon: Daemon) -> str:
    found = re.search("metrics on (http://.+?)/metrics", daemon.wait_for_line("metrics on"))
    assert found
    return found[1]


# ---- gaspar-call --health ----


def call(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, TMPDIR=daemon.folder, PYTHONPATH=str(ROOT))
    env.pop("XDG_RUNTIME_DIR", None)
    return subprocess.run(
        [sys.executable, ROOT / "bin" / "gaspar-call", "--health", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("named", [True, False])
def test_health_is_told_by_an_exit_code(serve: Serve, tmp_path: pathlib.Path, named: bool) -> None:
    daemon = serve("faulty", "-p", "1")
    where = [daemon.control] if named else []
    well = call(daemon, *where)
    assert (well.returncode, well.stdout, well.stderr) == (0, "ok\n", "")
    with held(daemon, tmp_path, 1):
        wait_until(lambda: busy(asker(daemon), 1))
        asker(daemon)("drain")
        daemon.wait_for_line("draining")
        ill = wait_until(lambda: (told := call(daemon, *where)).returncode and told)
        assert (ill.returncode, ill.stdout) == (1, "failing; draining: it is about to stop\n")
    daemon.process.wait(60)
    gone = call(daemon, daemon.control)
    assert gone.returncode == 1 and "nobody listens there" in gone.stderr
    nobody = call(daemon)
    assert nobody.returncode == 2 and "none does" in nobody.stderr


def test_the_health_of_an_address_for_clients_is_not_told(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    done = call(daemon, daemon.address)
    assert done.returncode == 1
    assert f"{daemon.address} is no control address: it answered b'health'" in done.stderr
