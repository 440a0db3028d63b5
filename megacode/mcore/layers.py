"""The transformer block: norms, linear layers, and the two orders of attention and MLP.

sequential  x + attention(norm(x)), then the same with the MLP and a norm of its own
parallel    x + attention(norm(x)) + mlp(norm(x)), one norm, both at once. Source: GPT-J (Wang and Komatsuzaki, 2021)

Tensor parallel cuts each pair of matrices into columns, then rows, and needs one collective on the way in (backward)
and one on the way out (forward). In the sequential block the linear layers own them, as in mcore. In the parallel
block both branches read the same input and are added anyway, so their collectives merge: the linear layers compute
nothing but their slice, and the block enters and leaves the tensor-parallel region once: half the collectives.

Where there is no tensor parallel a linear layer is torch's own, which is faster than mcore's autograd function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megacode.config.model import ModelConfig
from megacode.mcore.attention import CausalSelfAttention


class Norm:
    """RMSNorm or LayerNorm, weight only, as mcore's specs build them.

    The weight is marked `sequence_parallel`: each rank then sees a slice of the sequence only, and mcore must add up
    the ranks' gradients. Without the mark a run goes on and learns slightly wrong (7e-4 in the loss after 20 steps).
    mcore's own wrapper refuses sequence parallel altogether.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> Any:
        norm: torch.nn.Module
        if config.normalization == "RMSNorm":
            norm = torch.nn.RMSNorm(hidden_size, eps=eps)
        else:
            norm = torch.nn.LayerNorm(hidden_size, eps=eps, bias=False)
        norm.weight.sequence_parallel = config.sequence_parallel
        return norm


class ColumnLinear(ColumnParallelLinear):
    """Column-parallel linear layer that owns its collectives, if there are any."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return this rank's columns of the product, and no bias."""
        if self.tp_group.size() == 1:
            return F.linear(input_, self.weight), None
        return super().forward(input_, *args, **kwargs)


class RowLinear(RowParallelLinear):
    """Row-parallel linear layer that owns its collectives, if there are any."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """Return the product, added up over ranks, and no bias."""
        if self.tp_group.size() == 1:
            return F.linear(input_, self.weight), None
        return super().forward(input_)


class ColumnSlice(ColumnParallelLinear):
    """Column-parallel linear layer whose block owns the collectives."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return this rank's columns of the product, and no bias."""
        return F.linear(input_, self.weight), None


class RowSlice(RowParallelLinear):
    """Row-parallel linear layer whose block owns the collectives: it returns this rank's part of the sum."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """Return this rank's part of the product, and no bias."""
        return F.linear(input_, self.weight), None


class _Block(TransformerLayer):
    """What both orders share: mcore's submodules under mcore's names, and a forward pass of our own."""

    def _attention(self, x: Tensor, rotary: Tensor, packed: Any) -> Tensor:
        return self.self_attention(x, rotary_pos_emb=rotary, packed_seq_params=packed)[0]

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.mlp.linear_fc1(x)[0].chunk(2, dim=-1)
        return self.mlp.linear_fc2(F.silu(gate) * up)[0]

    def _add(self, residual: Tensor, branch: Tensor) -> Tensor:
        if self.hidden_dropout > 0.0 and self.training:
            branch = F.dropout(branch, self.hidden_dropout)
        return residual + branch


class SequentialBlock(_Block):
    """Attention, then MLP."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the block's output, [s, b, h] as its input, and the context as it came."""
        attended = self._attention(self.input_layernorm(hidden_states), rotary_pos_emb, packed_seq_params)
        hidden_states = self._add(hidden_states, attended)
        return self._add(hidden_states, self._mlp(self.pre_mlp_layernorm(hidden_states))), context


class ParallelBlock(_Block):
    """Attention and MLP at once, from one norm."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the block's output, [s, b, h] as its input, and the context as it came."""
        normed = self._enter(self.input_layernorm(hidden_states))
        both = self._attention(normed, rotary_pos_emb, packed_seq_params) + self._mlp(normed)
        return self._add(hidden_states, self._leave(both)), context

    def _enter(self, x: Tensor) -> Tensor:
        """From what every rank holds (or a slice of the sequence) to the input of this rank's slices of matrices."""
        if self.tp_group.size() == 1:
            return x
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(x, group=self.tp_group)

    def _leave(self, x: Tensor) -> Tensor:
        """From each rank's part of a sum to the sum (or a slice of its sequence)."""
        if self.tp_group.size() == 1:
            return x
        if self.config.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(x, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(x, group=self.tp_group)


def block_spec(model: ModelConfig, config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Return what mcore builds the layers of this pipeline rank's chunk from."""
    parallel = model.block == "parallel"
    column, row = (ColumnSlice, RowSlice) if parallel else (ColumnLinear, RowLinear)
    attention = ModuleSpec(
        module=CausalSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(linear_qkv=column, core_attention=IdentityOp, linear_proj=row),
    )
    layer = ModuleSpec(
        module=ParallelBlock if parallel else SequentialBlock,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=attention,
            pre_mlp_layernorm=IdentityOp if parallel else Norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=Norm)
