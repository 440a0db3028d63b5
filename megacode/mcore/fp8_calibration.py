"""Find the first scales of FP8 with delayed scaling, from one micro-batch that is computed but not learned from.

Delayed scaling chooses scales from earlier micro-batches. Before the first one, scales are 1: most gradients underflow
in FP8, and the first update is computed from the rest. If a phase with FP8 follows one without, at full learning rate,
the loss jumps.
"""

from __future__ import annotations

from megacode.mcore import checkpoint_pieces, optimizer
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import backward


def calibrate(rank_model: RankModel, microbatch: MicroBatch, num_sources: int) -> None:
    """Set every matrix's scales from the size of its operands; called by all ranks, between iterations.

    Costs a forward and a backward pass of the micro-batch. Weights do not change, gradients are discarded, random
    states are restored.

    Args:
        rank_model: of `build`, with an optimizer, computing with delayed scaling.
        microbatch: one of this data-parallel rank's, whole sequences.
        num_sources: number of sources.
    """
    random_states = checkpoint_pieces.random_states(rank_model)
    backward(rank_model, [microbatch], num_sources)
    checkpoint_pieces.set_random_states(rank_model, random_states)
    # Weights held in FP8 were rounded with scales of 1: round them again, with the scales that are known now.
    optimizer.restore_weights(rank_model.chunks, rank_model.optimizer)
