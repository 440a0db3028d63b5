"""A full disk (a small tmpfs): each command names the path, says what to do, and leaves nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megacode.base.files import RunDir
from tests.limits import HANG, wait_until

pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ("phases.balanced.iterations=4", "phases.prose.iterations=1", "phases.cooldown.iterations=1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk of some size; it is gone after the test."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte, and return the file that does."""
    with (disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return disk / "fill"


def left(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*") if path.name != "fill"]


def assert_told(done: subprocess.CompletedProcess[str], path: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert f"Disk full: {path}" in done.stderr
    assert "free some space on the disk of" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_has_no_room_is_refused_at_its_start(
    golden: Path, megacode: Megacode, disk: Callable[[str], Path]
) -> None:
    place = disk("64k")
    done = megacode("train", golden, f"run_dir={place}/run", *SHORT)
    assert done.returncode == 2, done.stderr
    assert f"need 1.52 MiB, but {place} has" in done.stderr
    assert "free some space" in done.stderr
    assert not left(place)


def test_a_disk_that_fills_while_a_run_trains_ends_it_resumable(
    golden: Path, megacode: Megacode, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    place = disk("4m")
    run = RunDir(place / "run")
    arguments = ["train", str(golden), f"run_dir={run.path}", "phases.balanced.iterations=100"]
    command = [sys.executable, "-m", "megacode.cli", *arguments]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=tmp_path, stderr=log)
        wait_until(lambda: run.metrics.exists() and b'"train"' in run.metrics.read_bytes(), child)
        filled = fill(place)
        assert child.wait(HANG) == 75
    said = (tmp_path / "log").read_text()
    assert "could not be saved" in said
    assert (
        f"next: the same command resumes from the newest checkpoint; first free space on the disk of {run.path}" in said
    )
    assert "Traceback" not in said
    assert not list(run.checkpoints.glob("iter_*"))
    filled.unlink()
    again = megacode(*arguments)
    assert again.returncode == 0, again.stderr
    assert run.latest.read_text().strip() == "iter_0000110"


def test_a_conversion_that_finds_no_room_names_the_file_and_leaves_nothing(
    golden: Path, megacode: Megacode, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    assert megacode("train", golden, "run_dir=run", *SHORT).returncode == 0
    place = disk("400k")
    assert_told(megacode("convert", "reshard", tmp_path / "run", place / "out"), place)
    assert not left(place)


def test_preprocessing_that_finds_no_room_names_the_data_set_and_leaves_nothing(
    disk: Callable[[str], Path], tmp_path: Path
) -> None:
    place = disk("64k")
    text = "".join(f'{{"text": "{"some words " * 30}{number}"}}\n' for number in range(2000))
    (tmp_path / "a.jsonl").write_text(text)
    tokenizer = ["--kind", "huggingface", "--vocab-size", "266", "--output", "tok", "--input", "a.jsonl"]
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "tok"]
    arguments = ["--input", "a.jsonl", "--output-prefix", f"{place}/d", *kind]
    ends = [_tool(tmp_path, "train_tokenizer", *tokenizer), _tool(tmp_path, "preprocess_data", *arguments)]
    assert ends[0].returncode == 0, ends[0].stderr
    assert_told(ends[1], place / "d_text_document.bin")
    assert not left(place)


def _tool(place: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )


def test_scores_that_find_no_room_leave_no_file(disk: Callable[[str], Path]) -> None:
    from megacode.base.files import write_json
    from megacode.base.user_paths import DiskFullError, explained

    place = disk("64k")
    fill(place)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_json(place / "scores.json", {"results": ["x" * 100_000]})
    error = explained(caught.value)
    assert isinstance(error, DiskFullError)
    assert error.problems[0].where == str(place / "scores.json")
    assert not left(place)
