"""Draw initial weights that depend only on the seed, and not on the layout or on padding.

Every matrix is drawn whole from its own generator, keyed by (seed, name), and each rank keeps its slice. So one process
and 512 GPUs start from the same model; with mcore's initialization each layout starts from another one. The cost: a
rank draws whole matrices, tensor-parallel-size times more than it needs, once per run.

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
        config: has the seed, the standard deviation and the number of layers.
        vocab_size: tokens in the vocabulary; rows of the embedding after them become zero.
        sharded_states: mcore's sharded state dict of each chunk that this rank holds; its tensors are the parameters.
    """
    for shard in _shards(sharded_states):
        rows = vocab_size if shard.key.endswith(VOCABULARY) else shard.global_shape[0]
        # One whole matrix at a time. CPU and CUDA generators differ, so equal weights need the same kind of device.
        whole = torch.zeros(shard.global_shape, device=shard.data.device)
        _draw(config, shard.key, whole[:rows])
        region = tuple(slice(first, first + n) for first, n in zip(shard.global_offset, shard.local_shape, strict=True))
        shard.data.copy_(whole[region])


def _shards(sharded_states: Sequence[dict[str, Any]]) -> Iterator[ShardedTensor]:
    """Yield the shards to fill; a matrix stored in FP8 is set from a plain copy once that is complete."""
    for state in sharded_states:
        for entry in state.values():
            if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                continue
            parameter = entry.data
            is_fp8 = is_float8tensor(parameter)
            data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device) if is_fp8 else parameter
            # The stacked gate and up projections become two shards, each drawn whole under the same name.
            copy = {"entry": replace(entry, data=data)}
            apply_factories(copy)
            yield from (value for value in nested_values(copy) if isinstance(value, ShardedTensor))
            if is_fp8:
                _forget_largest(parameter)
                parameter.copy_(data)
                # mcore starts the optimizer's fp32 masters from these values, not from the rounded ones.
                parameter._high_precision_init_val = data.cpu()


def _forget_largest(parameter: Tensor) -> None:
    """With delayed scaling, reset the recorded maximum: it is that of the uninitialized memory of the parameter.

    Otherwise it would determine the scale for about a thousand iterations, and weights would underflow in FP8.
    """
    largest = getattr(parameter._quantizer, "amax", None)
    if largest is not None:
        largest.zero_()


def _draw(config: RunConfig, name: str, weight: Tensor) -> None:
    if weight.dim() == 1:  # norms and biases
        weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    std = config.model.init_method_std
    if name.endswith(_INTO_THE_RESIDUAL):
        std /= math.sqrt(2 * config.model.num_layers)
    generator = torch.Generator(device=device.device())
    seed = config.seed if config.model.init_seed is None else config.model.init_seed
    generator.manual_seed(int(digest("initial weights", str(seed), name)[:15], 16))
    weight.normal_(0.0, std, generator=generator)
