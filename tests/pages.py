"""Reads the documentation as a person does: its code blocks, and what a shell shows for them. Tests are elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT, Daemon

_DIRECTIVE = re.compile(r"^( *)\.\. (code-block|literalinclude):: *(.*)$")
_TIME = 60  # seconds until something that hangs is ended; nothing here takes that long
_COMMANDS = {  # as they are installed, with this Python and from this checkout
    "gaspar-call": [str(ROOT / "bin" / "gaspar-call")],
    "gaspar-serve": [str(ROOT / "bin" / "gaspar-serve")],
    "gaspar-top": [str(ROOT / "bin" / "gaspar-top")],
    "flask": ["-m", "flask"],
    "gunicorn": ["-m", "gunicorn"],
    "pytest": ["-m", "pytest"],
    "python": [],
    "uvicorn": ["-m", "uvicorn"],
}
# what is never twice the same: local time, a pid, a measurement, what depends on the machine
_VARIABLE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})|(?P<bracket>\[\d+\])|(?P<pid>pid \d+)"
    r"|(?P<number>(?<![\d.])\d+\.\d{1,4}(?![\d.]))"
    r"|(?P<count>\d+(?= (?:ms|MiB|consumers?|CPUs?)\b))|(?P<dots>\.\.\.)|(?P<space> +)"
)
_PATTERNS = {
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}",
    "bracket": r"\[\d+\]",
    "pid": r"pid \d+",
    "number": r"\d+\.\d+",
    "count": r"\d+",
    "dots": ".*",
    "space": " +",
}


class Block(NamedTuple):
    """One code block of a page."""

    page: str  # README.rst, docs/tutorial.rst, ...
    number: int  # from 1
    language: str  # "": a literal block behind `::`
    caption: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}, block {self.number} ({self.language or 'literal'}: {self.text.splitlines()[0]!r})"


def pages() -> list[str]:
    """List all pages."""
    found = sorted((ROOT / "docs").rglob("*.rst"))
    return ["README.rst", *(str(each.relative_to(ROOT)) for each in found)]


def blocks(page: str) -> list[Block]:
    """List the code blocks of a page. That none is missed is a test's affair: it asks Sphinx, too."""
    found: list[Block] = []
    lines = (ROOT / page).read_text().splitlines()
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        directive = _DIRECTIVE.match(line)
        is_literal = line.endswith("::") and not line.lstrip().startswith(".. ")
        if not directive and not is_literal:
            continue
        margin = len(line) - len(line.lstrip())
        body = []
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" " * (margin + 1))):
            body.append(lines[at])
            at += 1
        inside = textwrap.dedent("\n".join(body))
        language = caption = ""
        if directive:
            language = directive[3] if directive[2] == "code-block" else directive[2]
            options = re.match(r"\n?((?::.*\n?)*)", inside)
            assert options
            inside = inside[options.end() :]
            caption = (re.findall(r"^:caption: (.*)$", options[1], re.MULTILINE) or [""])[0]
            if directive[2] == "literalinclude":
                inside = directive[3]
        found.append(Block(page, len(found) + 1, language, caption, inside.strip("\n")))
    return found


