"""gunicorn with sync workers and a WSGI application, of which each reply ends its connection.

python -m peers.gunicorn_sync HOST:PORT PROCESSES HANDLER          HANDLER is a name in handlers.py
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import handlers
from gunicorn.app.base import BaseApplication


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn without a configuration file."""

    def __init__(self, address: str, processes: int, handler: Callable[[bytes], bytes]) -> None:
        self._settings = {
            "bind": address,
            "workers": processes,
            "worker_class": "sync",
            "backlog": 2048,
            "graceful_timeout": 3,  # seconds; a worker that has just been forked may miss its SIGTERM
            "when_ready": lambda _: print("ready", file=sys.stderr, flush=True),
            "control_socket_disable": True,
        }
        self._handler = handler
        super().__init__()

    def load_config(self) -> None:
        """Take the settings."""
        for name, value in self._settings.items():
            if name in self.cfg.settings:  # else this gunicorn does not know it
                self.cfg.set(name, value)

    def load(self) -> Callable[..., Iterable[bytes]]:
        """Return the application."""

        def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
            reply = self._handler(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("200 OK", [("Content-Length", str(len(reply)))])
            return [reply]

        return answer


if __name__ == "__main__":
    _, _address, _processes, _handler = sys.argv
    sys.argv[1:] = []
    Application(_address, int(_processes), getattr(handlers, _handler)).run()
