"""A recipe's directory as an input: exactly the documents that it keeps for training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megacode.base.errors import DataError
from megacode.corpus.engine import run_recipe
from megacode.data.document_ids import open_ids
from megacode.data.indexed import IndexedDataset
from megacode.data.inputs import find_inputs
from megacode.data.machine_files import Shard
from megacode.data.train_tokenizer import train_tokenizer


def ids_in(files: list[Path]) -> list[str]:
    streams = (zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True) for path in files)
    return [json.loads(line)["id"] for stream in streams for line in stream.read().splitlines()]


@pytest.mark.parametrize("place", ["out", "out/corpus"])
def test_a_recipes_directory_is_read_as_its_sources_without_held_out_documents(
    place, recipe, call: Callable[..., int], tmp_path, capfd
) -> None:
    run_recipe(recipe(), "command")
    corpus = tmp_path / "out/corpus"
    train_tokenizer("huggingface", [str(tmp_path / "raw")], 280, tmp_path / "tokenizer")
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tmp_path / "tokenizer")]
    given = ["--output-prefix", str(tmp_path / "x"), "--id-key", "id", *kind]
    assert call("data", "preprocess", "--input", str(tmp_path / place), *given) == 0
    said = " ".join(capfd.readouterr().err.split())
    names = open_ids(tmp_path / "x_text_document", IndexedDataset(tmp_path / "x_text_document").documents)
    assert names is not None
    expected = ids_in([*sorted((corpus / "first").iterdir()), *sorted((corpus / "second").iterdir())])
    assert [names[number] for number in range(names.documents)] == expected
    assert not set(expected) & set(ids_in(sorted((corpus / "second.held_out").iterdir())))
    assert f"its held-out documents are left out; to read them, give {corpus / 'second.held_out'}" in said
    assert "these 2 sources are read as one" in said
    assert find_inputs([str(corpus / "second.held_out")]) == sorted((corpus / "second.held_out").iterdir())


def test_a_corpus_that_is_incomplete_or_damaged_is_no_input(recipe, tmp_path) -> None:
    made = recipe(decontaminate=None)
    for index in range(2):
        run_recipe(made, "command", shard=Shard(index, 2), only="map")
    run_recipe(made, "command", only="reduce")
    run_recipe(made, "command", shard=Shard(0, 2), only="apply")
    for place in ("out", "out/corpus"):
        with pytest.raises(DataError, match="has not finished"):
            find_inputs([str(tmp_path / place)])
    run_recipe(made, "command", shard=Shard(1, 2), only="apply")
    files = find_inputs([str(tmp_path / "out")])
    assert len(files) == len(set(files)) > 2
    files[1].write_bytes(b"")
    with pytest.raises(DataError, match=rf"{files[1].name}: it does not have the [\d,]+ bytes it had"):
        find_inputs([str(tmp_path / "out")])
    files[1].unlink()
    with pytest.raises(DataError, match="it is missing"):
        find_inputs([str(tmp_path / "out/corpus")])


def test_manifests_of_other_programs_are_inputs_as_before(tmp_path) -> None:
    for text in ("[1]", "{}", '{"outputs": 1}', "{"):
        (tmp_path / "manifest.json").write_text(text)
        assert find_inputs([str(tmp_path)]) == [tmp_path / "manifest.json"]
