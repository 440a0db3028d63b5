"""The plan's peak memory against that of real steps on one GPU, and the tensors that explain it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megacode.capacity.hardware import GIB, load_hardware
from megacode.capacity.layout import Layout
from megacode.capacity.memory import Memory, fullest, stage_memory

Place = Callable[..., Layout]

# GiB of tensors at the peak, and reserved by torch with expandable_segments, on one H200, sequences of 8,192 tokens, by
# preset, micro-batch, FP8 and whether the output layer is in it: tools/bench/gpu_step.py, 2026-11-27.
MEASURED = [
    ("to-code-2.8b", 1, None, False, 66.67, 67.40),
    ("to-code-2.8b", 4, None, False, 124.07, 126.02),
    ("to-code-2.8b", 2, "delayed", False, 88.09, 90.18),
    ("to-code-2.8b", 2, "delayed", True, 98.24, 100.34),
    ("to-code-2.8b", 2, "blockwise", False, 88.28, 90.39),
    ("to-code-470m", 4, None, False, 38.04, 38.36),
    ("to-code-470m", 4, "delayed", False, 37.55, 37.96),
]


@pytest.mark.parametrize(("preset", "micro", "recipe", "output_layer", "tensors", "reserved"), MEASURED)
def test_the_plan_gives_the_peak_that_was_measured(
    on_one_gpu: Place, preset: str, micro: int, recipe: str | None, output_layer: bool, tensors: float, reserved: float
) -> None:
    memory = fullest(on_one_gpu(preset, micro, recipe, output_layer), load_hardware("H200"), "transformer_engine")
    assert memory.tensors / GIB == pytest.approx(tensors, rel=0.01)
    assert memory.reserved / GIB == pytest.approx(reserved, rel=0.02)


def memory_of(placed: Layout) -> Memory:
    return stage_memory(placed, 0, load_hardware("H200"), "transformer_engine")


def test_an_output_layer_in_fp8_keeps_its_gradient_twice(place: Place) -> None:
    plain, output = (
        memory_of(place(precision={"fp8": {"recipe": "delayed", "output_layer": on}})) for on in (False, True)
    )
    assert output.logits - plain.logits == 2 * 32768 * 2048
    assert plain.logits == 2 * (32768 + 1024) * 2048


def test_stand_ins_are_given_for_the_engine_s_matrices_and_for_others_where_a_reduction_waits(place: Place) -> None:
    def stand_ins(gpus: int, overlap: bool, output_layer: bool, tied: bool = True) -> float:
        fp8: dict[str, Any] = {"fp8": {"recipe": "delayed", "output_layer": output_layer}}
        model = {"share_embeddings_and_output_weights": tied}
        placed = place(gpus, parallel={"overlap_grad_reduce": overlap}, precision=fp8, model=model)
        return memory_of(placed).stand_ins / 2

    layer, vocabulary = (4 + 3 * 4) * 1024**2, 32768 * 1024
    assert stand_ins(1, False, False) == layer
    assert stand_ins(8, True, False) == stand_ins(8, True, False, tied=False) == layer + vocabulary
    assert stand_ins(1, False, True) == stand_ins(8, True, True) == layer + vocabulary
    assert stand_ins(8, True, True, tied=False) == layer + 2 * vocabulary
