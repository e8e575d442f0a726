"""The directive `command`: all that a click command says of itself, read from the command when the site is built.

    .. command:: gaspar.cli:serve
       :called: gaspar-serve

Options that are limits (gaspar/limits.py) also say under which keyword `Producer` takes them.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gaspar.limits import names

_UNWRAPPED = "\b"  # what click calls a paragraph whose lines are to stay as they are


def _prose(text: str) -> str:
    """Return plain text as reStructuredText; what looks like an option, a file or a variable becomes code."""
    text = re.sub(r"([*`|\\])", r"\\\1", " ".join(text.split()))
    return re.sub(
        r"(?<!\S)(--[a-z][a-z-]*|GASPAR_\S+?|unix:PATH|\[v6\]:port|host:port)(?=[\s,.;:)]|$)", r"``\1``", text
    )


def _paragraphs(text: str) -> list[str]:
    """Lay out the long text of a command."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        first, _, rest = paragraph.strip("\n").partition("\n")
        if first.strip() != _UNWRAPPED:
            lines += [_prose(paragraph), ""]
            continue
        title, _, block = rest.partition("\n")
        lines += [title.strip().rstrip(":") + "::", "", *("    " + line for line in block.splitlines()), ""]
    return lines


def _option(option: click.Option, prefix: str | None) -> list[str]:
    """Lay out one option."""
    context = click.Context(click.Command("command"))
    extra = option.get_help_extra(context)
    name = max(option.opts, key=len)
    meta = "" if option.is_flag else " " + option.make_metavar(context)
    spellings = ", ".join(spelling + meta for spelling in sorted(option.opts, key=len))
    facts = []
    if "default" in extra:
        facts.append(f"Default: ``{extra['default']}``.")
    if isinstance(option.type, click.IntRange):
        facts.append(f"From {option.type.min} to {option.type.max}.")
    if isinstance(option.type, click.Choice):
        facts.append("One of " + ", ".join(f"``{each}``" for each in option.type.choices) + ".")
    if prefix and not option.is_eager:
        facts.append(f"Environment: ``{option.envvar or prefix + '_' + name[2:].upper().replace('-', '_')}``.")
    if prefix and option.name in names():
        facts.append(f"``Producer``: ``{option.name}=``.")
    return [f".. option:: {spellings}", "", f"   {_prose(option.help or '')}", "", f"   {' '.join(facts)}", ""]


class Command(SphinxDirective):
    """The directive."""

    required_arguments = 1
    option_spec = {"called": directives.unchanged_required}  # noqa: RUF012  # docutils' own way

    def run(self) -> list[nodes.Node]:
        """Return what the command says."""
        module, _, attribute = self.arguments[0].partition(":")
        source = importlib.import_module(module)
        command: click.Command = getattr(source, attribute)
        self.env.note_dependency(source.__file__ or "")
        self.env.note_dependency(importlib.import_module("gaspar.limits").__file__ or "")
        called = self.options["called"]
        context = click.Context(command, info_name=called)
        prefix: str | None = command.context_settings.get("auto_envvar_prefix")
        usage = " ".join([called, *command.collect_usage_pieces(context)])
        lines = [f".. program:: {called}", "", "``" + usage + "``", "", *_paragraphs(command.help or "")]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                lines += _option(parameter, prefix)
        lines += _paragraphs(command.epilog or "")
        return self.parse_text_to_nodes(StringList(lines, source=f"{self.arguments[0]}"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
