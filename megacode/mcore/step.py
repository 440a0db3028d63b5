"""One iteration: forward and backward passes over all micro-batches, then an optimizer step; also evaluation.

The loss of an iteration is the mean over the valid tokens of the whole global batch, and so is its gradient. Every
rank backpropagates the *sum* over its tokens, and divides its optimizer's share once by the number of tokens of all
ranks. Losses per source are summed on the device in fp64 and fetched once per iteration; no micro-batch waits for the
host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.mcore import context, device, fp8_scales, gradients, optimizer
from megacode.mcore.groups import Ranks
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import bare
from megacode.plan.batch import samples_digest

Accepts = Callable[[float, float], bool]
_SUMS = 6  # rows of the sums by source: losses, tokens, samples, digests, tokens of fill in the middle, z-losses


@dataclass(frozen=True)
class Losses:
    """Sums over the sequences of all ranks, by source number; equal on every rank.

    Attributes:
        loss_sum: summed loss of the valid tokens, in nats.
        tokens: number of valid tokens.
        samples: number of sequences.
        digest: `samples_digest` of the sequences, summed over all sources.
        fim_tokens: number of tokens that are read with fill in the middle.
        z_loss_sum: summed z-loss of the valid tokens of all sources; 0 without a z-loss.
    """

    loss_sum: list[float]
    tokens: list[int]
    samples: list[int]
    digest: int
    fim_tokens: list[int] = field(default_factory=list)
    z_loss_sum: float = 0.0

    @property
    def loss(self) -> float:
        """The mean over all valid tokens; nan where there are none."""
        count = sum(self.tokens)
        return sum(self.loss_sum) / count if count else float("nan")


@dataclass(frozen=True)
class StepResult:
    """The result of one iteration; equal on every rank.

    Attributes:
        loss: mean over the valid tokens of the global batch, in nats.
        loss_sum_by_source, tokens_by_source, samples_by_source: the same by source number, as sums and counts.
        fim_tokens_by_source: tokens that were read with fill in the middle, by source number.
        samples_digest: sum of `plan.batch.samples_digest` over the samples, which identifies the set of them.
        grad_norm: global norm of the gradient before clipping; nan if it is not finite.
        skipped: the parameters were not updated: loss or gradient were not finite, or `accepts` returned False.
        z_loss: mean z-loss over the valid tokens, which is trained on but not part of `loss`; 0 without one.
    """

    loss: float
    loss_sum_by_source: list[float]
    tokens_by_source: list[int]
    samples_by_source: list[int]
    fim_tokens_by_source: list[int]
    samples_digest: int
    grad_norm: float
    skipped: bool
    z_loss: float = 0.0


def train_step(
    rank_model: RankModel,
    microbatches: Sequence[MicroBatch],
    learning_rate: float,
    num_sources: int,
    accepts: Accepts | None = None,
) -> StepResult:
    """Train one iteration; parameters are never updated by a loss or gradient that is not finite.

    Args:
        rank_model: of `build`, with an optimizer.
        microbatches: of this data-parallel rank, all of one shape, equally many on every rank; whole sequences, of
            which each context-parallel rank takes its part.
        learning_rate: of this step.
        num_sources: number of sources; `source_ids` are below it.
        accepts: decides, given a finite loss and gradient norm, whether to update the parameters; None: always.
    """
    gradients.begin()
    losses = backward(rank_model, microbatches, num_sources)
    optimizer.set_learning_rate(rank_model.optimizer, learning_rate)
    norm = optimizer.measure(rank_model.optimizer, sum(losses.tokens))
    # Loss and norm are equal on every rank, so this decision needs no collective; `accepts` must keep it so.
    wanted = math.isfinite(losses.loss) and math.isfinite(norm) and (accepts is None or accepts(losses.loss, norm))
    if wanted:
        optimizer.update(rank_model.optimizer, norm, rank_model.config.train.clip_grad)
    return StepResult(
        loss=losses.loss,
        loss_sum_by_source=losses.loss_sum,
        tokens_by_source=losses.tokens,
        samples_by_source=losses.samples,
        fim_tokens_by_source=losses.fim_tokens,
        samples_digest=losses.digest,
        grad_norm=norm,
        skipped=not wanted,
        z_loss=losses.z_loss_sum / max(sum(losses.tokens), 1),
    )


def backward(rank_model: RankModel, microbatches: Sequence[MicroBatch], num_sources: int) -> Losses:
    """Return the losses; the reduced gradient of their sum is then in mcore's buffers. Arguments as in `train_step`."""
    _begin_backward(rank_model)
    whole = _in_groups(rank_model, microbatches)
    return _summed(rank_model, _run(rank_model, whole, num_sources, forward_only=False), num_sources)


def backward_as_evaluated(rank_model: RankModel, microbatches: Sequence[MicroBatch], num_sources: int) -> Losses:
    """As `backward`, of the losses that `evaluate` returns: without dropout and z-loss."""
    _begin_backward(rank_model)
    whole = _in_groups(rank_model, microbatches)
    with _as_evaluated(rank_model):
        sums = _run(rank_model, whole, num_sources, forward_only=False)
    return _summed(rank_model, sums, num_sources)


