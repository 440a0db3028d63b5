"""Every layout trains the model that one process trains: the same losses, gradients and logits, from the same start.

fp32 within 1e-6 in the loss of each of 10 iterations (a loss is about 5.5, one unit in its last place 4.8e-7; largest
difference seen 5e-8). Spoilt on purpose, the same comparison fails by many times its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.distance import furthest

pytestmark = pytest.mark.slow

TOLERANCE, ITERATIONS = 1e-6, 10
BLOCKS: dict[str, dict[str, Any]] = {
    "sequential": {"model": {"block": "sequential"}},
    "parallel": {"model": {"block": "parallel", "normalization": "LayerNorm"}},
    "tied": {"model": {"share_embeddings_and_output_weights": True}},
    "isolated": {"train": {"isolate_documents": True}},
    "bf16": {"dtype": "bf16"},
    "dropout": {"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}},
    "deep": {"model": {"num_layers": 8}},
    "muon": {"train": {"optimizer": "muon"}},
    "muon-plain": {"train": {"optimizer": "muon", "muon": {"nesterov": False}}},
    "muon-tied": {"train": {"optimizer": "muon"}, "model": {"share_embeddings_and_output_weights": True}},
    "muon-bf16": {"train": {"optimizer": "muon"}, "dtype": "bf16"},
}
TWO: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "tp2-sp": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "pp2-vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "dp2": {},
    "dp2-sharded": {"distributed_optimizer": True},
    "dp2-overlap-reduce": {"overlap_grad_reduce": True},
    "cp2": {"context": 2},
    "cp2-overlap": {
        "context": 2,
        "distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    },
    "dp2-overlap": {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "cp2-sharded-overlap-reduce": {"context": 2, "distributed_optimizer": True, "overlap_grad_reduce": True},
}
# Muon cannot overlap the gathering of weights.
MUON = [layout for layout, settings in TWO.items() if not settings.get("overlap_param_gather")]
FOUR: dict[str, dict[str, Any]] = {
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "tp2-dp2-sharded": {"tensor": 2, "sequence_parallel": True, "distributed_optimizer": True},
    "pp2-dp2-sharded": {"pipeline": 2, "distributed_optimizer": True},
    "pp4-vpp2": {"pipeline": 4, "virtual_pipeline": 2},
    "pp2-vpp2-dp2-overlap": {
        "pipeline": 2,
        "virtual_pipeline": 2,
        "distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    },
    "cp4": {"context": 4},
    "cp2-tp2": {"context": 2, "tensor": 2},
    "cp2-tp2-sp": {"context": 2, "tensor": 2, "sequence_parallel": True},
    "cp2-pp2": {"context": 2, "pipeline": 2},
    "cp2-pp2-vpp2": {"context": 2, "pipeline": 2, "virtual_pipeline": 2},
    "cp2-dp2-sharded": {"context": 2, "distributed_optimizer": True},
}
ON_TWO = [
    *(("sequential", layout) for layout in TWO),
    *(("parallel", layout) for layout in ("tp2", "tp2-sp", "pp2", "pp2-vpp2", "dp2-sharded", "cp2")),
    *(("tied", layout) for layout in ("tp2", "pp2", "dp2-sharded", "dp2-overlap", "cp2-overlap", "cp2")),
    *(("isolated", layout) for layout in ("tp2-sp", "pp2", "dp2", "cp2")),
    *(("bf16", layout) for layout in ("tp2-sp", "dp2-sharded", "cp2")),
    *(("muon", layout) for layout in MUON),
    ("muon-plain", "tp2"),
    *(("muon-tied", layout) for layout in ("tp2", "pp2", "dp2-sharded")),
    *(("muon-bf16", layout) for layout in ("tp2-sp", "dp2-sharded", "cp2-sharded-overlap-reduce")),
]
ON_FOUR = [
    ("sequential", "tp2-pp2"),
    ("parallel", "tp2-pp2"),
    ("sequential", "tp2-dp2-sharded"),
    ("sequential", "pp2-dp2-sharded"),
    ("sequential", "pp2-vpp2-dp2-overlap"),
    ("deep", "pp4-vpp2"),
    *(("sequential", layout) for layout in FOUR if layout.startswith("cp")),
    *(("isolated", layout) for layout in FOUR if layout.startswith("cp")),
    ("parallel", "cp2-tp2-sp"),
    *(("muon", layout) for layout in ("tp2-pp2", "tp2-dp2-sharded", "pp2-dp2-sharded", "cp2-dp2-sharded")),
]
SPOILT = {
    "unmarked norms": ("sequential", "tp2-sp"),
    "batched p2p": ("sequential", "pp2-vpp2"),
    "overlapped p2p": ("sequential", "pp2-vpp2"),
    "contiguous places": ("sequential", "cp2"),
    "slices alone": ("muon", "tp2"),
}


def cases(pairs: list[tuple[str, str]], layouts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{block}/{layout}": {**BLOCKS[block], "parallel": layouts[layout]} for block, layout in pairs}


class Programs:
    """Cases trained on so many ranks, a few in each program: one that fails takes only its own cases with it."""

    def __init__(self, on_ranks: Callable[..., list[Any]], nproc: int, programs: list[dict[str, Any]]) -> None:
        self._on_ranks, self._nproc = on_ranks, nproc
        self._programs = programs
        self._found: dict[int, list[dict[str, Any]] | AssertionError] = {}

    def __call__(self, case: str) -> list[dict[str, Any]]:
        """Return what each rank found in a case; runs its program when one of its cases is first asked for."""
        [number] = [index for index, program in enumerate(self._programs) if case in program]
        if number not in self._found:
            try:
                given = {"cases": self._programs[number], "iterations": ITERATIONS}
                self._found[number] = self._on_ranks(self._nproc, "layouts", given)
            except AssertionError as error:
                self._found[number] = error
        found = self._found[number]
        if isinstance(found, AssertionError):
            raise found
        return [rank[case] for rank in found]


def by_block(pairs: list[tuple[str, str]], layouts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one program for each block, so that a run of some tests trains what these compare."""
    blocks = dict.fromkeys(block for block, _ in pairs)
    return [cases([pair for pair in pairs if pair[0] == block], layouts) for block in blocks]


