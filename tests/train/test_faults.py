"""The fault harness, in short: a few faults on a small run; tools/bench/faults.py has the long form and all kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "faults.py"
KINDS = ["kill_all", "kill_in_save", "kill_parent", "terminate", "flip", "truncate"]


def faults(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_a_run_that_is_killed_stopped_and_damaged_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    done = faults("--faults", len(KINDS), "--kinds", ",".join(KINDS), "--writers", "async", "--json", report)
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


@pytest.mark.slow
def test_an_unknown_kind_is_refused() -> None:
    done = faults("--kinds", "earthquake")
    assert done.returncode == 2
    assert "earthquake" in done.stderr
