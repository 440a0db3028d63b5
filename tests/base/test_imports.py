"""Heavy imports without garbage collections."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

import pytest

from megacode.base.imports import uncollected


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that nobody has imported."""
    name = f"never_imported_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("kept = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_what_is_imported_is_left_out_of_later_collections(module: str) -> None:
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        importlib.import_module(module)
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + 1000


def test_without_a_new_module_everything_stays_collectable() -> None:
    before = gc.get_freeze_count()
    with uncollected():
        import json  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before  # fewer, if something frozen has ended meanwhile


def test_a_failing_import_leaves_collections_on() -> None:
    with pytest.raises(ModuleNotFoundError), uncollected():
        importlib.import_module("no_such_module")
    assert gc.isenabled()


def test_the_outermost_context_decides(module: str) -> None:
    with uncollected():
        with uncollected():
            importlib.import_module(module)
        assert not gc.isenabled()
    assert gc.isenabled()