@pytest.fixture(scope="module")
def one(on_ranks: Callable[..., list[Any]]) -> Programs:
    # Without padding, which mcore's loss counts and ours does not: the rounding of its gradients alone.
    fused = {"model": {"make_vocab_size_divisible_by": 2}, "spoil": "fused cross entropy"}
    return Programs(on_ranks, 1, [{"fused": fused}, *({block: case} for block, case in BLOCKS.items())])


@pytest.fixture(scope="module")
def two(on_ranks: Callable[..., list[Any]]) -> Programs:
    spoilt = {
        name: {**BLOCKS[block], "parallel": TWO[layout], "spoil": name} for name, (block, layout) in SPOILT.items()
    }
    for name in ("dropout", "dropout again"):
        spoilt[name] = {**BLOCKS["dropout"], "parallel": TWO["tp2"]}
    return Programs(on_ranks, 2, [*by_block(ON_TWO, TWO), spoilt])


@pytest.fixture(scope="module")
def four(on_ranks: Callable[..., list[Any]]) -> Programs:
    return Programs(on_ranks, 4, by_block(ON_FOUR, FOUR))


def difference(found: list[dict[str, Any]], expected: list[dict[str, Any]], key: str) -> float:
    return furthest([step[key] for step in found], [step[key] for step in expected])


