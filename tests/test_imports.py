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
    "blocks": "",
    "arena": "blocks limits scoreboard wire",
    "session": "answer errors frames",
    "wire": "errors frames",
    "scoreboard": "wire",
    "dispatch": "frames limits wire",
    "process": "wire",
    "folders": "",
    "links": "arena folders frames process wire",
    "green": "",
    "roster": "",
    "systemd": "address errors",
    "watchdog": "limits scoreboard",
    "oneshot": "address dispatch errors frames green limits wire",
    "reception": "dispatch errors framed frames green limits oneshot",
    "front": "arena control crew deadlines dispatch doors errors frames green limits links metrics overview process"
    " reception scoreboard stats version wire",
    "consumer": "forkwatch limits links logs outcome process scoreboard wire",
    "handler": "consumer errors",
    "forker": "arena consumer errors folders limits links process scoreboard watchdog watcher wire",
    "lifecycle": "",
    "children": "limits process wire",
    "supervisor": "children lifecycle limits process roster wire",
    "daemon": "address arena consumer doors errors folders forker front lifecycle limits process scoreboard"
    " supervisor systemd watcher wire",
    "message": "errors frames limits",
    "losses": "address errors session",
    "client/forked": "",
    "client/pending": "address answer errors frames",
    "client/outbox": "client/forked client/pending",
    "client/connection": "address client/forked client/outbox client/pending errors losses session",
    "client/stream": "address answer client/connection client/forked client/pending errors losses session",
    "client/pool": "address client/connection client/pending client/stream errors losses",
    "client/window": "address answer client/pending",
    "client": "address answer client/pending client/pool client/window errors message wire",
    "aio/call": "answer errors frames",
    "aio/connection": "address aio/call errors losses session",
    "aio/sockets": "aio/connection",
    "aio/pool": "address aio/call aio/connection aio/sockets answer errors losses",
    "aio/window": "aio/call answer message",
    "aio": "address aio/call aio/pool aio/window answer errors message",
    "producer": "address consumer daemon errors limits process wire",
    "__init__": "aio answer client consumer errors producer version",
    "cli": "__init__ address consumer daemon errors handler lifecycle limits logs systemd",
    "__main__": "cli",
    "crew": "dispatch frames links scoreboard wire",
    "deadlines": "dispatch",
    "forkwatch": "process",
    "framed": "address dispatch errors frames green limits outgoing",
    "outcome": "errors forkwatch logs",
    "outgoing": "dispatch green",
    "call": "__init__ address client errors folders limits",
    "stats": "errors",
    "gauges": "",
    "logs": "",
    "doors": "address systemd",
    "overview": "crew dispatch gauges green limits reception roster stats",
    "control": "dispatch errors green limits overview reception wire",
    "metrics": "green overview",
    "watcher": "process wire",
    "pytest_plugin": "testing",
    "testing": "client errors testing/facts testing/filler testing/launched",
    "testing/facts": "",
    "testing/names": "",
    "testing/filler": "address errors frames limits",
    "testing/launched": "errors testing/facts testing/names",
    "top": "__init__ address client dashboard errors figures folders process view",
    "dashboard": "figures view",
    "view": "",
    "figures": "",
}
# Who imports what is neither gaspar's nor the standard library's.
FOREIGN = {
    "call": "click",
    "cli": "click psutil",
    "crew": "zmq",
    "dashboard": "rich",
    "gauges": "psutil",
    "green": "eventlet",
    "links": "zmq",
    "metrics": "prometheus_client",
    "pytest_plugin": "pytest",
    "testing": "psutil",
    "testing/facts": "psutil",
    "testing/launched": "psutil",
    "top": "click rich",
    "watchdog": "psutil",
    "watcher": "watchfiles",
}
# What only some may touch of the standard library.
GUARDED = {
    "ctypes": "arena process",
    "faulthandler": "forker",
    "mmap": "arena scoreboard",
    "multiprocessing": "",
    "pickle": "",
    "resource": "arena forker reception",
    "select": "oneshot process testing/facts watchdog",
    "signal": "children forker process producer supervisor testing/launched top watchdog watcher",
    "socket": "address client client/connection client/forked client/outbox client/stream control doors framed green"
    " metrics oneshot outgoing process reception systemd",
    "struct": "address framed frames oneshot scoreboard wire",
    "subprocess": "testing/launched",
    "threading": "call client/connection client/forked client/outbox client/pending client/pool client/window forker"
    " producer testing/launched top",
}
HEAVY = ("eventlet", "greenlet", "zmq", "click", "psutil", "rich", "prometheus_client", "watchfiles")


def files() -> dict[str, Path]:
    """Return the file of each module: `module`, `package/module`, and `package` for its `__init__`."""
    names = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix("/__init__"): path for name, path in names.items()}


FILES = files()


def imported(module: str) -> set[str]:
    """Return what a module imports, gaspar's own as `.name`."""
    path = FILES[module]
    inside = path.parent.relative_to(PACKAGE.parent).parts  # the package that its relative imports begin in
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {_named(each.name.split(".")) for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) + 1 - node.level] if node.level else ()
            origin = [*start, *(node.module.split(".") if node.module else ())]
            names |= {_named([*origin, each.name]) for each in node.names}
    return names


def _named(parts: list[str]) -> str:
    """Return the module of ours that holds a dotted name, as `.name`; of others the package."""
    if parts[0] != "gaspar":
        return parts[0]
    for end in range(len(parts), 1, -1):
        if (name := "/".join(parts[1:end])) in FILES:
            return f".{name}"
    return ".__init__"


def test_the_table_has_each_module_and_no_other() -> None:
    assert set(TABLE) == set(FILES)


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
        "import gaspar.aio",
        "import gaspar; gaspar.request, gaspar.pack, gaspar.errors, gaspar.GasparError",
        "import gaspar; gaspar.Client, gaspar.Reply, gaspar.Receipt",
        "import gaspar; gaspar.aio.Client",
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
