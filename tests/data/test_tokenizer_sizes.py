"""Tokenizers of several sizes, trained on one reading of the input."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.cli.data import script
from megacode.data.tokenizer_trainers import train_huggingface
from megacode.data.train_tokenizer import train_tokenizer, train_tokenizers


@pytest.mark.parametrize(("kind", "name"), [("huggingface", "tokenizer.json"), ("sentencepiece", "tokenizer.model")])
def test_sizes_trained_together_have_the_bytes_of_each_trained_alone(kind, name, corpus, tmp_path) -> None:
    sizes = (900, 400, 600)
    made = train_tokenizers(kind, [str(corpus)], {size: tmp_path / f"{size}" for size in sizes})
    assert [one.tokenizer.vocab_size for one in made] == list(sizes)
    for size in sizes:
        train_tokenizer(kind, [str(corpus)], size, tmp_path / "alone", overwrite=True)
        for file in (name, "training.json"):
            assert (tmp_path / f"{size}" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


@given(st.lists(st.text("ab ", min_size=1, max_size=12), min_size=12, max_size=24), st.integers(265, 300))
@settings(max_examples=25)
def test_the_head_of_a_vocabulary_is_the_smaller_vocabulary(texts: list[str], size: int) -> None:
    drawn = [(text.encode(),) for text in texts]
    with TemporaryDirectory() as place:
        paths = {name: Path(place) / name for name in ("large", "cut", "alone")}
        for path in paths.values():
            path.mkdir()
        # Texts of three characters make few tokens, and often one token by two merges.
        reserved = ["<fim>", "ab", "aba"]
        train_huggingface(drawn, {300: paths["large"], size: paths["cut"]}, reserved)
        train_huggingface(drawn, {size: paths["alone"]}, reserved)
        assert (paths["cut"] / "tokenizer.json").read_bytes() == (paths["alone"] / "tokenizer.json").read_bytes()


def test_of_several_sizes_all_are_written_or_none(corpus, tmp_path) -> None:
    sizes = {300: tmp_path / "small", 1_000_000: tmp_path / "large"}
    with pytest.raises(DataError, match="tokens, not 1000000"):
        train_tokenizers("huggingface", [str(corpus)], sizes)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="in, the directory of another tokenizer"):
        train_tokenizers("huggingface", [str(corpus)], {300: tmp_path / "a", 400: tmp_path / "a/b"})


def test_the_command_trains_and_compares_several_sizes(corpus, tmp_path, capfd) -> None:
    outputs = [str(tmp_path / "a small one"), str(tmp_path / "large")]
    given = ["--input", str(corpus), "--output", *outputs, "--vocab-size"]
    assert script("tokenizer", "t", [*given, "300,600"]) == 0
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[1].split()[-2:] == ["300", "600"]
    assert script("tokenizer", "t", [*given, "300", "600", "--overwrite", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    rates = [one["bytes_per_token"]["input"] for one in document["tokenizers"]]
    assert rates == sorted(rates)
    # The table has the figures of the measurement by itself.
    assert [f"{rate:.3f}" for rate in rates] == out.splitlines()[2].split()[-2:]
    for sizes, message in (
        (["300,300"], "given twice"),
        (["300"], "1 vocabulary sizes and 2 directories"),
        (["300,x"], "x"),
    ):
        assert script("tokenizer", "t", [*given, *sizes]) == 2
        assert message in capfd.readouterr().err