def assert_equal(found: list[dict[str, Any]], expected: dict[str, Any], tolerance: float) -> None:
    mine, theirs = found[0]["iterations"], expected["iterations"]
    assert len(mine) == ITERATIONS
    assert all(rank["iterations"] == mine for rank in found), "ranks disagree"
    assert difference(mine, theirs, "loss") <= tolerance
    assert difference(mine, theirs, "grad_norm") <= 2 * tolerance
    for a, b in zip(mine, theirs, strict=True):
        assert a["tokens_by_source"] == b["tokens_by_source"]
        assert a["samples_by_source"] == b["samples_by_source"] == [4, 4]
        assert a["samples_digest"] == b["samples_digest"]
        tokens = max(a["tokens_by_source"])
        assert a["loss_sum_by_source"] == pytest.approx(b["loss_sum_by_source"], abs=tokens * tolerance)
        assert not a["skipped"]


@pytest.mark.parametrize(("block", "layout"), [pair for pair in ON_TWO if "bf16" not in pair[0]])
def test_two_ranks_train_what_one_process_trains(one: Any, two: Any, block: str, layout: str) -> None:
    assert_equal(two(f"{block}/{layout}"), one(block)[0], TOLERANCE)


@pytest.mark.parametrize(("block", "layout"), ON_FOUR)
def test_four_ranks_train_what_one_process_trains(one: Any, four: Any, block: str, layout: str) -> None:
    assert_equal(four(f"{block}/{layout}"), one(block)[0], TOLERANCE)


@pytest.mark.parametrize("block", ["bf16", "muon-bf16"])
def test_bf16_over_data_parallel_ranks_is_as_exact_as_fp32(one: Any, two: Any, block: str) -> None:
    assert_equal(two(f"{block}/dp2-sharded"), one(block)[0], TOLERANCE)


@pytest.mark.parametrize(("block", "layout"), [pair for pair in ON_TWO if "bf16" in pair[0] and pair[1][:2] != "dp"])
def test_bf16_over_ranks_that_share_a_token_or_a_sequence_differs_by_bf16s_rounding(
    one: Any, two: Any, block: str, layout: str
) -> None:
    found, fp32 = two(f"{block}/{layout}")[0]["iterations"], "sequential" if block == "bf16" else "muon"
    assert difference(found, one(block)[0]["iterations"], "loss") <= 2e-3
    assert difference(one(block)[0]["iterations"], one(fp32)[0]["iterations"], "loss") > TOLERANCE


@pytest.mark.parametrize("name", SPOILT)
def test_the_comparison_can_fail(one: Any, two: Any, name: str) -> None:
    found = two(name)[0]["iterations"]
    assert difference(found, one(SPOILT[name][0])[0]["iterations"], "loss") > 20 * TOLERANCE


def test_mcores_fused_cross_entropy_would_not_be_exact(one: Any) -> None:
    fused, exact = one("fused")[0]["iterations"], one("sequential")[0]["iterations"]
    assert difference(fused, exact, "loss") > 5 * TOLERANCE


