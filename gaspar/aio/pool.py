"""The calls of one client: which connection each takes, when another is made, and what a lost one leaves.

What a connection's bytes mean is session.py's affair.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import OrderedDict
from typing import Any

from ..address import Address
from ..answer import Reply
from ..errors import Cancelled, GasparError, RequestError, RequestTimeout, ShuttingDown
from ..losses import NOT_SENT, lost, no_greeting
from .call import Call
from .connection import Connection, why_ended
from .sockets import Sockets

log = logging.getLogger(__name__)

_CONNECTIONS_TRIED = 3  # by one request
_REST = 1.0  # seconds between tries for one connection more, after one failed


class Pool:
    """The calls of one client, and the connections to give them to.

    An unanswered call is in one place: in `waiting`, or among a connection's session's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, where: Address, connections: int, *, in_parts: bool = False
    ) -> None:
        self.loop = loop
        self.where = where
        self.in_parts = in_parts
        self.sockets = Sockets()
        self.waiting: OrderedDict[Call, None] = OrderedDict()  # for a place, first come first served
        self._most = connections
        self._open: list[Connection] = []  # that take calls
        self._connecting: set[Connection] = set()  # until they are greeted
        self._not_before = 0.0  # monotonic; no connection more than there are until then
        self._unanswered = 0
        self._pumping = False
        self._stopped = False
        self._answered = asyncio.Event()  # all of them

    def add(self, call: Call) -> None:
        """Send a call, or let it wait."""
        self._unanswered += 1
        connection = None if self.waiting else self._roomiest()
        if connection is not None:
            connection.send(call)
        elif self._open and self._open[0].refuses(call):
            return
        else:
            self.waiting[call] = None
        if len(self._open) < self._most:
            self._grow()

    def drop(self, call: Call) -> None:
        """Forget a call that nobody waits for any more, and tell the daemon."""
        self._end(call)
        connection = call.connection
        if connection is not None:
            connection.cancel(call)
            self._pump_soon()
            return
        self.waiting.pop(call, None)
        if not self.waiting:
            # nobody waits: the next one asks anew, and is not held up by an address that swallows everything
            for each in list(self._connecting):
                self._connecting.remove(each)
                each.abort()

    def expire(self, call: Call, timeout: float) -> None:
        """End a call whose time is over."""
        more = "" if call.given else self._excuse()
        self.drop(call)
        call.set_exception(RequestTimeout(f"{self.where}: no reply within {timeout:g} s{more}"))

    def fail(self, call: Call, error: GasparError) -> None:
        """End a call with an error."""
        self._end(call)
        call.set_exception(error)

    def failed(self, connection: Connection, error: OSError | UnicodeError) -> None:
        """Note that a connection could not be made."""
        if connection in self._connecting:
            self._connecting.remove(connection)
            self._unreachable(why_ended(error), hopeless=True)

    def heard(self, connection: Connection, answers: list[tuple[Any, bytes | RequestError]]) -> None:
        """Take what a connection brought."""
        session = connection.session
        for call, answer in answers:
            if isinstance(answer, Reply):
                self._end(call)
                call.set_result(answer)
            elif not isinstance(answer, RequestError):
                call.take_part(answer)
            elif isinstance(answer, ShuttingDown) and call.refusal is None and not call.begun:
                call.refusal = answer
                connection.retired = True
                self._again([call], "")
            else:
                self.fail(call, answer)
        if session.error is not None:
            self.lost(connection)
        elif session.leaving or connection.retired:
            self._retire(connection)
        elif connection in self._connecting and session.hello is not None:
            self._connecting.remove(connection)
            self._open.append(connection)
        if self.waiting:
            self._pump()

    def lost(self, connection: Connection, error: Exception | None = None) -> None:
        """Take back what a connection did not answer: it has ended, or is of no use any more."""
        self._leave(connection)
        connection.abort()
        if connection in self._connecting:
            self._connecting.remove(connection)
            hopeless = connection.session.error is not None
            self._unreachable(no_greeting(connection.seen, why_ended(error)), hopeless)
            return
        session = connection.session
        calls = list(session.calls.values())
        session.calls.clear()
        unsent = []
        for call in calls:
            if not connection.may_have_run(call):
                unsent.append(call)
            elif session.error is not None:
                self.fail(call, copy.copy(session.error))
            else:
                self.fail(call, lost(self.where, why_ended(error), sent=True))
        self._again(unsent, why_ended(error))
        self._pump_soon()

    def resumed(self) -> None:
        """Note that a connection has room again."""
        if self.waiting:
            self._pump()

    def stop(self) -> None:
        """Cancel all calls, close all connections."""
        self._stopped = True
        calls = list(self.waiting)
        for connection in self.sockets.open:
            calls += connection.session.calls.values()
            connection.session.calls.clear()
        self.waiting.clear()
        self._open.clear()
        self._connecting.clear()
        self.sockets.abort()
        for call in calls:
            self.fail(call, Cancelled(f"{self.where}: the client was closed"))
            call.exception()  # seen: whoever still waits for it gets it, nobody need

    async def idle(self) -> None:
        """Wait until all calls are answered."""
        while self._unanswered:
            self._answered.clear()
            await self._answered.wait()

    def _excuse(self) -> str:
        """Say what a call waited for in vain that was not sent."""
        for connection in self._connecting:
            if connection.transport is not None:
                return f": {no_greeting(connection.seen, 'silence')}"
        return NOT_SENT

    def _end(self, call: Call) -> None:
        self._unanswered -= 1
        call.data = b""
        if call.timer is not None:
            call.timer.cancel()
        if not self._unanswered:
            self._answered.set()

    def _again(self, calls: list[Call], what: str) -> None:
        """Let calls that were certainly not run wait for another connection, before all others."""
        for call in reversed(calls):
            call.connection, call.given = None, False
            call.losses += 1
            if call.losses < _CONNECTIONS_TRIED and not self._stopped:
                self.waiting[call] = None
                self.waiting.move_to_end(call, last=False)
            else:
                self.fail(call, call.refusal or lost(self.where, what, sent=False))

    def _roomiest(self) -> Connection | None:
        """Return the least loaded connection that has room, None if none has."""
        best = None
        for each in self._open:
            if each.has_room and (best is None or len(each.session.calls) < len(best.session.calls)):
                best = each
        return best

    def _pump(self) -> None:
        """Give the calls that wait to the connections that have room; connect if there are too few."""
        while self.waiting and (connection := self._roomiest()) is not None:
            call, _ = self.waiting.popitem(last=False)
            connection.send(call)
        if len(self._open) < self._most:
            self._grow()

    def _pump_soon(self) -> None:
        # not at once: of many that are cancelled together, none is to be sent in the place of another
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump_later)

    def _pump_later(self) -> None:
        self._pumping = False
        if not self._stopped:
            self._pump()

    def _grow(self) -> None:
        """Connect once more if a call waits, or all connections have something to do."""
        if self._open and (
            self._connecting
            or time.monotonic() < self._not_before
            or (not self.waiting and any(len(each.session.calls) < 2 for each in self._open))
        ):
            return
        wanted = len(self.waiting) if not self._open else 1
        # counted before: with eager tasks one may fail at once
        for _ in range(min(wanted, self._most - len(self._open)) - len(self._connecting)):
            connection = Connection(self, self.sockets)
            self._connecting.add(connection)
            connection.connect()

    def _unreachable(self, what: str, hopeless: bool) -> None:
        """Take it that there is no new connection: if it was the last hope, the waiting ones hear of it."""
        log.debug("%s: %s", self.where, what)
        self._not_before = time.monotonic() + _REST
        if self._open or self._connecting:
            return
        calls = list(self.waiting)
        self.waiting.clear()
        for call in calls if hopeless else ():
            self.fail(call, call.refusal or lost(self.where, what, sent=False))
        if not hopeless:
            self._again(calls, what)
            self._pump_soon()

    def _leave(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)

    def _retire(self, connection: Connection) -> None:
        """Give a connection nothing more; it is closed when all it has is answered."""
        connection.retired = True
        self._leave(connection)
        self._again(connection.take_back(), "the daemon is shutting down")
        if not connection.session.calls:
            connection.abort()
        if connection in self._connecting:
            self._connecting.remove(connection)
            self._unreachable("the daemon is shutting down", hopeless=False)
