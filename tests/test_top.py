"""The command `gaspar-top` as a person runs it: against the real daemon, with pipes and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rich")

from conftest import ROOT, Daemon, Serve, wait_until

from gaspar import folders

COMMAND = [sys.executable, str(ROOT / "bin" / "gaspar-top")]
TIMEOUT = 60.0  # seconds until something that hangs is ended; nothing here takes that long
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
    "PYTHONWARNINGS": "error",
    "TERM": "xterm",
}
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def control(daemon: Daemon) -> str:
    found = re.search(r"control (\S+?), ", daemon.wait_for_line("ready: listening on "))
    assert found
    return found[1]


def top(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a terminal."""
    environment = {**ENVIRONMENT, **more.pop("env", {})}
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment, **more
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Terminal:
    """A `gaspar-top` in a pseudo-terminal of its own: what it shows, and the keys to press."""

    def __init__(self, *arguments: str, width: int = 80, height: int = 24, **environment: str) -> None:
        self.master, self.slave = os.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # for Ctrl-C and the like
        )
        self.written = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while part := os.read(self.master, 65536):
            self.written += part
            if b"\x00END" in part:
                return

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def screen(self) -> str:
        """The last screen that is all there; each is drawn from the upper left corner on, every line to its end."""
        for drawn in reversed(self.written.decode(errors="replace").split("\x1b[H")):
            lines = _STEERING.sub("", drawn).replace("\r", "").split("\n")
            if len(lines) == self.height and len(lines[-1]) == self.width:
                return "\n".join(line.rstrip() for line in lines)
        return ""

    def wait_for(self, pattern: str) -> str:
        """Wait until the screen matches; returns the match."""

        def matched() -> str | None:
            assert self.process.poll() is None, self.written.decode(errors="replace")
            found = re.search(pattern, self.screen, re.MULTILINE)
            return found and found[0]

        try:
            return wait_until(matched)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} on the screen:\n{self.screen}") from None

    def end(self) -> int:
        """Wait until it has ended; returns its exit code. The terminal must be as it was."""
        code = self.process.wait(TIMEOUT)
        assert termios.tcgetattr(self.slave) == self.before
        os.write(self.slave, b"\x00END")  # behind all that it has written
        self._thread.join(TIMEOUT)
        assert self.written.rindex(b"\x1b[?1049l") > self.written.rindex(b"\x1b[?1049h")
        assert self.written.rindex(b"\x1b[?25h") > self.written.rindex(b"\x1b[?25l")
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._thread.is_alive():
            os.write(self.slave, b"\x00END")
            self._thread.join(TIMEOUT)
        os.close(self.slave)
        os.close(self.master)


