"""What a start goes on from, without a model: the same proof for a resume and for a branch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.config_file import dump_config, validate
from megacode.data.indexed import IndexedDatasetWriter
from megacode.planning import run_plan
from megacode.planning.run_plan import Plan, make_plan, plan_run
from megacode.train.origin import find_origin

RATE = {"schedule": "constant", "peak": 1e-3}
TRUNK = {"name": "trunk", "iterations": 40, "blend": {"a": 0.7, "b": 0.3}, "learning_rate": RATE}
DECAY = {"name": "decay", "iterations": 6, "blend": {"b": 1}, "learning_rate": {"schedule": "linear", "final": 0}}
MakePlan = Callable[..., Plan]


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    """Return a function from a run's name, its phases and other settings to its plan."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        with IndexedDatasetWriter(tmp_path / name, np.uint16) as writer:
            for _ in range(40):
                writer.add(np.arange(100, dtype=np.uint16), np.array([100]))

    def make(name: str, phases: list[dict[str, Any]], **more: Any) -> Plan:
        model = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
        raw = {
            "name": name,
            "model": model | {"vocab_size": 100},
            "sources": {"a": {"path": "a"}, "b": {"path": "b"}},
            "validation": {"fraction": 0},
            "phases": phases,
            "train": {"seq_length": 8, "global_batch_size": 4},
        }
        return make_plan(validate(raw | more, "test.yaml"))

    return make


def saved(plan: Plan, *iterations: int) -> Path:
    """Write the states of a run's checkpoints, without tensors, and return the last one."""
    run = RunDir(plan.config.directory)
    for iteration in iterations:
        clock = plan.batches.clock_after(iteration)
        path = run.checkpoint(iteration)
        path.mkdir(parents=True)
        counts, chain = plan.schedule.counts_at(clock), plan.schedule.fingerprints()
        facts: dict[str, Any] = {"samples_by_source": counts, "fingerprints": chain, "config": dump_config(plan.config)}
        state = TrainState(iteration=iteration, consumed_samples=clock, phase="trunk", **facts)
        state.write(path)
    return path


def branch(plan_of: MakePlan, until: int, checkpoint: Path, name: str = "branch", load: str = "all") -> Plan:
    phases = [TRUNK | {"until": f"{until} iterations"}, DECAY]
    return plan_of(name, phases, init={"from": str(checkpoint), "load": load})


def test_a_first_start_is_fresh_and_a_second_resumes(plan_of: MakePlan) -> None:
    plan = plan_of("trunk", [TRUNK])
    assert find_origin(plan, None).kind == "fresh"
    assert find_origin(plan, None).log_lines() == []
    checkpoint = saved(plan, 10)
    origin = find_origin(plan, checkpoint)
    assert (origin.kind, origin.checkpoint, origin.state.consumed_samples) == ("resume", checkpoint, 40)
    assert origin.difference is not None
    assert origin.difference.changes == []


def test_a_branch_goes_on_at_the_checkpoint_s_clock_and_says_what_changed(plan_of: MakePlan) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    origin = find_origin(branch(plan_of, 20, checkpoint), None)
    assert (origin.kind, origin.state.iteration, origin.state.consumed_samples) == ("branch", 10, 40)
    assert not origin.weights_only
    lines = origin.log_lines()
    assert lines[0] == f"branching off {checkpoint} at sample 40"
    assert "changed: phases[0].until: - -> 20 iterations (future data)" in lines
    assert "changed: name: trunk -> branch (bookkeeping)" in lines


def test_weights_alone_start_at_clock_zero_without_a_proof(plan_of: MakePlan) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 30)
    origin = find_origin(branch(plan_of, 20, checkpoint, load="weights"), None)
    assert (origin.kind, origin.weights_only, origin.state.consumed_samples) == ("weights", True, 0)
    assert origin.difference is None


def test_a_branch_that_has_saved_resumes_its_own(plan_of: MakePlan) -> None:
    trunk = saved(plan_of("trunk", [TRUNK]), 10)
    plan = branch(plan_of, 10, trunk)
    origin = find_origin(plan, saved(plan, 12))
    assert (origin.kind, origin.state.iteration) == ("resume", 12)


def test_a_checkpoint_behind_the_cut_is_refused_and_the_right_one_named(plan_of: MakePlan) -> None:
    trunk = saved(plan_of("trunk", [TRUNK]), 10, 20, 30)
    with pytest.raises(CheckpointError) as caught:
        find_origin(branch(plan_of, 25, trunk), None)
    (problem,) = caught.value.problems
    assert problem.where == "phases[0].until"
    assert problem.fix == f"start from {trunk.parent / 'iter_0000020'}, or raise until to 120 samples or more"
    with pytest.raises(CheckpointError, match="start from a checkpoint of sample 20 or earlier"):
        find_origin(branch(plan_of, 5, trunk), None)


