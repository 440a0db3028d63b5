"""The cosines and sines of rotary positions, with longer wavelengths where the model scales them.

Source: Su et al., RoFormer (2021), section 3.4.2, channels rotated in halves as in GPT-NeoX and Llama.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megacode.config.model import YARN_BETA_FAST, YARN_BETA_SLOW, ModelConfig, RotaryScaling
from megacode.mcore import context, device


class RotaryTable(torch.nn.Module):
    """Cosines and sines of the rotary angles, computed once instead of per layer and call.

    Replaces mcore's rotary embedding in a GPTModel and keeps its interface: one tensor is passed down to the layers.

    Args:
        model: its rotary settings.
        dtype: of the table: that of the activations, or fp32 for kernels that rotate in fp32.
        context_group: the context-parallel group; None: this rank holds whole sequences.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype, context_group: Any = None) -> None:
        super().__init__()
        self._context_group = context_group
        channels = model.rotary_channels
        # Plain attributes, not buffers: a buffer would be cast to bf16 with the model, and late positions would blur.
        plain = model.rotary_base ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)
        scaled = {model.scales(layer) for layer in range(model.num_layers) if model.rotates(layer)} or {False}
        # Where some layers are scaled and others are not, there are two tables, the scaled one second.
        self._kinds = [_scaled(plain, model) if kind else (plain, 1.0) for kind in sorted(scaled)]
        self._dtype = dtype
        self._table = torch.empty(len(self._kinds), 0, 2 * channels)

    def get_rotary_seq_len(
        self, inference_context: Any, transformer: Any, transformer_input: Tensor, config: Any, packed: Any
    ) -> int:
        """Return how many positions are needed: the longest document, or the whole sequence over all its slices."""
        if packed is not None:
            return int(packed.max_seqlen_q)
        # Pipeline stages after the first get their input by `set_input_tensor`; the argument is None there.
        hidden = transformer.input_tensor if transformer.input_tensor is not None else transformer_input
        slices = config.tensor_model_parallel_size if config.sequence_parallel else 1
        return int(hidden.size(0)) * slices * config.context_parallel_size

    def forward(self, length: int, packed_seq: bool = False, cp_group: Any = None) -> Tensor:
        """Return c, c, -s, s, cosines and sines of a head's angles: [length, 2 * rotating channels], by position.

        Without documents only the positions of this rank's tokens are returned. If only some layers are scaled, the
        result is [2, length, 2 * rotating channels]: unscaled, then scaled.
        """
        # The table only grows: a longer one begins with the same rows. Angles are fp32, and only results are rounded.
        if self._table.size(1) < length:
            self._table = device.to_device(torch.stack([_rows(length, *kind) for kind in self._kinds]).to(self._dtype))
        table, group = self._table[:, :length], self._context_group
        if group is not None and not packed_seq:
            table = context.own(table, group.size(), group.rank(), dim=1)
        return table if len(self._kinds) > 1 else table[0]


def _rows(length: int, frequencies: Tensor, factor: float) -> Tensor:
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat((cos, cos, -sin, sin), dim=-1)


def _scaled(frequencies: Tensor, model: ModelConfig) -> tuple[Tensor, float]:
    """Return the scaled frequencies, and the factor of the cosines and sines."""
    scaling = model.rotary_scaling
    assert scaling is not None
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _mixed(frequencies, scaling.factor, _kept_by_llama3(frequencies, scaling)), 1.0
    factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    return _mixed(frequencies, scaling.factor, _kept_by_yarn(frequencies, scaling, model)), factor


def _mixed(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Return frequencies of which a share is kept, and the rest divided by the factor."""
    return frequencies / factor * (1 - kept) + frequencies * kept


def _kept_by_llama3(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    """Return the share of each frequency that is kept: by its number of rotations in the original length.

    Source: the reference code of Llama 3.1 (`apply_scaling`).
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    assert scaling.original_length is not None
    assert low is not None
    assert high is not None
    rotations = scaling.original_length * frequencies / (2 * math.pi)
    return ((rotations - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(frequencies: Tensor, scaling: RotaryScaling, model: ModelConfig) -> Tensor:
    """Return the share of each frequency that is kept: falling from one channel to another.

    Source: Peng et al., YaRN (2023), section 3.2, with the border channels rounded outwards as in the authors' code.
    """
    channels, length = model.rotary_channels, scaling.original_length
    assert length is not None

    def channel(rotations: float) -> float:
        """Return the pair of channels that rotates so many times in the original length."""
        return channels * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(model.rotary_base))

    first = max(math.floor(channel(scaling.beta_fast or YARN_BETA_FAST)), 0)
    last = min(math.ceil(channel(scaling.beta_slow or YARN_BETA_SLOW)), channels - 1)
    pairs = torch.arange(len(frequencies), dtype=torch.float32)
    # Equal borders would divide by zero.
    return 1 - ((pairs - first) / ((last - first) or 0.001)).clamp(0, 1)
