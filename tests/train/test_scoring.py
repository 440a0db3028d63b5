"""Scores while training: real children export and score real checkpoints; training neither waits nor fails for them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.base.errors import ConfigError
from megacode.base.files import RunDir, read_jsonl
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import prune
from megacode.config.config_file import dump_config, load_config
from megacode.config.evaluate import Evaluate
from megacode.data.indexed import IndexedDatasetWriter
from megacode.metrics.reader import read_metrics
from megacode.metrics.sinks import Events
from megacode.planning.run_plan import make_plan
from megacode.planning.suite import check_scoring
from megacode.train.calendar import Iteration
from megacode.train.scoring import Scoring
from megacode.train.scoring_process import command, environment
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.start_checks import most_at_once
from megacode.train.trainer import Trainer
from tests.limits import HANG

Megacode = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
CLOSING = ExitStack()
CONFIG: dict[str, Any] = {
    "name": "small",
    "model": {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4},
    "tokenizer": {"kind": "huggingface", "path": "tokenizer"},
    "sources": {"text": {"path": "text"}},
    "validation": {"fraction": 0},
    "phases": [
        {"name": "first", "iterations": 5, "blend": {"text": 1},
         "learning_rate": {"schedule": "constant", "peak": 1e-3}},
        {"name": "second", "iterations": 40, "blend": {"text": 1}, "learning_rate": {"schedule": "constant"}},
    ],
    "train": {"seq_length": 64, "global_batch_size": 4, "micro_batch_size": 2},
    "precision": {"dtype": "fp32"},
    "checkpoint": {"every": "10 iterations", "keep_last": 1, "keep_phase_ends": False},
    "evaluate": {"suite": "suite.yaml"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    CLOSING.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a data set of the project's own pages, and a suite that asks for bits per byte of one of them."""
    place, pages = tmp_path_factory.mktemp("scoring"), sorted((ROOT / "docs").glob("*.md"))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(page) for page in pages], made)
    (place / "tokenizer").mkdir()
    tokenizer.save(str(place / "tokenizer" / "tokenizer.json"))
    with IndexedDatasetWriter(place / "text", np.uint16) as writer:
        for page in pages:
            ids = np.array([*tokenizer.encode(page.read_text()).ids, 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    (place / "page.txt").write_text(pages[0].read_text()[:2000])
    (place / "suite.yaml").write_text("name: tiny\nbits_per_byte: {files: [page.txt]}\n")
    return place


@pytest.fixture
def config(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's config, in a working directory of its own."""
    path = tmp_path / "run.yaml"
    document = {**CONFIG, "sources": {"text": {"path": str(files / "text")}}}
    document |= {"tokenizer": {"kind": "huggingface", "path": str(files / "tokenizer")}, "run_dir": "run"}
    path.write_text(yaml.safe_dump(document | {"evaluate": {"suite": str(files / "suite.yaml")}}))
    monkeypatch.chdir(tmp_path)
    return path


def trainer_of(config: Path, *overrides: str) -> Trainer:
    CLOSING.close()  # a start before this one would end the process, once it sees that its lock is gone
    return build_trainer(make_plan(load_config(config, overrides)), StopSignal(), CLOSING)


def train_until(trainer: Trainer, done: Callable[[], bool]) -> Iteration:
    """Train, saving where it is due, until something has happened; return the last iteration."""
    iteration = None
    end = time.monotonic() + HANG
    while not done():
        assert time.monotonic() < end, "it did not happen"
        assert not trainer.finished
        iteration = trainer.step()
        trainer.record(iteration)
        if trainer.save_due(iteration):
            trainer.save(iteration)
        assert trainer.agree(iteration) is None
        time.sleep(0.3)  # for the child, which has the lower priority
    assert iteration is not None
    return iteration


def lines(kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(RunDir("run").metrics) if line["kind"] == kind]


def events(name: str) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(RunDir("run").events) if event["event"] == name]


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_is_scored(
    config: Path, megacode: Megacode, foreign_modules: Callable[[Path], None]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    foreign_modules(Path.cwd())  # neither the ranks nor the process that scores import any
    points = ("evaluate.every=23 iterations", "evaluate.at_phase_ends=false")
    done = megacode("train", "run.yaml", *points, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    run, (begun,), (ended,) = RunDir("run"), events("evaluation_start"), events("evaluation")
    assert begun["checkpoint"] == ended["checkpoint"] == "iter_0000023"
    assert 23 <= begun["iteration"] < ended["iteration"], "training did not wait"
    written = list(read_metrics(run.metrics))
    (score,) = [line for line in written if line["kind"] == "score"]
    assert (score["iteration"], score["consumed_samples"], score["consumed_tokens"]) == (23, 92, 92 * 64)
    assert max(line["iteration"] for line in written[: written.index(score)]) == ended["iteration"]
    assert score["scores"]["bits_per_byte_page.txt"]["bits_per_byte"] > 0
    assert run.iterations() == [45], "the checkpoint was spared while it was read, and went afterwards"
    assert not list(run.hf.rglob("*.safetensors")), "an export for scores alone does not stay"
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    assert [scalar.step for scalar in board.Scalars("score/tiny/bits_per_byte_page.txt/bits_per_byte")] == [23]
    assert [scalar.step for scalar in board.Scalars("train/loss")] == list(range(1, 46))

    again = megacode("train", "run.yaml", *points)
    assert again.returncode == 0, again.stderr
    assert lines("score") == [score]
    assert len(events("evaluation_start")) == 1, "nothing was owed"
    rows = megacode("status", "run").stdout
    assert "tiny at iteration 23: bits_per_byte_page.txt bits_per_byte" in " ".join(rows.split())


@pytest.mark.slow
def test_a_killed_child_is_told_and_a_stopped_run_makes_up_for_it(config: Path, megacode: Megacode) -> None:
    longer = ("phases.second.iterations=20000", "checkpoint.keep_phase_ends=true")
    trainer = trainer_of(config, *longer)
    trainer.begin()
    train_until(trainer, lambda: bool(events("evaluation_start")))
    (child,) = trainer.scoring._children
    os.killpg(child.process.pid, signal.SIGKILL)
    last = train_until(trainer, lambda: bool(events("evaluation_failed")))
    assert "killed by SIGKILL" in events("evaluation_failed")[0]["error"]  # after its last line, if it has said one
    assert "iter_0000005" in [path.name for path in RunDir("run").checkpoints.iterdir()]
    trainer.end("signal", last, first=0)
    CLOSING.close()

    trainer = trainer_of(config, *longer)
    trainer.begin()
    last = train_until(trainer, lambda: len(events("evaluation_start")) == 2)
    assert events("evaluation_start")[1]["checkpoint"] == "iter_0000005"
    (child,) = trainer.scoring._children
    begun = time.monotonic()
    trainer.end("signal", last, first=last.number)
    assert time.monotonic() - begun < 10
    assert is_gone(child.process.pid)
    CLOSING.close()
    assert events("evaluation_stopped")[0]["checkpoint"] == "iter_0000005"
    assert not lines("score")

    done = megacode("evaluate", "run")
    assert done.returncode == 0, done.stderr
    names = [path.name for path in sorted(RunDir("run").checkpoints.glob("iter_*"))]
    assert [RunDir.iteration_name(line["iteration"]) for line in lines("score")] == names
    assert not RunDir("run").lock.exists()
    before = RunDir("run").metrics.read_bytes()
    assert "every model already has scores" in megacode("evaluate", "run/checkpoints").stdout
    assert RunDir("run").metrics.read_bytes() == before


@pytest.mark.slow
def test_a_suite_that_fails_does_not_end_the_run(config: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("tasks: [no_such_task]\nlm_eval: [piqa]\n")
    trainer = trainer_of(config, "phases.second.iterations=20000", f"evaluate.suite={tmp_path}/wrong.yaml")
    trainer.begin()
    last = train_until(trainer, lambda: bool(events("evaluation_failed")))
    assert trainer.end("signal", last, first=0) == "signal"
    (failed,) = events("evaluation_failed")
    assert "there is no task 'no_such_task'" in failed["error"]
    assert "exit code 2" in failed["error"]
    assert "Config error: " in (RunDir("run").path / failed["log"]).read_text()
    assert failed["iteration"] > events("evaluation_start")[0]["iteration"]


def test_ranks_that_wait_for_scores_leave_the_cores_to_them(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    trainer = trainer_of(config)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr("megacode.train.trainer.time", clock)
    monkeypatch.setattr(Scoring, "owing", property(lambda self: len(pauses) < 3))
    assert trainer.config.evaluate is not None
    trainer._wait_for_scores(trainer.config.evaluate)
    assert len(pauses) == 3
    assert min(pauses) >= 0.1


def test_the_newest_goes_first_and_two_checkpoints_are_spared(config: Path) -> None:
    run = RunDir("run").create()
    for iteration in (10, 15, 20):
        run.checkpoint(iteration).mkdir(parents=True)
    scoring = Scoring(run, load_config(config).evaluate, {5, 10, 15, 20, 25}, Events(run), lambda clock: 0)
    CLOSING.callback(scoring.close)
    scoring.begin(0)
    scoring.expect(5)
    scoring.poll(TrainState(iteration=6, consumed_samples=24), 5)
    assert "deleted by keep_last before it could be scored" in events("evaluation_failed")[0]["error"]
    for iteration in (7, 10, 15, 20, 25):
        scoring.expect(iteration)
    scoring.poll(TrainState(iteration=26, consumed_samples=104), 20)
    assert [event["checkpoint"] for event in events("evaluation_start")] == ["iter_0000020"]
    assert events("evaluation_start")[0]["waiting"] == 3
    assert scoring.spared == {20, 25}
    policy = load_config(config).checkpoint
    (run.checkpoint(30)).mkdir()
    prune(run, policy, scoring.spared)
    assert run.iterations() == [20, 30]
    CLOSING.close()
    assert events("evaluation_stopped")[0]["checkpoint"] == "iter_0000020"
    assert not scoring.spared


def test_a_rollback_ends_the_scoring_of_what_it_takes_back(config: Path) -> None:
    run = RunDir("run").create()
    run.checkpoint(10).mkdir(parents=True)
    scoring = Scoring(run, load_config(config).evaluate, {10, 15}, Events(run), lambda clock: 0)
    CLOSING.callback(scoring.close)
    scoring.begin(0)
    for iteration in (10, 15):
        scoring.expect(iteration)
    scoring.poll(TrainState(iteration=16, consumed_samples=64), 15)
    assert scoring.owing
    scoring.begin(8)
    assert not scoring.owing
    assert not scoring.spared
    (stopped,) = events("evaluation_stopped")
    assert (stopped["checkpoint"], stopped["reason"]) == ("iter_0000010", "the run has rolled back to before it")


def test_a_child_knows_nothing_of_the_ranks() -> None:
    mine = {
        "RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "1", "SLURM_PROCID": "0",
        "SLURM_STEP_ID": "1", "SLURM_CONF": "c", "TORCHELASTIC_RUN_ID": "x", "PATH": "/bin", "OMP_NUM_THREADS": "64",
    }  # fmt: skip
    kept = environment(Evaluate(threads=1), mine)
    assert {
        "PATH": "/bin",
        "SLURM_CONF": "c",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }.items() <= kept.items()
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"} & set(kept)
    assert "CUDA_VISIBLE_DEVICES" not in environment(Evaluate(device="cuda:1"), mine)
    assert environment(Evaluate(where="slurm"), mine) == {"PATH": "/bin", "SLURM_CONF": "c"}


def test_a_child_is_the_command_that_a_user_would_give() -> None:
    config = Evaluate(suite="to-code", limit=8, without=("storycloze",), keep_exports=True)
    assert command(config, Path("run/checkpoints/iter_0000005")) == [
        "evaluate", "run/checkpoints/iter_0000005", "--suite", "to-code", "--limit", "8", "--without", "storycloze",
        "--device", "cpu", "--keep-exports",
    ]  # fmt: skip
    job = command(Evaluate(where="slurm", sbatch=("--partition=debug",)), Path("c"))
    assert job == ["job", "score", "c", "--suite", "demo", "--sbatch=--partition=debug"]


def test_points_are_phase_ends_and_multiples_and_the_disk_has_room_for_them(config: Path) -> None:
    plan = make_plan(load_config(config, ["evaluate.every=20 iterations"]))
    assert plan.scored() == {5, 20, 40, 45}
    assert make_plan(load_config(config, ["evaluate.every=80 samples"])).scored() == {5, 20, 40, 45}
    assert most_at_once(plan) == 4, "the last, the one being written, the one being scored, the next"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("suite=demoo", "did you mean demo?"),
        ("at_phase_ends=false", "no checkpoint would be scored"),
        ("suite=demo", "none are held out"),
        ("sbatch=[--partition=x]", "add where: slurm"),
        ("every=1000", "has no unit"),
        ("device=gpu", "device"),
    ],
)
def test_a_wrong_section_is_refused_with_a_fix(config: Path, change: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate|validation") as caught:
        load_config(config, [f"evaluate.{change}"])
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_run_may_wait_for_no_scores_at_all(config: Path, tmp_path: Path) -> None:
    for given, seconds in (("0", 0.0), ("90s", 90.0), ("1h30m", 5400.0)):
        found = load_config(config, [f"evaluate.wait={given}"])
        assert found.evaluate is not None
        assert found.evaluate.wait == seconds
        (tmp_path / "again.yaml").write_text(dump_config(found))
        assert load_config(tmp_path / "again.yaml") == found


def test_a_run_without_a_tokenizer_cannot_be_scored(golden: Path) -> None:
    with pytest.raises(ConfigError, match="add tokenizer: ") as caught:
        load_config(golden, ["evaluate={suite: to-code}"])
    assert "evaluate" in str(caught.value)


def test_a_suite_file_that_is_not_there_is_refused_before_a_rank_starts(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no suite file"):
        check_scoring(load_config(config, ["evaluate.suite=nowhere.yaml"]))
    (tmp_path / "odd.yaml").write_text("- piqa\n")
    with pytest.raises(ConfigError, match="contains no suite"):
        check_scoring(load_config(config, ["evaluate.suite=odd.yaml"]))
