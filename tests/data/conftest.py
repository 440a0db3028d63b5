"""A small real corpus, tokenizers trained on it, and configs over data sets made by hand."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.config.config_file import validate
from megacode.config.model import TokenizerConfig
from megacode.config.run import RunConfig
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.train_tokenizer import train_tokenizer

VOCABULARY = 1000


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Python sources of the standard library, cut to 4,000 characters each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("*.py"))[:120]
    return [file.read_text(encoding="utf-8", errors="ignore")[:4000] for file in files]


@pytest.fixture(scope="session")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts as JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "code.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def huggingface(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerConfig:
    """A byte-level BPE tokenizer."""
    path = tmp_path_factory.mktemp("tokenizers") / "huggingface"
    train_tokenizer("huggingface", [str(corpus)], VOCABULARY, path)
    return TokenizerConfig(kind="huggingface", path=str(path))


@pytest.fixture(scope="session")
def sentencepiece(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerConfig:
    """A SentencePiece BPE model."""
    path = tmp_path_factory.mktemp("tokenizers") / "sentencepiece"
    train_tokenizer("sentencepiece", [str(corpus)], VOCABULARY, path)
    return TokenizerConfig(kind="sentencepiece", path=str(path / "tokenizer.model"))


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., str]:
    """Write a data set whose token t is t modulo 1,000, of documents of the lengths given; return its prefix."""

    def write(lengths: Sequence[int], name: str = "set", dtype: str = "uint16") -> str:
        prefix = tmp_path / name
        with IndexedDatasetWriter(prefix, dtype) as writer:
            writer.add(np.arange(sum(lengths)) % 1000, np.array(lengths))
        return str(prefix)

    return write


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """Make a run's config over data sets: `make_config({"text": prefix}, phases=[...], train={...}, ...)`.

    In place of a prefix there may be all of a source's settings.
    """

    def make(sources: dict[str, Any], **sections: Any) -> RunConfig:
        train = {"seq_length": 8, "global_batch_size": 4, "micro_batch_size": 2, **sections.pop("train", {})}
        constant = {"schedule": "constant", "peak": 1e-3}
        blend = dict.fromkeys(sources, 1.0)
        raw = {
            "name": "test",
            "model": {
                "num_layers": 1,
                "hidden_size": 8,
                "ffn_hidden_size": 8,
                "num_attention_heads": 1,
                "vocab_size": 1000,
            },
            "sources": {
                name: source if isinstance(source, dict) else {"path": source} for name, source in sources.items()
            },
            "validation": {"fraction": 0.1, "samples": 3},
            "phases": [{"name": "first", "samples": 40, "blend": blend, "learning_rate": constant}],
            "train": train,
            **sections,
        }
        for phase in raw["phases"]:
            phase.setdefault("learning_rate", constant)
        return validate(raw, "test.yaml")

    return make
