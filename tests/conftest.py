"""What several areas test with: the golden run, and a way to call the command line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "golden.yaml"

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def compare_losses() -> ModuleType:
    """The tool tools/compare_losses.py as a module."""
    spec = importlib.util.spec_from_file_location("compare_losses", ROOT / "tools" / "compare_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare_losses: ModuleType) -> Path:
    """The golden run's config, in a working directory that holds its data sets."""
    compare_losses.write_golden_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return GOLDEN


@pytest.fixture
def megacode(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call `megacode ARGUMENTS` in the test's directory; returns the finished process."""

    def call(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "megacode.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False)

    return call
