"""An fp32 weight in two halves: the bf16 weight that the model computes with, and the 16 bits that it lacks.

The lower half of fp32's bits is the remainder, int16. The upper half is bf16 already; it is increased by one if the
remainder's first bit is set. That rounds to nearest, and halfway cases away from zero, where torch's own cast rounds
them to even. The remainder tells whether one was added, so that joining undoes it for every bit pattern.

Only nan has no use here: a nan whose bits are all in the remainder looks like infinity to the model, and the nan with
all bits set like -0. No such weight is ever stored: updates that are not finite never reach the weights.

Source: Transformer Engine 2.11, `transformer_engine/common/multi_tensor/adam.cu`, `AdamFunctorMasterParamRemainder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def split(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bf16 weights and the int16 remainders of fp32 weights, of the same shape."""
    # Little-endian: the lower half comes first.
    halves = whole.contiguous().view(-1).view(torch.int16).view(*whole.shape, 2)
    low = halves[..., 0].contiguous()
    return (halves[..., 1] + (low < 0)).view(torch.bfloat16), low


def join(high: Tensor, low: Tensor) -> Tensor:
    """Return the fp32 weights of bf16 weights and int16 remainders: what `split` was given, bit for bit."""
    upper = high.view(torch.int16) - (low < 0).to(torch.int16)
    return torch.stack((low, upper), dim=-1).view(torch.float32).squeeze(-1)


@dataclass(frozen=True)
class SplitWeights:
    """Weights in two halves, to be saved and loaded as the fp32 tensor that they are.

    It has what checkpoints need of a tensor. The whole is made on demand, one piece at a time: for all weights at once
    there may be no memory.

    Attributes:
        high: bf16, a view of the model's weights.
        low: int16, the remainders; of the same shape.
    """

    high: Tensor
    low: Tensor

    dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """The shape of both."""
        return self.low.shape

    def numel(self) -> int:
        """Return the number of weights."""
        return self.low.numel()

    def view(self, *shape: Any) -> SplitWeights:
        """Return the same weights in another shape."""
        return SplitWeights(self.high.view(*shape), self.low.view(*shape))

    def __getitem__(self, part: Any) -> SplitWeights:
        return SplitWeights(self.high[part], self.low[part])

    def joined(self) -> Tensor:
        """Return a new fp32 tensor."""
        return join(self.high, self.low)

    def copy_(self, values: Tensor) -> None:
        """Set the weights; no bit of fp32 values is lost."""
        high, low = split(values.to(self.low.device, torch.float32))
        self.high.copy_(high)
        self.low.copy_(low)
