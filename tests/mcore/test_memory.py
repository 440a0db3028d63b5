"""The plan's bytes are those of real parts, and its list of activations is what real iterations keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megacode.capacity.activations import head_tensors, layer_tensors, per_token
from megacode.capacity.buffers import countable
from megacode.capacity.costs import parameters
from megacode.capacity.layout import Layout

PROGRAM = Path(__file__).with_name("memory_program.py")
TIED = {"share_embeddings_and_output_weights": True, "block": "parallel", "normalization": "LayerNorm"}
SHARDED = {"distributed_optimizer": True}
MUON = {"optimizer": "muon"}
HOLDINGS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "dp2-sharded": {"parallel": SHARDED},
    "dp2-sharded-bf16": {"parallel": {**SHARDED, "overlap_grad_reduce": True}, "dtype": "bf16"},
    "dp2-bf16": {"dtype": "bf16"},
    "tp2": {"parallel": {"tensor": 2}},
    "tp2-sp-sharded-bf16": {"parallel": {**SHARDED, "tensor": 2, "sequence_parallel": True}, "dtype": "bf16"},
    "pp2-tied-sharded": {"parallel": {**SHARDED, "pipeline": 2}, "model": TIED},
    "pp2-vpp2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "muon-dp2": {"train": MUON},
    "muon-dp2-sharded": {"train": MUON, "parallel": SHARDED},
    "muon-pp2-tied-sharded-bf16": {
        "train": MUON,
        "parallel": {**SHARDED, "pipeline": 2},
        "model": TIED,
        "dtype": "bf16",
    },
    "muon-cp2-sharded-bf16": {"train": MUON, "parallel": {**SHARDED, "context": 2}, "dtype": "bf16"},
    "muon-tp2": {"train": MUON, "parallel": {"tensor": 2}},
    "cp2-sharded": {"parallel": {**SHARDED, "context": 2}, "model": {"hidden_size": 36, "ffn_hidden_size": 50}},
}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "dp2-parallel-bf16": {"model": TIED, "dtype": "bf16"},
    "dp2-selective": {"parallel": {"recompute": "selective"}},
    "tp2": {"parallel": {"tensor": 2}},
    "tp2-sp": {"parallel": {"tensor": 2, "sequence_parallel": True}},
    "tp2-sp-parallel": {"parallel": {"tensor": 2, "sequence_parallel": True}, "model": TIED},
    "tp2-sp-selective": {"parallel": {"tensor": 2, "sequence_parallel": True, "recompute": "selective"}},
    "cp2": {"parallel": {"context": 2}},
    "pp2": {"parallel": {"pipeline": 2}},
    "pp2-vpp2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "pp2-full": {"parallel": {"pipeline": 2, "recompute": "full"}},
    "tp2-sp-full": {"parallel": {"tensor": 2, "sequence_parallel": True, "recompute": "full"}},
}


def placed(program: ModuleType, case: dict[str, Any], gpus: int = 2) -> Layout:
    return Layout(program.run_config(**case), gpus, program.VOCAB)


@pytest.fixture(scope="module")
def held(run_ranks: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_ranks(2, PROGRAM, "holdings", {"cases": HOLDINGS})


@pytest.fixture(scope="module")
def kept(run_ranks: Callable[..., list[Any]]) -> list[dict[str, int]]:
    return run_ranks(2, PROGRAM, "activations", {"cases": ACTIVATIONS})


@pytest.mark.slow
@pytest.mark.parametrize("name", HOLDINGS)
def test_weights_gradients_and_optimizer_are_those_of_real_ranks(
    program: ModuleType, held: list[dict[str, Any]], name: str
) -> None:
    place = placed(program, HOLDINGS[name])
    assert len(held) == 2
    for rank in held:
        found = rank[name]
        counted = vars(countable(place, *place.coordinates(found["rank"])))
        assert {key: found[key] for key in counted} == counted


def most_kept(place: Layout, stage: int) -> float:
    """Return the bytes that the plan says a rank keeps for backward passes, at the moment of most."""
    recompute = place.config.parallel.recompute
    layer = layer_tensors(place, "local")
    bytes_ = place.layers_in_flight(stage) * per_token(layer, recompute)
    head = per_token(head_tensors(place, "local"), recompute) if stage == place.config.parallel.pipeline - 1 else 0.0
    # While a layer is computed anew, it keeps what it would have kept; the loss is not computed then.
    again = per_token(layer, "none") - per_token(layer, recompute) if recompute == "full" else 0.0
    return place.tokens * (bytes_ + max(head, again))


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_that_real_iterations_keep(
    program: ModuleType, kept: list[dict[str, int]], name: str
) -> None:
    place = placed(program, ACTIVATIONS[name])
    assert len(kept) == 2
    for rank, found in enumerate(kept):
        stage, _ = place.coordinates(rank)
        assert most_kept(place, stage) == pytest.approx(found[name], rel=0.05), f"stage {stage}"


@pytest.mark.slow
def test_a_checkpoint_has_twelve_bytes_for_each_parameter(
    program: ModuleType, run_ranks: Callable[..., list[Any]]
) -> None:
    case = {"parallel": {**SHARDED, "tensor": 2, "sequence_parallel": True}, "dtype": "bf16"}
    written = run_ranks(2, PROGRAM, "checkpoints", {"case": case})
    model = program.run_config(**case).model
    assert sum(rank["bytes"] for rank in written) == 12 * parameters(model, program.VOCAB)
