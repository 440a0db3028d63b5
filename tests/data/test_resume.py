"""Preprocessing that was killed goes on, and makes the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from megacode.base.errors import ConfigError, DataError
from megacode.data import encoding_pass, jsonl
from megacode.data.journal import UnfinishedError
from megacode.data.preprocess import PreprocessJob, preprocess
from tests.limits import HANG

PROGRAM = Path(__file__).with_name("killed_preprocessing.py")
ENDS = ("bin", "idx", "ids", "manifest.json")


@pytest.fixture(scope="module")
def inputs(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A plain, a compressed and a Parquet file, of documents with ids."""
    place = tmp_path_factory.mktemp("inputs")
    rows = [{"id": f"doc {n}", "text": text} for n, text in enumerate(texts)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (place / "a.jsonl").write_text("".join(lines[:50]))
    (place / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[50:90]).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[90:]), place / "c.parquet", row_group_size=8)
    return tuple(str(place / name) for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"))


def files(prefix: Path) -> dict[str, bytes]:
    return {end: Path(f"{prefix}.{end}").read_bytes() for end in ENDS}


@pytest.mark.parametrize(("seed", "shard"), [(None, None), (5, None), (None, (1, 3))])
def test_killed_at_random_moments_it_makes_the_bytes_of_an_undisturbed_run(
    seed, shard, inputs, huggingface, tmp_path: Path
) -> None:
    given = {
        "inputs": inputs[: 2 if seed else 3], "tokenizer": huggingface.path, "seed": seed, "shard": shard,
        "kills": 4 if shard else 10, "keys": ("text", "id") if seed else ("text",),
        "whole": str(tmp_path / "whole"), "killed": str(tmp_path / "killed"), "log": str(tmp_path / "log"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, PROGRAM, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    end = ".shard_0001_of_0003" if shard else ""
    whole, killed = (tmp_path / f"{name}_text_document{end}" for name in ("whole", "killed"))
    assert files(whole) == files(killed)
    if seed:
        assert files(tmp_path / "whole_id_document") == files(tmp_path / "killed_id_document")
    # Kills hit before the first record, in the middle, and something was resumed.
    assert len(told["records"]) >= 3
    assert any(told["records"])
    documents, kills = sum(told["undisturbed"]), len(told["records"])
    assert documents <= sum(told["chunks"]) <= documents + 2 * kills * max(told["chunks"])
    assert not unfinished(tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records every 20 kB, which only a loss of power could tell from records that are not flushed to the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(encoding_pass, "DURABLE_BYTES", 1)


def stopped(job: PreprocessJob, monkeypatch: pytest.MonkeyPatch) -> UnfinishedError:
    """Interrupt a job in its fifth chunk; return what it raises."""
    calls, real = 0, encoding_pass.assemble

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(encoding_pass, "assemble", failing)
    try:
        with pytest.raises(UnfinishedError) as caught:
            preprocess(job)
    finally:
        monkeypatch.setattr(encoding_pass, "assemble", real)
    return caught.value


@pytest.fixture
def job(inputs, huggingface, tmp_path: Path) -> PreprocessJob:
    return PreprocessJob(inputs[:2], str(tmp_path / "out"), huggingface, id_key="id")


def unfinished(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob(".*.partial"))


def test_an_interrupt_ends_resumable_and_says_so(small, job, monkeypatch, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    error = stopped(job, monkeypatch)
    assert error.exit_code == 75
    assert "documents are kept in" in str(error)
    assert "run the same command again to resume" in str(error)
    assert not list(tmp_path.glob("out*"))
    made = preprocess(job)["text"]
    assert "resuming after" in caplog.text
    assert made == preprocess(replace(job, output_prefix=str(tmp_path / "whole")))["text"]
    assert not unfinished(tmp_path)


CHANGES = [
    ({"append_eod": True}, "--append-eod"),
    ({"id_key": None, "dtype": "int32"}, "--id-key and --dtype"),
    ({"shuffle_seed": 3}, "--shuffle-seed"),
    ({"keys": ("text", "id")}, "--json-keys"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_another_command_never_goes_on_with_it(change, named, small, job, monkeypatch, tmp_path) -> None:
    stopped(job, monkeypatch)
    (kept,) = unfinished(tmp_path)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(ConfigError, match=f"unfinished work of another command, which differs in {named}") as caught:
        preprocess(replace(job, **change))
    assert "--overwrite to discard it" in caught.value.problems[0].fix
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    made = preprocess(replace(job, **change, overwrite=True))["text"]
    fresh = preprocess(replace(job, **change, output_prefix=str(tmp_path / "fresh")))["text"]
    assert made == fresh


def test_a_changed_input_and_another_tokenizer_are_noticed(small, job, monkeypatch, tmp_path, sentencepiece) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(Path(job.inputs[0]).read_bytes())
    job = replace(job, inputs=(str(source),))
    stopped(job, monkeypatch)
    with pytest.raises(ConfigError, match="differs in the tokenizer"):
        preprocess(replace(job, tokenizer=sentencepiece))
    raw = source.read_bytes()
    source.write_bytes(raw.replace(b"import", b"IMPORT", 1))
    with pytest.raises(ConfigError, match="differs in the size, time or ETag of an input"):
        preprocess(job)


def test_the_same_command_with_overwrite_goes_on_too(small, job, monkeypatch, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    stopped(job, monkeypatch)
    preprocess(replace(job, overwrite=True, command="again"))
    assert "resuming after" in caplog.text


def test_after_a_bad_line_it_goes_on_with_skipping(small, inputs, job, tmp_path, caplog) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(Path(inputs[0]).read_bytes() + b"{bad\n")
    job = replace(job, inputs=(str(source),))
    with pytest.raises(DataError, match="not JSON"):
        preprocess(job)
    assert "the same command resumes after them" in caplog.text
    caplog.set_level("INFO")
    made = preprocess(replace(job, skip_bad_lines=True))["text"]
    assert "resuming after" in caplog.text
    assert made.bad_lines == 1
    assert made == preprocess(replace(job, skip_bad_lines=True, output_prefix=str(tmp_path / "whole")))["text"]


def test_skipped_lines_are_not_gone_on_with_by_a_command_that_skips_none(small, job, monkeypatch, tmp_path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"{bad\n" + Path(job.inputs[0]).read_bytes())
    job = replace(job, inputs=(str(source),), skip_bad_lines=True)
    stopped(job, monkeypatch)
    with pytest.raises(ConfigError, match="differs in --skip-bad-lines"):
        preprocess(replace(job, skip_bad_lines=False))


@pytest.mark.parametrize("seed", [None, 4])
def test_a_disk_that_was_full_is_gone_on_with(seed, small, job, monkeypatch, tmp_path) -> None:
    job, calls = replace(job, shuffle_seed=seed), 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        preprocess(job)
    assert caught.value.filename is not None
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = preprocess(job)["text"]
    assert made == preprocess(replace(job, output_prefix=str(tmp_path / "whole")))["text"]


def test_the_reference_encoder_stays_in_use_once_the_fast_one_was_wrong(
    small, job, monkeypatch, tmp_path, caplog
) -> None:
    from megacode.data import preprocess as module
    from megacode.data.tokenizer import EncoderMismatch, load_tokenizer

    tokenizer = load_tokenizer(job.tokenizer)
    monkeypatch.setattr(module, "load_tokenizer", lambda config: tokenizer)
    real, calls = tokenizer.encode_batch, 0

    def encode(texts: list[str]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and tokenizer._race is not None:
            raise EncoderMismatch("the fast encoder differs from the reference on 'x'")
        if calls == 8:
            raise KeyboardInterrupt
        return real(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", encode)
    with pytest.raises(Exception, match="interrupted"):
        preprocess(job)
    monkeypatch.setattr(tokenizer, "use_fast", lambda sample: pytest.fail("the fast encoder is tried again"))
    made = preprocess(job)["text"]
    monkeypatch.undo()
    assert made == preprocess(replace(job, output_prefix=str(tmp_path / "whole")))["text"]


@pytest.mark.parametrize("seed", [None, 4])
def test_unfinished_files_that_were_cut_short_are_never_filled_up(seed, small, job, monkeypatch, tmp_path) -> None:
    job = replace(job, shuffle_seed=seed)
    stopped(job, monkeypatch)
    (kept,) = unfinished(tmp_path)
    sizes = {path: path.stat().st_size for path in kept.rglob("*") if path.is_file() and path.suffix != ".json"}
    largest = max(sizes, key=lambda path: sizes[path])
    os.truncate(largest, 5)
    with pytest.raises(DataError, match="unfinished work has 5 bytes, but its record says") as caught:
        preprocess(job)
    assert str(largest) in str(caught.value)
    assert "remove" in caught.value.problems[0].fix


def test_finished_files_that_were_removed_are_made_again(small, job, monkeypatch, tmp_path, caplog) -> None:
    # Killed after publishing, before the record goes.
    with monkeypatch.context() as patch:
        patch.setattr("megacode.data.journal.Journal.clear", lambda self: None)
        made = preprocess(job)["text"]
    assert unfinished(tmp_path)
    for path in tmp_path.glob("out*"):
        path.unlink()
    assert preprocess(job)["text"] == made
    assert "was removed since: starting again" in caplog.text
    assert not unfinished(tmp_path)


def test_finished_work_never_replaces_what_appeared_since(small, job, monkeypatch, tmp_path) -> None:
    # Killed before publishing.
    with monkeypatch.context() as patch:
        patch.setattr("megacode.data.indexed.IndexedDatasetWriter.publish", lambda self: stop())

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(UnfinishedError):
            preprocess(job)
    other = Path(f"{job.output_prefix}_text_document.bin")
    other.write_bytes(b"of another command")
    with pytest.raises(ConfigError, match=r"out_text_document\.bin already exists"):
        preprocess(job)
    assert other.read_bytes() == b"of another command"
    made = preprocess(replace(job, overwrite=True))["text"]
    assert made == preprocess(replace(job, output_prefix=str(tmp_path / "whole")))["text"]


def test_an_input_that_changes_while_it_is_read_is_refused(small, job, inputs, monkeypatch, tmp_path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(Path(inputs[0]).read_bytes())
    real = encoding_pass.assemble

    def growing(*arguments: Any) -> Any:
        with source.open("a") as file:
            file.write('{"id": "more", "text": "x"}\n')
        return real(*arguments)

    monkeypatch.setattr(encoding_pass, "assemble", growing)
    with pytest.raises(DataError, match="it has changed while it was read"):
        preprocess(replace(job, inputs=(str(source),)))
    assert not list(tmp_path.glob("out*"))
    assert not unfinished(tmp_path)


def test_no_two_jobs_make_a_data_set_of_one_key_at_a_time(small, job, monkeypatch) -> None:
    real = encoding_pass.assemble

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(encoding_pass, "assemble", real)
        with pytest.raises(ConfigError, match="out_text_document is being made by"):
            preprocess(replace(job, keys=("id", "text")))
        return real(*arguments)

    monkeypatch.setattr(encoding_pass, "assemble", meanwhile)
    preprocess(job)
    assert encoding_pass.assemble is real
