"""The two processes that run tests: each file's tests stay in one of them, and so does the folder of SLURM's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import ROOT, WholeFiles
from tests.limits import HANG


@pytest.mark.slow
def test_a_files_tests_run_in_one_process() -> None:
    options = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("PYTEST ="))
    dist = options.split("$(WORKERS)")[1].split()
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", *dist, "tests/base/test_units.py",
               "tests/base/test_user_paths.py"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=True)
    workers = defaultdict(set)
    for worker, file in re.findall(r"\[(gw\d)\] .* PASSED (\S+?)::", done.stdout):
        workers[file].add(worker)
    assert sorted(map(len, workers.values())) == [1, 1]


def test_tests_that_share_the_only_one_of_its_kind_run_in_one_process() -> None:
    split = WholeFiles._split_scope
    names = [f"tests/slurm/{path.name}::test_x" for path in Path(ROOT / "tests" / "slurm").glob("test_*.py")]
    assert len(names) > 2
    assert {split(None, name) for name in names} == {"slurm"}  # type: ignore[arg-type]


def test_each_part_of_the_other_release_may_run_in_a_process_of_its_own() -> None:
    names = [f"tests/releases/test_other_release.py::test_x[{part}]" for part in "ab"]
    assert [WholeFiles._split_scope(None, name) for name in names] == names  # type: ignore[arg-type]
