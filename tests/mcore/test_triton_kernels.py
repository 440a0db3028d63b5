"""Triton's kernels beside autograd's own of the same formula: on a GPU, or interpreted on a CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("triton_program.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.one_release,  # nothing here calls Megatron-core
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_each_kernel_computes_what_autograd_does() -> None:
    found = run_ranks(1, PROGRAM, "distances", forked=False)[0]
    assert len(found) == 12
    assert {name: distance for name, distance in found.items() if not distance < 1e-5} == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="two ranks on gloo take a CPU")
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_loss_of_a_vocabulary_in_slices(ranks: int) -> None:
    """With three ranks the last one's slice belongs to no token."""
    distances = run_ranks(ranks, PROGRAM, "sliced", forked=False)
    assert len(distances) == ranks
    assert all(distance < 1e-5 for distance in distances)
