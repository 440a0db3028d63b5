"""Studies in memory, small enough to be built many times."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.study.grid import Grid, build_grid
from megacode.study.study_file import read_study
from megacode.study.tree import Tree

COSINE = {"schedule": "cosine", "peak": 3e-4, "final": 3e-5, "warmup": "2 iterations"}
CONSTANT = {"schedule": "constant", "peak": 3e-4, "warmup": "2 iterations"}
STUDY: dict[str, Any] = {
    "seeds": [1, 2],
    "set": {
        "model": {
            "num_layers": 2,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "num_attention_heads": 4,
            "vocab_size": 99,
        },
        "sources": {"text": {"path": "data/text", "tokens": 40_000}, "code": {"path": "data/code", "tokens": 8_000}},
        "validation": {"fraction": 0},
        "train": {"seq_length": 16, "global_batch_size": 8},
    },
    "phases": {
        "balanced": {"iterations": 20, "blend": {"text": 0.5, "code": 0.5}, "learning_rate": COSINE},
        "text": {"iterations": 20, "blend": {"text": 0.9, "code": 0.1}, "learning_rate": COSINE},
        "trunk": {"iterations": 40, "blend": {"text": 0.7, "code": 0.3}, "learning_rate": CONSTANT},
        "cooldown": {"iterations": 5, "blend": {"text": 1}, "learning_rate": {"schedule": "linear", "final": 0}},
    },
    "arms": {"one": ["balanced"], "two": ["balanced", "text"], "three": ["text", "balanced", "cooldown"]},
    "baseline": "one",
}


@pytest.fixture
def study() -> dict[str, Any]:
    """A study of three arms and two seeds, as its file holds it; to be changed."""
    return copy.deepcopy(STUDY)


@pytest.fixture(scope="session")
def grid_of() -> Callable[[dict[str, Any]], Grid]:
    """Return a function from a study's document to its grid."""
    path = Path("small.yaml")
    return lambda document: build_grid(read_study(copy.deepcopy(document), path), path)


@pytest.fixture(scope="session")
def tree_of(grid_of: Callable[[dict[str, Any]], Grid]) -> Callable[[dict[str, Any]], Tree]:
    """Return a function from a study's document to its tree."""
    return lambda document: Tree(grid_of(document))
