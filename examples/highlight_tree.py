"""Highlights every .py file below a folder through gaspar, and compares its speed with one process.

python examples/highlight_tree.py                   the standard library of this Python, to ./highlighted
python examples/highlight_tree.py DIR OUT
"""

import os
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import click
from highlight import highlight
from tqdm import tqdm

import gaspar
import gaspar.client
from gaspar.errors import GasparError

T = TypeVar("T")

REQUEST_TIMEOUT = 120.0  # seconds; the longest file of a standard library takes less than one


class NotSource(Exception):
    """A .py file that cannot be read as Python source text."""


@dataclass
class Outcome:
    """What became of the files: `done` has a page each, `skipped` and `failed` have the reason why not."""

    seconds: float = 0.0
    done: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, path: Path, write: Callable[[], None]) -> None:
        """Run `write` and note how it ended."""
        try:
            write()
        except NotSource as error:
            self.skipped[path] = str(error)
        except (GasparError, OSError) as error:
            self.failed[path] = str(error)
        else:
            self.done.append(path)


def find_sources(root: Path, leave_out: str | None = None) -> list[Path]:
    """Return the .py files below `root`, sorted, relative to it, none from a folder named `leave_out`."""
    below = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
    return sorted(path for path in below if leave_out not in path.parts)


def read_source(path: Path) -> bytes:
    """Return the text of a Python file in UTF-8, whatever encoding its first lines declare (PEP 263).

    Raises:
        NotSource: it cannot be read, or is not in the encoding that it declares.
    """
    try:
        with tokenize.open(path) as file:
            return file.read().encode()
    except (OSError, SyntaxError, UnicodeError) as error:
        raise NotSource(str(error)) from error


def write_page(root: Path, path: Path, out: Path, to_html: Callable[[bytes], bytes]) -> None:
    """Write the page of one file: the same work for gaspar and for one process, but for `to_html`."""
    page = to_html(read_source(root / path))
    # The handler sees the text alone; the name is known here.
    page = page.replace(b"<title></title>", b"<title>%s</title>" % _text(path), 1)
    target = out / _page_name(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page)


def write_index(out: Path, title: str, paths: Iterable[Path]) -> None:
    """Write the index.html that links the page of each of `paths`."""
    links = (b'<li><a href="%s">%s</a></li>' % (_href(path), _text(path)) for path in sorted(paths))
    head = b'<!DOCTYPE html>\n<meta charset="utf-8">\n<title>%s</title>\n<ul>\n' % escape(title).encode(
        errors="replace"
    )
    (out / "index.html").write_bytes(head + b"\n".join(links) + b"\n</ul>\n")


def through_gaspar(root: Path, paths: list[Path], out: Path, address: str, in_flight: int) -> Outcome:
    """Write all pages through the daemon at `address`, `in_flight` requests at a time."""

    def to_html(source: bytes) -> bytes:
        return gaspar.client.request(address, source, timeout=REQUEST_TIMEOUT)

    outcome = Outcome()
    began = time.monotonic()
    pool = ThreadPoolExecutor(in_flight)
    try:
        # The longest first: the last files are then short, and no CPU ends up idle beside a long one.
        order = sorted(paths, key=lambda path: (root / path).stat().st_size, reverse=True)
        pages = {pool.submit(write_page, root, path, out, to_html): path for path in order}
        for page in _progress(as_completed(pages), len(paths), "gaspar"):
            outcome.add(pages[page], page.result)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C: not the whole rest first
    outcome.seconds = time.monotonic() - began
    return outcome


def in_one_process(root: Path, paths: list[Path], out: Path) -> Outcome:
    """Write all pages one after the other, here."""
    outcome = Outcome()
    began = time.monotonic()
    for path in _progress(paths, len(paths), "one process"):
        outcome.add(path, partial(write_page, root, path, out, highlight))
    outcome.seconds = time.monotonic() - began
    return outcome


@click.command()
@click.argument("root", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", default="highlighted", type=click.Path(file_okay=False, writable=True, path_type=Path))
@click.option("--address", help="host:port of a running daemon; without it one is started for this.")
@click.option("--in-flight", default=4 * (os.cpu_count() or 1), show_default=True, type=click.IntRange(1, 1000))
@click.option("--limit", type=click.IntRange(1), help="Take the first files only.")
@click.option("--skip-baseline", is_flag=True, help="Do not do the same in one process.")
def main(
    root: Path | None, out: Path, address: str | None, in_flight: int, limit: int | None, skip_baseline: bool
) -> None:
    """Highlight every .py file below DIR (the standard library of this Python) through gaspar.

    OUT (./highlighted) gets a page for each and an index.html. Files that are not Python source text are
    named and skipped. Requests that fail are named too, and make the exit code 1.
    """
    if root is None:
        root = Path(sysconfig.get_path("stdlib"))
        paths = find_sources(root, leave_out="site-packages")[:limit]
    else:
        paths = find_sources(root)[:limit]
    if not paths:
        raise click.ClickException(f"no .py file below {click.format_filename(root)}")
    out.mkdir(parents=True, exist_ok=True)
    if address is None:
        # The daemon is gone again before the measurement of one process begins.
        with gaspar.Producer(gaspar.Consumer(highlight), 0) as producer:
            host, port = producer.server_addr
            outcome = through_gaspar(root, paths, out, f"{host}:{port}", in_flight)
    else:
        _check_daemon(address)
        outcome = through_gaspar(root, paths, out, address, in_flight)
    write_index(out, str(root), outcome.done)
    for path, why in sorted(outcome.skipped.items()):
        click.echo(f"skipped {click.format_filename(path)}: {why}", err=True)
    for path, why in sorted(outcome.failed.items()):
        click.echo(f"failed {click.format_filename(path)}: {why}", err=True)
    click.echo(f"{len(outcome.done)} pages, see {click.format_filename(out / 'index.html')}")
    rate = _print_rate("gaspar", outcome)
    if not skip_baseline:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            rate_alone = _print_rate("one process", in_one_process(root, paths, Path(scratch)))
        if rate_alone:
            click.echo(f"ratio        {rate / rate_alone:8.2f}")
    if outcome.failed:
        raise SystemExit(1)


def _check_daemon(address: str) -> None:
    try:
        page = gaspar.client.request(address, b"", timeout=REQUEST_TIMEOUT)
    except (GasparError, OSError, ValueError) as error:
        raise click.ClickException(f"--address {address}: {error}") from None
    if page != highlight(b""):
        raise click.ClickException(f"--address {address}: answers, but not as examples/highlight.py:highlight does")


def _print_rate(name: str, outcome: Outcome) -> float:
    rate = len(outcome.done) / outcome.seconds
    click.echo(f"{name:12} {rate:8.1f} files/s   {len(outcome.done)} files in {outcome.seconds:.1f} s")
    return rate


def _progress(items: Iterable[T], total: int, name: str) -> Iterable[T]:
    seldom = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log needs no moving picture
    return tqdm(items, total=total, desc=f"{name:12}", unit=" files", mininterval=seldom, dynamic_ncols=True)


def _page_name(path: Path) -> str:
    return f"{path.as_posix()}.html"  # the page of index.py must not be the index


def _href(path: Path) -> bytes:
    return quote(os.fsencode(_page_name(path))).encode()


def _text(path: Path) -> bytes:
    return escape(path.as_posix()).encode(errors="replace")


if __name__ == "__main__":
    main()
