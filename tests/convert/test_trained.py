"""The whole chain on two tensor-parallel ranks: train, export by the tool, and find the training's own loss again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from megacode.data.source_stream import SourceStream
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: sliced
model: {{num_layers: 2, hidden_size: 64, ffn_hidden_size: 96, num_attention_heads: 4, num_query_groups: 2,
  block: parallel, normalization: LayerNorm, rotary_base: 500.0}}
tokenizer: {{kind: huggingface, path: {tokenizer}}}
sources: {{text: {{path: {data}}}}}
validation: {{fraction: 0.05}}
phases:
  - {{name: only, iterations: 10, blend: {{text: 1}}, learning_rate: {{schedule: constant, peak: 5.0e-3}}}}
train: {{seq_length: 64, global_batch_size: 4, micro_batch_size: 2}}
parallel: {{tensor: 2, sequence_parallel: true}}
precision: {{dtype: fp32}}
run_dir: {run}
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=HANG)


@pytest.mark.slow
def test_an_export_of_a_sliced_run_has_the_validation_loss_of_its_training(
    tokenizer_dir, data_prefix, tmp_path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(tokenizer=tokenizer_dir, data=data_prefix, run=tmp_path / "run"))
    trained = run("-m", "megacode.cli", "train", str(config), "--nproc", "2")
    assert trained.returncode == 0, trained.stderr[-3000:]
    tool = str(ROOT / "tools/convert_checkpoint.py")
    exported = run(tool, "to-hf", str(tmp_path / "run"), str(tmp_path / "hf"))
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert "logits" in exported.stdout

    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    measured = [line["loss"] for line in lines if line["kind"] == "validation"][-1]
    stream = SourceStream("text", str(data_prefix), 0.05, 64)
    places = map(stream.validation_first_token, range(stream.validation_windows))
    windows = torch.stack([torch.tensor(stream.window(place).astype("int64")) for place in places])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(windows[:, :-1]).logits
    assert float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())) == pytest.approx(measured, abs=2e-6)

    refused = run(tool, "to-hf", str(tmp_path / "nowhere"), str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "Checkpoint error" in refused.stderr
    assert "Traceback" not in refused.stderr
