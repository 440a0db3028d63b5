"""A checkpoint keeps what was learned otherwise before, and nothing else of former configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.checkpoint.former_configs import config_before, learned_otherwise
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config
from megacode.config.run import RunConfig

MakeConfig = Callable[..., RunConfig]
FP8 = {"recipe": "delayed", "format": "hybrid"}


def made(make_config: MakeConfig, **changes: Any) -> str:
    return dump_config(make_config([(80, {"text": 1})], batch=8, seq_length=8, **changes))


def test_resumes_that_teach_the_same_leave_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    state = TrainState(config=made(make_config), consumed_samples=8)
    others: list[dict[str, Any]] = [
        {"name": "other"},
        {"run_dir": "elsewhere"},
        {"train": {"micro_batch_size": 4}},
        {"checkpoint": {"keep_last": 3, "every": "7 iterations"}},
        {"validation": {"every": "3 iterations"}},
    ]
    for change in others * 3:
        state.continue_with(made(make_config, **change))
    assert state.former_configs == []
    assert "every: 3 iterations" in state.config
    state.write(tmp_path)
    assert "former_configs" not in (tmp_path / "megacode.json").read_text()


def test_what_was_learned_otherwise_is_kept_and_only_that(make_config: MakeConfig, tmp_path: Path) -> None:
    first = made(make_config, train={"clip_grad": 1.0}, name="a")
    second = made(make_config, train={"clip_grad": 0.5}, name="b")
    third = made(make_config, train={"clip_grad": 0.5}, precision={"fp8": FP8}, init={"from": "x"}, name="c")
    state = TrainState(config=first)
    state.continue_with(second)  # nothing was read yet
    assert state.former_configs == []
    state.config, state.consumed_samples = first, 8
    state.continue_with(second)
    assert state.former_configs == [{"consumed_samples": 8, "was": [(["train", "clip_grad"], 1.0)]}]
    state.consumed_samples = 16
    state.continue_with(third)
    state.write(tmp_path)
    read = TrainState.read(tmp_path)
    assert [clock for clock, _ in read.formers()] == [8, 16]
    for (_, former), given in zip(read.formers(), (first, second), strict=True):
        expected = yaml.safe_load(given) | {key: yaml.safe_load(third)[key] for key in ("name", "run_dir")}
        assert yaml.safe_load(former) == expected
    assert len(str(read.former_configs)) < len(third)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"precision": {"fp8": "none"}}, {"precision": {"fp8": FP8}}),
        ({"precision": {"fp8": FP8}}, {"precision": {"fp8": "none"}}),
        ({"sources": ["a.b"]}, {}),
        ({}, {"sources": ["a.b"]}),
        ({"caps": {"text": 3.0}}, {}),
        ({"train": {"batch_ramp": {"start": 4, "increment": 4, "samples": 16}}}, {}),
    ],
)
def test_the_former_config_is_what_it_was(make_config: MakeConfig, before: Any, after: Any) -> None:
    former, now = made(make_config, **before), made(make_config, **after)
    was = learned_otherwise(former, now)
    assert was
    assert yaml.safe_load(config_before(was, now)) == yaml.safe_load(former)
