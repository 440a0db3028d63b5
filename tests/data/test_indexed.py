"""Indexed data sets against Megatron-core's own, and what damaged ones get."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.data.indexed import HEADER, MAGIC, IndexedDataset, IndexedDatasetWriter, bin_path, idx_path
from megacode.data.shuffle import ShuffledWriter

documents_of_sequences = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=12)
reuse = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tokens_like(lengths: list[int]) -> np.ndarray:
    return np.random.default_rng(sum(lengths)).integers(0, 60_000, sum(lengths))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@reuse
@given(documents=documents_of_sequences)
def test_files_equal_those_of_megatrons_builder_byte_for_byte(documents, dtype, tmp_path: Path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = [[length for length in document if length] for document in documents]
    lengths = [length for document in documents for length in document]
    if not lengths:
        return
    tokens, end = tokens_like(lengths), 0
    theirs = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents:
        theirs.add_document(tokens[end : end + sum(document)], document)
        end += sum(document)
    theirs.finalize(str(tmp_path / "theirs.idx"))
    with IndexedDatasetWriter(tmp_path / "ours", dtype) as ours:
        half = len(documents) // 2
        for part in (documents[:half], documents[half:]):
            flat = [length for document in part for length in document]
            start = 0 if part is documents[:half] else ours.tokens
            counts = np.array([len(document) for document in part], dtype=np.int64)
            ours.add(tokens[start : start + sum(flat)], np.array(flat, dtype=np.int64), counts)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@pytest.mark.slow
@reuse
@given(documents=documents_of_sequences, code=st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16"]))
def test_megatrons_files_are_read_and_ours_are_read_by_megatron(documents, code, tmp_path: Path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset as Theirs
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    lengths = [length for document in documents for length in document]
    if not sum(lengths):
        return
    tokens, end = tokens_like(lengths) % 100, 0
    builder = IndexedDatasetBuilder(str(tmp_path / "set.bin"), dtype=getattr(np, code))
    for document in documents:
        builder.add_document(tokens[end : end + sum(document)], document)
        end += sum(document)
    builder.finalize(str(tmp_path / "set.idx"))
    ours, end = IndexedDataset(tmp_path / "set"), 0
    ours.verify()
    assert (ours.tokens, ours.documents, ours.dtype) == (len(tokens), len(documents), np.dtype(code))
    for number, document in enumerate(documents):
        assert ours.document_bounds(number) == (end, end + sum(document) - 1)
        assert all(ours.document_at(token) == number for token in range(end, end + sum(document)))
        end += sum(document)
    assert ours.read(0, ours.tokens).tolist() == tokens.tolist()
    theirs = Theirs(str(tmp_path / "set"))
    assert [theirs[number].tolist() for number in range(len(theirs))] == [
        ours.read(sum(lengths[:number]), length).tolist() for number, length in enumerate(lengths)
    ]


@reuse
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=30).filter(sum), data=st.data())
def test_document_starts_are_where_another_document_begins(lengths, data, tmp_path: Path):
    with IndexedDatasetWriter(tmp_path / "set", np.int32) as writer:
        writer.add(np.arange(sum(lengths)), np.array(lengths))
    found = IndexedDataset(tmp_path / "set")
    first = data.draw(st.integers(0, found.tokens - 1))
    last = data.draw(st.integers(first, found.tokens - 1))
    owner = [found.document_at(token) for token in range(found.tokens)]
    expected = [token for token in range(first + 1, last + 1) if owner[token] != owner[token - 1]]
    assert found.document_starts(first, last).tolist() == expected


def test_opening_and_searching_allocate_nothing_per_document(tmp_path: Path):
    count = 300_000
    with IndexedDatasetWriter(tmp_path / "set", np.uint16) as writer:
        writer.add(np.zeros(2 * count, dtype=np.uint16), np.full(count, 2))
    tracemalloc.start()
    found = IndexedDataset(tmp_path / "set")
    assert found.document_at(399_999) == 199_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


def test_nothing_appears_and_the_old_set_stays_when_writing_fails(tmp_path: Path):
    with IndexedDatasetWriter(tmp_path / "set", np.uint16) as writer:
        writer.add(np.array([1, 2, 3]), np.array([3]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted():
        with IndexedDatasetWriter(tmp_path / "set", np.uint16) as writer:
            writer.add(np.array([4, 5]), np.array([2]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [IndexedDatasetWriter, partial(ShuffledWriter, seed=1)])
def test_a_token_that_does_not_fit_is_an_error_and_nothing_is_written(tmp_path: Path, kind):
    with (
        pytest.raises(DataError, match="token 70000 does not fit into uint16"),
        kind(tmp_path / "set", np.uint16) as writer,
    ):
        writer.add(np.array([70_000]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_an_error_when_written_and_when_read(tmp_path: Path):
    with (
        pytest.raises(DataError, match="no tokens to write"),
        IndexedDatasetWriter(tmp_path / "set", np.uint16) as writer,
    ):
        writer.add(np.zeros(0, dtype=np.uint16), np.zeros(3, dtype=np.int64))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set.bin").write_bytes(b"")
    (tmp_path / "set.idx").write_bytes(HEADER.pack(MAGIC, 1, 8, 0, 1) + bytes(8))
    with pytest.raises(DataError, match="it holds no tokens") as caught:
        IndexedDataset(tmp_path / "set")
    assert caught.value.exit_code == 2


def damage(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("suffix", "edit", "message"),
    [
        ("idx", lambda raw: raw[:20], "truncated"),
        ("idx", lambda raw: raw[:-8], "truncated or corrupted"),
        ("idx", lambda raw: b"NOTMEGATR" + raw[9:], "its first bytes are wrong"),
        ("idx", lambda raw: b"", "it is empty"),
        ("idx", lambda raw: raw[:9] + b"\x02" + raw[10:], "version 2"),
        ("idx", lambda raw: raw[:17] + b"\x07" + raw[18:], "floating-point"),
        ("idx", lambda raw: raw[:17] + b"\x2a" + raw[18:], "unknown type 42"),
        ("idx", lambda raw: raw[:-8] + bytes(8), "do not cover its sequences"),
        ("bin", lambda raw: raw[:-2], "its index describes 20"),
        ("bin", lambda raw: b"", "its index describes 20"),
    ],
)
def test_damaged_files_say_what_where_and_how_to_mend_it(suffix, edit, message, write_dataset):
    prefix = write_dataset([4, 6])
    damage(Path(f"{prefix}.{suffix}"), edit)
    with pytest.raises(DataError, match=message) as caught:
        IndexedDataset(prefix)
    (problem,) = caught.value.problems
    assert problem.where == f"{prefix}.{suffix}"
    assert problem.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path_of", [bin_path, idx_path])
def test_a_missing_file_is_named(path_of, write_dataset):
    prefix = write_dataset([4, 6])
    path_of(prefix).unlink()
    with pytest.raises(DataError, match="there is no such file") as caught:
        IndexedDataset(prefix)
    assert caught.value.problems[0].where == str(path_of(prefix))


@pytest.mark.parametrize(
    ("position", "message"), [(34 + 12, "sequence 1 does not begin"), (34 + 36 + 8, "document 2 ends")]
)
def test_verify_finds_a_wrong_entry_in_the_middle(position, message, write_dataset):
    prefix = write_dataset([4, 6, 2])
    damage(idx_path(prefix), lambda raw: raw[: position + 8] + b"\x63" + raw[position + 9 :])
    with pytest.raises(DataError, match=message):
        IndexedDataset(prefix).verify()
