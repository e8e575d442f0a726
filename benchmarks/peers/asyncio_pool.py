"""What one would write today: an asyncio server that hands its requests to a ProcessPoolExecutor.

python -m peers.asyncio_pool HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import asyncio
import signal
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import handlers

_HEADER = struct.Struct("!I")


class Server:
    """Answers each client's one request from the pool; any failure is a reset."""

    def __init__(self, pool: ProcessPoolExecutor, handler: Callable[[bytes], bytes]) -> None:
        self._pool = pool
        self._handler = handler

    async def on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client."""
        try:
            (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            payload = await reader.readexactly(size)
            loop = asyncio.get_running_loop()
            writer.write(await loop.run_in_executor(self._pool, self._handler, payload))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (asyncio.IncompleteReadError, ConnectionError, BrokenProcessPool):
            writer.transport.abort()


async def serve(host: str, port: int, processes: int, handler: Callable[[bytes], bytes]) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    with ProcessPoolExecutor(processes) as pool:
        await loop.run_in_executor(pool, handlers.echo, b"")  # forks the pool's processes
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped.set)
        async with await asyncio.start_server(Server(pool, handler).on_client, host, port, backlog=4096):
            print("ready", file=sys.stderr, flush=True)
            await stopped.wait()


def main() -> None:
    """Serve what the command line says."""
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(serve(host, int(port), int(sys.argv[2]), getattr(handlers, sys.argv[3])))


if __name__ == "__main__":
    main()
