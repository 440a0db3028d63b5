"""Manifests: a data set is what it was, or the run says so."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.data import block_hashes
from megacode.data import manifest as manifests
from megacode.data.block_hashes import BlockHasher, hashes_of, sample_hash
from megacode.data.indexed import bin_path, idx_path


@pytest.fixture
def described(write_dataset) -> str:
    prefix = write_dataset([5, 0, 7])
    manifests.write(prefix, manifests.describe(prefix, tokenizer={"hash": "abc"}))
    return prefix


def test_a_manifest_reads_back_as_it_was_written_and_fits(described):
    found = manifests.check(described, whole=True)
    assert found == manifests.check(described) == manifests.describe(described, tokenizer={"hash": "abc"})
    assert (found.tokens, found.documents, found.dtype) == (12, 3, "uint16")
    assert manifests.identity(described) == found.identity


def test_identity_is_that_of_the_contents(described, write_dataset):
    assert manifests.describe(write_dataset([5, 0, 7], "copy")).identity == manifests.identity(described)
    assert manifests.describe(write_dataset([5, 1, 6], "other")).identity != manifests.identity(described)
    assert manifests.describe(write_dataset([5, 0, 7], "wide", "int32")).identity != manifests.identity(described)


@pytest.mark.parametrize("path_of", [bin_path, idx_path])
@pytest.mark.parametrize("whole", [False, True])
def test_a_changed_byte_is_found(path_of, whole, described):
    raw = bytearray(path_of(described).read_bytes())
    raw[5] ^= 1
    path_of(described).write_bytes(raw)
    with pytest.raises(DataError, match="do not match its manifest") as caught:
        manifests.check(described, whole=whole)
    assert caught.value.problems[0].where == str(path_of(described))
    assert caught.value.exit_code == 2


def test_another_size_and_a_missing_file_are_found(described):
    raw = bin_path(described).read_bytes()
    bin_path(described).write_bytes(raw + b"xx")
    with pytest.raises(DataError, match="26 bytes, but its manifest says 24"):
        manifests.check(described)
    bin_path(described).unlink()
    with pytest.raises(DataError, match="there is no such file"):
        manifests.check(described)


def test_a_set_without_manifest_is_known_by_its_sampled_blocks_and_the_log_says_so(write_dataset, caplog):
    prefix = write_dataset([5, 7])
    assert manifests.check(prefix) is None
    with caplog.at_level(logging.INFO):
        assert manifests.identity(prefix) != manifests.identity(write_dataset([7, 5], "other"))
    assert "identified only by its size and sampled blocks" in caplog.text


def test_sampled_blocks_reach_both_ends_of_a_large_file(tmp_path: Path):
    path = tmp_path / "large"
    path.write_bytes(bytes(5_000_000))
    whole, sample = hashes_of(path).whole, sample_hash(path)
    for position in (0, 4_999_999):
        raw = bytearray(5_000_000)
        raw[position] = 1
        path.write_bytes(raw)
        assert sample_hash(path) != sample
        assert hashes_of(path).whole != whole


@pytest.mark.parametrize("text", ["{not json", "[]", '{"tokens": 1}'])
def test_a_file_that_is_no_manifest_is_an_error(text, described):
    manifests.manifest_path(described).write_text(text)
    with pytest.raises(DataError, match="it is not a manifest"):
        manifests.identity(described)


def test_a_later_format_is_an_error(described):
    later = dataclasses.asdict(manifests.read(described)) | {"format": 2, "novelty": 1}
    manifests.manifest_path(described).write_text(json.dumps(later))
    with pytest.raises(DataError, match="its format is 2"):
        manifests.check(described)


def test_a_set_made_by_another_tokenizer_is_refused(described):
    manifests.check_tokenizer(described, manifests.read(described), "abc")
    manifests.check_tokenizer(described, None, "xyz")
    with pytest.raises(DataError, match="made with tokenizer abc, but the run's tokenizer is xyz") as caught:
        manifests.check_tokenizer(described, manifests.read(described), "xyz")
    assert "tokenizer.path" in caught.value.problems[0].fix


@pytest.mark.parametrize("path_of", [bin_path, idx_path])
def test_verifying_names_the_first_wrong_block(path_of, write_dataset, monkeypatch):
    monkeypatch.setattr(block_hashes, "BLOCK_BYTES", 100)
    prefix = write_dataset([5, 0, 7] * 30)
    manifests.write(prefix, manifests.describe(prefix))
    monkeypatch.undo()  # another version may hash larger blocks
    path = path_of(prefix)
    raw = bytearray(path.read_bytes())
    for place in (len(raw) - 1, 234):
        raw[place] ^= 1
        path.write_bytes(raw)
        number, last = place // 100, (len(raw) - 1) // 100
        end = min(100 * number + 100, len(raw)) - 1
        said = f"the first wrong block is number {number} of {last + 1}, bytes {100 * number:,} to {end:,}$"
        with pytest.raises(DataError) as caught:
            manifests.check(prefix, whole=True)
        assert re.search(said, caught.value.problems[0].what)
        assert caught.value.problems[0].where == str(path)


def test_a_manifest_without_hashes_of_blocks_is_verified_as_a_whole(described):
    older = dataclasses.asdict(manifests.read(described))
    for name in ("blocks", "ids_bytes", "ids_hash"):
        del older[name]
    manifests.manifest_path(described).write_text(json.dumps(older))
    assert manifests.check(described, whole=True).blocks is None
    raw = bytearray(bin_path(described).read_bytes())
    raw[5] ^= 1
    bin_path(described).write_bytes(raw)
    with pytest.raises(DataError, match=r"its contents do not match its manifest\n"):
        manifests.check(described, whole=True)


@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40))
def test_hashes_do_not_depend_on_how_bytes_come(parts, block_bytes):
    one, many, whole = BlockHasher(block_bytes), BlockHasher(block_bytes), b"".join(parts)
    one.update(whole)
    for part in parts:
        many.update(part)
    assert many.hashes() == one.hashes()
    assert len(one.hashes().blocks) == -(-len(whole) // block_bytes)
    assert one.hashes().whole == xxhash.xxh3_128_hexdigest(whole)
