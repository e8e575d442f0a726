"""Who is compared: each contender's server, and what loads it."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

import asking
from load import HERE
from servers import Peer


def _gaspar(*options: str) -> Callable[[str, int, str], list[str]]:
    def command(address: str, processes: int, handler: str) -> list[str]:
        serve = HERE.parent / "bin" / "gaspar-serve"
        own = [sys.executable, str(serve), "-b", address, "-p", str(processes), *options]
        return [*own, f"{HERE / 'handlers.py'}:{handler}"]

    return command


def _module(name: str) -> Callable[[str, int, str], list[str]]:
    return lambda address, processes, handler: [sys.executable, "-m", name, address, str(processes), handler]


GASPAR = Peer("gaspar", _gaspar())
NO_BURST = Peer("gaspar --burst 0", _gaspar("--burst", "0"))
MUCH_BURST = Peer("gaspar --burst 32", _gaspar("--burst", "32"))
BARE = Peer("bare one-shot", _module("peers.bare"))
KEPT = Peer("bare kept", _module("peers.kept"), asking.framed)
ASYNCIO = Peer("asyncio+PPE", _module("peers.asyncio_pool"))
MOSEC = Peer("mosec", _module("peers.mosec_server"), asking.post, says=b"")
GUNICORN = Peer("gunicorn sync", _module("peers.gunicorn_sync"), asking.post)
RPYC = Peer("RPyC forking", _module("peers.rpyc_forking"), asking.connect)
ZERORPC = Peer("zerorpc", _module("peers.zerorpc_server"), asking.connect)

STARTS = (GASPAR, BARE, KEPT, ASYNCIO, MOSEC, GUNICORN)  # whose starts are compared: those that can be asked


@dataclass(frozen=True)
class Contender:
    """One way to have a function run elsewhere."""

    name: str
    peer: Peer | None  # its server; None: the caller has a pool of its own
    load: str  # a protocol of load.c, or a caller in Python as "module:function"
    needs: str = ""  # a module that may not be installed
    callers: int = 1  # processes in Python that call, so that one alone is not what is measured

    @property
    def is_gaspar(self) -> bool:
        """Whether it is gaspar, through whichever client."""
        return self.peer in (GASPAR, NO_BURST, MUCH_BURST)

    @property
    def is_python(self) -> bool:
        """Whether its caller is written in Python."""
        return ":" in self.load

    @property
    def is_missing(self) -> bool:
        """Whether it needs what is not installed."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


_CLIENTS = "peers.gaspar_clients"

ONESHOT = Contender("gaspar one-shot", GASPAR, "oneshot")
FRAMED = Contender("gaspar framed", GASPAR, "framed")
FIFO_ONESHOT = Contender("one-shot, --burst 0", NO_BURST, "oneshot")
FIFO_FRAMED = Contender("framed, --burst 0", NO_BURST, "framed")
BURST_ONESHOT = Contender("one-shot, --burst 32", MUCH_BURST, "oneshot")
BURST_FRAMED = Contender("framed, --burst 32", MUCH_BURST, "framed")
MAP = Contender("gaspar Client.map", GASPAR, f"{_CLIENTS}:map")
THREADS = Contender("gaspar Client, threads", GASPAR, f"{_CLIENTS}:threads")
AIO = Contender("gaspar aio.Client, tasks", GASPAR, f"{_CLIENTS}:tasks")
REQUEST = Contender("gaspar.request, threads", GASPAR, f"{_CLIENTS}:oneshot")

BARE_ONESHOT = Contender(BARE.name, BARE, "oneshot")
BARE_KEPT = Contender(KEPT.name, KEPT, "framed")
ASYNCIO_PPE = Contender(ASYNCIO.name, ASYNCIO, "oneshot")
PPE = Contender("PPE.submit", None, "peers.pools:executor")
RUN_IN_EXECUTOR = Contender("run_in_executor, tasks", None, "peers.pools:asyncio_executor")
PEBBLE = Contender("pebble", None, "peers.pools:pebble", "pebble")
MOSEC_KEPT = Contender(MOSEC.name, MOSEC, "http", "mosec")
GUNICORN_SYNC = Contender(GUNICORN.name, GUNICORN, "http", "gunicorn")
RPYC_KEPT = Contender(RPYC.name, RPYC, "peers.rpyc_forking:call", "rpyc", callers=2)
ZERORPC_KEPT = Contender(ZERORPC.name, ZERORPC, "peers.zerorpc_server:call", "zerorpc", callers=2)
