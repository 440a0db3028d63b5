"""Optimizer states in less than fp32: what they train, on one process and on ranks, and what checkpoints keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megacode.base.errors import ConfigError
from tests.distance import furthest

SHARDED = {"distributed_optimizer": True}
SMALLEST = {"moments": "bf16", "masters": "bf16_remainder", "gradients": "bf16"}
EACH: dict[str, dict[str, str]] = {
    "fp32": {},
    "moments": {"moments": "bf16"},
    "masters": {"masters": "bf16_remainder"},
    "gradients": {"gradients": "bf16"},
    "all": SMALLEST,
    "fp8": {**SMALLEST, "moments": "fp8_bf16"},
}


def case(precision: dict[str, str], **parallel: Any) -> dict[str, Any]:
    return {"dtype": "bf16", "precision": precision, "parallel": {**SHARDED, **parallel}}


def losses(iterations: list[dict[str, Any]]) -> list[float]:
    return [one["loss"] for one in iterations]


@pytest.fixture(scope="module")
def trained(program: ModuleType, alone: None) -> dict[str, Any]:
    """What one process trains in ten iterations, by setting."""
    return program.layouts({name: case(precision) for name, precision in EACH.items()})


@pytest.mark.parametrize(
    ("name", "tolerance"), [("moments", 1e-4), ("masters", 1e-4), ("gradients", 3e-4), ("all", 3e-4), ("fp8", 1e-3)]
)
def test_states_in_less_than_fp32_train_nearly_the_same(trained: dict[str, Any], name: str, tolerance: float) -> None:
    """Ten iterations lower the loss by 0.1; the formats move it by a thousandth of that, FP8 by a hundredth."""
    exact, found = (losses(trained[key]["iterations"]) for key in ("fp32", name))
    assert 0 < furthest(found, exact) <= tolerance
    assert exact[0] - exact[-1] > 0.05


def test_a_bf16_gradient_is_the_fp32_one_rounded(program: ModuleType, alone: None) -> None:
    """Each of four micro-batches rounds the sum once, and so does the division: five roundings of 2^-9."""
    narrow, wide = (program.gradients_of(case(EACH[name])) for name in ("gradients", "fp32"))
    assert narrow.keys() == wide.keys()
    for name, (kind, gradient) in narrow.items():
        exact = wide[name][1]
        assert kind == "torch.bfloat16"
        assert wide[name][0] == "torch.float32"
        assert 0 < (gradient - exact).norm() <= 5 * 2**-9 * exact.norm(), name


def test_remainders_train_bit_equal_to_fp32_masters_whose_weights_round_alike(program: ModuleType, alone: None) -> None:
    expected, found = (program.rounded_alike(case(precision)) for precision in ({"moments": "bf16"}, SMALLEST_BUT_ONE))
    assert found["iterations"] == expected["iterations"]
    assert found["weights"] == expected["weights"]
    assert found["masters"] == expected["masters"]


SMALLEST_BUT_ONE = {"moments": "bf16", "masters": "bf16_remainder"}
TWO: dict[str, tuple[dict[str, Any], float]] = {
    "dp2": ({}, 5e-6),
    "dp2-overlap": ({"overlap_grad_reduce": True, "overlap_param_gather": True}, 5e-6),
    "pp2": ({"pipeline": 2}, 5e-6),
    "tp2-sp": ({"tensor": 2, "sequence_parallel": True}, 2e-3),
    "cp2": ({"context": 2}, 2e-3),
}


@pytest.mark.slow
def test_ranks_train_what_one_process_trains(on_ranks: Callable[..., list[Any]], trained: dict[str, Any]) -> None:
    """As exact as with fp32 states: tensor and context parallel round bf16 activations elsewhere (test_layouts)."""
    cases = {f"{layout}/{name}": case(EACH[name], **TWO[layout][0]) for layout in TWO for name in ("all", "masters")}
    cases["dp2/fp8"] = case(EACH["fp8"])
    found = on_ranks(2, "layouts", {"cases": cases})
    for label in cases:
        layout, _, name = label.partition("/")
        # A gradient's sum over ranks is rounded once more than that of one process.
        tolerance = max(TWO[layout][1], {"all": 3e-4, "fp8": 1e-3, "masters": 0.0}[name])
        for rank in found:
            assert furthest(losses(rank[label]["iterations"]), losses(trained[name]["iterations"])) <= tolerance, label
        assert found[0][label]["iterations"] == found[1][label]["iterations"]


@pytest.mark.slow
def test_four_ranks_train_what_one_process_trains(on_ranks: Callable[..., list[Any]], trained: dict[str, Any]) -> None:
    cases = {"pp2-dp2": case(SMALLEST, pipeline=2), "tp2-dp2": case(SMALLEST, tensor=2), "dp4": case(SMALLEST)}
    found = on_ranks(4, "layouts", {"cases": cases})
    for label in cases:
        tolerance = 2e-3 if label.startswith("tp2") else 3e-4
        apart = furthest(losses(found[0][label]["iterations"]), losses(trained["all"]["iterations"]))
        assert apart <= tolerance, (label, apart)


@pytest.mark.slow
def test_parts_of_a_gradient_are_added_in_fp32_and_rounded_once(on_ranks: Callable[..., list[Any]]) -> None:
    """The parts of 1, 2^-9, 2^-9 and 2^-8: bf16 sums would stay at 1 in two orders of three."""
    assert on_ranks(4, "reduced", {"parts": [1.0, 2.0**-9, 2.0**-9, 2.0**-8]}) == [1.0 + 2.0**-7] * 4


def label(ranks: int, layout: dict[str, Any]) -> str:
    return f"{ranks} " + " ".join(f"{key}={value}" for key, value in layout.items())


LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}],
    2: [{}, {"tensor": 2, "sequence_parallel": True}, {"pipeline": 2}],
    4: [{}, {"tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
}


FEWER: dict[int, list[dict[str, Any]]] = {1: [{}], 2: [{}, {"tensor": 2, "sequence_parallel": True}]}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layouts"), [("all", LAYOUTS), ("fp8", FEWER)], ids=["all", "fp8"])
def test_every_layout_resumes_from_every_layout(
    on_ranks: Callable[..., list[Any]], tmp_path: Path, name: str, layouts: dict[int, list[dict[str, Any]]]
) -> None:
    """Bit-equal on the layout that saved, else within bf16's rounding."""
    model, precision = {"num_query_groups": 4, "num_layers": 4}, EACH[name]
    cases = {n: {label(n, one): {**SHARDED, **one} for one in some} for n, some in layouts.items()}
    given: dict[str, Any] = {"directory": str(tmp_path), "dtype": "bf16", "model": model, "precision": precision}
    written: dict[str, list[float]] = {}
    for ranks, some in cases.items():
        written |= on_ranks(ranks, "writes", {**given, "layouts": some})[0]
    assert len(written) == sum(map(len, layouts.values()))
    for ranks, some in cases.items():
        found = on_ranks(ranks, "reads", {**given, "layouts": some, "names": list(written)})[0]
        assert found.keys() == some.keys()
        for own, by_name in found.items():
            assert by_name.keys() == written.keys()
            assert by_name[own] == written[own]
            for source, read in by_name.items():
                assert read == pytest.approx(written[source], abs=4e-3), (source, own)


