"""What a user names as input is found, and read as records by one set of rules, whatever its format."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.cli.data import script
from megacode.config.model import TokenizerConfig
from megacode.data import jsonl
from megacode.data.inputs import find_inputs, read_records, refuse_standard_input
from megacode.data.machine_files import Shard
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.records import Records, field_of
from megacode.data.texts import texts_of


def rows_of(found: Sequence[Records]) -> list[Any]:
    return [row for records in found for row in records.rows]


def pack(path: Path, data: bytes) -> Path:
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return path


def test_directories_globs_and_files_are_found_in_order(tmp_path: Path) -> None:
    names = ("b.jsonl", "a/z.parquet", "a/y.jsonl.gz", "a/deep/x.json", "a/w.jsonl.zst", "a/README.md", ".old/v.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    below = ["a/deep/x.json", "a/w.jsonl.zst", "a/y.jsonl.gz", "a/z.parquet"]
    assert find_inputs([str(tmp_path)]) == [tmp_path / name for name in (*below, "b.jsonl")]
    assert find_inputs([str(tmp_path / "b*"), str(tmp_path / "?")]) == [tmp_path / name for name in ("b.jsonl", *below)]
    assert find_inputs(["-"]) == [Path("-")]


def test_a_directory_with_a_format_that_is_not_read_or_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl.bz2").write_bytes(b"")
    with pytest.raises(DataError, match=r"\.bz2 files are not supported"):
        find_inputs([str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no such file"):
        find_inputs([str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="listed twice"):
        find_inputs([str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsonl")])


def test_what_a_directory_or_glob_leaves_out_is_said_and_links_are_followed(tmp_path: Path, caplog) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.jsonl").write_bytes(b"")
    raw = tmp_path / "raw with spaces"
    raw.mkdir()
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (raw / "linked" / "back").symlink_to(raw)
    (raw / "b.jsonl").write_bytes(b"")
    assert find_inputs([str(raw)]) == [raw / "b.jsonl", raw / "linked" / "deep" / "a.jsonl"]
    assert not caplog.text
    (raw / "c.ndjson").write_bytes(b"")
    find_inputs([str(raw)])
    assert "has 1 files that are not read, since their names end otherwise (.ndjson)" in caplog.text
    assert find_inputs([str(raw / "*")]) == [raw / "b.jsonl", raw / "c.ndjson"]
    assert f"only the files are read; left out: {raw / 'linked'}" in caplog.text


def test_a_file_under_two_names_and_a_pipe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b"")
    Path("link.jsonl").symlink_to("a.jsonl")
    for other in (str(tmp_path / "a.jsonl"), "link.jsonl", "./a.jsonl"):
        with pytest.raises(ConfigError, match="listed twice"):
            find_inputs(["a.jsonl", other])
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/full"):
        with pytest.raises(DataError, match=f"--input {name}: it is not a regular file"):
            find_inputs([name])


def test_standard_input_is_read_and_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n{"text": "b"}')))
    found = list(read_records(Path("-")))
    assert rows_of(found) == [{"text": "a"}, {"text": "b"}]
    assert [line for records in found for line in records.lines] == [1, 2]
    with pytest.raises(ConfigError, match="--input -: it cannot be divided"):
        refuse_standard_input([Path("-")], "it cannot be divided")


def test_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="--input -: standard input is closed"):
        list(read_records(Path("-")))


def test_records_that_are_all_bad_are_an_error_when_bad_ones_are_skipped(
    huggingface: TokenizerConfig, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 3)
    job = PreprocessJob(
        (str(tmp_path / "a.jsonl"),), str(tmp_path / "out"), huggingface, keys=("body",), skip_bad_lines=True
    )
    with pytest.raises(DataError, match="none of its 3 records can be used") as caught:
        preprocess(job)
    assert "check --json-keys" in caught.value.problems[0].fix
    assert not list(tmp_path.glob("*out*"))


def test_a_key_reaches_into_objects_and_one_with_a_dot_wins() -> None:
    row = {"a": {"b": {"c": 1}, "b.c": 2}, "x.y": 3, "x": {"y": 4}}
    assert [field_of(row, key) for key in ("a.b", "a.b.c", "x.y", "x", "no.one", "x.y.z")] == [
        {"c": 1},
        2,
        3,
        {"y": 4},
        None,
        None,
    ]
    assert field_of(row, "a.z", "absent") == "absent"


def test_texts_under_nested_keys_and_lists_and_records_without_them(tmp_path: Path) -> None:
    rows = [{"m": {"t": "a"}, "id": 1}, {"m": {"t": ["b", "c"]}, "id": 2}, {"m": {}, "id": 3}, {"m": {"t": 5}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(read_records(tmp_path / "a.jsonl", columns=["m.t"]))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (records,) = read_records(tmp_path / "a.jsonl", columns=["m.t"])
    assert rows_of(found) == records.rows
    parsed = texts_of(records, ["m.t"], skip_bad=True, id_key="id")
    texts = parsed.texts["m.t"]
    assert (texts.texts, texts.counts) == (["a", "b", "c"], [1, 2])
    assert (parsed.documents, parsed.ids.text.tobytes(), parsed.bad) == (2, b"12", 2)
    with pytest.raises(DataError, match=r"a\.jsonl:3: the record has no key 'm\.t'; its keys are 'm', 'id'"):
        texts_of(records, ["m.t"])


def test_a_mark_of_byte_order_is_skipped_at_the_head_of_a_file_only(tmp_path: Path) -> None:
    line = '{"text": "a"}\n'.encode("utf-8-sig")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        path = pack(tmp_path / name, line)
        assert rows_of(list(read_records(path))) == [{"text": "a"}]
        pack(path, line + line)
        with pytest.raises(DataError, match=rf"{name}:2: .*BOM.* begins at byte 17 .*1 good documents before"):
            list(read_records(path))


def test_a_key_that_stands_twice_in_a_line_is_a_bad_line(tmp_path: Path) -> None:
    lines = b'{"text": "a"}\n{"text": "a", "text": "b"}\n{"meta": {"text": "x"}, "text": "c"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    with pytest.raises(DataError, match="'text' appears twice"):
        list(read_records(tmp_path / "a.jsonl", columns=["text"]))
    (records,) = read_records(tmp_path / "a.jsonl", columns=["text"], skip_bad=True)
    assert ([row["text"] for row in records.rows], records.lines, records.bad) == (["a", "c"], [1, 3], 1)


BAD_LINES = [
    (b"{not json", "the line is not JSON"),
    (b"[1]", "a JSON list, not an object"),
    (b'{"text": "\xff"}', "not UTF-8: invalid start byte at its byte 11"),
    (b'{"text": "a\x00"}', "not JSON: Invalid control character"),
    (b"\x00" * 20, "not JSON"),
    (b'{"text": "\\ud800"}', "unpaired surrogate"),
    (b'{"other": "\\udfff"}', "'other' holds an unpaired surrogate"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON: maximum recursion depth"),
    (b'{"text": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "not JSON: maximum recursion depth"),
    (b'{"number": ' + b"9" * 5000 + b', "x": NaN}', "not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_a_bad_line_is_named_with_its_byte_and_the_good_ones_before(line: bytes, message: str, tmp_path: Path) -> None:
    good = b'{"text": "good"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b" \n" + good + line + b"\n" + good)
    before: list[Records] = []
    with pytest.raises(DataError, match=message) as caught:
        before += read_records(tmp_path / "a.jsonl")
    (problem,) = caught.value.problems
    assert problem.where == f"{tmp_path / 'a.jsonl'}:4"
    assert f"the line begins at byte {2 * len(good) + 2} of the file); 2 good documents before it" in problem.what
    (records,) = read_records(tmp_path / "a.jsonl", skip_bad=True)
    assert (len(records.rows), records.lines, records.bad) == (3, [1, 3, 5], 1)


def test_the_good_documents_before_a_bad_line_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": NaN}\n{"a"')
    reader = read_records(tmp_path / "a.jsonl")
    assert [row["a"] == 1 for row in next(reader).rows] == [True, False]
    with pytest.raises(DataError, match=":3: "):
        next(reader)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("is_ended", [True, False])
def test_a_line_that_is_too_long_is_never_held(
    name: str, is_ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 5000)
    good, longest = b'{"text": "a"}\n', b'{"text": "' + b"x" * 4988 + b'"}'
    assert len(longest) == 5000
    data = good + longest + b"\n" + longest[:-2] + b'x"}\n' + good + b"y" * 20_000 + b"\n" * is_ended
    path = pack(tmp_path / name, data)
    for size in (64, 999, 1 << 20):
        found = list(jsonl.read_lines(path, skip_bad=True, size=size))
        assert [len(row["text"]) for row in rows_of(found)] == [1, 4988, 1]
        assert [line for records in found for line in records.lines] == [1, 2, 4]
        assert sum(records.bad for records in found) == 2
    with pytest.raises(DataError, match=r":3: the line is longer than 5,000 bytes .*; 2 good documents before it"):
        list(read_records(path))
    with pytest.raises(DataError, match="longer than 5,000 bytes"):
        list(jsonl.read_objects(path))


LINES = st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")), max_size=12)
JSON = st.dictionaries(st.text("ab.\u20ac\0", max_size=2), st.text(max_size=5) | st.none() | st.integers(-9, 9))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.tuples(st.sampled_from([".jsonl", ".gz", ".zst"]), st.lists(JSON, max_size=8)), min_size=1),
    blank=st.booleans(),
    count=st.integers(1, 5),
    size=st.integers(1, 60),
)
def test_records_survive_every_border_of_chunks_and_shards(contents, blank, count, size, tmp_path) -> None:
    paths, wanted = [], []
    for number, (ending, rows) in enumerate(contents[:3]):
        lines = [json.dumps(row) for row in rows for _ in range(1 + blank)]
        lines[1::2] = [""] * len(lines[1::2]) if blank else lines[1::2]
        paths.append(pack(tmp_path / f"{number}{ending}", "\n".join(lines).encode()))
        wanted += [(number, place, row) for place, row in zip(range(1, 99, 1 + blank), rows, strict=False)]
    found = []
    for index in range(count):
        for number, start, end in Shard(index, count).parts([path.stat().st_size for path in paths]):
            for records in jsonl.read_lines(paths[number], (start, end), size=size):
                found += [(number, *pair) for pair in zip(records.lines, records.rows, strict=True)]
    assert found == wanted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ending=st.sampled_from([".jsonl", ".gz", ".zst"]), lines=LINES, size=st.integers(1, 40), stop=st.integers(0, 9))
def test_reading_goes_on_after_what_is_done(ending, lines, size, stop, tmp_path) -> None:
    path = pack(
        tmp_path / f"a{ending}", b"\n".join(b'{"n": %d} ' % n + b" " * len(line) for n, line in enumerate(lines))
    )
    whole = list(jsonl.read_lines(path, size=size))
    before = whole[:stop]
    rest = list(jsonl.read_lines(path, size=size, done=before[-1].done if before else 0))
    assert rows_of(before) + rows_of(rest) == rows_of(whole)
    assert [line for records in [*before, *rest] for line in records.lines] == list(
        range(1, len(lines) + (lines != []))
    ) or not lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["a.jsonl", "a.gz", "a.zst"]), raw=st.binary(max_size=200), is_packed=st.booleans())
def test_any_bytes_are_records_or_an_error_of_the_user(name, raw, is_packed, tmp_path) -> None:
    path = tmp_path / name
    pack(path, raw) if is_packed else path.write_bytes(raw)
    for skip in (False, True):
        broken: DataError | None = None
        try:
            for records in read_records(path, skip_bad=skip):
                assert len(records.rows) == len(records.lines)
        except DataError as error:
            broken = error
        if broken is not None:
            assert broken.problems[0].where.startswith(str(path))
            assert "good documents" in broken.problems[0].what


def test_preprocessing_reads_standard_input_whole_or_not_at_all(
    corpus: Path, huggingface: TokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    model = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", huggingface.path]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(corpus.read_bytes())))
    given = ["--input", "-", "--output-prefix", str(tmp_path / "piped"), *model]
    assert script("preprocess", "tools/preprocess_data.py", given) == 0
    preprocess(PreprocessJob((str(corpus),), str(tmp_path / "whole"), huggingface))
    made = [(tmp_path / f"{name}_text_document.bin").read_bytes() for name in ("piped", "whole")]
    assert made[0] == made[1] != b""
    assert script("preprocess", "tools/preprocess_data.py", [*given, "--shard", "0/2"]) == 2
    assert "standard input cannot be divided into shards" in capfd.readouterr().err


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("size", [40, 1 << 20])
def test_skipped_records_are_told_with_their_places(tmp_path: Path, monkeypatch, ending: str, size: int) -> None:
    good = '{"text": "good"}\n'
    lines = [good, "{broken\n", good, '{"text": 3, "more": "\u202e"}\n', "[1]\n", good, "x\n", '{"title": 1}\n']
    path = pack(tmp_path / f"a.{ending}", "".join(lines).encode())
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", size)
    told: list[str] = []
    parts = [(0, 50), (50, path.stat().st_size)] if ending == "jsonl" else [None]
    for part in parts:
        for records in read_records(path, part, skip_bad=True, columns=["text"], numbered=False):
            parsed = texts_of(records, ["text"], skip_bad=True)
            assert len(parsed.skipped) == min(3, parsed.bad)
            told += records.told(parsed.skipped)
    by_line = {int(one.split(":")[1]): one.partition(": ")[2] for one in told}
    # Numbers are those of the whole file, also where it was entered in its middle.
    assert set(by_line) == ({2, 4, 5} if parts == [None] and size > 40 else {2, 4, 5, 7, 8})
    assert by_line[2].startswith("the line is not JSON")
    assert by_line[2].endswith(": '{broken'")
    assert not [one for one in told if "\u202e" in one]
