"""What Muon is not combined with, and which optimizer a phase has."""

from __future__ import annotations

from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.config.config_file import validate
from megacode.config.run import RunConfig

RATE = {"schedule": "constant", "peak": 1e-3}


def config(*optimizers: str | None, **sections: Any) -> RunConfig:
    phases = [
        {"name": str(number), "iterations": 10, "blend": {"text": 1}, "learning_rate": RATE}
        | ({"optimizer": optimizer} if optimizer else {})
        for number, optimizer in enumerate(optimizers)
    ]
    raw = {
        "name": "t",
        "model": {"preset": "llama-1b"},
        "sources": {"text": {"path": "text", "tokens": "1B"}},
        "phases": phases,
        "train": {"seq_length": 64, "global_batch_size": 8},
    }
    return validate(raw | sections, "test.yaml")


def test_a_phase_overrides_the_runs_optimizer() -> None:
    mixed = config(None, "muon")
    assert [mixed.optimizer_in(phase) for phase in mixed.phases] == ["adamw", "muon"]
    assert mixed.uses_muon
    assert not mixed.shards_as_mcore
    assert config(None).shards_as_mcore
    whole = config("adamw", None, train={"seq_length": 64, "global_batch_size": 8, "optimizer": "muon"})
    assert [whole.optimizer_in(phase) for phase in whole.phases] == ["adamw", "muon"]


def test_what_cannot_work_is_refused_at_once_and_named() -> None:
    overlaps = {"overlap_grad_reduce": True, "overlap_param_gather": True}
    fp8 = {"dtype": "bf16", "fp8": {"recipe": "tensorwise", "param_gather": True}}
    with pytest.raises(ConfigError) as caught:
        config("adamw", "muon", parallel=overlaps, precision=fp8)
    assert [problem.where for problem in caught.value.problems] == ["test.yaml: phases[1].optimizer"] * 2 or [
        "phases[1].optimizer" in problem.where for problem in caught.value.problems
    ] == [True, True]
    config("adamw", "muon", parallel={"overlap_grad_reduce": True}, precision={**fp8, "fp8": {"recipe": "tensorwise"}})
    config("adamw", parallel=overlaps, precision=fp8)
