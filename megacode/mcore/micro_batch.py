"""What goes into a forward pass: the one form in which data meets the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of one data-parallel rank reads; b rows of s = seq_length tokens.

    All of it lies on the host, or, where it was made ahead, on the rank's device; `cu_seqlens` and `samples` are always
    on the host, which reads them.

    Attributes:
        tokens: inputs, int64 [b, s].
        labels: the token after each input, int64 [b, s].
        loss_mask: 1.0 where the label counts, float32 [b, s]. Without isolated documents, tensors of equal shape share
            their memory: do not write into it.
        position_ids: int64 [b, s], from 0 in each row, and anew in each document where documents are isolated; shared
            likewise.
        cu_seqlens: borders of the documents in the flattened [b * s] rows, row borders included, 0 first and b * s
            last, int32; None unless documents are isolated.
        source_ids: number of each row's source, int64 [b]; -1 for a row that only fills up a batch, counts nowhere, and
            has a loss_mask of 0 throughout.
        samples: the sample each row is, int64 [b]; -1 likewise. In validation the number of the held-out window.
        digests: `samples_digest` of them, float64 [b], where it was made ahead.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None
    source_ids: torch.Tensor
    samples: torch.Tensor
    digests: torch.Tensor | None = None
