"""mosec: a Rust front that speaks HTTP, and Python processes behind a Unix socket.

python -m peers.mosec_server HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import sys

import handlers
from mosec import Server, Worker


class Handle(Worker):
    """One process; bytes in, bytes out."""

    handler_name = "echo"

    def __init__(self) -> None:
        self._handler = getattr(handlers, self.handler_name)

    def deserialize(self, data: bytes) -> bytes:
        """Leave the payload as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Leave the reply as it is."""
        return data

    def forward(self, data: bytes) -> bytes:
        """Run the handler."""
        return bytes(self._handler(data))


class Spin(Handle):
    """The other handler: a class each, since the processes import it anew."""

    handler_name = "spin"


if __name__ == "__main__":
    _, _address, _processes, _handler = sys.argv
    _host, _, _port = _address.rpartition(":")
    sys.argv[1:] = ["--address", _host, "--port", _port, "--timeout", "60000", "--max-request-size", str(2**30)]
    _server = Server()
    _server.append_worker({"echo": Handle, "spin": Spin}[_handler], num=int(_processes), start_method="fork")
    _server.run()
