"""Manifests: a data set is what it was, or the run says so."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from megacode.base.errors import DataError
from megacode.data import manifest as manifests
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
    whole, sample = manifests.whole_hash(path), manifests.sample_hash(path)
    for position in (0, 4_999_999):
        raw = bytearray(5_000_000)
        raw[position] = 1
        path.write_bytes(raw)
        assert manifests.sample_hash(path) != sample
        assert manifests.whole_hash(path) != whole


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
