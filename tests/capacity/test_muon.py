"""Owners of matrices, and what the plan says of a run with Muon."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.capacity.buffers import countable, rank_parameters, state_elements
from megacode.capacity.hardware import load_hardware
from megacode.capacity.interruptions import checkpoint_bytes
from megacode.capacity.layout import Layout
from megacode.capacity.memory import fullest
from megacode.capacity.owners import loads, owners, run_of
from megacode.capacity.speed import step_time
from megacode.config.config_file import validate
from tests.mcore.decoders import MODELS

SIZES = st.dictionaries(st.text("abc0123456789.", min_size=1, max_size=4), st.integers(1, 1000), max_size=30)


@given(SIZES, st.integers(1, 9), st.randoms())
def test_owners_hold_about_the_same_whatever_the_order_of_the_names(sizes: Any, ranks: int, random: Any) -> None:
    found, held = owners(sizes, ranks), loads(sizes, ranks)
    names = list(sizes)
    random.shuffle(names)
    assert owners({name: sizes[name] for name in names}, ranks) == found
    assert sum(held) == sum(sizes.values())
    assert max(held) - min(held) <= max(sizes.values(), default=0)
    # Names break ties only: equal sizes under other names give the same loads.
    assert loads({f"x{number}": size for number, size in enumerate(sizes.values())}, ranks) == held


@given(st.integers(0, 500), st.integers(1, 40))
def test_runs_follow_each_other_and_none_is_longer_than_the_first(total: int, ranks: int) -> None:
    runs = [run_of(total, ranks, rank) for rank in range(ranks)]
    assert runs[0][0] == 0
    assert runs[-1][1] == total
    assert all(one[1] == other[0] for one, other in pairwise(runs))
    assert all(0 <= last - first <= runs[0][1] for first, last in runs)


def placed(*optimizers: str, gpus: int = 16, model: dict[str, Any] | None = None, **parallel: Any) -> Layout:
    rate = {"schedule": "constant", "peak": 1e-3}
    phases = [
        {"name": str(n), "tokens": "1B", "blend": {"text": 1}, "learning_rate": rate, "optimizer": optimizer}
        for n, optimizer in enumerate(optimizers)
    ]
    raw = {
        "name": "t",
        "model": {"preset": "llama-8b", **(model or {})},
        "sources": {"text": {"path": "text", "tokens": "9B"}},
        "phases": phases,
        "train": {"seq_length": 8192, "global_batch_size": 512},
        "parallel": parallel,
    }
    run = validate(raw, "test.yaml")
    return Layout(run, gpus, run.model.vocab_size or 0)


def test_muon_saves_a_third_of_the_state_of_matrices() -> None:
    whole = {"tensor": 2, "distributed_optimizer": False}
    adam, muon = (countable(placed(name, **whole), 0) for name in ("adamw", "muon"))
    place = placed("muon", **whole)
    matrices = 32 * (4096 * (32 + 16) * 128 + 4096 * 4096 + 3 * 4096 * 14336) // 2
    assert adam.optimizer - muon.optimizer == 4 * matrices
    assert checkpoint_bytes(placed("adamw").config, 128_256) - checkpoint_bytes(place.config, 128_256) == 8 * matrices
    # A phase with AdamW needs its moments: the plan counts the phase that needs most.
    hardware = load_hardware("H100")
    mixed, plain = (fullest(placed(*names, tensor=2), hardware, "local") for names in (("muon", "adamw"), ("muon",)))
    assert mixed.optimizer > plain.optimizer


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_parameter_has_its_state_counted(model: dict[str, Any]) -> None:
    for parallel in ({}, {"tensor": 2, "pipeline": 2}):
        place = placed("muon", model=model, distributed_optimizer=False, **parallel)
        assert sum(state_elements(place, 0, None)) == rank_parameters(place, 0).total


def test_muon_costs_operations_and_communication() -> None:
    hardware = load_hardware("H100")
    parallel = {"tensor": 2, "overlap_grad_reduce": True}
    adam, muon = (step_time(placed(name, **parallel), hardware, "local") for name in ("adamw", "muon"))
    assert muon.optimizer > adam.optimizer
    assert muon.tensor_parallel > adam.tensor_parallel
    assert muon.data_parallel > adam.data_parallel
    assert muon.matrices == adam.matrices
