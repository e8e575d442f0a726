"""Checks what a caller hands to a client: a message, and how long it may take. Pure."""

from __future__ import annotations

import math

from .errors import TooBig
from .limits import MAX_WIRE_MESSAGE

Message = bytes | bytearray | memoryview


def as_bytes(message: Message) -> bytes | memoryview:
    """Return a message as bytes, or as a view of the caller's memory, byte by byte.

    Raises:
        TypeError: it is not bytes-like.
        TooBig: it is longer than the protocol can announce (2**30 - 1 bytes).
    """
    if isinstance(message, str):
        raise TypeError("message is a str; encode it first, like message.encode()")
    try:
        data = message if isinstance(message, bytes) else memoryview(message).cast("B")
    except TypeError:
        raise TypeError(f"message must be bytes-like, not {type(message).__name__}") from None
    if len(data) > MAX_WIRE_MESSAGE:
        raise TooBig(f"{len(data)} bytes, the protocol can announce {MAX_WIRE_MESSAGE}")
    return data


def checked_timeout(timeout: float | None) -> float | None:
    """Return a timeout in seconds, None for one that never passes.

    Raises:
        ValueError: it is not above 0.
    """
    if timeout is None or timeout == math.inf:
        return None
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, it must be above 0 seconds, or None for none")
    return timeout
