"""Holds the table of who imports whom against the code: imports in functions and for type checkers too."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import gaspar

PACKAGE = Path(gaspar.__file__).parent

# Each module with the modules of gaspar that it imports. Imports point down; a new edge is a decision.
TABLE = {
    "version": "",
    "answer": "",
    "errors": "answer",
    "address": "errors",
    "limits": "errors",
    "frames": "errors",
    "session": "answer errors frames",
    "wire": "errors frames",
    "scoreboard": "wire",
    "dispatch": "limits wire",
    "process": "wire",
    "folders": "",
    "links": "folders process wire",
    "green": "",
    "roster": "",
    "systemd": "address errors",
    "watchdog": "limits scoreboard",
    "oneshot": "address dispatch errors green limits wire",
    "reception": "dispatch errors framed green limits oneshot",
    "front": "crew deadlines dispatch errors green limits links process reception scoreboard version wire",
    "consumer": "forkwatch limits links outcome process scoreboard wire",
    "handler": "consumer errors",
    "forker": "consumer errors folders limits links process scoreboard watchdog wire",
    "lifecycle": "",
    "children": "limits process wire",
    "supervisor": "children lifecycle limits process roster wire",
    "daemon": "address consumer errors folders forker front lifecycle limits process scoreboard supervisor systemd"
    " wire",
    "pending": "address answer errors frames",
    "outbox": "forked pending",
    "forked": "",
    "losses": "address errors",
    "connection": "address errors forked losses outbox pending session",
    "stream": "address answer connection errors forked losses pending session",
    "pool": "address connection errors losses pending stream",
    "window": "address answer pending",
    "client": "address answer errors limits pending pool window wire",
    "producer": "address consumer daemon errors limits process wire",
    "__init__": "answer client consumer errors producer version",
    "cli": "__init__ address consumer daemon errors handler lifecycle limits systemd",
    "__main__": "cli",
    "crew": "dispatch links scoreboard wire",
    "deadlines": "dispatch",
    "forkwatch": "process",
    "framed": "address dispatch errors frames green limits outgoing",
    "outcome": "errors forkwatch",
    "outgoing": "dispatch green",
    "aio": "address answer errors losses session",
    "call": "__init__ address client errors limits",
}
# Who imports what is neither gaspar's nor the standard library's.
FOREIGN = {
    "call": "click",
    "cli": "click psutil",
    "crew": "zmq",
    "front": "zmq",
    "green": "eventlet",
    "links": "zmq",
    "watchdog": "psutil",
}
# What only some may touch of the standard library.
GUARDED = {
    "ctypes": "process",
    "faulthandler": "forker",
    "mmap": "scoreboard",
    "multiprocessing": "",
    "pickle": "",
    "resource": "forker reception",
    "select": "oneshot process watchdog",
    "signal": "children forker process producer supervisor watchdog",
    "socket": "address aio client connection daemon forked framed front oneshot outbox outgoing process reception"
    " stream systemd",
    "struct": "address framed frames oneshot scoreboard wire",
    "subprocess": "",
    "threading": "call connection forked forker outbox pending pool producer window",
}
HEAVY = ("eventlet", "greenlet", "zmq", "click", "psutil")


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def imported(module: str) -> set[str]:
    """Return what a module imports, gaspar's own as `.name`."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_bytes())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            names |= {f".{node.module}"} if node.module else {f".{each.name}" for each in node.names}
    known = modules()
    return {_own(name, known) if name.startswith((".", "gaspar")) else name.partition(".")[0] for name in names}


def _own(name: str, known: list[str]) -> str:
    own = name.removeprefix("gaspar").lstrip(".").partition(".")[0]
    return f".{own if own in known else '__init__'}"


def test_the_table_has_each_module_and_no_other() -> None:
    assert sorted(TABLE) == modules()


@pytest.mark.parametrize("module", TABLE)
def test_a_module_imports_from_gaspar_what_its_table_says(module: str) -> None:
    own = {name[1:] for name in imported(module) if name.startswith(".")}
    assert own == set(TABLE[module].split())


@pytest.mark.parametrize("module", TABLE)
def test_a_module_imports_what_is_not_in_the_standard_library_only_if_its_table_says_so(module: str) -> None:
    foreign = {name for name in imported(module) if not name.startswith(".")} - sys.stdlib_module_names
    assert foreign == set(FOREIGN.get(module, "").split())


@pytest.mark.parametrize("guarded", GUARDED)
def test_what_only_some_may_touch_is_touched_by_them_alone(guarded: str) -> None:
    assert {module for module in TABLE if guarded in imported(module)} == set(GUARDED[guarded].split())


def test_imports_go_in_no_circle() -> None:
    graphlib.TopologicalSorter({module: below.split() for module, below in TABLE.items()}).prepare()


def loaded_after(statement: str) -> set[str]:
    """Return what a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import gaspar",
        "import gaspar.client",
        "import gaspar; gaspar.request, gaspar.pack, gaspar.errors, gaspar.GasparError",
        "import gaspar; gaspar.Client, gaspar.Reply, gaspar.Receipt",
        "import gaspar; gaspar.Producer, gaspar.Consumer, gaspar.Forker",
        "import gaspar.supervisor",
        "import gaspar.daemon",
        "import gaspar.forker",
        "import gaspar.handler",
    ],
)
def test_importing_pulls_in_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_importing_gaspar_alone_loads_nothing_but_its_version() -> None:
    names = {name for name in loaded_after("import gaspar") if name.startswith("gaspar")}
    assert names == {"gaspar", "gaspar.version"}


def test_every_public_name_can_be_had_and_no_other() -> None:
    for name in gaspar.__all__:
        assert getattr(gaspar, name) is not None
    assert dir(gaspar) == sorted(gaspar.__all__)
    with pytest.raises(AttributeError, match="module 'gaspar' has no attribute 'Worker'"):
        gaspar.Worker  # noqa: B018
