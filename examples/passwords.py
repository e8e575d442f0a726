"""An eventlet web application that goes on answering while passwords are hashed: gaspar hashes them.

python examples/passwords.py
curl --data secret http://127.0.0.1:8080/hash
curl http://127.0.0.1:8080/ping
"""

import base64
import hashlib
import hmac
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import click

import gaspar
import gaspar.client
from gaspar.errors import GasparError

# From OWASP's Password Storage Cheat Sheet: of its equally strong choices the one that takes 32 MiB. A stored
# hash names its cost, as in the PHC string format; other costs are refused, or a client could order 1 TiB.
COST = {"n": 2**15, "r": 8, "p": 3, "maxmem": 2**26}
PREFIX = b"$scrypt$ln=15,r=8,p=3$"
SALT_BYTES = 16
MAX_BODY = 1024  # bytes of password, or of stored hash and password
HASH_TIMEOUT = 30.0  # seconds, waiting for a free consumer included


def hash_password(message: bytes) -> bytes:
    r"""Hash a password, as crypt(3) does: what is stored says with which salt.

    Args:
        message: a stored hash, or nothing for a new one with a random salt; then b"\n"; then the password.

    Returns:
        The hash to store. It is the stored one again if, and only if, the password is right.

    Raises:
        ValueError: what stands before the b"\n" is no hash of ours.
    """
    stored, _, password = message.partition(b"\n")
    salt = _salt(stored) if stored else os.urandom(SALT_BYTES)
    key = hashlib.scrypt(password, salt=salt, **COST)
    return PREFIX + base64.b64encode(salt) + b"$" + base64.b64encode(key)


def _salt(stored: bytes) -> bytes:
    salt, _, key = stored.removeprefix(PREFIX).partition(b"$")
    if not stored.startswith(PREFIX) or not key:
        raise ValueError(f"not a hash that starts with {PREFIX.decode()}")
    return base64.b64decode(salt, validate=True)


class Refused(Exception):
    """A request that gets an HTTP status other than 200, and says why."""


class Application:
    """The WSGI application: POST /hash, POST /verify, GET /ping. `address` is the daemon that hashes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._routes = {
            ("POST", "/hash"): self.hash,
            ("POST", "/verify"): self.verify,
            ("GET", "/ping"): self.ping,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status = "200 OK"
        try:
            body = environ["wsgi.input"].read(MAX_BODY + 1)
            if len(body) > MAX_BODY:
                raise Refused("413 Content Too Large", f"{MAX_BODY} bytes allowed")
            route = self._routes.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            if route is None:
                raise Refused("404 Not Found", "there are POST /hash, POST /verify and GET /ping")
            answer = route(body)
        except Refused as refused:
            status, why = refused.args
            answer = why.encode()
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(answer) + 1))])
        return [answer, b"\n"]

    def hash(self, password: bytes) -> bytes:
        """The body is a password; answer what to store."""
        return self._hash_password(b"\n" + password)

    def verify(self, message: bytes) -> bytes:
        """The body is what was stored, a line end, and a password; answer yes or no."""
        stored = message.partition(b"\n")[0]
        try:
            _salt(stored)
        except ValueError as error:
            raise Refused("400 Bad Request", str(error)) from error
        return b"yes" if hmac.compare_digest(self._hash_password(message), stored) else b"no"

    def ping(self, _: bytes) -> bytes:
        """Answer at once."""
        return b"pong"

    def _hash_password(self, message: bytes) -> bytes:
        # Under eventlet's monkey-patching this green thread waits for the reply, and the others run.
        try:
            return gaspar.client.request(self._address, message, timeout=HASH_TIMEOUT)
        except GasparError as error:
            raise Refused("503 Service Unavailable", str(error)) from error


@click.command()
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def main(port: int) -> None:
    """Hash passwords over HTTP on 127.0.0.1: POST /hash, POST /verify, GET /ping."""
    # Here, not at the top of the file: whoever serves hash_password with gaspar-serve needs no eventlet.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    import eventlet
    import eventlet.wsgi

    eventlet.monkey_patch()
    try:
        listener = eventlet.listen(("127.0.0.1", port))
    except OSError as error:
        raise click.ClickException(f"cannot listen on 127.0.0.1:{port}: {error}") from None
    with gaspar.Producer(gaspar.Consumer(hash_password), 0) as producer:
        daemon = "{}:{}".format(*producer.server_addr)
        click.echo("ready on http://{}:{}".format(*listener.getsockname()))
        eventlet.wsgi.server(listener, Application(daemon))


if __name__ == "__main__":
    main()
