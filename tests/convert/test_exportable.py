"""What an export would refuse is known before the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.convert.exportable import export_problems, warnings_of

MODEL = {"num_layers": 3, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}


def config_of(
    tokenizer: Path, kind: str = "huggingface", model: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """Return the config of a run that was not started."""
    rate = {"schedule": "constant", "peak": 1e-3}
    document = {
        "name": "late",
        "model": {**MODEL, **(model or {})},
        "tokenizer": {"kind": kind, "path": str(tokenizer)},
        "sources": {"web": {"path": "web", "tokens": "1M"}},
        "phases": [{"name": "all", "iterations": 20, "blend": {"web": 1}, "learning_rate": rate}],
        "train": {"seq_length": 32, "global_batch_size": 2},
        **more,
    }
    return validate(document, "x")


def _unigram(path: Path) -> Path:
    import sentencepiece

    words = [" ".join(f"w{(i * j) % 97} some{(i + j) % 13} thing" for j in range(9)) for i in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(path / "uni"), vocab_size=150, model_type="unigram",
        minloglevel=2, num_threads=1, hard_vocab_limit=False,
    )  # fmt: skip
    return path / "uni.model"


def test_a_run_that_can_be_exported_has_no_problem(tokenizer_dir: Path) -> None:
    assert export_problems(config_of(tokenizer_dir)) == []


def test_all_that_an_export_would_refuse_is_said(tmp_path: Path, tokenizer_dir: Path) -> None:
    text = (tokenizer_dir / "tokenizer.json").read_text().replace("<|endoftext|>", "[SEP]")
    (tmp_path / "tokenizer.json").write_text(text)
    told = warnings_of(config_of(tmp_path, model={"block": "parallel", "normalization": "RMSNorm"}))
    assert len(told) == 2
    assert "nearest: Llama but for block, Cohere but for normalization" in told[0]
    assert "set model.block: sequential (exports as Llama), or set model.normalization: LayerNorm" in told[0]
    assert "no export: the tokenizer has no end-of-document token" in told[1]


def test_a_unigram_model_is_said_and_a_run_with_scores_is_refused(tmp_path: Path) -> None:
    model = _unigram(tmp_path)
    assert "only BPE models of SentencePiece can be exported" in warnings_of(config_of(model, "sentencepiece"))[0]
    wanted = {"suite": "to-code", "every": "10 iterations"}
    with pytest.raises(ConfigError, match="evaluation during training needs exports"):
        export_problems(config_of(model, "sentencepiece", evaluate=wanted))


def test_a_tokenizer_that_transformers_would_replace_is_said(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Beside a Qwen 2.5 model, transformers 5 builds Qwen's tokenizer from the vocabulary alone."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

    from megacode.convert.families.table import QWEN2

    assert QWEN2.pre_tokenizer == PRETOKENIZE_REGEX
    told = warnings_of(config_of(tokenizer_dir, model={"qkv_bias": True}))
    assert len(told) == 1
    assert "transformers reads a tokenizer beside Qwen 2.5 as Qwen 2.5's own" in told[0]
    theirs = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
    document = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    document |= {key: theirs[key] for key in ("normalizer", "pre_tokenizer")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert warnings_of(config_of(tmp_path, model={"qkv_bias": True})) == []
