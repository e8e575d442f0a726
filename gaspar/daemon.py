"""Puts a daemon together: its listeners, its private directory, its scoreboard, and who runs what."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from . import address, arena, folders, forker, systemd
from .address import Address
from .arena import Arena
from .consumer import Consumer
from .errors import BindError, HandlerLoadError
from .lifecycle import Exit
from .limits import MAX_PROCESSES, Limits
from .process import Lifeline, fork
from .scoreboard import Scoreboard
from .supervisor import Supervisor
from .wire import Kind

log = logging.getLogger(__name__)

_SLOTS = 3 * MAX_PROCESSES  # twice for a reload, once for what steps aside


def serve(
    load: Callable[[], Consumer],
    addresses: list[Address],
    limits: Limits,
    *,
    reloadable: bool = True,
    caller: Lifeline | None = None,
) -> int:
    """Be a daemon until asked to stop: this process becomes its supervisor.

    Args:
        load: returns the Consumer; called in the forker's process.
        addresses: where to listen, beside the sockets that a service manager passed.
        reloadable: calling `load` in a new process loads the code anew.
        caller: the lifeline to the program that started the daemon, if there is one.

    Returns:
        The exit code.
    """
    listeners: list[socket.socket] = []
    files: list[str] = []  # of our Unix sockets
    try:
        for each in addresses:
            listeners.append(address.listen(each))
            files += [each.path] if each.path else []
        listeners += systemd.listeners()
    except BindError as error:
        _close_all(listeners, files)
        if caller:
            caller.send(Kind.BIND_FAILED, errno=error.errno, message=error.strerror)
        else:
            log.error("cannot start: %s", error.strerror)
        return Exit.BIND
    where = [address.bound(listener) for listener in listeners]
    for each in where:
        if not each.is_local:
            log.warning("%s can be reached from other machines, and the protocol has no authentication", each)
    try:
        folder = folders.make()
    except OSError as error:
        log.error("cannot start: no private directory can be made (TMPDIR): %s", error)
        _close_all(listeners, files)
        return Exit.CRASHED
    scoreboard, shared = Scoreboard(_SLOTS), arena.make(limits)
    supervisor = Supervisor(
        front=lambda generation: partial(_front, listeners, folder, scoreboard, shared, limits, generation),
        forker=partial(_forker, load, folder, scoreboard, shared, limits, listeners),
        limits=limits,
        addresses=[str(each) for each in where],
        close_listeners=partial(_close_all, listeners, files),
        forget=partial(folders.forget_consumer, folder),
        reloadable=reloadable,
        notify=systemd.notify,
        caller=caller,
    )
    try:
        return supervisor.run()
    finally:
        _close_all(listeners, files)
        shutil.rmtree(folder, ignore_errors=True)


class Found(NamedTuple):
    """What `check` found."""

    what: str  # a description of the handler
    load_seconds: float
    fork_seconds: float  # until a consumer was set up
    pid: int  # of that consumer


@contextlib.contextmanager
def check(load: Callable[[], Consumer], limits: Limits) -> Iterator[Found]:
    """Load the handler and set up one consumer, which lives while the context does.

    Raises:
        HandlerLoadError: one of the two failed.
    """
    folder = folders.make()
    began = time.monotonic()
    child = fork(partial(_forker, load, folder, Scoreboard(1), None, limits, []), "gaspar:forker")
    try:
        loaded = _expect(child.lifeline, Kind.LOADED)
        forked = time.monotonic()
        child.lifeline.send(Kind.FORK, number=1, slot=0)
        ready = _expect(child.lifeline, Kind.CONSUMER_READY)
        yield Found(loaded["what"], forked - began, time.monotonic() - forked, ready["pid"])
    finally:
        child.lifeline.send(Kind.LEAVE)
        os.waitpid(child.pid, 0)
        child.lifeline.close()
        shutil.rmtree(folder, ignore_errors=True)


def _expect(lifeline: Lifeline, kind: Kind) -> dict[str, Any]:
    while True:
        lifeline.wait(None)
        records = lifeline.recv()
        for record in records or ():
            if record.kind is kind:
                return record.fields
            if record.kind in (Kind.LOAD_FAILED, Kind.SETUP_FAILED):
                raise HandlerLoadError(record.fields["message"], record.fields["traceback"])
            if record.kind is Kind.CONSUMER_GONE:
                raise HandlerLoadError(f"a consumer ended before it was ready: {record.fields['exit']}")
        if records is None:
            raise HandlerLoadError("the process that loads the handler ended")


def _front(
    listeners: list[socket.socket],
    folder: str,
    scoreboard: Scoreboard,
    shared: Arena | None,
    limits: Limits,
    generation: int,
    lifeline: Lifeline,
) -> int:
    folders.hold(folders.front_lock(folder))  # at once: importing eventlet takes a while
    from . import front

    return front.main(listeners, folder, scoreboard, shared, limits, generation, lifeline)


def _forker(
    load: Callable[[], Consumer],
    folder: str,
    scoreboard: Scoreboard,
    shared: Arena | None,
    limits: Limits,
    listeners: list[socket.socket],
    lifeline: Lifeline,
) -> int:
    for listener in listeners:
        listener.close()
    return forker.main(load, folder, scoreboard, shared, limits, lifeline)


def _close_all(listeners: list[socket.socket], files: list[str]) -> None:
    for listener in listeners:
        listener.close()
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    files.clear()  # whoever listens there next is another
