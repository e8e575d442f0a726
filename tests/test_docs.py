"""The programs in docs/, each run as a reader would: copied out of the page into a file."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRIMES = ["[b'2262', b'3245']", "[4, 25, 168]"]
OUTPUT = {
    "threads": None,  # what two threads print comes in any order
    "eventlet": [*PRIMES, "ticked meanwhile: True"],
    "gevent": [*PRIMES, "ticked meanwhile: True"],
    "asyncio": [*PRIMES, "not waiting any longer", "nor here: RequestTimeout", "ticked meanwhile: True"],
}


def programs(page: Path) -> list[str]:
    """Return the Python programs of a page."""
    found: list[str] = []
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.strip() != ".. code-block:: python":
            continue
        block = []
        for inside in lines:
            if inside and not inside.startswith(" "):
                break
            block.append(inside)
        found.append(textwrap.dedent("\n".join(block)).strip() + "\n")
    return found


def run(program: str, folder: Path) -> list[str]:
    """Run a program as a script; returns the lines that it prints."""
    script = folder / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("page", OUTPUT)
def test_the_program_of_each_loops_page_runs_as_it_stands(page: str, tmp_path: Path) -> None:
    (program,) = programs(ROOT / "docs" / f"{page}.rst")
    printed = run(program, tmp_path)
    expected = OUTPUT[page]
    if expected is None:
        assert sorted(line.split()[0] for line in printed[:2]) == ["ada", "grace"]
        assert printed[3:] == ["1280", "too slow: RequestTimeout"]
    else:
        assert printed == expected
