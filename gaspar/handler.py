"""From `module.path:attribute` or `path/to/file.py:attribute` to a Consumer, with errors that a person understands."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from .consumer import Consumer, one_line, place
from .errors import HandlerLoadError


def load(spec: str) -> Consumer:
    """Load what HANDLER names: a callable, a Consumer subclass or a Consumer.

    The current directory is importable.

    Raises:
        HandlerLoadError: in one line, what could not be imported, found or used.
    """
    where, colon, attribute = spec.rpartition(":")
    if not colon or not where or not attribute:
        raise HandlerLoadError(f"handler {spec!r}: expected module.path:attribute or path/to/file.py:attribute")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import_file(where) if where.endswith(".py") or os.sep in where else _import_module(where)
    return as_consumer(_find(module, where, attribute), spec)


def as_consumer(found: object, spec: str) -> Consumer:
    """Turn what was found into a Consumer.

    Raises:
        HandlerLoadError: it is nothing that can handle messages.
    """
    if isinstance(found, Consumer):
        return found
    if inspect.isclass(found) and issubclass(found, Consumer):
        try:
            return found()
        except Exception as error:
            raise HandlerLoadError(f"handler {spec!r}: {one_line(error)}", traceback.format_exc()) from None
    if not callable(found):
        kind = type(found).__name__
        raise HandlerLoadError(
            f"handler {spec!r} is of type {kind}; expected a callable, a Consumer subclass or a Consumer"
        )
    return Consumer(found)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise HandlerLoadError(_import_message(name, error), traceback.format_exc()) from None


def _import_message(name: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if not (name == error.name or name.startswith(error.name + ".")):
            return f"module {name!r} needs {error.name!r}, which is not installed{place(error)}"
        known = (each.removesuffix(".py") for each in os.listdir() if each.endswith(".py") or os.path.isdir(each))
        return f"no module {error.name!r} here or on the path{_near(error.name, list(known))}"
    return f"module {name!r} cannot be imported: {one_line(error)}"


def _import_file(path: str) -> ModuleType:
    full = os.path.abspath(path)
    if not os.path.isfile(full):
        folder = os.path.dirname(full)
        known = os.listdir(folder) if os.path.isdir(folder) else []
        near = _near(os.path.basename(full), [each for each in known if each.endswith(".py")])
        raise HandlerLoadError(f"no file {path!r}{near}")
    name = os.path.splitext(os.path.basename(full))[0]
    parent = os.path.dirname(full)
    if parent not in sys.path:
        sys.path.insert(0, parent)  # its neighbours are importable, as for `python path/to/file.py`
    if name in sys.modules:  # a file called like a module that is loaded, json.py say
        name = f"{name}@{full}"
    found = importlib.util.spec_from_file_location(name, full)
    if found is None or found.loader is None:
        raise HandlerLoadError(f"file {path!r} is no Python source: its name must end in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        del sys.modules[name]
        message = f"file {path!r} cannot be loaded: {one_line(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            message = f"file {path!r} needs {error.name!r}, which is not installed{place(error)}"
        raise HandlerLoadError(message, traceback.format_exc()) from None
    return module


def _find(module: ModuleType, where: str, attribute: str) -> Any:
    found: Any = module
    for number, part in enumerate(attribute.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            owner = where if number == 0 else f"{where}:{'.'.join(attribute.split('.')[:number])}"
            names = [name for name in dir(found) if not name.startswith("__")]
            raise HandlerLoadError(f"{owner!r} has no attribute {part!r}{_near(part, names)}") from None
    return found


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