def test_a_branch_in_its_trunk_s_directory_is_refused(plan_of: MakePlan) -> None:
    trunk = saved(plan_of("trunk", [TRUNK]), 10)
    with pytest.raises(
        ConfigError, match=r"(?s)init.from: the run would be written into.*name or a run_dir of its own"
    ):
        find_origin(branch(plan_of, 20, trunk, name="trunk"), trunk)


def test_a_changed_past_is_refused_or_accepted_at_a_known_loss(plan_of: MakePlan) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    plan = plan_of("trunk", [TRUNK | {"blend": {"a": 0.5, "b": 0.5}}])
    with pytest.raises(CheckpointError, match="or resume with --accept-changed-past"):
        find_origin(plan, checkpoint)
    origin = find_origin(plan, checkpoint, accept_changed_past=True)
    assert origin.difference is not None
    assert origin.difference.lost is not None
    rows = origin.difference.lost["sources"]
    assert {name: (row["read"], row["taken"], row["repeated"], row["lost"]) for name, row in rows.items()} == {
        "a": (28, 20, 8, 0),
        "b": (12, 20, 0, 8),
    }
    assert any("a: 28 windows were read, 20 count as read" in line for line in origin.log_lines())


def test_the_plan_says_the_same_against_a_checkpoint(plan_of: MakePlan) -> None:
    trunk = saved(plan_of("trunk", [TRUNK]), 10)
    document = plan_run(branch(plan_of, 20, trunk).config, trunk)["against"]
    assert document["consumed_samples"] == 40
    assert {"key": "phases[0].until", "old": None, "new": "20 iterations", "effect": "future data"} in document[
        "changes"
    ]
    assert document["sources"]["a"] == {"read": 28 * 8, "before": 84 * 8, "now": 28 * 8}
    assert "lost" not in document
    other = plan_of("trunk", [TRUNK], seed=9).config
    with pytest.raises(CheckpointError):
        plan_run(other, trunk)
    assert plan_run(other, trunk, accept_changed_past=True)["against"]["lost"]["exact"]


def test_a_config_of_another_version_s_law_cannot_be_compared(plan_of: MakePlan) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    state = TrainState.read(checkpoint)
    state.config = yaml.safe_dump(yaml.safe_load(state.config) | {"seed": 99})
    state.write(checkpoint)
    origin = find_origin(plan_of("trunk", [TRUNK], seed=3), checkpoint, accept_changed_past=True)
    assert origin.difference is not None
    assert origin.difference.lost is not None
    assert not origin.difference.lost["comparable"]
    assert origin.difference.sources["a"]["before"] is None


MODEL = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 100}


def refused_by_plan_and_start(plan: Plan, checkpoint: Path) -> list[str]:
    """Return where `plan --against` sees problems, which must be where a start sees them."""
    found = []
    for ask in (lambda: find_origin(plan, checkpoint), lambda: plan_run(plan.config, checkpoint)):
        try:
            ask()
            found.append([])
        except CheckpointError as error:
            found.append([problem.where for problem in error.problems])
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({}, []),
        ({"vocab_size": 200}, ["model.vocab_size"]),
        ({"hidden_size": 128}, ["model.hidden_size"]),
        ({"num_layers": 4, "rotary_base": 5e5}, ["model.num_layers", "model.rotary_base"]),
        ({"block": "parallel"}, ["model.block"]),
        ({"hidden_dropout": 0.1, "make_vocab_size_divisible_by": 64}, []),
        ({"layernorm_epsilon": 1e-6, "num_query_groups": 2}, ["model.layernorm_epsilon", "model.num_query_groups"]),
    ],
)
def test_plan_and_train_agree_on_whether_a_checkpoint_s_model_fits(
    plan_of: MakePlan, change: dict[str, Any], where: list[str]
) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    tensors = {"model.embedding.word_embeddings.weight": {"shape": [100, 64]}}
    (checkpoint / "index.json").write_text(json.dumps({"tensors": tensors}))
    assert sorted(refused_by_plan_and_start(plan_of("trunk", [TRUNK], model=MODEL | change), checkpoint)) == where
    alone = branch(plan_of, 20, checkpoint, load="weights")
    changed = replace(alone, config=plan_of("branch", [TRUNK], model=MODEL | change, init=alone.config.init).config)
    changed = replace(changed, vocab_size=(MODEL | change)["vocab_size"])
    where = [key for key in where if key not in ("model.rotary_base", "model.layernorm_epsilon")]
    if where:
        with pytest.raises(CheckpointError, match="use the model settings it was saved with"):
            find_origin(changed, None)
    else:
        assert find_origin(changed, None).kind == "weights"


