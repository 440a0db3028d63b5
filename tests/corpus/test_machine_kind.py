"""The kind `machine`: files of this machine as a source of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.corpus.engine import run_recipe
from megacode.corpus.estimate import plan_recipe
from megacode.corpus.recipe import Recipe, read_recipe
from megacode.data.machine_files import Shard

PROSE = "A sentence about {} that is long enough to be worth keeping in a corpus, number {}.\n"


@pytest.fixture
def made(tmp_path: Path) -> Recipe:
    root = tmp_path / "machine" / "package"
    root.mkdir(parents=True)
    for number in range(40):
        name = "word" + "abcdefghij"[number % 10] * (1 + number // 10)
        (root / f"{number}.txt").write_text("".join(PROSE.format(name, line) for line in range(6)))
        (root / f"{number}.md").write_text("# Page\n" + "".join(PROSE.format("x" + name, line) for line in range(6)))
    (root / "bad.txt").write_bytes(b"\xff\xfe" * 200)
    sources = {
        "prose": {
            "kind": "machine",
            "inputs": str(tmp_path / "machine"),
            "settings": {"files": "text"},
            "held_out": 0.2,
        },
        "markup": {"kind": "machine", "inputs": str(tmp_path / "machine")},
    }
    return read_recipe({"name": "here", "output": str(tmp_path / "out"), "sources": sources}, "here.yaml")


def test_files_of_this_machine_become_sources_and_what_was_not_collected_is_counted(made, tmp_path):
    plan = plan_recipe(made)
    assert [source["collected"] for source in plan["sources"]] == [False, False]
    manifest = run_recipe(made, "test")
    assert manifest is not None
    sizes = {name: source["documents"] for name, source in manifest["sources"].items()}
    assert sizes["markup"] == sizes["prose"] + sizes["prose.held_out"] == 40
    assert sizes["prose.held_out"] > 0
    assert manifest["funnel"]["prose"]["steps"]["kind"]["not UTF-8"]["documents"] == 1
    assert manifest["funnel"]["prose"]["records"] == 41
    assert run_recipe(made, "test") == manifest
    assert plan_recipe(made)["done"]["complete"]


def test_another_recipe_is_refused_before_files_are_collected_for_it(made, tmp_path):
    run_recipe(made, "test")
    before = (tmp_path / "out/collected/collect.json").read_bytes()
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        run_recipe(made.model_copy(update={"seed": 1}), "test")
    assert (tmp_path / "out/collected/collect.json").read_bytes() == before


def test_a_shard_waits_for_the_files_to_be_collected(made):
    with pytest.raises(ConfigError, match="have not been collected yet"):
        run_recipe(made, "test", shard=Shard(0, 2), only="map")
    run_recipe(made, "test", only="prepare")


def test_what_to_collect_must_be_known(made):
    other = made.model_copy(update={"sources": {"prose": made.sources["markup"]}})
    with pytest.raises(ConfigError, match="which files of this machine are meant by 'prose' is unknown"):
        run_recipe(other, "test")
