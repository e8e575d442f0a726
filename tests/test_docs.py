"""Every code block of README.rst and docs/, tried as a reader would: a page from its beginning to its end.

`PAGES` says for each block, in their order, what is done with it. A block that is not there fails.
"""

import ast
import configparser
import importlib
import json
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Serve, read_all, wait_until
from pages import Block, Reader, assert_shows, blocks, commands, free_port, pages

import gaspar
import gaspar.cli

Step = Callable[[Reader, Block], None]
UPPER = "def shout(message):\n    return message.upper()"


@pytest.fixture
def reader(tmp_path: Path, serve: Serve) -> Reader:
    folder = tmp_path / "reader"
    folder.mkdir()
    return Reader(folder, serve)


def saved(reader: Reader, block: Block) -> None:
    """It is a file of the name above it."""
    assert block.caption and block.language == "python", block
    ast.parse(block.text)
    reader.save(block.caption, block.text)


def saved_as(name: str) -> Step:
    """It is a file of the name that stands in the text."""

    def step(reader: Reader, block: Block) -> None:
        assert f"``{name}``" in (ROOT / block.page).read_text()
        reader.save(name, block.text)

    return step


def printing(*lines: str | re.Pattern[str]) -> Step:
    """It is a program; it prints these lines."""

    def step(reader: Reader, block: Block) -> None:
        printed = reader.run(reader.save("program.py", block.text)).splitlines()
        assert len(printed) == len(lines), printed
        for line, expected in zip(printed, lines, strict=True):
            assert expected.fullmatch(line) if isinstance(expected, re.Pattern) else line == expected, printed

    return step


def typed(reader: Reader, block: Block) -> None:
    """It is typed into a shell, which says what it shows."""
    reader.type(block.text)


def served(reader: Reader, block: Block) -> None:
    """It starts the daemon, in another terminal."""
    reader.type_serve(block.text)


def server(reader: Reader, block: Block) -> None:
    """It starts the application, in another terminal."""
    reader.type_server(block.text)


def without_daemon(step: Step) -> Step:
    """It is done while there is no daemon."""

    def done(reader: Reader, block: Block) -> None:
        reader.leave_daemon()
        step(reader, block)

    return done


def with_daemon(source: str, step: Step) -> Step:
    """It is done while a daemon serves the last function of `source`."""

    def done(reader: Reader, block: Block) -> None:
        reader.save("served.py", source)
        reader.serve("served.py:" + re.findall(r"^def (\w+)", source, re.MULTILINE)[-1])
        step(reader, block)

    return done


def drawing(reader: Reader, block: Block) -> None:
    """It is no code."""
    assert block.language == "", block


def in_test(name: str) -> Step:
    """Another test has it."""

    def step(reader: Reader, block: Block) -> None:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), f"{block}: there is no test {name}"

    return step


def included(reader: Reader, block: Block) -> None:
    """It is a part of a file, as that is."""
    assert (ROOT / Path(block.page).parent / block.text).exists()


def installing(then: str) -> Step:
    """It installs gaspar into an environment of its own, as CI does; what it ends with is tested elsewhere, too."""

    def step(reader: Reader, block: Block) -> None:
        assert "python3 -m venv .venv" in block.text and block.text.endswith(then), block
        setup = (ROOT / "setup.py").read_text()
        for extras in re.findall(r"pip install .*'\.\[(.*?)\]'", block.text):
            assert all(f'"{extra}": [' in setup for extra in extras.split(",")), f"{block}: not all are in setup.py"

    return step


