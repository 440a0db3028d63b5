from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.base.files import read_json, write_json
from megacode.corpus import word_hashes
from megacode.corpus.duplicates import SignatureWriter, method
from megacode.corpus.duplicates.signature_files import SignatureFiles
from megacode.corpus.duplicates.signatures import signatures
from megacode.corpus.duplicates.similarity import exact_similarities

WORDS = [f"word{number}" for number in range(500)]


def text_of(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_signatures_never_change() -> None:
    assert method()["rensa_algorithm"] == 2
    made = signatures(["The quick brown fox jumps over the lazy dog."])
    assert [f"{value:016x}" for value in made.exact[0].tolist()] == GOLDEN_EXACT
    assert made.hashes[0, :8].tolist() == GOLDEN_HASHES
    assert [f"{value:016x}" for value in made.bands[0, :2].tolist()] == GOLDEN_BANDS
    assert made.words.tolist() == [9]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("ab \n中", max_size=80), max_size=9), st.integers(0, 9), st.integers(1, 60))
def test_signatures_do_not_depend_on_what_is_hashed_together(texts: list[str], cut: int, size: int) -> None:
    whole = signatures(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_hashes, "BATCH_BYTES", size)
        parts = [signatures(texts[:cut]), signatures(texts[cut:])]
    for field in ("exact", "normalised", "bands", "hashes", "words"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert np.array_equal(joined, getattr(whole, field)), field


def test_case_and_white_space_are_normalised_and_nothing_else() -> None:
    texts = ["A  b\r\n\tC", " a b c\n", "a b c", "ab c", "a b, c"]
    made = signatures(texts)
    assert len({tuple(row) for row in made.exact.tolist()}) == 5
    first, second, third, fourth, fifth = map(tuple, made.normalised.tolist())
    assert first == second == third
    assert len({first, fourth, fifth}) == 3


def test_documents_of_fewer_than_five_words_have_no_band() -> None:
    made = signatures(["one two three four", "one two three four five", ""])
    assert (made.bands != 0).any(axis=1).tolist() == [False, True, False]


def test_estimates_are_those_of_datasketch_within_their_error() -> None:
    datasketch = pytest.importorskip("datasketch")
    texts = [text_of(0)]
    for share in (1, 3, 8, 20):
        words = texts[0].split()
        words[::20] = [f"other{share}"] * len(words[::20]) if share > 1 else words[::20]
        words[:share] = ["new"] * share
        texts.append(" ".join(words))
    hashes = signatures(texts).hashes
    oracle = []
    for text in texts:
        words = text.split()
        one = datasketch.MinHash(num_perm=256, seed=3)
        one.update_batch([" ".join(words[place : place + 5]).encode() for place in range(len(words) - 4)])
        oracle.append(one)
    pairs = np.array([[first, second] for first in range(5) for second in range(first)]).T
    exact = exact_similarities(texts, pairs, 5)
    assert exact.max() > 0.8
    assert exact.min() < 0.5
    for (first, second), truth in zip(pairs.T.tolist(), exact.tolist(), strict=True):
        ours = (hashes[first] == hashes[second]).mean()
        # Five standard deviations of 256 values, of both.
        error = 5 * (truth * (1 - truth) / 256) ** 0.5 + 1e-9
        assert abs(ours - truth) <= error
        assert abs(ours - oracle[first].jaccard(oracle[second])) <= 2 * error


def test_files_hold_what_was_hashed(tmp_path: Path) -> None:
    texts = [text_of(seed) for seed in range(7)]
    writer = SignatureWriter(tmp_path / "s")
    writer.add(texts[:3])
    writer.add([])
    writer.add(texts[3:])
    writer.close()
    files, made = SignatureFiles(tmp_path / "s"), signatures(texts)
    assert files.documents == 7
    assert np.array_equal(files.column("exact"), made.exact)
    assert np.array_equal(files.column("words", 2, 3), made.words[2:5])
    assert np.array_equal(files.band(5, 1, 4), made.bands[1:5, 5])
    assert np.array_equal(files.hashes(np.array([1, 6])), made.hashes[[1, 6]])


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete signatures"):
        SignatureFiles(tmp_path)
    writer = SignatureWriter(tmp_path / "s")
    writer.add([text_of(1)])
    writer.close()
    for change, message in (
        ({"rensa_algorithm": 1}, "another version: .*rensa_algorithm 1, now 2"),
        ({"seed": 9}, "seed 9"),
    ):
        shutil.copytree(tmp_path / "s", tmp_path / "other", dirs_exist_ok=True)
        write_json(tmp_path / "other" / "method.json", {**read_json(tmp_path / "s" / "method.json"), **change})
        with pytest.raises(DataError, match=message):
            SignatureFiles(tmp_path / "other")
    (tmp_path / "s" / "bands.u64").write_bytes(b"")
    with pytest.raises(DataError, match="does not hold 256 bytes"):
        SignatureFiles(tmp_path / "s")


GOLDEN_EXACT = ["d06a8295313e6a15", "3ff8e02db829c73c"]
GOLDEN_HASHES = [50737, 18182, 39031, 29100, 1443, 3918, 61615, 14842]
GOLDEN_BANDS = ["c56febb06b8b0367", "2ae51dde5e3badf2"]
