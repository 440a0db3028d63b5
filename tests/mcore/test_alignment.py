"""Comparing gradients: equal in every layout, true to what a real step does, and without a trace in the run.

The products themselves are checked against losses: what a step changes is measured with forward passes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distance import furthest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
OnRanks = Callable[[int, str, dict[str, Any]], list[Any]]
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"model": {"share_embeddings_and_output_weights": True, "qk_norm": "shared"}},
    "muon": {"train": {"optimizer": "muon"}},
}
TWO: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "tp2-sp": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "pp2-vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
    "dp2": {},
    "dp2-sharded": {"distributed_optimizer": True},
    "dp2-overlap": {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}
FOUR: dict[str, dict[str, Any]] = {
    "tp2-dp2-sharded": {"tensor": 2, "sequence_parallel": True, "distributed_optimizer": True},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
}
ON_TWO = [
    *(("plain", layout) for layout in TWO),
    *(("tied", layout) for layout in ("tp2-sp", "pp2", "dp2-sharded")),
    *(("muon", layout) for layout in ("tp2", "pp2", "dp2-sharded")),
]
ON_FOUR = [*(("plain", layout) for layout in FOUR), ("muon", "tp2-dp2-sharded"), ("tied", "tp2-pp2")]
# A real step without memory of earlier ones: the update is what the comparison steps along.
REAL_STEP = {"adam_beta1": 0.0, "weight_decay": 0.0, "clip_grad": 0.0, "muon": {"momentum": 0.0}}
RATES = (4e-4, 1e-4)


@pytest.fixture(scope="module")
def on_program(run_ranks: Callable[..., list[Any]]) -> OnRanks:
    """A function of alignment_program.py, on so many ranks."""
    return lambda nproc, function, arguments: run_ranks(nproc, HERE / "alignment_program.py", function, arguments)


@pytest.fixture(scope="module")
def one(on_program: OnRanks) -> dict[str, Any]:
    return on_program(1, "layouts", {"cases": MODELS})[0]


def cases(pairs: list[tuple[str, str]], layouts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{model}/{layout}": {**MODELS[model], "parallel": layouts[layout]} for model, layout in pairs}


@pytest.fixture(scope="module")
def several(on_program: OnRanks) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for nproc, pairs, layouts in ((2, ON_TWO, TWO), (4, ON_FOUR, FOUR)):
        ranks = on_program(nproc, "layouts", {"cases": cases(pairs, layouts)})
        found |= {name: [rank[name] for rank in ranks] for name in ranks[0]}
    return found


def flat(value: Any) -> list[float]:
    """All numbers of nested lists and mappings, in order."""
    if isinstance(value, dict):
        return flat(list(value.values()))
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(("model", "layout"), [*ON_TWO, *ON_FOUR])
def test_every_layout_finds_what_one_process_finds(one: Any, several: Any, model: str, layout: str) -> None:
    ranks, expected = several[f"{model}/{layout}"], one[model]
    assert all(rank == ranks[0] for rank in ranks), "ranks disagree"
    assert ranks[0]["losses"] == pytest.approx(expected["losses"], abs=1e-6)
    for products in ("plain", "stepped"):
        largest = max(map(abs, flat(expected[products]["whole"])))
        for part in ("whole", "by_kind", "by_layer"):
            mine, theirs = flat(ranks[0][products][part]), flat(expected[products][part])
            assert len(mine) == len(theirs)
            assert furthest(mine, theirs) <= 1e-6 * largest


@pytest.mark.parametrize("model", MODELS)
def test_kinds_add_up_to_the_whole_and_layers_to_their_kinds(one: Any, model: str) -> None:
    for products in (one[model]["plain"], one[model]["stepped"]):
        kinds = {kind: flat(matrix) for kind, matrix in products["by_kind"].items()}
        assert list(kinds) == ["embedding", "attention", "mlp", "output"]
        assert all(any(numbers) for numbers in kinds.values())
        assert list(map(sum, zip(*kinds.values(), strict=True))) == pytest.approx(flat(products["whole"]))
        blocks = map(sum, zip(kinds["attention"], kinds["mlp"], strict=True))
        layers = list(map(sum, zip(*map(flat, products["by_layer"]), strict=True)))
        assert len(products["by_layer"]) == 4
        assert layers == pytest.approx(list(blocks))


def test_the_length_of_a_gradient_is_what_training_reports(program: Any, one: Any, alone: None) -> None:
    """The same batches as an iteration, whose gradient norm mcore's own code computes."""
    from megacode.mcore.step import train_step

    rank_model = program.started(program.run_config())
    program.iterate(rank_model, 0, 3)
    norms = []
    for iteration in (50, 60, 70):
        batches = program.microbatches(rank_model, iteration)
        norms.append(train_step(rank_model, batches, 1e-3, 2, lambda loss, norm: False).grad_norm)
    products = one["plain"]["plain"]["whole"]
    assert [products[k][k] ** 0.5 for k in range(3)] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_small_real_step_changes_every_loss_as_predicted(on_program: OnRanks, optimizer: str) -> None:
    """Off by the second order: relative to the change, four times less for a quarter of the step."""
    case = {"train": {**REAL_STEP, "optimizer": optimizer}}
    [found] = on_program(1, "predictions", {"case": case, "rates": RATES})
    errors = []
    for predicted, measured in zip(found["predicted"], found["measured"], strict=True):
        pairs = list(zip(flat(predicted), flat(measured), strict=True))
        assert len(pairs) == 9
        assert min(value for value, _ in pairs) > 0
        errors.append(sum(abs(guess - truth) for guess, truth in pairs) / sum(truth for _, truth in pairs))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 2.5, "it does not fall as a first order's error does"


