"""From `module.path:attribute` or `path/to/file.py:attribute` to a Consumer, with errors that a person understands."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
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
        except BaseException as error:
            raise HandlerLoadError(f"handler {spec!r}: {one_line(error)}", traceback.format_exc()) from None
    if inspect.isclass(found) and hasattr(found, "handle"):
        raise HandlerLoadError(f"handler {spec!r} has a handle method; make it a subclass of gaspar.Consumer")
    if not callable(found):
        kind = type(found).__name__
        raise HandlerLoadError(
            f"handler {spec!r} is of type {kind}; expected a callable, a Consumer subclass or a Consumer"
        )
    return Consumer(found)


def _import_module(name: str) -> ModuleType:
    try:
        importlib.invalidate_caches()
        found = importlib.util.find_spec(name)  # imports its parents
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in sys.modules or type(found.loader) is not SourceFileLoader:
            return importlib.import_module(name)
        found.loader = _FromSource(found.loader.name, found.loader.path)
        return _execute(found)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise HandlerLoadError(_import_message(name, error), traceback.format_exc()) from None


def _import_message(name: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if not (name == error.name or name.startswith(error.name + ".")):
            return f"module {name!r} needs {error.name!r}, which is not installed{place(error)}"
        if "." in error.name:
            parent: Any = sys.modules.get(error.name.rpartition(".")[0])
            folders = list(getattr(parent, "__path__", []))
        else:
            folders = [os.getcwd()]
        names = [each for folder in folders if os.path.isdir(folder) for each in sorted(os.listdir(folder))]
        known = [each.removesuffix(".py") for each in names if each.endswith(".py") or "." not in each]
        return f"no module {error.name!r} here or on the path{_near(error.name.rpartition('.')[2], known)}"
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
        name = f"{name}_of_{abs(hash(full))}"
    found = importlib.util.spec_from_file_location(name, full, loader=_FromSource(name, full))
    assert found is not None
    try:
        return _execute(found)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        message = f"file {path!r} cannot be loaded: {one_line(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            message = f"file {path!r} needs {error.name!r}, which is not installed{place(error)}"
        raise HandlerLoadError(message, traceback.format_exc()) from None


class _FromSource(SourceFileLoader):
    """Compiles the handler's own file each time.

    A file that is rewritten within a second at the same size has a .pyc that looks fresh.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _execute(found: ModuleSpec) -> ModuleType:
    """Make a module of its spec, as an import does."""
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(found.name, None)
        raise
    parent, _, child = found.name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return sys.modules.get(found.name, module)  # a module may replace itself


def _find(module: ModuleType, where: str, attribute: str) -> Any:
    found: Any = module
    for number, part in enumerate(attribute.split(".")):
        try:
            found = getattr(found, part)
        except Exception as error:
            if not isinstance(error, AttributeError):
                raise HandlerLoadError(f"{where}:{attribute}: {one_line(error)}", traceback.format_exc()) from None
            owner = where if number == 0 else f"{where}:{'.'.join(attribute.split('.')[:number])}"
            names = [name for name in dir(found) if not name.startswith("__")]
            raise HandlerLoadError(f"{owner!r} has no attribute {part!r}{_near(part, names)}") from None
    return found


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
