"""The offline tools as programs: flags, exit codes, messages without a traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDataset, IndexedDatasetWriter
from megacode.data.tokenizer import load_tokenizer
from tests.limits import HANG, wait_until

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def flags(corpus, huggingface, out, *more):
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", huggingface.path]
    return ["--input", str(corpus), "--output-prefix", str(out), *kind, *more]


def test_preprocess_takes_megatrons_flags(corpus, huggingface, tmp_path):
    megatrons = ["--json-keys", "text", "--append-eod", "--workers", "1", "--partitions", "2", "--log-interval", "10"]
    arguments = flags(corpus, huggingface, tmp_path / "out", *megatrons, "--keep-sequential-samples")
    assert tool("preprocess_data")(arguments) == 0
    made = manifests.check(tmp_path / "out_text_document", whole=True)
    assert made.documents == 120
    assert made.command == "tools/preprocess_data.py " + " ".join(arguments)


@pytest.mark.parametrize("kind", ["GPTSentencePieceTokenizer", "SentencePieceTokenizer", "Llama2Tokenizer"])
def test_sentencepiece_types_of_megatron_all_mean_the_model(kind, corpus, sentencepiece, tmp_path):
    arguments = ["--input", str(corpus), "--output-prefix", str(tmp_path / "out"), "--tokenizer-type", kind]
    assert tool("preprocess_data")([*arguments, "--tokenizer-model", sentencepiece.path]) == 0
    found = IndexedDataset(tmp_path / "out_text_document")
    text = json.loads(corpus.read_text().split("\n")[0])["text"]
    first, last = found.document_bounds(0)
    assert found.read(first, last + 1 - first).tolist() == load_tokenizer(sentencepiece).encode(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokenizer-type", "GPT2BPETokenizer"], "'GPT2BPETokenizer' is not supported"),
        (["--split-sentences"], "--split-sentences: this flag of Megatron-LM is not supported"),
        (["--find-optimal-num-workers"], "--find-optimal-num-workers"),
        (["--vocab-file", "vocab.json"], "--vocab-file"),
        (["--workers", "0"], "--workers: 0 is not a valid number of threads"),
        (["--input", "/nowhere/*.jsonl"], "--input /nowhere/*.jsonl: there is no such file"),
    ],
)
def test_preprocess_says_what_it_does_not_do(more, message, corpus, huggingface, tmp_path, capsys):
    assert tool("preprocess_data")(flags(corpus, huggingface, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_an_unsupported_tokenizer_names_the_supported_ones(corpus, huggingface, tmp_path, capsys):
    tool("preprocess_data")(flags(corpus, huggingface, tmp_path / "out", "--tokenizer-type", "NullTokenizer"))
    assert "give one of HuggingFaceTokenizer, SentencePieceTokenizer" in capsys.readouterr().err


def test_a_bad_line_ends_with_exit_code_2(huggingface, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "good"}\n{"text": "bad\n')
    assert tool("preprocess_data")(flags(source, huggingface, tmp_path / "out")) == 2
    assert f"Data error: {source}:2: the line is not JSON" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
    assert tool("preprocess_data")(flags(source, huggingface, tmp_path / "out", "--skip-bad-lines")) == 0
    assert manifests.read(tmp_path / "out_text_document").bad_lines == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seed"), [(signal.SIGINT, []), (signal.SIGTERM, ["--shuffle-seed", "1"])])
def test_a_signal_in_the_middle_leaves_nothing_behind(number, seed, huggingface, texts, tmp_path):
    pipe, out = tmp_path / "endless.jsonl", tmp_path / "out" / "set"
    pipe.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 600))
    arguments = flags(pipe, huggingface, out, *seed, "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, TOOLS / "preprocess_data.py", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOOLS.parent)},
    )
    wait_until(lambda: list(tmp_path.glob("out/.*.partial/*.bin")), process)
    process.send_signal(number)
    shown = process.communicate(timeout=HANG)[1]
    assert process.returncode == 130, shown
    assert "Interrupted; nothing was written" in shown
    assert list((tmp_path / "out").iterdir()) == []


def test_train_tokenizer_writes_a_directory_and_refuses_nonsense(corpus, tmp_path, capsys):
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "tok")]
    assert tool("train_tokenizer")([*arguments, "--vocab-size", "0.5k"]) == 0
    written = ["tokenizer.json", "tokenizer_config.json", "training.json"]
    assert sorted(path.name for path in (tmp_path / "tok").iterdir()) == written
    assert tool("train_tokenizer")([*arguments, "--vocab-size", "many"]) == 2
    assert "--vocab-size: 'many' is not a number" in capsys.readouterr().err


def test_inspect_shows_and_verifies(corpus, huggingface, tmp_path, capsys):
    tool("preprocess_data")(flags(corpus, huggingface, tmp_path / "out", "--append-eod"))
    prefix = str(tmp_path / "out_text_document")
    assert tool("inspect_dataset")([prefix, "--tokenizer", huggingface.path, "--verify"]) == 0
    shown = capsys.readouterr().out
    for part in ("as uint16", "empty documents", "every byte matches", "document 2", "import"):
        assert part in shown
    with (tmp_path / "out_text_document.bin").open("r+b") as file:
        file.write(b"\xff")
    assert tool("inspect_dataset")([prefix, "--verify"]) == 2
    assert "do not match its manifest; the first wrong block is number 0 of 1, bytes 0 to" in capsys.readouterr().err


def test_inspect_shows_ids_and_verifies_them(huggingface, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": f"[doc] {n}", "text": "some text"}) + "\n" for n in range(4))
    )
    tool("preprocess_data")(flags(tmp_path / "in.jsonl", huggingface, tmp_path / "out", "--id-key", "id"))
    prefix = str(tmp_path / "out_text_document")
    assert tool("inspect_dataset")([prefix, "--tokenizer", huggingface.path, "--verify"]) == 0
    shown = capsys.readouterr().out
    for part in (".ids", "first '[doc] 0', last '[doc] 3'", "document 1 '[doc] 1', ", "every byte matches"):
        assert part in shown
    raw = Path(f"{prefix}.ids").read_bytes()
    Path(f"{prefix}.ids").write_bytes(raw[:-1] + b"x")
    assert tool("inspect_dataset")([prefix, "--verify"]) == 2
    assert ".ids: its contents do not match its manifest; the first wrong block is number 0" in capsys.readouterr().err


def test_inspect_of_a_foreign_set_says_it_has_no_manifest(tmp_path, capsys):
    with IndexedDatasetWriter(tmp_path / "set", np.int32) as writer:
        writer.add(np.arange(10), np.array([4, 0, 6]))
    assert tool("inspect_dataset")([str(tmp_path / "set")]) == 0
    assert "manifest: none" in capsys.readouterr().out
