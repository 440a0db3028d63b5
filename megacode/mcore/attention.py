"""Causal self-attention on torch's scaled_dot_product_attention, with rotary positions and document borders.

mcore's own attention for machines without Transformer Engine builds an S x S mask, cannot keep documents apart and is
slow. Here no mask exists at all. Two shapes of input are known:

* [s, b, h], the usual one: position = index, and every token sees those before it in its sequence.
* [b*s, 1, h] with `Documents`: the sequences laid end to end and cut at document borders. Positions restart in each
  document, and attention runs document by document, so that the result equals that of each document alone.

The kernel shares a group's key and value among its query heads, without copies (`enable_gqa`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megacode.mcore import device
from megacode.mcore.kernels import RotarySplit


@dataclass
class Documents(PackedSeqParams):
    """Documents laid end to end: mcore's packed sequences, with what our attention asks for beside them.

    Attributes:
        lengths: tokens of each document, in order; on the host, so that no kernel has to be waited for.
        positions: [b*s] int64, position of each token in its document.
    """

    lengths: tuple[int, ...] = ()
    positions: Tensor | None = None


def documents(cu_seqlens: Tensor) -> Documents:
    """Return the documents that begin at `cu_seqlens`, int32 on the host: 0, borders in order, total length."""
    lengths = torch.diff(cu_seqlens.cpu().long())
    starts = torch.repeat_interleave(cu_seqlens.cpu()[:-1].long(), lengths)
    positions = torch.arange(len(starts)) - starts
    longest = int(lengths.max())
    borders = device.to_device(cu_seqlens.int())
    return Documents(
        qkv_format="thd",
        cu_seqlens_q=borders,
        cu_seqlens_kv=borders,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=tuple(lengths.tolist()),
        positions=device.to_device(positions),
    )


class RotaryTable(torch.nn.Module):
    """Cosines and sines of the rotary angles, computed once and not at each layer and call.

    Takes the place of mcore's rotary embedding in a GPTModel, and keeps its interface: one tensor travels down to the
    layers. Source: Su et al., RoFormer (2021), section 3.4.2, channels rotated in halves as in GPT-NeoX and Llama.

    Args:
        head_size: channels of a head, even.
        base: base of the wavelengths.
        dtype: of the activations.
    """

    def __init__(self, head_size: int, base: float, dtype: torch.dtype) -> None:
        super().__init__()
        self._frequencies = base ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        self._dtype = dtype
        self._table = torch.empty(0, 2 * head_size)

    def get_rotary_seq_len(
        self, inference_context: Any, transformer: Any, transformer_input: Tensor, config: Any, packed: Any
    ) -> int:
        """Return the positions needed: the longest document, or the whole sequence over all its slices."""
        if packed is not None:
            return int(packed.max_seqlen_q)
        given = transformer.input_tensor if transformer.input_tensor is not None else transformer_input
        return int(given.size(0)) * (config.tensor_model_parallel_size if config.sequence_parallel else 1)

    def forward(self, length: int, packed_seq: bool = False, cp_group: Any = None) -> Tensor:
        """Return [length, 2 * head_size]: for each position c, c, -s, s, cosines and sines of a head's angles."""
        if len(self._table) < length:
            angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
            cos, sin = angles.cos(), angles.sin()
            table = torch.cat((cos, cos, -sin, sin), dim=-1).to(self._dtype)
            self._table = device.to_device(table)
        return self._table[:length]


class CausalSelfAttention(SelfAttention):
    """mcore's self-attention, its projections and their names, with a forward pass of our own.

    Each tensor-parallel rank holds whole query groups: `num_query_groups` divides by the tensor-parallel size, which
    the config's rules see to.
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
            packed_seq_params: the documents, where attention must not cross their borders.
        """
        mixed, _ = self.linear_qkv(hidden_states)
        length, batch, _ = mixed.shape
        mixed = mixed.view(length, batch, self.num_query_groups_per_partition, -1, self.hidden_size_per_attention_head)
        table = rotary_pos_emb if packed_seq_params is None else rotary_pos_emb[packed_seq_params.positions]
        query, key, value = RotarySplit.apply(mixed, *table.chunk(2, dim=-1))
        if packed_seq_params is None:
            attended = self._attend(query, key, value)
        else:
            pieces = zip(*(x.split(packed_seq_params.lengths, dim=2) for x in (query, key, value)), strict=True)
            attended = torch.cat([self._attend(*piece) for piece in pieces], dim=2)
        output, _ = self.linear_proj(attended.permute(2, 0, 1, 3).reshape(length, batch, -1))
        return output, None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [b, heads, s, channels] of queries of that shape, keys and values [b, groups, s, channels]."""
        dropout = self.config.attention_dropout if self.training else 0.0
        grouped = query.size(1) != key.size(1)
        with self._dropout_state(dropout):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=dropout, enable_gqa=grouped
            )

    def _dropout_state(self, dropout: float) -> Any:
        """Ranks hold different heads and must drop differently; under sequence parallel the block sees to that."""
        if dropout == 0.0 or self.config.sequence_parallel:
            return nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()
