"""gaspar-serve --reload: the real daemon beside an editor."""

from __future__ import annotations

import os
import pathlib
import signal

from conftest import Serve, wait_until

CODE = "from words import WORD\n\ndef handle(message):\n    return WORD\n"


def write(folder: pathlib.Path, word: str) -> None:
    """Replace the file in one go, as editors do; its time differs, so that no old bytecode fits."""
    new = folder / "words.new"
    new.write_text(word)
    os.utime(new, ns=(0, hash(word) % 10**15))
    new.replace(folder / "words.py")


def project(folder: pathlib.Path) -> str:
    (folder / "app.py").write_text(CODE)
    write(folder, "WORD = b'first'\n")
    return f"{folder}/app.py:handle"


def test_code_is_loaded_anew_when_a_file_beside_it_changes(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve(project(tmp_path), "-p", "1", "--reload", PYTHONDONTWRITEBYTECODE="1")
    daemon.wait_for_line("looking for changes in " + str(tmp_path))
    assert daemon.ask(b"") == b"first"
    for word in ("second", "third"):
        write(tmp_path, f"WORD = b'{word}'\n")
        wait_until(lambda word=word: daemon.ask(b"") == word.encode())  # type: ignore[misc]
    daemon.wait_for_line("words.py has changed", 2)


def test_broken_code_is_not_taken_and_mended_code_is(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve(project(tmp_path), "-p", "1", "--reload", PYTHONDONTWRITEBYTECODE="1")
    daemon.wait_for_line("looking for changes")
    write(tmp_path, "WORD = (\n")
    daemon.wait_for_line("reload failed, the old code goes on: .*SyntaxError")
    assert daemon.ask(b"") == b"first"
    write(tmp_path, "WORD = b'mended'\n")
    wait_until(lambda: daemon.ask(b"") == b"mended")


def test_the_watching_process_ends_with_a_killed_daemon(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve(project(tmp_path), "-p", "1", "--reload")
    daemon.wait_for_line("looking for changes")
    daemon.remember()
    daemon.signal(signal.SIGKILL)
    assert daemon.end() == -signal.SIGKILL


def test_other_files_change_nothing(serve: Serve, tmp_path: pathlib.Path) -> None:
    daemon = serve(project(tmp_path), "-p", "1", "--reload", PYTHONDONTWRITEBYTECODE="1")
    daemon.wait_for_line("looking for changes")
    (tmp_path / "notes.txt").write_text("not code")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "words.py").write_text("")
    write(tmp_path, "WORD = b'second'\n")
    wait_until(lambda: daemon.ask(b"") == b"second")
    assert "notes" not in daemon.log and "elsewhere" not in daemon.log
