"""Convert a Hugging Face model to a checkpoint, to continue pre-training from public models.

    megacode convert from-hf MODEL OUT
    # then, in a run's config:  base: OUT/model.yaml   and   init: {from: OUT, load: weights}

The inverse of `to_hf`, verified the same way. Every tensor of the checkpoint, mapped back, equals the model's bit for
bit, and megacode's own model computes the same logits as transformers. One tensor is in memory while writing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import atomic_path
from megacode.base.user_paths import refuse_unwritable
from megacode.config.model import ModelConfig
from megacode.convert import initial_checkpoint
from megacode.convert.imports import family_of_document, model_of
from megacode.convert.mapping import Sizes
from megacode.convert.mapping import from_hf as mapped
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.published import ignored, parsed_config, read_object
from megacode.convert.safetensors_files import INDEX, OUTPUT, SINGLE, SafetensorsFiles
from megacode.convert.texts import texts_of
from megacode.convert.verify import Claim, Report, prove, same_output

log = logging.getLogger(__name__)


def from_hf(model_dir: Path, out: Path) -> Report:
    """Convert a Hugging Face model to a checkpoint, and verify it.

    Args:
        model_dir: a directory with config.json, safetensors and tokenizer.json.
        out: the checkpoint to publish; it must not exist. Its `model.yaml` is a base for runs' configs.

    Returns:
        The result of the verification.

    Raises:
        CheckpointError: there is no such model, megacode does not support it, or `out` exists.
        VerificationError: the checkpoint does not compute the same as the model; nothing is published.
    """
    document, raw, where = _document(model_dir)
    if out.exists():
        raise CheckpointError("it already exists", str(out), "choose a directory that does not exist")
    refuse_unwritable(out, "OUT", directory=True)
    model, vocab = model_of(document, raw, where), document["vocab_size"]
    tensors = _tensors(model_dir, model, family_of_document(raw, where).architecture)
    with claimed(out, "OUT", new=True), atomic_path(out) as hidden:
        hidden.mkdir(parents=True)
        initial_checkpoint.copy_tokenizer(model_dir, hidden)
        config = initial_checkpoint.config_of(model, vocab, document["max_position_embeddings"], model_dir, hidden)
        initial_checkpoint.write(
            (tensor for _, tensor in mapped(tensors, model, Sizes.of(model, vocab))), config, hidden
        )
        # Verified through the reader that training uses, not through what is still in memory.
        source, dtype = OpenedCheckpoint.open(hidden), tensors[next(iter(tensors))].dtype
        facts = (source.label, source.config, source.path, source.tokenizer, texts_of(source), dtype)
        # The roles are swapped here: the public model plays the export of the new checkpoint.
        report = prove(Claim(*facts), model_dir)
        # From here on the checkpoint names its final path, so nothing may read the old one.
        initial_checkpoint.settle(config, hidden, out)
    return report


def _tensors(model_dir: Path, model: ModelConfig, architecture: str) -> SafetensorsFiles:
    """Return the tensors that transformers uses, from intact files.

    Raises:
        CheckpointError: a file is corrupted, or contains a separate output layer although the config ties it.
    """
    surplus = ignored(SafetensorsFiles(model_dir), architecture)
    if surplus:
        log.info("skipping %d tensors that transformers ignores too: %s, ...", len(surplus), surplus[0])
    tied = model.share_embeddings_and_output_weights
    # Two versions of transformers would load two different models here, so the user decides.
    if tied and not same_output(SafetensorsFiles(model_dir)):
        fix = (
            "set tie_word_embeddings to false in config.json to keep that output layer (transformers 5 does), "
            "or remove it from the files to use the embedding (earlier ones do)"
        )
        message = f"tie_word_embeddings is true, and {OUTPUT} in the files differs from the embedding"
        raise CheckpointError(message, str(model_dir), fix)
    return SafetensorsFiles(model_dir, tied=tied, left_out=surplus)


def _document(model_dir: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return config.json as transformers parses it, as it is, and its path, after checking that all files exist."""
    needed = ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (model_dir / name).is_file()]
    # Either one file, or an index that names several.
    if not any((model_dir / name).is_file() for name in (SINGLE, INDEX)):
        missing.append(SINGLE)
    if missing:
        fix = "give the directory of a downloaded model: safetensors, config.json and tokenizer.json"
        raise CheckpointError(problems=[Problem(f"there is no {name}", str(model_dir), fix) for name in missing])
    where = model_dir / "config.json"
    raw = read_object(where)
    return parsed_config(raw, str(where)), raw, str(where)