@pytest.mark.parametrize("name", EACH)
def test_one_process_resumes_bit_equal(program: ModuleType, tmp_path: Path, name: str, alone: None) -> None:
    found = program.resumes({"it": [case(EACH[name])]}, str(tmp_path))["it"]
    assert found["resumed"][0] == found["uninterrupted"]


@pytest.mark.slow
def test_every_setting_resumes_from_others(program: ModuleType, tmp_path: Path, alone: None) -> None:
    """Only the rounding of what one of both keeps in less than fp32 differs."""
    configs = {"fp32 whole": {"dtype": "bf16"}, **{name: case(precision) for name, precision in EACH.items()}}
    names, readers = list(configs), ("fp32 whole", "fp8", "all")
    cases = {own: [configs[own], *(configs[name] for name in readers if name != own)] for own in names}
    resumed_by_name = program.resumes(cases, str(tmp_path))
    assert list(resumed_by_name) == names
    for own, found in resumed_by_name.items():
        assert len(found["resumed"]) == 1 + len({*readers} - {own})
        for resumed in found["resumed"]:
            assert furthest(losses(resumed), losses(found["uninterrupted"])) <= 3e-4


def test_fp32_masters_survive_remainders_and_bf16_moments_survive_fp32(
    program: ModuleType, tmp_path: Path, alone: None
) -> None:
    """fp32 -> remainder -> fp32 and bf16 -> fp32 -> bf16: the same bytes; fp32 -> bf16: rounded to nearest even."""
    start = program.saved_state(case({}), tmp_path / "fp32", iterations=3)
    there = program.saved_state(case(SMALLEST_BUT_ONE), tmp_path / "less", load=tmp_path / "fp32")
    back = program.saved_state(case({}), tmp_path / "back", load=tmp_path / "less")
    again = program.saved_state(case(SMALLEST_BUT_ONE), tmp_path / "again", load=tmp_path / "back")
    assert {name.partition(".")[0] for name in start} == {"model", "exp_avg", "exp_avg_sq"}
    for name, tensor in start.items():
        weight = name.startswith("model.")
        assert str(there[name].dtype) == ("torch.float32" if weight else "torch.bfloat16")
        assert there[name].equal(tensor if weight else tensor.bfloat16()), name
        assert back[name].equal(there[name].float()), name
        assert again[name].equal(there[name]), name


