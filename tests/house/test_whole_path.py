"""The README's path from files to a scored model and its page, typed as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: small
model: {num_layers: 2, hidden_size: 64, ffn_hidden_size: 128, num_attention_heads: 4, num_query_groups: 2}
tokenizer: {kind: huggingface, path: tokenizer/}
sources:
  text: {path: data/text_text_document}
  code: {path: data/code_text_document, max_epochs: 4}
validation: {fraction: 0.2, samples: 8}
phases:
  - {name: balanced, tokens: 24Ki, blend: {text: 0.5, code: 0.5},
     learning_rate: {schedule: cosine, peak: 5.0e-3, final: 5.0e-4, warmup: 2 iterations}}
  - {name: text, iterations: 6, blend: {text: 0.9, code: 0.1}, learning_rate: {schedule: linear, final: 1.0e-6}}
train: {seq_length: 256, global_batch_size: 8, micro_batch_size: 4}
precision: {dtype: fp32}
"""


def tool(folder: Path, name: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_from_files_to_a_scored_model_and_a_page(
    tmp_path: Path, megacode: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def run(*arguments: object) -> str:
        done = megacode(*arguments)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    limits = ["--limit", "code=800k", "--limit", "text=800k", "--limit", "markup=0"]
    tool(tmp_path, "prepare_corpus.py", "--output", "corpus", "--roots", sysconfig.get_path("stdlib"), *limits)
    tokenizer = ["--kind", "huggingface", "--input", "corpus/*.jsonl", "--vocab-size", 2000, "--output", "tokenizer"]
    tool(tmp_path, "train_tokenizer.py", *tokenizer)
    for name in ("text", "code"):
        flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "tokenizer", "--append-eod"]
        source = ["--input", f"corpus/{name}.jsonl", "--output-prefix", f"data/{name}", "--shuffle-seed", 1]
        tool(tmp_path, "preprocess_data.py", *source, *flags)
    (tmp_path / "run.yaml").write_text(CONFIG)

    plan = json.loads(run("plan", "run.yaml", "--json"))
    rows = json.loads(run("order", "run.yaml", "--first", 0, "--count", plan["total_samples"], "--json"))["samples"]
    assert [phase["name"] for phase in plan["phases"]] == ["balanced", "text"]
    for phase in plan["phases"]:
        drawn = [row["source"] for row in rows if row["phase"] == phase["name"]]
        assert {name: drawn.count(name) for name in set(drawn)} == {
            name: source["samples"] for name, source in phase["sources"].items() if source["samples"]
        }
    row = rows[5]
    seen = json.loads(run("seen", "run.yaml", "--source", row["source"], "--document", row["first_document"], "--json"))
    assert row in seen["samples"]

    run("train", "run.yaml", "--nproc", 2)
    run("plan", "run.yaml", "--against", "runs/small")
    run("convert", "to-hf", "runs/small", "runs/small/hf/last")
    scores = json.loads(run("evaluate", "runs/small/hf/last", "--suite", "demo", "--limit", 4, "--json"))
    assert set(scores["scores"]) == {
        "demo_endings_text", "demo_endings_code", "demo_bits_text", "demo_bits_code", "demo_next_word_code"
    }  # fmt: skip
    page = tmp_path / run("report", "runs/small").strip()
    assert page.read_text().count("<svg") >= 4
    again = megacode("convert", "to-hf", "runs/small", "runs/small/hf/last")
    assert again.returncode == 2
    assert "Traceback" not in again.stderr
