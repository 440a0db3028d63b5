"""The shuffle of documents: exact, decided by the seed, and the same through any number of passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.data import shuffle
from megacode.data.indexed import IndexedDataset
from megacode.data.shuffle import ShuffledWriter, document_keys


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=40).filter(any),
    batch=st.integers(1, 10),
    limit=st.sampled_from([0, 200, 1 << 20]),
)
def test_the_order_is_that_of_the_keys_whatever_batches_and_passes(lengths, batch, limit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shuffle, "_SORTED_BYTES", limit)
    monkeypatch.setattr(shuffle, "_STRETCHES", batch)
    documents, token = [], 0
    for document in lengths:
        documents.append([])
        for length in document:
            documents[-1].append(list(range(token, token + length)))
            token += length
    with ShuffledWriter(tmp_path / "set", np.int32, seed=5) as writer:
        for first in range(0, len(documents), batch):
            part = documents[first : first + batch]
            sequences = [sequence for document in part for sequence in document]
            flat = np.array([token for sequence in sequences for token in sequence], dtype=np.int64)
            writer.add(
                flat,
                np.array([len(sequence) for sequence in sequences], dtype=np.int64),
                np.array([len(d) for d in part]),
            )
    found = IndexedDataset(tmp_path / "set")
    found.verify()
    order = np.argsort(document_keys(5, 0, len(documents)))
    expected = [[token for sequence in documents[number] for token in sequence] for number in order]
    bounds = [found.document_bounds(number) for number in range(found.documents)]
    assert [found.read(first, last + 1 - first).tolist() for first, last in bounds] == expected
    assert found.sequences == sum(map(len, documents))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.bin", "set.idx"]


def test_keys_are_all_different_and_do_not_depend_on_batches():
    keys = document_keys(1, 0, 100_000)
    assert len(np.unique(keys)) == 100_000
    assert np.array_equal(keys[500:700], document_keys(1, 500, 200))
    assert not np.array_equal(keys, document_keys(2, 0, 100_000))


def test_the_order_is_even_over_the_whole_set():
    order = np.argsort(document_keys(3, 0, 50_000))
    assert abs(np.corrcoef(order, np.arange(50_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_an_error_leaves_nothing(tmp_path: Path):
    def failing():
        with ShuffledWriter(tmp_path / "set", np.int32, seed=1) as writer:
            writer.add(np.arange(4), np.array([4]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert list(tmp_path.iterdir()) == []
