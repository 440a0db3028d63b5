"""What AdamW holds and moves for each parameter, by `precision.moments`, `masters` and `gradients`."""

from __future__ import annotations

from megacode.config.run import RunConfig
from megacode.config.training import Precision

# Elements of parameters that Adam updates at a time where its moments are not fp32 (`mcore.low_precision_adam`).
STEP_ELEMENTS = 1 << 26

_GRADIENT = {"fp32": 4, "bf16": 2}
_MASTER = {"fp32": 4, "bf16_remainder": 2}
_MOMENTS = {"fp32": 8, "bf16": 4, "fp8_bf16": 3}  # both
_SAVED_MOMENTS = {"fp32": 8, "bf16": 4, "fp8_bf16": 4}  # a checkpoint has no FP8
# Both moments in fp32, which are made of others for a step; Transformer Engine after 2.12 needs none of bf16.
_WIDENED = 8


def gradient_bytes(config: RunConfig) -> int:
    """Return the bytes of a gradient, in memory and between ranks."""
    return _GRADIENT[config.precision.gradients]


def state_bytes(config: RunConfig) -> int:
    """Return the bytes that the optimizer holds for each of its parameters: master and moments."""
    # fp32 weights are their own masters.
    master = _MASTER[config.precision.masters] if config.precision.dtype == "bf16" else 0
    return master + _MOMENTS[config.precision.moments]


def saved_bytes(config: RunConfig) -> int:
    """Return the bytes of a checkpoint for each parameter: the fp32 weight and both moments."""
    return 4 + _SAVED_MOMENTS[config.precision.moments]


def widened_bytes(config: RunConfig, owned: int, largest: int) -> int:
    """Return the bytes of the fp32 copies that a step makes of moments in other formats.

    Args:
        config: the run.
        owned: elements that the rank's optimizer updates.
        largest: elements of the largest parameter.
    """
    return 0 if config.precision.moments == "fp32" else _WIDENED * min(owned, max(largest, STEP_ELEMENTS))


def step_traffic_saved(precision: Precision) -> int:
    """Return by how many bytes a parameter less memory traffic a step has than with fp32 alone; negative: more.

    A gradient is read by Adam and by the norm, and read and written by clipping and by the division. Moments in bf16
    are read, widened, updated, and rounded; one in FP8 is also scaled twice, and searched for its largest value and for
    subnormals. A remainder and its weight are both read and written.
    """
    gradients = 6 * (4 - _GRADIENT[precision.gradients])
    moments = 16 - {"fp32": 16, "bf16": 40, "fp8_bf16": 66}[precision.moments]
    return gradients + moments + (2 if precision.masters == "bf16_remainder" else 0)
