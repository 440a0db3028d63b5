"""The data card of an indexed data set: its figures are those of Megatron's reader, and its page has no way out."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset
from tokenizers import Tokenizer

from megacode.corpus.data_set_card import data_set_card, render_data_set_card
from megacode.corpus.data_set_pass import Copies, read_data_set
from megacode.corpus.decontaminate import items_from_file
from megacode.corpus.engine import run_recipe
from megacode.data.indexed import IndexedDataset, IndexedDatasetWriter
from megacode.data.tokenizer import load_tokenizer, tokenizer_at
from megacode.data.train_tokenizer import train_tokenizer
from tests.corpus.conftest import ITEM, document
from tests.corpus.test_card import HOSTILE, Elements

Call = Callable[..., int]


@pytest.fixture
def data_set(call: Call, recipe, tmp_path: Path) -> str:
    """A data set made of a recipe's corpus with `tokenizer/`, of the source `second`; returns its prefix."""
    run_recipe(recipe(duplicates=None, decontaminate=None), "megacode data corpus recipe.yaml")
    source = tmp_path / "out/corpus/second"
    train_tokenizer("huggingface", [str(source)], 300, tmp_path / "tokenizer")
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tmp_path / "tokenizer")]
    prefix = str(tmp_path / "data")
    assert call("data", "preprocess", "--input", str(source), "--output-prefix", prefix, *kind, "--append-eod") == 0
    return f"{prefix}_text_document"


def test_figures_are_those_that_megatrons_reader_gives(data_set, tmp_path) -> None:
    tokenizer = load_tokenizer(tokenizer_at(str(tmp_path / "tokenizer")))
    made = data_set_card(data_set, tokenizer, [], "command")
    theirs = MegatronDataset(data_set)
    documents = [tuple(theirs[number].tolist()) for number in range(len(theirs))]
    assert (made.found.documents, made.found.tokens) == (len(documents), sum(map(len, documents)))
    assert made.found.longest == max(map(len, documents))
    assert sum(made.found.lengths.values()) == len(documents)
    counts = Counter(documents)
    assert made.found.copies["copies"] == len(documents) - len(counts)
    assert made.found.copies["copies"] > 0
    assert made.found.copies["clusters"]["number"] == sum(count > 1 for count in counts.values())
    assert made.found.ended == made.found.decoded == len(documents)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
    size = sum(len(library.decode(list(ids[:-1])).encode()) for ids in documents)
    assert made.bytes_per_token == size / sum(len(ids) - 1 for ids in documents)
    assert f"{made.found.tokens:,}" in made.facts()[0]["value"]


def test_what_a_recipe_did_is_on_the_card(data_set) -> None:
    made = data_set_card(data_set, None, [], "command")
    (recipe,) = made.recipes
    # Its other source, and what it held out, did not go into the data set.
    assert list(recipe["sources"]) == list(recipe["funnel"]) == ["second"]
    page = render_data_set_card(made)
    assert "Recipe planted" in page
    assert ">MIT<" in page
    assert "too few characters" in page or "filters" in page
    Path(made.manifest.inputs[0]["path"]).parents[1].joinpath("manifest.json").unlink()
    assert data_set_card(data_set, None, [], "command").recipes == []


