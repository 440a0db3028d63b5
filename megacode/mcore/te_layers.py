"""The transformer block of Transformer Engine's layers, with the same two orders, names and checkpoints as `layers`.

sequential  a norm and the projection after it are one module (RMSNorm, and LayerNorm with a bias), and each linear
            layer owns its collectives, which Transformer Engine does in FP8 where it can
parallel    the norm feeds two projections, so it is a module of its own; the block enters and leaves the
            tensor-parallel region once for both, as in `layers`

Attention and SwiGLU are Transformer Engine's kernels; rotary positions and the parallel block's norm are ours. Sliding
layers give their window to Transformer Engine's attention (`translate`). Under context parallel, attention is ours too:
it gathers keys and values, supports isolated documents, and is tested against a single rank.
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
from megacode.mcore.layers import Block, OutputLayer, ParallelBlock, SequentialBlock, norms
from megacode.mcore.te_kernels import Fork, GatedLinearUnit, Quantizers, RotarySplit, Sum

# Prefixes of a fused norm's parameters, and of the same in a norm of its own. Checkpoints use the latter.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class _Slice(Linear):
    """This rank's slice of a matrix; the block owns the collectives.

    Attributes:
        is_first_microbatch: set by mcore at the start of an iteration: the weights have changed since, so their FP8
            copy must be made again.
    """

    cut = 0

    def __init__(
        self, input_size: int, output_size: int, *, config: Any, tp_group: Any, bias: bool = False, **unused: Any
    ) -> None:
        sides = [output_size, input_size]
        sides[self.cut] //= tp_group.size()
        # To Transformer Engine this is a layer without tensor parallelism, so it runs no collectives.
        super().__init__(
            sides[0],
            bias=bias,
            params_dtype=config.params_dtype,
            device=device.device(),
            init_method=config.init_method,
        )
        # mcore reads these attributes of every parameter. Without them the gradient norm would miss all ranks but one.
        for parameter in self._slices().values():
            parameter.tensor_model_parallel, parameter.partition_dim = True, self.cut
        self.is_first_microbatch, self._group = True, tp_group

    def forward(self, x: Tensor, *unused: Any, **also_unused: Any) -> tuple[Tensor, None]:
        """Return the product with this rank's slice, its bias added if there is one, and None for mcore's bias."""
        first, self.is_first_microbatch = self.is_first_microbatch, False
        return super().forward(x, is_first_microbatch=first), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Return mcore's sharded state dict of the slice."""
        # mcore's own wrappers have this method; the FP8 state is left out, since `fp8_scales` saves it.
        slices = self._slices()
        return make_sharded_tensors_for_checkpoint(
            slices,
            prefix,
            dict.fromkeys(slices, self.cut),
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )

    def _slices(self) -> dict[str, Any]:
        """Return the parameters by name; only slices of columns have a bias."""
        return {"weight": self.weight, **({"bias": self.bias} if self.use_bias else {})}


class ColumnSlice(_Slice):
    """This rank's columns of a matrix: rows of its weight [out, in]."""


class RowSlice(_Slice):
    """This rank's rows of a matrix: columns of its weight [out, in]."""

    cut = 1


class EngineSelfAttention(CausalSelfAttention):
    """Our self-attention, with Transformer Engine's attention kernels and our rotary kernel between the projections."""

    def _core(self, packed: Documents | None, mixed: Tensor, table: Tensor) -> Tensor:
        """Return [s, b, heads * channels]; see `CausalSelfAttention._core`."""
        if self.pg_collection.cp.size() > 1:
            return super()._core(packed, mixed, table)
        query, key, value = RotarySplit.apply(self._grouped(mixed), self._angles(packed, table))
        if packed is None:
            return self.core_attention(query, key, value, None, attn_mask_type=AttnMaskType.causal)
        # Documents: Transformer Engine's `thd` format has no batch dimension.
        flat = (part.squeeze(1) for part in (query, key, value))
        attended = self.core_attention(*flat, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=packed)
        return attended.view(*mixed.shape[:2], -1)


class _EngineBlock(Block):
    """Base of both orders: SwiGLU by Transformer Engine's kernel."""

    def _activated(self, both: Tensor) -> Tensor:
        return GatedLinearUnit.apply(both, Quantizers.between(self.mlp.linear_fc1, self.mlp.linear_fc2))


class EngineSequentialBlock(_EngineBlock, SequentialBlock):
    """Attention, then MLP; the linear layers own norms and collectives."""

    def _enter(self, x: Tensor) -> Tensor:
        return x

    def _leave(self, x: Tensor) -> Tensor:
        return x


