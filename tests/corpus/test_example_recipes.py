"""Each recipe under examples/corpora names a kind and settings that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megacode.corpus.document import Counts
from megacode.corpus.filters import make_filters
from megacode.corpus.kinds import FILE_KINDS, KINDS, make_file_kind, make_kind
from megacode.corpus.licences import make_licence_filter
from megacode.corpus.personal_data import make_redactor

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "corpora").glob("*.yaml"))


def test_every_kind_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} >= set(KINDS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_s_settings_are_valid(path: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert recipe["sources"]
    for source in recipe["sources"].values():
        kind, settings = source["kind"], source.get("settings", {})
        if kind in FILE_KINDS:
            make_file_kind(kind, settings, Counts(), tmp_path)
        else:
            make_kind(kind, settings, Counts())
        make_filters(source.get("filters", {}))
        make_licence_filter(source.get("licences", {}))
        make_redactor(source.get("personal_data", {}))
