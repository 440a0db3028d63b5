"""The transformer block: norms, linear layers, and the two orders of attention and MLP.

sequential  x + attention(norm(x)), then the same with the MLP and a norm of its own; with `norm_placement: after`
            x + norm(attention(x)). Source: Team OLMo, 2 OLMo 2 Furious (2024), section 3.2
parallel    x + attention(norm(x)) + mlp(norm(x)), one norm, both at once. Source: GPT-J (Wang and Komatsuzaki, 2021)

Tensor parallel cuts one matrix into columns and the next into rows: attention's projections are one such pair, the
MLP's another. Between *entering* the parallel region (one collective in the backward pass) and *leaving* it (one in
the forward pass), each rank computes with its slices alone. mcore's linear layers own these collectives; here the block
does. The parallel block's branches read the same input and are added anyway, so it enters and leaves once for both:
half the collectives of the sequential one. Under sequence parallel the collectives also gather and scatter the
sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
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
from megacode.mcore import fp8_emulation, precision
from megacode.mcore.attention import CausalSelfAttention
from megacode.mcore.kernels import GatedLinearUnit, Linear, Lookup, RootMeanSquareNorm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm on CUDA, where it has a fused kernel; our kernel elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, normed over its last dimension."""
        return super().forward(x) if x.is_cuda else RootMeanSquareNorm.apply(x, self.weight, self.eps)


class Norm:
    """RMSNorm or LayerNorm, weight only, as mcore's specs build them.

    The parameters are marked `sequence_parallel`: each rank then sees only a slice of the sequence, and mcore must sum
    the ranks' gradients. Without the mark a run continues and learns slightly wrong (7e-4 in the loss after 20 steps).
    mcore's own wrapper rejects sequence parallel altogether.
    """

    # A class, although it only builds: mcore's specs expect a class, and call it to get the module.
    bias = False

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> Any:
        norm: torch.nn.Module
        if config.normalization == "RMSNorm":
            norm = RMSNorm(hidden_size, eps=eps)
        else:
            norm = torch.nn.LayerNorm(hidden_size, eps=eps, bias=cls.bias)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm


class NormWithBias(Norm):
    """LayerNorm with weight and bias."""

    bias = True


class ColumnSlice(ColumnParallelLinear):
    """This rank's columns of a matrix; the block owns the collectives."""

    # The base class builds and names the weight, and describes its slice for checkpoints. Its forward is not used.

    def forward(self, input_: Tensor, *unused: Any, **also_unused: Any) -> tuple[Tensor, None]:
        """Return this rank's columns of the product, its bias added if there is one, and None for mcore's bias."""
        columns = _product(self, input_, self.weight)
        return columns if self.bias is None else columns + self.bias, None


class RowSlice(RowParallelLinear):
    """This rank's rows of a matrix; the block owns the collectives."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """Return this rank's term of the product, which is a sum over ranks, and no bias."""
        return _product(self, input_, self.weight), None


