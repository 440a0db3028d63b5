from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.config.model import TokenizerConfig
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.unread import SHARED_BYTES, Unread

WORDS = [f"{a}{b}{c}" for a in "kltmn" for b in ("aba", "ode", "ifu", "uga") for c in ("ro", "la", "ni")]
SHARED = "licensed under terms that every file repeats word for word"


def sentences(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=12)) + ".\n" for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = Fast(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*sentences(0, 200), SHARED], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    made.save(str(path / "tokenizer.json"))
    return load_tokenizer(TokenizerConfig(kind="huggingface", path=str(path)))


def unread(tokenizer: Tokenizer, path: Path, training: list[str], heldout: list[str], **more: int) -> Unread:
    with IndexedDatasetWriter(path / "set", np.uint16) as writer:
        for text in [*training, *heldout]:
            ids = np.array([*tokenizer.encode(text), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    stream = SourceStream("set", str(path / "set"), len(heldout) / (len(training) + len(heldout)), seq_length=1)
    ids = [np.asarray(tokenizer.encode(text), dtype=np.int64) for text in heldout]
    return Unread(tokenizer, [stream], ids, sum(map(len, heldout)), **more)


def test_what_training_documents_hold_is_read_and_the_rest_is_not(tokenizer, tmp_path):
    training, heldout = sentences(1, 300), sentences(2, 30)
    copied = [f"{one.strip()} {training[number]}" for number, one in enumerate(heldout[:10])]
    found = unread(tokenizer, tmp_path, training, [*copied, *heldout[10:]])
    assert len(SHARED) > SHARED_BYTES
    assert not any(found.holds(text) for text in copied)
    assert not any(found.holds(text) for text in training[:10])
    assert all(found.holds(text) for text in heldout[10:])


def test_a_shared_phrase_of_few_tokens_counts_by_its_bytes(tokenizer, tmp_path):
    training = [f"{SHARED} {text}" for text in sentences(3, 300)]
    heldout = sentences(4, 30)
    heldout[0] = f"{heldout[0].strip()} {SHARED}\n{heldout[1]}"
    short = " ".join(SHARED.split()[:4])
    heldout[2] = f"{short} {heldout[2]}"
    found = unread(tokenizer, tmp_path, training, heldout)
    assert not found.holds(heldout[0])
    assert found.holds(heldout[2]), "a shorter one does not"


def test_the_longest_unread_stretch_lies_between_shared_ones(tokenizer, tmp_path):
    training = [f"{SHARED} {text}" for text in sentences(5, 300)]
    own = sentences(6, 40)
    text = f"{own[0]}{SHARED}\n{''.join(own[1:4])}{SHARED}\n{own[4]}"
    found = unread(tokenizer, tmp_path, training, [text, *own[5:]])
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    first, last = found.longest(ids)
    assert tokenizer.decode(ids[first:last].tolist()).strip() == "".join(own[1:4]).strip()
    whole = np.asarray(tokenizer.encode(own[9]), dtype=np.int64)
    assert found.longest(whole) == (0, len(whole))


def test_a_budget_scans_an_even_sample_of_the_training_data(tokenizer, tmp_path):
    training = sentences(7, 9000)
    heldout = training[::300]
    whole = unread(tokenizer, tmp_path, training, heldout)
    part = unread(tokenizer, tmp_path, training, heldout, budget=70_000)
    assert not any(whole.holds(text) for text in heldout)
    assert 0 < sum(part.holds(text) for text in heldout) < len(heldout)


def test_with_a_large_vocabulary_ten_shared_tokens_count_whatever_their_bytes(tokenizer, tmp_path, monkeypatch):
    digits = "1 2 3 4 5 6 7"
    training = [f"{text.strip()} {digits}\n" for text in sentences(8, 300)]
    heldout = [f"{digits} {text}" for text in sentences(9, 30)]
    assert unread(tokenizer, tmp_path, training, heldout).holds(heldout[0])
    monkeypatch.setattr("megacode.data.unread.LARGE_VOCABULARY", 100)
    assert not unread(tokenizer, tmp_path, training, heldout).holds(heldout[0])
