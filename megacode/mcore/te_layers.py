"""The transformer block of Transformer Engine's layers: the same two orders, names and checkpoints as `layers`.

sequential  norm and the projection after it are one kernel (RMSNorm), and each linear layer owns its collectives,
            which Transformer Engine carries out in FP8 where it can
parallel    the norm feeds two projections, so it stands alone; the block enters and leaves the tensor-parallel region
            once for both, as in `layers`

Attention and SwiGLU are Transformer Engine's kernels, rotary positions and the parallel block's norm are ours. Under
context parallel attention is ours too: it gathers keys and values, knows documents there, and has been tested rank
against rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TERowParallelLinear,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from transformer_engine.common.recipe import Float8CurrentScaling, Format
from transformer_engine.pytorch import Linear, fp8_autocast

from megacode.config.model import ModelConfig
from megacode.mcore import device
from megacode.mcore.attention import CausalSelfAttention, Documents
from megacode.mcore.layers import Block, Norm, OutputLayer, ParallelBlock, SequentialBlock, entered
from megacode.mcore.te_kernels import Fork, GatedLinearUnit, Quantizers, RotarySplit, Sum

# Where a fused norm keeps its weight, and its name where it stands alone: checkpoints know the latter.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class _Slice(Linear):
    """This rank's slice of a matrix; the block owns the collectives.

    Attributes:
        is_first_microbatch: mcore sets it: the weights have changed, and their FP8 copy is made again.
    """

    cut = 0

    def __init__(self, input_size: int, output_size: int, *, config: Any, tp_group: Any, **unused: Any) -> None:
        sides = [output_size, input_size]
        sides[self.cut] //= tp_group.size()
        super().__init__(
            sides[1],
            sides[0],
            bias=False,
            params_dtype=config.params_dtype,
            device=device.device(),
            init_method=config.init_method,
        )
        # Transformer Engine knows of no slices here; mcore asks these of every parameter, for the gradients' norm.
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, self.cut
        self.is_first_microbatch, self._group = True, tp_group

    def forward(self, x: Tensor, *unused: Any, **also_unused: Any) -> tuple[Tensor, None]:
        """Return the product with this rank's slice, and no bias."""
        first, self.is_first_microbatch = self.is_first_microbatch, False
        return super().forward(x, is_first_microbatch=first), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Return mcore's description of the slice."""
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {"weight": self.cut},
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class ColumnSlice(_Slice):
    """This rank's columns of a matrix: rows of its weight [out, in]."""


class RowSlice(_Slice):
    """This rank's rows of a matrix: columns of its weight [out, in]."""

    cut = 1


class EngineSelfAttention(CausalSelfAttention):
    """Our self-attention with Transformer Engine's kernels between the projections."""

    def _core(self, packed: Documents | None, mixed: Tensor, table: Tensor) -> Tensor:
        """Return [s, b, heads * channels]; see `CausalSelfAttention._core`."""
        if self.pg_collection.cp.size() > 1:
            return super()._core(packed, mixed, table)
        if packed is not None:
            table = table[packed.positions]
        size = self.hidden_size_per_attention_head
        grouped = mixed.view(*mixed.shape[:2], self.num_query_groups_per_partition, -1, size)
        query, key, value = RotarySplit.apply(grouped, table)
        if packed is None:
            return self.core_attention(query, key, value, None, attn_mask_type=AttnMaskType.causal)
        flat = (part.squeeze(1) for part in (query, key, value))
        attended = self.core_attention(*flat, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=packed)
        return attended.view(*mixed.shape[:2], -1)


class _EngineBlock(Block):
    """What both orders share."""

    def _activated(self, both: Tensor) -> Tensor:
        return GatedLinearUnit.apply(both, Quantizers.between(self.mlp.linear_fc1, self.mlp.linear_fc2))


