"""What happens to a run: spikes, infinities, full disks, damaged checkpoints, requests to save and to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, read_jsonl
from megacode.checkpoint.tensors import Weights
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.train.calendar import Iteration
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.trainer import StopReason, Trainer
from tests.limits import wait_until

pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]
CLOSING = ExitStack()
EVERY = "checkpoint={every: 4 iterations}"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    CLOSING.close()


def trainer_of(config: Path, *overrides: str, **more: bool) -> Trainer:
    CLOSING.close()  # a start before this one would end the process, once it sees that its lock is gone
    return build_trainer(make_plan(load_config(config, overrides)), StopSignal(), CLOSING, **more)


def run_whole(config: Path, *overrides: str, spoil: dict[int, str] | None = None, **more: bool) -> StopReason:
    """Train to the end; the batches of some iterations are spoiled, whenever they come."""
    trainer = trainer_of(config, *overrides, **more)
    if spoil:
        _spoil(trainer, spoil)
    try:
        return train(trainer)
    finally:
        CLOSING.close()


def _spoil(trainer: Trainer, harms: dict[int, str]) -> None:
    """Ask for labels that never came before (`leap`), or weigh a token beyond what fp32 holds (`infinite`)."""
    original = trainer.loader.batch
    clocks = {trainer.batches.clock_after(iteration - 1): harm for iteration, harm in harms.items()}

    def batch(clock: int) -> list[Any]:
        batches = original(clock)
        for micro in batches:
            if clocks.get(clock) == "leap":
                micro.labels.fill_(300)
            if clocks.get(clock) == "infinite":
                micro.loss_mask[0, 0] = 3e38
        return batches

    trainer.loader.batch = batch  # type: ignore[method-assign]


def lines(run_dir: str, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_metrics(RunDir(run_dir).metrics) if line["kind"] == kind]


def events(run_dir: str, event: str) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(RunDir(run_dir).events) if line["event"] == event]


def same_weights(one: str, other: str) -> bool:
    first, second = (Weights(RunDir(run).checkpoint(20)) for run in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def policy(name: str, **more: int) -> str:
    rest = "".join(f", {key}: {value}" for key, value in more.items())
    return f"health.spikes={{policy: {name}, window: 16, threshold: 6{rest}}}"


def test_an_infinite_gradient_never_reaches_the_weights_and_is_in_the_ledger(golden: Path) -> None:
    assert run_whole(golden, "run_dir=run", EVERY, spoil={7: "infinite"}) == "finished"
    (skipped,) = [line for line in lines("run") if line["skipped"]]
    assert skipped["iteration"] == 7
    (entry,) = read_jsonl(RunDir("run").ledger)
    assert (entry["first_sample"], entry["last_sample"], entry["reason"]) == (48, 56, "non-finite")
    weights = Weights(RunDir("run").checkpoint(20))
    assert all(bool(weights[name].isfinite().all()) for name in weights)


def test_a_skipped_spike_is_left_out_again_after_a_resume_from_before_it(golden: Path) -> None:
    """The second time the batch is harmless; the ledger alone says that it is not learned from."""
    assert run_whole(golden, "run_dir=run", EVERY, policy("skip"), spoil={10: "leap"}) == "finished"
    (spike,) = events("run", "spike")
    assert spike["iteration"] == 10
    (entry,) = read_jsonl(RunDir("run").ledger)
    assert entry["reason"] == "spike"
    shutil.copytree("run", "again")
    for iteration in (10, 12, 16, 20):
        shutil.rmtree(RunDir("again").checkpoint(iteration), ignore_errors=True)
    assert run_whole(golden, "run_dir=again", EVERY, policy("skip")) == "finished"
    assert [line["skipped"] for line in lines("again")] == [line["skipped"] for line in lines("run")]
    assert same_weights("run", "again")


def test_a_spike_that_is_only_warned_of_is_learned(golden: Path) -> None:
    assert run_whole(golden, "run_dir=run", policy("warn"), spoil={10: "leap"}) == "finished"
    assert len(events("run", "spike")) == 1
    assert not any(line["skipped"] for line in lines("run"))
    assert not RunDir("run").ledger.exists()


def test_a_rollback_goes_back_and_leaves_out_what_led_to_the_spike(golden: Path) -> None:
    config = (EVERY, policy("rollback", withhold=3))
    assert run_whole(golden, "run_dir=run", *config, spoil={10: "leap"}) == "finished"
    (back,) = events("run", "rollback")
    assert (back["to_iteration"], back["lost_iterations"]) == (4, 6)
    assert [line["iteration"] for line in lines("run")] == list(range(1, 21))
    assert [line["iteration"] for line in lines("run") if line["skipped"]] == [8, 9, 10]
    (entry,) = read_jsonl(RunDir("run").ledger)
    assert (entry["first_sample"], entry["last_sample"], entry["reason"]) == (56, 80, "rollback")
    run_whole(golden, "run_dir=other", *config)
    assert not same_weights("run", "other")


def test_spikes_without_end_end_the_run_with_3(golden: Path) -> None:
    spoil = dict.fromkeys(range(9, 21), "leap")
    assert run_whole(golden, "run_dir=run", policy("skip", limit=2), spoil=spoil) == "spikes"
    assert lines("run")[-1]["iteration"] == 10
    assert events("run", "stop")[0]["reason"] == "spikes"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(golden: Path) -> None:
    run_whole(golden, "run_dir=whole", EVERY)
    shutil.copytree("whole", "run")
    run = RunDir("run")
    victim = run.checkpoint(20) / "shard_00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (run.checkpoint(16) / "megacode.json").write_text("")
    trainer = trainer_of(golden, "run_dir=run", EVERY)
    assert trainer.state.iteration == 12
    assert run.latest.read_text() == "iter_0000012\n"
    assert [event["checkpoint"] for event in events("run", "corrupt")] == ["iter_0000020", "iter_0000016"]
    assert "shard_00000.safetensors" in events("run", "corrupt")[0]["what"]
    train(trainer)
    assert same_weights("whole", "run")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(golden: Path) -> None:
    run_whole(golden, "run_dir=run")
    (RunDir("run").checkpoint(20) / "index.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of this run is intact"):
        trainer_of(golden, "run_dir=run")


def test_a_failed_save_ends_nothing_and_the_next_one_is_whole(golden: Path) -> None:
    trainer = trainer_of(golden, "run_dir=run", "checkpoint={every: 4 iterations, async: false}")
    checkpoints = RunDir("run").checkpoints
    original = trainer.save

    def save(iteration: Iteration) -> None:
        if iteration.number == 8:
            checkpoints.rename("aside")
            checkpoints.write_text("a file where a directory should be")
        original(iteration)
        if iteration.number == 8:
            checkpoints.unlink()
            Path("aside").rename(checkpoints)

    trainer.save = save  # type: ignore[method-assign]
    assert train(trainer) == "finished"
    assert [event["checkpoint"] for event in events("run", "save_failed")] == ["iter_0000008"]
    assert RunDir("run").iterations() == [4, 10, 12, 16, 20]


def test_a_last_save_that_fails_is_told_apart(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(golden, "run_dir=run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    assert train(trainer) == "save_failed"
    assert "needs" in events("run", "save_failed")[0]["error"]
    assert len(lines("run")) == 20


def test_touch_files_do_what_they_say(golden: Path) -> None:
    trainer = trainer_of(golden, "run_dir=run")
    original, run = trainer.step, RunDir("run")

    def step() -> Any:
        if trainer.state.iteration == 5:
            run.save_request.touch()
        if trainer.state.iteration == 12:
            run.stop_request.touch()
        time.sleep(0.1)
        return original()

    trainer.step = step  # type: ignore[method-assign]
    assert train(trainer) == "stop_file"
    saved = run.iterations()
    assert len(saved) == 2
    assert 6 <= saved[0] < 12
    assert saved[1] >= 13
    assert not run.save_request.exists()
    assert not run.stop_request.exists()


def test_the_wall_clock_stops_a_run_in_time(golden: Path) -> None:
    trainer = trainer_of(golden, "run_dir=run", "limits.wall_clock=1s")
    assert train(trainer) == "time_limit"
    assert lines("run")[-1]["iteration"] == 1
    assert RunDir("run").iterations() == [1]


def test_a_second_start_on_a_live_run_is_refused_and_a_dead_owners_lock_taken_over(
    golden: Path, megacode: Megacode, tmp_path: Path
) -> None:
    arguments = ["train", str(golden), "run_dir=run", "phases.balanced.iterations=4000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "megacode.cli", *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    run = RunDir(tmp_path / "run")
    wait_until(lambda: run.metrics.exists() and b'"train"' in run.metrics.read_bytes(), child)
    for nproc in ((), ("--nproc", 2)):
        refused = megacode(*arguments, *nproc)
        assert refused.returncode == 2, refused.stderr
        assert f"process {child.pid}" in refused.stderr
        assert "Traceback" not in refused.stderr
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = megacode(*arguments[:3])
    assert done.returncode == 0, done.stderr
    assert "taking over" in done.stderr


def test_health_records_name_the_slowest_rank_and_the_memory(golden: Path, megacode: Megacode, tmp_path: Path) -> None:
    assert megacode("train", golden, "run_dir=run", "health.report_every=10", "--nproc", 2).returncode == 0
    records = [line for line in read_metrics(RunDir(tmp_path / "run").metrics) if line["kind"] == "health"]
    assert [record["iteration"] for record in records] == [10, 20]
    for record in records:
        assert record["slowest_rank"] in (0, 1)
        assert 0 < record["median_seconds"] <= record["slowest_seconds"]
        assert record["memory_bytes"] > 50_000_000


def test_a_checkpoint_saved_on_the_way_to_a_spike_is_not_gone_on_from(golden: Path) -> None:
    """The one at iteration 9 has learned from iteration 8, which the ledger withholds since."""
    config = ("checkpoint={every: 3 iterations}", policy("rollback", withhold=3))
    assert run_whole(golden, "run_dir=run", *config, spoil={10: "leap"}) == "finished"
    (back,) = events("run", "rollback")
    assert back["to_iteration"] == 6
    shutil.copytree("run", "again")
    shutil.rmtree(RunDir("again").checkpoints)
    assert run_whole(golden, "run_dir=again", *config, from_scratch=True) == "finished"
    assert [line["skipped"] for line in lines("again")] == [line["skipped"] for line in lines("run")]
    assert same_weights("run", "again")


def test_a_rollback_goes_back_across_a_change_of_the_optimizer(golden: Path) -> None:
    """From Muon to AdamW; once the ledger stands, a run from the start trains the same."""
    phases = ("phases.0.iterations=5", "phases.1.iterations=11", "phases.1.optimizer=muon")
    config = (EVERY, policy("rollback", withhold=10), *phases)
    assert run_whole(golden, "run_dir=run", *config, spoil={14: "leap"}) == "finished"
    (back,) = events("run", "rollback")
    assert back["to_iteration"] == 4
    changes = [(event["iteration"], event["now"]) for event in events("run", "optimizer")]
    assert changes == [(5, "muon"), (5, "muon"), (16, "adamw")]
    shutil.copytree("run", "again")
    shutil.rmtree(RunDir("again").checkpoints)
    assert run_whole(golden, "run_dir=again", *config, from_scratch=True) == "finished"
    assert same_weights("run", "again")


def test_a_rollback_without_a_checkpoint_leaves_out_the_spike_alone(golden: Path) -> None:
    policies = ("checkpoint={keep_phase_ends: false}", policy("rollback", withhold=3))
    assert run_whole(golden, "run_dir=run", *policies, spoil={10: "leap"}) == "finished"
    (entry,) = read_jsonl(RunDir("run").ledger)
    assert (entry["first_sample"], entry["last_sample"], entry["reason"]) == (72, 80, "spike")
    assert [line["iteration"] for line in lines("run") if line["skipped"]] == [10]
