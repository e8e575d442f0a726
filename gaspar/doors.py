"""Where a daemon listens: for clients, for its operator, for those who scrape its metrics."""

from __future__ import annotations

import contextlib
import os
import socket

from . import address, systemd
from .address import Address


class Doors:
    """The listening sockets of one daemon, and the files of those that are Unix sockets."""

    def __init__(self) -> None:
        self.clients: list[socket.socket] = []
        self.control: socket.socket | None = None
        self.metrics: socket.socket | None = None
        self._files: dict[socket.socket, str] = {}

    def open(self, clients: list[Address], control: Address, metrics: Address | None) -> None:
        """Listen on all addresses, and on the sockets that a service manager has passed for clients.

        Raises:
            BindError: one of them cannot be listened on; the others are open.
        """
        for each in clients:
            self.clients.append(self._listen(each))
        self.clients += systemd.listeners()
        before = os.umask(0o177)  # what is told and obeyed there is its user's business alone
        try:
            self.control = self._listen(control)
        finally:
            os.umask(before)
        if metrics:
            self.metrics = self._listen(metrics)

    def _listen(self, where: Address) -> socket.socket:
        listener = address.listen(where)
        if where.path:
            self._files[listener] = where.path
        return listener

    def all(self) -> list[socket.socket]:
        """List all sockets that are open."""
        return [each for each in (*self.clients, self.control, self.metrics) if each is not None]

    def addresses(self) -> list[str]:
        """Say where clients come in."""
        return [str(address.bound(each)) for each in self.clients]

    def close_clients(self) -> None:
        """Let no further client in."""
        self._close(self.clients)
        self.clients = []

    def close(self) -> None:
        """Close all and remove their files."""
        self._close(self.all())
        self.clients, self.control, self.metrics = [], None, None

    def _close(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            listener.close()
            if path := self._files.pop(listener, ""):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # now: whoever listens there next is another
