"""Names for another process: of a handler, of the folders to import from, of a command's options."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from types import ModuleType
from typing import Any

_WAY_OUT = (
    "The daemon is a process of its own and imports its handler by name: give a function or a Consumer subclass from"
    " the top level of a module, or its name, like 'package.module:function'"
)


def name_of(handler: object) -> str:
    """Name a handler as `gaspar-serve` takes it.

    Args:
        handler: a function or Consumer subclass from the top level of a module; or its name.

    Raises:
        TypeError: another process cannot import it.
    """
    if isinstance(handler, str):
        return handler
    name = getattr(handler, "__qualname__", "")
    owner = getattr(handler, "__module__", None) or getattr(getattr(handler, "__objclass__", None), "__module__", None)
    module = sys.modules.get(owner or "")
    if not name or module is None:
        raise TypeError(f"the handler is an object of type {type(handler).__name__}, which has no name. {_WAY_OUT}.")
    if "<lambda>" in name:
        raise TypeError(f"the handler is a lambda (in {owner}), which has no name. {_WAY_OUT}.")
    if "<locals>" in name:
        raise TypeError(f"the handler {owner}:{name} is made inside a function. {_WAY_OUT}.")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found != handler:
        raise TypeError(f"the handler calls itself {owner}:{name}, but that is another object. {_WAY_OUT}.")
    return f"{_importable_name(module)}:{name}"


def _importable_name(module: ModuleType) -> str:
    """Return a module's name if that imports it in a fresh process, else its file."""
    file: str | None = getattr(module, "__file__", None)
    if file is None:  # built in
        return module.__name__
    top = module.__name__.partition(".")[0]
    for finder in sys.meta_path:
        # pytest's own finder finds what the usual one does
        if top == "__main__" or type(finder).__module__.startswith("_pytest") or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(top, None)
        if spec is None:
            continue
        if top != module.__name__ or (spec.origin and os.path.realpath(spec.origin) == os.path.realpath(file)):
            return module.__name__
        break  # another module of this name comes first
    return os.path.abspath(file)


def import_path() -> str:
    """Return the PYTHONPATH that lets another process import what this one can."""
    usual = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    folders = [os.path.abspath(each) for each in sys.path]
    wanted = [each for each in folders if not usual & {each, os.path.dirname(each)} and os.path.exists(each)]
    return os.pathsep.join(dict.fromkeys(wanted))


def as_list(value: object) -> list[Any]:
    """Return one value, or several, as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_arguments(options: Mapping[str, object]) -> list[str]:
    """Write options as the command has them: `max_waiting=2` is `--max-waiting=2`."""
    arguments = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for each in as_list(value):
            if each is True:
                arguments.append(flag)
            elif each is not False:
                arguments.append(f"{flag}={'none' if each is None else each}")
    return arguments