def test_fp8_moments_survive_bf16_ones(program: ModuleType, tmp_path: Path, alone: None) -> None:
    """A checkpoint has the numbers of E4M3 as bf16; FP8 -> bf16 -> FP8: the same bytes."""
    start = program.saved_state(case(EACH["fp8"]), tmp_path / "fp8", iterations=3)
    there = program.saved_state(case(SMALLEST), tmp_path / "bf16", load=tmp_path / "fp8")
    back = program.saved_state(case(EACH["fp8"]), tmp_path / "back", load=tmp_path / "bf16")
    assert {name.partition(".")[0] for name in start} == {"model", "exp_avg", "exp_avg_sq"}
    for name, tensor in start.items():
        assert there[name].equal(tensor), name
        assert back[name].equal(tensor), name
        if name.startswith("exp_avg."):
            assert tensor.any()
            assert not (tensor.view(torch.int16) & 0b1111).any()  # 3 bits of 7 are used


def test_weights_alone_begin_with_exact_masters_and_new_moments(
    program: ModuleType, tmp_path: Path, alone: None
) -> None:
    start = program.saved_state(case({}), tmp_path / "fp32", iterations=3)
    found = program.saved_state(case(SMALLEST), tmp_path / "less", load=tmp_path / "fp32", weights_only=True)
    assert found.keys() == start.keys() != set()
    for name, tensor in start.items():
        assert found[name].equal(tensor) if name.startswith("model.") else not found[name].any()


def test_moments_in_bf16_take_half_of_their_bytes_on_disk(program: ModuleType, tmp_path: Path, alone: None) -> None:
    sizes = {}
    for name in ("fp32", "all", "fp8"):
        saved = program.saved_state(case(EACH[name]), tmp_path / name)
        sizes[name] = sum(tensor.nbytes for tensor in saved.values()) / sum(
            tensor.numel() for key, tensor in saved.items() if key.startswith("model.")
        )
    assert sizes == {"fp32": 12, "all": 8, "fp8": 8}


def test_a_gradient_that_is_not_finite_reaches_no_state(program: ModuleType, alone: None) -> None:
    found = program.skips({"it": {"parallel": SHARDED, "dtype": "bf16", "precision": SMALLEST}})["it"]
    assert found["skipped"]
    assert found["unchanged"]


def test_a_gpu_without_transformer_engine_is_refused_by_name(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megacode.mcore import layout_check, te

    monkeypatch.setattr(te, "_on_gpu", lambda: True)
    monkeypatch.setattr(te, "installed", lambda: "")
    with pytest.raises(
        ConfigError, match="moments in bf16 need Transformer Engine's Adam: Transformer Engine is not installed"
    ) as caught:
        layout_check.check_model(program.run_config(**case(SMALLEST)))
    assert caught.value.problems[0].where == "precision.moments"
