"""How a child process begins and ends: forking, signals, descriptors, the lifeline to its parent.

It knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import stat
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .wire import Kind, Record, RecordParser, encode_record

log = logging.getLogger(__name__)

_LONGEST_POLL = 2**31 - 1  # milliseconds, poll(2)

EXIT_CRASHED = 70  # sysexits.h EX_SOFTWARE: an exception that nobody expected ended a child
# Whole groups are signalled (Ctrl-C, systemd), but only the supervisor decides. Children catch these and
# do nothing, rather than ignore them: an ignored signal would stay ignored in what a handler executes.
_GROUP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
_RESET_SIGNALS = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
_BLOCKED = {*_GROUP_SIGNALS, *_RESET_SIGNALS}
_GREEN_MODULES = {"os", "select", "selectors", "socket", "ssl", "_thread", "threading", "time", "subprocess", "queue"}
_SEND_TIME = 1.0  # seconds that the other side has to take a record, once a part of it is sent
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


class Lifeline:
    """One end of the socketpair between a parent and its child. End-of-file: the other side is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._parser = RecordParser()

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def send(self, kind: Kind, **fields: Any) -> bool:
        """Send a record without waiting.

        Returns:
            False if the other side is gone, or has read nothing for so long that its buffer is full.
        """
        data = encode_record(kind, fields)
        try:
            sent = self._socket.send(data)
        except OSError:
            return False
        return sent == len(data) or self._send_rest(data[sent:])

    def _send_rest(self, rest: bytes) -> bool:
        """Wait a moment for a reader; one that does not come is cut off, since no record may be cut."""
        self._socket.settimeout(_SEND_TIME)
        try:
            self._socket.sendall(rest)
        except OSError:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            return False
        finally:
            self._socket.setblocking(False)
        return True

    def recv(self) -> list[Record] | None:
        """Return the records that have come; None at end-of-file."""
        records: list[Record] = []
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return records
            except ConnectionResetError:  # the other side was killed with something unread
                data = b""
            if not data:
                return records or None
            records += self._parser.feed(data)

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is something to receive or the other side is gone; green where sockets are green.

        Returns:
            False if `timeout` seconds have passed.
        """
        self._socket.settimeout(timeout)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionResetError:
            pass
        finally:
            self._socket.setblocking(False)
        return True

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Child(NamedTuple):
    """A forked process, as its parent sees it."""

    pid: int
    lifeline: Lifeline


def fork(main: Callable[[Lifeline], int], name: str, *, close: Iterable[Lifeline] = ()) -> Child:
    """Fork a child that runs `main(lifeline)` and ends with the exit code that it returns.

    Args:
        name: shown by ps and top, at most 15 bytes on Linux.
        close: lifelines of the parent's other children, which are not the child's business.
    """
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # or the child would write it again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        with warnings.catch_warnings():
            # of threads (Python 3.12) and of eventlet: the child uses nothing of either
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = _os_fork()
        if pid == 0:
            code = EXIT_CRASHED
            try:
                restore_stdlib()
                theirs = socket.socket(fileno=theirs.detach())
                ours.close()
                for lifeline in close:
                    lifeline.close()
                _begin(name, before)
                code = main(Lifeline(theirs))
            except BaseException:
                log.exception("%s (pid %d): unexpected error", name, os.getpid())
            finally:
                _end(code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return Child(pid, Lifeline(ours))


def _os_fork() -> int:
    """Fork as the kernel does: gevent's fork would go on with the parent's loop, and reap the child itself."""
    monkey = sys.modules.get("gevent.monkey")
    return int((monkey.get_original("os", "fork") if monkey else os.fork)())


def restore_stdlib() -> None:
    """Undo eventlet's and gevent's monkey-patching in this process: it has no loop to give way to."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None:
        for name, attributes in list(monkey.saved.items()):
            if name in sys.modules:
                vars(sys.modules[name]).update(attributes)
        if monkey.saved:
            _forget_gevents_threads()
            selectors: Any = sys.modules.get("selectors")
            if hasattr(getattr(selectors, "PollSelector", None), "_selector_cls"):
                selectors.PollSelector._selector_cls = select.poll  # set by gevent without a note of it
        monkey.saved.clear()
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.already_patched:
        for name in _GREEN_MODULES & sys.modules.keys():
            patched = vars(sys.modules[name])
            for attribute, original in vars(patcher.original(name)).items():
                if str(getattr(patched.get(attribute), "__module__", "eventlet")).startswith("eventlet"):
                    patched[attribute] = original
        patcher.already_patched.clear()


