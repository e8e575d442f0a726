"""A framed daemon in threads that does what its script says, which is nastier than the world."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from gaspar.errors import Code
from gaspar.frames import CLIENT_KINDS, MAGIC, Frame, FrameKind, FrameParser, encode, encode_meta

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The client ended the connection."""


class Peer:
    """The daemon's end of one connection. `step`: how many bytes it sends at a time, 0 for all at once."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.number = number  # of connections before this one
        self.step = 0
        self._socket = connection
        self._parser = FrameParser(2**30, CLIENT_KINDS)
        self._frames: deque[Frame] = deque()
        self._greeted = False

    def recv(self, count: int) -> bytes:
        """Read so many raw bytes."""
        data = b""
        while len(data) < count:
            part = self._read(count - len(data))
            data += part
        return data

    def _read(self, count: int) -> bytes:
        try:
            part = self._socket.recv(count)
        except ConnectionResetError:
            part = b""
        if not part:
            raise Gone
        return part

    def frame(self) -> Frame:
        """Wait for the client's next frame."""
        if not self._greeted:
            self._greeted = True
            assert self.recv(4) == MAGIC
        while not self._frames:
            self._frames.extend(self._parser.feed(self._read(1 << 20)))
            assert self._parser.error is None, self._parser.error
        return self._frames.popleft()

    def request(self) -> Frame:
        """Wait for the client's next frame, which is a request."""
        frame = self.frame()
        assert frame.kind == FrameKind.REQUEST, frame
        return frame

    def raw(self, data: bytes) -> None:
        """Send bytes, in steps. A client that has left does not mind."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(0, len(data), self.step or len(data) or 1):
                self._socket.sendall(data[at : at + (self.step or len(data))])

    def greet(self, max_message: int = 2**26, max_in_flight: int = 256, **more: object) -> None:
        meta = {"server": "fake", "max_message": max_message, "max_in_flight": max_in_flight} | more
        self.raw(encode(FrameKind.HELLO, meta=encode_meta(meta)))

    def reply(self, request: Frame, body: bytes = b"", waited: int = 0, ran: int = 0) -> None:
        self.raw(encode(FrameKind.REPLY, request.id, body, a=waited, b=ran))

    def part(self, request: Frame, body: bytes) -> None:
        self.raw(encode(FrameKind.PART, request.id, body))

    def error(self, request: Frame | None, code: Code, message: str = "", waited: int = 0, ran: int = 0) -> None:
        """Answer with an error, or say what is wrong with the connection."""
        body = b'{"type": "%s", "message": "%s"}' % (code.name.encode(), message.encode())
        self.raw(encode(FrameKind.ERROR, request.id if request else 0, body, code=code, a=waited, b=ran))

    def go_away(self) -> None:
        self.raw(encode(FrameKind.GOAWAY))

    def reset(self) -> None:
        """End the connection in a way that is not clean."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._socket.close()

    def until_gone(self) -> None:
        """Read until the client ends the connection."""
        with contextlib.suppress(Gone):
            while True:
                self._read(1 << 20)

    def echo(self) -> None:
        """Greet, and answer each request with itself, until the client leaves."""
        self.greet()
        self.echo_on()

    def echo_on(self) -> None:
        """Answer each request with itself, until the client leaves."""
        with contextlib.suppress(Gone):
            while True:
                frame = self.frame()
                if frame.kind == FrameKind.REQUEST:
                    self.reply(frame, bytes(frame.body))


Script = Callable[[Peer], None]


class FakeDaemon:
    """Listens; the first connection gets the first script and so on, all further ones the last script.

    A connection is closed when its script returns. What a script raises, `close` raises.
    """

    def __init__(self, *scripts: Script, path: str = "") -> None:
        if path:
            self._listener = socket.create_server(path, family=socket.AF_UNIX)
            self.address = f"unix:{path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._scripts = scripts
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            peer = Peer(connection, self.connections)
            self.connections += 1
            self._sockets.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(script, peer, connection)))
            self._threads[-1].start()

    def _serve(self, script: Script, peer: Peer, connection: socket.socket) -> None:
        try:
            script(peer)
        except Gone:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)  # no reset, whatever is unread
            connection.close()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(30)

    def close(self) -> None:
        """Stop, wait for the scripts to end, and raise what they raised."""
        self.stop_listening()
        for thread, connection in zip(self._threads, self._sockets, strict=True):
            thread.join(10)
            if thread.is_alive():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join(10)
        if self._errors:
            raise self._errors[0]
