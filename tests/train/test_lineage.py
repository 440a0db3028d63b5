"""A run's past is never lost: what it goes back from is set aside, and a run that lost its checkpoints is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from megacode.base.errors import CheckpointError, ConfigError, LaunchError
from megacode.base.files import RunDir, read_jsonl
from megacode.checkpoint import store
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.tensors import Weights
from megacode.config.config_file import load_config
from megacode.planning.order import order_rows
from megacode.planning.run_plan import make_plan
from megacode.train.calendar import Iteration
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.start_checks import check_ready
from megacode.train.trainer import Trainer

pytestmark = pytest.mark.slow

CLOSING = ExitStack()
RUN = RunDir("run")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    CLOSING.close()


def trainer_of(config: Path, *overrides: str, **more: bool) -> Trainer:
    CLOSING.close()  # a start before this one would end the process, once it sees that its lock is gone
    named = any(override.startswith("run_dir=") for override in overrides)
    plan = make_plan(load_config(config, [*([] if named else ["run_dir=run"]), *overrides]))
    return build_trainer(plan, StopSignal(), CLOSING, **more)


def train_to(config: Path, last: int, *overrides: str, **more: bool) -> Trainer:
    """Train until an iteration as a stop request there would: the state is saved."""
    trainer = trainer_of(config, *overrides, **more)
    original = trainer.record

    def record(iteration: Iteration) -> int | None:
        back_to = original(iteration)
        if trainer.state.iteration == last < 20:
            RUN.stop_request.touch()
            trainer.requests._looked = float("-inf")  # type: ignore[union-attr]
        return back_to

    trainer.record = record  # type: ignore[method-assign]
    assert train(trainer) == ("finished" if last == 20 else "stop_file")
    CLOSING.close()
    return trainer


def every(iterations: int, keep_last: int) -> str:
    return f"checkpoint={{every: {iterations} iterations, keep_last: {keep_last}, keep_phase_ends: false}}"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def some_shard(iteration: int) -> Path:
    return sorted(RUN.checkpoint(iteration).glob("*.safetensors"))[0]


def events(event: str) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(RUN.events) if line["event"] == event]


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_after_a_step_back_what_was_saved_stays_and_what_was_damaged_goes(golden: Path, keep_last: int) -> None:
    train_to(golden, 10, every(5, 3))
    flip(some_shard(10))
    train_to(golden, 8, every(5, keep_last))
    assert RUN.latest.read_text() == "iter_0000008\n"
    assert RUN.iterations() == [8] if keep_last == 1 else [5, 8]
    assert [path.name for path in RUN.abandoned.iterdir()] == ["iter_0000010.damaged"]
    assert [event["checkpoints"] for event in events("set_aside")] == [["iter_0000010.damaged"]]
    train_to(golden, 20, every(5, keep_last))
    assert RUN.iterations() == [8, 10, 15, 20][-keep_last:]
    assert list(RUN.abandoned.iterdir()) == []


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_run_whose_only_checkpoints_learned_what_is_withheld_is_refused(golden: Path, keep_last: int) -> None:
    train_to(golden, 10, every(5, keep_last))
    for path in RUN.iterations()[:-1]:
        shutil.rmtree(RUN.checkpoint(path))
    Ledger.read(RUN, writes=True).add(64, 88, phase="balanced", iteration=11, reason="rollback")
    measured = RUN.metrics.read_bytes()
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be used"):
        trainer_of(golden, every(5, keep_last))
    assert RUN.metrics.read_bytes() == measured
    assert RUN.iterations() == [10]


def test_a_run_without_its_checkpoints_is_refused_unless_the_user_insists(golden: Path) -> None:
    train_to(golden, 10, every(5, 2))
    RUN.checkpoints.rename("elsewhere")
    measured = RUN.metrics.read_bytes()
    with pytest.raises(CheckpointError, match="latest names iter_0000010") as caught:
        trainer_of(golden, every(5, 2))
    assert "--from-scratch" in str(caught.value)
    RUN.latest.unlink()
    with pytest.raises(CheckpointError, match=r"events.jsonl records iter_0000010"):
        trainer_of(golden, every(5, 2))
    assert RUN.metrics.read_bytes() == measured
    CLOSING.close()
    trainer = trainer_of(golden, every(5, 2), from_scratch=True)
    assert trainer.state.iteration == 0
    trainer.begin()
    CLOSING.close()
    assert trainer_of(golden, every(5, 2)).state.iteration == 0, "once insisted, a restart before the first save is one"


def test_whoever_insists_on_random_weights_does_not_lose_a_run_that_can_go_on(golden: Path) -> None:
    train_to(golden, 10, every(5, 2))
    with pytest.raises(ConfigError, match="the run has a checkpoint to resume from"):
        trainer_of(golden, every(5, 2), from_scratch=True)
    assert RUN.iterations() == [5, 10]


def test_a_run_that_was_killed_before_its_first_save_begins_again(golden: Path) -> None:
    trainer = trainer_of(golden, every(5, 2))
    trainer.begin()
    trainer.record(trainer.step())
    CLOSING.close()
    assert trainer_of(golden, every(5, 2)).state.iteration == 0


def test_latest_set_back_by_hand_sets_aside_what_was_later_and_keeps_it(golden: Path) -> None:
    train_to(golden, 10, every(5, 1).replace("keep_last: 1", "keep_last: 2"))
    store.point_at(RUN, RUN.checkpoint(5))
    train_to(golden, 20, every(5, 1))
    assert [path.name for path in RUN.abandoned.iterdir()] == ["iter_0000010.stepped-back"]
    assert TrainState.read(RUN.abandoned / "iter_0000010.stepped-back").iteration == 10


def test_a_cleanup_that_fails_is_no_failed_save(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(*arguments: object) -> None:
        raise OSError(39, "Directory not empty", "checkpoints/iter_0000005")

    monkeypatch.setattr(store, "prune", prune)
    trainer = trainer_of(golden, every(5, 1))
    assert train(trainer) == "finished"
    assert events("save_failed") == []
    assert len(events("prune_failed")) == 4
    assert events("stop")[0]["saved"] is True


def test_a_rollback_that_finds_no_checkpoint_still_validates_and_saves_at_the_phase_end(golden: Path) -> None:
    keep = "checkpoint={keep_phase_ends: true}"
    trainer = trainer_of(golden, keep, "validation.every=5 iterations")
    conclude = trainer.guard.conclude

    def forced(result: Any) -> int | None:
        decision = conclude(result)
        return 72 if trainer.state.iteration == 10 else decision

    trainer.guard.conclude = forced  # type: ignore[method-assign]
    assert train(trainer) == "finished"
    assert RUN.iterations() == [10, 16, 20]
    validated = [line["iteration"] for line in read_jsonl(RUN.metrics) if line["kind"] == "validation"]
    assert 10 in validated


def test_the_count_of_rollbacks_survives_a_requeue(golden: Path) -> None:
    policy = "health.spikes={policy: rollback, window: 16, threshold: 6, withhold: 3}"
    trainer = trainer_of(golden, "checkpoint={every: 4 iterations}", policy)
    original = trainer.loader.batch

    def batch(clock: int) -> list[Any]:
        batches = original(clock)
        for micro in batches if clock == 72 else []:
            micro.labels.fill_(300)
        return batches

    trainer.loader.batch = batch  # type: ignore[method-assign]
    train(trainer)
    assert trainer.guard.detector.rollbacks == (4, 1)
    CLOSING.close()
    assert trainer_of(golden, "checkpoint={every: 4 iterations}", policy).guard.detector.rollbacks == (4, 1)


def test_a_branch_knows_what_its_trunk_withheld(golden: Path) -> None:
    Path("run").mkdir()
    Ledger.read(RUN, writes=True).add(16, 24, phase="balanced", iteration=3, reason="spike", loss=9.0)
    train_to(golden, 10, every(5, 3))
    config = load_config(golden, ["run_dir=branch", "init={from: run, load: all}"])
    build_trainer(make_plan(config), StopSignal(), CLOSING)
    rows = order_rows(config, 14, 12)
    assert [row["withheld"] for row in rows] == [None] * 2 + ["spike"] * 8 + [None] * 2
    assert Ledger.read(RunDir("branch")).entries == Ledger.read(RUN).entries


def test_a_branch_off_a_checkpoint_that_learned_what_is_withheld_since_is_refused(golden: Path) -> None:
    train_to(golden, 10, every(5, 3))
    Ledger.read(RUN, writes=True).add(64, 80, phase="balanced", iteration=11, reason="rollback")
    config = load_config(golden, ["run_dir=branch", "init={from: run, load: all}"])
    with pytest.raises(CheckpointError, match=r"learned from samples that its run now withholds: .*16 samples before"):
        build_trainer(make_plan(config), StopSignal(), CLOSING)
    CLOSING.close()
    config = load_config(golden, ["run_dir=branch", "init={from: run/checkpoints/iter_0000005, load: all}"])
    assert build_trainer(make_plan(config), StopSignal(), CLOSING).state.iteration == 5


def test_publishing_over_a_directory_leaves_no_moment_without_one(tmp_path: Path) -> None:
    import threading

    from megacode.base.files import publish

    target, absent, done = tmp_path / "model", [], threading.Event()
    target.mkdir()
    (target / "n").write_text("0")

    def watch() -> None:
        while not done.is_set():
            if not target.exists():
                absent.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        (fresh / "n").write_text(str(number))
        publish(fresh, target)
    done.set()
    watcher.join()
    assert absent == []
    assert (target / "n").read_text() == "199"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_whose_replacement_was_killed_is_put_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    hidden = run.checkpoints / ".iter_0000005.123.old"
    hidden.mkdir()
    store.recover(run)
    assert run.iterations() == [5]


def test_weights_after_a_step_back_are_those_of_a_run_that_never_fell(golden: Path) -> None:
    train_to(golden, 20, every(5, 3))
    RUN.path.rename("whole")
    train_to(golden, 10, every(5, 3))
    flip(some_shard(10))
    train_to(golden, 20, every(5, 3))
    mine, theirs = Weights(RUN.checkpoint(20)), Weights(RunDir("whole").checkpoint(20))
    assert len(mine) > 10
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_names_that_no_save_gave_are_neither_counted_nor_stumbled_over(golden: Path) -> None:
    train_to(golden, 10, every(5, 2))
    shutil.copytree(RUN.checkpoint(10), RUN.checkpoints / "iter_10")
    for name in ("iter_0000010", "iter_copy.damaged"):
        (RUN.abandoned / name).mkdir(parents=True)
    RUN.latest.write_text("iter_0000005\n")
    train_to(golden, 15, every(5, 2))
    assert RUN.iterations() == [10, 15]
    assert (RUN.checkpoints / "iter_10").is_dir()
    assert {path.name for path in RUN.abandoned.iterdir()} == {
        "iter_0000010", "iter_copy.damaged", "iter_0000010.stepped-back",
    }  # fmt: skip
    assert not events("save_failed")


def test_checkpoints_that_can_never_be_written_are_refused_at_the_start(golden: Path) -> None:
    RUN.create()
    RUN.checkpoints.symlink_to("gone")
    with pytest.raises(ConfigError, match="is a link to gone, which does not exist"):
        trainer_of(golden, every(5, 2))
    assert not RUN.metrics.exists()


def test_a_branch_refuses_a_ledger_that_is_left_from_another_start(golden: Path) -> None:
    train_to(golden, 5, every(5, 2))
    branch = RunDir("branch")
    branch.create()
    Ledger.read(branch, writes=True).add(8, 16, phase="balanced", iteration=2, reason="spike")
    written = branch.ledger.read_bytes()
    plan = make_plan(load_config(golden, ["run_dir=branch", "init={from: run, load: all}"]))
    with pytest.raises(CheckpointError, match="it withholds 8 samples before the branch begins") as caught:
        build_trainer(plan, StopSignal(), CLOSING)
    assert "move it away" in str(caught.value)
    assert branch.ledger.read_bytes() == written


def test_a_step_back_that_cannot_set_aside_is_the_users_to_fix_and_loses_nothing(golden: Path) -> None:
    train_to(golden, 10, every(5, 2))
    RUN.latest.write_text("iter_0000005\n")
    RUN.abandoned.touch()
    with pytest.raises(LaunchError, match="File exists"):
        trainer_of(golden, every(5, 2))
    assert RUN.iterations() == [5, 10]
    assert RUN.latest.read_text() == "iter_0000005\n"


def test_a_checkpoint_that_lost_its_name_to_a_kill_is_found_before_a_run_is_refused(golden: Path) -> None:
    train_to(golden, 10, every(5, 1))
    RUN.checkpoint(10).rename(RUN.checkpoints / ".iter_0000010.7.old")
    _, origin = check_ready(load_config(golden, ["run_dir=run", every(5, 1)]), 1)
    assert origin.checkpoint == RUN.checkpoint(10).absolute()


def test_what_a_run_starts_over_from_stays(golden: Path) -> None:
    train_to(golden, 5, every(5, 1))
    flip(some_shard(5))
    train_to(golden, 8, every(5, 1), from_scratch=True)
    assert RUN.iterations() == [8]
    assert [path.name for path in RUN.abandoned.iterdir()] == ["iter_0000005.restarted"]
