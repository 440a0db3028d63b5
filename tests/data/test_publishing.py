"""Data sets are published in object storage: whole and unchanged, never over another one, and resumed after a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.base.errors import ConfigError, DataError
from megacode.cli.data import script
from megacode.data import encoding_pass, manifest, object_writer, objects, publishing
from megacode.data.indexed import IndexedDataset
from megacode.data.machine_files import Shard
from megacode.data.merge import merge
from megacode.data.object_writer import PART_BYTES, expected_etag, part_bytes
from megacode.data.preprocess import PreprocessJob, preprocess
from tests.data.object_storage import BUCKET, Proxy, client_of, keys_below, proxy, random_set, server, upload
from tests.limits import HANG

__all__ = ["proxy", "server", "upload"]  # fixtures

ENDS = (".bin", ".ids", ".idx", ".manifest.json")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.jsonl"
    rng = np.random.default_rng(0)
    rows = ({"id": f"d{n}", "text": f"{n} {rng.bytes(30).hex()}"} for n in range(400))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A place in the bucket that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.name}/out/web"


@pytest.fixture
def job_of(raw, tmp_path, huggingface) -> Callable[..., PreprocessJob]:
    def make(output: str, **options: Any) -> PreprocessJob:
        work = str(tmp_path / "work dir")
        settings: dict[str, Any] = {"append_eod": True, "id_key": "id", "work_dir": work, **options}
        return PreprocessJob((str(raw),), output, huggingface, **settings)

    return make


def contents(server: tuple[str, int], url: str) -> dict[str, bytes]:
    return keys_below(server, url.removeprefix(f"s3://{BUCKET}/"))


def left_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def same_but_for_the_command(found: dict[str, bytes], prefix: Path) -> None:
    for end in ENDS:
        local = Path(f"{prefix}{end}").read_bytes()
        assert found[end] == local, end


@pytest.mark.parametrize("seed", [None, 7])
def test_a_published_data_set_has_the_bytes_of_a_local_one(server, proxy, job_of, tmp_path, place, seed) -> None:
    preprocess(job_of(place, shuffle_seed=seed))
    preprocess(job_of(str(tmp_path / "local"), shuffle_seed=seed))
    found = contents(server, f"{place}_text_document")
    assert sorted(found) == sorted(ENDS)
    same_but_for_the_command(found, tmp_path / "local_text_document")
    assert left_in(tmp_path / "work dir") == []
    assert not (tmp_path / "work dir" / "s3").exists(), "directories that are empty are removed"
    manifest.check(f"{place}_text_document", whole=True)


def test_the_manifest_arrives_last_and_the_index_after_the_tokens(proxy, job_of, place) -> None:
    preprocess(job_of(place))
    written = [path.rpartition("web_text_document")[2] for method, path, _ in proxy.requests if method == "PUT"]
    assert written == [".uploading", ".ids", ".bin", ".idx", ".manifest.json"]


def test_shards_are_merged_from_object_storage_into_it(server, proxy, job_of, tmp_path, place) -> None:
    for index in range(3):
        preprocess(job_of(place, shard=Shard(index, 3), shuffle_seed=3))
    shards = f"{place}_text_document.shard_*_of_0003"
    merge([shards], f"{place}_text_document", work_dir=str(tmp_path / "work"), remove_shards=True)
    preprocess(job_of(str(tmp_path / "local"), shuffle_seed=3))
    found = contents(server, f"{place}_text_document")
    assert sorted(found) == sorted(ENDS), "the shards are removed"
    for end in (".bin", ".idx", ".ids"):
        assert found[end] == (tmp_path / f"local_text_document{end}").read_bytes()
    assert left_in(tmp_path / "work") == []


def test_a_missing_shard_is_named_by_its_url(proxy, job_of, tmp_path, place) -> None:
    for index in (0, 2):
        preprocess(job_of(place, shard=Shard(index, 3)))
    with pytest.raises(DataError, match="shard 1 of 3 is missing") as error:
        merge([f"{place}_text_document.shard_*"], f"{place}_text_document", work_dir=str(tmp_path / "work"))
    assert error.value.problems[0].where == f"{place}_text_document.shard_0001_of_0003"


# What is there already


def test_an_existing_data_set_is_refused_before_the_work_and_replaced_on_request(
    server, proxy, job_of, tmp_path, place
) -> None:
    preprocess(job_of(place))
    before = contents(server, f"{place}_text_document")
    with pytest.raises(ConfigError, match=r"web_text_document\.bin already exists"):
        preprocess(job_of(place, append_eod=False))
    assert contents(server, f"{place}_text_document") == before
    assert left_in(tmp_path / "work dir") == []
    seen: list[set[str]] = []

    def look(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(".bin"):
            seen.append(set(contents(server, f"{place}_text_document")))

    proxy.refuse = look
    preprocess(job_of(place, append_eod=False, id_key=None, overwrite=True))
    after = contents(server, f"{place}_text_document")
    assert sorted(after) == [".bin", ".idx", ".manifest.json"], "ids of the old one are gone"
    assert after[".bin"] != before[".bin"]
    assert seen == [{".bin", ".uploading"}], "half of two sets is never there"


def test_files_without_a_manifest_are_not_overwritten_either(server, proxy, job_of, place) -> None:
    key = place.removeprefix(f"s3://{BUCKET}/")
    client_of(server).put_object(Bucket=BUCKET, Key=f"{key}_text_document.idx", Body=b"of another tool")
    with pytest.raises(ConfigError, match=r"web_text_document\.idx already exists"):
        preprocess(job_of(place))
    assert contents(server, f"{place}_text_document") == {".idx": b"of another tool"}


def test_two_commands_never_write_to_one_place(server, proxy, job_of, raw, tmp_path, place, monkeypatch) -> None:
    refused = []

    def meanwhile(*_: Any, **__: Any) -> Any:
        # In the middle of the first command's work another machine begins, with a work directory of its own.
        with pytest.raises(ConfigError, match="is being made by process") as error:
            preprocess(job_of(place, work_dir=str(tmp_path / "other machine")))
        refused.append(error.value)
        return original(*_, **__)

    original = encoding_pass.EncodingPass.run
    monkeypatch.setattr(encoding_pass.EncodingPass, "run", meanwhile)
    preprocess(job_of(place))
    assert len(refused) == 1
    assert str(tmp_path / "work dir") in refused[0].problems[0].fix
    assert left_in(tmp_path / "other machine") == []
    assert sorted(contents(server, f"{place}_text_document")) == sorted(ENDS)


def test_whoever_lost_the_place_to_an_overwriting_command_does_not_publish(
    server, proxy, job_of, tmp_path, place, monkeypatch
) -> None:
    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(encoding_pass.EncodingPass, "run", original)
        preprocess(job_of(place, work_dir=str(tmp_path / "other"), append_eod=False, overwrite=True))
        return original(*arguments, **options)

    original = encoding_pass.EncodingPass.run
    monkeypatch.setattr(encoding_pass.EncodingPass, "run", meanwhile)
    with pytest.raises(ConfigError, match="was taken over by another command, which has ended"):
        preprocess(job_of(place))
    assert not json.loads(contents(server, f"{place}_text_document")[".manifest.json"])["append_eod"]
    manifest.check(f"{place}_text_document", whole=True)


# Faults


def of_puts(ending: str, status: int, times: int = 1_000) -> Callable[[str, str], int | None]:
    """What refuses the first requests that write an object."""
    left = [times]

    def refuse(method: str, path: str) -> int | None:
        if method != "PUT" or not path.partition("?")[0].endswith(ending) or not left[0]:
            return None
        left[0] -= 1
        return status

    return refuse


def test_uploads_are_tried_again(server, proxy, job_of, place) -> None:
    proxy.refuse = of_puts("", 503, 3)
    preprocess(job_of(place))
    assert sorted(contents(server, f"{place}_text_document")) == sorted(ENDS)
    manifest.check(f"{place}_text_document", whole=True)


@pytest.mark.parametrize("ending", [".bin", ".idx", ".manifest.json"])
def test_an_upload_that_failed_is_resumed_without_encoding_or_sending_again(
    server, proxy, job_of, tmp_path, place, monkeypatch, ending
) -> None:
    proxy.refuse = of_puts(ending, 503)
    with pytest.raises(DataError, match="failed"):
        preprocess(job_of(place))
    found = contents(server, f"{place}_text_document")
    assert ".uploading" in found
    assert ".manifest.json" not in found, "without a manifest it is not there"
    proxy.refuse = None
    proxy.requests.clear()
    objects.forget()
    monkeypatch.setattr(encoding_pass.EncodingPass, "run", None)  # nothing is encoded again
    preprocess(job_of(place))
    sent = [path.rpartition("document")[2] for method, path, _ in proxy.requests if method == "PUT"]
    order = [".ids", ".bin", ".idx", ".manifest.json"]
    assert sent == order[order.index(ending) :]
    manifest.check(f"{place}_text_document", whole=True)
    assert left_in(tmp_path / "work dir") == []


def test_an_upload_of_two_keys_is_resumed_in_the_second(server, proxy, raw, job_of, tmp_path, place) -> None:
    rows = [{"id": f"d{n}", "text": f"text {n}", "code": f"code {n}"} for n in range(20)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_of(place, keys=("text", "code"))
    proxy.refuse = lambda method, path: 503 if method == "PUT" and path.endswith("code_document.idx") else None
    with pytest.raises(DataError, match="failed"):
        preprocess(job)
    proxy.refuse = None
    proxy.requests.clear()
    preprocess(job)
    sent = [path for method, path, _ in proxy.requests if method == "PUT"]
    assert not [path for path in sent if "text_document.bin" in path], "what has arrived is not sent again"
    for key in ("text", "code"):
        assert sorted(contents(server, f"{place}_{key}_document")) == sorted(ENDS)
    assert left_in(tmp_path / "work dir") == []


def test_a_killed_upload_is_resumed_by_the_same_command(server, proxy, raw, tmp_path, huggingface, place) -> None:
    command = ["--input", str(raw), "--output-prefix", place, "--tokenizer-type", "HuggingFaceTokenizer"]
    command += ["--tokenizer-model", huggingface.path, "--work-dir", str(tmp_path / "work dir")]

    program = [sys.executable, "-c", _KILLED, *command]
    assert subprocess.run(program, timeout=HANG, check=False).returncode == 9
    assert ".bin" in contents(server, f"{place}_text_document")
    assert script("preprocess", "preprocess_data.py", command) == 0
    manifest.check(f"{place}_text_document", whole=True)
    assert left_in(tmp_path / "work dir") == []


_KILLED = """
import os, sys
from megacode.cli.data import script
from megacode.data.object_writer import ObjectWriter