def assert_reads_equally(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert len(found) > 1
    for rank in found:
        total, value = rank["logits"]
        assert value == pytest.approx(expected["logits"][1], abs=5e-6)
        assert total == pytest.approx(expected["logits"][0], abs=5e-3)
        losses = rank["losses"]
        assert losses["loss_sum"] == pytest.approx(expected["losses"]["loss_sum"], rel=TOLERANCE)
        for counted in ("tokens", "samples", "digest"):
            assert losses[counted] == expected["losses"][counted]


@pytest.mark.parametrize(("block", "layout"), [pair for pair in ON_TWO if "bf16" not in pair[0]])
def test_gathered_logits_and_losses_are_those_of_one_process(one: Any, two: Any, block: str, layout: str) -> None:
    assert_reads_equally(two(f"{block}/{layout}"), one(block)[0])


@pytest.mark.parametrize(("block", "layout"), ON_FOUR)
def test_four_ranks_read_what_one_process_reads(one: Any, four: Any, block: str, layout: str) -> None:
    assert_reads_equally(four(f"{block}/{layout}"), one(block)[0])


def test_each_rank_holds_its_share_of_the_parameters(one: Any, two: Any) -> None:
    whole = one("sequential")[0]["parameters"]
    for layout in ("tp2", "pp2", "pp2-vpp2"):
        held = [rank["parameters"] for rank in two(f"sequential/{layout}")]
        assert max(held) < 0.55 * whole
    assert [rank["parameters"] for rank in two("sequential/dp2")] == [whole, whole]


@pytest.mark.parametrize(("layout", "a_branch"), [("tp2", 2), ("tp2-sp", 4)])
def test_the_parallel_block_halves_the_layers_collectives(two: Any, layout: str, a_branch: int) -> None:
    layers, micro_batches = 4, 4
    sequential, parallel = (two(f"{block}/{layout}")[0]["collectives"] for block in ("sequential", "parallel"))
    # Out of the parallel region and, in the backward pass, out of its entry; under sequence parallel both ways there.
    assert sequential - parallel == a_branch * layers * micro_batches


def test_dropout_repeats_within_a_layout_and_differs_between_layouts(one: Any, two: Any) -> None:
    first, again = (two(name)[0]["iterations"] for name in ("dropout", "dropout again"))
    assert first == again
    assert difference(first, one("dropout")[0]["iterations"], "loss") > 20 * TOLERANCE


def test_a_program_that_fails_takes_only_its_own_cases_with_it() -> None:
    asked: list[list[str]] = []

    def on_ranks(nproc: int, function: str, arguments: dict[str, Any]) -> list[Any]:
        asked.append([*arguments["cases"]])
        assert "b" not in arguments["cases"], "ranks [0] failed"
        return [{name: {"rank": rank} for name in arguments["cases"]} for rank in range(nproc)]

    programs = Programs(on_ranks, 2, [{"a": {}}, {"b": {}, "c": {}}])
    for case in ("b", "c"):
        with pytest.raises(AssertionError, match="failed"):
            programs(case)
    assert programs("a") == [{"rank": 0}, {"rank": 1}]
    assert asked == [["b", "c"], ["a"]], "each once"


def test_a_non_finite_gradient_on_one_rank_is_applied_on_none(on_ranks: Callable[..., list[Any]]) -> None:
    cases = {name: {"parallel": TWO[name]} for name in ("dp2", "dp2-sharded", "tp2", "pp2")}
    first, second = on_ranks(2, "skips", {"cases": cases})
    assert set(first) == set(cases)
    for name, found in first.items():
        assert found["skipped"], name
        assert found["unchanged"], name
        assert second[name] == found


def test_groups_and_their_threads_end_with_their_layout(on_ranks: Callable[..., list[Any]]) -> None:
    layouts = [TWO[name] for name in ("tp2-sp", "pp2", "dp2-overlap", "cp2")] * 5
    first, second = on_ranks(2, "threads_of_layouts", {"layouts": layouts})
    for found in (first, second):
        *during, after = found
        assert len(during) == 20
        # An unfinished layout leaves about 17 behind; a helper thread of torch's may come or go.
        assert max(during) <= during[0] + 2
        assert after < during[0] - 10


def test_one_thread_of_a_rank_polls_the_sockets_of_all_groups(on_ranks: Callable[..., list[Any]]) -> None:
    first, second = on_ranks(2, "idle", {})
    for found in (first, second):
        assert found["groups"] > 10
        assert found["threads"]["gloo_tcp_loop"] == 1


def test_ranks_know_where_they_stand_and_agree(on_ranks: Callable[..., list[Any]]) -> None:
    (first, told, anyone), (second, *_) = on_ranks(2, "joins", {"parallel": {"pipeline": 2}})
    assert (first["pp_rank"], second["pp_rank"], first["dp_size"]) == (0, 1, 1)
    assert (first["is_first_stage"], first["is_last_stage"]) == (True, False)
    assert (second["is_first_stage"], second["is_last_stage"]) == (False, True)
    assert told == {"from": 1}
    assert anyone == [True, False]
