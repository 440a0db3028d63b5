"""A tiny run with a tokenizer, data and a checkpoint, for every layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.base.files import RunDir, write_text
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config, validate
from megacode.config.run import RunConfig
from megacode.convert import texts
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.tokenizer import load_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"block": "sequential", "normalization": "RMSNorm", "num_query_groups": 2},
    "cohere": {"block": "parallel", "normalization": "LayerNorm", "share_embeddings_and_output_weights": True},
    "cohere-untied": {"block": "parallel", "normalization": "LayerNorm", "num_query_groups": 1, "kv_channels": 12},
    "stablelm": {"block": "sequential", "normalization": "LayerNorm", "num_query_groups": 2},
}
MODEL = {"num_layers": 3, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "rotary_base": 500.0}


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """The shipped texts, and this directory's tests."""
    shipped = Path(texts.__file__).parent.glob("*.txt")
    return [
        path.read_text(encoding="utf-8") for path in [*sorted(shipped), *sorted(Path(__file__).parent.glob("*.py"))]
    ]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """A byte-level BPE of 300 tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def data_prefix(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, corpus: list[str]) -> Path:
    """The corpus as an indexed data set."""
    prefix = tmp_path_factory.mktemp("data") / "text_document"
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for text in corpus:
            ids = np.array([*tokenizer.encode(text).ids, 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    return prefix


def config_of(name: str, run_dir: Path, tokenizer_dir: Path, data_prefix: Path, **model: Any) -> RunConfig:
    """Return the config of a tiny run."""
    document = {
        "name": f"tiny-{name}",
        "model": {**MODEL, **SHAPES[name], **model},
        "tokenizer": {"kind": "huggingface", "path": str(tokenizer_dir)},
        "sources": {"text": {"path": str(data_prefix)}},
        "validation": {"fraction": 0.05},
        "phases": [
            {
                "name": "first",
                "samples": 8,
                "blend": {"text": 1},
                "learning_rate": {"schedule": "constant", "peak": 1e-3},
            },
            {"name": "second", "samples": 8, "blend": {"text": 1}, "learning_rate": {"schedule": "constant"}},
        ],
        "train": {"seq_length": 64, "global_batch_size": 4, "micro_batch_size": 2},
        "precision": {"dtype": "fp32"},
        "run_dir": str(run_dir),
    }
    return validate(document, "test")


def state_of(config: RunConfig) -> TrainState:
    """Return the state of a run whose clock stands inside its second phase."""
    links = [
        {
            "phase": name,
            "first_sample": first,
            "fingerprint": f"{name}-fingerprint",
            "samples": 8,
            "sources": {"text": {"samples": 8, "first_index": first, "tokens": 5000, "identity": "c0ffee"}},
        }
        for name, first in (("first", 0), ("second", 8))
    ]
    assert config.tokenizer is not None
    return TrainState(
        iteration=3,
        consumed_samples=12,
        phase="second",
        samples_by_source={"text": 12},
        fingerprints=links,
        config=dump_config(config),
        layout={"tensor": 1, "pipeline": 1},
        tokenizer_hash=load_tokenizer(config.tokenizer).hash,
        versions={"torch": torch.__version__},
    )


def save(config: RunConfig) -> Path:
    """Write the checkpoint of a model whose weights are large enough to matter, and return the run directory."""
    from megacode.checkpoint import tensors
    from megacode.mcore import groups, sharding
    from megacode.mcore.build import build

    assert config.tokenizer is not None
    ranks = groups.start(config.parallel, config.seed)
    try:
        built = build(config, ranks, load_tokenizer(config.tokenizer).vocab_size)
        with torch.no_grad():
            for name, parameter in sharding.bare(built.chunks[0]).named_parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(noise * (0.1 if parameter.dim() == 2 else 0.3))
        run, state = RunDir(config.directory), state_of(config)
        path = run.checkpoint(state.iteration)
        path.mkdir(parents=True)
        state.files = tensors.save(built, path)
    finally:
        groups.stop()
    state.write(path)
    write_text(run.latest, path.name + "\n")
    return run.path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data_prefix: Path) -> Callable[[str], Path]:
    """Return a function that gives the run directory of a layout, made on first use."""
    root = tmp_path_factory.mktemp("runs")

    def run_of(name: str) -> Path:
        path = root / name
        return path if path.exists() else save(config_of(name, path, tokenizer_dir, data_prefix))

    return run_of


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place for an export; nothing hidden may be left beside it."""
    yield tmp_path / "hf"
    assert not list(tmp_path.glob(".hf*"))
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)
