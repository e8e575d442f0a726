"""The private directory of a daemon: where it is, what its files are called, who holds and who removes it."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile

_PREFIX = "gaspar-"
_LOCK = "daemon.lock"  # held while any process of the daemon lives


def front_lock(folder: str) -> str:
    """The lock file that a front holds while it lives."""
    return f"{folder}/front.lock"


def control_path(folder: str) -> str:
    """The socket on which the daemon answers its operator, if no other address was given."""
    return f"{folder}/control"


def results_path(folder: str, generation: int) -> str:
    """The socket on which a front takes results."""
    return f"{folder}/f{generation}"


def jobs_path(folder: str, number: int) -> str:
    """The socket on which a consumer takes jobs."""
    return f"{folder}/c{number}"


def claims_path(folder: str, number: int) -> str:
    """The FIFO of the jobs that a consumer was sent and has not begun."""
    return f"{folder}/c{number}.claims"


def credits_path(folder: str, number: int) -> str:
    """The FIFO of what clients have taken of the reply that a consumer streams."""
    return f"{folder}/c{number}.credits"


def forget_consumer(folder: str, number: int) -> None:
    """Remove the files of a consumer that has ended; a front that needs them has them open."""
    for path in claims_path(folder, number), credits_path(folder, number), jobs_path(folder, number):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def make() -> str:
    """Make the private directory; remove those of daemons that were killed with all their processes."""
    parent = _parent()
    for old in glob.glob(os.path.join(glob.escape(parent), _PREFIX + "*")):
        lock = os.path.join(old, _LOCK)
        with contextlib.suppress(OSError):
            if os.stat(lock).st_uid == os.geteuid() and not is_held(lock):
                shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    lock = os.path.join(folder, _LOCK)
    hold(lock + ".new")  # by all of this daemon's processes, which inherit it
    os.rename(lock + ".new", lock)  # nobody sees it before it is held
    return folder


def _parent() -> str:
    """Return where the private directory goes: a Unix address in it has to fit into 108 bytes."""
    for folder in _parents():
        if len(os.fsencode(folder)) <= 60 and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return tempfile.gettempdir()


def _parents() -> list[str]:
    """List where private directories may be, the best first, each once."""
    found: dict[str, str] = {}
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
        if folder:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def controls() -> list[str]:
    """List the control sockets of the daemons of this user that live and have theirs in the private directory."""
    found = []
    for parent in _parents():
        for folder in sorted(glob.glob(os.path.join(glob.escape(parent), _PREFIX + "*"))):
            lock, control = os.path.join(folder, _LOCK), control_path(folder)
            with contextlib.suppress(OSError):
                if os.stat(lock).st_uid == os.geteuid() and os.path.exists(control) and is_held(lock):
                    found.append(control)
    return found


def hold(path: str) -> int:
    """Hold a lock file until this process ends, however it ends. Returns its descriptor. flock(2)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def is_held(path: str) -> bool:
    """True while some process holds the lock file."""
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
