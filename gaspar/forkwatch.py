"""Notices a process that a handler forked and let return."""

from __future__ import annotations

import logging
import os

from .process import wait_readable

log = logging.getLogger(__name__)


class ForkWatch:
    """It is not to live on as a second consumer.

    Such a child ends where it comes out of the handler, and its parent with it: nobody knows which
    of the two the reply is from. A pipe from each forked child tells: a byte says that it returned,
    end-of-file that it went its own way (ended, or executed something).
    """

    EXIT = 71  # exit status of a consumer, and of the child, whose handler let a child return
    _PATIENCE = 50  # milliseconds to wait for a child that neither returned nor ended

    def __init__(self) -> None:
        self.noted = False
        self._children: list[int] = []  # read ends
        self._pipe: tuple[int, int] = (-1, -1)
        self._tell = -1  # in a child: the write end
        os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def _before(self) -> None:
        self._pipe = os.pipe()

    def _in_parent(self) -> None:
        reader, writer = self._pipe
        os.close(writer)
        self._children.append(reader)
        self.noted = True

    def _in_child(self) -> None:
        reader, self._tell = self._pipe
        os.close(reader)
        for other in self._children:
            os.close(other)
        self._children.clear()
        self.noted = True

    def check(self) -> None:
        """Look, after the handler has returned; ends the process if a child returned as well."""
        if self._tell >= 0:
            os.write(self._tell, b"!")
            os._exit(self.EXIT)
        children, self._children = self._children, []
        self.noted = False
        for reader in children:
            returned = wait_readable([reader], self._PATIENCE / 1000) and os.read(reader, 1)
            os.close(reader)
            if returned:
                log.error("handler forked and let the child return; this consumer (pid %d) ends", os.getpid())
                os._exit(self.EXIT)