def tree_highlighted(reader: Reader, block: Block) -> None:
    """The example's table, of fewer files."""
    program = ROOT / "examples" / "highlight_tree.py"
    done = subprocess.run(
        [sys.executable, program, "--limit", "2"],
        cwd=reader.folder,
        env=reader.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown, real = (re.sub(r" +", " ", re.sub(r"[\d.]+", "N", text)) for text in (block.text, done.stdout))
    assert real.strip().endswith(shown.strip())


def shout_asked(reader: Reader, block: Block) -> None:
    """The daemon in one terminal, a request in another."""
    first, second = block.text.split("\n", 1)
    reader.type_serve(first)
    reader.type(second)


def page_asked(reader: Reader, block: Block) -> None:
    """A number, and a file many times."""
    reader.save("page.html", "<html></html>")
    first, second = commands(block.text)
    reader.type(f"$ {first[0]}; echo\n16")
    reader.type(f"$ {second[0]}\nrequests    10000 in 0.63 s, 32 in flight\nerrors      none\n...")


def roots_asked(reader: Reader, block: Block) -> None:
    """All that a client can do. Below Python 3.11 the error's text has the handler's traceback, too."""
    printed = reader.run(reader.save("program.py", block.text)).splitlines()
    assert re.fullmatch(r"b'4' Receipt\(waited=[\d.e-]+, ran=[\d.e-]+\)", printed[0])
    assert printed[1:3] == ["b'5'", "[b'0', b'1', b'1', b'1', b'2']"]
    assert printed[3] == "ValueError: invalid literal for int() with base 10: b'sixteen'"


def fixture_used(reader: Reader, block: Block) -> None:
    """It is a test, of the handler that was served first."""
    reader.save("shout.py", UPPER)
    test = reader.save("test_shouting.py", block.text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gaspar.pytest_plugin", test]
    done = subprocess.run(command, cwd=reader.folder, env=reader.environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def producer_started(reader: Reader, block: Block) -> None:
    """It listens on the port that it names, and ends at SIGTERM."""
    port = free_port()
    program = reader.save("program.py", block.text.replace("10123", str(port)))
    process = subprocess.Popen([sys.executable, program], env=reader.environment, cwd=reader.folder)

    def answer() -> bytes:
        assert process.poll() is None
        try:
            return gaspar.request(f"127.0.0.1:{port}", b"hello", 10)
        except gaspar.ConnectionLost:
            return b""

    try:
        assert wait_until(answer) == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def in_threads(reader: Reader, block: Block) -> None:
    """What two threads print comes in any order."""
    printed = reader.run(reader.save("program.py", block.text)).splitlines()
    assert sorted(line.split()[0] for line in printed[:2]) == ["ada", "grace"]
    assert printed[3:] == ["1280", "too slow: RequestTimeout"]


def called(reader: Reader, block: Block) -> None:
    """The operator's first example: two files, of which the handler does not like one."""
    reader.save("a.json", "[]")
    reader.save("b.json", "[42]")
    typed(reader, block)


def log_line(reader: Reader, block: Block) -> None:
    """What the daemon says first, of one consumer."""
    reader.save("served.py", UPPER)
    daemon = reader.serve("served.py:shout", "--processes", "1")
    assert_shows(reader.text(block.text), daemon.log)


def control_asked(reader: Reader, block: Block) -> None:
    """It is asked at a control address that has a name."""
    reader.save("served.py", UPPER)
    reader.serve("served.py:shout", "--control", f"unix:{reader.folder}/control.sock")
    typed(reader, block)


def unit(reader: Reader, block: Block) -> None:
    """systemd's file: sections and keys, and a command that gaspar-serve understands."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(block.text)
    assert "Unit" in parser and "Install" in parser
    if parser.has_option("Service", "ExecStart"):
        understood(shlex.split(parser["Service"]["ExecStart"])[1:])


def understood(arguments: list[str]) -> None:
    """Let gaspar-serve read its arguments, and no more."""
    gaspar.cli.serve.make_context("gaspar-serve", list(arguments))


def dockerfile(reader: Reader, block: Block) -> None:
    """Its variables and its command are gaspar's."""
    lines = dict(line.split(" ", 1) for line in block.text.splitlines())
    assert lines.keys() == {"WORKDIR", "COPY", "RUN", "ENV", "CMD"}
    known = {f"GASPAR_{each.name.upper()}" for each in gaspar.cli.serve.params if each.name} | {"GASPAR_BIND"}
    variables = dict(pair.split("=") for pair in lines["ENV"].split())
    assert variables.keys() <= known
    program, *arguments = json.loads(lines["CMD"])
    assert program == ".venv/bin/gaspar-serve"
    understood(["--bind", variables.pop("GASPAR_BIND"), "--grace", variables.pop("GASPAR_GRACE"), *arguments])


def memory_added_up(reader: Reader, block: Block) -> None:
    """A pipeline that adds up the memory of the daemons that there are; this one is started by its command's name."""
    reader.save("served.py", UPPER)
    daemon = reader.start("gaspar-serve", "--bind", "127.0.0.1:0", "served.py:shout")
    daemon.wait_for("ready: listening on .*\n")
    done = subprocess.run(["bash", "-c", block.text], capture_output=True, text=True, timeout=60, check=False)
    assert re.fullmatch(r"[1-9]\d* kB\n", done.stdout), done


def exchanged(reader: Reader, block: Block) -> None:
    """A one-shot conversation, byte by byte."""
    said = {"client": b"", "server": b""}
    for line in block.text.splitlines():
        side, data = re.findall(r"^(client|server) +((?:[0-9a-f]{2} ?)*)", line)[0]
        said[side] += bytes.fromhex(data)
    is_good = block.text.endswith("FIN")
    assert is_good or block.text.endswith("RST")
    reader.save("served.py", UPPER if is_good else "def shout(message):\n    raise ValueError")
    daemon = reader.serve("served.py:shout")
    with daemon.connect() as connection:
        connection.sendall(said["client"])
        if is_good:
            assert read_all(connection) == said["server"] != b""
        else:
            with pytest.raises(ConnectionResetError):
                read_all(connection)


def in_bash(reader: Reader, block: Block) -> None:
    """A client in a line of bash."""
    reader.save("ask.sh", block.text)
    reader.type("$ . ./ask.sh; echo\nHELLO")


def in_c(reader: Reader, block: Block) -> None:
    """A client in C: it compiles without a warning, and asks."""
    compiler = shutil.which("cc")
    assert compiler, "the benchmarks need it, too"
    source = reader.save("ask.c", block.text)
    program = reader.folder / "ask"
    subprocess.run([compiler, "-Wall", "-Werror", "-o", program, source], check=True, timeout=60)
    reader.type("$ ./ask hello 10123; echo\nHELLO")


PRIMES = ("[b'2262', b'3245']", "[4, 25, 168]")
NO_SUCH_DAY = """
def pick(message):
    if message == b"[42]\\n":
        raise ValueError("no such day")
    return message.upper()
"""
DUMP = in_test("test_protocol_docs.py::test_each_dump_is_what_is_said_of_it")

PAGES: dict[str, list[Step]] = {
    "README.rst": [
        installing(".venv/bin/python examples/highlight_tree.py"),
        tree_highlighted,
        installing(".venv/bin/python -m pytest"),  # .ci/run takes it from there
        saved_as("shout.py"),
        shout_asked,
        producer_started,
        printing(
            re.compile(r"127\.0\.0\.1:\d+"),
            re.compile(r"\('127\.0\.0\.1', \d+\)"),
            re.compile(r"\[\d+, \d+\]"),
            "True False",
            "b'HELLO'",
        ),
        printing("b'6'"),
        roots_asked,
        page_asked,
        printing("[b'0', b'1', b'2']"),
        drawing,
        fixture_used,
    ],
    "docs/asyncio.rst": [
        printing(*PRIMES, "not waiting any longer", "nor here: RequestTimeout", "ticked meanwhile: True")
    ],
    "docs/control.rst": [
        drawing,
        control_asked,
        control_asked,
    ],
    "docs/design.rst": [drawing],
    "docs/eventlet.rst": [printing(*PRIMES, "ticked meanwhile: True")],
    "docs/gevent.rst": [printing(*PRIMES, "ticked meanwhile: True")],
    "docs/howto/fastapi.rst": [saved, saved, served, server, typed, without_daemon(typed)],
    "docs/howto/flask.rst": [saved, saved, served, server, typed, saved, server, typed, without_daemon(typed)],
    "docs/index.rst": [],
    "docs/operations.rst": [
        with_daemon(NO_SUCH_DAY, called),
        with_daemon(UPPER, typed),
        log_line,
        unit,
        unit,
        dockerfile,
        memory_added_up,
    ],
    "docs/protocol.rst": [
        drawing,
        exchanged,
        exchanged,
        in_test("test_protocol_docs.py::test_the_one_shot_client_gets_its_reply"),
        with_daemon(UPPER, in_bash),
        in_c,
        *[DUMP] * 8,
        in_test("test_protocol_docs.py::test_the_conversation_is_what_a_client_of_gaspar_says_and_understands"),
        in_test("test_protocol_docs.py::test_the_framed_client_gets_replies_and_errors"),
    ],
    "docs/reference/api.rst": [included],
    "docs/reference/options.rst": [],
    "docs/testing.rst": [in_test("test_pytest_plugin.py::test_each_test_file_of_the_page_passes_as_it_stands")] * 7,
    "docs/threads.rst": [in_threads],
    "docs/tutorial.rst": [
        installing("pip install ."),
        *[saved] * 3,
        typed,
        saved,
        typed,
        served,
        saved,
        typed,
        saved,
        *[typed] * 4,
        served,
    ],
    "docs/why_not.rst": [saved, typed, saved, typed, saved, server, typed],
}


@pytest.mark.parametrize("page", PAGES)
def test_each_code_block_of_a_page_does_what_the_page_says(page: str, reader: Reader) -> None:
    there, steps = blocks(page), PAGES[page]
    assert len(there) == len(steps), "PAGES has to say what is done with each of " + "; ".join(map(str, there))
    try:
        for block, step in zip(there, steps, strict=True):
            step(reader, block)
    finally:
        reader.leave_servers()


def test_no_page_is_left_out() -> None:
    assert set(pages()) == set(PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the built site, and what Sphinx said."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-d", folder / "doctrees"]
    done = subprocess.run([*command, ROOT / "docs", folder / "html"], capture_output=True, text=True, check=False)
    return folder, done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


def test_the_site_is_built_without_a_warning(site: tuple[Path, str]) -> None:
    assert site[1] == ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.rst"])
def test_sphinx_sees_no_code_block_that_is_not_in_the_list(page: str, site: tuple[Path, str]) -> None:
    from docutils import nodes

    path = ROOT / page
    tree = pickle.loads(
        (site[0] / "doctrees" / f"{path.relative_to(ROOT / 'docs').with_suffix('')}.doctree").read_bytes()
    )
    own = [
        node.astext().strip()
        for node in tree.findall(lambda node: isinstance(node, nodes.literal_block | nodes.doctest_block))
        if Path(node.source or node.parent.source or "") == path and "source" not in node  # that one is a file's
    ]
    listed = [block for block in blocks(page) if block.language != "literalinclude"]
    assert own == [block.text.strip() for block in listed]


def test_each_link_within_the_site_leads_somewhere(site: tuple[Path, str]) -> None:
    html = site[0] / "html"
    texts = {page: page.read_text() for page in html.rglob("*.html")}
    for page, text in texts.items():
        for link in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            path, _, fragment = link.partition("#")
            if "://" in path:
                continue
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(html)}: {link}"
            assert not fragment or f'id="{fragment}"' in texts[target], f"{page.relative_to(html)}: {link}"


def test_each_command_has_its_options_in_the_site(site: tuple[Path, str]) -> None:
    text = (site[0] / "html" / "reference" / "options.html").read_text()
    entries = re.findall(r'"(gaspar-\w+)=([\w.]+):(\w+)"', (ROOT / "setup.py").read_text())
    assert entries
    for name, module, attribute in entries:
        command = getattr(importlib.import_module(module), attribute)
        for option in command.params:
            for spelling in option.opts if option.param_type_name == "option" else []:
                assert f'id="cmdoption-{name}-{spelling.lstrip("-")}"' in text, f"{name} {spelling}"


def test_each_public_name_is_in_the_site(site: tuple[Path, str]) -> None:
    text = (site[0] / "html" / "reference" / "api.html").read_text()
    names = set(gaspar.__all__) - {"__version__", "aio", "client", "errors"} | {"aio.Client"}
    assert not {name for name in names if f'id="gaspar.{name}"' not in text}
