"""Loss masks of data sets: what is written is read back, and a mask that does not fit its data is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from megacode.base.errors import ConfigError, DataError
from megacode.cli.data_inspect import inspect
from megacode.data import document_batches, loss_masks, shuffle
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.loss_masks import LossMask
from megacode.data.merge import merge
from megacode.data.shuffle import ShuffledWriter, document_keys
from megacode.data.source_stream import SourceStream

DOCUMENTS = st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=30).filter(any)
HERE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def tokens_of(documents: list[list[bool]]) -> list[list[int]]:
    """Return tokens that name their document and whether they count: 2 d + bit."""
    return [[2 * number + bit for bit in bits] for number, bits in enumerate(documents)]


def bits_of(prefix: Path, tokens: int) -> list[bool]:
    """Read a mask bit by bit, without numpy."""
    raw = Path(f"{prefix}.mask").read_bytes()
    assert len(raw) == (tokens + 7) // 8
    assert all(not raw[i // 8] >> i % 8 & 1 for i in range(tokens, 8 * len(raw)))
    return [bool(raw[i // 8] >> i % 8 & 1) for i in range(tokens)]


def fill(writer: IndexedDatasetWriter | ShuffledWriter, documents: list[list[bool]], batch: int) -> None:
    """Add documents in batches."""
    rows = tokens_of(documents)
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        flat = np.array([token for row in some for token in row], dtype=np.int32)
        writer.add(flat, np.array([len(row) for row in some]), None, None, flat % 2 == 1)


def write(prefix: Path, documents: list[list[bool]], **facts: object) -> manifests.Manifest:
    """Write a masked data set with its manifest."""
    with IndexedDatasetWriter(prefix, np.uint16, with_mask=True) as writer:
        fill(writer, documents, 3)
    made = manifests.describe(prefix, **facts)
    manifests.write(prefix, made)
    return made


@settings(max_examples=60, **HERE)
@given(documents=DOCUMENTS, batch=st.integers(1, 9), seed=st.none() | st.integers(0, 9), size=st.integers(1, 300))
def test_every_token_keeps_its_bit(documents, batch, seed, size, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shuffle, "_SORTED_BYTES", size)
    plain = seed is None
    prefix = tmp_path / "set"
    writer = IndexedDatasetWriter(prefix, np.uint16, with_mask=True) if plain else None
    with writer or ShuffledWriter(prefix, np.uint16, seed, with_mask=True) as writer:
        fill(writer, documents, batch)
    order = range(len(documents)) if plain else np.argsort(document_keys(seed, 0, len(documents)))
    expected = [bit for number in order for bit in documents[number]]
    assert bits_of(prefix, len(expected)) == expected
    assert (np.fromfile(f"{prefix}.bin", np.uint16) % 2 == 1).tolist() == expected
    mask = LossMask(prefix, len(expected))
    for first in range(0, len(expected), 5):
        count = min(11, len(expected) - first)
        assert mask.read(first, count).tolist() == expected[first : first + count]
    assert manifests.describe(prefix).loss_mask["counted"] == sum(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"set.bin", "set.idx", "set.mask"}


@settings(max_examples=30, **HERE)
@given(documents=DOCUMENTS, cut=st.integers(0, 30), lost=st.booleans())
def test_a_writer_that_was_killed_resumes_inside_a_byte(documents, cut, lost, tmp_path) -> None:
    prefix, scratch = tmp_path / "set", tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    first = IndexedDatasetWriter(prefix, np.uint16, with_mask=True, scratch=scratch)
    first.open()
    fill(first, documents[:cut], 1)
    kept = json.loads(json.dumps(first.sync()))
    if lost:
        fill(first, documents[cut:], 2)
    first.close()
    second = IndexedDatasetWriter(prefix, np.uint16, with_mask=True, scratch=scratch)
    second.open(kept)
    rows = documents[cut:]
    flat = np.array([bit for bits in rows for bit in bits], dtype=bool)
    second.add(flat.astype(np.uint16), np.array([len(bits) for bits in rows]), None, None, flat)
    second.finish()
    second.publish()
    second.drop()
    expected = [bit for bits in documents for bit in bits]
    assert bits_of(prefix, len(expected)) == expected
    assert not list(scratch.iterdir())


@settings(max_examples=30, **HERE)
@given(sets=st.lists(DOCUMENTS, min_size=2, max_size=3), seed=st.none() | st.integers(0, 5), batch=st.integers(1, 40))
def test_a_merged_mask_is_that_of_all_documents(sets, seed, batch, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(document_batches, "_BATCH_BYTES", batch)
    names = [str(tmp_path / f"part{number}") for number in range(len(sets))]
    for name, documents in zip(names, sets, strict=True):
        write(Path(name), documents)
    made = merge(names, str(tmp_path / "whole"), seed, overwrite=True)
    tokens = np.fromfile(tmp_path / "whole.bin", np.uint16)
    assert bits_of(tmp_path / "whole", len(tokens)) == (tokens % 2 == 1).tolist()
    assert made.loss_mask["counted"] == sum(bit for documents in sets for bits in documents for bit in bits)
    manifests.check(tmp_path / "whole", whole=True)


def test_data_sets_with_and_without_a_mask_are_not_merged(write_dataset, tmp_path) -> None:
    write(tmp_path / "masked", [[True] * 5])
    manifests.write(plain := write_dataset([5], "plain"), manifests.describe(plain))
    with pytest.raises(DataError, match=r"no loss mask, but .*masked does"):
        merge([str(tmp_path / "masked"), plain], str(tmp_path / "whole"))
    assert not (tmp_path / "whole.idx").exists()


def test_packed_data_sets_are_merged_window_by_window(tmp_path) -> None:
    for name, length, padding in (("a", 4, 1), ("b", 4, 2), ("c", 8, 0)):
        write(tmp_path / name, [[True, False] * length], packed={"seq_length": length, "padding": padding})
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert merge([a, b], str(tmp_path / "whole")).packed == {"seq_length": 4, "padding": 3}
    with pytest.raises(DataError, match="different windows: it has 8"):
        merge([a, c], str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="would take packed windows apart"):
        merge([a, b], str(tmp_path / "other"), 3)


def test_a_set_that_replaces_a_masked_one_has_no_mask(tmp_path) -> None:
    write(tmp_path / "set", [[True] * 9])
    with IndexedDatasetWriter(tmp_path / "set", np.uint16) as writer:
        writer.add(np.arange(4), np.array([4]))
    assert not (tmp_path / "set.mask").exists()
    assert manifests.describe(tmp_path / "set").loss_mask is None


def test_a_mask_whose_manifest_is_missing_is_no_plain_set(write_dataset, tmp_path) -> None:
    write(tmp_path / "set", [[True, False] * 9])
    manifests.manifest_path(tmp_path / "set").unlink()
    for read in (manifests.read, manifests.check, manifests.identity):
        with pytest.raises(DataError, match="without it the set's loss mask cannot be read"):
            read(tmp_path / "set")
    with pytest.raises(DataError, match="without it the set's loss mask"):
        SourceStream("chat", str(tmp_path / "set"), 0.0, 4)
    assert manifests.read(write_dataset([5], "plain")) is None


@pytest.mark.parametrize("whole", [False, True])
def test_damage_is_named(whole, tmp_path) -> None:
    made = write(prefix := tmp_path / "a set", [[True, False, False] * 40])
    path = loss_masks.mask_path(prefix)
    assert manifests.check(prefix, whole) == made
    raw = path.read_bytes()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(DataError, match="not the one that the manifest describes"):
        manifests.check(prefix, whole)
    path.write_bytes(raw + b"\0")
    with pytest.raises(DataError, match="it has 16 bytes, but the loss mask of 120 tokens has 15"):
        manifests.check(prefix, whole)
    path.unlink()
    with pytest.raises(DataError, match="the loss mask is missing"):
        manifests.check(prefix, whole)
    document = json.loads(manifests.manifest_path(prefix).read_text())
    document["loss_mask"]["tokens"] = 7
    manifests.manifest_path(prefix).write_text(json.dumps(document))
    with pytest.raises(DataError, match="describes the loss mask of 7 tokens, but it has 120"):
        manifests.check(prefix, whole)


def test_inspect_tells_what_counts(tmp_path) -> None:
    write(tmp_path / "set", [[True, False, False, False] * 4], packed={"seq_length": 8, "padding": 3})
    inspect(str(tmp_path / "set"), "", 0, True, console := Console(width=80, file=io.StringIO()))
    out = console.file.getvalue()
    assert "loss mask: 4 of 16 tokens count (25.0%)" in out
    assert "packed: 2 windows of 8 tokens, 3 of them padding (18.8%)" in out
    path = tmp_path / "set.mask"
    path.write_bytes(bytes([255 ^ path.read_bytes()[0]]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match="the loss mask is not the one"):
        inspect(str(tmp_path / "set"), "", 0, True, console)
