from __future__ import annotations

import numpy as np
import pytest

from megacode.base.errors import DataError
from megacode.config.data import Source
from megacode.data.heldout_items import heldout_documents
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.windows import SourceStream


class Letters:
    """One id a byte; id 0 ends a document."""

    eod = 0

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


@pytest.fixture
def texts() -> list[str]:
    return [f"document {i} " + "é" * (i % 7) + "x" * (20 + i) for i in range(40)]


@pytest.fixture
def prefix(texts, tmp_path) -> str:
    prefix = str(tmp_path / "set")
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for text in texts:
            ids = np.array([*text.encode(), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    return prefix


def test_heldout_documents_are_exactly_those_that_training_does_not_read(prefix, texts):
    found = heldout_documents("letters", Source(path=prefix), 0.1, Letters())
    assert 0 < len(found) < 10
    assert texts[-len(found) :] == found
    stream = SourceStream("letters", prefix, 0.1, seq_length=8)
    assert stream.train_tokens == sum(len(text.encode()) + 1 for text in texts[: -len(found)])


def test_a_limit_takes_the_first_ones(prefix):
    found = heldout_documents("letters", Source(path=prefix), 0.1, Letters())
    assert heldout_documents("letters", Source(path=prefix), 0.1, Letters(), limit=2) == found[:2]


def test_nothing_held_out_is_an_error_that_says_what_to_change(prefix):
    with pytest.raises(
        DataError, match=r"source letters .*validation.fraction 0.* no document.*\n.*increase validation.fraction"
    ):
        heldout_documents("letters", Source(path=prefix), 0.0, Letters())
