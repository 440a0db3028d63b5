"""Find the first scales of FP8 with delayed scaling, from one micro-batch that is computed but not learned from.

Delayed scaling takes its scales from the maxima of earlier micro-batches. Before the first one, all scales are 1:
gradients underflow in FP8, and the first update consists of what is left of them. The loss then jumps where a phase
with FP8 follows one without, at full learning rate.
"""

from __future__ import annotations

from megacode.mcore import checkpoint_pieces, optimizer
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import backward


def calibrate(rank_model: RankModel, microbatch: MicroBatch, num_sources: int) -> None:
    """Give every matrix the scales of its operands; called by all ranks, between iterations.

    Costs a forward and a backward pass of the micro-batch. Weights stay unchanged, gradients are discarded, and random
    states are restored.

    Args:
        rank_model: of `build`, with an optimizer, computing with delayed scaling.
        microbatch: one of this data-parallel rank's, whole sequences.
        num_sources: number of sources.
    """
    random_states = checkpoint_pieces.random_states(rank_model)
    # The next iteration zeroes the gradient buffers first, so what this leaves in them is never applied.
    backward(rank_model, [microbatch], num_sources)
    checkpoint_pieces.set_random_states(rank_model, random_states)
    # Weights held in FP8 were rounded by the old scales: round them again from the fp32 masters.
    optimizer.restore_weights(rank_model.chunks, rank_model.optimizer)
