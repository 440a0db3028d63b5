from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.corpus.duplicates import (
    Duplicates,
    SignatureWriter,
    SignedShard,
    buckets,
    duplicates_report,
    duplicates_table,
    find_duplicates,
    reduce,
)
from megacode.corpus.duplicates.band_pairs import ROUNDS, compare_runs, members_of_runs
from megacode.corpus.duplicates.clusters import unite
from megacode.corpus.duplicates.reduce import EXACT, KEPT, NEAR, NORMALISED
from megacode.corpus.duplicates.similarity import exact_similarities

WORDS = [f"word{number}" for number in range(3000)]


def text_of(rng: random.Random, words: int) -> list[str]:
    return rng.choices(WORDS, k=words)


def changed(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), count):
        words[place] = rng.choice(WORDS)
    return words


class Documents:
    """Documents on disk as a map pass leaves them, in any number of shards."""

    def __init__(self, texts: Sequence[str], ids: Sequence[str] | None = None, tiers: Sequence[int] | None = None):
        self.texts, self.ids = list(texts), list(ids or map(str, range(len(texts))))
        self.tiers = list(tiers or [1] * len(texts))

    def shuffled(self, seed: int) -> Documents:
        order = random.Random(seed).sample(range(len(self.texts)), len(self.texts))
        return Documents(*([column[one] for one in order] for column in (self.texts, self.ids, self.tiers)))

    def parts(self, place: Path, shards: int = 1) -> list[SignedShard]:
        cuts = [len(self.texts) * number // shards for number in range(shards + 1)]
        made = []
        for number in range(shards):
            mine = slice(cuts[number], cuts[number + 1])
            writer = SignatureWriter(place / str(number))
            writer.add(self.texts[mine])
            writer.close()
            keys = np.array([xxhash.xxh3_64_intdigest(one.encode()) for one in self.ids[mine]], np.uint64)
            order = np.array(self.tiers[mine], np.uint16), keys
            made.append(SignedShard(place / str(number), lambda order=order: order))
        return made

    def read(self, numbers: np.ndarray) -> list[str]:
        assert (np.diff(numbers) > 0).all()
        return [self.texts[number] for number in numbers]

    def find(self, place: Path, shards: int = 1, **settings: float) -> Duplicates:
        return find_duplicates(self.parts(place, shards), self.read, place / "scratch", **settings)

    def kept(self, found: Duplicates) -> set[str]:
        return {name for name, why in zip(self.ids, found.why.tolist(), strict=True) if why == KEPT}


def collection(seed: int, count: int) -> Documents:
    """Documents with copies of all kinds, in several tiers."""
    rng, texts = random.Random(seed), []
    for _ in range(count):
        words = text_of(rng, rng.randint(3, 120))
        texts.append(" ".join(words))
        for _ in range(rng.choice([0, 0, 1, 1, 3])):
            copy = changed(words, min(len(words), rng.choice([0, 1, 2, 5])), rng)
            texts.append(rng.choice([" ", "  ", "\n"]).join(copy))
    return Documents(texts, tiers=[rng.choice([0, 1, 1, 1, 2]) for _ in texts])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Documents, Duplicates]:
    documents = collection(0, 150)
    return documents, documents.find(tmp_path_factory.mktemp("many"))


def test_clusters_are_those_of_all_pairs(many: tuple[Documents, Duplicates]) -> None:
    documents, found = many
    texts = documents.texts
    pairs = np.array([[first, second] for first in range(len(texts)) for second in range(first)]).T
    similar = exact_similarities(texts, pairs, 5) >= 0.7
    normal = [" ".join(text.split()) for text in texts]
    similar |= [normal[first] == normal[second] for first, second in pairs.T.tolist()]
    root = np.arange(len(texts), dtype=np.uint32)
    unite(root, *pairs[:, similar])
    true = root[pairs[0]] == root[pairs[1]]
    ours = found.root[pairs[0]] == found.root[pairs[1]]
    protected = np.array(documents.tiers)[pairs] == 0
    both = protected.any(axis=0)
    assert true[~both].sum() > 50
    assert not (ours & ~true).any()
    assert (ours & ~both).sum() >= 0.97 * (true & ~both).sum()
    assert {EXACT, NORMALISED, NEAR} <= set(found.why.tolist())


@pytest.mark.parametrize("shards", [1, 7, 16])
def test_what_is_kept_depends_on_no_order_and_no_shards(
    shards: int, many: tuple[Documents, Duplicates], tmp_path: Path
) -> None:
    documents, found = many
    other = documents.shuffled(shards)
    again = other.find(tmp_path, shards)
    assert other.kept(again) == documents.kept(found)
    roots = {documents.ids[one]: documents.ids[root] for one, root in enumerate(found.root.tolist())}
    assert {other.ids[one]: other.ids[root] for one, root in enumerate(again.root.tolist())} == roots


