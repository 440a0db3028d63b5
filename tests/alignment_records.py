"""Made-up `alignment` records: gradients of each source are drawn, everything else follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("embedding", "attention", "mlp", "output")
LAYERS = 2
_WIDTH = 40  # numbers of a gradient in each kind


def alignment_record(
    names: Sequence[str],
    shared: Mapping[tuple[str, str], float],
    *,
    iteration: int,
    consumed: int,
    phase: str,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a record of gradients of which each takes a part of others.

    Args:
        names: of the sources.
        shared: what part of one source's gradient is in another's, by (of, in); negative: against it.
        iteration, consumed, phase, learning_rate: where the run is.
        seed: of the draw.
    """
    draw = np.random.default_rng([seed, iteration])
    own = {name: draw.normal(size=(len(KINDS), _WIDTH)) for name in names}
    mixed = {b: own[b] + sum(shared.get((a, b), 0.0) * own[a] for a in names if a != b) for b in names}
    gradients = np.stack([mixed[name] for name in names])
    gram = np.einsum("akw,bkw->kab", gradients, gradients)
    whole, norms = gram.sum(0), np.sqrt(np.diagonal(gram.sum(0)))
    of_kinds = {kind: learning_rate * part for kind, part in zip(KINDS, gram, strict=True)}
    own_norms = {kind: np.sqrt(np.diagonal(part)) for kind, part in zip(KINDS, gram, strict=True)}
    return {
        "kind": "alignment", "iteration": iteration, "consumed_samples": consumed, "phase": phase,
        "sources": list(names), "samples": 4, "learning_rate": learning_rate,
        "norms": dict(zip(names, norms.tolist(), strict=True)),
        "cosines": (whole / np.outer(norms, norms)).tolist(),
        "transfer": (learning_rate * whole).tolist(),
        "transfer_by_kind": {kind: part.tolist() for kind, part in of_kinds.items()},
        "transfer_by_depth": [(of_kinds["attention"] / LAYERS).tolist()] * LAYERS,
        "cosines_by_kind": {kind: (part / np.outer(own_norms[kind], own_norms[kind])).tolist()
                            for kind, part in zip(KINDS, gram, strict=True)},
        "seconds": 0.5,
    }  # fmt: skip
