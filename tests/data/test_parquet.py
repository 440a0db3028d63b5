"""Parquet files give the same records as JSON lines, in bounded memory, and damaged ones are errors of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from megacode.base.errors import DataError
from megacode.config.model import TokenizerConfig
from megacode.data import parquet, parquet_child
from megacode.data.inputs import read_records
from megacode.data.machine_files import Shard
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.records import Records

TEXTS = [f"text {number} \u20ac" for number in range(2000)]


def write(path: Path, columns: dict[str, Any], rows: int = 300, **options: Any) -> Path:
    pa.parquet.write_table(pa.table(columns), path, row_group_size=rows, **options)
    return path


def test_texts_of_every_kind_and_nested_ones_are_read(tmp_path: Path) -> None:
    columns = {
        "text": TEXTS,
        "large": pa.array(TEXTS, pa.large_string()),
        "words": pa.array(["a", "b"] * 1000).dictionary_encode(),
        "meta": pa.array([{"path": "x.py", "stars": 3}] * 2000),
        "licenses": pa.array([["MIT", "ISC"]] * 2000),
        "text.dotted": ["d"] * 2000,
    }
    path = write(tmp_path / "a.parquet", columns)
    found = list(read_records(path))
    rows = [row for records in found for row in records.rows]
    assert rows == pa.table(columns).to_pylist()
    assert [line for records in found for line in records.lines] == list(range(1, 2001))
    assert sum(records.read_bytes for records in found) == path.stat().st_size
    wanted = [row for records in read_records(path, columns=["meta.path", "text.dotted"]) for row in records.rows]
    assert wanted == [{"meta": {"path": "x.py"}, "text.dotted": "d"}] * 2000


def test_row_groups_belong_to_one_part_and_reading_goes_on_after_what_is_done(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS})
    parts = [Shard(index, 3).parts([path.stat().st_size])[0][1:] for index in range(3)]
    shares = [[row["text"] for records in read_records(path, part) for row in records.rows] for part in parts]
    assert [text for share in shares for text in share] == TEXTS
    assert all(len(share) % 300 in (0, 200) and share for share in shares)
    for done in (1, 300, 301, 1999):
        assert [row["text"] for records in read_records(path, done=done) for row in records.rows] == TEXTS[done:]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"a"]), "its column 'text' holds binary, which is not supported: texts are string or large_string"),
        (pa.array([[{"b": [b"a"]}]]), "its column 'text.b' holds binary"),
        (None, "it has no column 'text'; its columns are 'other'"),
    ],
)
def test_other_columns_are_refused_by_name(column: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"other": [1]} if column is None else {"other": [1], "text": column})
    with pytest.raises(DataError, match=message) as caught:
        list(read_records(path, columns=["text"]))
    assert caught.value.problems[0].where == str(path)


def test_a_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    raw = [b"a", b"b", b"\xff\xfe", b"d"]
    broken = pa.StringArray.from_buffers(4, *pa.array(raw).buffers()[1:])
    path = write(tmp_path / "a.parquet", {"text": broken})
    reader = read_records(path)
    assert [row["text"] for row in next(reader).rows] == ["a", "b"]
    with pytest.raises(DataError, match=r"'text' is not UTF-8: .* bytes 0 to .*; 2 good documents before it") as caught:
        next(reader)
    assert caught.value.problems[0].where == f"{path}:3"
    (records,) = read_records(path, skip_bad=True)
    assert ([row["text"] for row in records.rows], records.lines, records.bad) == (["a", "b", "d"], [1, 2, 4], 1)


def test_a_damaged_row_group_is_named_by_its_bytes_after_the_good_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS})
    begin, end = _bytes_of(path, 2)
    raw = bytearray(path.read_bytes())
    raw[begin + 40 : begin + 80] = b"\xff" * 40
    path.write_bytes(raw)
    found: list[Records] = []
    with pytest.raises(DataError, match=f"in row group 2, bytes {begin:,} to {end:,}.*; 600 good documents before it"):
        found += read_records(path, skip_bad=True)
    assert [row["text"] for records in found for row in records.rows] == TEXTS[:600]


def _bytes_of(path: Path, number: int) -> tuple[int, int]:
    group = parquet_child.groups(pa.parquet.read_metadata(path), path.stat().st_size)[number]
    return group.begin, group.end


@pytest.mark.parametrize("cut", [0, 7, 5000, -1])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=f"it cannot be read: .*; the file has {path.stat().st_size:,} bytes; 0 good"):
        list(read_records(path, skip_bad=True))


def test_a_reader_that_crashes_or_takes_too_much_memory_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x" * (60 << 20)]}, use_dictionary=False)
    monkeypatch.setattr(parquet, "MEMORY_BYTES", 300 << 20)
    with pytest.raises(DataError, match="reading it takes more than 300 MiB of memory"):
        list(read_records(path))
    write(path, {"text": ["a"]})
    (tmp_path / "crash.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(parquet, "_CHILD", tmp_path / "crash.py")
    with pytest.raises(DataError, match=r"pyarrow crashed on it \(SIGABRT\)"):
        list(read_records(path))


def test_preprocessing_parquet_gives_the_data_set_of_the_same_json_lines(
    texts: list[str], huggingface: TokenizerConfig, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", {"meta": [{"body": text} for text in texts], "n": list(range(len(texts)))}, 40)
    lines = [json.dumps({"meta": {"body": text}}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    one, two = (
        preprocess(PreprocessJob((str(source),), str(tmp_path / source.suffix[1:]), huggingface, keys=("meta.body",)))
        for source in (path, tmp_path / "a.jsonl")
    )
    assert one["meta.body"].identity == two["meta.body"].identity
