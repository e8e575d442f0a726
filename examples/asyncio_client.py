"""Asks a daemon many things at once from asyncio, with no more than pack() and streams.

python examples/asyncio_client.py                              starts a daemon that counts primes
python examples/asyncio_client.py 127.0.0.1:10123 -n 1000      asks a running one
"""

import asyncio
import math
import time

import click

import gaspar
import gaspar.client

TIMEOUT = 60.0  # seconds for one request, waiting for a free consumer included


def count_primes(message: bytes) -> bytes:
    """Handle a request: the number of primes below the decimal number in `message`."""
    below = int(message)
    sieve = bytearray(b"\1") * below
    sieve[:2] = bytes(min(2, below))
    for number in range(2, math.isqrt(below) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return b"%d" % sieve.count(1)


async def request(host: str, port: int, message: bytes) -> bytes:
    """Send `message`, return the reply.

    Raises:
        ConnectionError: no daemon is there, or it reset the connection: the handler raised, or died.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        # The length says where the request ends: no write_eof().
        writer.write(gaspar.client.pack(message))
        await writer.drain()
        # The end of the stream says that the reply is whole. A failure is a reset in its place: read() raises
        # it, also when a part of the reply had come.
        return await reader.read()
    finally:
        writer.close()


async def request_all(host: str, port: int, messages: list[bytes], at_once: int) -> list[bytes | BaseException]:
    """Send all `messages`, `at_once` at a time; return in their order the reply or the error each one got."""
    free = asyncio.Semaphore(at_once)

    async def one(message: bytes) -> bytes:
        async with free:
            return await asyncio.wait_for(request(host, port, message), TIMEOUT)

    return await asyncio.gather(*map(one, messages), return_exceptions=True)


@click.command()
@click.argument("address", required=False)
@click.option("-n", "--requests", default=100, show_default=True, type=click.IntRange(1))
@click.option("--at-once", default=100, show_default=True, type=click.IntRange(1, 1000))
def main(address: str | None, requests: int, at_once: int) -> None:
    """Send many requests at once to the daemon at ADDRESS, host:port. Without it one is started for this."""
    if address is None:
        with gaspar.Producer(gaspar.Consumer(count_primes), 0) as producer:
            host, port = producer.server_addr
            failures = _report(host, port, requests, at_once)
    else:
        host, _, digits = address.rpartition(":")
        if not host or not digits.isdecimal():
            raise click.BadParameter(f"{address!r} is not host:port", param_hint="ADDRESS")
        failures = _report(host.strip("[]"), int(digits), requests, at_once)
    if failures:
        raise SystemExit(1)


def _report(host: str, port: int, requests: int, at_once: int) -> int:
    messages = [b"%d" % number for number in range(1_000_000, 1_000_000 + requests)]
    began = time.monotonic()
    replies = asyncio.run(request_all(host, port, messages, at_once))
    seconds = time.monotonic() - began
    failures = 0
    for message, reply in zip(messages, replies, strict=True):
        if isinstance(reply, BaseException):
            failures += 1
            click.echo(f"{message.decode()} failed: {type(reply).__name__}: {reply}", err=True)
        else:
            click.echo(f"{message.decode()} -> {reply[:60].decode(errors='replace')}")
    click.echo(f"{requests - failures} replies, {failures} failures in {seconds:.2f} s")
    return failures


if __name__ == "__main__":
    main()
