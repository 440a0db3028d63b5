"""Inputs and directories that must not be taken for something else: each record is kept, counted, or an error."""

from __future__ import annotations

import errno
import html
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.corpus import made_before
from megacode.corpus.arrays import save_array
from megacode.corpus.engine import run_recipe
from megacode.corpus.estimate import plan_recipe
from megacode.corpus.framed import FramedWriter
from megacode.corpus.recipe import read_recipe
from megacode.corpus.work import shards_for

GOOD = "a text that every rule of these recipes keeps, with a number of its own: "
NOTEBOOK = {"cells": [{"cell_type": "code", "source": "print(1)"}], "metadata": {"language_info": {"name": "python"}}}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """Returns a function that makes a corpus from lines of JSON, and returns its manifest."""

    def made(lines: list[str], kind: str = "text", output: str = "out", again: bool = False, **recipe: Any) -> Any:
        (tmp_path / "raw.jsonl").write_text("".join(f"{line}\n" for line in lines))
        source = {"kind": kind, "inputs": [str(tmp_path / "raw.jsonl")], **recipe.pop("source", {})}
        document = {"name": "x", "output": str(tmp_path / output), "sources": {"s": source}, **recipe}
        return run_recipe(read_recipe(document, "recipe.yaml"), "test", overwrite=again)

    return made


def dropped(manifest: Any) -> dict[str, int]:
    """Return how many documents each reason dropped."""
    steps = manifest["funnel"]["s"]["steps"].values()
    return {reason: row["documents"] for step in steps for reason, row in step.items()}


def kept(manifest: Any) -> int:
    """Return the number of documents that are written, held-out ones too."""
    return sum(tally["documents"] for tally in manifest["sources"].values())


def text(*values: str) -> list[str]:
    return [json.dumps({"text": value}) for value in values]


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


