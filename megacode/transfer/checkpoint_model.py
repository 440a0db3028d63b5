"""A checkpoint of any layout as a model with its optimizer, on one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megacode.base.errors import CheckpointError
from megacode.checkpoint import tensors
from megacode.checkpoint.index import Index
from megacode.checkpoint.store import find_checkpoint
from megacode.config.run import RunConfig
from megacode.config.training import Parallel, Precision
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.data.windows import vocabulary_size
from megacode.mcore import groups
from megacode.mcore.build import build
from megacode.mcore.optimizer_state import MOMENTS
from megacode.mcore.rank_model import RankModel


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Open a checkpoint, or the newest one of a run directory.

    Raises:
        CheckpointError: there is none; a Hugging Face model is none either.
    """
    # Asked first: else an export would be told only that there is no checkpoint in it.
    if (path / "config.json").is_file():
        fix = "give the run or checkpoint it was exported from; without one: megacode convert from-hf, and --plain"
        raise CheckpointError("this is a Hugging Face model, not a checkpoint", str(path), fix)
    return OpenedCheckpoint.open(find_checkpoint(path))


def check_moments(checkpoint: Path) -> None:
    """Refuse a checkpoint without second moments: how the optimizer would scale a step is not known.

    Raises:
        CheckpointError: it holds weights only.
    """
    # Names alone tell: the index is small, and no tensor is read.
    if not any(name.startswith(f"{MOMENTS[1]}.") for name in Index.read(checkpoint).tensors):
        message = "it holds weights only, no second moments, so the optimizer's step is not known"
        fix = "give --plain to measure steps along the plain gradient, or a checkpoint of training"
        raise CheckpointError(message, str(checkpoint), fix)


def _alone(config: RunConfig) -> RunConfig:
    """Return a run's config for one process: without FP8, states in fp32; on a CPU in fp32 altogether."""
    dtype = config.precision.dtype if torch.cuda.is_available() else "fp32"
    engine = config.precision.transformer_impl if torch.cuda.is_available() else "local"
    # Tensors load into any layout. Recomputation stays: it decides whether the activations fit.
    parallel = Parallel(distributed_optimizer=False, recompute=config.parallel.recompute)
    phases = tuple(phase.model_copy(update={"fp8": None}) for phase in config.phases)
    precision = Precision(dtype=dtype, transformer_impl=engine)
    return config.model_copy(update={"parallel": parallel, "precision": precision, "phases": phases})


@contextmanager
def loaded(source: OpenedCheckpoint, plain: bool) -> Iterator[RankModel]:
    """Yield a checkpoint's model with its optimizer in this process, on its GPU if there is one.

    Takes what training takes on one rank: weights, fp32 masters and gradients, and two moments.

    Args:
        source: the checkpoint.
        plain: do without the optimizer's state.
    """
    config = _alone(source.config)
    ranks = groups.start(config.parallel, config.seed)
    try:
        rank_model = build(config, ranks, vocabulary_size(config))
        tensors.load(rank_model, source.path, weights_only=plain)
        yield rank_model
    finally:
        # Also after an error: the groups belong to the whole process, which may open another checkpoint.
        groups.stop()
