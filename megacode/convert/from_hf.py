"""A Hugging Face model as a checkpoint, so that continued pre-training starts from public models.

    megacode convert from-hf MODEL OUT
    # then, in a run's config:  base: OUT/model.yaml   and   init: {from: OUT, load: weights}

The way back of `to_hf`, proven the same way: every tensor of the checkpoint, mapped back, is the model's, bit for bit,
and megacode's own model computes the logits that transformers computes. One tensor is in memory while writing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import atomic_path, write_text
from megacode.checkpoint.files import shard_name, write_index
from megacode.checkpoint.shards import Layout, Slot, bytes_of, write_shard
from megacode.checkpoint.state import TrainState
from megacode.config.loading import dump_config, validate
from megacode.config.run import RunConfig
from megacode.convert.imports import model_of
from megacode.convert.mapping import Sizes, mcore_shapes
from megacode.convert.mapping import from_hf as mapped
from megacode.convert.shards import INDEX, SINGLE, Shards
from megacode.convert.source import Source
from megacode.convert.texts import texts_of
from megacode.convert.verify import Claim, Report, prove
from megacode.mcore.optimizer_state import WEIGHT

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def from_hf(model_dir: Path, out: Path) -> Report:
    """Write a Hugging Face model as a checkpoint, and prove it.

    Args:
        model_dir: a directory with config.json, safetensors and tokenizer.json.
        out: the checkpoint to publish; it must not exist. Its `model.yaml` is a base for runs' configs.

    Returns:
        What the proof found.

    Raises:
        CheckpointError: there is no such model, or it computes what megacode does not; or `out` exists.
        VerificationError: the checkpoint does not compute what the model computes; nothing is published.
    """
    document = _document(model_dir)
    if out.exists():
        raise CheckpointError("it is there already", str(out), "give a directory that does not exist")
    with atomic_path(out) as hidden:
        hidden.mkdir(parents=True)
        _copy_tokenizer(model_dir, hidden)
        config = _config(document, model_dir, hidden)
        tensors = Shards(model_dir, tied=config.model.share_embeddings_and_output_weights)
        _write(tensors, config, hidden)
        source, dtype = Source.open(hidden), tensors[next(iter(tensors))].dtype
        facts = (source.label, source.config, source.path, source.tokenizer, texts_of(source), dtype)
        report = prove(Claim(*facts, vocab=document["vocab_size"]), model_dir)
        _settle(config, hidden, out)
    return report


def _document(model_dir: Path) -> dict[str, Any]:
    """Return config.json of a directory that holds all that is needed."""
    needed = ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (model_dir / name).is_file()]
    if not any((model_dir / name).is_file() for name in (SINGLE, INDEX)):
        missing.append(SINGLE)
    if missing:
        fix = "give the directory of a downloaded model: safetensors, config.json and tokenizer.json"
        raise CheckpointError(problems=[Problem(f"there is no {name}", str(model_dir), fix) for name in missing])
    document: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return document


def _config(document: dict[str, Any], model_dir: Path, hidden: Path) -> RunConfig:
    """Return a run's config whose model is this one; what it was trained on is not known here."""
    model = model_of(document, str(model_dir / "config.json"))
    raw = {
        "name": model_dir.resolve().name.replace(" ", "-"),
        "model": {**model.model_dump(mode="json", exclude_none=True), "vocab_size": document["vocab_size"]},
        "tokenizer": {"kind": "huggingface", "path": str(hidden / "tokenizer")},
        "sources": {"unknown": {"path": "unknown", "tokens": 1 << 40}},
        "phases": [
            {
                "name": "unknown",
                "samples": 1,
                "blend": {"unknown": 1},
                "learning_rate": {"schedule": "constant", "peak": 1e-4},
            }
        ],
        "train": {"seq_length": document.get("max_position_embeddings", 2048), "global_batch_size": 1},
    }
    return validate(raw, str(model_dir))


def _copy_tokenizer(model_dir: Path, hidden: Path) -> None:
    (hidden / "tokenizer").mkdir()
    for name in _TOKENIZER:
        if (model_dir / name).is_file():
            (hidden / "tokenizer" / name).write_bytes((model_dir / name).read_bytes())


def _write(tensors: Mapping[str, Tensor], config: RunConfig, hidden: Path) -> None:
    """Write the tensors and the state into a directory that exists."""
    from megacode.data.tokenizer import load_tokenizer

    assert config.tokenizer is not None
    assert config.model.vocab_size is not None
    sizes = Sizes.of(config.model, config.model.vocab_size)
    slots = [Slot(f"{WEIGHT}.{name}", shape, "F32") for name, shape in mcore_shapes(config.model, sizes).items()]
    stream = (bytes_of(tensor.float()) for _, tensor in mapped(tensors, config.model, sizes))
    write_shard(hidden / shard_name(0), Layout(slots), stream)
    state = TrainState(config=dump_config(config), tokenizer_hash=load_tokenizer(config.tokenizer).hash)
    state.layout = {"world_size": 1, "tensor": 1, "pipeline": 1, "context": 1}
    state.files = write_index(hidden)
    state.write(hidden)


def _settle(config: RunConfig, hidden: Path, out: Path) -> None:
    """Name the tokenizer where it will lie, and write the base of the configs to come."""
    path = {"kind": "huggingface", "path": str(out.resolve() / "tokenizer")}
    settled = config.model_copy(update={"tokenizer": type(config.tokenizer).model_validate(path)})  # type: ignore[union-attr]
    state = TrainState.read(hidden)
    state.config = dump_config(settled)
    state.write(hidden)
    document = yaml.safe_load(state.config)
    base = {key: document[key] for key in ("model", "tokenizer")}
    head = f"# base: this file, and init: {{from: {out.resolve()}, load: weights}}, in a run's config\n"
    write_text(hidden / "model.yaml", head + yaml.safe_dump(base, sort_keys=False))
