"""Raw inputs in object storage: the same records, shards and errors as of local files, in bounded memory."""

from __future__ import annotations

import gc
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from megacode.base.errors import ConfigError, DataError
from megacode.cli.data import script
from megacode.config.model import TokenizerConfig
from megacode.data import encoding_pass, jsonl, object_reader, object_requests, objects
from megacode.data.inputs import find_inputs, read_records
from megacode.data.machine_files import Shard
from megacode.data.preprocess import PreprocessJob, preprocess
from tests.data.object_storage import BUCKET, Answer, Proxy, client_of, proxy, server, upload_tree

__all__ = ["proxy", "server"]  # fixtures

NAMES = ("b.jsonl", "a/z.parquet", "a/y.jsonl.gz", "a/deep/x.json", "a/w.jsonl.zst", "a/README.md", ".old/v.jsonl")


def lines(count: int, seed: int = 0) -> bytes:
    """JSON lines that do not compress to nothing."""
    rng = random.Random(seed)
    rows = ({"id": f"{seed}-{n}", "text": f"{n} " + rng.randbytes(60).hex() * (n % 7)} for n in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A directory with one file of every format; its name has a space."""
    root = tmp_path / "raw dumps"
    (root / "more").mkdir(parents=True)
    (root / "a.jsonl").write_bytes(lines(400, 1))
    (root / "more" / "b.jsonl.gz").write_bytes(gzip.compress(lines(300, 2)) + gzip.compress(lines(10, 3)))
    (root / "more" / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(500, 4)))
    rows = [json.loads(line) for line in lines(700, 5).splitlines()]
    pa.parquet.write_table(pa.Table.from_pylist(rows), root / "d.parquet", row_group_size=90)
    return root


def records_of(path: Path, **options: Any) -> list[Any]:
    return [row for records in read_records(path, **options) for row in records.rows]


def test_objects_directories_and_globs_are_found_in_the_order_of_local_files(server, proxy, tmp_path) -> None:
    root = tmp_path / "t"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "[1].jsonl").write_bytes(b"x")
    url = upload_tree(server, root, tmp_path.name)
    proxy.requests.clear()
    for pattern in ("", "b*", "?", "*/*", "**", "a/**/*.json*", "[ab].jsonl", ".old/*", "a", "[1].jsonl", "a/[!x]*"):
        local = [str(path.relative_to(root)) for path in find_inputs([f"{root}/{pattern}"])]
        there = [str(path).removeprefix(f"{url}/") for path in find_inputs([f"{url}/{pattern}"])]
        assert there == local, pattern
    assert len(proxy.requests) <= 11 * 4, "one list gives the ETags of all"


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        (["{}/nothing/*.jsonl"], DataError, "there is no such object"),
        (["{}/a.jsonl", "{}/*.jsonl"], ConfigError, "the same file is listed twice"),
        (["{}/e.jsonl.bz2"], DataError, r"\.bz2 files are not supported"),
        (["s3://no-such-bucket/x/"], DataError, "there is no bucket 'no-such-bucket'"),
        (["s3://no-such-bucket/x.jsonl"], DataError, "there is no bucket 'no-such-bucket'"),
        (["http://host/x.jsonl"], DataError, "there is no storage http://"),
        (["s3://"], DataError, "it names no bucket"),
    ],
)
def test_what_cannot_be_found_is_named(server, proxy, raw, tmp_path, patterns, error, message) -> None:
    (raw / "e.jsonl.bz2").write_bytes(b"x")
    url = upload_tree(server, raw, tmp_path.name)
    with pytest.raises(error, match=message):
        find_inputs([pattern.format(url) for pattern in patterns])


@pytest.mark.parametrize("count", [1, 3])
def test_every_part_of_every_format_gives_the_records_of_the_local_file(
    server, proxy, raw, tmp_path, monkeypatch, count
) -> None:
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 5_000)
    monkeypatch.setattr(object_reader, "CHUNK_BYTES", 10_007)  # so that records cross the borders of requests
    url = upload_tree(server, raw, tmp_path.name)
    here, there = find_inputs([str(raw)]), find_inputs([url])
    assert len(here) == 4
    for local, remote in zip(here, there, strict=True):
        assert remote.stat().st_size == local.stat().st_size
        for index in range(count):
            for _, *part in Shard(index, count).parts([local.stat().st_size]):
                found = list(read_records(remote, tuple(part)))
                expected = list(read_records(local, tuple(part)))
                assert [(one.rows, one.lines, one.done) for one in found] == [
                    (one.rows, one.lines, one.done) for one in expected
                ]


def test_a_large_object_is_read_ahead_in_order_and_never_held_whole(server, proxy, tmp_path, monkeypatch) -> None:
    chunk = 1 << 16
    monkeypatch.setattr(object_reader, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 4_000)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_bytes(lines(8_000))
    size = (tmp_path / "t" / "a.jsonl").stat().st_size
    assert size > 30 * chunk
    (path,) = find_inputs([upload_tree(server, tmp_path / "t", tmp_path.name)])
    reader = read_records(path)
    next(reader)
    (opened,) = (
        one for one in gc.get_objects() if isinstance(one, object_reader.ObjectReader) and one.name == str(path)
    )
    most = max(len(opened._chunks) for _ in reader)
    assert 2 <= most <= 8
    ranges = [asked for asked in proxy.gets("a.jsonl") if asked]
    # The head comes in blocks of the cache until it is clear that the file is read in order.
    assert len(ranges) <= size // chunk + 6
    assert not list((tmp_path / "cache").rglob("whole"))


def test_a_shard_fetches_little_behind_its_part(server, proxy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(object_reader, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 4_000)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_bytes(lines(4_000))
    (path,) = find_inputs([upload_tree(server, tmp_path / "t", tmp_path.name)])
    part = Shard(1, 8).parts([path.stat().st_size])[0][1:]
    proxy.requests.clear()
    records_of(path, part=part, numbered=False)
    ends = [int(asked.rpartition("-")[2]) for asked in proxy.gets("a.jsonl") if asked]
    assert max(ends) < part[1] + 3 * (1 << 16)


# Damage, faults and changes


@pytest.mark.parametrize("name", ["more/b.jsonl.gz", "more/c.jsonl.zst", "d.parquet"])
@pytest.mark.parametrize("cut", [0, 100, 4_000, -1])
def test_a_truncated_object_gives_the_error_of_the_local_file(server, proxy, raw, tmp_path, name, cut) -> None:
    whole = (raw / name).read_bytes()
    (raw / name).write_bytes(whole[:cut])
    url = upload_tree(server, raw, tmp_path.name)
    with pytest.raises(DataError) as here:
        records_of(raw / name)
    with pytest.raises(DataError) as there:
        records_of(objects.place(f"{url}/{name}"))
    assert there.value.problems[0].what == here.value.problems[0].what
    assert there.value.problems[0].fix == here.value.problems[0].fix
    assert there.value.problems[0].where == f"{url}/{name}"


def test_a_bad_line_is_named_with_its_number_in_the_whole_object(server, proxy, tmp_path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_bytes(lines(300) + b"{nothing\n" + lines(20))
    url = upload_tree(server, tmp_path / "t", tmp_path.name)
    with pytest.raises(DataError, match="300 good documents before it") as error:
        records_of(objects.place(f"{url}/a.jsonl"))
    assert error.value.problems[0].where == f"{url}/a.jsonl:301"


def first_answers(fault: Callable[[Answer], None], times: int, method: str = "GET") -> Callable[..., None]:
    left = [times]

    def apply(asked: str, path: str, headers: dict[str, str], answer: Answer) -> None:
        if asked == method and left[0] and "list-type" not in path:
            left[0] -= 1
            fault(answer)

    return apply


def unavailable(answer: Answer) -> None:
    answer.status, answer.body = 503, b"slow down"


def cut_short(answer: Answer) -> None:
    answer.cut = len(answer.body) // 2


@pytest.mark.parametrize("fault", [unavailable, cut_short])
@pytest.mark.parametrize("name", ["a.jsonl", "more/c.jsonl.zst", "d.parquet"])
def test_faults_that_pass_change_nothing_and_those_that_stay_are_errors(
    server, proxy, raw, tmp_path, fault, name
) -> None:
    path = objects.place(f"{upload_tree(server, raw, tmp_path.name)}/{name}")
    proxy.fault = first_answers(fault, 3)
    assert records_of(path) == records_of(raw / name)
    objects.forget()
    for block in (tmp_path / "cache").rglob("*.block"):
        block.unlink()
    proxy.fault = first_answers(fault, 10_000)
    with pytest.raises(DataError, match="4 attempts failed") as error:
        records_of(path)
    assert "good documents before it" in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "more/b.jsonl.gz", "d.parquet"])
def test_an_object_that_is_replaced_while_it_is_read_is_an_error(server, proxy, raw, tmp_path, name) -> None:
    url = upload_tree(server, raw, tmp_path.name)
    (path,) = find_inputs([f"{url}/{name}"])
    client_of(server).put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}", Body=(raw / name).read_bytes() + b"\n")
    with pytest.raises(DataError, match="it was replaced while it was being read"):
        records_of(path)


def test_an_object_without_permission_to_read_is_named(server, proxy, raw, tmp_path) -> None:
    url = upload_tree(server, raw, tmp_path.name)

    def denied(method: str, path: str, headers: dict[str, str], answer: Answer) -> None:
        answer.status, answer.body = 403, b"<Error><Code>AccessDenied</Code></Error>"

    proxy.fault = denied
    with pytest.raises(DataError, match="access is denied"):
        find_inputs([url])


# Preprocessing and tokenizers


def files_of(prefix: str) -> dict[str, bytes]:
    ends = (".bin", ".idx", ".ids")
    return {end: Path(prefix + end).read_bytes() for end in ends if Path(prefix + end).exists()}


@pytest.mark.parametrize("shards", [1, 3])
def test_preprocessing_makes_the_bytes_that_it_makes_of_local_files(
    server, proxy, raw, tmp_path, huggingface, shards
) -> None:
    url = upload_tree(server, raw, tmp_path.name)
    for name, source in (("here", str(raw)), ("there", f"{url}/")):
        for index in range(shards):
            shard = Shard(index, shards) if shards > 1 else None
            prefix = str(tmp_path / name / "set")
            job = PreprocessJob((source,), prefix, huggingface, append_eod=True, id_key="id", shard=shard)
            preprocess(job)
    for index in range(shards):
        name = "set_text_document" if shards == 1 else f"set_text_document.shard_{index:04d}_of_{shards:04d}"
        here, there = files_of(str(tmp_path / "here" / name)), files_of(str(tmp_path / "there" / name))
        assert there == here
        assert len(here) == 3
    made = json.loads((tmp_path / "there" / f"{name}.manifest.json").read_text())
    assert [item["path"].removeprefix(f"{url}/") for item in made["inputs"]] == [
        "a.jsonl", "d.parquet", "more/b.jsonl.gz", "more/c.jsonl.zst",
    ]  # fmt: skip


def test_an_interrupted_job_resumes_and_refuses_an_object_that_has_changed(
    server, proxy, tmp_path, huggingface, monkeypatch
) -> None:
    monkeypatch.setattr(encoding_pass, "DURABLE_BYTES", 20_000)
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 4_000)
    monkeypatch.setattr(object_reader, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(object_reader, "_MOST_AHEAD", 1)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_bytes(lines(2_000))
    url = upload_tree(server, tmp_path / "t", tmp_path.name)
    job = PreprocessJob((f"{url}/a.jsonl",), str(tmp_path / "set"), huggingface)

    def late(method: str, path: str, headers: dict[str, str], answer: Answer) -> None:
        first = headers.get("Range", headers.get("range", "bytes=0-")).removeprefix("bytes=").split("-")[0]
        if method == "GET" and path.endswith("a.jsonl") and int(first) > 300_000:
            unavailable(answer)

    def run_again() -> Any:
        objects.forget()
        return preprocess(job)

    proxy.fault = late
    with pytest.raises(DataError, match="4 attempts failed"):
        preprocess(job)
    proxy.fault = None
    client = client_of(server)
    client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/a.jsonl", Body=lines(2_000, 9))
    with pytest.raises(ConfigError, match="differs in the size, time or ETag of an input"):
        run_again()
    client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/a.jsonl", Body=lines(2_000))
    proxy.requests.clear()
    run_again()
    assert not any(asked.startswith("bytes=131072-") for asked in proxy.gets("a.jsonl")), "what was done is not read"
    preprocess(PreprocessJob((str(tmp_path / "t"),), str(tmp_path / "local"), huggingface))
    assert files_of(str(tmp_path / "set_text_document")) == files_of(str(tmp_path / "local_text_document"))


def test_a_tokenizer_is_trained_on_objects_as_on_files(server, proxy, raw, tmp_path) -> None:
    url = upload_tree(server, raw, tmp_path.name)
    for name, source in (("here", raw), ("there", url)):
        sources = [f"one=0.5:{source}/a.jsonl", f"two=0.5:{source}/more/"]
        command = ["--vocab-size", "300", "--output", str(tmp_path / name), "--source", *sources]
        assert script("tokenizer", "train_tokenizer.py", command) == 0
    for path in sorted((tmp_path / "here").iterdir()):
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


def test_a_missing_endpoint_ends_the_command_with_one_clear_error(
    proxy: Proxy, tmp_path: Path, huggingface: TokenizerConfig, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    object_requests.forget_connections()
    command = ["--input", "s3://b-b/raw/*.jsonl", "--output-prefix", str(tmp_path / "x"), "--tokenizer-type"]
    command += ["HuggingFaceTokenizer", "--tokenizer-model", huggingface.path]
    assert script("preprocess", "preprocess_data.py", command) == 2
    said = capsys.readouterr().err
    assert "attempts failed" in said
    assert "Traceback" not in said
