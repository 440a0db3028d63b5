"""Public models become checkpoints that compute the same, go back bit for bit, and can be trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from megacode.base.errors import CheckpointError
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.tensors import Weights
from megacode.cli import app
from megacode.config.loading import load_config
from megacode.convert.from_hf import from_hf
from megacode.convert.hf import to_hf
from megacode.convert.shards import Shards

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True, "head_dim": 16},
    "cohere": {"logit_scale": 1.0, "use_qk_norm": False},
    "stablelm": {"partial_rotary_factor": 1.0, "use_parallel_residual": False},
}


def public_model(kind: str, tokenizer_dir: Path, path: Path, dtype: torch.dtype = torch.float32, **shape: Any) -> Path:
    """Save a model of random weights as transformers would; its embedding has rows that no token has."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind.partition("-")[0]](vocab_size=320, **SHAPE | KINDS[kind] | shape)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 700.0}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(path, max_shard_size="40KB")
    shutil.copy(tokenizer_dir / "tokenizer.json", path)
    ends = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(ends))
    return path


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS), ("llama", torch.bfloat16)], ids=str
)
def test_a_model_goes_there_and_back_bit_for_bit(
    kind: str, dtype: torch.dtype, tokenizer_dir: Path, tmp_path: Path
) -> None:
    public = public_model(kind, tokenizer_dir, tmp_path / "public", dtype)
    report = from_hf(public, tmp_path / "checkpoint")
    assert report.verified
    assert report.greedy_agreement == 1.0
    base = yaml.safe_load((tmp_path / "checkpoint" / "model.yaml").read_text())
    assert base["model"]["rotary_base"] == 700.0
    assert base["model"]["vocab_size"] == 320
    to_hf(tmp_path / "checkpoint", tmp_path / "back", dtype="bf16" if dtype == torch.bfloat16 else "fp32")
    before, after = Shards(public, tied=kind == "llama-tied"), Shards(tmp_path / "back")
    for name in after:
        assert torch.equal(before[name][: len(after[name])], after[name]), name


def test_training_goes_on_from_a_public_model(
    tokenizer_dir: Path, data_prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import ExitStack

    from megacode.train.planning import make_plan
    from megacode.train.setup import build_trainer
    from megacode.train.signals import StopSignal

    from_hf(public_model("llama", tokenizer_dir, tmp_path / "public"), tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    rate = {"schedule": "constant", "peak": 1e-3}
    document = {
        "base": str(tmp_path / "start" / "model.yaml"),
        "name": "on",
        "sources": {"text": {"path": str(data_prefix)}},
        "phases": [{"name": "all", "iterations": 2, "blend": {"text": 1}, "learning_rate": rate}],
        "train": {"seq_length": 32, "global_batch_size": 2},
        "precision": {"dtype": "fp32"},
        "validation": {"fraction": 0.1, "samples": 4},
        "init": {"from": str(tmp_path / "start"), "load": "weights"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(document))
    with ExitStack() as closing:
        trainer = build_trainer(make_plan(load_config(Path("run.yaml"))), StopSignal(), closing)
        weights = Weights(tmp_path / "start")
        model = dict(trainer.parts.chunks[0].named_parameters())
        norm = next(tensor for name, tensor in model.items() if name.endswith("final_layernorm.weight"))
        assert torch.equal(norm.detach(), weights["decoder.final_layernorm.weight"])
        assert trainer.state.iteration == 0
        assert not trainer.step().skipped


def test_the_command_says_what_it_did_and_a_second_time_refuses(tokenizer_dir: Path, tmp_path: Path) -> None:
    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    done = CliRunner().invoke(app, ["convert", "from-hf", str(public), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verified"]
    assert TrainState.read(tmp_path / "out").tokenizer_hash
    with pytest.raises(CheckpointError, match="it is there already"):
        from_hf(public, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"positions are scaled \(llama3\)"),
        ({"attention_bias": True}, "attention_bias is True, and megacode computes False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and megacode computes 'silu'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "megacode has no layout for GPT2LMHeadModel"),
    ],
)
def test_what_megacode_does_not_compute_is_named(
    tokenizer_dir: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    config = json.loads((public / "config.json").read_text())
    (public / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=expected):
        from_hf(public, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_hf(tmp_path, tmp_path / "out")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert f"there is no {name}" in str(caught.value)


def test_a_model_whose_heads_were_permuted_is_not_published(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof can fail: megacode's half of the mapping is spoiled, and the first layer is named."""
    from megacode.base.errors import VerificationError
    from megacode.convert import from_hf as module

    original = module.mapped

    def spoiled(*arguments: Any) -> Any:
        for name, tensor in original(*arguments):
            yield name, tensor.roll(8, 0) if name == "decoder.layers.1.self_attention.linear_qkv.weight" else tensor

    monkeypatch.setattr(module, "mapped", spoiled)
    with pytest.raises(VerificationError, match="layer 1"):
        from_hf(public_model("llama", tokenizer_dir, tmp_path / "public"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_blows_up_rounding_is_proven_all_the_same(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Large random weights: what fp32 rounds in the first layers grows with the depth, and nothing is wrong."""
    shape = {"num_hidden_layers": 40, "initializer_range": 1.0}
    report = from_hf(public_model("stablelm", tokenizer_dir, tmp_path / "public", **shape), tmp_path / "out")
    apart = max(point.relative for point in report.points)
    assert apart < 0.1 * report.tolerance
    assert report.end_to_end.relative > 5 * apart


def test_of_a_model_that_blows_up_rounding_the_wrong_layer_is_named(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megacode.base.errors import VerificationError
    from megacode.convert import from_hf as module

    original = module.mapped

    def spoiled(*arguments: Any) -> Any:
        for name, tensor in original(*arguments):
            yield name, tensor.roll(8, 0) if name == "decoder.layers.9.self_attention.linear_qkv.weight" else tensor

    monkeypatch.setattr(module, "mapped", spoiled)
    shape = {"num_hidden_layers": 16, "initializer_range": 1.0}
    with pytest.raises(VerificationError, match="parts from the checkpoint at layer 9 attention"):
        from_hf(public_model("stablelm", tokenizer_dir, tmp_path / "public", **shape), tmp_path / "out")
