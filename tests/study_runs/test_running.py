"""`study run`: each stretch is trained once, whatever happens between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megacode.base import child_processes
from megacode.base.errors import ConfigError, LaunchError
from megacode.base.files import RunDir, read_jsonl
from megacode.config.loading import dump_config
from megacode.study.found import find_states
from megacode.study_runs.history import former_arms
from megacode.study_runs.disk import Disk
from megacode.study_runs.running import Choices, _StudyLock, check_choices
from megacode.study_runs.status import study_status
from tests.study_runs.conftest import Trial

pytestmark = pytest.mark.slow


def weights(trial: Trial, arm: str) -> dict[str, torch.Tensor]:
    """Return all tensors of the checkpoint at the end of an arm, but random states."""
    found = find_states(trial.place.path)
    path = found[trial.tree().paths[arm, 1][-1]].path
    tensors = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("random.")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_three_arms_share_their_trunk_and_a_second_call_trains_nothing(trained: Trial) -> None:
    assert trained.names() == ["base-s1", "decayed-s1", "longer-s1"]
    assert trained.iterations() == 8 + 4 + 4
    states = {arm["name"]: arm["state"] for arm in study_status(write(trained))["arms"]}
    assert states == {"base": "trained", "decayed": "trained", "longer": "trained"}
    before = sorted(path.name for path in trained.place.logs.iterdir())
    code, printed = trained.run()
    assert (code, trained.iterations()) == (0, 16)
    assert "all runs and scores are there" in printed
    assert sorted(path.name for path in trained.place.logs.iterdir()) == before


def write(trial: Trial) -> Path:
    trial.write()
    return trial.path


def test_a_branched_arm_is_bit_equal_to_the_arm_trained_alone(trained: Trial, megacode: object) -> None:
    cell = trained.tree().grid.of("decayed")[0]
    config = cell.plan.config.model_copy(update={"name": "alone", "run_dir": str(trained.folder / "alone")})
    path = trained.folder / "alone.yaml"
    path.write_text(dump_config(config))
    subprocess.run(child_processes.command(["train", str(path), "--nproc", "1"]), check=True, capture_output=True)
    alone = RunDir(trained.folder / "alone").checkpoint(12)
    tensors = load_file(next(alone.glob("*.safetensors")))
    assert same(weights(trained, "decayed"), {n: t for n, t in tensors.items() if not n.startswith("random.")})


def test_an_arm_that_is_added_trains_only_its_own_nodes_and_one_that_is_removed_is_retired(trained: Trial) -> None:
    del trained.document["arms"]["longer"]
    trained.document["arms"]["further"] = ["trunk", "decay", "text"]
    code, _ = trained.run()
    assert (code, trained.iterations()) == (0, 16 + 4)
    assert trained.names() == ["base-s1", "decayed-s1", "further-s1", "longer-s1"]
    (former,) = former_arms(trained.tree(), Disk(trained.place.path), trained.place)
    assert (former.arm, former.kind, former.tokens) == ("longer", "retired", 4 * 4 * 16)
    assert (former.found[0].path / "megacode.json").exists()
    # Renamed, it is the same training: nothing is retired and nothing is trained.
    trained.document["arms"]["renamed"] = ["trunk", "text"]
    code, _ = trained.run()
    assert (code, trained.iterations()) == (0, 20)
    assert former_arms(trained.tree(), Disk(trained.place.path), trained.place) == []


def test_a_phase_that_has_changed_is_trained_again_only_if_the_user_says_so(trained: Trial) -> None:
    trained.document["phases"]["decay"]["learning_rate"]["final"] = 1e-4
    with pytest.raises(ConfigError) as refused:
        trained.run()
    said = str(refused.value)
    assert "'decayed' has changed since it was trained: 256 tokens a seed are stale, 256 are to be trained" in said
    assert "learning_rate.final: 0.0 -> 0.0001" in said
    assert "--retrain-stale" in said
    assert trained.iterations() == 16
    code, _ = trained.run(retrain=True)
    assert (code, trained.iterations()) == (0, 20)
    document = study_status(trained.path)
    assert [(one["arm"], one["kind"]) for one in document["former"]] == [("decayed", "stale")]
    assert document["versions"] == 2
    # Back to what is there: nothing to ask, nothing to train.
    trained.document["phases"]["decay"]["learning_rate"]["final"] = 0
    assert trained.run()[0] == 0
    assert trained.iterations() == 20


def test_a_failing_arm_leaves_all_others_done_and_its_mistake_is_not_repeated(trial: Trial, study_data: Path) -> None:
    # The data set of one arm loses its content after the study was read: the plan cannot know.
    broken = trial.folder / "broken"
    for ending in (".bin", ".idx"):
        broken.with_suffix(ending).write_bytes((study_data / f"text{ending}").read_bytes())
    trial.document["sources"] = {"broken": {"path": str(broken)}}
    trial.document["phases"]["broken"] = {**trial.document["phases"]["text"], "blend": {"broken": 1}}
    trial.document["arms"] = {"base": ["trunk"], "wrong": ["broken"], "child": ["broken", "decay"]}
    trial.document["arms"]["other"] = ["broken", "text"]
    trial.tree()
    broken.with_suffix(".manifest.json").write_text(json.dumps({"identity": "another"}))
    code, printed = trial.run()
    assert code == 1
    assert "failed: wrong-s1-" in printed
    document = study_status(trial.path)
    states = {arm["name"]: arm["state"] for arm in document["arms"]}
    assert states == {"base": "trained", "wrong": "failed", "child": "waiting", "other": "waiting"}
    causes = {arm["cause"] for arm in document["arms"] if arm["state"] == "waiting"}
    assert len(causes) == 1
    assert causes.pop().startswith("failed wrong-s1-")
    attempts = len(read_jsonl(trial.place.attempts))
    code, printed = trial.run()
    assert (code, len(read_jsonl(trial.place.attempts))) == (1, attempts)
    assert "not tried again: wrong-s1-" in printed
    # Fixed: nothing in the study has changed, so the user says it.
    broken.with_suffix(".manifest.json").unlink()
    assert trial.run(retry=True)[0] == 0


def test_killed_again_and_again_it_ends_like_an_undisturbed_study(trial: Trial, trained: Trial) -> None:
    pass


def test_a_second_run_of_one_study_is_refused(trial: Trial) -> None:
    trial.write()
    with _StudyLock(trial.place), pytest.raises(LaunchError) as refused:
        # Another process, since one process may take its own lock twice.
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        raise LaunchError("x")
    assert refused


def test_unknown_arms_and_ranks_that_do_not_fit_are_named(trial: Trial) -> None:
    tree = trial.tree()
    with pytest.raises(ConfigError, match="there is no arm 'longr'") as refused:
        check_choices(tree, Choices(only=("longr",)))
    assert "did you mean longer?" in str(refused.value)
    trial.document["set"]["parallel"] = {"tensor": 2}
    with pytest.raises(ConfigError, match="3 ranks are not divisible by tensor x pipeline x context parallel = 2"):
        check_choices(trial.tree(), Choices(nproc=3))


_ = (signal, time, yaml)
