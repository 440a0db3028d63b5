"""States that were really trained are found under the ids that the plan gave them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.base.files import write_text
from megacode.config.config_file import dump_config
from megacode.data.indexed import IndexedDatasetWriter
from megacode.study.found import find_states
from megacode.study.grid import Cell, Grid

Call = Callable[..., subprocess.CompletedProcess[str]]


def train(megacode: Call, folder: Path, cell: Cell, name: str, **changes: Any) -> Path:
    """Train a cell on one rank, under a name of its own; return its run directory."""
    run = folder / "runs" / name
    config = cell.plan.config.model_copy(update={"name": name, "run_dir": str(run), **changes})
    write_text(folder / f"{name}.yaml", dump_config(config))
    done = megacode("train", f"{name}.yaml", "--nproc", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.mark.slow
def test_a_trained_twin_and_its_branch_are_found_by_the_planned_ids(
    study: dict[str, Any], grid_of: Callable[[dict[str, Any]], Grid], megacode: Call, tmp_path: Path
) -> None:
    for name in ("text", "code"):
        with IndexedDatasetWriter(tmp_path / name, np.uint16) as writer:
            writer.add(np.random.default_rng(0).integers(0, 99, 20_000), np.full(400, 50))
        study["set"]["sources"][name] = {"path": str(tmp_path / name)}
    study["set"]["precision"] = {"dtype": "fp32"}
    study["factors"] = {"scale": {"proxy": {"twin": "1/4", "set": {"train.global_batch_size": 4}}}}
    grid = grid_of(study)
    assert grid.provisional == []
    one, two = grid.of("one")[0], grid.of("two")[0]
    assert one.plan.config.sources["code"].take is not None
    assert one.past.ends[0] == two.past.ends[0]

    trunk = train(megacode, tmp_path, one, "trunk")
    assert set(find_states(tmp_path / "runs")) == {one.past.ends[0]}
    from_trunk = one.plan.config.init.model_copy(update={"from_": str(trunk), "load": "all"})
    train(megacode, tmp_path, two, "branch", init=from_trunk)
    assert set(find_states(tmp_path / "runs")) == set(two.past.ends)
