"""Asks a server for one reply, in each of the protocols: is it there? Returns None if it is not."""

import http.client
import socket
import struct
from contextlib import suppress

from servers import HOST

_SECONDS = 20
_HEADER = struct.Struct("!IIBBHII")  # docs/protocol.rst
_REQUEST, _REPLY = 1, 17


def framed(port: int, payload: bytes) -> bytes | None:
    """Ask in gaspar's framed protocol."""
    with (
        suppress(OSError, struct.error),
        socket.create_connection((HOST, port), timeout=_SECONDS) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(b"GSP2" + _HEADER.pack(len(payload), 1, _REQUEST, 0, 0, 0, 0) + payload)
        while True:
            size, _, kind, _, meta_size, _, _ = _HEADER.unpack(stream.read(_HEADER.size))
            body = stream.read(meta_size + size)
            if kind == _REPLY:
                return body
    return None


def post(port: int, payload: bytes) -> bytes | None:
    """Ask in HTTP."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_SECONDS)
    with suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/inference", payload)
        response = connection.getresponse()
        if response.status == 200:
            return response.read()
    connection.close()
    return None


def connect(port: int, payload: bytes) -> bytes | None:
    """Only connect: for protocols that need a library."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=_SECONDS):
        return payload
    return None