def commands(text: str) -> list[tuple[str, str]]:
    """Split what a terminal shows into commands and what each of them says."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            assert found, f"it has to begin with a command: {text}"
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def assert_shows(shown: str, real: str) -> None:
    """Compare what a page shows with what came; `...` is anything, on a line of its own any number of lines."""
    lines = []
    for line in shown.strip().splitlines():
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(_as_pattern(line.rstrip()) + r" *\n")
    assert re.fullmatch("".join(lines), real.strip() + "\n"), f"a page shows\n{shown}\nand it is\n{real}"


def _as_pattern(line: str) -> str:
    done, at = "", 0
    for match in _VARIABLE.finditer(line):
        done += re.escape(line[at : match.start()]) + _PATTERNS[match.lastgroup or ""]
        at = match.end()
    return done + re.escape(line[at:])


class Server:
    """A program that a page leaves running in another terminal."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.output += line
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something; return the match."""
        with self._news:
            self._news.wait_for(lambda: self._ended or re.search(pattern, self.output), _TIME)
        match = re.search(pattern, self.output)
        assert match, f"it never said {pattern}:\n{self.output}"
        return match

    def end(self) -> None:
        """Stop it, and all that it started."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_TIME)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(_TIME)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Reader:
    """Somebody who reads one page from its beginning to its end, and does what it says in a folder of their own."""

    def __init__(self, folder: Path, serve: Callable[..., Daemon]) -> None:
        self.folder = folder
        self._serve = serve
        self._ports: dict[str, str] = {}  # those of the page, and the real ones
        self._daemon: Daemon | None = None
        self._servers: list[Server] = []
        self._bin = folder.parent / f"{folder.name}-bin"
        self._bin.mkdir()
        for name, arguments in _COMMANDS.items():
            script = self._bin / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *arguments])} "$@"\n')
            script.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What the reader's shells have."""
        more = {"PATH": f"{self._bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        if "10123" in self._ports:
            more["GASPAR_ADDRESS"] = f"127.0.0.1:{self._ports['10123']}"
        return {**os.environ, **more, "LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "ignore"}

    def text(self, text: str) -> str:
        """Return a block's text with the ports that things really have."""
        for shown, real in self._ports.items():
            text = re.sub(rf"\b{shown}\b", real, text)
        return text.replace(".venv/bin/", "")

    def save(self, name: str, text: str) -> Path:
        """Put a block into a file."""
        path = self.folder / name
        # a server's own port is not known yet
        path.write_text(re.sub(r"\b10123\b", self._ports.get("10123", "10123"), text) + "\n")
        return path

    def run(self, program: Path) -> str:
        """Run a program to its end; returns what it prints."""
        done = subprocess.run(
            [sys.executable, program],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIME,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        """Type the commands of a block into one shell, and compare what it says with what the block shows."""
        typed = commands(self.text(text))
        script = "exec 2>&1\n"
        for command, _ in typed:
            script += f"{command}\n__code=$?; printf '\\n@@@\\n'; (exit $__code)\n"
        bash = shutil.which("bash")
        assert bash
        done = subprocess.run(
            [bash, "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_TIME,
            check=False,
        )
        said = done.stdout.decode(errors="backslashreplace").split("\n@@@\n")
        assert len(said) == len(typed) + 1, said
        for (command, shown), real in zip(typed, said, strict=False):
            assert_shows(f"$ {command}\n{shown}", f"$ {command}\n{real}")

    def serve(self, handler: str, *options: str) -> Daemon:
        """Start the daemon that the page calls 127.0.0.1:10123; an earlier one is stopped."""
        self.leave_daemon()
        path, colon, attribute = handler.rpartition(":")
        self._daemon = self._serve(f"{self.folder / path}{colon}{attribute}", *options)
        self._ports["10123"] = self._daemon.address.rpartition(":")[2]
        return self._daemon

    def leave_daemon(self) -> None:
        """Stop the daemon, if there is one."""
        if self._daemon is not None:
            assert self._daemon.stop() == 0
            self._daemon = None

    def type_serve(self, text: str) -> None:
        """Type gaspar-serve; compare what it says with what the block shows."""
        ((command, shown),) = commands(text.replace(".venv/bin/", ""))
        name, *options, handler = shlex.split(command)
        assert name == "gaspar-serve"
        daemon = self.serve(handler, *options)
        if shown:
            assert_shows(self.text(shown), daemon.log)

    def type_server(self, text: str) -> None:
        """Type a command that goes on and serves HTTP at what the page calls port 8000."""
        self.leave_servers()
        ((command, shown),) = commands(text)
        for script in self.folder.glob("*.py"):
            script.write_text(re.sub(r"\b8000\b", "0", script.read_text()))
        server = self.start(*shlex.split(re.sub(r"\b8000\b", "0", command)))
        self._ports["8000"] = server.wait_for(r"http://127\.0\.0\.1:(\d+).*\n")[1]
        assert_shows(self.text(shown).strip() + "\n...", server.output)

    def start(self, name: str, *arguments: str) -> Server:
        """Start a command in another terminal."""
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        server = Server([str(self._bin / name), *arguments], self.folder, environment)
        self._servers.append(server)
        return server

    def leave_servers(self) -> None:
        """Stop the programs in other terminals."""
        while self._servers:
            self._servers.pop().end()


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