def _forget_gevents_threads() -> None:
    """Make this the main thread by the standard library's own account.

    gevent's fork hooks cannot be unregistered, and would check their account of it at each further fork.
    """
    hooks: Any = getattr(sys.modules.get("gevent.threading"), "_ForkHooks", None)
    for name in ("before_fork_in_parent", "after_fork_in_child"):
        if hook := getattr(hooks, name, None):
            hook.__code__ = _no_hook.__code__
    threading: Any = sys.modules["threading"]
    threading._active.clear()
    threading._main_thread = threading._MainThread()


def _no_hook(_self: object) -> None:
    pass


def _begin(name: str, mask: Iterable[int]) -> None:
    signal.set_wakeup_fd(-1)
    for each in _RESET_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    for each in _GROUP_SIGNALS:
        signal.signal(each, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, set(mask) - _BLOCKED)
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _do_nothing(_signum: int, _frame: object) -> None:
    pass


def _prctl(option: int, value: Any) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere the lifeline tells).

    Args:
        parent: the parent's pid; if it is gone already, this process ends here. prctl(2).
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def thread_ids() -> set[int]:
    """List the threads of this process, where the system has names for them."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/task")}
    return set()


def let_interrupt(threads: Iterable[int], interrupt: bool) -> None:
    """Say whether threads of this process, when they wake up, may take the CPU from whoever runs.

    Source: sched(7), SCHED_BATCH. A no-op where there is none, or a sandbox forbids it.
    """
    if hasattr(os, "SCHED_BATCH"):
        policy = os.SCHED_OTHER if interrupt else os.SCHED_BATCH
        for thread in threads:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread, policy, os.sched_param(0))


def keep_only(keep: Iterable[int], *, files: bool) -> None:
    """Let go of inherited descriptors except 0 to 2 and `keep`.

    The numbers stay taken, by /dev/null: an inherited object that is collected later would otherwise close,
    and a logging handler would write to, whatever had got its number since.

    Args:
        files: also keep what is no socket, epoll or the like: files, terminals, pipes.
    """
    kept = set(keep) | {0, 1, 2}
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in _open_descriptors():
        if fd in kept or fd == nothing:
            continue
        with contextlib.suppress(OSError):  # the descriptor that listed them is closed by now
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not (files and _is_file(mode)):
                os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _is_file(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)


def _open_descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(folder)]
    return list(range(3, 1024))


class Wakeup:
    """Signals leave a note here, the loop reads it (the self-pipe, by way of `signal.set_wakeup_fd`)."""

    def __init__(self, signals: Iterable[int]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for each in signals:
            signal.signal(each, _do_nothing)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader.fileno()

    def notes(self) -> list[int]:
        """Return the numbers of the signals that have come, in order."""
        try:
            return list(self._reader.recv(4096))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Leave no more notes."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def wait_readable(sources: Iterable[int], timeout: float | None) -> set[int]:
    """Wait until one of the descriptors is readable or at end-of-file, at most `timeout` seconds.

    Returns:
        The descriptors to look at.
    """
    poll = select.poll()
    for fd in sources:
        poll.register(fd, select.POLLIN)
    milliseconds = None if timeout is None else max(0, min(int(timeout * 1000) + 1, _LONGEST_POLL))
    return {fd for fd, _ in poll.poll(milliseconds)}


def describe_exit(status: int) -> str:
    """Say how a process ended, from its wait status: a signal's name or the exit status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
