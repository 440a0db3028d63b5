"""The figures of docs/mixture.md, in small: intervals cover, and checked laws are no worse than the best arm."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench" / "mixture.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_mixture", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_optimum_gain_mean_and_new_arm_lie_in_their_intervals(bench: ModuleType) -> None:
    hits = bench.coverage(studies=50, sources=3, arms=9, noise=0.01)
    assert set(hits) == {"optimum", "gain", "mean", "new"}
    assert min(hits.values()) >= 0.88


@pytest.mark.parametrize("form", ["exponential", "power"])
def test_laws_that_pass_the_checks_beat_the_best_arm(bench: ModuleType, form: str) -> None:
    found = bench.regret(studies=12, form=form, arms=12, chosen=True)
    assert found["law or best arm"] <= found["best arm"]
    assert found["rank"] > 0.8
    few = bench.regret(studies=6, form=form, arms=6, chosen=False)
    assert few["refused"] == 1


def test_chosen_arms_teach_more_than_random_ones(bench: ModuleType) -> None:
    errors = bench.design(studies=12)
    assert errors["chosen"] < errors["random"]
