"""A process that megacode starts runs megacode's own code, whatever lies in the working directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import megacode
from megacode.base import child_processes

PACKAGE = Path(megacode.__file__).parent


@pytest.fixture
def foreign(tmp_path: Path, foreign_modules: Callable[[Path], None]) -> Path:
    """A directory whose modules end every program that imports one of them."""
    foreign_modules(tmp_path / "foreign")
    return tmp_path / "foreign"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_child_imports_nothing_from_the_working_directory(foreign: Path) -> None:
    # What a child was started as until it had a path of its own: shows that these files do harm.
    harmed = run([sys.executable, "-m", "megacode.cli", "plan", "none.yaml"], foreign)
    assert "of the working directory" in harmed.stderr
    done = run(child_processes.command(["plan", "none.yaml"]), foreign)
    assert done.returncode == 2, done.stderr
    assert "none.yaml" in done.stderr
    assert "working directory" not in done.stderr


def test_a_childs_messages_name_the_command(tmp_path: Path) -> None:
    done = run(child_processes.command(["trian"]), tmp_path)
    assert done.returncode == 2
    assert "Usage: megacode " in done.stderr


def test_a_child_runs_the_copy_that_its_parent_runs(foreign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a copy" / "megacode"
    shutil.copytree(PACKAGE / "base", copy / "base", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "cli").mkdir()
    for name in ("__init__.py", "cli/__main__.py"):
        shutil.copyfile(PACKAGE / name, copy / name)
    says = "import megacode, megacode.base.child_processes\ndef main(): print(megacode.base.child_processes.__file__)\n"
    (copy / "cli" / "__init__.py").write_text(says)
    parent = f"import sys; sys.path.insert(0, {str(copy.parent)!r})\n"
    parent += "import subprocess\nfrom megacode.base import child_processes\n"
    parent += f"sys.exit(subprocess.run(child_processes.command([]), cwd={str(foreign)!r}).returncode)"
    done = run([sys.executable, "-c", parent], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == copy / "base" / "child_processes.py"


def test_a_parent_that_ignores_the_environment_has_children_that_do(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(foreign))
    parent = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    parent += "import subprocess\nfrom megacode.base import child_processes\n"
    parent += "sys.exit(subprocess.run(child_processes.command(['plan', 'none.yaml'])).returncode)"
    done = run([sys.executable, "-P", "-E", "-s", "-c", parent], foreign.parent)
    assert done.returncode == 2, done.stderr
    assert "none.yaml" in done.stderr
