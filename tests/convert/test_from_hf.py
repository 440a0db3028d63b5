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
from megacode.config.config_file import load_config
from megacode.convert.from_hf import from_hf
from megacode.convert.hf import to_hf
from megacode.convert.safetensors_files import SafetensorsFiles
from tests.convert.families import published

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
    before, after = (SafetensorsFiles(tmp_path / name) for name in ("public", "back"))
    assert len(after) > 10
    assert set(after) == set(before) - ({"lm_head.weight"} if kind == "llama-tied" else set())
    for name in after:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("family", ["llama", "olmo3", "stablelm"])
def test_training_goes_on_from_a_public_model(
    family: str, tokenizer_dir: Path, data_prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import ExitStack

    from megacode.mcore.sharding import bare
    from megacode.planning.run_plan import make_plan
    from megacode.train.setup import build_trainer
    from megacode.train.signals import StopSignal

    from_hf(published(family, tokenizer_dir, tmp_path / "public"), tmp_path / "start")
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
        model = dict(bare(trainer.rank_model.chunks[0]).named_parameters())
        assert set(model) == set(weights)
        for name, tensor in model.items():
            assert torch.equal(tensor.detach()[: len(weights[name])], weights[name]), name
        assert trainer.state.iteration == 0
        assert not trainer.step().result.skipped


def test_the_command_says_what_it_did_and_a_second_time_refuses(tokenizer_dir: Path, tmp_path: Path) -> None:
    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    done = CliRunner().invoke(app, ["convert", "from-hf", str(public), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verified"]
    assert TrainState.read(tmp_path / "out").tokenizer_hash
    with pytest.raises(CheckpointError, match="it already exists"):
        from_hf(public, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, r"scaled \(dynamic\)"),
        ({"attention_bias": True}, "attention_bias is True, but megacode supports only False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but megacode supports only 'silu'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "megacode does not support GPT2LMHeadModel"),
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
    with pytest.raises(VerificationError, match="diverges from the checkpoint at layer 9 attention"):
        from_hf(public_model("stablelm", tokenizer_dir, tmp_path / "public", **shape), tmp_path / "out")


def _edit(public: Path, **change: Any) -> None:
    config = json.loads((public / "config.json").read_text())
    config.update({key: value for key, value in change.items() if value is not None})
    for key in (key for key, value in change.items() if value is None):
        config.pop(key)
    (public / "config.json").write_text(json.dumps(config))


def test_a_config_that_leaves_things_out_gets_the_defaults_of_its_own_class(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    """Llama's epsilon is 1e-6 by default, not the 1e-5 of most; the difference hides below the logits' tolerance."""
    from megacode.convert.imports import model_of
    from megacode.convert.published import parsed_config, read_object

    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    _edit(public, rms_norm_eps=None, rope_parameters=None, num_key_value_heads=None)
    where = public / "config.json"
    given = read_object(where)
    model = model_of(parsed_config(given, str(where)), given, str(where))
    assert (model.layernorm_epsilon, model.rotary_base, model.num_query_groups) == (1e-6, 10000.0, 4)


def test_a_tied_model_with_an_output_layer_of_its_own_is_refused_and_one_that_repeats_it_is_not(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from megacode.convert.verify import same_output

    public = public_model("llama-tied", tokenizer_dir, tmp_path / "public", dtype=torch.float32)
    files = SafetensorsFiles(public)
    tensors = {name: files[name].clone() for name in files}
    for item in public.glob("model*"):
        item.unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # left out, as transformers does
    save_file(tensors, public / "model.safetensors", metadata={"format": "pt"})
    from_hf(public, tmp_path / "same")
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, public / "model.safetensors", metadata={"format": "pt"})
    assert not same_output(SafetensorsFiles(public))
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, and lm_head\.weight in the files differs"):
        from_hf(public, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert load_file(public / "model.safetensors").keys() == tensors.keys()


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: _cut(p / "config.json", 0.5), r"config\.json: it is not JSON, or truncated"),
        (lambda p: (p / "config.json").write_text("[]"), "it is a JSON list"),
        (lambda p: (p / "config.json").write_text('{"a": 1, "a": 2}'), "the key 'a' appears twice"),
        (
            lambda p: _edit(p, vocab_size=None, hidden_size=None),
            "config.json: hidden_size: hidden_size is missing or not a positive integer",
        ),
        (lambda p: _edit(p, model_type="new"), "model_type is 'new', which transformers does not support"),
        (lambda p: _edit(p, hidden_size="64"), " hidden_size"),
        (lambda p: _cut(sorted(p.glob("model-*"))[1], 0.5), r"model-00002-of-\d+\.safetensors: it cannot be read"),
        (lambda p: _cut(sorted(p.glob("model-*"))[1], 0.0), r"model-00002-of-\d+\.safetensors: it cannot be read"),
        (lambda p: sorted(p.glob("model-*"))[1].unlink(), "the file is missing, and the model needs it"),
        (lambda p: _cut(p / "model.safetensors.index.json", 0.5), "index.json: it is not JSON"),
        (lambda p: (p / "model.safetensors.index.json").write_text("{}"), "it has no weight_map"),
        (lambda p: _cut(p / "tokenizer.json", 0.5), "it is not a tokenizer.json"),
        (lambda p: _cut(p / "tokenizer_config.json", 0.5), r"tokenizer_config\.json: it cannot be read"),
    ],
)
def test_a_directory_that_did_not_arrive_whole_is_refused_with_its_file(
    damage: Any, expected: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    from megacode.base.errors import MegacodeError

    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    damage(public)
    with pytest.raises(MegacodeError, match=expected) as caught:
        from_hf(public, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["modèle", "Llama+v2", "model (1)", "+"])
def test_a_directory_may_have_any_name(name: str) -> None:
    import re

    from megacode.convert.initial_checkpoint import _run_name

    assert re.fullmatch(r"[A-Za-z0-9._-]+", _run_name(Path("/somewhere") / name))


def test_an_imported_model_keeps_its_tokens_and_its_export_adds_none_to_texts(
    tokenizer_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import tokenizers
    from tokenizers import processors
    from transformers import AutoTokenizer

    public = public_model("llama", tokenizer_dir, tmp_path / "public")
    tokenizer = tokenizers.Tokenizer.from_file(str(public / "tokenizer.json"))
    tokenizer.add_special_tokens(["<bos>"])
    begin = [("<bos>", tokenizer.token_to_id("<bos>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=begin
    )
    tokenizer.save(str(public / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (public / "tokenizer_config.json").write_text(json.dumps(names))
    (public / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    from_hf(public, tmp_path / "start")
    to_hf(tmp_path / "start", tmp_path / "export")
    assert "does not add <bos> to texts" in caplog.text
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("public", "export"))
    assert before("Hi")["input_ids"][1:] == after("Hi")["input_ids"]
    turn = [{"role": "user", "content": "Hi"}]
    assert (
        after.apply_chat_template(turn, tokenize=False) == before.apply_chat_template(turn, tokenize=False) == "<bos>Hi"
    )
    assert json.loads((tmp_path / "export" / "config.json").read_text())["bos_token_id"] == begin[0][1]
    assert json.loads((tmp_path / "export" / "megacode.json").read_text())["begin_of_text"] is None