def _product(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Return x weight^T, in emulated FP8 inside of `fp8_emulation.region`."""
    recipe = fp8_emulation.current()
    if recipe is None:
        return Linear.apply(x, weight)
    # Under full recomputation the first forward pass runs without gradients: only the second one moves the history.
    return fp8_emulation.Product.apply(x, weight, recipe, module, torch.is_grad_enabled())


class Embedding(VocabParallelEmbedding):
    """mcore's embedding with our lookup, whose gradient goes straight to `main_grad`."""

    def forward(self, input_: Tensor) -> Tensor:
        """Return [b, s, h] of tokens [b, s], or under sequence parallel this rank's slice of it as [s, b, h]."""
        if self.tp_group.size() == 1:
            return Lookup.apply(self.weight, input_)
        # Each rank has a range of rows. It looks up its own tokens, puts zeros for the others, and ranks are summed.
        elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        tokens = (input_ - self.vocab_start_index).masked_fill(elsewhere, 0)
        rows = Lookup.apply(self.weight, tokens).masked_fill(elsewhere[..., None], 0.0)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(rows.transpose(0, 1).contiguous(), group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(rows, group=self.tp_group)


class OutputLayer(ColumnParallelLinear):
    """mcore's output layer with our product; it enters the parallel region as a block does.

    Attributes:
        logit_scale: the logits are multiplied by it.
    """

    logit_scale = 1.0

    def forward(self, input_: Tensor, weight: Tensor | None = None, **unused: Any) -> tuple[Tensor, None]:
        """Return the logits of this rank's part of the vocabulary; `weight` is the embedding's if they are tied."""
        # There is no leaving: the loss is computed on slices of the vocabulary, and the logits are never gathered.
        x = self._entered(input_)
        weight = self.weight if weight is None else weight
        with precision.emulated_output(self.config):
            return _product(self, x, weight), None

    def _entered(self, x: Tensor) -> Tensor:
        """Return the input of the product, times `logit_scale`: it is far smaller than the logits."""
        x = x if self.logit_scale == 1.0 else x * self.logit_scale
        return entered(x, self.tp_group, self.config.sequence_parallel)


def entered(x: Tensor, group: Any, sequence_parallel: bool) -> Tensor:
    """Enter the parallel region: turn x, or its slice of the sequence, into the input of this rank's matrix slices."""
    if group.size() == 1:
        return x
    # Sequence parallel: all-gather forward, reduce-scatter backward. Else: nothing forward, all-reduce backward.
    if sequence_parallel:
        return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=group)
    return copy_to_tensor_model_parallel_region(x, group=group)


class Block(TransformerLayer):
    """Base of both orders: mcore's submodules under mcore's names, with our own forward pass."""

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
        """Return the block's output, [s, b, h] like its input, and `context` unchanged, as mcore expects."""

        def attention(x: Tensor) -> Tensor:
            return self.self_attention(x, rotary_pos_emb=rotary_pos_emb, packed_seq_params=packed_seq_params)[0]

        with precision.emulated(self.config, self.layer_number):
            return self._output(hidden_states, attention), context

    def _output(self, hidden_states: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the block's output; `attention` maps the result of `_enter` to the input of `_leave`."""
        raise NotImplementedError

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp.linear_fc2(self._activated(self.mlp.linear_fc1(x)[0]))[0]

    def _activated(self, both: Tensor) -> Tensor:
        return GatedLinearUnit.apply(both)

    def _enter(self, x: Tensor) -> Tensor:
        return entered(x, self.tp_group, self.config.sequence_parallel)

    def _leave(self, x: Tensor) -> Tensor:
        """Leave the parallel region: sum x over ranks; under sequence parallel each keeps a slice of the sequence."""
        if self.tp_group.size() == 1:
            return x
        # The mirror image of `entered`: reduce-scatter or all-reduce forward, all-gather or nothing backward.
        if self.config.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(x, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(x, group=self.tp_group)

    def _add(self, residual: Tensor, branch: Tensor) -> Tensor:
        """Add a branch that has left the parallel region."""
        # Dropout after the sum: ranks that hold the same values must drop the same ones, and share that random state.
        if self.hidden_dropout > 0.0 and self.training:
            branch = F.dropout(branch, self.hidden_dropout)
        return residual + branch


class SequentialBlock(Block):
    """Attention, then MLP: enters and leaves the parallel region twice.

    Attributes:
        post_attention_layernorm, post_mlp_layernorm: norms of what they return; nothing is done if norms come before.
    """

    def __init__(self, config: TransformerConfig, output_norm: Any = IdentityOp, **keywords: Any) -> None:
        super().__init__(config=config, **keywords)
        hidden, eps = config.hidden_size, config.layernorm_epsilon
        self.post_attention_layernorm = output_norm(config=config, hidden_size=hidden, eps=eps)
        self.post_mlp_layernorm = output_norm(config=config, hidden_size=hidden, eps=eps)

    def _output(self, hidden_states: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        attended = self._leave(attention(self._enter(self.input_layernorm(hidden_states))))
        hidden_states = self._add(hidden_states, self.post_attention_layernorm(attended))
        mlp = self._leave(self._mlp(self._enter(self.pre_mlp_layernorm(hidden_states))))
        return self._add(hidden_states, self.post_mlp_layernorm(mlp))


class ParallelBlock(Block):
    """Attention and MLP in parallel, from one norm: enters and leaves the parallel region once."""

    def _output(self, hidden_states: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        normed = self._enter(self.input_layernorm(hidden_states))
        # The branches are added before leaving, so one collective sums both over ranks.
        return self._add(hidden_states, self._leave(attention(normed) + self._mlp(normed)))


def norms(model: ModelConfig) -> tuple[Any, Any, Any]:
    """Return the norm of a model's residual stream, and what stands before and after attention and MLP."""
    norm = NormWithBias if model.norm_bias else Norm
    return (norm, norm, IdentityOp) if model.norm_placement == "before" else (norm, IdentityOp, norm)


def block_spec(model: ModelConfig, config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Return mcore's specification of the layers of this pipeline rank's chunk."""
    parallel = model.block == "parallel"
    norm, before, after = norms(model)
    # Our attention calls torch's kernel itself, so mcore's core attention is left out.
    attention = ModuleSpec(
        module=CausalSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal, "model": model},
        submodules=SelfAttentionSubmodules(linear_qkv=ColumnSlice, core_attention=IdentityOp, linear_proj=RowSlice),
    )
    layer = ModuleSpec(
        module=ParallelBlock if parallel else SequentialBlock,
        params={} if parallel else {"output_norm": after},
        submodules=TransformerLayerSubmodules(
            input_layernorm=before,
            self_attention=attention,
            pre_mlp_layernorm=IdentityOp if parallel else before,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnSlice, linear_fc2=RowSlice)),
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)