Watch = Callable[..., Terminal]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Run commands in terminals; they are ended at the end."""
    terminals: list[Terminal] = []

    def start(*arguments: str, **more: Any) -> Terminal:
        terminals.append(Terminal(*arguments, **more))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def skip_if_not_alone() -> None:
    """Leave out what other daemons of this user disturb: those in /tmp are found from everywhere."""
    if others := folders.controls():
        pytest.skip(f"other daemons run: {others}")


def hang(daemon: Daemon, request: bytes = b"hang in Python") -> None:
    """Have a consumer run for ever."""
    sock = daemon.connect()
    sock.sendall(struct.pack("!I", len(request)) + request)
    daemon.hanging = sock  # type: ignore[attr-defined]


# without a terminal


def test_json_is_what_the_daemon_answers(serve: Serve) -> None:
    daemon = serve("echo", "-p", "2")
    daemon.ask(b"hello")
    done = top("--json", control(daemon))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert set(answer) == {"stats", "consumers"}
    assert answer["stats"]["addresses"] == [daemon.address]
    assert answer["stats"]["requests"]["ok"] == 1
    assert sorted(each["pid"] for each in answer["consumers"]) == daemon.consumers


@pytest.mark.parametrize("options", [["--once"], []], ids=["--once", "no terminal"])
def test_one_view_is_printed_without_steering_a_terminal(serve: Serve, options: list[str]) -> None:
    daemon = serve("echo", "-p", "3")
    daemon.ask(b"hello")
    done = top(*options, control(daemon))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert re.match(rf"gaspar \S+   ok   {daemon.address} +pid {daemon.process.pid}, up ", lines[0])
    assert "since start  1 ok   none failed" in lines
    rows = [line.split()[:3] for line in lines[-3:]]
    assert sorted(int(pid) for _, pid, _ in rows) == daemon.consumers
    assert {state for _, _, state in rows} == {"idle"}


def test_an_encoding_without_blocks_gets_what_it_has(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    daemon.ask(b"hello")
    done = top("--once", control(daemon), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert re.search(r"^answered/s +\.*#?\.* ", done.stdout, re.MULTILINE)


def test_the_only_daemon_is_found(serve: Serve) -> None:
    daemon = serve("echo", "-p", "1")
    done = top("--json", env={"TMPDIR": daemon.folder, "XDG_RUNTIME_DIR": ""})
    skip_if_not_alone()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stats"]["pid"] == daemon.process.pid


def test_of_several_daemons_one_has_to_be_chosen(serve: Serve) -> None:
    daemons = [serve("echo", "-p", "1") for _ in range(2)]
    done = top(env={"TMPDIR": daemons[0].folder, "XDG_RUNTIME_DIR": daemons[1].folder})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(r"gaspar-top: there are \d+ daemons of this user, choose one:\n", done.stderr)
    for daemon in daemons:
        assert f"\n  gaspar-top {control(daemon)}\n" in done.stderr


def test_without_a_daemon_there_is_one_line_that_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = top(env={"TMPDIR": folder, "XDG_RUNTIME_DIR": ""})
    skip_if_not_alone()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "gaspar-top: no daemon of this user is found; name its control address: gaspar-top ADDRESS\n"
    )


def test_an_address_where_nobody_listens(tmp_path: Path) -> None:
    done = top("--once", f"unix:{tmp_path}/none")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"gaspar-top: unix:\S+: nobody listens there.*\n", done.stderr)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("echo", "this is not the control address of a daemon, it answered b'stats'"),
        ("sized", "is this a control addr"),
    ],
)
def test_the_address_of_the_handler_is_not_the_control_address(serve: Serve, handler: str, words: str) -> None:
    daemon = serve(handler, "-p", "1")
    done = top("--json", daemon.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gaspar-top: {daemon.address}: {words}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["localhost"], "localhost"),
        (["--interval", "0", "127.0.0.1:1"], "0: expected 0.1 to 3600 seconds"),
        (["--interval", "nan", "127.0.0.1:1"], "nan: expected 0.1 to 3600 seconds"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], words: str) -> None:
    done = top(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_rich_it_says_how_to_get_it_and_json_needs_it_not(serve: Serve) -> None:
    program = "import sys; sys.modules['rich'] = None; from gaspar.top import top; top(prog_name='gaspar-top')"
    arguments = [sys.executable, "-c", program, control(serve("echo", "-p", "1"))]
    more: dict[str, Any] = {"capture_output": True, "text": True, "timeout": TIMEOUT, "check": False, "cwd": ROOT}
    done = subprocess.run(arguments, **more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gaspar-top: ")
    assert "pip install 'gaspar[top]'" in done.stderr
    done = subprocess.run([*arguments, "--json"], **more)
    assert done.returncode == 0, done.stderr


# in a terminal


def test_the_keys_do_what_the_help_says(serve: Serve, watch: Watch) -> None:
    daemon = serve("faulty", "-p", "2")
    hang(daemon)
    terminal = watch(control(daemon))
    terminal.wait_for(r"^gaspar \S+   ok   127")
    terminal.wait_for(r"^ +\d +\d+  busy ")
    terminal.press("sss")
    terminal.wait_for(r"age▼.*\n +\d +\d+  busy .*\n +\d +\d+  idle ")
    terminal.press("S")
    terminal.wait_for(r"age▲")
    terminal.press("\x1b[B")
    terminal.wait_for(r"^▶ +\d +\d+  busy ")
    terminal.press("\r")
    terminal.wait_for(r"^consumer \d, pid \d+: request \d+, for (.*\n)+.*_hang_in_python")
    terminal.press("\x1b")
    terminal.wait_for(r"pid  state")
    terminal.press("?")
    terminal.wait_for(r"^lag  .*what it has to do")
    terminal.press("?")
    terminal.wait_for(r"pid  state")
    terminal.press("q")
    assert terminal.end() == 0
    daemon.signal(signal.SIGQUIT)
    assert daemon.end() == 0


def test_fresh_numbers_come_by_themselves_but_not_in_a_pause(serve: Serve, watch: Watch) -> None:
    daemon = serve("echo", "-p", "1")
    terminal = watch(control(daemon), "--interval", "0.1")
    terminal.wait_for("since start  0 ok")
    daemon.ask(b"hello")
    terminal.wait_for("since start  1 ok")
    terminal.press(" ")
    terminal.wait_for("PAUSED$")
    daemon.ask(b"hello")
    terminal.resize(100, 30)  # is drawn anew in a pause too, from the old numbers
    assert "since start  1 ok" in terminal.wait_for(r"most \d+\n(.*\n)+.*since start.*\n")
    terminal.press(" ")
    terminal.wait_for("since start  2 ok")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_reload_is_asked_for_first(serve: Serve, watch: Watch) -> None:
    daemon = serve("echo", "-p", "1")
    terminal = watch(control(daemon), "--interval", "0.1")
    terminal.wait_for("pid  state")
    terminal.press("r")
    terminal.wait_for("^Load the handler's code anew. y/n")
    terminal.press("n")
    terminal.wait_for("^q quit")
    assert "reloading" not in daemon.log
    terminal.press("ry")
    terminal.wait_for("^reload ordered")
    daemon.wait_for_line("reloading")
    terminal.wait_for(r" idle .* 2$")
    terminal.press("q")
    assert terminal.end() == 0


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_more_consumers_than_lines_are_counted(serve: Serve, watch: Watch, size: tuple[int, int]) -> None:
    daemon = serve("echo", "-p", "48")
    terminal = watch(control(daemon), width=size[0], height=size[1])
    terminal.wait_for(r"^  … \d+ more")
    rows = terminal.screen.count("  idle ")
    terminal.wait_for(rf"^  … {48 - rows} more\n")
    terminal.press("\x1b[A")
    terminal.wait_for(r"^▶ +48 ")
    terminal.press("q")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("keys", "number"), [("\x03", signal.SIGINT), ("", signal.SIGTERM), ("", signal.SIGHUP)], ids=["^C", "TERM", "HUP"]
)
def test_a_signal_leaves_the_terminal_as_it_was(serve: Serve, watch: Watch, keys: str, number: int) -> None:
    terminal = watch(control(serve("echo", "-p", "1")))
    terminal.wait_for("pid  state")
    if keys:
        terminal.press(keys)
    else:
        terminal.process.send_signal(number)
    assert terminal.end() == 128 + number


def test_control_z_gives_the_terminal_back_until_it_goes_on(serve: Serve, watch: Watch) -> None:
    terminal = watch(control(serve("echo", "-p", "1")))
    terminal.wait_for("pid  state")
    # not by the key: a process group without a shell cannot be stopped by its terminal
    terminal.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert termios.tcgetattr(terminal.slave) == terminal.before
    wait_until(lambda: terminal.written.count(b"\x1b[?1049l") == 1)
    terminal.process.send_signal(signal.SIGCONT)
    wait_until(lambda: terminal.written.count(b"\x1b[?1049h") == 2)
    terminal.wait_for("pid  state")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_daemon_that_goes_is_waited_for(serve: Serve, watch: Watch, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/c"
    daemon = serve("echo", "-p", "1", "--control", address)
    terminal = watch(address, "--interval", "0.1")
    terminal.wait_for(f"pid {daemon.process.pid}, up")
    assert daemon.stop() == 0
    terminal.wait_for(r" NO ANSWER (.*\n)+no answer for .* trying again:\s+unix")
    daemon = serve("echo", "-p", "1", "--control", address)
    terminal.wait_for(rf"   ok   .*pid {daemon.process.pid}, up")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_daemon_that_is_found_anew_has_another_address(serve: Serve, watch: Watch) -> None:
    skip_if_not_alone()
    folder = tempfile.mkdtemp(prefix="g-", dir="/tmp")
    daemon = serve("echo", "-p", "1", folder=folder)
    first = control(daemon)
    terminal = watch("--interval", "0.1", TMPDIR=folder, XDG_RUNTIME_DIR="")
    terminal.wait_for(f"pid {daemon.process.pid}, up")
    assert daemon.stop() == 0
    terminal.wait_for("NO ANSWER")
    daemon = serve("echo", "-p", "1", folder=folder)
    assert control(daemon) != first
    terminal.wait_for(rf"   ok   .*pid {daemon.process.pid}, up")
    terminal.press("q")
    assert terminal.end() == 0


def test_draining_is_seen(serve: Serve, watch: Watch, tmp_path: Path) -> None:
    daemon = serve("await_file", "-p", "1")
    hang(daemon, str(tmp_path / "go").encode())
    terminal = watch(control(daemon), "--interval", "0.1")
    terminal.wait_for(r"  busy ")
    daemon.signal(signal.SIGTERM)
    terminal.wait_for(r" FAILING .*\n.*draining")
    (tmp_path / "go").touch()
    assert daemon.end() == 0
    terminal.wait_for("NO ANSWER")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_front_that_stands_still_does_not_hold_up_the_keys(serve: Serve, watch: Watch) -> None:
    daemon = serve("echo", "-p", "1")
    terminal = watch(control(daemon), "--interval", "0.1")
    terminal.wait_for("pid  state")
    os.kill(daemon.front, signal.SIGSTOP)
    for _ in range(3):
        terminal.press("?")
        terminal.wait_for("^lag  ")
        terminal.press("?")
        terminal.wait_for("pid  state")
    terminal.press("q")
    assert terminal.end() == 0
    # the supervisor replaces it after 2 s; a question that is not answered takes longer
    assert psutil.Process(daemon.front).status() == psutil.STATUS_STOPPED
    os.kill(daemon.front, signal.SIGCONT)


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_that_cannot_be_drawn_on_gets_one_view(serve: Serve, watch: Watch, terminal: str) -> None:
    shown = watch(control(serve("echo", "-p", "1")), TERM=terminal)
    assert shown.process.wait(TIMEOUT) == 0
    wait_until(lambda: b"up for" in shown.written)
    assert b"\x1b[?1049h" not in shown.written


def test_no_color_is_respected(serve: Serve, watch: Watch) -> None:
    terminal = watch(control(serve("echo", "-p", "1")), NO_COLOR="1")
    terminal.wait_for("pid  state")
    terminal.press("q")
    assert terminal.end() == 0
    colours = re.findall(rb"\x1b\[(?:\d+;)*(?:3|4|9)[0-7](?:;\d+)*m", terminal.written)
    assert colours == []
