"""Recomputed activations save memory and change nothing: not one bit of a loss, a gradient or a random number."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

DROPPING = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
ALONE: dict[str, dict[str, Any]] = {
    "sequential": {"model": {"block": "sequential"}},
    "parallel": {"model": {"block": "parallel"}},
    "dropout": {"model": DROPPING},
    "isolated": {"model": DROPPING, "train": {"isolate_documents": True}},
    "bf16": {"dtype": "bf16"},
}
TWO: dict[str, dict[str, Any]] = {
    "tp2": {"model": DROPPING, "parallel": {"tensor": 2}},
    "tp2-sp": {"model": DROPPING, "parallel": {"tensor": 2, "sequence_parallel": True}},
    "pp2": {"model": DROPPING, "parallel": {"pipeline": 2}},
    "pp2-vpp2": {"model": DROPPING, "parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "cp2": {"model": DROPPING, "parallel": {"context": 2}},
    "cp2-isolated": {"train": {"isolate_documents": True}, "parallel": {"context": 2}},
    "dp2-overlap": {
        "parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
    },
}


@pytest.fixture(scope="module")
def two(on_ranks: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return on_ranks(2, "recomputations", {"cases": TWO})


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", ALONE)
def test_one_process_learns_the_same_to_the_last_bit(program: ModuleType, case: str) -> None:
    found = program.recomputations({case: ALONE[case]})[case]
    assert found["selective"] == found["none"]
    assert found["full"] == found["none"]


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_ranks_learn_the_same_to_the_last_bit(two: list[dict[str, Any]], case: str) -> None:
    assert len(two) == 2
    for rank in two:
        assert rank[case]["selective"] == rank[case]["none"]
        assert rank[case]["full"] == rank[case]["none"]


def kept(program: ModuleType, way: str, model: dict[str, Any]) -> tuple[int, list[int]]:
    """Return the bytes that a forward pass keeps for the backward pass, and calls of attention's kernel in each."""
    from megacode.mcore import attention

    parts = program.started(program.run_config(model=model, parallel={"recompute": way}))
    (chunk,) = parts.chunks
    chunk.train()
    batch = program.microbatch(0, 0)
    storages: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    calls = [0]
    kernel = attention.CausalSelfAttention._attend

    def counting(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        return kernel(*arguments)

    attention.CausalSelfAttention._attend = counting  # type: ignore[method-assign]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = chunk(batch.tokens, None, None, labels=batch.labels).sum()
        forward = calls[0]
        loss.backward()
    finally:
        attention.CausalSelfAttention._attend = kernel  # type: ignore[method-assign]
    return sum(storages.values()), [forward, calls[0] - forward]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", [{}, DROPPING], ids=["plain", "dropout"])
def test_less_is_kept_and_attention_runs_again(program: ModuleType, model: dict[str, Any]) -> None:
    (none, once), (selective, twice), (full, again) = (
        kept(program, way, model) for way in ("none", "selective", "full")
    )
    assert once == [4, 0]
    assert twice == again == [4, 4]
    assert full < 0.5 * selective < 0.5 * none
    # What selective recomputation leaves out of each of 4 layers is at least attention's output: 2 x 32 x 32 fp32.
    assert none - selective >= 4 * 2 * 32 * 32 * 4


@pytest.mark.usefixtures("alone")
def test_evaluation_recomputes_nothing(program: ModuleType) -> None:
    from megacode.mcore.step import evaluate

    plain, full = (program.started(program.run_config(parallel={"recompute": way})) for way in ("none", "full"))
    batches = program.microbatches(plain, 0)
    assert evaluate(full, batches, 2) == evaluate(plain, batches, 2)
