"""Callers of a gaspar daemon: each of its Python clients, used as a program would."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator

from meter import Job, Meter, Request

import gaspar
from gaspar import aio, client


def map(meter: Meter, job: Job) -> None:
    """Client.map: one thread, one connection, a window of requests; the replies come in their order."""
    asked: deque[Request] = deque()

    def messages() -> Iterator[bytes]:
        while request := meter.next():
            asked.append(request)
            yield request[1]

    with client.Client(job.address) as shared:
        shared.request(b"e")
        with meter.running():
            try:
                for reply in shared.map(messages(), in_flight=job.in_flight):
                    meter.end(asked.popleft(), reply)
            except gaspar.GasparError as error:
                meter.fail(error)


def threads(meter: Meter, job: Job) -> None:
    """Client.request from many threads that share one client."""
    with client.Client(job.address) as shared:
        shared.request(b"e")
        _in_threads(meter, job.in_flight, shared.request)


def oneshot(meter: Meter, job: Job) -> None:
    """gaspar.request, a connection for each request, from many threads."""
    _in_threads(meter, job.in_flight, lambda payload: gaspar.request(job.address, payload))


def _in_threads(meter: Meter, count: int, ask: Callable[[bytes], bytes]) -> None:
    def run() -> None:
        while request := meter.next():
            try:
                reply = ask(request[1])
            except gaspar.GasparError as error:
                meter.fail(error)
                break
            meter.end(request, reply)

    several = [threading.Thread(target=run) for _ in range(count)]
    with meter.running():
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()


def tasks(meter: Meter, job: Job) -> None:
    """aio.Client.request from many tasks that share one client."""
    asyncio.run(_tasks(meter, job))


async def _tasks(meter: Meter, job: Job) -> None:
    async def run() -> None:
        while request := meter.next():
            try:
                reply = await shared.request(request[1])
            except gaspar.GasparError as error:
                meter.fail(error)
                break
            meter.end(request, reply)

    async with aio.Client(job.address) as shared:
        await shared.request(b"e")
        with meter.running():
            await asyncio.gather(*(run() for _ in range(job.in_flight)))