def _begin_backward(rank_model: RankModel) -> None:
    # Both: DDP's buffers accumulate over micro-batches, and the optimizer holds `grad`s of the last step.
    for chunk in rank_model.chunks:
        _set_mode(chunk, training=True)
        chunk.zero_grad_buffer()
    rank_model.optimizer.zero_grad()


@contextmanager
def _as_evaluated(rank_model: RankModel) -> Iterator[None]:
    """Compute without dropout and z-loss, and recompute activations as in training."""
    model = rank_model.config.model
    for chunk in rank_model.chunks:
        bare(chunk).z_loss = 0.0
        if model.hidden_dropout or model.attention_dropout:
            chunk.eval()
            # mcore recomputes whole blocks only in training, and would otherwise need far more memory here.
            bare(chunk).decoder.training = True
    try:
        yield
    finally:
        for chunk in rank_model.chunks:
            bare(chunk).z_loss = rank_model.config.train.z_loss
            chunk.train()


@torch.no_grad()
def evaluate(rank_model: RankModel, microbatches: Sequence[MicroBatch], num_sources: int) -> Losses:
    """Return the losses of micro-batches, without gradients and dropout; arguments as in `train_step`."""
    for chunk in rank_model.chunks:
        _set_mode(chunk, training=False)
    # Validation data must not affect the scales of later training, or a run would depend on how often it validates.
    remembered = fp8_scales.snapshot(rank_model)
    sums = _run(rank_model, _in_groups(rank_model, microbatches), num_sources, forward_only=True)
    fp8_scales.put_back(remembered)
    return _summed(rank_model, sums, num_sources)


