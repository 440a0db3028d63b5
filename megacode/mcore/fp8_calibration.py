"""The first scales of FP8 with delayed scaling, from one micro-batch that is computed and not learned from.

Delayed scaling rounds by what earlier micro-batches showed. Before the first one there is nothing to go by, and scales
of 1: gradients fall below what FP8 can hold, and the first update is made of what is left of them. That is a jump where
a phase with FP8 follows one without, at full learning rate.
"""

from __future__ import annotations

from megacode.mcore import checkpoint_pieces, optimizer
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import backward


def calibrate(rank_model: RankModel, microbatch: MicroBatch, num_sources: int) -> None:
    """Let every matrix learn the size of its operands; to be called by all ranks, between iterations.

    Costs a forward and a backward pass of the micro-batch. Weights stay as they are, gradients are thrown away, random
    states are put back.

    Args:
        rank_model: of `build`, with an optimizer, computing with delayed scaling.
        microbatch: one of this data-parallel rank's, whole sequences.
        num_sources: number of sources.
    """
    random_states = checkpoint_pieces.random_states(rank_model)
    backward(rank_model, [microbatch], num_sources)
    checkpoint_pieces.set_random_states(rank_model, random_states)
    optimizer.restore_weights(rank_model.chunks, rank_model.optimizer)  # rounded anew, by the scales that are known now