ODD = st.one_of(
    st.text(max_size=30).map(lambda value: {"text": value}),
    st.sampled_from([{}, {"text": None}, {"text": 5}, {"text": ["a", "b"]}, {"text": {}}, {"id": [1], "text": "x"}]),
    st.sampled_from([{"text": GOOD, "meta": nested(300)}, {"text": json.dumps(NOTEBOOK), "path": "a.py"}]),
    st.sampled_from([{"text": json.dumps({**NOTEBOOK, "cells": cells})} for cells in (None, 5, [None], [{}])]),
    st.sampled_from([{"text": GOOD, "path": path} for path in ("a.py", "", "b", 5, "../../c.md", "\x1b.rs", "d.py")]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(st.lists(ODD, max_size=12), st.sampled_from(["text", "code", "notebooks"]), st.booleans())
def test_of_each_source_kept_and_dropped_add_up_to_what_was_read(
    make: Callable[..., Any], rows: list[Any], kind: str, duplicates: bool
) -> None:
    good = {"text": json.dumps(NOTEBOOK) if kind == "notebooks" else GOOD, "path": "a.py"}
    lines = [json.dumps(row) for row in [good, *rows]]
    source = {"held_out": 0.0, "skip_bad": True, "filters": {"preset": "none", "max_lines": 3}}
    more = {"duplicates": {}} if duplicates else {}
    manifest = make([*lines, "{no JSON"], kind, again=True, source=source, **more)
    funnel = manifest["funnel"]["s"]
    assert (funnel["records"], funnel["bad"]) == (len(lines), 1)
    assert kept(manifest) + sum(dropped(manifest).values()) == funnel["records"]


def test_what_can_be_read_but_not_written_is_counted(make: Callable[..., Any], tmp_path: Path) -> None:
    manifest = make([*text(GOOD, "", " \n\t"), json.dumps({"text": GOOD + "2", "meta": nested(300)})])
    reason = "no valid Unicode, or fields nested too deeply"
    assert dropped(manifest) == {"empty text": 2, reason: 1}
    half = {**NOTEBOOK, "cells": [{"cell_type": "code", "source": "print('\ud800')"}]}
    # As text inside the record: the reader of lines refuses such escapes, the reader of notebooks does not.
    manifest = make(text(json.dumps(half), json.dumps(NOTEBOOK)), "notebooks", "second")
    assert dropped(manifest) == {reason: 1}
    assert "print('?')" in (tmp_path / "second/corpus/card.html").read_text().replace("&#39;", "'")


def test_skipped_records_are_named_by_file_and_line(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [f"{{bad {number}" for number in range(5)]
    lines = [*text(GOOD), *bad, *text(GOOD + "2"), "[5]"]
    manifest = make(lines, source={"skip_bad": True})
    funnel = manifest["funnel"]["s"]
    assert (funnel["records"], funnel["bad"]) == (2, 6)
    assert [one.split(": ")[0].rpartition("/")[2] for one in funnel["skipped"]] == [f"raw.jsonl:{n}" for n in (2, 3, 4)]
    assert all(one.endswith(repr(line)) for one, line in zip(funnel["skipped"], bad, strict=False))
    assert funnel["skipped"][0] in caplog.text
    page = html.unescape((tmp_path / "out/corpus/card.html").read_text())
    assert all(one in page for one in funnel["skipped"])


def test_a_source_of_bad_records_only_says_so(make: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"sources\.s: none of its 2 records can be read"):
        make(["{", "["], source={"skip_bad": True})


def test_documents_to_compare_with_need_a_text(make: Callable[..., Any], tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    for number, row in enumerate([{"content": GOOD}, {"text": ""}, {"text": 5}, {"text": [{"token": "<a>"}]}]):
        held.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=r"duplicates\.against .*held\.jsonl:1: the record has no text to compare"):
            make(text(GOOD), output=str(number), duplicates={"against": [str(held)]})


def test_held_out_notebooks_of_another_recipe_are_compared_with(make: Callable[..., Any], tmp_path: Path) -> None:
    books = [{**NOTEBOOK, "cells": [{"cell_type": "code", "source": f"print({n})"}]} for n in range(4)]
    make(text(*map(json.dumps, books[:2])), "notebooks", "first")
    against = {"against": [str(tmp_path / "first/corpus/s/*.jsonl.zst")]}
    manifest = make(text(*map(json.dumps, books)), "notebooks", "second", duplicates=against)
    assert (kept(manifest), dropped(manifest)) == (2, {"exact duplicate": 2})


def test_overwrite_looks_for_the_items_of_the_new_recipe(make: Callable[..., Any], tmp_path: Path) -> None:
    items = [
        "one item of a good many words that nobody else has written",
        "another item, as long, of quite other words",
    ]
    lines = text(*(f"before it {item} and after it" for item in items), GOOD)
    files = [tmp_path / f"{number}.jsonl" for number in range(2)]
    for file, item in zip(files, items, strict=True):
        file.write_text(json.dumps({"text": item}) + "\n")
    hits = []
    for file in files:
        manifest = make(lines, again=True, decontaminate={"files": [str(file)]})
        (example,) = manifest["contamination"]["suites"][0]["tasks"][file.stem]["examples"]
        hits.append(example["span"])
    assert "good many" in hits[0]
    assert "quite other" in hits[1]
    # A call that was killed before its facts were written leaves the items of its recipe.
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/benchmarks.jsonl").write_text((tmp_path / "out/benchmarks.jsonl").read_text())
    manifest = make(lines, output="killed", decontaminate={"files": [str(files[0])]})
    assert "0" in manifest["contamination"]["suites"][0]["tasks"]
    assert make(lines, again=True)["contamination"] == {}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["map/shard", "reduce/x", "apply/x", "corpus/manifest.json", "facts.json"])
def test_files_that_no_recipe_made_are_left_alone(
    make: Callable[..., Any], tmp_path: Path, name: str, overwrite: bool
) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=rf"{name.split('/', maxsplit=1)[0]}: no recipe made this"):
        make(text(GOOD), again=overwrite)
    assert mine.read_text() == '{"mine": 1}'


def test_results_of_the_recipe_are_no_inputs_of_it(make: Callable[..., Any], tmp_path: Path) -> None:
    source = {"inputs": [str(tmp_path)]}
    sources = {"s": {"kind": "text", **source}}
    make(text(GOOD), source=source)
    with pytest.raises(ConfigError, match=r"this input is a result of the recipe itself: .*out/apply"):
        make(text(GOOD), source=source)
    with pytest.raises(ConfigError, match="is a result of the recipe itself"):
        plan_recipe(read_recipe({"name": "x", "output": str(tmp_path / "out"), "sources": sources}, "recipe.yaml"))


def test_of_many_changed_inputs_the_first_are_named(make: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "0.jsonl").write_text(text(GOOD)[0])
    source = {"inputs": [str(folder)]}
    make([], source=source)
    for number in range(1, 30):
        (folder / f"{number}.jsonl").write_text(text(GOOD)[0])
    with pytest.raises(ConfigError, match="and 21 more differences") as refused:
        make([], source=source)
    assert str(refused.value).count("there is a new input") == 8


def test_a_kill_while_old_results_are_removed_leaves_none_in_part(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(text(GOOD + "1"), duplicates={})

    def killed(path: Path) -> None:
        if path.is_dir():
            raise KeyboardInterrupt

    monkeypatch.setattr(made_before, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        make(text(GOOD + "1"), again=True)
    monkeypatch.undo()
    # Back to the recipe whose facts are still there: what is left of it is whole, and the rest is made again.
    assert make(text(GOOD + "1"), duplicates={})["funnel"] == first["funnel"]
    make(text(GOOD + "1"), again=True)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".removed")]


def test_one_large_file_is_divided_as_finely_as_many_small_ones() -> None:
    gigabyte = 1 << 30
    assert shards_for([("a.jsonl", 64 * gigabyte)]) == 1024
    assert shards_for([(f"{n}.jsonl", gigabyte) for n in range(64)]) == 1024
    # A compressed one is read from its beginning by each of its shards.
    assert shards_for([("a.jsonl.zst", 64 * gigabyte), ("b.jsonl", 1)]) == 17
    assert shards_for([]) == 1


def test_a_full_disk_is_told_by_the_file_that_did_not_fit() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        save_array(Path("/dev/full"), np.zeros(1 << 20))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")
    with pytest.raises(OSError, match="No space left") as error, FramedWriter(Path("/dev/full")) as writer:
        writer.write(random.Random(1).randbytes(1 << 20))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")


def test_a_plan_counts_the_programs_that_are_run(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(json.dumps({"text": "x" * 50_000}) + "\n")
    seconds = []
    for kind, settings_ in (("text", {}), ("synthetic", {"run_generated_code": True})):
        source = {"kind": kind, "inputs": str(tmp_path / "raw.jsonl"), "settings": settings_}
        recipe = read_recipe({"name": "x", "output": str(tmp_path / "out"), "sources": {"s": source}}, "r")
        seconds.append(plan_recipe(recipe)["cpu_seconds"]["map"])
    assert seconds[1] > 5 > seconds[0]
