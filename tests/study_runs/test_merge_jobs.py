"""A merged arm of a study is planned, made by its job, and found; its weights are numpy's mean."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.tensors import Weights
from megacode.config.config_file import dump_config
from megacode.data.indexed import IndexedDatasetWriter
from megacode.study.grid import build_grid
from megacode.study.places import StudyDir
from megacode.study.study_file import read_study
from megacode.study.tree import Tree
from megacode.study_runs.disk import Disk
from megacode.study_runs.jobs import StudyJob, jobs_of, write_configs
from megacode.study_runs.runs import needed_runs
from megacode.study_runs.scores import ScoreBoard
from tests.study.conftest import STUDY

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A trunk of twelve iterations, and a mean of its last ones."""
    study: dict[str, Any] = copy.deepcopy(STUDY)
    for name in ("text", "code"):
        with IndexedDatasetWriter(tmp_path / name, np.uint16) as writer:
            writer.add(np.random.default_rng(0).integers(0, 99, 20_000), np.full(400, 50))
        study["set"]["sources"][name] = {"path": str(tmp_path / name)}
    study["set"] |= {"precision": {"dtype": "fp32"}, "checkpoint": {"keep_every": "3 iterations", "keep_last": 1}}
    study["phases"]["trunk"]["iterations"] = 12
    merge = {"decay": "cosine", "over": "5 iterations"}
    study["arms"] = {"merged": {"phases": ["trunk"], "anneal": {"merge": merge}}, "trunk": ["trunk"]}
    study |= {"seeds": [1], "baseline": "trunk", "runs": str(tmp_path / "runs")}
    path = tmp_path / "study.yaml"
    return Tree(build_grid(read_study(study, path), path))


def left(tree: Tree, write: bool = True) -> list[StudyJob]:
    """Return the jobs that are left, as `study run` plans them."""
    place = StudyDir(tree.grid.study.directory)
    disk = Disk(place.path)
    runs = needed_runs(tree, disk)
    if write:
        write_configs(runs, place)
    return jobs_of(runs, {}, ScoreBoard(tree, disk), place, None, False)


@pytest.mark.slow
def test_a_merged_arm_is_made_of_what_its_trunk_keeps(tree: Tree, megacode: Call, tmp_path: Path) -> None:
    trained, merged = left(tree)
    assert (trained.kind, merged.kind) == ("train", "merge")
    assert [path.name for path in merged.needs] == ["iter_0000006", "iter_0000009", "iter_0000012"]
    assert trained.makes == merged.needs[-1:]
    assert not merged.is_ready
    assert not (tmp_path / "runs/configs" / f"{merged.name}.yaml").exists()

    done = megacode(*trained.arguments)
    assert done.returncode == 0, done.stderr
    assert merged.is_ready
    assert [job.kind for job in left(tree)] == ["merge"]
    assert left(tree)[0].arguments == merged.arguments
    done = megacode(*merged.arguments)
    assert done.returncode == 0, done.stderr
    assert merged.is_done
    assert left(tree) == []

    (cell,) = tree.grid.of("merged")
    found = Disk(tmp_path / "runs").states[cell.end]
    assert (found.path, found.merged) == (merged.makes[0], True)
    assert RunDir(found.path.parents[1]).iterations() == [12]
    assert cell.merging is not None
    sources, mean = [Weights(path) for path in merged.needs], Weights(found.path)
    weights = [part.weight for part in cell.merging.parts]
    assert set(mean) != set()
    for name in mean:
        stack = np.stack([source[name].double().numpy() for source in sources])
        assert torch.equal(mean[name], torch.from_numpy(np.average(stack, axis=0, weights=weights).astype(np.float32)))
    assert [weight for weight, _ in TrainState.read(found.path).merged_from()] == weights


def test_a_merge_waits_for_a_checkpoint_that_is_gone_where_it_was(tree: Tree, tmp_path: Path) -> None:
    (cell,) = tree.grid.of("merged")
    run = RunDir(tmp_path / "runs/renamed")
    for iteration in (9, 12):
        clock = 8 * iteration
        run.checkpoint(iteration).mkdir(parents=True)
        chain = [link for link in cell.plan.schedule.fingerprints() if link["first_sample"] < clock]
        text = dump_config(cell.plan.config)
        TrainState(iteration, clock, "trunk", {}, chain, config=text).write(run.checkpoint(iteration))
    (merged,) = left(tree)
    assert merged.needs == tuple(run.checkpoint(iteration) for iteration in (6, 9, 12))
    assert not merged.is_ready
