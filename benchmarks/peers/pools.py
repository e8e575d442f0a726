"""Pools of processes within the calling program, without a server."""

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from queue import SimpleQueue

import handlers
from meter import Job, Meter, Request

_CONTEXT = multiprocessing.get_context("fork")  # what gaspar's peers here all do: nothing is imported twice


def executor(meter: Meter, job: Job) -> None:
    """ProcessPoolExecutor.submit from one thread, a window of futures."""
    with ProcessPoolExecutor(job.processes, _CONTEXT) as pool:
        _in_window(meter, job, pool.submit)


def pebble(meter: Meter, job: Job) -> None:
    """pebble.ProcessPool.schedule from one thread, a window of futures."""
    import pebble

    with pebble.ProcessPool(job.processes, context=_CONTEXT) as pool:
        _in_window(meter, job, lambda function, payload: pool.schedule(function, args=[payload]))


def _in_window(meter: Meter, job: Job, submit: Callable[..., Future[bytes]]) -> None:
    handler = getattr(handlers, job.handler)
    done: SimpleQueue[tuple[Request, Future[bytes]]] = SimpleQueue()

    def ask() -> bool:
        request = meter.next()
        if request is None:
            return False
        submit(handler, request[1]).add_done_callback(lambda future: done.put((request, future)))
        return True

    for future in [submit(handlers.echo, b"") for _ in range(10 * job.processes)]:
        future.result()  # the processes are there
    with meter.running():
        pending = sum(ask() for _ in range(job.in_flight))
        while pending:
            request, future = done.get()
            if error := future.exception():
                meter.fail(error)
            else:
                meter.end(request, future.result())
            pending -= not ask()


def asyncio_executor(meter: Meter, job: Job) -> None:
    """loop.run_in_executor with a ProcessPoolExecutor, from many tasks."""
    with ProcessPoolExecutor(job.processes, _CONTEXT) as pool:
        asyncio.run(_tasks(meter, job, pool))


async def _tasks(meter: Meter, job: Job, pool: ProcessPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    handler = getattr(handlers, job.handler)

    async def run() -> None:
        while request := meter.next():
            try:
                reply = await loop.run_in_executor(pool, handler, request[1])
            except Exception as error:
                meter.fail(error)
                break
            meter.end(request, reply)

    await asyncio.gather(*(loop.run_in_executor(pool, handlers.echo, b"") for _ in range(10 * job.processes)))
    with meter.running():
        await asyncio.gather(*(run() for _ in range(job.in_flight)))
