"""Causal self-attention on torch's scaled_dot_product_attention, with windows, rotary positions and document borders.

mcore's own attention for machines without Transformer Engine builds an S x S mask, cannot isolate documents and is
slow. Ours needs no mask on a GPU, and on a CPU only under context parallel. There are two input shapes:

* [s, b, h], the usual one: position = index, and every token sees those before it in its sequence.
* [b*s, 1, h] with `Documents`: the sequences concatenated and cut at document borders. Positions restart in each
  document, and attention runs per document, so the result equals that of each document alone.

Under context parallel, s is this rank's part of the sequence (module `context`); keys are those of the whole sequence.
The kernel shares a group's key and value among its query heads without copies (`enable_gqa`).

torch's kernel has no argument for a sliding window. So in sliding layers we cut the queries into blocks of about a
window's length, each of which sees at most two windows of keys, under a mask of that size: time and memory grow with
S x window, not with S x S.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megacode.config.model import ModelConfig
from megacode.mcore import context, device
from megacode.mcore.head_norms import HeadNorm
from megacode.mcore.kernels import RotarySplit

_SMALLEST_BLOCK = 128  # queries; with smaller ones launches would dominate


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


class CausalSelfAttention(SelfAttention):
    """mcore's self-attention with its projections and parameter names, and our forward pass.

    Each tensor-parallel rank holds whole query groups: the config's rules require that `num_query_groups` is divisible
    by the tensor-parallel size.

    Attributes:
        q_layernorm, k_layernorm: norms of queries and keys, or None.
    """

    def __init__(self, *arguments: Any, model: ModelConfig, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        layer = self.layer_number - 1  # mcore counts from 1, over the whole model
        self._window, self._rotates, self._scaled = model.window(layer), model.rotates(layer), model.scales(layer)
        if model.qk_norm != "none":
            # Not through mcore's spec: its norms know only one weight for all heads.
            self.q_layernorm = HeadNorm(model, self.config, model.num_attention_heads, self.tp_group)
            self.k_layernorm = HeadNorm(model, self.config, model.query_groups, self.tp_group)

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
            rotary_pos_emb: of `RotaryTable`.
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
        query, key, value = RotarySplit.apply(self._grouped(mixed), *self._angles(packed, table).chunk(2, dim=-1))
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

    def _grouped(self, mixed: Tensor) -> Tensor:
        """Return the projection as [s, b, groups, heads + 2, channels], queries and keys normed if they have norms."""
        mixed = mixed.view(
            *mixed.shape[:2], self.num_query_groups_per_partition, -1, self.hidden_size_per_attention_head
        )
        if self.q_layernorm is None:
            return mixed
        query, key, value = mixed.split((mixed.size(3) - 2, 1, 1), dim=3)
        # One more copy of the projection; the kernel that follows reads queries, keys and values from one tensor.
        return torch.cat((self.q_layernorm(query), self.k_layernorm(key.squeeze(3)).unsqueeze(3), value), dim=3)

    def _angles(self, packed: Documents | None, table: Tensor) -> Tensor:
        """Return this layer's rotary table, [s, 2 * rotating channels], by token; without channels: no rotation."""
        if table.dim() == 3:
            table = table[int(self._scaled)]
        if packed is not None:
            table = table[packed.positions]
        return table if self._rotates else table[..., :0]

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
        if self._window is None or key.size(2) <= self._window:
            return self._kernel(query, key, value, _seen(query.size(2), key.size(2), query.is_cuda))
        blocks = []
        for queries, keys in _blocks(query.size(2), key.size(2), self._window):
            sizes, where = (len(queries), len(keys)), slice(keys.start, keys.stop)
            mask = _seen(*sizes, query.is_cuda)
            if sizes[1] > self._window:
                mask = _window_mask(*sizes, self._window, query.dtype, query.device)
            part = query[:, :, queries.start : queries.stop]
            blocks.append(self._kernel(part, key[:, :, where], value[:, :, where], mask))
        return torch.cat(blocks, dim=2)

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        """Return torch's attention; without a mask it is causal."""
        dropout = self.config.attention_dropout if self.training else 0.0
        grouped = query.size(1) != key.size(1)
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


def _blocks(queries: int, keys: int, window: int) -> Iterator[tuple[range, range]]:
    """Yield blocks of queries, the last tokens among those of the keys, each with all keys in its windows."""
    size = max(window, _SMALLEST_BLOCK)
    before = keys - queries
    for start in range(0, queries, size):
        end = min(start + size, queries)
        # One key more than any of them sees: sizes then stay multiples of what kernels like.
        yield range(start, end), range(max(0, before + start - window), before + end)


@lru_cache(maxsize=8)
def _window_mask(queries: int, keys: int, window: int, dtype: torch.dtype, where: torch.device) -> Tensor:
    """Return what is added to the scores of the last tokens, [queries, keys]: 0 inside of the window, else -inf."""
    # Kept, and of the scores' type: a mask of booleans is converted at each call, and each layer keeps its own copy.
    everything = torch.ones(queries, keys, dtype=torch.bool, device=where)
    seen = everything.tril(keys - queries).triu(keys - queries - window + 1)
    return torch.zeros(queries, keys, dtype=dtype, device=where).masked_fill_(~seen, float("-inf"))
