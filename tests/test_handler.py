"""Loads handlers, good and bad, from modules and files in a folder of their own."""

import importlib
import os
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaspar.consumer import Consumer
from gaspar.errors import HandlerLoadError
from gaspar.handler import as_consumer, load

HANDLERS = """
import gaspar

def echo(message):
    return message

class Upper(gaspar.Consumer):
    def handle(self, message):
        return message.upper()

class Unfinished(gaspar.Consumer):
    pass

class Picky(gaspar.Consumer):
    def __init__(self):
        raise ValueError("first line\\nsecond line")
    def handle(self, message):
        return message

class Leaving(gaspar.Consumer):
    def __init__(self):
        raise SystemExit("no licence")
    def handle(self, message):
        return message

class Speechless(gaspar.Consumer):
    def __init__(self):
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError
        raise Mute
    def handle(self, message):
        return message

class NoConsumer:
    def handle(self, message):
        return message

class Callable:
    def __call__(self, message):
        return message + b"!"

class Holder:
    @staticmethod
    def reverse(message):
        return message[::-1]
    upper = Upper()

ready = gaspar.Consumer(echo)
called = Callable()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory of its own; what is imported from it is forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.delitem(sys.modules, "handlers", raising=False)  # the daemon tests' own
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "app" / "deep").mkdir(parents=True)
    (tmp_path / "app" / "__init__.py").write_text("")
    (tmp_path / "app" / "deep" / "__init__.py").write_text("")
    (tmp_path / "app" / "deep" / "handlers.py").write_text(HANDLERS)
    importlib.invalidate_caches()
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def answer(spec: str, message: bytes = b"abc") -> object:
    return load(spec).handle(message)


def refusal(spec: str) -> str:
    """Return the one line that says why a handler cannot be loaded."""
    with pytest.raises(HandlerLoadError) as caught:
        load(spec)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- what loads ----

ATTRIBUTES = [
    ("echo", b"abc"),
    ("Upper", b"ABC"),
    ("ready", b"abc"),
    ("called", b"abc!"),
    ("Holder.reverse", b"cba"),
    ("Holder.upper", b"ABC"),
    ("Holder.upper.handle", b"ABC"),
]


@pytest.mark.parametrize(
    "where", ["handlers", "app.deep.handlers", "handlers.py", "./handlers.py", "app/deep/handlers.py"]
)
@pytest.mark.parametrize(("attribute", "reply"), ATTRIBUTES)
def test_whatever_handles_messages_is_loaded_from_a_module_or_a_file(
    folder: Path, where: str, attribute: str, reply: bytes
) -> None:
    assert answer(f"{where}:{attribute}") == reply


def test_a_file_is_loaded_by_its_full_path_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert answer(f"{folder / 'handlers.py'}:echo") == b"abc"


def test_a_colon_in_the_folders_name_does_no_harm(folder: Path) -> None:
    (folder / "a:b").mkdir()
    (folder / "a:b" / "h.py").write_text(HANDLERS)
    assert answer("a:b/h.py:echo") == b"abc"


def test_a_files_neighbours_can_be_imported(folder: Path) -> None:
    (folder / "app" / "neighbour_of_main.py").write_text("WORD = b'hello'")
    (folder / "app" / "main.py").write_text(
        "from neighbour_of_main import WORD\ndef handle(message):\n    return WORD + message"
    )
    assert answer("app/main.py:handle") == b"helloabc"


def test_a_module_finds_the_current_directory(folder: Path) -> None:
    (folder / "uses_app.py").write_text("from app.deep.handlers import echo")
    assert answer("uses_app:echo") == b"abc"


@pytest.mark.parametrize("name", ["json", "gaspar"])
def test_a_file_called_like_a_module_that_is_loaded_is_itself(folder: Path, name: str) -> None:
    before = sys.modules[name]
    (folder / f"{name}.py").write_text("def handle(message):\n    return b'own'")
    assert answer(f"./{name}.py:handle") == b"own"
    assert sys.modules[name] is before


def test_two_files_of_one_name_are_two(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "twin_handler.py").write_text(f"def handle(message):\n    return b'{name}'")
    assert [answer(f"{name}/twin_handler.py:handle") for name in ("one", "two", "one")] == [b"one", b"two", b"one"]


def test_a_file_may_use_what_looks_its_module_up(folder: Path) -> None:
    (folder / "points.py").write_text(
        "from __future__ import annotations\nimport dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "def handle(message):\n    return b'%d' % pickle.loads(pickle.dumps(Point(3))).x"
    )
    assert answer("points.py:handle") == b"3"


def test_a_consumer_that_is_made_already_is_taken_as_it_is(folder: Path) -> None:
    consumer = Consumer(bytes.upper)
    assert as_consumer(consumer, "x:y") is consumer


# ---- what does not, and what is said ----


@pytest.mark.parametrize("spec", ["", ":", "handlers", "handlers:", ":echo", "handlers.py", "./handlers.py:"])
def test_what_is_no_handlers_name_is_refused_with_what_was_expected(folder: Path, spec: str) -> None:
    assert refusal(spec) == f"handler {spec!r}: expected module.path:attribute or path/to/file.py:attribute"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("handler:echo", "no module 'handler' here or on the path; did you mean 'handlers'?"),
        ("zzzzzz:echo", "no module 'zzzzzz' here or on the path"),
        ("ap.deep.handlers:echo", "no module 'ap' here or on the path; did you mean 'app'?"),
        ("handler.py:echo", "no file 'handler.py'; did you mean 'handlers.py'?"),
        ("zzzzzz.py:echo", "no file 'zzzzzz.py'"),
        ("app/deep/handlrs.py:echo", "no file 'app/deep/handlrs.py'; did you mean 'handlers.py'?"),
        ("gone/handlers.py:echo", "no file 'gone/handlers.py'"),
        ("app/deep:echo", "no file 'app/deep'"),
        ("handlers:ecko", "'handlers' has no attribute 'ecko'; did you mean 'echo'?"),
        ("handlers.py:zzzzzz", "'handlers.py' has no attribute 'zzzzzz'"),
        ("handlers:Holder.revers", "'handlers:Holder' has no attribute 'revers'; did you mean 'reverse'?"),
        ("handlers:Holder.upper.handel", "'handlers:Holder.upper' has no attribute 'handel'; did you mean 'handle'?"),
        ("handlers:echo..x", "'handlers:echo' has no attribute ''"),
        ("handlers:number", "handler 'handlers:number' is of type int; expected a callable, a Consumer subclass or "),
        ("handlers:__name__", "handler 'handlers:__name__' is of type str; expected a callable"),
        ("handlers:Unfinished", "handler 'handlers:Unfinished': TypeError: give Consumer a handler, or write handle"),
        ("handlers:Picky", "handler 'handlers:Picky': ValueError: first line second line ("),
        ("handlers:Leaving", "handler 'handlers:Leaving': SystemExit: no licence ("),
        ("handlers:Speechless", "handler 'handlers:Speechless': Mute: its message cannot be shown: __str__ raised ("),
        (
            "handlers:NoConsumer",
            "handler 'handlers:NoConsumer' has a handle method; make it a subclass of gaspar.Consumer",
        ),
    ],
)
def test_a_misspelt_or_unfit_handler_is_named_with_what_is_near(folder: Path, spec: str, message: str) -> None:
    said = refusal(spec)
    assert said.startswith(message)
    assert ("did you mean" in said) == ("did you mean" in message)


def test_a_folder_that_is_not_there_is_named_with_what_leads_to_it(folder: Path) -> None:
    assert refusal("app.no_such.handlers:echo").startswith("no module 'app.no_such' here or on the path")


# what a handler's source may say wrong, and what is said of it with "module 'bad'" or "file 'bad.py'" before it
SOURCES = [
    ("import no_such_module", "needs 'no_such_module', which is not installed (", "line 1)"),
    ("\nimport app.no_such", "needs 'app.no_such', which is not installed (", "line 2)"),
    ("import helper_of_bad", "needs 'no_such_dependency', which is not installed (", "helper_of_bad.py, line 2)"),
    ("from json import no_such", "cannot be {}: ImportError: cannot import name 'no_such' from 'json'", "line 1)"),
    ("def handle(message:", "cannot be {}: SyntaxError: '(' was never closed (bad.py, line 1)", ""),
    ("if True:\npass", "cannot be {}: IndentationError: expected an indented block after 'if' ", "(bad.py, line 2)"),
    ("x = 1\nraise ValueError('one\\ntwo')", "cannot be {}: ValueError: one two (", "bad.py, line 2)"),
    ("raise RuntimeError", "cannot be {}: RuntimeError (", "bad.py, line 1)"),
    ("import sys\nsys.exit('no licence')", "cannot be {}: SystemExit: no licence (", "bad.py, line 2)"),
    (
        "class Mute(Exception):\n    def __str__(self):\n        raise RuntimeError\nraise Mute",
        "cannot be {}: Mute: its message cannot be shown: __str__ raised (",
        "bad.py, line 4)",
    ),
    ("raise ModuleNotFoundError('by hand')", "cannot be {}: ModuleNotFoundError: by hand (", "bad.py, line 1)"),
]


@pytest.mark.parametrize(("source", "begin", "end"), SOURCES)
@pytest.mark.parametrize(
    ("where", "name", "verb"), [("bad", "module 'bad' ", "imported"), ("bad.py", "file 'bad.py' ", "loaded")]
)
def test_a_source_that_fails_is_named_with_its_error_and_line(
    folder: Path, source: str, begin: str, end: str, where: str, name: str, verb: str
) -> None:
    (folder / "bad.py").write_text(source)
    (folder / "helper_of_bad.py").write_text("\nimport no_such_dependency")
    message = refusal(f"{where}:handle")
    assert message.startswith(name + begin.format(verb))
    assert message.endswith(end)
    assert "bad" not in sys.modules  # to be tried again


def test_a_file_that_cannot_be_decoded_is_named(folder: Path) -> None:
    (folder / "bad.py").write_bytes(b"x = '\xff'\n")
    assert refusal("bad.py:x").startswith("file 'bad.py' cannot be loaded: SyntaxError: ")


def test_a_file_of_any_name_is_a_file_if_its_path_has_a_separator(folder: Path) -> None:
    for name in ("handlers.txt", "handlers", "my handlers.v2"):
        (folder / "app" / name).write_text(HANDLERS)
        assert answer(f"app/{name}:echo") == b"abc"
    (folder / "own_words").write_text(HANDLERS)
    assert refusal("own_words:echo").startswith("no module 'own_words' here or on the path")
    assert answer("./own_words:echo") == b"abc"


def test_a_file_that_is_no_source_is_named(folder: Path) -> None:
    (folder / "app" / "data.bin").write_bytes(b"\0\1\2")
    assert refusal("app/data.bin:echo").startswith("file 'app/data.bin' cannot be loaded: ")


@pytest.mark.parametrize("where", ["bad", "bad.py"])
def test_the_whole_story_goes_with_the_line(folder: Path, where: str) -> None:
    (folder / "bad.py").write_text("def deep():\n    raise ValueError('x')\ndeep()")
    with pytest.raises(HandlerLoadError) as caught:
        load(f"{where}:handle")
    assert str(caught.value).endswith("bad.py, line 2)")
    assert caught.value.traceback.startswith("Traceback (most recent call last):\n")
    assert "in deep" in caught.value.traceback
    assert "ValueError: x" in caught.value.traceback


@pytest.mark.parametrize("where", ["odd", "odd.py"])
def test_a_module_that_removes_itself_is_loaded_all_the_same(folder: Path, where: str) -> None:
    (folder / "odd.py").write_text("import sys\ndel sys.modules[__name__]\ndef handle(message):\n    return message")
    assert answer(f"{where}:handle") == b"abc"


@pytest.mark.parametrize("where", ["odd", "odd.py"])
def test_a_module_that_replaces_itself_is_what_it_says_it_is(folder: Path, where: str) -> None:
    (folder / "odd.py").write_text(
        "import sys, types\n"
        "sys.modules[__name__] = types.SimpleNamespace(handle=lambda message: b'new', __file__=__file__)"
    )
    assert answer(f"{where}:handle") == b"new"


@pytest.mark.parametrize("where", ["odd", "odd.py"])
def test_a_module_that_makes_its_attributes_may_fail_at_it(folder: Path, where: str) -> None:
    (folder / "odd.py").write_text(
        "def __getattr__(name):\n    if name == 'made':\n        return lambda message: b'made'\n"
        "    raise OSError('no database for ' + name)"
    )
    assert answer(f"{where}:made") == b"made"
    with pytest.raises(HandlerLoadError) as caught:
        load(f"{where}:handle")
    assert str(caught.value).startswith(f"{where}:handle: OSError: no database for handle (")
    assert str(caught.value).endswith("odd.py, line 4)")
    assert "in __getattr__" in caught.value.traceback


@pytest.mark.parametrize("where", ["fresh", "fresh.py", "./fresh.py"])
def test_a_handler_rewritten_within_a_second_at_the_same_size_is_loaded_from_its_source(
    folder: Path, where: str
) -> None:
    file = folder / "fresh.py"
    file.write_text("def handle(message):\n    return b'old'")
    written = file.stat().st_mtime
    py_compile.compile(str(file), doraise=True)
    file.write_text("def handle(message):\n    return b'new'")
    os.utime(file, (written, written))
    sys.path.insert(0, str(folder))
    assert importlib.import_module("fresh").handle(b"") == b"old", "no stale byte code, nothing is tested"
    del sys.modules["fresh"]
    assert answer(f"{where}:handle") == b"new"


@pytest.mark.parametrize("where", ["bad", "bad.py"])
def test_an_interrupt_is_no_fault_of_the_handler(folder: Path, where: str) -> None:
    (folder / "bad.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(f"{where}:handle")


@pytest.mark.parametrize("found", [None, 3, "text", b"bytes", object(), []])
def test_what_cannot_be_called_is_refused_with_its_type(found: object) -> None:
    with pytest.raises(HandlerLoadError, match=f"handler 'm:x' is of type {type(found).__name__}; expected a callable"):
        as_consumer(found, "m:x")
