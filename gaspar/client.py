"""Send one request and get its reply: plain blocking sockets, safe in threads and under green monkey-patching."""

from __future__ import annotations

import socket
import time
from typing import NoReturn

from . import address as addresses
from .address import Address
from .errors import ConnectionLost, RequestTimeout, TooBig
from .limits import MAX_WIRE_MESSAGE
from .wire import LENGTH

_CHUNK = 65536
_JOIN = 65536  # bytes; a longer payload is sent after its header, not copied behind it


def pack(message: bytes | bytearray | memoryview) -> bytes:
    """Lay out a one-shot request: 4-byte length in network byte order, then the message.

    Raises:
        TypeError: message is not bytes-like.
        TooBig: it is longer than the protocol can announce (2**30 - 1 bytes).
    """
    data = _as_bytes(message)
    return LENGTH.pack(len(data)) + data


def request(address: str, message: bytes | bytearray | memoryview, timeout: float | None = None) -> bytes:
    """Send a request on a connection of its own and return exactly the reply.

    Args:
        address: "host:port", "[v6]:port" or "unix:/path".
        timeout: seconds for all of it; None waits as long as the daemon takes.

    Raises:
        ConnectionLost: (also a ConnectionError) no connection, or it ended before the reply was whole: the
            daemon refused the request, the handler failed or its process died. The daemon's log says which.
        RequestTimeout: (also a TimeoutError) `timeout` has passed.
        AddressError: (also a ValueError) the address cannot be read.
        TypeError: message is not bytes-like.
    """
    where = addresses.parse(address)
    data = _as_bytes(message)
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with addresses.connect(where, _left(end)) as connection:
            return _exchange(connection, data, end)
    except TimeoutError as error:
        raise RequestTimeout(f"{where}: no reply within {timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        _explain(where, error)


def _exchange(connection: socket.socket, data: bytes | memoryview, end: float | None) -> bytes:
    header = LENGTH.pack(len(data))
    connection.settimeout(_left(end))
    if len(data) <= _JOIN:
        connection.sendall(header + data)
    else:
        connection.sendall(header)
        connection.settimeout(_left(end))
        connection.sendall(data)
    parts: list[bytes] = []
    while True:
        connection.settimeout(_left(end))
        part = connection.recv(_CHUNK)
        if not part:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        parts.append(part)


def _left(end: float | None) -> float | None:
    if end is None:
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _explain(where: Address, error: OSError | UnicodeError) -> NoReturn:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        text = "nobody listens there; is the daemon running?"
    elif isinstance(error, ConnectionResetError | BrokenPipeError):
        text = (
            "the connection was reset before the reply was whole: the daemon refused the request, "
            "its handler failed or its consumer died; the daemon's log says which"
        )
    elif isinstance(error, UnicodeError):
        text = "not a host name"
    else:
        text = error.strerror or str(error)
    raise ConnectionLost(f"{where}: {text}") from error


def _as_bytes(message: bytes | bytearray | memoryview) -> bytes | memoryview:
    if isinstance(message, str):
        raise TypeError("message is a str; encode it first, like message.encode()")
    try:
        data = message if isinstance(message, bytes) else memoryview(message).cast("B")
    except TypeError:
        raise TypeError(f"message must be bytes-like, not {type(message).__name__}") from None
    if len(data) > MAX_WIRE_MESSAGE:
        raise TooBig(f"{len(data)} bytes, the protocol can announce {MAX_WIRE_MESSAGE}")
    return data
