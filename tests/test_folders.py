"""The private directories of daemons, as they are found from outside."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from gaspar import folders


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have private directories in a place of our own; those in /tmp are still found."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def private(parent: Path, name: str) -> Path:
    """Make what looks like the private directory of a daemon that was killed."""
    folder = parent / name
    folder.mkdir()
    (folder / "daemon.lock").touch()
    (folder / "control").touch()
    return folder


def found(parent: Path) -> list[str]:
    return [path for path in folders.controls() if path.startswith(f"{parent}/")]


def test_only_living_daemons_are_found(parent: Path) -> None:
    private(parent, "gaspar-dead")
    living = private(parent, "gaspar-living")
    (private(parent, "gaspar-elsewhere") / "control").unlink()
    (private(parent, "gaspar-begins") / "daemon.lock").unlink()
    private(parent, "another")
    locks = [
        folders.hold(str(parent / name / "daemon.lock")) for name in ("gaspar-living", "gaspar-elsewhere", "another")
    ]
    try:
        assert found(parent) == [str(living / "control")]
    finally:
        for lock in locks:
            os.close(lock)
    assert found(parent) == []


def test_looking_for_a_daemon_leaves_its_lock_alone(parent: Path) -> None:
    living = private(parent, "gaspar-living")
    lock = folders.hold(str(living / "daemon.lock"))
    try:
        assert found(parent) == found(parent) == [str(living / "control")]
        with open(living / "daemon.lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)


def test_a_directory_under_two_names_is_looked_at_once(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = private(parent, "gaspar-living")
    monkeypatch.setattr(folders.tempfile, "tempdir", f"{parent}/.")
    lock = folders.hold(str(living / "daemon.lock"))
    try:
        assert found(parent) == [str(living / "control")]
    finally:
        os.close(lock)