class EngineSequentialBlock(_EngineBlock, SequentialBlock):
    """Attention, then MLP; the linear layers own norms and collectives."""

    def _enter(self, x: Tensor) -> Tensor:
        return x

    def _leave(self, x: Tensor) -> Tensor:
        return x


class ForkedNorm(torch.nn.Module):
    """The norm of a parallel block, which hands on the residual too, see `engine_kernels.Fork`; weight only.

    A module of its own, since mcore waits for parameters that are still being gathered when a module is called.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel  # see `layers.Norm`
        self._eps, self._centred = eps, config.normalization == "LayerNorm"

    def forward(self, x: Tensor, branches: int) -> tuple[Tensor, ...]:
        """Return x, and its norm for each of the branches, [s, b, h]."""
        return Fork.apply(x, self.weight, self._eps, self._centred, branches)


class EngineParallelBlock(_EngineBlock, ParallelBlock):
    """Attention and MLP at once, from one norm."""

    def _output(self, hidden_states: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        if self.tp_group.size() == 1 and not (self.hidden_dropout > 0.0 and self.training):
            residual, one, other = self.input_layernorm(hidden_states, branches=2)
            return Sum.apply(residual, attention(one), self._mlp(other))
        residual, normed = self.input_layernorm(hidden_states, branches=1)
        normed = self._enter(normed)
        return self._add(residual, attention(normed) + self._mlp(normed))


class EngineOutputLayer(OutputLayer):
    """Our output layer, which multiplies in FP8 where the recipe asks for it, with scales of the tensors as they are.

    The weight may be the embedding's, so the linear layer that quantizes it owns none and is no part of the model.

    Attributes:
        is_first_microbatch: see `_Slice`.
    """

    is_first_microbatch = True

    def forward(self, input_: Tensor, weight: Tensor | None = None, **unused: Any) -> tuple[Tensor, None]:
        """Return the logits of this rank's part of the vocabulary; `weight` is the embedding's where they are tied."""
        if not (self.config.fp8 and self.config.fp8_output_layer):
            return super().forward(input_, weight)
        x = entered(input_, self.tp_group, self.config.sequence_parallel)
        linear = self._linear(self.weight if weight is None else weight)
        first, self.is_first_microbatch = self.is_first_microbatch, False
        recipe = Float8CurrentScaling(fp8_format=Format.HYBRID if self.config.fp8 == "hybrid" else Format.E4M3)
        with fp8_autocast(enabled=True, fp8_recipe=recipe):
            return linear(x, is_first_microbatch=first), None

    def _linear(self, weight: Tensor) -> Linear:
        kept: list[Linear] = self.__dict__.setdefault("_fp8_linear", [])
        if not kept:
            rows, columns = weight.shape
            linear = Linear(columns, rows, bias=False, params_dtype=weight.dtype, device="meta")
            linear.weight, linear.fuse_wgrad_accumulation = weight, True
            kept.append(linear)
        return kept[0]


def block_spec(model: ModelConfig, config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Return what mcore builds the layers of this pipeline rank's chunk from."""
    parallel = model.block == "parallel"
    # Transformer Engine's fused LayerNorm has a bias, which our models have not.
    fused = not parallel and model.normalization == "RMSNorm"
    columns: type[torch.nn.Module] = ColumnSlice if parallel else TEColumnParallelLinear
    if fused:
        columns = TELayerNormColumnParallelLinear
    rows = RowSlice if parallel else TERowParallelLinear
    attention = ModuleSpec(
        module=EngineSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(linear_qkv=columns, core_attention=TEDotProductAttention, linear_proj=rows),
    )
    layer = ModuleSpec(
        module=EngineParallelBlock if parallel else EngineSequentialBlock,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp if fused else ForkedNorm if parallel else Norm,
            self_attention=attention,
            pre_mlp_layernorm=IdentityOp if fused or parallel else Norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=columns, linear_fc2=rows)),
            sharded_state_dict_keys_map=_FUSED_NORMS if fused else {},
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=Norm)
