"""The input of one forward pass: the only form in which data reaches the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass of one data-parallel rank: b rows of s = seq_length tokens.

    All tensors are on the host, or, if made ahead, on the rank's device. `cu_seqlens` and `samples` are always on the
    host, which reads them.

    Attributes:
        tokens: inputs, int64 [b, s].
        labels: the token after each input, int64 [b, s].
        loss_mask: 1.0 where the label counts, float32 [b, s]. Without isolated documents, tensors of equal shape share
            their memory: do not write into it.
        position_ids: int64 [b, s], from 0 in each row, or in each document if documents are isolated; shared likewise.
        cu_seqlens: borders of the documents in the flattened [b * s] rows, row borders included, 0 first and b * s
            last, int32; None unless documents are isolated.
        source_ids: source number of each row, int64 [b]; -1 for a padding row, which counts nowhere and has a loss_mask
            of 0 throughout.
        samples: sample number of each row, int64 [b]; -1 likewise. In validation the number of the held-out window.
        digests: `samples_digest` of `samples`, float64 [b], if it was made ahead.
        fim_tokens: tokens of each row that are read with fill in the middle, float64 [b]; None: none.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None
    source_ids: torch.Tensor
    samples: torch.Tensor
    digests: torch.Tensor | None = None
    fim_tokens: torch.Tensor | None = None
