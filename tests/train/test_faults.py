"""The fault harness, in short: a few faults on a small run; tools/bench/faults.py has the long form and all kinds."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megacode.base.files import RunDir
from megacode.metrics.reader import read_metrics
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "faults.py"
KINDS = ["kill_all", "kill_in_save", "kill_parent", "terminate", "flip", "truncate"]


def faults(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.slow
def test_a_run_that_is_killed_stopped_and_damaged_ends_as_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "faults.json"
    arguments = ["--kinds", ",".join(KINDS), "--writers", "async", "--directory", tmp_path / "runs", "--json", report]
    done = faults("--faults", len(KINDS), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(report.read_text())
    (run,) = document["runs"]
    assert run["problems"] == []
    assert run["faults"] == len(KINDS)
    assert run["starts"] > len(KINDS) // 2
    assert {row["kind"] for row in document["kinds"]} == set(KINDS)
    for row in run["rows"]:
        assert row["seconds"] > 0
        assert row["kind"] != "terminate" or row["lost"] == 0
    monkeypatch.syspath_prepend(TOOL.parent)
    assert_differences_are_found(tmp_path / "runs" / "undisturbed", tmp_path / "changed")


def assert_differences_are_found(undisturbed: Path, copy: Path) -> None:
    """The comparison that the harness ends with finds one loss, one missing iteration, and one bit of a tensor."""
    differences = importlib.import_module("faults").differences
    reference, changed = RunDir(undisturbed), RunDir(copy)
    shutil.copytree(undisturbed, copy)
    assert list(differences(changed, reference)) == []
    lines = list(read_metrics(changed.metrics))
    place = next(place for place, line in enumerate(lines) if line["kind"] == "train" and line["iteration"] == 7)
    for altered, said in (([{**lines[place], "loss": 1.0}], "train at iteration 7"), ([], "iteration 8")):
        kept = [*lines[:place], *altered, *lines[place + 1 :]]
        changed.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
        assert said in next(iter(differences(changed, reference)))
    shutil.copy(reference.metrics, changed.metrics)
    shard = max(changed.checkpoint(changed.iterations()[-1]).iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (found,) = differences(changed, reference)
    assert found.startswith("tensor ")


@pytest.mark.slow
def test_an_unknown_kind_is_refused() -> None:
    done = faults("--kinds", "earthquake")
    assert done.returncode == 2
    assert "earthquake" in done.stderr