@pytest.mark.parametrize("suite", ["items.jsonl"])
def test_the_command_writes_and_prints_the_card(suite, data_set, call: Call, tmp_path, capsys) -> None:
    page, tokenizer = tmp_path / "a card.html", str(tmp_path / "tokenizer")
    given = ["--tokenizer", tokenizer, "--card", str(page), "--suite", str(tmp_path / suite), "--verify"]
    assert call("data", "inspect", data_set, *given) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 items occur in " in out
    assert "which were dropped" not in out
    found = Elements(page.read_text(encoding="utf-8"))
    assert {"pre", "svg", "details"} <= found.tags
    assert ITEM[:40] in page.read_text(encoding="utf-8")
    assert "--suite" in page.read_text(encoding="utf-8")
    assert call("data", "inspect", data_set, *given) == 2
    assert "already exists" in capsys.readouterr().err
    assert call("data", "inspect", data_set, *given, "--overwrite") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--suite", "to-code"], "give --card FILE.html"),
        (["--suite", "to-code", "--card", "c.html"], "give --tokenizer"),
        (["--card", "."], "is a directory"),
    ],
)
def test_wrong_options_are_explained(given, message, data_set, call: Call, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("data", "inspect", data_set, *given) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c.html").exists()


def test_hostile_texts_and_ids_stay_text(call: Call, tmp_path) -> None:
    rows = [{"text": f"{HOSTILE} {number} " * 20, "id": f"{HOSTILE}{number % 5}"} for number in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    train_tokenizer("huggingface", [str(tmp_path / "in.jsonl")], 300, tmp_path / "tokenizer")
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tmp_path / "tokenizer")]
    prefix = ["--output-prefix", str(tmp_path / "x"), "--id-key", "id"]
    assert call("data", "preprocess", "--input", str(tmp_path / "in.jsonl"), *prefix, *kind) == 0
    tokenizer = load_tokenizer(tokenizer_at(str(tmp_path / "tokenizer")))
    page = render_data_set_card(data_set_card(str(tmp_path / "x_text_document"), tokenizer, [], f"x {HOSTILE}"))
    found = Elements(page)
    assert not found.tags & {"script", "img", "iframe", "link", "object"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert "\u202e" not in page
    assert "10 of 20 documents (50.00 %)" in page


def test_a_data_set_of_another_tool_has_a_card_too(tmp_path) -> None:
    with IndexedDatasetWriter(tmp_path / "bare", "int32") as writer:
        writer.add(np.array([1, 2, 3, 1, 2, 3, 9]), np.array([3, 3, 1]), np.array([1, 0, 1, 1]))
    made = data_set_card(str(tmp_path / "bare"), None, [], "command")
    assert (made.found.documents, made.found.empty, made.found.copies["copies"]) == (4, 1, 1)
    assert made.totals()["bytes per token"] == "no tokenizer given"
    assert "no manifest" in render_data_set_card(made)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 20), st.integers(1, 7))
def test_copies_are_counted_in_bounded_memory(values: list[int], most: int, step: int) -> None:
    # Spread over all 64 bits, as real hashes are.
    hashes = [random.Random(value).getrandbits(64) for value in values]
    copies = Copies(most)
    for first in range(0, len(hashes), step):
        part = hashes[first : first + step]
        copies.add(np.array(part, np.uint64), np.arange(first, first + len(part), dtype=np.uint64))
        assert copies._held <= most
    report, later = copies.report()
    sampled = [value for value in hashes if value < 2 ** (64 - copies.zero_bits)]
    assert report["documents"] == len(sampled)
    assert report["copies"] == len(later) == len(sampled) - len(set(sampled))
    assert sorted(later.tolist()) == [
        place for place, value in enumerate(hashes) if value in sampled and value in hashes[:place]
    ]
    assert copies.zero_bits > 0 or len(hashes) <= most


def test_items_are_found_by_words_that_many_copies_of_a_page_do_not_make_common(tmp_path) -> None:
    rng = random.Random(3)
    texts = [document(rng, 60) for _ in range(40)] + [f"{document(rng, 9)} {ITEM}"] * 30
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer("huggingface", [str(tmp_path / "in.jsonl")], 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tokenizer_at(str(tmp_path / "tokenizer")))
    encoded = [tokenizer.encode(text) for text in texts]
    with IndexedDatasetWriter(tmp_path / "leaked", "int32") as writer:
        writer.add(np.concatenate(encoded), np.array([len(ids) for ids in encoded]))
    (tmp_path / "items.jsonl").write_text(json.dumps({"task": "rivers", "text": ITEM}) + "\n")

    found = read_data_set(IndexedDataset(tmp_path / "leaked"), tokenizer, [items_from_file(tmp_path / "items.jsonl")])
    assert found.contamination["documents"] == 30
