"""Models of every family come in, compute the same logits, and go back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from megacode.base.errors import VerificationError
from megacode.config.model import ModelConfig
from megacode.config.run import RunConfig
from megacode.convert.exported import Exported
from megacode.convert.from_hf import from_hf
from megacode.convert.hf import to_hf
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.read_back import check_config, check_modules
from tests.convert.families import CASES, VOCABULARY, published
from tests.convert.test_published import ELSEWHERE

pytestmark = pytest.mark.slow


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model's files, read with safetensors alone."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return tensors


def logits_of(config: RunConfig, checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of megacode's whole model on one rank, in fp32."""
    from megacode.checkpoint.tensors import Weights
    from megacode.mcore import groups, sharding
    from megacode.mcore.build import build

    config = config.model_copy(update={"precision": type(config.precision)(dtype="fp32")})
    ranks = groups.start(config.parallel, config.seed)
    try:
        model = build(config, ranks, VOCABULARY).chunks[0].eval()
        weights = Weights(checkpoint)
        with torch.no_grad():
            for name, parameter in sharding.bare(model).named_parameters():
                parameter[: len(weights[name])].copy_(weights[name])
            positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
            logits: torch.Tensor = model(tokens, positions, None)
            return logits[..., :VOCABULARY].clone()
    finally:
        groups.stop()


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_each_family_comes_in_computes_the_same_and_goes_back(
    name: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    public = published(name, tokenizer_dir, tmp_path / "public")
    report = from_hf(public, tmp_path / "checkpoint")
    assert report.verified
    assert report.architecture == json.loads((public / "config.json").read_text())["architectures"][0]

    config = OpenedCheckpoint.open(tmp_path / "checkpoint").config
    tokens = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(public, dtype=torch.float32)(tokens).logits
    ours = logits_of(config, tmp_path / "checkpoint", tokens)
    assert (ours - theirs).abs().max() < 3e-5 * theirs.abs().max()

    to_hf(tmp_path / "checkpoint", tmp_path / "back", dtype="fp32")
    before, after = tensors_of(public), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    given, back = (AutoConfig.from_pretrained(path).to_dict() for path in (public, tmp_path / "back"))
    keep = ELSEWHERE - {"max_position_embeddings", "bos_token_id", "eos_token_id"}
    assert {k: v for k, v in back.items() if k not in keep} == {k: v for k, v in given.items() if k not in keep}


# A setting that a few hundred tokens, or the tolerance, do not show, and what the proof says.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rms_norm_eps": 3.1e-5}, r"another model\.layernorm_epsilon than the checkpoint's 3e-05"),
    ("mistral", {"sliding_window": 4096}, r"another model\.attention_pattern"),
    ("olmo2", {"rope_theta": 701.0}, r"another model\.rotary_base"),
    ("olmo3", {"layer_types": ["full_attention"] * 4}, r"another model\.attention_pattern"),
    ("cohere", {"logit_scale": 0.3001}, r"another model\.logit_scale"),
]


@pytest.mark.parametrize(("name", "change", "expected"), WRONG)
def test_the_proof_reads_the_config_as_transformers_does(
    name: str, change: dict[str, Any], expected: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    public = published(name, tokenizer_dir, tmp_path / "public")
    from_hf(public, tmp_path / "checkpoint")
    model = OpenedCheckpoint.open(tmp_path / "checkpoint").config.model
    check_config(model, public)
    document = json.loads((public / "config.json").read_text())
    if "rope_theta" in change:
        document["rope_parameters"] |= change
    (public / "config.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(VerificationError, match=expected):
        check_config(model, public)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("llama", {"layernorm_epsilon": 3.1e-5}, r"epsilon of model\.layers\.0\.input_layernorm is 3e-05"),
        ("qwen3", {"layernorm_epsilon": 3.1e-5}, "epsilon of"),
        ("mistral", {"sliding_window": 8}, "window of layer 0 is 7, but the checkpoint's is 8"),
        ("olmo3", {"attention_pattern": ("sliding",)}, "window of layer 0 is None, but the checkpoint's is 9"),
        ("olmo3", {"rotary_scaling": None}, "rotary cosines in layer 0 differ"),
        ("stablelm", {"rotary_percent": 0.25}, "rotary cosines in layer 0 differ"),
        ("cohere2", {"rotary_base": 701.0}, "rotary sines in layer 0 differ"),
    ],
)
def test_the_proof_compares_what_transformers_built(
    name: str, change: dict[str, Any], expected: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    public = published(name, tokenizer_dir, tmp_path / "public")
    from_hf(public, tmp_path / "checkpoint")
    model = OpenedCheckpoint.open(tmp_path / "checkpoint").config.model
    exported = Exported(public)
    check_modules(model, exported)
    with pytest.raises(VerificationError, match=expected):
        check_modules(ModelConfig(**{**model.model_dump(), **change}), exported)
