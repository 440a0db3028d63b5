"""Write an initial checkpoint from weights trained by another program: one tensor in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from megacode.base.files import write_text
from megacode.base.progress import steps
from megacode.checkpoint.files import shard_name
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.writer import bytes_of, write_alone
from megacode.config.config_file import dump_config, validate
from megacode.config.model import ModelConfig
from megacode.config.run import RunConfig
from megacode.convert.mapping import Sizes, mcore_shapes
from megacode.mcore.optimizer_state import WEIGHT

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
              "generation_config.json")  # fmt: skip


def config_of(model: ModelConfig, vocab: int, seq_length: int, origin: Path, hidden: Path) -> RunConfig:
    """Return a run config for an imported model; its training data is unknown.

    Args:
        model: the model.
        vocab: rows of the embedding.
        seq_length: the sequence length of training.
        origin: the directory of the original weights.
        hidden: the unfinished checkpoint, which holds the tokenizer.
    """
    raw: dict[str, Any] = {
        "name": _run_name(origin),
        "model": {**model.model_dump(mode="json", exclude_none=True), "vocab_size": vocab},
        "tokenizer": {"kind": "huggingface", "path": str(hidden / "tokenizer")},
        # Placeholders: a config needs sources and phases, but none are known and none are read.
        "sources": {"unknown": {"path": "unknown", "tokens": 1 << 40}},
        "phases": [
            {
                "name": "unknown",
                "samples": 1,
                "blend": {"unknown": 1},
                "learning_rate": {"schedule": "constant", "peak": 1e-4},
            }
        ],
        "train": {"seq_length": seq_length, "global_batch_size": 1},
    }
    return validate(raw, str(origin))


def _run_name(origin: Path) -> str:
    """Return a valid run name made from a directory's name."""
    # Run names become directory names, so anything else is replaced.
    return re.sub(r"[^A-Za-z0-9._-]+", "-", origin.resolve().name).strip("-.") or "model"


def copy_tokenizer(directory: Path, hidden: Path) -> None:
    """Copy the files of a Hugging Face tokenizer into a checkpoint."""
    # A copy of its own: the checkpoint must work after the download is deleted.
    (hidden / "tokenizer").mkdir()
    for name in _TOKENIZER:
        if (directory / name).is_file():
            (hidden / "tokenizer" / name).write_bytes((directory / name).read_bytes())


def write(tensors: Iterable[Tensor], config: RunConfig, hidden: Path) -> None:
    """Write tensors, in the order of `mcore_shapes`, and the state into a directory that exists."""
    from megacode.data.tokenizer import load_tokenizer

    assert config.tokenizer is not None
    assert config.model.vocab_size is not None
    sizes = Sizes.of(config.model, config.model.vocab_size)
    # FP32, as every checkpoint's masters, whatever type the original weights had.
    slots = [Slot(f"{WEIGHT}.{name}", shape, "F32") for name, shape in mcore_shapes(config.model, sizes).items()]
    with steps(tensors, "writing tensors", len(slots)) as counted:
        files = write_alone(hidden, [(shard_name(0), slots)], (bytes_of(tensor.float()) for tensor in counted))
    state = TrainState(config=dump_config(config), tokenizer_hash=load_tokenizer(config.tokenizer).hash)
    state.layout = {"world_size": 1, "tensor": 1, "pipeline": 1, "context": 1}
    state.files = files
    state.write(hidden)


def settle(config: RunConfig, hidden: Path, out: Path) -> None:
    """Set the tokenizer's final path, and write `model.yaml`, the base for configs of new runs."""
    path = {"kind": "huggingface", "path": str(out.resolve() / "tokenizer")}
    settled = config.model_copy(update={"tokenizer": type(config.tokenizer).model_validate(path)})  # type: ignore[union-attr]
    # The state was written with the temporary path; only the path changes.
    state = TrainState.read(hidden)
    state.config = dump_config(settled)
    state.write(hidden)
    document = yaml.safe_load(state.config)
    # Only what a new run takes over; data and phases are its own.
    base = {key: document[key] for key in ("model", "tokenizer")}
    head = f"# base: this file, and init: {{from: {out.resolve()}, load: weights}}, in a run's config\n"
    write_text(hidden / "model.yaml", head + yaml.safe_dump(base, sort_keys=False))
