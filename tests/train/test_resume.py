"""A run that stops goes on as if it had not, or says why it cannot. Single process, real Megatron-core."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, read_jsonl
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.trainer import Trainer

pytestmark = pytest.mark.slow


CLOSING = ExitStack()


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    CLOSING.close()


def trainer_of(config: Path, *overrides: str) -> Trainer:
    CLOSING.close()  # a start before this one would end the process, once it sees that its lock is gone
    return build_trainer(make_plan(load_config(config, overrides)), StopSignal(), CLOSING)


def run_whole(config: Path, *overrides: str) -> None:
    train(trainer_of(config, *overrides))
    CLOSING.close()


def run_part(config: Path, iterations: int, *overrides: str) -> None:
    """Train some iterations, save, and go on for two more that nobody saves: a killed run."""
    trainer = trainer_of(config, *overrides)
    trainer.begin()
    for number in range(iterations + 2):
        iteration = trainer.step()
        trainer.record(iteration)
        if number + 1 == iterations:
            trainer.save_unless_saved(iteration)
    trainer.run_log.close()
    CLOSING.close()


def lines(run_dir: str, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_metrics(RunDir(run_dir).metrics) if line["kind"] == kind]


@pytest.mark.parametrize("stop", [4, 10, 13])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_repeats_every_loss_bit_for_bit(golden: Path, stop: int, dropout: float) -> None:
    extra = (f"model.hidden_dropout={dropout}", f"model.attention_dropout={dropout}")
    run_whole(golden, "run_dir=whole", *extra)
    run_part(golden, stop, "run_dir=parts", *extra)
    run_whole(golden, "run_dir=parts", *extra)
    assert [line["iteration"] for line in lines("whole")] == list(range(1, 21))
    for whole, parts in zip(lines("whole"), lines("parts"), strict=True):
        for key in ("iteration", "loss", "grad_norm", "loss_by_source", "samples_by_source", "tokens_by_source"):
            assert whole[key] == parts[key], (whole["iteration"], key)


def test_planned_and_seen_tokens_are_equal_at_every_iteration(golden: Path) -> None:
    run_whole(golden, "run_dir=run")
    plan = make_plan(load_config(golden))
    records = lines("run")
    assert [record["iteration"] for record in records] == list(range(1, 21))
    for record in records:
        for counts in record["tokens_by_source"].values():
            assert counts["planned"] == counts["seen"]
    assert len(plan.schedule.phases) == 3
    for phase in plan.schedule.phases:
        drawn: dict[str, int] = {}
        for record in records:
            if record["phase"] == phase.name:
                for name, count in record["samples_by_source"].items():
                    drawn[name] = drawn.get(name, 0) + count
        assert drawn == {name: count for name, count in phase.counts.items() if count}


def test_held_out_loss_is_measured_at_the_start_and_at_every_phase_end(golden: Path) -> None:
    run_whole(golden, "run_dir=run", "validation.every=4 iterations")
    found = [(line["iteration"], line["reason"]) for line in lines("run", "validation")]
    ends = [(10, "phase_end"), (16, "phase_end"), (20, "phase_end")]
    assert found == sorted([(0, "start"), (4, "interval"), (8, "interval"), (12, "interval"), *ends])
    assert all(set(line["loss_by_source"]) == {"code", "prose"} for line in lines("run", "validation"))


def test_learning_rates_follow_the_plan(golden: Path) -> None:
    run_whole(golden, "run_dir=run")
    rates = [line["learning_rate"] for line in lines("run")]
    assert rates[2] == pytest.approx(5e-3)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[10:16] == pytest.approx([1e-3] * 6)
    assert rates[-1] == 0.0


def test_checkpoints_are_kept_by_policy(golden: Path) -> None:
    policy = "checkpoint={every: 3 iterations, keep_last: 1, keep_phase_ends: true, at_start: true}"
    run_whole(golden, "run_dir=run", policy)
    run = RunDir("run")
    assert run.iterations() == [0, 10, 16, 18, 20]
    assert run.latest.read_text().strip() == "iter_0000020"
    events = [event["event"] for event in read_jsonl(run.events)]
    assert events[0] == "start"
    assert events[-1] == "stop"
    assert events.count("phase_end") == 3


def test_a_changed_future_is_accepted(golden: Path) -> None:
    run_part(golden, 12, "run_dir=run")
    run_whole(golden, "run_dir=run", "phases.cooldown.iterations=9", "phases.cooldown.blend={code: 1}")
    assert len(lines("run")) == 25


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("phases.balanced.blend={prose: 0.6, code: 0.4}", "balanced"),
        ("seed=8", "seed"),
        ("phases.balanced.iterations=12", "balanced"),
        ("train.seq_length=32", "seq_length"),
        ("validation.fraction=0.2", "tokens"),
    ],
)
def test_a_changed_past_is_refused(golden: Path, change: str, expected: str) -> None:
    run_part(golden, 12, "run_dir=run")
    before = RunDir("run").metrics.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        trainer_of(golden, "run_dir=run", change)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2
    assert RunDir("run").metrics.read_bytes() == before


def test_another_model_is_refused_with_every_difference(golden: Path) -> None:
    run_part(golden, 2, "run_dir=run")
    with pytest.raises(CheckpointError) as caught:
        trainer_of(golden, "run_dir=run", "model.num_layers=4", "model.rotary_base=500")
    assert "model.num_layers: the checkpoint has 2, the config 4" in str(caught.value)
    assert "model.rotary_base" in str(caught.value)


def test_a_run_can_start_from_the_weights_of_another(golden: Path) -> None:
    run_whole(golden, "run_dir=first")
    trainer = trainer_of(golden, "run_dir=second", "init={from: first, load: weights}")
    assert trainer.state.iteration == 0
    trainer.begin()
    start, end = lines("second", "validation")[0], lines("first", "validation")[-1]
    assert start["loss_by_source"] == pytest.approx(end["loss_by_source"], abs=1e-6)


def test_a_run_on_adapted_weights_resumes_as_its_own_model_only(golden: Path) -> None:
    run_whole(golden, "run_dir=first")
    longer = ("run_dir=second", "init={from: first, load: weights}", "model.rotary_base=500")
    run_part(golden, 2, *longer)
    assert trainer_of(golden, *longer).state.iteration == 2
    with pytest.raises(CheckpointError, match=r"model\.rotary_base: the checkpoint has 500\.0"):
        trainer_of(golden, *longer[:2], "model.rotary_base=600")


def test_a_batch_ramp_and_a_short_last_batch_read_every_sample_once(golden: Path) -> None:
    ramp = "train.batch_ramp={start: 4, increment: 4, samples: 20}"
    run_whole(
        golden,
        "run_dir=run",
        ramp,
        "phases.0={name: balanced, samples: 50, blend: {prose: 1, code: 1},"
        " learning_rate: {schedule: constant, peak: 1e-3}}",
    )
    sizes = [line["batch_size"] for line in lines("run") if line["phase"] == "balanced"]
    assert sizes[0] == 4
    assert sum(sizes) == 50
    assert max(sizes) == 8
    assert sizes[-1] < 8
    assert all(sum(line["samples_by_source"].values()) == line["batch_size"] for line in lines("run"))


def test_a_torn_save_leaves_the_checkpoint_before_it(golden: Path) -> None:
    run_part(golden, 4, "run_dir=run")
    torn = RunDir("run").checkpoints / ".iter_0000006.saving"
    torn.mkdir()
    (torn / "half").write_text("x")
    run_whole(golden, "run_dir=run")
    assert not torn.exists()
    assert lines("run")[-1]["iteration"] == 20


@pytest.mark.parametrize("content", [None, "iter_0000009\n", "\0\0"])
def test_a_latest_that_is_gone_or_wrong_leads_to_the_newest_checkpoint(golden: Path, content: str | None) -> None:
    run_part(golden, 4, "run_dir=run")
    RunDir("run").latest.unlink()
    if content is not None:
        RunDir("run").latest.write_text(content)
    assert trainer_of(golden, "run_dir=run").state.iteration == 4


def test_the_run_directory_holds_the_resolved_config_and_the_plan(golden: Path) -> None:
    run_part(golden, 1, "run_dir=run")
    assert load_config(RunDir("run").config) == load_config(golden, ["run_dir=run"])
    assert json.loads(RunDir("run").plan.read_text())["total_samples"] == 160
