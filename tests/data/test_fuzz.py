"""The fuzzing of readers, in short: every target takes its seeds and what the fuzzer makes of them."""

from __future__ import annotations

import importlib
import importlib.util
import io
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pyarrow import parquet

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench" / "fuzz.py"
MINUTES = 0.12


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fuzz", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(TOOL.parent))
    monkeypatch.setitem(sys.modules, "bench_fuzz", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_target_takes_its_seeds_their_heads_and_wrong_bytes_in_them(fuzz: ModuleType, tmp_path: Path) -> None:
    dice = random.Random(0)
    files = fuzz.TARGETS["parquet"].seeds()
    assert files
    for seed in files:
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


def test_structured_changes_of_parquet_keep_its_protocol(fuzz: ModuleType, tmp_path: Path) -> None:
    dice, structure = random.Random(1), importlib.import_module("parquet_structure")

    def is_kept(data: bytes) -> bool:
        try:
            begin, footer = structure.footer_of(data)
        except structure.BrokenError:
            return False
        return begin > 0 and footer.end == len(data) - 8

    changes = structured = blind = 0
    for seed in fuzz.TARGETS["parquet"].seeds():
        for number in range(60):
            made = fuzz.TARGETS["parquet"].change(seed, number)
            changes += made != seed
            structured += is_kept(made)
            footer = len(seed) - 8 - int.from_bytes(seed[-8:-4], "little")
            damaged = bytearray(seed)
            damaged[dice.randrange(footer, len(seed) - 8)] ^= 1 + dice.randrange(255)
            blind += is_kept(bytes(damaged))
            # In a process of its own: pyarrow crashes on some of them.
            fuzz.TARGETS["parquet"].read(made, tmp_path)
    assert changes > 150
    assert structured > max(120, blind)


def test_the_parts_of_a_parquet_file_are_those_that_pyarrow_tells(fuzz: ModuleType) -> None:
    structure = importlib.import_module("parquet_structure")
    assert len(fuzz.TARGETS["parquet"].seeds()) == 3
    for seed in fuzz.TARGETS["parquet"].seeds():
        theirs = parquet.read_metadata(io.BytesIO(seed))
        begin, footer = structure.footer_of(seed)
        # Field 3 of the file's metadata is its number of rows.
        assert (len(seed) - 8 - begin, footer.fields[3]) == (theirs.serialized_size, theirs.num_rows)
        assert {seed[first:last] for first, last in footer.texts} >= {b"text", b"word", b"meta"}
        places = [header.end for header in structure.page_headers(seed, begin)]
        # Each column of each row group has at least a page.
        assert len(places) >= theirs.num_row_groups * theirs.num_columns
        assert places == sorted(places)


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
