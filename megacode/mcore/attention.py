"""Causal self-attention on torch's scaled_dot_product_attention, with rotary positions and document borders.

mcore's own attention for machines without Transformer Engine builds an S x S mask, cannot isolate documents and is
slow. Ours needs no mask on a GPU, and on a CPU only under context parallel. There are two input shapes:

* [s, b, h], the usual one: position = index, and every token sees those before it in its sequence.
* [b*s, 1, h] with `Documents`: the sequences concatenated and cut at document borders. Positions restart in each
  document, and attention runs per document, so the result equals that of each document alone.

Under context parallel, s is this rank's part of the sequence (module `context`); keys are those of the whole sequence.
The kernel shares a group's key and value among its query heads without copies (`enable_gqa`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megacode.mcore import context, device
from megacode.mcore.kernels import RotarySplit


@dataclass
class Documents(PackedSeqParams):
    """Concatenated documents: mcore's packed sequences, plus the fields that our attention needs.

    Attributes:
        rows: number of concatenated sequences.
        stretches: this rank's tokens, cut at document borders; on the host, so that reading them never syncs the GPU.
        positions: int64, position of each of this rank's tokens in its document.
    """

    rows: int = 1
    stretches: tuple[context.Stretch, ...] = ()
    positions: Tensor | None = None


def documents(cu_seqlens: Tensor, rows: int = 1, size: int = 1, rank: int = 0) -> Documents:
    """Return the documents of a micro-batch.

    Args:
        cu_seqlens: where documents begin, int32 on the host: 0, borders in order, total length.
        rows: number of sequences that they come from.
        size, rank: of the context-parallel group.
    """
    # mcore's forward only carries this object down to the layers, so it can hold host data next to GPU tensors.
    starts = cu_seqlens.cpu().long()
    lengths = torch.diff(starts)
    positions = torch.arange(int(starts[-1])) - torch.repeat_interleave(starts[:-1], lengths)
    # Attention kernels build and cache a plan per maximum length. Rounding up to powers of two keeps the plans few.
    longest = 1 << (int(lengths.max()) - 1).bit_length()
    borders = device.to_device(cu_seqlens.int())
    return Documents(
        qkv_format="thd",
        cu_seqlens_q=borders,
        cu_seqlens_kv=borders,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        rows=rows,
        stretches=context.stretches(starts.tolist(), rows, size, rank),
        positions=device.to_device(context.own(positions.view(rows, -1), size, rank, dim=1).flatten()),
    )


class RotaryTable(torch.nn.Module):
    """Cosines and sines of the rotary angles, computed once instead of per layer and call.

    Replaces mcore's rotary embedding in a GPTModel and keeps its interface: one tensor is passed down to the layers.
    Source: Su et al., RoFormer (2021), section 3.4.2, channels rotated in halves as in GPT-NeoX and Llama.

    Args:
        head_size: channels per head, even.
        base: base of the wavelengths.
        dtype: of the table: that of the activations, or fp32 for kernels that rotate in fp32.
        context_group: the context-parallel group; None: this rank holds whole sequences.
    """

    def __init__(self, head_size: int, base: float, dtype: torch.dtype, context_group: Any = None) -> None:
        super().__init__()
        self._context_group = context_group
        # Plain attributes, not buffers: a buffer would be cast to bf16 with the model, and late positions would blur.
        self._frequencies = base ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        self._dtype = dtype
        self._table = torch.empty(0, 2 * head_size)

    def get_rotary_seq_len(
        self, inference_context: Any, transformer: Any, transformer_input: Tensor, config: Any, packed: Any
    ) -> int:
        """Return how many positions are needed: the longest document, or the whole sequence over all its slices."""
        if packed is not None:
            return int(packed.max_seqlen_q)
        # Pipeline stages after the first get their input by `set_input_tensor`; the argument is None there.
        given = transformer.input_tensor if transformer.input_tensor is not None else transformer_input
        slices = config.tensor_model_parallel_size if config.sequence_parallel else 1
        return int(given.size(0)) * slices * config.context_parallel_size

    def forward(self, length: int, packed_seq: bool = False, cp_group: Any = None) -> Tensor:
        """Return c, c, -s, s, cosines and sines of a head's angles: [length, 2 * head_size], by position.

        Without documents only the positions of this rank's tokens are returned.
        """
        # The table only grows: a longer one begins with the same rows. Angles are fp32, and only results are rounded.
        if len(self._table) < length:
            angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
            cos, sin = angles.cos(), angles.sin()
            table = torch.cat((cos, cos, -sin, sin), dim=-1).to(self._dtype)
            self._table = device.to_device(table)
        table, group = self._table[:length], self._context_group
        if group is None or packed_seq:
            return table
        return context.own(table, group.size(), group.rank(), dim=0)


class CausalSelfAttention(SelfAttention):
    """mcore's self-attention with its projections and parameter names, and our forward pass.

    Each tensor-parallel rank holds whole query groups: the config's rules require that `num_query_groups` is divisible
    by the tensor-parallel size.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: Documents | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Return the attended hidden states, [s, b, h], and no bias.

        Args:
            hidden_states: [s, b, h]; under sequence parallel this rank's slice of s.
            attention_mask: unused; attention is causal.
            rotary_pos_emb: [s, 2 * head_size] of `RotaryTable`.
            packed_seq_params: the documents, if attention must not cross their borders.
        """
        mixed, _ = self.linear_qkv(hidden_states)
        core = partial(self._core, packed_seq_params)
        # Selective recomputation. The two projections stay outside: they are the expensive part of the layer.
        if self.checkpoint_core_attention and self.training:
            attended = tensor_parallel.checkpoint(core, False, mixed, rotary_pos_emb)
        else:
            attended = core(mixed, rotary_pos_emb)
        output, _ = self.linear_proj(attended)
        return output, None

    def _core(self, packed: Documents | None, mixed: Tensor, table: Tensor) -> Tensor:
        """Return [s, b, heads * channels]: everything between the two projections; selective recomputation reruns it.

        Three cases after the rotation: documents, context parallel, and the plain one with a single kernel call.
        """
        length, batch, _ = mixed.shape
        mixed = mixed.view(length, batch, self.num_query_groups_per_partition, -1, self.hidden_size_per_attention_head)
        if packed is not None:
            table = table[packed.positions]
        query, key, value = RotarySplit.apply(mixed, *table.chunk(2, dim=-1))
        group = self.pg_collection.cp
        if group.size() > 1:
            # Keys are gathered after the rotation: each rank knows the positions of its own tokens.
            key, value = context.GatherKeysAndValues.apply(key, value, packed.rows if packed else 1, group)
        if packed is not None:
            attended = self._attend_in(packed.stretches, query, key, value)
        elif group.size() > 1:
            pieces = context.stretches((0, key.size(2)), 1, group.size(), group.rank())
            attended = self._attend_in(pieces, query, key, value)
        else:
            attended = self._attend(query, key, value)
        return attended.permute(2, 0, 1, 3).reshape(length, batch, -1)

    def _attend_in(self, stretches: tuple[context.Stretch, ...], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return `_attend` of each piece of this rank's tokens, in order."""
        # One kernel call per piece: with many short documents, launches dominate the cost.
        queries = query.split([count for stretch in stretches for count in stretch.queries], dim=2)
        keys, values = ([piece for stretch in stretches for piece in stretch.of(x)] for x in (key, value))
        return torch.cat([self._attend(*piece) for piece in zip(queries, keys, values, strict=True)], dim=2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return attention of [b, heads, s, channels]; the queries are the last tokens among those of the keys.

        Args:
            query: [b, heads, s, channels].
            key, value: [b, groups, at least s, channels].
        """
        dropout = self.config.attention_dropout if self.training else 0.0
        grouped = query.size(1) != key.size(1)
        mask = _seen(query.size(2), key.size(2), query.is_cuda)
        with self._dropout_state(dropout):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, enable_gqa=grouped
            )

    def _dropout_state(self, dropout: float) -> Any:
        """Return a context with this rank's own dropout state: ranks hold different heads and must drop differently."""
        # Under sequence parallel mcore has entered this state around all layers. A nested fork would repeat numbers.
        if dropout == 0.0 or self.config.sequence_parallel:
            return nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


def _seen(queries: int, keys: int, on_gpu: bool) -> Any:
    """Return which keys each of the last tokens sees; None if queries and keys are the same tokens.

    torch's `is_causal` aligns the mask to the first key. With fewer queries than keys it must align to the last one.
    On a GPU that is a flag to the kernel and needs no memory; CPU kernels have no such flag.
    """
    if queries == keys:
        return None
    if on_gpu:
        from torch.nn.attention.bias import causal_lower_right  # it imports torch's compiler, see `eager`

        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
