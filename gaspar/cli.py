"""The command `gaspar-serve`: options, logging set-up, exit codes."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import __version__, logs
from .address import Address, parse
from .errors import AddressError, HandlerLoadError, LimitError
from .limits import Limits, available_cpus
from .systemd import passes_sockets

if TYPE_CHECKING:
    from .consumer import Consumer

log = logging.getLogger(__name__)

_EXIT_CODES = """\b
Exit codes:
  0  stopped, in order
  2  wrong usage
  3  the handler cannot be loaded or set up
  4  an address cannot be listened on"""

_SIGNALS = """\b
Signals:
  TERM, INT  finish what was accepted, then exit; a second one stops at once
  QUIT       stop at once
  HUP        load the handler's code anew; nothing is lost or held back
  TTIN, TTOU one consumer more, one less"""


class _AddressType(click.ParamType):  # type: ignore[type-arg]
    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse(value)
        except AddressError as error:
            self.fail(str(error), param, ctx)


def _limit_options(command: Any) -> Any:
    """Add an option for each limit, in the order of `Limits`."""
    for each in reversed(dataclasses.fields(Limits)):
        short = ["-p"] if each.name == "processes" else []
        default = f"{each.default:g}" if isinstance(each.default, float) else str(each.default)
        command = click.option(
            *short,
            "--" + each.name.replace("_", "-"),
            default=default,
            show_default=True,
            metavar=each.metadata["metavar"],
            help=each.metadata["meaning"][0].upper() + each.metadata["meaning"][1:] + ".",
        )(command)
    return command


def _check_handler(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    where, colon, attribute = value.rpartition(":")
    if not (colon and where and attribute):
        raise click.BadParameter(f"{value!r}: expected module.path:attribute or path/to/file.py:attribute")
    return value


@click.command(
    context_settings={"auto_envvar_prefix": "GASPAR", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{_SIGNALS}\n\n{_EXIT_CODES}\n\nEach option also from the environment, as GASPAR_<OPTION>.",
)
@click.argument("handler", metavar="HANDLER", callback=_check_handler)
@click.option(
    "-b",
    "--bind",
    "addresses",
    type=_AddressType(),
    multiple=True,
    default=["127.0.0.1:10123"],
    show_default=True,
    envvar="GASPAR_BIND",
    metavar="ADDRESS",
    help="host:port, [v6]:port or unix:PATH; may be repeated.",
)
@_limit_options
@click.option(
    "--control",
    type=_AddressType(),
    metavar="ADDRESS",
    help="Where gaspar-top and its like are answered; else on a Unix socket of this user's, in the ready line.",
)
@click.option(
    "--metrics",
    type=_AddressType(),
    metavar="ADDRESS",
    help="Answer HTTP there: GET /metrics for Prometheus, GET /healthz (needs gaspar[metrics]).",
)
@click.option(
    "--reload",
    "watch",
    is_flag=True,
    help="Load the code anew whenever a source file beside it changes; for development (needs gaspar[reload]).",
)
@click.option("--check", is_flag=True, help="Load the handler, set up one consumer, say what was found, exit.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="How much goes to standard error.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object a line.",
)
@click.version_option(__version__, "--version", prog_name="gaspar")
def serve(
    handler: str,
    addresses: tuple[Address, ...],
    control: Address | None,
    metrics: Address | None,
    watch: bool,
    check: bool,
    log_level: str,
    log_format: str,
    **limits: Any,
) -> None:
    """Run HANDLER on every CPU, behind a port.

    HANDLER is module.path:attribute or path/to/file.py:attribute and names a callable that takes bytes and
    returns bytes, a gaspar.Consumer subclass or a gaspar.Consumer.
    """
    from . import daemon
    from .handler import load

    try:
        checked = Limits(**limits)
    except LimitError as error:
        raise click.UsageError(str(error)) from None
    if metrics and not find_spec("prometheus_client"):
        raise click.UsageError("--metrics needs prometheus_client: pip install 'gaspar[metrics]'")
    if watch and not find_spec("watchfiles"):
        raise click.UsageError("--reload needs watchfiles: pip install 'gaspar[reload]'")
    _log_to_stderr(log_level.upper(), log_format)
    if passes_sockets() and click.get_current_context().get_parameter_source("addresses") is ParameterSource.DEFAULT:
        addresses = ()
    if check:
        sys.exit(_check(partial(load, handler), checked))
    sys.exit(
        daemon.serve(partial(load, handler), list(addresses), checked, control=control, metrics=metrics, watch=watch)
    )


def _check(load: Callable[[], Consumer], limits: Limits) -> int:
    import psutil

    from . import daemon
    from .lifecycle import Exit

    try:
        with daemon.check(load, limits) as found:
            memory = psutil.Process(found.pid).memory_full_info()
    except HandlerLoadError as error:
        log.error("%s", error)
        log.debug("%s", error.traceback)
        return Exit.HANDLER
    click.echo(found.what)
    click.echo(
        f"loaded in {found.load_seconds:.2f} s; a consumer is ready {found.fork_seconds * 1000:.0f} ms after its fork"
    )
    click.echo(f"{memory.rss / 2**20:.0f} MiB resident in each consumer, {memory.uss / 2**20:.1f} MiB of it its own")
    click.echo(f"{limits.processes} consumers on the {available_cpus()} CPUs that this process may use")
    return Exit.STOPPED


def _log_to_stderr(level: str, kind: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logs.formatter(kind))
    logging.basicConfig(level=level, handlers=[handler])
