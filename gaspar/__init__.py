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

from .version import __version__

if TYPE_CHECKING:
    from . import aio, client, errors
    from .answer import Receipt, Reply
    from .client import Client, pack, request
    from .consumer import Consumer
    from .errors import (
        AddressError,
        BadFrame,
        BadReply,
        BindError,
        Cancelled,
        ConnectionLost,
        ConsumerLost,
        DaemonError,
        GasparError,
        HandlerError,
        HandlerLoadError,
        LimitError,
        Overloaded,
        RequestError,
        RequestTimeout,
        ShuttingDown,
        TooBig,
        Unavailable,
    )
    from .producer import Forker, Producer

_HOMES = {
    "Client": "client",
    "Consumer": "consumer",
    "Forker": "producer",
    "Producer": "producer",
    "Receipt": "answer",
    "Reply": "answer",
    "pack": "client",
    "request": "client",
    "AddressError": "errors",
    "BadFrame": "errors",
    "BadReply": "errors",
    "BindError": "errors",
    "Cancelled": "errors",
    "ConnectionLost": "errors",
    "ConsumerLost": "errors",
    "DaemonError": "errors",
    "GasparError": "errors",
    "HandlerError": "errors",
    "HandlerLoadError": "errors",
    "LimitError": "errors",
    "Overloaded": "errors",
    "RequestError": "errors",
    "RequestTimeout": "errors",
    "ShuttingDown": "errors",
    "TooBig": "errors",
    "Unavailable": "errors",
}

__all__ = [
    "AddressError",
    "BadFrame",
    "BadReply",
    "BindError",
    "Cancelled",
    "Client",
    "ConnectionLost",
    "Consumer",
    "ConsumerLost",
    "DaemonError",
    "Forker",
    "GasparError",
    "HandlerError",
    "HandlerLoadError",
    "LimitError",
    "Overloaded",
    "Producer",
    "Receipt",
    "Reply",
    "RequestError",
    "RequestTimeout",
    "ShuttingDown",
    "TooBig",
    "Unavailable",
    "__version__",
    "aio",
    "client",
    "errors",
    "pack",
    "request",
]


def __getattr__(name: str) -> Any:
    if name in ("aio", "client", "errors"):
        return importlib.import_module(f"gaspar.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"gaspar.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gaspar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
