"""Fill in the middle in training: the same on two ranks, after a resume and in a replay."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.source_stream import window_tokens
from megacode.data.tokenizer import HuggingFaceTokenizer
from megacode.data.train_tokenizer import train_tokenizer
from megacode.data.windows import open_source
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.replay.retrain import replay
from megacode.status.sample_proof import prove_samples
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal

pytestmark = pytest.mark.slow

RUN: dict[str, Any] = {
    "name": "fim",
    "model": {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 2},
    "tokenizer": {"kind": "huggingface", "path": "tokenizer"},
    "sources": {
        "code": {"path": "code", "fim_rate": 0.6, "fim_spm_rate": 0.3},
        "text": {"path": "text"},
    },
    "validation": {"fraction": 0.05, "samples": 4},
    "phases": [
        {
            "name": "p",
            "iterations": 8,
            "blend": {"code": 0.7, "text": 0.3},
            "learning_rate": {"schedule": "constant", "peak": 1e-3},
        }
    ],
    "train": {"seq_length": 64, "global_batch_size": 8, "micro_batch_size": 2, "isolate_documents": True},
    "precision": {"dtype": "fp32"},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's config, in a working directory that holds its tokenizer and data."""
    monkeypatch.chdir(tmp_path)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]
    texts = [file.read_text(encoding="utf-8", errors="ignore")[:1500] for file in files]
    Path("input.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer("huggingface", ["input.jsonl"], 400, Path("tokenizer"))
    tokenizer = HuggingFaceTokenizer("tokenizer")
    for name in ("code", "text"):
        documents = [[*tokenizer.encode(text), tokenizer.eod or 0] for text in texts]
        with IndexedDatasetWriter(name, np.uint16) as writer:
            writer.add(np.concatenate(documents), np.array([len(document) for document in documents]))
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    return Path("run.yaml")


def trained(config: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Return what a run of one process measured."""
    with ExitStack() as closing:
        plan = make_plan(load_config(config, [f"run_dir={name}", *overrides]))
        train(build_trainer(plan, StopSignal(), closing))
    return measured(name)


def measured(name: str) -> list[dict[str, Any]]:
    keys = ("iteration", "loss", "loss_by_source", "samples_digest", "samples_by_source", "fim_share_by_source")
    lines = [line for line in read_metrics(RunDir(name).metrics) if line["kind"] == "train"]
    return [{key: line[key] for key in keys if key in line} for line in lines]


def test_two_ranks_a_resume_and_a_replay_read_what_one_process_reads(
    config: Path, megacode: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    one = trained(config, "one")
    assert len(one) == 8
    # The half of it, then the rest: bit for bit.
    halves = ("phases.p.until=4 iterations", "train.prefetch=0", "train.micro_batch_size=2")
    assert trained(config, "halves", *halves) == one[:4]
    assert trained(config, "halves", "train.prefetch=3") == one
    # Context parallel divides the loss mask as well.
    done = megacode("train", config, "run_dir=two", "parallel={context: 2}", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(measured("two"), one, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=5e-6)
        assert mine["loss_by_source"] == pytest.approx(theirs["loss_by_source"], abs=5e-6)
        for key in ("samples_digest", "samples_by_source", "fim_share_by_source"):
            assert mine[key] == theirs[key]
    replayed = replay(Path("one"), 3)
    assert replayed["agreement"] == "bit for bit"
    worst = [row["text"] for row in replayed["samples"] if row["source"] == "code" and row["text"]]
    assert any("<|fim_prefix|>" in text for text in worst)
    assert prove_samples(Path("one"))["differing"] == []


def test_the_share_in_the_metrics_is_that_of_the_windows(config: Path) -> None:
    (line,) = trained(config, "one", "phases.p.iterations=1", "sources.text.fim_rate=1")
    plan = make_plan(load_config(config, ["phases.p.iterations=1", "sources.text.fim_rate=1"]))
    counts, samples = dict.fromkeys(("code", "text"), 0), dict.fromkeys(("code", "text"), 0)
    for sample in range(8):
        draw = plan.schedule.draw(sample)
        read = window_tokens(open_source(plan.config, draw.source), draw.first_token, draw.epoch)
        counts[draw.source] += read.fim_tokens
        samples[draw.source] += 1
    expected = {name: count / samples[name] / 65 for name, count in counts.items() if count}
    assert line["fim_share_by_source"] == pytest.approx(expected)
    assert line["fim_share_by_source"]["text"] > 0.8
