"""Models with the settings of today's decoders: every layout trains what one process trains, and checkpoints reshard.

As in test_layouts: fp32 within 1e-6 in the loss of each iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.distance import furthest
from tests.mcore.decoders import CASES, MODELS

TOLERANCE, ITERATIONS = 1e-6, 4
OVERLAP = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
TP2_SP = {"tensor": 2, "sequence_parallel": True}
ON_TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "after/tp2-sp": ("after", TP2_SP),
    "after/pp2-vpp2": ("after", {"pipeline": 2, "virtual_pipeline": 2}),
    "after/cp2": ("after", {"context": 2}),
    "windows/cp2": ("windows", {"context": 2}),
    "biased/tp2": ("biased", {"tensor": 2}),
    "biased/tp2-sp": ("biased", TP2_SP),
    "biased/overlap": ("biased", OVERLAP),
    "shared/tp2": ("shared", {"tensor": 2, "recompute": "selective"}),
    "shared/tp2-sp": ("shared", TP2_SP),
    "shared/pp2": ("shared", {"pipeline": 2, "recompute": "full"}),
    "centred/tp2": ("centred", {"tensor": 2}),
}
ON_FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "after/cp2-tp2-sp": ("after", {"context": 2, **TP2_SP}),
    "shared/tp2-dp2-sharded": ("shared", {"distributed_optimizer": True, **TP2_SP}),
}
# What goes wrong without a sum over tensor-parallel ranks, and in which parameters.
SPOILT = {
    "unsummed head norms": ("q_layernorm", "k_layernorm"),
    "unmarked norms": ("input_layernorm", "final_layernorm"),
}


def cases(chosen: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {name: {**CASES[case], "parallel": layout} for name, (case, layout) in chosen.items()}


@pytest.fixture(scope="module")
def one(on_ranks: Callable[..., list[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = on_ranks(1, "layouts", {"cases": CASES, "iterations": ITERATIONS})[0]
    return found


@pytest.fixture(scope="module")
def two(on_ranks: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return on_ranks(2, "layouts", {"cases": cases(ON_TWO), "iterations": ITERATIONS})


@pytest.fixture(scope="module")
def four(on_ranks: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return on_ranks(4, "layouts", {"cases": cases(ON_FOUR), "iterations": ITERATIONS})


def difference(found: list[dict[str, Any]], expected: list[dict[str, Any]], key: str) -> float:
    return furthest([step[key] for step in found], [step[key] for step in expected])


def assert_equal(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    mine, theirs = ranks[0]["iterations"], expected["iterations"]
    assert len(mine) == ITERATIONS
    assert all(rank["iterations"] == mine for rank in ranks), "ranks disagree"
    assert difference(mine, theirs, "loss") <= TOLERANCE
    assert difference(mine, theirs, "z_loss") <= TOLERANCE
    assert [step["grad_norm"] for step in mine] == pytest.approx([step["grad_norm"] for step in theirs], rel=2e-6)
    assert [step["tokens_by_source"] for step in mine] == [step["tokens_by_source"] for step in theirs]
    for rank in ranks:
        assert rank["logits"][1] == pytest.approx(expected["logits"][1], abs=5e-6)
        assert rank["losses"]["loss_sum"] == pytest.approx(expected["losses"]["loss_sum"], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_train_what_one_process_trains(one: Any, two: Any, name: str) -> None:
    assert_equal([rank[name] for rank in two], one[ON_TWO[name][0]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_train_what_one_process_trains(one: Any, four: Any, name: str) -> None:
    assert_equal([rank[name] for rank in four], one[ON_FOUR[name][0]])


@pytest.mark.slow
def test_every_parameter_has_the_gradient_of_one_process(on_ranks: Callable[..., list[Any]]) -> None:
    spoilt = {name: {**CASES["shared"], "parallel": TP2_SP, "spoil": name} for name in SPOILT}
    expected = on_ranks(1, "gradients", {"cases": CASES})[0]
    found, other = on_ranks(2, "gradients", {"cases": {**cases(ON_TWO), **spoilt}})
    assert found == other
    for name, (case, _) in ON_TWO.items():
        assert found[name] == pytest.approx(expected[case], rel=2e-5), name
    for name, parts in SPOILT.items():
        wrong = {key for key, norm in found[name].items() if norm != pytest.approx(expected["shared"][key], rel=1e-2)}
        assert wrong == {key for key in expected["shared"] if any(part in key for part in parts)}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["after", "biased", "shared"])
def test_a_checkpoint_resumes_under_other_layouts(
    on_ranks: Callable[..., list[Any]], tmp_path: Any, model: str
) -> None:
    sharded = {"distributed_optimizer": True}
    layouts = {1: {"one": {}}, 2: {"tp2": {**TP2_SP, **sharded}, "dp2": sharded, "pp2": {"pipeline": 2}}}
    given = {"directory": str(tmp_path), "dtype": "fp32", "model": MODELS[model]}
    written: dict[str, list[float]] = {}
    for ranks, some in layouts.items():
        written |= on_ranks(ranks, "writes", {"layouts": some, **given})[0]
    compared = 0
    for ranks, some in layouts.items():
        for own, found in on_ranks(ranks, "reads", {"layouts": some, "names": list(written), **given})[0].items():
            for name, losses in found.items():
                compared += 1
                if name == own:
                    assert losses == written[name], name
                else:
                    assert losses == pytest.approx(written[name], abs=TOLERANCE), (name, own)
    assert compared == 4 * 4


@pytest.mark.usefixtures("alone")
def test_biases_begin_at_zero_and_are_not_decayed(program: ModuleType) -> None:
    from megacode.mcore.sharding import bare

    rank_model = program.started(program.run_config(model=MODELS["biased"]))
    named = dict(bare(rank_model.chunks[0]).named_parameters())
    biases = {name: weight for name, weight in named.items() if name.endswith("bias")}
    assert len(biases) == 4 * 3 + 1
    assert all(torch.all(bias == 0) for bias in biases.values())
    assert torch.all(named["decoder.layers.1.self_attention.q_layernorm.weight"] == 1)
    decays = {group["wd_mult"]: sum(p.numel() for p in group["params"]) for group in rank_model.optimizer.param_groups}
    assert decays[0.0] == sum(weight.numel() for weight in named.values() if weight.dim() == 1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", ["after", "shared"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_low_precision_learns_about_the_same(program: ModuleType, case: str, dtype: str) -> None:
    from megacode.config.training import Fp8
    from megacode.mcore import precision

    exact = program.iterate(program.started(program.run_config(**CASES[case])), 0, 4)
    rank_model = program.started(program.run_config(**CASES[case], dtype="bf16"))
    if dtype == "fp8":
        precision.use(rank_model, Fp8(recipe="tensorwise"))
    found = program.iterate(rank_model, 0, 4)
    assert found[-1]["loss"] < found[0]["loss"]
    assert 1e-6 < difference(found, exact, "loss") < 2e-2
