"""Checks what a caller hands to a client: a message, and how long it may take. Pure."""

from __future__ import annotations

import math

from .errors import TooBig
from .frames import encode_meta, request_name
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


def named(request_id: str) -> bytes:
    """Return the meta that gives a request a name in the daemon's log; none for "".

    Raises:
        ValueError: it is longer than 128 characters, or has some that cannot be printed.
    """
    if not request_id:
        return b""
    meta = {"request_id": request_id}
    if not request_name(meta):
        raise ValueError(f"request_id is {request_id[:200]!r}, it must be 1 to 128 printable characters")
    return encode_meta(meta)