upload = ObjectWriter.upload
# As a kill at the index would: nothing is cleaned up.
ObjectWriter.upload = lambda self, path: os._exit(9) if path.suffix == ".idx" else upload(self, path)
script("preprocess", "preprocess_data.py", sys.argv[1:])
"""


def test_without_permission_to_write_nothing_is_done(proxy, job_of, tmp_path, place, monkeypatch) -> None:
    monkeypatch.setattr(encoding_pass.EncodingPass, "run", None)
    proxy.refuse = of_puts("", 403)
    with pytest.raises(DataError, match="access is denied"):
        preprocess(job_of(place))
    proxy.refuse = None
    with pytest.raises(DataError, match="there is no bucket 'no-such-bucket'"):
        preprocess(job_of("s3://no-such-bucket/x"))
    assert [name for name in left_in(tmp_path / "work dir") if "partial" in name] == []


def test_bad_input_gives_the_place_back(server, proxy, job_of, raw, place) -> None:
    raw.write_text("{nothing\n")
    with pytest.raises(DataError):
        preprocess(job_of(place))
    assert contents(server, place) == {}


def test_what_arrived_is_compared_with_the_file(server, proxy, tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 1000)
    writer = object_writer.ObjectWriter(f"s3://{BUCKET}/{tmp_path.name}/a.bin", objects.settings())
    writer.upload(path)
    key = f"{tmp_path.name}/a.bin"
    client_of(server).put_object(Bucket=BUCKET, Key=key, Body=b"x" * 999 + b"y")
    with pytest.raises(DataError, match="its contents differ from the file's"):
        writer.check(path)
    client_of(server).put_object(Bucket=BUCKET, Key=key, Body=b"x" * 999)
    with pytest.raises(DataError, match="it has 999 bytes, and the file has 1,000"):
        writer.check(path)


def test_an_etag_of_another_kind_is_no_reason_to_fail(server, proxy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(object_writer, "expected_etag", lambda path: "made in another way")
    path = tmp_path / "a.bin"
    path.write_bytes(b"z" * 100_000)
    object_writer.ObjectWriter(f"s3://{BUCKET}/{tmp_path.name}/a.bin", objects.settings()).upload(path)
    assert len(proxy.gets("a.bin")) == 1, "it is read back"


def test_a_large_file_is_sent_in_parts_and_its_etag_is_known(server, proxy, tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(np.random.default_rng(0).bytes(2 * PART_BYTES + 17))
    url = f"s3://{BUCKET}/{tmp_path.name}/a.bin"
    pin = object_writer.ObjectWriter(url, objects.settings()).upload(path)
    assert pin.etag.strip('"') == expected_etag(path)
    assert expected_etag(path).endswith("-3")
    assert not proxy.gets("a.bin"), "nothing is read back"
    assert client_of(server).head_object(Bucket=BUCKET, Key=f"{tmp_path.name}/a.bin")["ContentLength"] == pin.size


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 10**11, 5 * 10**12])
def test_no_file_has_more_parts_than_s3_takes(size) -> None:
    assert size <= 10_000 * part_bytes(size)
    assert part_bytes(size) >= PART_BYTES
    assert part_bytes(size) % (1 << 20) == 0


# Use


def test_a_published_data_set_is_inspected_and_read(proxy, upload, job_of, place, capsys) -> None:
    preprocess(job_of(place))
    assert script("inspect", "inspect_dataset.py", [f"{place}_text_document", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "every entry is valid" in said
    assert IndexedDataset(f"{place}_text_document").documents == 400


def test_sources_of_two_places_are_merged_onto_a_disk(proxy: Proxy, upload, tmp_path: Path) -> None:
    here, there = random_set(tmp_path / "a", seed=1), upload(random_set(tmp_path / "b", seed=2))
    merge([here, there], str(tmp_path / "both"))
    merge([here, str(tmp_path / "b")], str(tmp_path / "expected"))
    for end in (".bin", ".idx"):
        assert (tmp_path / f"both{end}").read_bytes() == (tmp_path / f"expected{end}").read_bytes()


def test_other_outputs_refuse_a_url(proxy, raw, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--vocab-size", "300", "--output", "s3://corpora/tokenizer", "--input", str(raw)]
    assert script("tokenizer", "train_tokenizer.py", command) == 2
    assert "cannot be written to object storage" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


def test_the_work_directory_follows_from_the_url(tmp_path) -> None:
    assert publishing.local_place("s3://b/data/web", None) == Path("megacode-work/s3/b/data/web")
    assert publishing.local_place("gs://b/web/", tmp_path) == tmp_path / "gs/b/web"
