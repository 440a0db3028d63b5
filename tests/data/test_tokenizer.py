"""Tokenizers: what they keep, that special tokens in a text are text, and the fast encoder equals the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megacode.base.errors import ConfigError, DataError
from megacode.config.model import TokenizerConfig
from megacode.data.encoders import PROBES, GigatokenEncoder, Race, pieces
from megacode.data.tokenizer import EncoderMismatch, load_tokenizer
from megacode.data.train_tokenizer import train_tokenizer

KINDS = ["huggingface", "sentencepiece"]


@pytest.fixture(params=KINDS)
def config(request) -> TokenizerConfig:
    return request.getfixturevalue(request.param)


def test_texts_come_back_from_their_ids(config, texts):
    tokenizer = load_tokenizer(config)
    kept = [text for text in [*PROBES, *texts[:20]] if config.kind == "huggingface" or "\u2581" not in text]
    assert len(kept) >= 20
    for text in kept:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_and_indentation_becomes_few_tokens(config):
    tokenizer = load_tokenizer(config)
    assert len(tokenizer.encode("x1234567890")) in (11, 12)
    assert len(tokenizer.encode(" " * 8)) <= 3


def test_the_fast_encoder_gives_the_references_ids(config, texts):
    tokenizer = load_tokenizer(config)
    everything = [*PROBES, *tokenizer.specials, *texts]
    reference = tokenizer.encode_batch(everything)
    assert tokenizer.use_fast(texts)
    for slow, fast in zip(reference, tokenizer.encode_batch(everything), strict=True):
        assert np.array_equal(slow, fast)


def test_literal_special_tokens_in_a_text_are_plain_text(config, texts):
    tokenizer = load_tokenizer(config)
    controls = set(range(4 if config.kind == "huggingface" else 3))
    for _ in range(2):
        for special in [*tokenizer.specials, "<|endoftext|>", "<s>", "</s>"]:
            ids = tokenizer.encode(f"a {special} b{special}")
            assert controls.isdisjoint(ids)
            assert tokenizer.decode(ids) == f"a {special} b{special}"
        assert tokenizer.use_fast(texts)


def test_the_hash_is_that_of_what_decides_ids(huggingface, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(huggingface.path, copy)
    document = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(document, indent=3, sort_keys=True))
    first = load_tokenizer(huggingface)
    assert load_tokenizer(TokenizerConfig(kind="huggingface", path=str(copy))).hash == first.hash
    document["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(document))
    assert load_tokenizer(TokenizerConfig(kind="huggingface", path=str(copy))).hash != first.hash


def test_the_end_of_document_is_what_the_config_beside_it_names(huggingface, tmp_path):
    assert load_tokenizer(huggingface).eod == 0
    shutil.copytree(huggingface.path, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|fim_middle|>"}}')
    assert load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tmp_path / "copy"))).eod == 2


@pytest.mark.slow
def test_transformers_loads_the_trained_directory(huggingface, texts):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(huggingface.path), load_tokenizer(huggingface)
    assert (theirs.eos_token, theirs.bos_token, theirs.pad_token) == ("<|endoftext|>",) * 3
    assert theirs.eos_token_id == ours.eod
    assert len(theirs) == ours.vocab_size
    assert len(texts) > 10
    for text in texts[:10]:
        assert theirs.encode(text, split_special_tokens=True) == ours.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_tokenizer(kind, corpus, request, tmp_path):
    made = train_tokenizer(kind, [str(corpus)], 1000, tmp_path / "again")
    assert made.tokenizer.hash == load_tokenizer(request.getfixturevalue(kind)).hash


class Wrong:
    """An encoder that is wrong on texts with a certain word."""

    def __init__(self, right, word):
        self.right, self.word = right, word

    def encode(self, texts):
        flat, offsets = self.right.encode(texts)
        flat = flat.copy()
        for number, text in enumerate(texts):
            if self.word in text:
                flat[offsets[number]] += 1
        return flat, offsets


def test_a_fast_encoder_that_differs_on_the_sample_is_not_used(huggingface, texts, monkeypatch, caplog):
    tokenizer = load_tokenizer(huggingface)
    monkeypatch.setattr(tokenizer, "_load_fast", lambda: Wrong(tokenizer.reference, "import"))
    assert not tokenizer.use_fast(texts)
    assert "gigatoken differs on" in caplog.text


def test_a_fast_encoder_that_cannot_load_is_not_used(huggingface, texts, monkeypatch, caplog):
    tokenizer = load_tokenizer(huggingface)

    class PanicException(BaseException):
        pass

    def panic():
        raise PanicException("unsupported")

    monkeypatch.setattr(tokenizer, "_load_fast", panic)
    with caplog.at_level("INFO"):
        assert not tokenizer.use_fast(texts)
    assert "gigatoken does not support this tokenizer" in caplog.text


def test_later_batches_are_checked_too(huggingface, texts):
    tokenizer = load_tokenizer(huggingface)
    race = Race(Wrong(tokenizer.reference, "zebra"), tokenizer.reference)
    assert race.first_difference(texts) is None
    assert race.check(texts) is None
    assert "zebra" in race.check(["zebra " * 2000])
    tokenizer._race = race
    with pytest.raises(EncoderMismatch):
        tokenizer.encode_batch(["a zebra"])


def test_pieces_keep_to_their_limits_and_move(texts):
    found = pieces(texts, 1000, 100)
    assert sum(map(len, found)) <= 1000
    assert max(map(len, found)) == 100
    assert pieces(texts, 1000, 100, turn=1) != found


@pytest.mark.parametrize(
    ("kind", "contents", "message"),
    [
        ("huggingface", None, "the tokenizer cannot be read"),
        ("huggingface", b"{}", "it is not a tokenizer.json"),
        ("huggingface", b'{"model": {"vocab": {}}}', "its vocabulary is empty"),
        ("sentencepiece", None, "the tokenizer cannot be read"),
        ("sentencepiece", b"nonsense", "it is not a SentencePiece model"),
    ],
)
def test_a_tokenizer_that_is_none_is_named(kind, contents, message, tmp_path: Path):
    path = tmp_path / ("tokenizer.json" if kind == "huggingface" else "tokenizer.model")
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(TokenizerConfig(kind=kind, path=str(path)))
    assert caught.value.problems[0].where == str(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", KINDS)
def test_training_says_what_it_cannot_do_and_leaves_nothing(kind, corpus, tmp_path: Path):
    small = tmp_path / "small.jsonl"
    small.write_text('{"text": "abc"}\n')
    with pytest.raises(DataError, match="tokens"):
        train_tokenizer(kind, [str(small)], 5000, tmp_path / "out")
    with pytest.raises(ConfigError, match="a vocabulary of 100 is too small"):
        train_tokenizer(kind, [str(corpus)], 100, tmp_path / "out")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="the input contains no text"):
        train_tokenizer(kind, [str(tmp_path / "empty.jsonl")], 1000, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"it exists and contains empty\.jsonl, small\.jsonl"):
        train_tokenizer(kind, [str(corpus)], 1000, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "small.jsonl"]


def test_the_fast_encoder_forgets_the_words_it_saw_when_memory_grows(config, texts, monkeypatch):
    tokenizer = load_tokenizer(config)
    monkeypatch.setattr(GigatokenEncoder, "growth_bytes", -(1 << 40))
    fast = tokenizer._load_fast()
    for part in (texts[:20], texts[20:40]):
        before = fast._tokenizer
        for ours, theirs in zip(fast.encode(part), tokenizer.encode_batch(part), strict=True):
            assert np.array_equal(ours, theirs)
        assert fast._tokenizer is not before
