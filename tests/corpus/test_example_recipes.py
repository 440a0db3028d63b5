"""Each recipe under examples/corpora is valid, and its inputs are the only thing that may be missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.corpus.kinds import KINDS
from megacode.corpus.recipe import load_recipe, read_recipe
from megacode.demo import demo_recipe

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "corpora"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_every_kind_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} >= set(KINDS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_is_a_valid_recipe(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_the_demo_makes_the_corpus_of_the_example() -> None:
    example, made = load_recipe(FOLDER / "machine.yaml"), read_recipe(demo_recipe(Path("runs/demo")), "demo")
    assert made == example
