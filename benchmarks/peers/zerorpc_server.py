"""zerorpc, kept connections: processes that each listen on an address of their own, callers that share them out.

python -m peers.zerorpc_server HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import itertools
import os
import signal
import sys

import handlers
from meter import Job, Meter


def _endpoints(address: str, processes: int) -> list[str]:
    """One for each process: the same port of 127.0.0.1, 127.0.1.1, ..."""
    port = address.rpartition(":")[2]
    return [f"tcp://127.0.{number}.1:{port}" for number in range(processes)]


def call(meter: Meter, job: Job) -> None:
    """Ask from green threads with a client each."""
    import gevent
    import zerorpc

    def run(client: zerorpc.Client) -> None:
        while request := meter.next():
            try:
                reply = client.handle(request[1])
            except Exception as error:
                meter.fail(error)
                break
            meter.end(request, reply)

    clients = [zerorpc.Client(timeout=60, heartbeat=None) for _ in range(job.in_flight)]
    endpoints = itertools.cycle(_endpoints(job.address, job.processes))
    for client in clients:
        client.connect(next(endpoints))
        client.handle(b"e")
    with meter.running():
        gevent.joinall([gevent.spawn(run, client) for client in clients])
    for client in clients:
        client.close()


def _serve(endpoint: str, handler: str) -> None:
    import zerorpc

    server = zerorpc.Server({"handle": getattr(handlers, handler)}, heartbeat=None)
    server.bind(endpoint)
    print("ready", file=sys.stderr, flush=True)
    server.run()


def main() -> None:
    """Fork the others, serve beside them until SIGTERM."""
    first, *rest = _endpoints(sys.argv[1], int(sys.argv[2]))
    children = []
    for endpoint in rest:
        child = os.fork()
        if not child:
            _serve(endpoint, sys.argv[3])
        children.append(child)

    def stop(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    _serve(first, sys.argv[3])


if __name__ == "__main__":
    main()
