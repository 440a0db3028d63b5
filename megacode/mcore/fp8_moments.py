"""Adam's first moment in FP8 between steps, around any Adam that computes with it in fp32.

A moment is stored as E4M3 with one scale, a power of two, for a rank's part of a parameter. Before a step it is widened
to fp32, and after it rounded. Transformer Engine's Adam can store moments in FP8 itself, but:

- A part whose moments are all zero gets an infinite scale, and zero times infinity is nan.
- Its scales are not powers of two, so every other layout, and every resume, rounds what was rounded before.
- On GPUs before Blackwell it also stores a transposed copy: two bytes, as many as bf16.
- It keeps subnormals. There a decay by 0.9 is rounded away: 4 units become 3.6, and 4 again. The moment of a row whose
  token has become rare stays, while the second moment vanishes, and Adam divides by its root.

So subnormals become zero here. A normal number decays if beta1 is at most `LARGEST_FP8_BETA1`, which a rule checks.

Source: Transformer Engine 2.9 to 2.20, `fused_adam.py`, `float8_tensor.py` and `quantizer.cpp`; Micikevicius et al.,
FP8 Formats for Deep Learning (2022), table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

FIRST = "exp_avg"
_FP8 = torch.float8_e4m3fn
_BELOW_NORMAL = float.fromhex("0x1.fffffep-7")  # the largest fp32 number below 2^-6, the smallest normal of E4M3
# Limits of a scale's exponent: the smallest stored value must be a normal number in bf16, and so must the scale.
_LOWEST, _HIGHEST = -126, 117


class Fp8Moment:
    """A moment in FP8: `data / scale`.

    Args:
        like: flat; the moment starts at zero, on its device.

    Attributes:
        data: E4M3, flat.
        scale: fp32, one power of two.
    """

    def __init__(self, like: Tensor) -> None:
        self.data = torch.zeros(like.shape, dtype=_FP8, device=like.device)
        self.scale = torch.ones((), dtype=torch.float32, device=like.device)
        self._loaded: Tensor | None = None

    def widened(self) -> Tensor:
        """Return the values, fp32, in new memory."""
        return self.data.float().div_(self.scale)

    def store(self, values: Tensor) -> None:
        """Round values, fp32, and keep them; their memory is overwritten.

        The scale is the largest power of two with which no value exceeds 448, the largest of E4M3. Values that have
        been stored before are stored exactly.
        """
        low, high = torch.aminmax(values)
        # 448 is 0.875 * 2^9. The scale is made of bits, since a GPU's power function may round.
        mantissa, exponent = torch.frexp(torch.maximum(-low, high))
        power = (9 - exponent - (mantissa > 0.875).int()).clamp_(_LOWEST, _HIGHEST)
        self.scale.copy_(((power + 127) << 23).view(torch.float32))
        self.data.copy_(torch.nn.functional.hardshrink(values.mul_(self.scale), _BELOW_NORMAL))

    def values(self) -> MomentValues:
        """Return the values as a tensor to be saved, or loaded; what is loaded counts once it is settled."""
        return MomentValues(self, self.data)

    def put(self, part: Tensor, values: Tensor) -> None:
        """Keep values of a part, a view of `data`, in host memory until `settle`: all values share a scale."""
        if self._loaded is None:
            # Rows of padding are in no checkpoint, and stay zero.
            self._loaded = torch.zeros(self.data.shape, dtype=torch.float32, device="cpu")
        first = part.storage_offset() - self.data.storage_offset()
        self._loaded.as_strided(part.shape, part.stride(), first).copy_(values)

    def settle(self) -> None:
        """Store what was loaded, if anything was."""
        if self._loaded is not None:
            self.store(self._loaded.to(self.data.device))
            self._loaded = None


@dataclass(frozen=True)
class MomentValues:
    """A moment in FP8, or a part of it, to be saved and loaded as the bf16 tensor that it equals.

    It has what checkpoints need of a tensor. bf16 holds each value exactly, so checkpoints are those of bf16 moments.

    Attributes:
        moment: the whole.
        data: E4M3, a view of the moment's.
    """

    moment: Fp8Moment
    data: Tensor

    dtype = torch.bfloat16

    @property
    def shape(self) -> torch.Size:
        """The shape of the part."""
        return self.data.shape

    def numel(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    def view(self, *shape: Any) -> MomentValues:
        """Return the same values in another shape."""
        return MomentValues(self.moment, self.data.view(*shape))

    def __getitem__(self, part: Any) -> MomentValues:
        return MomentValues(self.moment, self.data[part])

    def joined(self) -> Tensor:
        """Return a new bf16 tensor."""
        return self.data.float().div_(self.moment.scale).bfloat16()

    def copy_(self, values: Tensor) -> None:
        """Set these values; they count, and are rounded, once the moment is settled."""
        self.moment.put(self.data, values)


def settle(adam: Any) -> None:
    """Store the moments in FP8 that were loaded into an Adam."""
    for state in adam.state.values():
        if isinstance(kept := state.get(FIRST), Fp8Moment):
            kept.settle()


def keep_in_fp8(inner: Any) -> None:
    """Let mcore's optimizer hold first moments as `Fp8Moment`s, except during a step.

    Args:
        inner: of mcore; its Adam was built for first moments in fp32, and has no state yet.
    """
    adam = inner.optimizer
    adam.initialize_state = partial(_initialize, adam, adam.initialize_state)
    adam.step = partial(_step, adam, adam.step)


def _initialize(adam: Any, initialize: Callable[[Tensor, bool], None], param: Tensor, remainders: bool) -> None:
    initialize(param, remainders)
    adam.state[param][FIRST] = Fp8Moment(param)


def _step(adam: Any, step: Callable[[], None]) -> None:
    kept = []
    for param in _params(adam):
        if not adam.state[param]:
            adam.initialize_state(param, adam.store_param_remainders)
        state = adam.state[param]
        kept.append((state, state[FIRST]))
        state[FIRST] = state[FIRST].widened()
    step()
    for state, moment in kept:
        moment.store(state[FIRST])
        state[FIRST] = moment


def _params(adam: Any) -> Iterator[Tensor]:
    return (param for group in adam.param_groups for param in group["params"])
