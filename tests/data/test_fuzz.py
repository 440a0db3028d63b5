"""The fuzzing of readers, in short: every target takes its seeds and what the fuzzer makes of them."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench" / "fuzz.py"
MINUTES = 0.12


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fuzz", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_fuzz", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_target_takes_its_seeds_their_heads_and_wrong_bytes_in_them(fuzz: ModuleType, tmp_path: Path) -> None:
    dice = random.Random(0)
    parquet = fuzz.TARGETS["parquet"].seeds()
    assert parquet
    for seed in parquet:
        fuzz.TARGETS["parquet"].read(seed, tmp_path)
        assert (tmp_path / "rows").read_text() == "12"
    assert len(fuzz.TARGETS) > 1
    for target in fuzz.TARGETS.values():
        seeds = target.seeds()
        assert seeds
        for seed in seeds:
            target.read(seed, tmp_path)
            for cut in range(0, len(seed), max(1, len(seed) // 20)):
                target.read(seed[:cut], tmp_path)
            for _ in range(40):
                damaged = bytearray(seed)
                damaged[dice.randrange(len(seed))] = dice.randrange(256)
                target.read(bytes(damaged), tmp_path)


def test_the_fuzzer_finds_no_input_that_fails(fuzz: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    code = fuzz.main(["--minutes", str(MINUTES), "--keep", str(tmp_path / "kept")])
    said = capfd.readouterr().out
    assert code == 0, said
    assert said.count(" ok") == len(fuzz.TARGETS)
    assert not (tmp_path / "kept").exists()


def test_an_input_that_fails_is_kept_and_told(fuzz: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    copy = tmp_path / "fuzz.py"
    # A reader that does what none may.
    copy.write_text(
        TOOL.read_text().replace(
            "Target(_LINES, _lines_seeds, _read_lines)", 'Target((), lambda: [b"a"], lambda data, place: 1 // 0)'
        )
    )
    fuzz.__file__ = str(copy)
    assert fuzz.main(["--minutes", "0.02", "--target", "jsonl", "--keep", str(tmp_path / "kept")]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().out
    assert list((tmp_path / "kept").iterdir())
