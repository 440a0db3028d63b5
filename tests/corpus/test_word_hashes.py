from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.corpus import word_hashes
from megacode.corpus.word_hashes import Words, batches, encoded, hash_words, word_spans

TEXTS = st.lists(st.text(st.sampled_from("aB9_ \n\0.é中文。ü한😀"), max_size=60), max_size=8)


def words_of(text: str) -> list[bytes]:
    """The definition of a word, byte by byte."""
    words, current = [], b""
    for byte in text.encode().lower():
        letter = byte >= 128 or chr(byte).isalnum() or byte == ord("_")
        if current and (not letter or 0xE3 <= byte <= 0xE9):
            words.append(current)
            current = b""
        current += bytes([byte]) if letter else b""
    return [*words, current] if current else words


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_words_are_those_of_the_definition_and_equal_ones_have_equal_hashes(texts: list[str]) -> None:
    expected = [words_of(text) for text in texts]
    found = hash_words(encoded(texts))
    assert found.counts.tolist() == [len(words) for words in expected]
    known: dict[bytes, int] = {}
    for word, value in zip([word for words in expected for word in words], found.hashes.tolist(), strict=True):
        assert known.setdefault(word, value) == value
    assert len(set(known.values())) == len(known)


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_spans_are_the_words_that_are_hashed(texts: list[str]) -> None:
    found = [[text[a:b].encode().lower() for a, b in word_spans(text)] for text in texts]
    assert found == [words_of(text) for text in texts]


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_pieces_and_batches_change_no_hash(texts: list[str], size: int) -> None:
    whole = hash_words(encoded(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_hashes, "BATCH_BYTES", size)
        pieces = hash_words(encoded(texts))
        parts = [hash_words(encoded(texts[some])) for some in batches(texts)]
    assert pieces.hashes.tolist() == whole.hashes.tolist()
    assert pieces.firsts.tolist() == whole.firsts.tolist()
    assert [value for part in parts for value in part.hashes.tolist()] == whole.hashes.tolist()


def test_hashes_never_change() -> None:
    words = hash_words(encoded(["Hello, world_2! Ünïcode 中文", "x" * 100]))
    assert words.firsts.tolist() == [0, 5, 6]
    assert [f"{value:016x}" for value in words.hashes.tolist()] == GOLDEN_WORDS
    assert [f"{value:016x}" for value in words.ngrams(3).tolist()] == GOLDEN_RUNS


def test_runs_do_not_cross_texts() -> None:
    words = hash_words(encoded(["a b c", "", "d", "e f g h"]))
    assert words.within(3).tolist() == [True, False, False, False, True, True]
    runs, offsets = words.shingles(3)
    assert offsets.tolist() == [0, 1, 1, 1, 3]
    assert runs[1:].tolist() == hash_words(encoded(["e f g h"])).ngrams(3).tolist()


def test_lone_surrogates_are_hashed() -> None:
    assert hash_words(encoded(["a \ud800 b"])).counts.tolist() == [3]


def test_a_long_text_without_words_and_no_text_have_no_words() -> None:
    assert len(hash_words([]).hashes) == 0
    assert hash_words([b" " * 700_000, b""]).counts.tolist() == [0, 0]
    assert Words(np.zeros(2, np.uint64), np.array([0, 2])).ngrams(3).tolist() == []


GOLDEN_WORDS = [
    "97dde803c6f6d225",
    "b0176f1ad01d5519",
    "e215a28fa0c55730",
    "6a0370db792a7f0e",
    "167df5ca78bd6bcf",
    "c90984ffdf50ce42",
]
GOLDEN_RUNS = ["cdf01599f383c67c", "1ea827722ad95d99", "604dbcd7321828be", "f2c672de95f001f4"]
