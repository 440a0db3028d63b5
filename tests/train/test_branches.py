"""Real branches of a real trunk: what they train is what a run trains that leaves its trunk there by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.status.sample_proof import prove_samples
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal

pytestmark = pytest.mark.slow

RATE = {"schedule": "cosine", "peak": 5.0e-3, "final": 1.0e-3, "warmup": "3 iterations"}
TRUNK: dict[str, Any] = {
    "name": "trunk", "iterations": 12, "blend": {"prose": 0.7, "code": 0.3}, "learning_rate": RATE,
}  # fmt: skip
DECAY = {
    "name": "decay", "iterations": 4, "blend": {"prose": 0.2, "code": 0.8},
    "learning_rate": {"schedule": "linear", "final": 0},
}  # fmt: skip
Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def trained(golden: Path) -> Train:
    """Return a function that trains the golden model in a run of a name and phases, and returns its records."""

    def run(name: str, phases: list[dict[str, Any]], *overrides: str, **more: bool) -> list[dict[str, Any]]:
        text = {"base": str(golden), "name": name, "phases": phases, "checkpoint": {"every": "2 iterations"}}
        path = Path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(text))
        with ExitStack() as closing:
            train(build_trainer(make_plan(load_config(path, overrides)), StopSignal(), closing, **more))
        return [line for line in read_metrics(RunDir(f"runs/{name}").metrics) if line["kind"] == "train"]

    return run


def left_at(iterations: int) -> list[dict[str, Any]]:
    return [TRUNK | {"until": f"{iterations} iterations"}, DECAY]


def of(run: str, iteration: int) -> str:
    return f"init={{from: {RunDir(f'runs/{run}').checkpoint(iteration)}, load: all}}"


@pytest.mark.parametrize("extra", [(), ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")])
def test_a_branch_is_the_run_that_leaves_its_trunk_there(trained: Train, extra: tuple[str, ...]) -> None:
    trunk = trained("trunk", [TRUNK], *extra)
    whole = trained("whole", left_at(6), *extra)
    at_the_cut = trained("at-the-cut", left_at(6), of("trunk", 6), *extra)
    before_it = trained("before-it", left_at(6), of("trunk", 4), *extra)
    assert [record["iteration"] for record in at_the_cut] == [7, 8, 9, 10]
    assert [record["iteration"] for record in before_it] == [5, 6, 7, 8, 9, 10]
    for records in (whole[:6], before_it[:2]):
        for record in records:
            assert record["loss"] == trunk[record["iteration"] - 1]["loss"]
    for records in (at_the_cut, before_it):
        for record in records:
            same = whole[record["iteration"] - 1]
            for key in ("loss", "grad_norm", "learning_rate", "samples_digest", "tokens_by_source", "consumed_samples"):
                assert record[key] == same[key], (record["iteration"], key)


def test_a_branch_resumes_its_own_checkpoints_and_refuses_one_behind_its_cut(trained: Train) -> None:
    trained("trunk", [TRUNK])
    first = trained("branch", left_at(6), of("trunk", 6))
    longer = [
        *left_at(6),
        {"name": "more", "iterations": 2, "blend": {"code": 1}, "learning_rate": DECAY["learning_rate"]},
    ]
    again = trained("branch", longer, of("trunk", 6))
    assert again[: len(first)] == first
    assert [record["iteration"] for record in again] == [7, 8, 9, 10, 11, 12]
    proof = prove_samples(Path("runs/branch"))
    assert (proof["equal"], proof["complete"], proof["differing"]) == (6, True, [])
    with pytest.raises(CheckpointError, match=r"(?s)ends it after 40.*start from \S*iter_0000004, or raise until"):
        trained("early", left_at(5), of("trunk", 6))


def test_a_changed_past_goes_on_only_if_that_is_accepted(trained: Train) -> None:
    trained("trunk", [TRUNK])
    other = [TRUNK | {"iterations": 14, "blend": {"prose": 0.5, "code": 0.5}}]
    with pytest.raises(CheckpointError, match="or resume with --accept-changed-past"):
        trained("trunk", other)
    records = trained("trunk", other, accept_changed_past=True)
    assert [record["iteration"] for record in records] == list(range(1, 15))
    assert "repeated" in RunDir("runs/trunk").events.read_text()
    assert trained("trunk", other) == records
