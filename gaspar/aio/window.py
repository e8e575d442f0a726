"""What `Client.map` has asked for and not yet yielded: a bounded number, filled by a task of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable

from ..answer import Reply
from ..message import Message
from .call import forget


class Window:
    """What `map` has asked for and not yet yielded."""

    def __init__(
        self,
        ask: Callable[[Message], asyncio.Future[Reply]],
        messages: Iterable[Message] | AsyncIterable[Message],
        ordered: bool,
        size: int,
    ) -> None:
        self._ask = ask
        self._ordered = ordered
        self._size = size
        self._next: deque[asyncio.Future[Reply]] = deque()  # to be yielded; only if ordered some are not done
        self._unyielded: set[asyncio.Future[Reply]] = set()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        # by itself, so that a source that is slow to give holds no reply back
        self._filling = asyncio.create_task(self._fill(messages))
        self._filling.add_done_callback(lambda _: self._news.set())

    async def next(self) -> Reply | Exception | None:
        """Wait for the next answer, None after the last one.

        Raises:
            what the source of the messages did.
        """
        while not (self._next and self._next[0].done()):
            if self._filling.done() and not self._unyielded:
                self._filling.result()
                return None
            self._news.clear()
            await self._news.wait()
        call = self._next.popleft()
        self._unyielded.remove(call)
        self._room.set()
        error = call.exception()
        return error if isinstance(error, Exception) else call.result()

    async def close(self) -> None:
        """Cancel what is under way."""
        for call in self._unyielded:
            forget(call)
        self._filling.cancel()
        await asyncio.wait({self._filling})
        forget(self._filling)

    async def _fill(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        if isinstance(messages, AsyncIterable):
            async for message in messages:
                await self._take(message)
        else:
            for message in messages:
                await self._take(message)

    async def _take(self, message: Message) -> None:
        try:
            call = self._ask(message)
        except Exception as error:  # the caller's, whatever it is: it has its place among the replies
            call = asyncio.get_running_loop().create_future()
            call.set_exception(error)
        self._unyielded.add(call)
        if self._ordered:
            self._next.append(call)
        call.add_done_callback(self._note)
        while len(self._unyielded) >= self._size:
            self._room.clear()
            await self._room.wait()

    def _note(self, call: asyncio.Future[Reply]) -> None:
        if not self._ordered:
            self._next.append(call)
        self._news.set()
