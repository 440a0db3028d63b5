"""Initial weights that depend on the seed and on nothing else: not on the layout, nor on padding.

Every matrix is drawn whole from a generator of its own, keyed by (seed, name), and each rank keeps its slice. So one
process and 512 GPUs start from the same model, where mcore's own way gives each layout another. The price: a rank
draws the whole of each matrix of which it keeps a part, tensor-parallel-size times more than it needs, once a run.

Normal(0, std), and std / sqrt(2 * num_layers) for the matrices that write into the residual stream. Source: Radford et
al., Language Models are Unsupervised Multitask Learners (2019), section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, apply_factories
from megatron.core.fp8_utils import is_float8tensor
from torch import Tensor

from megacode.base.files import digest
from megacode.config.run import RunConfig
from megacode.mcore import device
from megacode.mcore.sharding import VOCABULARY

_INTO_THE_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def initialize(config: RunConfig, vocab_size: int, sharded_states: Sequence[dict[str, Any]]) -> None:
    """Fill a model's parameters in place.

    Args:
        config: names the seed, the standard deviation and the number of layers.
        vocab_size: tokens; rows of the embedding beyond them become zero.
        sharded_states: mcore's sharded state dict of each chunk that this rank holds; its tensors are the parameters.
    """
    for shard in _shards(sharded_states):
        rows = vocab_size if shard.key.endswith(VOCABULARY) else shard.global_shape[0]
        whole = torch.zeros(shard.global_shape, device=shard.data.device)
        _draw(config, shard.key, whole[:rows])
        region = tuple(slice(at, at + n) for at, n in zip(shard.global_offset, shard.local_shape, strict=True))
        shard.data.copy_(whole[region])


def _shards(sharded_states: Sequence[dict[str, Any]]) -> Iterator[ShardedTensor]:
    """Yield what is to be filled; a matrix held in FP8 is given its values once all of them are there."""
    for state in sharded_states:
        for entry in state.values():
            if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                continue
            parameter = entry.data
            held = is_float8tensor(parameter)
            data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device) if held else parameter
            copy = {"entry": replace(entry, data=data)}
            apply_factories(copy)
            yield from (value for value in nested_values(copy) if isinstance(value, ShardedTensor))
            if held:
                _forget_largest(parameter)
                parameter.copy_(data)
                # The optimizer's masters begin with these, not with what FP8 made of them.
                parameter._high_precision_init_val = data.cpu()


def _forget_largest(parameter: Tensor) -> None:
    """Forget the largest value yet, with delayed scaling: that of the memory which the parameter was built in.

    It would decide the scale of a thousand iterations to come, and weights would fall below what FP8 can hold.
    """
    largest = getattr(parameter._quantizer, "amax", None)
    if largest is not None:
        largest.zero_()


def _draw(config: RunConfig, name: str, weight: Tensor) -> None:
    if weight.dim() == 1:
        weight.fill_(1.0)
        return
    std = config.model.init_method_std
    if name.endswith(_INTO_THE_RESIDUAL):
        std /= math.sqrt(2 * config.model.num_layers)
    generator = torch.Generator(device=device.device())
    generator.manual_seed(int(digest("initial weights", str(config.seed), name)[:15], 16))
    weight.normal_(0.0, std, generator=generator)
