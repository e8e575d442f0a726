"""RPyC's ForkingServer, kept connections: a process for each of them, however many processes are asked for.

python -m peers.rpyc_forking HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import signal
import sys
import threading

import handlers
import rpyc
from meter import Job, Meter
from rpyc.utils.server import ForkingServer


class Service(rpyc.Service):  # type: ignore[misc]
    """Runs the handler."""

    exposed_handle = staticmethod(getattr(handlers, sys.argv[3]) if len(sys.argv) > 3 else handlers.echo)


def call(meter: Meter, job: Job) -> None:
    """Ask from threads with a connection each."""
    host, _, port = job.address.rpartition(":")

    def run(connection: rpyc.Connection) -> None:
        handle = connection.root.handle
        while request := meter.next():
            try:
                reply = handle(request[1])
            except Exception as error:
                meter.fail(error)
                break
            meter.end(request, reply)

    connections = [rpyc.connect(host, int(port), config={"sync_request_timeout": 60}) for _ in range(job.in_flight)]
    threads = [threading.Thread(target=run, args=[connection]) for connection in connections]
    with meter.running():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for connection in connections:
        connection.close()


def main() -> None:
    """Serve until SIGTERM."""
    host, _, port = sys.argv[1].rpartition(":")
    server = ForkingServer(Service, hostname=host, port=int(port), backlog=1024)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("ready", file=sys.stderr, flush=True)
    server.start()


if __name__ == "__main__":
    main()