class ForkedNorm(torch.nn.Module):
    """The norm of a parallel block, which also returns the residual, see `te_kernels.Fork`; weight only.

    It must be a module: with overlap, mcore waits for a parameter's all-gather in a hook on the module's call.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel  # see `layers.Norm`
        self._eps, self._centred = eps, config.normalization == "LayerNorm"

    def forward(self, x: Tensor, branches: int) -> tuple[Tensor, ...]:
        """Return x, and its norm for each of the branches, [s, b, h]."""
        return Fork.apply(x, self.weight, self._eps, self._centred, branches)


class ForkedNormWithBias(torch.nn.LayerNorm):
    """`ForkedNorm` with a bias: torch's LayerNorm, since our kernels have none."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__(hidden_size, eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor, branches: int) -> tuple[Tensor, ...]:
        """Return x, and its norm for each of the branches, [s, b, h]."""
        normed = super().forward(x)
        return x, *(normed for _ in range(branches))


class EngineParallelBlock(_EngineBlock, ParallelBlock):
    """Attention and MLP at once, from one norm."""

    def _output(self, hidden_states: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        # On one rank without dropout nothing comes between branches and sum, so one kernel adds all three.
        if self.tp_group.size() == 1 and not (self.hidden_dropout > 0.0 and self.training):
            residual, for_attention, for_mlp = self.input_layernorm(hidden_states, branches=2)
            return Sum.apply(residual, attention(for_attention), self._mlp(for_mlp))
        residual, normed = self.input_layernorm(hidden_states, branches=1)
        normed = self._enter(normed)
        return self._add(residual, self._leave(attention(normed) + self._mlp(normed)))


class EngineOutputLayer(OutputLayer):
    """Our output layer, which multiplies in FP8 with current scaling if the recipe asks for it.

    The weight may be the embedding's. So the linear layer that quantizes it has no weight of its own, and is not a
    submodule of the model.

    Attributes:
        is_first_microbatch: see `_Slice`.
    """

    is_first_microbatch = True

    def forward(self, input_: Tensor, weight: Tensor | None = None, **unused: Any) -> tuple[Tensor, None]:
        """Return the logits of this rank's part of the vocabulary; `weight` is the embedding's if they are tied."""
        if not (self.config.fp8 and self.config.fp8_output_layer):
            return super().forward(input_, weight)
        x = self._entered(input_)
        linear = self._linear(self.weight if weight is None else weight)
        first, self.is_first_microbatch = self.is_first_microbatch, False
        recipe = Float8CurrentScaling(fp8_format=Format.HYBRID if self.config.fp8 == "hybrid" else Format.E4M3)
        with fp8_autocast(enabled=True, fp8_recipe=recipe):
            return linear(x, is_first_microbatch=first), None

    def _linear(self, weight: Tensor) -> Linear:
        # In a list inside of `__dict__`: as a plain attribute torch would register it, and its weight twice.
        kept: list[Linear] = self.__dict__.setdefault("_fp8_linear", [])
        if not kept:
            rows, columns = weight.shape
            linear = Linear(columns, rows, bias=False, params_dtype=weight.dtype, device="meta")
            linear.weight, linear.fuse_wgrad_accumulation = weight, True
            kept.append(linear)
        return kept[0]


def block_spec(model: ModelConfig, config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Return mcore's specification of the layers of this pipeline rank's chunk."""
    parallel = model.block == "parallel"
    norm, before, after = norms(model)
    # Transformer Engine's fused LayerNorm always has a bias.
    fused = not parallel and before is norm and (model.normalization == "RMSNorm" or model.norm_bias)
    columns: type[torch.nn.Module] = ColumnSlice if parallel else TEColumnParallelLinear
    if fused:
        columns, before = TELayerNormColumnParallelLinear, IdentityOp
    if parallel:
        before = ForkedNormWithBias if model.norm_bias else ForkedNorm
    rows = RowSlice if parallel else TERowParallelLinear
    attention = ModuleSpec(
        module=EngineSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal, "model": model},
        submodules=SelfAttentionSubmodules(linear_qkv=columns, core_attention=TEDotProductAttention, linear_proj=rows),
    )
    layer = ModuleSpec(
        module=EngineParallelBlock if parallel else EngineSequentialBlock,
        params={} if parallel else {"output_norm": after},
        submodules=TransformerLayerSubmodules(
            input_layernorm=before,
            self_attention=attention,
            pre_mlp_layernorm=IdentityOp if parallel else before,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=columns, linear_fc2=rows)),
            sharded_state_dict_keys_map=_FUSED_NORMS if fused else {},
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)