def test_a_step_on_contradicting_labels_raises_the_loss_and_halves_of_a_source_agree(on_program: OnRanks) -> None:
    [found] = on_program(1, "planted", {})
    half, other, reversed_labels = range(3)
    transfer, plain = found["stepped"]["whole"], found["plain"]["whole"]
    assert transfer[half][other] > 0
    assert transfer[other][half] > 0
    for source in (half, other):
        assert transfer[reversed_labels][source] < 0
        assert transfer[source][reversed_labels] < 0
    assert plain[half][other] > 0 > plain[half][reversed_labels]


def test_halves_of_a_source_align_at_one_within_the_noise_of_their_windows(on_program: OnRanks) -> None:
    """1 / cosine - 1 is the noise of a half's mean over the length of the true gradient: it falls as windows grow."""
    [found] = on_program(1, "halves", {"counts": [8, 32, 128]})
    noise = [1 / cosine - 1 for cosine in found]
    assert 0 < noise[2] < 0.2
    for more, less in zip(noise[1:], noise, strict=False):
        assert less / 8 < more < less / 2


def test_kept_steps_find_for_single_items_what_the_comparison_finds(on_program: OnRanks) -> None:
    models = {"plain": {}, "muon": {"train": {"optimizer": "muon"}}}
    parallel = {"parallel": {"tensor": 2}}
    ranks = on_program(
        2, "directions_of_items", {"cases": {name: {**case, **parallel} for name, case in models.items()}}
    )
    for name in models:
        found = ranks[0][name]
        assert ranks[1][name] == found
        assert flat(found["items"]) == pytest.approx(flat(found["alignment"]), rel=1e-6)


DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
FP8 = {"fp8": {"recipe": "delayed", "amax_history_len": 4}}
UNDISTURBED: dict[str, dict[str, Any]] = {
    "dropout": {"model": DROPOUT, "parallel": {"distributed_optimizer": True}},
    "dropout, recomputed": {"model": DROPOUT, "parallel": {"recompute": "full"}},
    "overlap": {"parallel": TWO["dp2-overlap"], "dtype": "bf16"},
    "fp8": {"precision": FP8, "parallel": {"tensor": 2}},
    "muon": {"train": {"optimizer": "muon"}, "parallel": TWO["dp2-sharded"]},
    "z-loss": {"train": {"z_loss": 1e-2}, "parallel": TWO["pp2"]},
    "reduced states": {
        "dtype": "bf16",
        "parallel": TWO["dp2-sharded"],
        "precision": {"moments": "bf16", "masters": "bf16_remainder", "gradients": "bf16"},
    },
}


def test_a_run_goes_on_bit_for_bit_as_if_nothing_had_been_compared(on_program: OnRanks) -> None:
    ranks = on_program(2, "with_and_without", {"cases": UNDISTURBED})
    assert len(ranks) == 2
    for rank in ranks:
        assert list(rank) == list(UNDISTURBED)
        for name, (without, with_it) in rank.items():
            assert with_it == without, name


def test_dropout_and_z_loss_are_not_part_of_what_is_compared(on_program: OnRanks) -> None:
    """Without a step the weights are those of the plain model: so is the alignment, also with blocks recomputed."""
    changed = {"model": DROPOUT, "train": {"z_loss": 0.1}}
    models = {"plain": {}, "changed": changed, "recomputed": {**changed, "parallel": {"recompute": "full"}}}
    [found] = on_program(1, "untrained", {"cases": models})
    assert found["changed"] == found["plain"]
    assert flat(found["recomputed"]) == pytest.approx(flat(found["plain"]), rel=1e-6)
