"""Which connections have a socket, or may get one: whoever closes a client waits until there is none."""

from __future__ import annotations

import asyncio

from .connection import Connection


class Sockets:
    """The connections of one client, from the attempt to connect until the socket is closed."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()  # the leaving ones too
        self._attempts: set[Connection] = set()
        self._change = asyncio.Event()

    def attempting(self, connection: Connection) -> None:
        """Note that a connection is being made."""
        self._attempts.add(connection)

    def attempted(self, connection: Connection, cancelled: bool) -> None:
        """Note that a connection was made, or was not."""
        self._attempts.remove(connection)
        if cancelled:
            self.open.discard(connection)  # uvloop may have called connection_made, and does not call connection_lost
        self._change.set()

    def opened(self, connection: Connection) -> None:
        """Note that a connection's socket is open."""
        self.open.add(connection)

    def closed(self, connection: Connection) -> None:
        """Note that a connection's socket is closed."""
        self.open.discard(connection)
        self._change.set()

    def abort(self) -> None:
        """Close them all."""
        for connection in (*self.open, *self._attempts):
            connection.abort()

    async def gone(self) -> None:
        """Wait until all are closed."""
        while self.open or self._attempts:
            self._change.clear()
            await self._change.wait()