LONGER = {
    "rotary_base": 5e5,
    "rotary_scaling": {"kind": "yarn", "factor": 8, "original_length": 8, "layers": "full"},
    "rotary_pattern": ["none", "rotary"],
    "attention_pattern": ["sliding", "full"],
    "sliding_window": 4,
    "rotary_percent": 0.5,
    "logit_scale": 0.5,
    "layernorm_epsilon": 1e-6,
}


def test_weights_adapt_to_other_positions_windows_and_scales_and_every_change_is_shown(plan_of: MakePlan) -> None:
    trunk = plan_of("trunk", [TRUNK], model=MODEL)
    checkpoint = saved(trunk, 10)
    init = {"from": str(checkpoint), "load": "weights"}
    second = plan_of("second", [TRUNK], model=MODEL | LONGER, init=init)
    origin = find_origin(second, None)
    assert {change.key for change in origin.adapted} == {f"model.{key}" for key in LONGER}
    head = "trained with another setting: model."
    assert f"{head}rotary_base: 10000.0 -> 500000.0 (model)" in origin.log_lines()
    warned = [line for line in plan_run(second.config)["warnings"] if line.startswith("init.from: ")]
    assert len(warned) == len(LONGER)
    assert "init.from: the weights were trained with another setting: model.sliding_window: - -> 4 (model)" in warned
    # A run that is continued keeps its model, and so does a branch.
    whole = plan_of("second", [TRUNK], model=MODEL | LONGER, init=init | {"load": "all"})
    for ask in (
        lambda: find_origin(whole, None),
        lambda: plan_run(whole.config),
        lambda: plan_run(second.config, checkpoint),
    ):
        with pytest.raises(CheckpointError, match=r"model\.rotary_base: the checkpoint has 10000\.0, the config"):
            ask()


@pytest.mark.parametrize(
    "change",
    [
        {"normalization": "LayerNorm"},
        {"qk_norm": "shared"},
        {"num_attention_heads": 2},
        {"block": "parallel"},
        {"share_embeddings_and_output_weights": True},
        {"num_attention_heads": 2, "kv_channels": 32, "num_query_groups": 2},
    ],
)
def test_weights_do_not_adapt_to_a_model_that_reads_them_otherwise(plan_of: MakePlan, change: dict[str, Any]) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK], model=MODEL), 10)
    init = {"from": str(checkpoint), "load": "weights"}
    second = plan_of("second", [TRUNK], model=MODEL | {"rotary_base": 5e5} | change, init=init)
    for ask in (lambda: find_origin(second, None), lambda: plan_run(second.config)):
        with pytest.raises(CheckpointError) as caught:
            ask()
        assert sorted(problem.where for problem in caught.value.problems) == sorted(f"model.{key}" for key in change)


def test_a_plan_checks_what_its_run_would_start_from(plan_of: MakePlan) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    assert plan_run(branch(plan_of, 20, checkpoint).config)["total_iterations"] == 26
    with pytest.raises(CheckpointError, match="until: the checkpoint has read 40 samples"):
        plan_run(branch(plan_of, 5, checkpoint).config)
    said = plan_run(branch(plan_of, 20, Path("nowhere")).config)["warnings"]
    assert any(line.startswith("init.from has no checkpoint yet: ") for line in said)


def test_a_checkpoint_that_is_not_there_lists_those_that_are(plan_of: MakePlan, tmp_path: Path) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10, 20)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(checkpoint.with_name("iter_0000015"))
    assert caught.value.problems[0].fix == "available: iter_0000010, iter_0000020"
    run = RunDir(checkpoint.parents[1])
    run.latest.write_text("iter_0000020")
    with pytest.raises(CheckpointError, match=f"runs with checkpoints in {run.path.parent}: trunk"):
        find_checkpoint(run.path.with_name("trank"))
    with pytest.raises(CheckpointError, match="give a run directory, or one of"):
        find_checkpoint(tmp_path)


def test_another_tokenizer_than_the_run_s_is_refused_by_plan_and_start(
    plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(plan_of("trunk", [TRUNK]), 10)
    state = replace(TrainState.read(checkpoint), tokenizer_hash="a" * 64)
    state.write(checkpoint)
    plan = plan_of("trunk", [TRUNK])
    assert refused_by_plan_and_start(plan, checkpoint) == []  # the run has none: nothing to compare
    for hash_, where in (("a" * 64, []), ("b" * 64, ["tokenizer"])):
        monkeypatch.setattr(run_plan, "tokenizer_facts", lambda config, hash_=hash_: {"hash": hash_})
        assert refused_by_plan_and_start(plan, checkpoint) == where
