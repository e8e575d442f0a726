"""While a handler is being developed: a process that looks for changes in its source files and orders reloads."""

from __future__ import annotations

import logging
import os
import signal
import sys
import sysconfig

from .process import Child, Lifeline, die_with_parent, fork
from .wire import Kind

log = logging.getLogger(__name__)

_LOOK = 200  # milliseconds between looks whether the supervisor has something to say, or is gone
_OWN = os.path.dirname(os.path.abspath(__file__))


def source_folders() -> list[str]:
    """List the folders of the modules that are loaded here and belong to no installation: those being written."""
    installed = tuple(os.path.abspath(path) + os.sep for path in {*sysconfig.get_paths().values(), _OWN})
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = [os.path.abspath(file) for file in files if file]
    return sorted({os.path.dirname(path) for path in paths if not path.startswith(installed)})


class Watcher:
    """The supervisor's end of the watching process."""

    def __init__(self) -> None:
        supervisor = os.getpid()
        self._child: Child = fork(lambda lifeline: _watch(lifeline, supervisor), "gaspar:watcher")

    def watch(self, folders: list[str]) -> None:
        """Look at these folders from now on."""
        self._child.lifeline.send(Kind.WATCH, folders=folders)

    def close(self) -> None:
        """Let it end."""
        self._child.lifeline.close()


def _watch(lifeline: Lifeline, supervisor: int) -> int:
    """Be the watching process: hang up on the supervisor whenever something has changed."""
    from watchfiles import PythonFilter, watch

    die_with_parent(supervisor)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    folders: list[str] = []
    before: list[str] | None = None
    while True:
        lifeline.wait(None)
        while lifeline.wait(0.0):
            records = lifeline.recv()
            if records is None:
                return 0
            for record in records:
                folders = record.fields["folders"]
        if not folders:
            log.warning("nothing to look for changes in: all of the handler's code is installed")
            continue
        existing = [folder for folder in folders if os.path.isdir(folder)]
        told = existing == before
        before = existing
        for changes in watch(
            *existing, watch_filter=PythonFilter(), recursive=False, yield_on_timeout=True, rust_timeout=_LOOK
        ):
            if not told:  # now: it is so from the first turn on
                log.info("looking for changes in %s", ", ".join(existing))
                told = True
            if changes:
                log.info("%s has changed", ", ".join(sorted({path for _, path in changes})))
                os.kill(supervisor, signal.SIGHUP)
            if lifeline.wait(0.0):
                break
