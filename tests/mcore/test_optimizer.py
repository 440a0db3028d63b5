"""Which parameters weight decay makes smaller; how gradients get into the optimizer, and when a rank has them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
TIED = {"share_embeddings_and_output_weights": True}


def case(exempt: list[str], model: dict[str, Any] | None = None, **parallel: Any) -> dict[str, Any]:
    return {"train": {"weight_decay_exempt": exempt, "weight_decay": 0.2}, "model": model or {}, "parallel": parallel}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("exempt", "tied", "sharded"),
    [
        ([], False, False),
        (["norms"], False, False),
        (["norms"], True, True),
        (["embeddings"], False, True),
        (["embeddings"], True, False),
        (["norms", "embeddings"], True, True),
    ],
)
def test_norms_and_embeddings_are_decayed_unless_exempt(
    program: ModuleType, exempt: list[str], tied: bool, sharded: bool, optimizer: str
) -> None:
    wanted = case(exempt, TIED if tied else None, distributed_optimizer=sharded)
    wanted["train"]["optimizer"] = optimizer
    found = program.decayed({"it": wanted})["it"]
    norms = [name for name in found if "norm" in name]
    assert len(norms) == (0 if "norms" in exempt else 9)
    assert (EMBEDDING in found) is ("embeddings" not in exempt)
    assert (OUTPUT in found) is not tied
    assert sum("linear" in name for name in found) == 16


@pytest.mark.slow
def test_two_ranks_decay_alike_and_know_which_of_them_is_slow(on_ranks: Callable[..., list[Any]]) -> None:
    both = ["norms", "embeddings"]
    cases = {
        "tied": case(both, TIED, pipeline=2),
        "untied": case(both, pipeline=2),
        "decayed": case([], TIED, pipeline=2),
    }
    calls = {"decayed": {"cases": cases}, "arrivals": {"slowed_by": 0.5}}
    first, last = on_ranks(2, "several", {"calls": calls})
    assert OUTPUT not in last["decayed"]["tied"]
    assert EMBEDDING not in first["decayed"]["tied"] + first["decayed"]["untied"]
    assert OUTPUT in last["decayed"]["untied"]
    assert EMBEDDING in first["decayed"]["decayed"]
    assert OUTPUT in last["decayed"]["decayed"]
    # Two micro-batches each; what a busy machine adds befalls both ranks.
    assert last["arrivals"][1] >= 1.0
    assert last["arrivals"][1] - first["arrivals"][1] > 0.5
    assert min(first["arrivals"] + last["arrivals"]) > 0


@pytest.mark.usefixtures("alone")
def test_one_process_knows_how_long_its_gradients_took(program: ModuleType) -> None:
    (first, second) = program.arrivals(0.2)
    assert first > 0
    assert second >= 0.8


@pytest.mark.usefixtures("alone")
def test_gradients_are_gathered_in_place_and_one_rank_overlaps_nothing(program: ModuleType) -> None:
    said = []
    for overlaps in (False, True):
        parts = program.started(program.run_config(parallel={"overlap_grad_reduce": overlaps}))
        marked = [p for p in parts.chunks[0].parameters() if getattr(p, "accumulates", False)]
        assert len(marked) == 4 * 4 + 2
        assert not any(p.announced for p in marked)
        said.append(program.iterate(parts, 0, 2))
    assert said[0] == said[1]
