"""Ids of documents: found by document and by id, and carried through shuffles, shards and merges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.data import ids_writer, shuffle
from megacode.data import manifest as manifests
from megacode.data.document_ids import DocumentIds, Ids, ids_path, open_ids
from megacode.data.indexed import IndexedDataset, IndexedDatasetWriter
from megacode.data.machine_files import Shard
from megacode.data.merge import merge
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.shuffle import ShuffledWriter, document_keys

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, batch=st.integers(1, 20), size=st.integers(1, 9), seed=st.none() | st.integers(0, 9))
def test_every_id_is_found_by_document_and_every_document_by_id(names, batch, size, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(ids_writer, "_RANGE", size)
    monkeypatch.setattr(shuffle, "_SORTED_BYTES", 100 * size)
    prefix = tmp_path / "set"
    order = np.arange(len(names)) if seed is None else np.argsort(document_keys(seed, 0, len(names)))
    writer = (
        IndexedDatasetWriter(prefix, np.int32, with_ids=True)
        if seed is None
        else ShuffledWriter(prefix, np.int32, seed, with_ids=True)
    )
    with writer:
        for first in range(0, len(names), batch):
            some = names[first : first + batch]
            lengths = np.arange(first, first + len(some)) % 3 + 1
            writer.add(np.repeat(np.arange(first, first + len(some)), lengths), lengths, None, Ids.of(some))
    data, ids = IndexedDataset(prefix), DocumentIds(prefix)
    assert ids.documents == data.documents == len(names)
    for document, number in enumerate(order):
        assert ids[document] == names[number]
        assert data.read(data.document_bounds(document)[0], 1)[0] == number
    for name in {*names, "missing"}:
        assert ids.documents_of(name) == [document for document, number in enumerate(order) if names[number] == name]
    found = ids.batch(1, len(names) - 1)
    assert found.text.tobytes() == "".join(names[number] for number in order[1:]).encode()
    assert manifests.describe(prefix).ids_bytes == ids_path(prefix).stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"set.bin", "set.idx", "set.ids"}


@pytest.fixture(scope="module")
def source(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with ids, some of them empty, and two with one id."""
    rows = [{"url": f"https://a.example/{number}", "text": text[:900]} for number, text in enumerate(texts[:70])]
    rows += [{"url": n, "text": ""} for n in range(60)] + [{"url": "https://a.example/3", "text": "again"}]
    path = tmp_path_factory.mktemp("ids") / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("count", [1, 7])
def test_merged_shards_have_the_ids_that_one_process_makes(count, seed, source, huggingface, tmp_path) -> None:
    job = {"id_key": "url", "append_eod": True, "shuffle_seed": seed}
    one = preprocess(PreprocessJob((str(source),), str(tmp_path / "one"), huggingface, **job))["text"]
    for index in range(count):
        preprocess(PreprocessJob((str(source),), str(tmp_path / "many"), huggingface, shard=Shard(index, count), **job))
    whole = tmp_path / "many_text_document"
    assert merge([f"{whole}.shard_*"], str(whole), remove_shards=True) == one
    assert one.ids_hash
    assert not list(tmp_path.glob("*.shard_*"))
    for end in ("bin", "idx", "ids"):
        assert (tmp_path / f"one_text_document.{end}").read_bytes() == Path(f"{whole}.{end}").read_bytes()
    ids = open_ids(whole, one.documents)
    assert ids is not None
    assert len(ids.documents_of("https://a.example/3")) == 2
    assert len(ids.documents_of("7")) == 1  # an integer in JSON


def test_data_sets_with_and_without_ids_are_not_merged(source, huggingface, tmp_path) -> None:
    for name, key in (("a", "url"), ("b", None)):
        preprocess(PreprocessJob((str(source),), str(tmp_path / name), huggingface, id_key=key))
    names = [str(tmp_path / f"{name}_text_document") for name in ("a", "b")]
    with pytest.raises(DataError, match=r"it has no ids of documents, but .*a_text_document does") as caught:
        merge(names, str(tmp_path / "both"))
    assert "--id-key" in caught.value.problems[0].fix
    ids_path(names[0]).unlink()
    with pytest.raises(DataError, match="there is no such file, but its manifest names it"):
        merge(names, str(tmp_path / "both"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("null", "the key 'id' holds null, which is no id"),
        ("1.5", "the key 'id' holds 1.5, which is no id"),
        ("true", "the key 'id' holds true, which is no id"),
        ('""', "which is no id"),
        ('"\\ud800"', "unpaired surrogate"),
        (None, "the record has no key 'id'; its keys are 'text'"),
    ],
)
def test_a_line_without_an_id_is_a_bad_line(value, message, huggingface, tmp_path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "text": "x"}\n{' + (f'"id": {value}, ' if value else "") + '"text": "y"}\n')
    job = PreprocessJob((str(source),), str(tmp_path / "out"), huggingface, id_key="id")
    with pytest.raises(DataError, match=message) as caught:
        preprocess(job)
    assert caught.value.problems[0].where == f"{source}:2"
    made = preprocess(PreprocessJob(**{**vars(job), "skip_bad_lines": True}))["text"]
    assert (made.documents, made.bad_lines) == (1, 1)
    assert open_ids(tmp_path / "out_text_document", 1)[0] == "a"


def test_without_an_id_key_there_are_no_ids_and_none_of_an_older_data_set_stay(source, huggingface, tmp_path) -> None:
    job = PreprocessJob((str(source),), str(tmp_path / "out"), huggingface, id_key="url")
    assert preprocess(job)["text"].ids_hash
    made = preprocess(PreprocessJob(**{**vars(job), "id_key": None, "overwrite": True}))["text"]
    assert made.ids_hash == ""
    assert open_ids(tmp_path / "out_text_document", made.documents) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "its header describes"),
        (lambda raw: b"X" + raw[1:], "its first bytes are wrong"),
        (lambda raw: raw[:8] + b"\x02" + raw[9:], "version 2"),
        (lambda raw: raw[:20], "its first bytes are wrong"),
        (lambda raw: b"", "it is empty"),
    ],
)
def test_a_damaged_file_of_ids_says_what_is_wrong(change, message, tmp_path) -> None:
    with IndexedDatasetWriter(tmp_path / "set", np.int32, with_ids=True) as writer:
        writer.add(np.arange(4), np.array([4, 0]), None, Ids.of(["a", "b"]))
    path = ids_path(tmp_path / "set")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        DocumentIds(tmp_path / "set")
    assert caught.value.problems[0].where == str(path)
    assert caught.value.exit_code == 2


def test_ids_of_another_data_set_are_noticed(tmp_path) -> None:
    with IndexedDatasetWriter(tmp_path / "set", np.int32, with_ids=True) as writer:
        writer.add(np.arange(4), np.array([4, 0]), None, Ids.of(["a", "b"]))
    with pytest.raises(DataError, match="the ids of 2 documents, but the data set has 3"):
        open_ids(tmp_path / "set", 3)
    manifests.write(tmp_path / "set", manifests.describe(tmp_path / "set"))
    raw = ids_path(tmp_path / "set").read_bytes()
    ids_path(tmp_path / "set").write_bytes(raw[:-1] + b"c")
    assert manifests.check(tmp_path / "set") is not None  # a run reads no ids
    with pytest.raises(DataError, match="the first wrong block is number 0 of 1"):
        manifests.check(tmp_path / "set", whole=True)
