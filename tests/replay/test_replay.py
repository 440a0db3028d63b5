"""`megacode replay`: one iteration again, as it was. Real runs, real Megatron-core."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from rich.console import Console

from megacode.base.errors import ConfigError, LaunchError, MegacodeError
from megacode.base.files import RunDir, strict
from megacode.checkpoint.ledger import Ledger
from megacode.config.config_file import load_config
from megacode.mcore import groups
from megacode.metrics.reader import read_metrics
from megacode.planning.order import order_rows
from megacode.replay.comparison import agreement, render, worst_first
from megacode.replay.retrain import replay
from megacode.train.main import run as train
from tests.ranks import run_ranks

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden.yaml"
PROGRAM = Path(__file__).with_name("replay_program.py")
slow = pytest.mark.slow

FOUND = {"loss": 2.5, "loss_by_source": {"a": 2.0}, "grad_norm": 1.0, "samples_digest": 77, "skipped": False}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "bit for bit"),
        ({"seconds": 3.0}, "bit for bit"),
        ({"loss": 2.5 * (1 + 5e-5)}, "within tolerance"),
        ({"loss": 2.5 * (1 + 2e-4)}, "different"),
        ({"loss_by_source": {"a": 2.1}}, "different"),
        ({"loss_by_source": {"b": 2.0}}, "different"),
        ({"grad_norm": math.nan}, "different"),
        ({"samples_digest": 78}, "different"),
        ({"skipped": True}, "different"),
    ],
)
def test_a_replay_says_how_it_agrees_with_the_record(change: dict[str, object], expected: str) -> None:
    assert agreement(FOUND, FOUND | change, "fp32") == expected


def test_what_is_not_finite_agrees_with_itself_and_what_is_not_recorded_with_nothing() -> None:
    broken = FOUND | {"loss": math.nan, "grad_norm": math.nan}
    assert agreement(broken, dict(broken), "fp32") == "bit for bit"
    assert agreement(broken, strict(broken), "fp32") == "bit for bit", "in a file it is null"
    assert agreement(FOUND, strict(broken), "fp32") == "different"
    assert agreement(FOUND, None, "fp32") == "not recorded"
    assert agreement(FOUND, FOUND | {"loss": 2.51}, "bf16") == "within tolerance"


def test_the_worst_samples_come_first_and_those_that_are_not_finite_before_them() -> None:
    rows = [{"sample": k, "loss": loss} for k, loss in enumerate([1.0, math.nan, 3.0, math.inf, 2.0])]
    order = [row["sample"] for row in worst_first(rows)]
    assert set(order[:2]) == {1, 3}
    assert order[2:] == [2, 4, 0]


def module(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return module(PROGRAM)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, compare_losses: ModuleType) -> Path:
    path = tmp_path_factory.mktemp("replay") / "data"
    compare_losses.write_golden_data(path)
    return path


@pytest.fixture(scope="module")
def run_dir(data: Path, program: ModuleType) -> Path:
    """A run of 6 iterations with checkpoints after 3 and 6, whose second iteration is withheld."""
    path = data.parent / "one"
    run = RunDir(path).create()
    Ledger.read(run, writes=True).add(8, 16, phase="balanced", iteration=2, reason="spike")
    train(GOLDEN, program.overrides(data, path))
    return path


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    groups.stop()


def state_of(path: Path) -> dict[str, tuple[int, int]]:
    files = (item for item in path.rglob("*") if item.is_file())
    return {str(item.relative_to(path)): (item.stat().st_size, item.stat().st_mtime_ns) for item in files}


@slow
@pytest.mark.parametrize(
    ("iteration", "checkpoint", "withheld"),
    [(1, None, None), (2, None, "spike"), (3, None, None), (4, "iter_0000003", None), (6, "iter_0000003", None)],
)
def test_every_iteration_comes_out_as_it_was_recorded(
    run_dir: Path, iteration: int, checkpoint: str | None, withheld: str | None
) -> None:
    before = state_of(run_dir)
    document = replay(run_dir, iteration)
    assert document["agreement"] == "bit for bit"
    assert (Path(document["checkpoint"]).name if document["checkpoint"] else None) == checkpoint
    assert document["withheld"] == withheld
    assert document["replayed"]["skipped"] is (withheld is not None)
    path = run_dir / "replays" / f"iteration_{iteration}.json"
    assert json.loads(path.read_text()) == document
    changed = {name for name, facts in state_of(run_dir).items() if before.get(name) != facts}
    assert changed == {str(path.relative_to(run_dir))}


@slow
def test_each_sample_has_its_place_and_its_loss_and_each_parameter_its_gradient(
    run_dir: Path, program: ModuleType
) -> None:
    document = replay(run_dir, 5)
    rows = document["samples"]
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)
    kept = [{key: row[key] for key in row if key not in ("loss", "tokens", "text")} for row in rows]
    config = load_config(RunDir(run_dir).config)
    assert sorted(kept, key=lambda row: row["sample"]) == order_rows(config, 32, 8)
    facts = program.facts(document)
    assert facts["mean"] == pytest.approx(facts["loss"], rel=1e-6)
    assert facts["norm"] == pytest.approx(facts["grad_norm"], rel=1e-5)
    assert set(document["replayed"]["loss_by_source"]) == {row["source"] for row in rows}
    for source, loss in document["replayed"]["loss_by_source"].items():
        mine = [row for row in rows if row["source"] == source]
        tokens = sum(row["tokens"] for row in mine)
        assert sum(row["loss"] * row["tokens"] for row in mine) / tokens == pytest.approx(loss, rel=1e-6)
    norms = list(document["gradient_norms"].values())
    assert norms == sorted(norms, reverse=True)
    assert len(norms) == 2 * 6 + 3


@slow
def test_dropout_is_drawn_again_as_it_was(data: Path, program: ModuleType) -> None:
    path = data.parent / "dropout"
    dropout = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
    train(GOLDEN, program.overrides(data, path, *dropout))
    for iteration in (2, 6):
        assert replay(path, iteration)["agreement"] == "bit for bit"


@slow
def test_an_iteration_that_was_not_finite_is_not_finite_again(data: Path, program: ModuleType) -> None:
    path = data.parent / "broken"
    rate = "phases.balanced.learning_rate={schedule: constant, peak: 1.0e+30}"
    train(GOLDEN, program.overrides(data, path, rate))
    broken = next(line["iteration"] for line in read_metrics(RunDir(path).metrics) if line.get("skipped"))
    document = replay(path, broken)
    assert document["agreement"] == "bit for bit"
    assert document["withheld"] == "non-finite"
    assert math.isnan(next(iter(document["gradient_norms"].values())))
    with Console(record=True, width=120) as console:
        render(document, console)
    assert "nan" in console.export_text()


@slow
def test_a_damaged_checkpoint_is_passed_over_and_the_run_is_left_as_it_is(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(run_dir, copy)
    (shard,) = (path for path in RunDir(copy).checkpoint(3).iterdir() if path.stat().st_size > 100_000)
    with shard.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x55" * 8)
    latest = RunDir(copy).latest.read_text()
    document = replay(copy, 5)
    assert document["checkpoint"] is None
    assert document["agreement"] == "bit for bit"
    assert "skipping" in caplog.text
    assert RunDir(copy).latest.read_text() == latest
    assert (copy / "replays" / "iteration_5.json").exists()


@slow
def test_the_iteration_that_a_run_died_in_can_be_replayed(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "died"
    shutil.copytree(run_dir, copy)
    lines = RunDir(copy).metrics.read_text().splitlines(keepends=True)
    RunDir(copy).metrics.write_text("".join(line for line in lines if json.loads(line)["iteration"] < 5))
    document = replay(copy, 5, tmp_path / "found.json")
    assert document["agreement"] == "not recorded"
    assert document["replayed"]["loss"] == replay(run_dir, 5)["replayed"]["loss"]
    assert (tmp_path / "found.json").exists()


@slow
@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(0, "no iteration 0"), (-1, "no iteration -1"), (7, "no iteration 7: it has trained 6"), (99, "no iteration 99")],
)
def test_iterations_that_were_not_trained_are_errors(run_dir: Path, iteration: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        replay(run_dir, iteration)
    assert caught.value.problems[0].fix == "give a number from 1 to 6"


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such directory"):
        replay(tmp_path / "nowhere", 1)
    with pytest.raises(ConfigError, match=r"it has no run\.yaml"):
        replay(tmp_path, 1)


@slow
def test_too_few_processes_for_the_layout_are_an_error(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "two"
    shutil.copytree(run_dir, copy)
    raw = yaml.safe_load(RunDir(copy).config.read_text())
    RunDir(copy).config.write_text(yaml.safe_dump(raw | {"parallel": {"tensor": 2}}))
    with pytest.raises(LaunchError, match="1 processes are not divisible by tensor 2"):
        replay(copy, 2)


@slow
def test_a_run_whose_first_checkpoint_is_gone_says_what_it_needs(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "branch"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(RunDir(copy).checkpoints)
    raw = yaml.safe_load(RunDir(copy).config.read_text())
    raw["init"] = {"from": str(tmp_path / "gone"), "load": "all"}
    RunDir(copy).config.write_text(yaml.safe_dump(raw))
    with pytest.raises(MegacodeError, match="gone"):
        replay(copy, 2)


@slow
def test_the_worst_samples_are_shown_as_text(tmp_path: Path, program: ModuleType) -> None:
    from megacode.config.model import TokenizerConfig
    from megacode.data.indexed import IndexedDatasetWriter
    from megacode.data.tokenizer import load_tokenizer
    from megacode.data.train_tokenizer import train_tokenizer

    text = "the quick brown fox jumps over the lazy dog and goes on its way. " * 40
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    train_tokenizer("huggingface", [str(tmp_path / "text.jsonl")], 300, tmp_path / "tokenizer")
    tokens = load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tmp_path / "tokenizer"))).encode(text)
    for name in ("prose", "code"):
        with IndexedDatasetWriter(tmp_path / name, "uint16") as writer:
            for _ in range(30):
                writer.add(np.array(tokens), np.array([len(tokens)]))
    tokenizer = (f"tokenizer={{kind: huggingface, path: {tmp_path}/tokenizer}}", "model.vocab_size=null")
    train(GOLDEN, program.overrides(tmp_path, tmp_path / "run", "train.isolate_documents=false", *tokenizer))
    rows = replay(tmp_path / "run", 2)["samples"]
    assert all("the lazy dog" in row["text"] for row in rows[:5])
    assert [row["text"] for row in rows[5:]] == [None] * 3


@slow
def test_two_ranks_replay_what_they_trained_whatever_the_layout(data: Path, run_dir: Path, program: ModuleType) -> None:
    out = data.parent / "layouts"
    arguments = {"config": str(GOLDEN), "data": str(data), "out": str(out), "one": str(run_dir)}
    first, second = run_ranks(2, PROGRAM, "train_and_replay", arguments)
    assert first == second
    agreements = {name: facts["agreement"] for name, facts in first.items()}
    assert agreements.pop("one process") == "within tolerance"
    assert agreements == dict.fromkeys(program.LAYOUTS, "bit for bit")
    for name, facts in first.items():
        assert Path(facts["checkpoint"]).name == "iter_0000003"
        assert facts["mean"] == pytest.approx(facts["loss"], rel=1e-6), name
        assert facts["norm"] == pytest.approx(facts["grad_norm"], rel=1e-5), name
        tied = "tied" in name
        assert len(facts["norms"]) == 2 * 6 + (2 if tied else 3), name
    for name in ("dp2-whole", "tp2"):
        assert first[name]["norms"] == pytest.approx(first["dp2"]["norms"], rel=1e-4)


@slow
def test_the_command_shows_tables_or_json_and_its_mistakes_end_with_2(
    run_dir: Path, tmp_path: Path, megacode: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shown = megacode("replay", run_dir, "--iteration", 4, "--nproc", 1)
    assert shown.returncode == 0, shown.stderr
    assert "bit for bit" in shown.stdout
    assert "embedding.word_embeddings.weight" in shown.stdout
    wrong = megacode("replay", run_dir, "--iteration", 40, "--nproc", 2)
    assert wrong.returncode == 2
    assert "no iteration 40" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    kept = tmp_path / "notes.json"
    kept.write_text("written by hand")
    refused = megacode("replay", run_dir, "--iteration", 4, "--out", kept)
    assert refused.returncode == 2
    assert "already exists" in refused.stderr
    assert kept.read_text() == "written by hand"
    assert megacode("replay", run_dir, "--iteration", 4, "--nproc", 1, "--out", kept, "--overwrite").returncode == 0
    assert json.loads(kept.read_text())["agreement"] == "bit for bit"


@slow
def test_a_record_that_is_not_reproduced_ends_the_command_with_3(
    run_dir: Path, tmp_path: Path, megacode: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    copy = tmp_path / "doubtful"
    shutil.copytree(run_dir, copy)
    lines = [json.loads(line) for line in RunDir(copy).metrics.read_text().splitlines()]
    changed = [line | {"loss": 9.9} if line["iteration"] == 4 else line for line in lines]
    RunDir(copy).metrics.write_text("".join(json.dumps(line) + "\n" for line in changed))
    done = megacode("replay", copy, "--iteration", 4, "--json")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["agreement"] == "different"
    assert document["recorded"]["loss"] == 9.9
    assert (document["recorded_ranks"], document["ranks"]) == (1, 1)
    for ranks, said in ((1, False), (2, True)):
        with Console(record=True, width=160) as console:
            render(document | {"recorded_ranks": ranks}, console)
        assert ("--nproc 2 adds in the same order" in console.export_text()) == said
    with Console(record=True, width=50) as narrow:
        render(document, narrow)
    assert f"{document['checkpoint']}: different" in narrow.export_text()  # a path is never cut
