"""Preprocessing: Megatron's bytes, every kind of input, and what bad input gets."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import zstandard

from megacode.base.errors import ConfigError, DataError
from megacode.config.model import TokenizerConfig
from megacode.data import encoding_pass
from megacode.data import manifest as manifests
from megacode.data import preprocess as module
from megacode.data.encoding_pass import assemble
from megacode.data.indexed import IndexedDataset
from megacode.data.jsonl import read_chunks
from megacode.data.preprocess import PreprocessJob, choose_dtype, preprocess
from megacode.data.tokenizer import EncoderMismatch, load_tokenizer


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def documents(prefix: str | Path) -> list[list[int]]:
    data = IndexedDataset(prefix)
    bounds = [data.document_bounds(number) for number in range(data.documents)]
    return [data.read(first, last + 1 - first).tolist() for first, last in bounds]


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
@pytest.mark.parametrize("append_eod", [False, True])
def test_bytes_equal_megatrons_builder_fed_by_the_reference_tokenizer(kind, append_eod, texts, request, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    config = request.getfixturevalue(kind)
    tokenizer = load_tokenizer(config)
    rows = [*texts[:40], "", "x", "", ["one sentence.", "", "another."], [], [""], *texts[40:60]]
    source = write_lines(tmp_path / "in.jsonl", *({"id": 1, "text": row} for row in rows))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for row in rows:
        parts = [tokenizer.encode(part) for part in (row if isinstance(row, list) else [row])]
        parts = [part for part in parts if part]
        if parts and append_eod:
            parts[-1].append(tokenizer.eod)
        builder.add_document([token for part in parts for token in part], [len(part) for part in parts])
    builder.finalize(str(tmp_path / "theirs.idx"))
    preprocess(PreprocessJob((str(source),), str(tmp_path / "ours"), config, append_eod=append_eod))
    for suffix in ("bin", "idx"):
        ours, theirs = tmp_path / f"ours_text_document.{suffix}", tmp_path / f"theirs.{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_manifest_tells_how_the_data_set_was_made(corpus, huggingface, tmp_path):
    job = PreprocessJob(
        (str(corpus),), str(tmp_path / "out"), huggingface, append_eod=True, shuffle_seed=7, command="make it"
    )
    found = preprocess(job)["text"]
    assert found == manifests.check(tmp_path / "out_text_document", whole=True)
    assert found == manifests.describe(
        tmp_path / "out_text_document",
        tokenizer=load_tokenizer(huggingface).facts(),
        append_eod=True,
        shuffle_seed=7,
        inputs=({"path": str(corpus), "bytes": corpus.stat().st_size},),
        command="make it",
    )
    assert left_in(tmp_path) == [f"out_text_document.{end}" for end in ("bin", "idx", "manifest.json")]


def test_gzip_zstandard_and_plain_files_and_globs_give_the_same(texts, huggingface, tmp_path):
    rows = [json.dumps({"text": text}) + "\n" for text in texts[:30]]
    parts = ["".join(rows[:10]).encode(), "".join(rows[10:20]).encode(), "".join(rows[20:]).encode().rstrip(b"\n")]
    (tmp_path / "a.jsonl").write_bytes(b"".join(parts))
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "0.jsonl.gz").write_bytes(gzip.compress(parts[0][:500]) + gzip.compress(parts[0][500:]))
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "split" / "1.jsonl.zst").write_bytes(
        compressor.compress(parts[1][:500]) + compressor.compress(parts[1][500:])
    )
    (tmp_path / "split" / "2.json").write_bytes(parts[2].replace(b"\n", b"\r\n\n  \n"))
    one = preprocess(PreprocessJob((str(tmp_path / "a.jsonl"),), str(tmp_path / "one"), huggingface))["text"]
    many = preprocess(PreprocessJob((str(tmp_path / "split" / "*"),), str(tmp_path / "many"), huggingface))["text"]
    assert one.identity == many.identity


def test_chunks_are_whole_lines_with_their_numbers(tmp_path):
    lines = [b"x" * length for length in (1, 50, 0, 3, 200, 7)]
    for end in (b"", b"\n"):
        (tmp_path / "f.jsonl").write_bytes(b"\n".join(lines) + end)
        for size in (1, 10, 64, 1000):
            chunks = list(read_chunks(tmp_path / "f.jsonl", size))
            assert b"".join(chunk.data for chunk in chunks) == b"\n".join(lines) + end
            assert sum(chunk.read_bytes for chunk in chunks) == (tmp_path / "f.jsonl").stat().st_size
            for chunk in chunks:
                assert chunk.data.split(b"\n")[0] == lines[chunk.first_line - 1]


def test_each_key_makes_a_data_set(texts, huggingface, tmp_path):
    rows = [{"title": text[:20], "text": text} for text in texts[:5]]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    preprocess(
        PreprocessJob((str(source),), str(tmp_path / "out"), huggingface, keys=("title", "text"), append_eod=True)
    )
    tokenizer = load_tokenizer(huggingface)
    for key in ("title", "text"):
        assert documents(tmp_path / f"out_{key}_document") == [[*tokenizer.encode(row[key]), 0] for row in rows]


def test_a_shuffled_set_has_the_same_documents_in_another_order_that_the_seed_decides(corpus, huggingface, tmp_path):
    made = {}
    for name, seed in (("plain", None), ("one", 1), ("again", 1), ("two", 2)):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / name), huggingface, append_eod=True, shuffle_seed=seed))
        made[name] = documents(tmp_path / f"{name}_text_document")
    assert made["one"] == made["again"] != made["two"] != made["plain"] != made["one"]
    assert sorted(made["one"]) == sorted(made["two"]) == sorted(made["plain"])


GOOD = {"text": "good"}
BAD = [
    ("{not json", "the line is not JSON"),
    ("[1, 2]", "a JSON list, not an object"),
    ('{"content": "x", "id": 3}', "no key 'text'; its keys are 'content', 'id'"),
    ('{"text": 5}', "the key 'text' holds 5, not a string"),
    ('{"text": null}', "the key 'text' holds null, not a string"),
    ('{"text": ["a", 5]}', "not a string"),
    ('{"text": "\\ud800"}', "unpaired surrogate"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_by_file_and_number_and_nothing_is_written(line, message, huggingface, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", GOOD, "", GOOD, line, GOOD)
    with pytest.raises(DataError, match=message) as caught:
        preprocess(PreprocessJob((str(source),), str(tmp_path / "out"), huggingface))
    (problem,) = caught.value.problems
    assert problem.where == f"{source}:4"
    assert "--skip-bad-lines" in problem.fix
    assert caught.value.exit_code == 2
    assert left_in(tmp_path) == []


def test_bad_lines_are_skipped_and_counted_if_asked(huggingface, tmp_path, caplog):
    source = write_lines(tmp_path / "in.jsonl", GOOD, *(line for line, _ in BAD), GOOD)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "good", "score": NaN}\n')
    job = PreprocessJob(
        (str(source), str(tmp_path / "bytes.jsonl")), str(tmp_path / "out"), huggingface, skip_bad_lines=True
    )
    made = preprocess(job)["text"]
    assert (made.documents, made.bad_lines) == (3, len(BAD) + 1)
    assert f"skipped {len(BAD) + 1} bad records" in caplog.text
    # Three of them, with their places.
    assert [f"{source}:{number}: " in caplog.text for number in (2, 3, 4, 5)] == [True, True, True, False]


def test_an_old_set_stays_whole_when_a_new_one_fails(corpus, huggingface, tmp_path):
    preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), huggingface))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    source = write_lines(tmp_path / "in.jsonl", GOOD, "{")
    with pytest.raises(ConfigError, match="already exists") as caught:
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), huggingface))
    assert len(caught.value.problems) == 3
    for seed in (None, 1):
        with pytest.raises(DataError, match="not JSON"):
            preprocess(
                PreprocessJob((str(source),), str(tmp_path / "out"), huggingface, shuffle_seed=seed, overwrite=True)
            )
    source.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("seed", [None, 1])
def test_an_interrupt_leaves_nothing(seed, corpus, huggingface, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding_pass, "assemble", interrupt)
    with pytest.raises(KeyboardInterrupt):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), huggingface, shuffle_seed=seed))
    assert left_in(tmp_path) == []


def test_it_starts_again_with_the_reference_when_the_fast_encoder_fails_late(
    corpus, huggingface, tmp_path, monkeypatch, caplog
):
    expected = preprocess(PreprocessJob((str(corpus),), str(tmp_path / "right"), huggingface))["text"]
    tokenizer = load_tokenizer(huggingface)
    monkeypatch.setattr(module, "load_tokenizer", lambda config: tokenizer)
    real_encode = tokenizer.encode_batch

    def encode(texts):
        if tokenizer._race is not None:
            raise EncoderMismatch("the fast encoder differs from the reference on 'x'")
        return real_encode(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", encode)
    made = preprocess(PreprocessJob((str(corpus),), str(tmp_path / "late"), huggingface))["text"]
    assert made.identity == expected.identity
    assert "restarting with the reference library" in caplog.text


@pytest.mark.parametrize("rows", [[], [{"text": ""}, {"text": ""}], ["", ""]])
def test_an_empty_corpus_is_an_error(rows, huggingface, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", *rows)
    with pytest.raises(DataError, match="there are no tokens to write"):
        preprocess(PreprocessJob((str(source),), str(tmp_path / "out"), huggingface, append_eod=True))
    assert left_in(tmp_path) == []


def test_inputs_that_are_missing_or_named_twice_are_errors(corpus, huggingface, tmp_path):
    with pytest.raises(DataError, match="there is no such file") as caught:
        preprocess(PreprocessJob((str(tmp_path / "*.jsonl"),), str(tmp_path / "out"), huggingface))
    assert caught.value.problems[0].where == f"--input {tmp_path}/*.jsonl"
    with pytest.raises(ConfigError, match="the same file is listed twice"):
        preprocess(PreprocessJob((str(corpus), str(corpus.parent / "*.jsonl")), str(tmp_path / "out"), huggingface))
    with pytest.raises(ConfigError, match="a key is listed twice"):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), huggingface, keys=("text", "text")))


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst"])
def test_a_file_that_cannot_be_decompressed_is_named(name, huggingface, tmp_path):
    whole = b'{"text": "good"}\n' * 1000
    raw = gzip.compress(whole) if name.endswith("gz") else zstandard.ZstdCompressor().compress(whole)
    (tmp_path / name).write_bytes(b"nonsense" + raw)
    with pytest.raises(DataError, match="it cannot be decompressed") as caught:
        preprocess(PreprocessJob((str(tmp_path / name),), str(tmp_path / "out"), huggingface))
    assert caught.value.problems[0].where == str(tmp_path / name)


def test_a_vocabulary_that_does_not_fit_the_type_is_an_error(corpus, huggingface, tmp_path):
    tokenizer = load_tokenizer(huggingface)
    assert choose_dtype("auto", tokenizer) == choose_dtype("uint16", tokenizer) == np.uint16
    tokenizer.vocab_size = 65_500
    assert choose_dtype("auto", tokenizer) == np.int32
    tokenizer.vocab_size = 65_537
    with pytest.raises(DataError, match="a vocabulary of 65537 does not fit into uint16") as caught:
        choose_dtype("uint16", tokenizer)
    assert caught.value.problems[0].where == "--dtype uint16"
    assert caught.value.exit_code == 2


def test_a_tokenizer_without_an_end_cannot_append_it(corpus, huggingface, tmp_path):
    document = json.loads((Path(huggingface.path) / "tokenizer.json").read_text())
    document["added_tokens"] = []
    document["model"]["vocab"]["nothing"] = document["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    config = TokenizerConfig(kind="huggingface", path=str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no end-of-document token"):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), config, append_eod=True))


def test_progress_is_logged_where_there_is_no_terminal(corpus, huggingface, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), huggingface, log_interval=50))
    assert "120 documents, 100 % of the input" in caplog.text


def test_assemble_ends_documents_and_drops_what_is_empty():
    flat, offsets = np.arange(6), np.array([0, 2, 2, 3, 6])
    tokens, lengths, counts = assemble(flat, offsets, None, 9)
    assert (tokens.tolist(), lengths.tolist()) == ([0, 1, 9, 2, 9, 3, 4, 5, 9], [3, 2, 4])
    assert counts.tolist() == [1, 0, 1, 1]
    tokens, lengths, counts = assemble(flat, offsets, [2, 0, 2], 9)
    assert (tokens.tolist(), lengths.tolist()) == ([0, 1, 9, 2, 3, 4, 5, 9], [3, 1, 4])
    assert counts.tolist() == [1, 0, 2]
