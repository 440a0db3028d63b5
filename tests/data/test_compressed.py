"""A compressed file that was cut short is refused, whatever was read of it before."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
import zstandard

from megacode.base.errors import DataError
from megacode.data.inputs import find_inputs
from megacode.data.jsonl import parse_object, read_chunks, read_objects

WHOLE = "".join(json.dumps({"text": f"document {number} " + "word " * 40}) + "\n" for number in range(3000)).encode()


def compressed(name: str, data: bytes = WHOLE) -> bytes:
    return gzip.compress(data) if name.endswith("gz") else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_a_file_that_was_cut_short_is_refused_with_its_last_byte(name: str, share: float, tmp_path: Path) -> None:
    raw = compressed(name)
    path = tmp_path / name
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError, match=r"it is (truncated|empty)") as caught:
        list(read_chunks(path, 1 << 16))
    assert caught.value.problems[0].where == str(path)
    assert f"byte {path.stat().st_size:,}" in caught.value.problems[0].what
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_whole_file_of_several_frames_is_read_to_its_end(name: str, tmp_path: Path) -> None:
    half = WHOLE.index(b"\n", len(WHOLE) // 2) + 1
    frames = compressed(name, WHOLE[:half]) + compressed(name, WHOLE[half:])
    (tmp_path / name).write_bytes(frames)
    chunks = list(read_chunks(tmp_path / name, 1 << 16))
    assert len(chunks) > 1
    assert b"".join(chunk.data for chunk in chunks) == WHOLE
    assert sum(chunk.read_bytes for chunk in chunks) == len(frames)


def test_a_frame_that_was_streamed_and_an_empty_one_are_whole(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        writer.write(b'{"text": "a"}\n')
    (tmp_path / "a.zst").write_bytes(compressed("zst", b"") + out.getvalue())
    assert [line for _, line in read_objects(tmp_path / "a.zst")] == [b'{"text": "a"}']


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.jsonl.xz", "a.tar.gz"])
def test_a_format_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.\w+ files are not supported"):
        find_inputs([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"{", "not JSON"), (b"[]", "a JSON list"), (b'"\xff"', "not UTF-8"), (b'{"a": 1, "a": 2}', "'a' appears twice")],
)
def test_one_rule_says_what_a_line_must_be(line: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_object(line)


def test_lines_end_at_line_feeds_only_and_blank_ones_count(tmp_path: Path) -> None:
    text = '{"text": "a\u2028b"}\r\n\n{"text": "c"}'
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    assert [(number, parse_object(line)["text"]) for number, line in read_objects(tmp_path / "a.jsonl")] == [
        (1, "a\u2028b"),
        (3, "c"),
    ]
