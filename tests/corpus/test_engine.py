"""A recipe's passes: what is kept does not depend on shards, processes, order of inputs, or kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard

from megacode.base.claims import claimed, remove_drafts
from megacode.base.errors import ConfigError, DataError
from megacode.base.user_paths import DiskFullError, explained
from megacode.corpus import map_pass
from megacode.corpus.engine import run_recipe
from megacode.corpus.filters.settings import PRESETS
from megacode.corpus.kinds import VERSIONS
from megacode.corpus.recipe import Recipe
from megacode.data.machine_files import Shard
from tests.corpus.conftest import ITEM
from tests.limits import HANG


def kept(output: Path) -> dict[str, list[str]]:
    """Return the ids that each source keeps, in order."""
    found: dict[str, list[str]] = {}
    for path in sorted(output.glob("corpus/*/*.jsonl.zst")):
        lines = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
        found.setdefault(path.parent.name, []).extend(json.loads(line)["id"] for line in lines.splitlines())
    return found


def sharded(recipe: Recipe, count: int) -> Any:
    for index in range(count):
        run_recipe(recipe, "test", shard=Shard(index, count), only="map")
    run_recipe(recipe, "test", only="reduce")
    manifest = None
    for index in range(count):
        manifest = run_recipe(recipe, "test", shard=Shard(index, count), only="apply")
    return manifest


def test_planted_duplicates_and_items_go_and_everything_else_stays(recipe, tmp_path):
    manifest = run_recipe(recipe(), "test")
    found = kept(tmp_path / "out")
    ids = [one for some in found.values() for one in some]
    assert len(ids) == len(set(ids)) == 120
    # Copies of the first 24 documents follow the 120 originals; then the two with an item, and two short ones.
    clusters = [{f"d{n}", f"d{120 + n}"} for n in range(24)]
    assert all(len(cluster & set(ids)) == 1 for cluster in clusters)
    assert {f"d{n}" for n in range(24, 120)} <= set(ids)
    assert manifest["duplicates"]["dropped"] == {
        "exact duplicate": 8, "duplicate but for case and white space": 6, "near-duplicate": 10
    }  # fmt: skip
    (suite, held_out) = manifest["contamination"]["suites"]
    assert suite["tasks"]["rivers"]["items_hit"] == 1
    assert suite["tasks"]["rivers"]["examples"][0]["span"] == ITEM
    assert held_out["suite"] == "held-out documents"
    steps = [step for one in manifest["funnel"].values() for step in one["steps"].items()]
    dropped = {reason: row["documents"] for _, rows in steps for reason, row in rows.items()}
    assert dropped["benchmark item"] >= 1
    assert all(len(row["examples"]) >= 1 for _, rows in steps for row in rows.values())


def with_inputs(recipe: Recipe, **inputs: list[str]) -> Recipe:
    """Return a recipe with other inputs of some sources; new ones are like the first."""
    sources = dict(recipe.sources)
    for name, files in inputs.items():
        sources[name] = sources.get(name, sources["first"]).model_copy(update={"inputs": tuple(files)})
    return recipe.model_copy(update={"sources": sources})


def test_one_seven_and_sixteen_shards_keep_the_same_documents_in_the_same_order(recipe, tmp_path):
    run_recipe(recipe("one"), "test")
    one = kept(tmp_path / "one")
    assert {"first", "second", "second.held_out"} == set(one)
    for count in (7, 16):
        manifest = sharded(recipe(f"many{count}"), count)
        assert kept(tmp_path / f"many{count}") == one
        assert manifest["shards"] == count
    two = json.loads((tmp_path / "one/corpus/manifest.json").read_text())
    # Counts, histograms, samples and examples add up to the same.
    for key in ("sources", "funnel", "contamination"):
        assert manifest[key] == two[key], key


def test_inputs_in_reverse_order_keep_the_same_documents(recipe, inputs, tmp_path):
    run_recipe(recipe("forward"), "test")
    run_recipe(with_inputs(recipe("backward"), second=[f"{inputs}/2.jsonl", f"{inputs}/1.jsonl"]), "test")
    before, after = kept(tmp_path / "forward"), kept(tmp_path / "backward")
    assert {name: sorted(ids) for name, ids in before.items()} == {name: sorted(ids) for name, ids in after.items()}
    assert before != after


def test_two_processes_make_the_same_bytes_as_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("megacode.corpus.work.SHARD_BYTES", 16 << 10)
    run_recipe(recipe("one"), "test")
    run_recipe(recipe("two"), "test", processes=2)
    assert len(list((tmp_path / "one/map").iterdir())) > 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def contents(output: Path) -> dict[str, bytes]:
    """Return the files of a corpus, without what says how long it took and where it is."""
    files = {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    assert not [name for name in files if "tmp" in name], list(files)
    return {name: raw for name, raw in files.items() if not name.endswith("timing.json") and ".claim" not in name}


def test_a_second_call_does_only_what_is_missing(recipe, tmp_path):
    made = sharded(recipe(), 4)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run_recipe(recipe(), "another command") == made
    assert {path: path.stat().st_mtime_ns for path in before} == before
    marker = tmp_path / "out/apply/shard_0002_of_0004.json"
    marker.unlink()
    (tmp_path / "out/corpus/manifest.json").unlink()
    assert run_recipe(recipe(), "test") == made
    again = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert marker in again
    assert not [path for path in again if "0001" in path.name or "map" in str(path)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe", r"the recipe has changed: duplicates.threshold was 0.7, now 0.8"),
        ("input", r"the input .*2\.jsonl has changed: [\d,]+ bytes before, [\d,]+ now"),
        ("new", r"there is a new input: .*3\.jsonl"),
        ("rules", r"the rules have changed: engine was 1, now 2"),
        ("kind", r"the rules have changed: kinds.text was 1, now 2"),
        ("presets", r"the rules have changed: presets was .*, now"),
        ("shards", r"the earlier call had 1 shards, this one 3"),
        ("items", r"the rules have changed: benchmark_files"),
    ],
)
def test_what_has_changed_since_the_earlier_call_is_named_and_not_mixed(
    recipe, inputs, tmp_path, monkeypatch, change, message
):
    run_recipe(recipe(), "test")
    before = contents(tmp_path / "out")
    changed, shard = recipe(), None
    if change == "recipe":
        changed = recipe(duplicates={"threshold": 0.8})
    elif change == "input":
        with (inputs / "2.jsonl").open("a") as file:
            file.write('{"text": "one more document"}\n')
    elif change == "new":
        (inputs / "3.jsonl").write_text((inputs / "2.jsonl").read_text())
    elif change == "rules":
        monkeypatch.setattr("megacode.corpus.rules.ENGINE", 2)
    elif change == "kind":
        monkeypatch.setitem(VERSIONS, "text", 2)
    elif change == "presets":
        (tmp_path / "presets.yaml").write_text(PRESETS.read_text() + "# a comment\n")
        monkeypatch.setattr("megacode.corpus.rules.PRESETS", tmp_path / "presets.yaml")
    elif change == "items":
        (tmp_path / "items.jsonl").write_text('{"text": "another item with a few more words than five"}\n')
    else:
        shard = Shard(0, 3)
    with pytest.raises(ConfigError, match=message) as refused:
        run_recipe(changed, "test", shard=shard)
    assert "--overwrite" in str(refused.value)
    assert contents(tmp_path / "out") == before
    run_recipe(changed, "test", shard=shard, overwrite=True)


def test_a_file_that_was_only_touched_has_not_changed(recipe, inputs):
    made = run_recipe(recipe(), "test")
    os.utime(inputs / "0.jsonl")
    assert run_recipe(recipe(), "test") == made


def test_two_commands_on_one_output_directory_exclude_each_other(recipe, tmp_path):
    with claimed(tmp_path / "out", "output"), pytest.raises(ConfigError, match="is being made by"):
        run_recipe(recipe(), "test")
    shard = tmp_path / "out/map/shard_0001_of_0003"
    with claimed(shard, "--shard"), pytest.raises(ConfigError, match="shard_0001_of_0003 is being made by"):
        run_recipe(recipe(), "test", shard=Shard(1, 3), only="map")
    run_recipe(recipe(), "test", shard=Shard(1, 3), only="map")


def test_a_recipe_that_drops_everything_names_the_rule_that_does(recipe, tmp_path):
    strict = recipe()
    first = strict.sources["first"].model_copy(update={"filters": {"preset": "none", "min_characters": 100_000}})
    with pytest.raises(
        DataError, match=r"sources.first: no document is left after filters: all of \d+ records were dr"
    ):
        run_recipe(strict.model_copy(update={"sources": {**strict.sources, "first": first}}), "test")
    assert not (tmp_path / "out/corpus").exists()


def test_a_source_that_duplicates_empty_is_refused(recipe, inputs, tmp_path):
    (inputs / "9.jsonl").write_text((inputs / "0.jsonl").read_text())
    with pytest.raises(DataError, match=r"sources\.third: no document is left after duplicates"):
        run_recipe(with_inputs(recipe(), third=[f"{inputs}/9.jsonl"]), "test")


def test_a_missing_input_names_the_source_that_asks_for_it(recipe):
    with pytest.raises(DataError, match=r"sources.first.inputs nowhere/\*.jsonl: there is no such file"):
        run_recipe(with_inputs(recipe(), first=["nowhere/*.jsonl"]), "test")


def test_a_full_disk_says_where_and_leaves_nothing_half_written(recipe, tmp_path, monkeypatch):
    def full(path: Path) -> Any:
        class Writer(map_pass_writer):
            def _flush(self) -> None:
                raise OSError(28, "No space left on device", str(path))

        return Writer(path)

    map_pass_writer = map_pass.FramedWriter
    monkeypatch.setattr(map_pass, "FramedWriter", full)
    with pytest.raises(OSError, match="No space left") as error:
        run_recipe(recipe(), "test")
    shown = explained(error.value)
    assert isinstance(shown, DiskFullError)
    assert not list((tmp_path / "out/map").iterdir())
    monkeypatch.undo()
    assert run_recipe(recipe(), "test") is not None


def test_a_pass_before_its_turn_says_what_must_be_done_first(recipe):
    run_recipe(recipe(), "test", shard=Shard(0, 2), only="map")
    with pytest.raises(DataError, match="the map pass of 1 of 2 shards has not been done: 1/2"):
        run_recipe(recipe(), "test", only="reduce")
    run_recipe(recipe(), "test", task=Shard(1, 2), only="map")
    with pytest.raises(DataError, match="the reduce pass has not been done"):
        run_recipe(recipe(), "test", shard=Shard(0, 2), only="apply")


def test_what_a_killed_reduce_pass_left_is_deleted_by_the_next_call(recipe, tmp_path):
    for only in ("map", "reduce"):
        run_recipe(recipe(), "test", only=only)
    scratch = tmp_path / "out" / "reduce" / "scratch"
    scratch.mkdir()
    (scratch / "state.json").write_text("{}")
    assert run_recipe(recipe(), "test") is not None
    assert not scratch.exists()


def test_passes_that_one_process_does_are_not_done_by_shard(recipe):
    with pytest.raises(ConfigError, match="--shard: the reduce pass is not done by shard"):
        run_recipe(recipe(), "test", shard=Shard(0, 2), only="reduce")
    with pytest.raises(ConfigError, match="cannot be given together"):
        run_recipe(recipe(), "test", shard=Shard(0, 2), task=Shard(0, 2), only="map")


def test_what_killed_passes_were_writing_is_removed(recipe, tmp_path):
    sharded(recipe("whole"), 2)
    made = recipe("killed")
    for number in range(2):
        run_recipe(made, "test", shard=Shard(number, 2), only="map")
    shards = [f"shard_{number:04d}_of_0002" for number in range(2)]
    drafts = [f"apply/.{shard}{end}.1.tmp" for shard in shards for end in (".json", ".dropped.jsonl.zst")]
    drafts += [f"reduce/.{path.name}.1.tmp" for path in (tmp_path / "whole/reduce").glob("*.*")]
    assert len(drafts) >= 7
    for draft in drafts:
        (tmp_path / "killed" / draft).parent.mkdir(exist_ok=True)
        (tmp_path / "killed" / draft).write_text("half of it")
    run_recipe(made, "test", only="reduce")
    for number in range(2):
        run_recipe(made, "test", shard=Shard(number, 2), only="apply")
    assert contents(tmp_path / "killed").keys() == contents(tmp_path / "whole").keys()


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_bytes_are_those_of_an_undisturbed_run(recipe, inputs, tmp_path):
    settings = {
        "name": "planted",
        "sources": {"only": {"kind": "text", "inputs": [str(inputs)], "held_out": 0.1}},
        "duplicates": {"threshold": 0.7},
        "decontaminate": {"held_out": True},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**settings, "output": "out"}))
    program = (
        "import sys; from megacode.corpus import work; work.SHARD_BYTES = 4096; from megacode.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "data", "corpus", "r.yaml", "--output"]

    def start(output: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, output], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    begun = time.monotonic()
    assert start("whole").wait(HANG) == 0
    duration, rng, kills, process = time.monotonic() - begun, random.Random(1), 0, start("killed")
    while kills < 10:
        try:
            process.wait(rng.uniform(0.2, 0.6) * duration)
        except subprocess.TimeoutExpired:
            done = {path.name for path in (tmp_path / "killed").glob("map/shard_*")}
            os.kill(process.pid, signal.SIGKILL)
            process.wait(HANG)
            assert done <= {path.name for path in (tmp_path / "killed").glob("map/shard_*")}
        kills, process = kills + 1, start("killed")
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == 0, said
    changed = {"facts.json", "corpus/manifest.json", "corpus/card.html"}  # they name the command line
    for name in changed:  # tasks of an array may write them at any time, so no call removes another's drafts of them
        remove_drafts(tmp_path / "killed" / name)
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert not [name for name in whole if whole[name] != killed[name] and name not in changed]
