"""Plays the service manager: sockets passed to a real process, and a real socket to notify."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaspar import systemd
from gaspar.address import Address, bound, connect, listen

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long
NAMES = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"]

# what a process does that was passed sockets: its own number is in LISTEN_PID, as sd_listen_fds(3) wants it
PROGRAM = """
import os, socket, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from gaspar import systemd
from gaspar.errors import BindError
passed = systemd.passes_sockets()
try:
    listeners = systemd.listeners()
except BindError as error:
    print(error.errno, error.strerror)
    sys.exit()
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(passed, len(listeners), left, systemd.listeners(), systemd.passes_sockets())
for each in listeners:
    assert not each.getblocking() and not each.get_inheritable()
    each.setblocking(True)
    accepted, _ = each.accept()
    data = accepted.recv(5, socket.MSG_WAITALL)
    if data == b"reset":
        accepted.close()
    else:
        accepted.sendall(data.upper())
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
        accepted.close()
"""


@pytest.fixture(autouse=True)
def nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests may itself have been started by a service manager."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket's in it."""
    with tempfile.TemporaryDirectory(prefix="gaspar-") as path:
        yield Path(path)


def pass_on(*fds: int, count: str = "", pid_off_by: int = 0) -> subprocess.Popen[str]:
    """Start a process that has these descriptors from 3 on, and is told so."""
    moved = [os.dup(fd) for fd in fds]  # away from where they go

    def move() -> None:
        for number in range(20, 20 + len(fds)):
            os.dup2(moved[number - 20], number)
        for number in range(len(fds)):
            os.dup2(20 + number, 3 + number)

    environ = dict(
        os.environ, LISTEN_FDS=count or str(len(fds)), LISTEN_FDNAMES="any", PYTHONPATH=os.pathsep.join(sys.path)
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(pid_off_by)],
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
            close_fds=False,
            preexec_fn=move,
        )
    finally:
        for fd in moved:
            os.close(fd)


def said(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    return out.strip()


# ---- sockets ----


def test_a_passed_socket_is_listened_on_and_its_connections_end_in_a_reset_unless_told_otherwise() -> None:
    with listen(Address("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        process = pass_on(first.fileno(), second.fileno())
        with connect(bound(first), TIMEOUT) as client:
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"HELLO"
            assert client.recv(1) == b""
        with connect(bound(second), TIMEOUT) as client:
            client.sendall(b"reset")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert said(process) == "True 2 [] [] False"


def test_a_passed_unix_socket_is_listened_on(folder: Path) -> None:
    with listen(Address(path=str(folder / "s"))) as listener:
        process = pass_on(listener.fileno())
        with connect(bound(listener), TIMEOUT) as client:
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"HELLO"
        assert said(process) == "True 1 [] [] False"


def test_sockets_that_were_passed_to_another_process_are_not_taken() -> None:
    with listen(Address("127.0.0.1", 0)) as listener:
        assert said(pass_on(listener.fileno(), pid_off_by=1)) == "False 0 [] [] False"


@pytest.mark.parametrize("count", ["0", "x", "-1", "1.5"])
def test_a_count_of_nothing_is_no_socket(count: str) -> None:
    assert said(pass_on(count=count)) == "True 0 [] [] False"


def test_a_datagram_socket_is_explained() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind(("127.0.0.1", 0))
        text = "cannot use the socket passed as descriptor 3: not a listening stream socket"
        assert said(pass_on(wrong.fileno())) == f"0 {text}"


def test_a_socket_that_does_not_listen_is_explained() -> None:
    with listen(Address("127.0.0.1", 0)) as right, socket.socket() as wrong:
        text = "cannot use the socket passed as descriptor 4: not a listening stream socket"
        assert said(pass_on(right.fileno(), wrong.fileno())) == f"0 {text}"


def test_a_descriptor_that_is_no_socket_is_explained() -> None:
    with open(os.devnull) as wrong:
        out = said(pass_on(wrong.fileno()))
    assert out.partition(" ")[2] == f"cannot use the socket passed as descriptor 3: {os.strerror(int(out.split()[0]))}"


def test_a_descriptor_that_is_not_open_is_explained() -> None:
    with listen(Address("127.0.0.1", 0)) as right:
        out = said(pass_on(right.fileno(), count="200"))
    number, _, text = out.partition(" ")
    assert text.startswith("cannot use the socket passed as descriptor ")
    assert text.endswith(os.strerror(int(number)))


def test_without_a_service_manager_there_are_no_sockets() -> None:
    assert not systemd.passes_sockets()
    assert systemd.listeners() == []


# ---- states ----


def test_a_state_is_told_to_who_listens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT)
        manager.bind(str(folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        for state in ("READY=1", "RELOADING=1\nMONOTONIC_USEC=1", "STATUS=größer"):
            systemd.notify(state)
            assert manager.recv(4096).decode() == state


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_a_state_is_told_at_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT)
        manager.bind("")  # the kernel chooses
        name = manager.getsockname()
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:].decode())
        systemd.notify("STOPPING=1")
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("where", ["", "/no/such/folder/socket", "/" + "x" * 200, "@" + "x" * 200])
def test_a_state_that_nobody_listens_to_is_told_to_nobody(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    systemd.notify("READY=1")


def test_a_state_for_a_manager_that_is_gone_is_told_to_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    systemd.notify("READY=1")
