"""Format an FP8 probe as text, for the log and `megacode status`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def found(probe: Mapping[str, Any]) -> str:
    """Return the distances of a `fp8_probe` record: `loss 0.02% off, gradients 1.3% (norms) to 9.6% (linear_qkv)`."""
    distances: dict[str, float | None] = probe.get("gradient_difference") or {}
    text = f"loss {_percent(probe['loss_difference'])} off"
    if not distances:
        return text
    # Not finite sorts last. It is NaN in memory, which cannot be compared, and null in a file.
    order = sorted(distances, key=lambda kind: _number(distances[kind]))
    least, most = order[0], order[-1]
    return f"{text}, gradients {_percent(distances[least])} ({least}) to {_percent(distances[most])} ({most})"


def _number(share: float | None) -> float:
    return math.inf if share is None or not math.isfinite(share) else share


def _percent(share: float | None) -> str:
    if math.isinf(_number(share)):
        return "not finite"
    return f"{100 * _number(share):.2g}%" if _number(share) < 1 else f"{_number(share):.0%}"
