"""What a probe of FP8 found, in words: for the log and for `megacode status`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def found(probe: Mapping[str, Any]) -> str:
    """Return the distances of a `fp8_probe` record: `loss 0.02% off, gradients 1.3% (norms) to 9.6% (linear_qkv)`."""
    distances: dict[str, float] = probe.get("gradient_difference") or {}
    said = f"loss {_percent(probe['loss_difference'])} off"
    if not distances:
        return said
    # What is no number is the furthest of all: nan compares with nothing.
    order = sorted(distances, key=lambda kind: (math.isnan(distances[kind]), distances[kind]))
    least, most = order[0], order[-1]
    return f"{said}, gradients {_percent(distances[least])} ({least}) to {_percent(distances[most])} ({most})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 1 else f"{share:.0%}"
