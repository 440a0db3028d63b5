"""A compressed file that was cut short is refused, whatever was read of it before."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from megacode.base.errors import DataError
from megacode.data.inputs import find_inputs, read_records
from megacode.data.jsonl import parse_object, read_chunks, read_objects
from megacode.data.records import Records

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


def flushed(name: str, rows: list[bytes]) -> tuple[bytes, list[int]]:
    """Return a file whose compressor was flushed behind each line but the last, and where the pieces end."""
    if name.endswith("gz"):
        writer: Any = zlib.compressobj(wbits=31)
        pieces = [writer.compress(row) + writer.flush(zlib.Z_SYNC_FLUSH) for row in rows[:-1]]
    else:
        writer = zstandard.ZstdCompressor().compressobj()
        flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        pieces = [writer.compress(row) + writer.flush(flush) for row in rows[:-1]]
    pieces.append(writer.compress(rows[-1]) + writer.flush())
    return b"".join(pieces), list(itertools.accumulate(map(len, pieces)))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_cut_inside_and_between_blocks_is_found_at_every_byte(name: str, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(8)]
    raw, ends = flushed(name, rows)
    path = tmp_path / name
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        found: list[Records] = []
        with pytest.raises(DataError, match=r"it is (truncated|empty)") as caught:
            found += read_records(path, skip_bad=True)
        count = sum(len(records.rows) for records in found)
        # All lines whose bytes are there, and none that was lost with the end of its block.
        assert sum(end <= cut for end in ends[:-1]) <= count <= len(rows)
        assert f"(at its end, byte {cut:,}); {count} good documents before it" in caught.value.problems[0].what
    path.write_bytes(raw)
    assert sum(len(records.rows) for records in read_records(path)) == len(rows)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_damage_and_garbage_are_named_between_two_bytes_after_the_good_documents(name: str, tmp_path: Path) -> None:
    dice = random.Random(0)
    rows = [json.dumps({"text": dice.randbytes(1000).hex()}).encode() + b"\n" for _ in range(100)]
    raw, ends = flushed(name, rows)
    place = ends[49] + 3
    for damaged in (raw[:place] + b"\xff" * 50 + raw[place + 50 :], raw + b"garbage"):
        (tmp_path / name).write_bytes(damaged)
        found: list[Records] = []
        with pytest.raises(DataError, match=r"between bytes .* and .* of .*\); \d+ good documents before it") as caught:
            found += read_records(tmp_path / name)
        first, last, size = (
            int(n.replace(",", "")) for n in re.findall(r"(?<= )[\d,]+(?=[ )])", str(caught.value))[:3]
        )
        assert size == len(damaged)
        broken = place if len(damaged) == len(raw) else len(raw)
        # A block is only checked when it is whole, so the error may lie behind the damage.
        assert broken <= last <= broken + (1 << 17)
        count = sum(len(records.rows) for records in found)
        assert sum(end <= first for end in ends) <= count <= sum(end <= last for end in ends)
        assert count >= 15  # what was in the same piece of 32 KiB is lost


def test_zeros_behind_gzip_members_are_padding(tmp_path: Path) -> None:
    line = b'{"text": "a"}\n'
    (tmp_path / "a.gz").write_bytes(gzip.compress(line) + bytes(40_000) + gzip.compress(line) + bytes(10))
    assert sum(len(records.rows) for records in read_records(tmp_path / "a.gz")) == 2


def test_skippable_frames_and_long_windows_of_zstandard_are_read(tmp_path: Path) -> None:
    line = b'{"text": "a"}\n'
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = writer.compress(line) + writer.flush()
    (tmp_path / "a.zst").write_bytes(skippable + compressed("zst", line) + skippable + wide)
    assert sum(len(records.rows) for records in read_records(tmp_path / "a.zst")) == 2


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
