"""Tokens on a recipe's card, and tokenizers that are trained on what a recipe keeps."""

from __future__ import annotations

import json
import random
import shutil

import zstandard
from tokenizers import Tokenizer

from megacode.base.files import read_json
from megacode.corpus.engine import run_recipe
from megacode.corpus.recipe import read_recipe
from megacode.data.text_draws import draw, sources_of
from megacode.data.train_tokenizer import train_tokenizer
from tests.corpus.conftest import document


def test_a_tokenizer_still_holds_documents_out_of_what_a_recipe_with_its_seed_keeps(tmp_path) -> None:
    rows = [{"text": document(random.Random(number), 30)} for number in range(2000)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "text", "inputs": str(tmp_path / "in.jsonl"), "held_out": 0.05}
    run_recipe(read_recipe({"name": "x", "output": str(tmp_path / "out"), "sources": {"s": source}}, "r"), "command")
    drawn = draw(sources_of([str(tmp_path / "out/corpus/s")], []), ["text"], 0, 0)
    assert 0.03 < len(drawn[0].held_out) / drawn[0].documents < 0.07


def test_tokens_are_counted_later_as_with_a_tokenizer_from_the_start(recipe, tmp_path) -> None:
    before, after = tmp_path / "small", tmp_path / "large"
    inputs = [str(tmp_path / "raw" / f"{number}.jsonl") for number in range(3)]
    for size, path in ((280, before), (300, after)):
        train_tokenizer("huggingface", inputs, size, path)
    pages = []
    for output, first in (("one", str(after)), ("two", str(before)), ("three", None)):
        made = run_recipe(recipe(output, tokenizer=first), "command")
        assert made is not None
        assert bool(made["sources"]["first"]["tokens"]) == bool(first)
        # The other passes may be gone by then.
        for name in ("map", "reduce"):
            shutil.rmtree(tmp_path / output / name)
        again = run_recipe(recipe(output, tokenizer=str(after)), "command", processes=2)
        assert again == read_json(tmp_path / output / "corpus/manifest.json")
        pages.append((again, (tmp_path / output / "corpus/card.html").read_text()))
        assert run_recipe(recipe(output), "command") == again
    assert pages[0] == pages[1] == pages[2]
    (file,) = (tmp_path / "one/corpus/first").iterdir()
    lines = zstandard.ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True).read().splitlines()
    written = [json.loads(line)["text"] for line in lines]
    library = Tokenizer.from_file(str(after / "tokenizer.json"))
    assert pages[0][0]["sources"]["first"]["tokens"] == sum(len(library.encode(text).ids) for text in written)
