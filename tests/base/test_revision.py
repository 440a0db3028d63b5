"""Which commit a file is from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megacode.base.revision import revision


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "module.py").write_text("one\n")
    (tmp_path / ".gitignore").write_text("venv\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_tracked_file_has_a_commit_and_changes_are_said(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert revision(repository / "module.py") == {"commit": head, "changed": False}
    (repository / "module.py").write_text("two\n")
    assert revision(repository / "module.py") == {"commit": head, "changed": True}


def test_a_package_installed_inside_somebody_elses_repository_has_none(repository: Path) -> None:
    (repository / "venv").mkdir()
    (repository / "venv" / "module.py").write_text("installed\n")
    assert revision(repository / "venv" / "module.py") is None


def test_no_repository_and_no_git_are_no_error(tmp_path: Path, repository: Path, monkeypatch) -> None:
    other = tmp_path / "elsewhere"
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    other.mkdir()
    assert revision(other / "module.py") is None
    monkeypatch.setenv("PATH", "")
    assert revision(repository / "module.py") is None
