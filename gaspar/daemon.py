"""Puts a daemon together: its listeners, its private directory, its scoreboard, and who runs what."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from . import address, arena, folders, forker, systemd
from .address import Address
from .arena import Arena
from .consumer import Consumer
from .doors import Doors
from .errors import BindError, HandlerLoadError
from .lifecycle import Exit
from .limits import MAX_PROCESSES, Limits
from .process import Lifeline, fork
from .scoreboard import Scoreboard
from .supervisor import Supervisor
from .watcher import Watcher
from .wire import Kind

log = logging.getLogger(__name__)

_SLOTS = 3 * MAX_PROCESSES  # twice for a reload, once for what steps aside


def serve(
    load: Callable[[], Consumer],
    addresses: list[Address],
    limits: Limits,
    *,
    control: Address | None = None,
    metrics: Address | None = None,
    watch: bool = False,
    reloadable: bool = True,
    caller: Lifeline | None = None,
) -> int:
    """Be a daemon until asked to stop: this process becomes its supervisor.

    Args:
        load: returns the Consumer; called in the forker's process.
        addresses: where to listen, beside the sockets that a service manager passed.
        control: where to answer the operator; else on a Unix socket in the private directory.
        metrics: where to answer HTTP, for health checks and Prometheus.
        watch: load the code anew whenever it changes.
        reloadable: calling `load` in a new process loads the code anew.
        caller: the lifeline to the program that started the daemon, if there is one.

    Returns:
        The exit code.
    """
    try:
        folder = folders.make()
    except OSError as error:
        log.error("cannot start: no private directory can be made (TMPDIR): %s", error)
        return Exit.CRASHED
    doors = Doors()
    watcher = Watcher() if watch else None
    try:
        try:
            doors.open(addresses, control or Address(path=folders.control_path(folder)), metrics)
        except BindError as error:
            if caller:
                caller.send(Kind.BIND_FAILED, errno=error.errno, message=error.strerror)
            else:
                log.error("cannot start: %s", error.strerror)
            return Exit.BIND
        for listener in doors.all():
            if not (where := address.bound(listener)).is_local:
                log.warning("%s can be reached from other machines, and the protocol has no authentication", where)
        assert doors.control
        if doors.metrics:
            log.info("metrics on http://%s/metrics, health on /healthz", address.bound(doors.metrics))
        scoreboard, shared = Scoreboard(_SLOTS), arena.make(limits)
        supervisor = Supervisor(
            front=lambda generation: partial(_front, doors, folder, scoreboard, shared, limits, generation),
            forker=partial(_forker, load, folder, scoreboard, shared, limits, doors),
            limits=limits,
            addresses=doors.addresses(),
            control=str(address.bound(doors.control)),
            close_listeners=doors.close_clients,
            forget=partial(folders.forget_consumer, folder),
            reloadable=reloadable,
            notify=systemd.notify,
            on_sources=watcher.watch if watcher else lambda folders: None,
            caller=caller,
        )
        return supervisor.run()
    finally:
        if watcher:
            watcher.close()
        doors.close()
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
    child = fork(partial(_forker, load, folder, Scoreboard(1), None, limits, Doors()), "gaspar:forker")
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
    doors: Doors,
    folder: str,
    scoreboard: Scoreboard,
    shared: Arena | None,
    limits: Limits,
    generation: int,
    lifeline: Lifeline,
) -> int:
    folders.hold(folders.front_lock(folder))  # at once: importing eventlet takes a while
    from . import front

    return front.main(doors, folder, scoreboard, shared, limits, generation, lifeline)


def _forker(
    load: Callable[[], Consumer],
    folder: str,
    scoreboard: Scoreboard,
    shared: Arena | None,
    limits: Limits,
    doors: Doors,
    lifeline: Lifeline,
) -> int:
    for listener in doors.all():
        listener.close()
    return forker.main(load, folder, scoreboard, shared, limits, lifeline)