def _in_groups(rank_model: RankModel, microbatches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Return the micro-batches, padded to a multiple of the pipeline size, as the interleaved schedule requires."""
    missing = -len(microbatches) % rank_model.ranks.pp_size if len(rank_model.chunks) > 1 else 0
    return [*microbatches, *(_filler(microbatches[0]) for _ in range(missing))]


def _filler(like: MicroBatch) -> MicroBatch:
    """Return a micro-batch that counts nowhere: no valid token, and no source."""
    nothing = {"loss_mask": torch.zeros_like(like.loss_mask), "source_ids": torch.full_like(like.source_ids, -1)}
    return replace(like, **nothing)


@torch.no_grad()
def logits(rank_model: RankModel, tokens: Tensor) -> Tensor:
    """Return the logits of some sequences, whole and on every rank.

    Args:
        rank_model: of `build`.
        tokens: [b, s] int64, the same on every rank; s is divisible as the layout requires of `seq_length`.

    Returns:
        [b, s, vocab_size] fp32 on this rank's device, without the padding.
    """
    for chunk in rank_model.chunks:
        _set_mode(chunk, training=False)
    tokens = device.to_device(tokens)
    # The interleaved schedule needs at least one micro-batch per pipeline rank; here all of them are the same.
    count = rank_model.ranks.pp_size if len(rank_model.chunks) > 1 else 1
    part = context.own(tokens, rank_model.ranks.cp_size, rank_model.ranks.cp_rank, dim=1)
    outputs = _schedule(rank_model, partial(_forward_logits, part), count, tuple(tokens.shape), True, collect=True)
    # Only the last stage has outputs; the other stages receive them by broadcast.
    whole = outputs[0] if outputs else torch.empty(*tokens.shape, rank_model.vocab_size, device=tokens.device)
    _from_last_stage(rank_model, whole)
    return whole


def _set_mode(chunk: Any, training: bool) -> None:
    """Turn dropout on or off; visiting all modules costs as much as a small layer, so only if it changes."""
    if chunk.training != training:
        chunk.train(training)


def _forward_logits(tokens: Tensor, iterator: Any, chunk: Any) -> tuple[Tensor, Any]:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    def gathered(output: Tensor, non_loss_data: bool = True) -> Tensor:
        # First the slices of the vocabulary, then the parts of the sequence; padding is cut off in between.
        part = gather_from_tensor_model_parallel_region(output.float())[..., : _vocab_size(chunk)]
        return context.gathered(part.contiguous(), parallel_state.get_context_parallel_group(), dim=1)

    return chunk(tokens, None, None), gathered


def _vocab_size(chunk: Any) -> int:
    return int(bare(chunk).tokens)


def _run(
    rank_model: RankModel, microbatches: Sequence[MicroBatch], num_sources: int, forward_only: bool
) -> list[Tensor]:
    """Run the micro-batches through the pipeline; return the sums of `_losses` for each, on the last stage only."""
    # mcore sizes the activations that it sends between stages by this shape, the same for every micro-batch.
    batch, length = microbatches[0].tokens.shape
    packed = microbatches[0].cu_seqlens is not None
    shape = (1, batch * length) if packed else (batch, length)
    forward = partial(_forward, rank_model.ranks, num_sources)
    return _schedule(rank_model, forward, len(microbatches), shape, forward_only, microbatches)


def _schedule(
    rank_model: RankModel,
    forward: Any,
    count: int,
    shape: tuple[int, ...],
    forward_only: bool,
    microbatches: Sequence[Any] = (None,),
    collect: bool = False,
) -> list[Tensor]:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    # Each chunk reads all micro-batches in order, so each has its own iterator.
    iterators: list[Iterator[Any]] = [iter(microbatches) for _ in rank_model.chunks]
    single = len(rank_model.chunks) == 1
    return get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iterators[0] if single else iterators,
        model=rank_model.chunks[0] if single else rank_model.chunks,
        num_microbatches=count,
        micro_batch_size=shape[0],
        seq_length=shape[1],
        forward_only=forward_only,
        collect_non_loss_data=collect,
    )


def _forward(ranks: Ranks, num_sources: int, iterator: Iterator[MicroBatch], chunk: Any) -> tuple[Tensor, Any]:
    """Run one micro-batch through one chunk: mcore's `forward_step_func`, which returns output and loss function."""
    # All stages get tokens and labels; mcore uses tokens on the first one and labels on the last one only.
    batch = next(iterator)
    tokens, labels = _part(ranks, batch.tokens), _part(ranks, batch.labels)
    packed = None
    if batch.cu_seqlens is not None:
        from megacode.mcore.attention import documents

        packed = documents(batch.cu_seqlens, len(batch.tokens), ranks.cp_size, ranks.cp_rank)
        tokens, labels = tokens.view(1, -1), labels.view(1, -1)
    if bare(chunk).engine:
        labels = _counted(ranks, batch, labels)
    output = chunk(tokens, None, None, labels=labels, packed_seq_params=packed)
    return output, partial(_losses, ranks, batch, num_sources)


def _counted(ranks: Ranks, batch: MicroBatch, labels: Tensor) -> Tensor:
    """Return the labels, with `IGNORED` for tokens that do not count."""
    from megacode.mcore.te_kernels import IGNORED

    return labels.masked_fill(_part(ranks, batch.loss_mask).view_as(labels) == 0, IGNORED)


def _part(ranks: Ranks, whole: Tensor) -> Tensor:
    """Return this rank's part of [b, s]: [b, s / context-parallel size], on its device."""
    return device.to_device(context.own(whole, ranks.cp_size, ranks.cp_rank, dim=1))


def _losses(ranks: Ranks, batch: MicroBatch, num_sources: int, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum to backpropagate, the number of valid tokens, and [6, num_sources + 1] fp64 sums by source.

    Its rows are losses, tokens, samples, digests, tokens of fill in the middle and z-losses; the last column collects
    rows without a source. Losses and tokens are those of this rank's part of the sequences. The others are counted by
    the first context-parallel rank only.
    """
    mask = _part(ranks, batch.loss_mask)
    # [1, b, s], or [2, b, s] with z-losses.
    masked = losses.float().reshape(-1, *mask.shape) * mask
    # fp64 sums hardly depend on the order of addition, so reported losses agree between layouts.
    rows = torch.stack((*masked.detach(), mask)).sum(2, dtype=torch.float64)
    digests = batch.digests
    if digests is None:
        digests = device.to_device(torch.from_numpy(samples_digest(batch.samples.numpy())))
    ones = torch.ones_like(rows[0])
    fim = torch.zeros_like(ones) if batch.fim_tokens is None else device.to_device(batch.fim_tokens)
    counts = torch.stack((ones, digests, fim)) * (ranks.cp_rank == 0)
    sources = device.to_device(batch.source_ids) % (num_sources + 1)  # -1 becomes the last column
    sums = torch.zeros(_SUMS, num_sources + 1, dtype=torch.float64, device=rows.device)
    # Without z-losses their row is last, and stays zero: nothing is computed for it.
    parts = torch.cat((rows[:1], rows[-1:], counts, rows[1:-1]))
    sums[: len(parts)].index_add_(1, sources, parts)
    return masked.sum(), rows[-1].sum().int(), sums


def _summed(rank_model: RankModel, sums_by_micro_batch: list[Tensor], num_sources: int) -> Losses:
    """Sum over micro-batches and over data- and context-parallel ranks, then broadcast to every pipeline stage."""
    from megatron.core import parallel_state

    sums = torch.zeros(_SUMS, num_sources + 1, dtype=torch.float64, device=device.device())
    if sums_by_micro_batch:
        sums = torch.stack(sums_by_micro_batch).sum(0)
        if rank_model.ranks.dp_size * rank_model.ranks.cp_size > 1:
            dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    _from_last_stage(rank_model, sums)
    # Here the host waits for the device: all numbers of the iteration come over in one copy.
    loss_sum, tokens, samples, digests, fim, z_losses = sums[:, :num_sources].tolist()
    valid, sequences, of_fim = ([int(n) for n in column] for column in (tokens, samples, fim))
    return Losses(loss_sum, valid, sequences, int(sum(digests)), of_fim, sum(z_losses))


def _from_last_stage(rank_model: RankModel, tensor: Tensor) -> None:
    from megatron.core import parallel_state

    if rank_model.ranks.pp_size > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(tensor, src=last, group=parallel_state.get_pipeline_model_parallel_group())