def test_what_is_kept_does_not_depend_on_what_fits_into_memory(
    many: tuple[Documents, Duplicates], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, found = many
    monkeypatch.setattr(buckets, "RECORDS", 16)
    monkeypatch.setattr("megacode.corpus.duplicates.collection._CHUNK", 10)
    monkeypatch.setattr("megacode.corpus.duplicates.similarity._PAIRS", 3)
    monkeypatch.setattr("megacode.corpus.duplicates.similarity._TEXTS", 3)
    monkeypatch.setattr(reduce, "_PAIRS", 5)
    monkeypatch.setattr(reduce, "_SETTLED_WORDS", 300)
    monkeypatch.setattr(reduce, "_SECONDS", 0.0)
    monkeypatch.setattr("megacode.corpus.duplicates.signature_files._BLOCK", 7)
    again = documents.find(tmp_path, 3)
    assert np.array_equal(again.why, found.why)
    assert np.array_equal(again.root, found.root)


def test_held_out_documents_stay_and_training_documents_near_them_go(many: tuple[Documents, Duplicates]) -> None:
    documents, found = many
    tiers = np.array(documents.tiers)
    assert (found.why[tiers == 0] == KEPT).all()
    assert (tiers[found.root[found.dropped]] == 0).sum() > 10
    assert (tiers[found.root] <= tiers).all()


def test_of_equal_texts_the_earlier_source_wins_then_the_key_of_the_id(tmp_path: Path) -> None:
    text = " ".join(WORDS[:30])
    documents = Documents([text] * 4, ["d", "c", "b", "a"], [2, 3, 2, 2])
    kept = documents.kept(documents.find(tmp_path))
    assert kept == {min("dba", key=lambda one: xxhash.xxh3_64_intdigest(one.encode()))}


def test_short_documents_are_duplicates_only_if_equal(tmp_path: Path) -> None:
    documents = Documents(["a b c d", "A  b c d", "a b c e", "", "", "a b c d"])
    found = documents.find(tmp_path)
    assert np.bincount(found.why).tolist() == [3, 2, 1]
    assert found.compared == {"signatures": 0, "texts": 0}


def test_planted_copies_are_found_and_only_they(tmp_path: Path) -> None:
    rng = random.Random(1)
    origins = [text_of(rng, rng.randint(100, 300)) for _ in range(900)]
    copies = [changed(words, int(len(words) * rng.uniform(0, 0.06)), rng) for words in origins]
    documents = Documents([" ".join(words) for words in [*origins, *copies]])
    pairs = np.array([range(900), range(900, 1800)])
    truth = exact_similarities(documents.texts, pairs, 5)
    found = documents.find(tmp_path)
    together = found.root[pairs[0]] == found.root[pairs[1]]
    high, low = truth >= 0.8, (truth >= 0.7) & (truth < 0.75)
    assert high.sum() > 100
    assert low.sum() > 80
    assert together[high].mean() >= 0.99
    assert together[low].mean() >= 0.9
    assert (truth[together] >= 0.65).mean() >= 0.99
    near = np.flatnonzero(found.why)
    assert np.abs(found.estimates - truth[near - 900]).max() < 0.15
    assert (np.abs(found.root[near].astype(int) - near) == 900).all()


def test_a_pair_is_found_behind_a_first_document_that_is_no_match() -> None:
    compared: list[tuple[int, int]] = []

    def similar(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        compared.extend(pairs)
        return np.array([pair in {(1, 2), (2, 3)} for pair in pairs])

    ranks, begins = members_of_runs(np.full(4, 7, np.uint64), np.array([3, 1, 0, 2], np.uint32))
    compare_runs(ranks, begins, np.arange(4, dtype=np.uint32), similar)
    assert set(compared) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    # Those that are in one cluster already are not compared again.
    compared.clear()
    compare_runs(ranks, begins, np.array([0, 1, 1, 1], np.uint32), similar)
    assert set(compared) == {(0, 1), (0, 2), (0, 3)}


@pytest.mark.parametrize("match", [0, 1, 3])
def test_long_runs_of_equal_keys_stay_linear(match: int) -> None:
    count, compared = 100_000, 0

    def similar(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(first)
        return second % 4 < match

    ranks, begins = members_of_runs(np.zeros(count, np.uint64), np.arange(count, dtype=np.uint32)[::-1])
    compare_runs(ranks, begins, np.arange(count, dtype=np.uint32), similar)
    assert count - 1 <= compared <= ROUNDS * count


def test_many_copies_of_one_file_make_one_cluster(tmp_path: Path) -> None:
    rng = random.Random(2)
    words = text_of(rng, 120)
    documents = Documents([" ".join(changed(words, 1, rng)) for _ in range(400)])
    found = documents.find(tmp_path)
    assert len(documents.kept(found)) == 1
    # Each of 32 bands compares each document with the first of its run only, until the cluster is whole.
    assert found.compared["signatures"] <= 3 * 400


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), st.integers(0, 30))
def test_clusters_do_not_depend_on_the_order_of_pairs(pairs: list[tuple[int, int]], cut: int) -> None:
    at_once = np.arange(20, dtype=np.uint32)
    unite(at_once, *np.array(pairs, np.int64).reshape(-1, 2).T)
    one_by_one = np.arange(20, dtype=np.uint32)
    for first, second in [*pairs[cut:], *pairs[:cut]]:
        unite(one_by_one, np.array([second]), np.array([first]))
    assert at_once.tolist() == one_by_one.tolist()
    assert (at_once <= np.arange(20)).all()
    assert all(at_once[first] == at_once[second] for first, second in pairs)


def die_at(number: int) -> None:
    """From now on, end this process as `kill -9` would, before file `number` (from 0) gets its name."""
    calls, replace = itertools.count(), os.replace

    def dying(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    os.replace = dying  # type: ignore[assignment]


def test_a_pass_that_is_killed_resumes_with_an_equal_result(many: tuple[Documents, Duplicates], tmp_path: Path) -> None:
    documents, found = many
    parts = documents.parts(tmp_path)
    for number in random.Random(5).choices(range(6), k=10):
        child = os.fork()
        if child == 0:
            die_at(number)
            find_duplicates(parts, documents.read, tmp_path / "scratch")
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    again = find_duplicates(parts, documents.read, tmp_path / "scratch")
    assert np.array_equal(again.why, found.why)
    assert np.array_equal(again.root, found.root)


def test_no_band_is_done_twice(
    many: tuple[Documents, Duplicates], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, found = many
    done: list[int] = []
    whole = reduce._compare_band

    def until_the_fifth(band: int, *rest: object) -> None:
        if band == 5 and len(done) == 5:
            raise KeyboardInterrupt
        done.append(band)
        whole(band, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reduce, "_compare_band", until_the_fifth)
    parts = documents.parts(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(parts, documents.read, tmp_path / "scratch")
    done.append(-1)
    again = find_duplicates(parts, documents.read, tmp_path / "scratch")
    assert done == [*range(5), -1, *range(5, 32)]
    assert np.array_equal(again.root, found.root)


def test_state_of_other_documents_is_not_resumed(many: tuple[Documents, Duplicates], tmp_path: Path) -> None:
    documents, found = many
    Documents(documents.texts[:50]).find(tmp_path)
    assert np.array_equal(documents.find(tmp_path).root, found.root)


def test_shards_that_were_hashed_in_different_ways_are_refused(tmp_path: Path) -> None:
    documents = Documents(["some text"])
    parts = documents.parts(tmp_path)
    writer = SignatureWriter(tmp_path / "other", shingle=7)
    writer.add(["another text"])
    writer.close()
    with pytest.raises(DataError, match="of another kind than those in"):
        find_duplicates([*parts, SignedShard(tmp_path / "other", parts[0].order)], documents.read, tmp_path / "scratch")


def test_no_documents_have_no_duplicates(tmp_path: Path) -> None:
    found = Documents([]).find(tmp_path)
    assert found.why.tolist() == found.root.tolist() == []


def test_the_report_tells_clusters_and_between_which_sources(many: tuple[Documents, Duplicates]) -> None:
    documents, found = many
    tiers = np.array(documents.tiers)
    report = duplicates_report(found, 0.7, lambda numbers: tiers[numbers], documents.read)
    assert sum(report["dropped"].values()) == len(found.dropped) == sum(row["documents"] for row in report["between"])
    assert sum(row["clusters"] for row in report["clusters"]["sizes"]) == report["clusters"]["number"] > 20
    sizes = [cluster["documents"] for cluster in report["largest"]]
    assert len(sizes) == 10
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == np.bincount(found.root).max()
    first = report["largest"][0]
    assert first["kept"] in [sample["document"] for sample in first["samples"]]
    assert all(documents.texts[one["document"]].startswith(one["text"]) for one in first["samples"])
    table = duplicates_table(report, ["held out", "one", "two"])
    assert table.row_count == len(report["between"])
