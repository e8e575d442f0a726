"""gaspar: a preforking daemon for CPU-bound work, reached over a naked TCP port.

    import gaspar

    def echo(message):
        return message

    gaspar.Producer(gaspar.Consumer(handler=echo), 10123).start()

Names are loaded when they are first used: `import gaspar` pulls in neither eventlet, 0MQ nor click.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "2.0.0.dev0"

if TYPE_CHECKING:
    from . import client, errors
    from .client import pack, request
    from .consumer import Consumer
    from .errors import GasparError
    from .producer import Forker, Producer

__all__ = ["Consumer", "Forker", "GasparError", "Producer", "__version__", "client", "errors", "pack", "request"]

_HOMES = {
    "Consumer": "consumer",
    "Forker": "producer",
    "GasparError": "errors",
    "Producer": "producer",
    "pack": "client",
    "request": "client",
}


def __getattr__(name: str) -> Any:
    if name in ("client", "errors"):
        return importlib.import_module(f"gaspar.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"gaspar.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gaspar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
