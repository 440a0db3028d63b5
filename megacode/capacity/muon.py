"""What Muon costs a rank: state, operations, communication, and memory of its step.

A matrix's state lies whole on one owner of the ranks with the same weights (`owners`); other parameters are cut into
equal runs. Newton-Schulz iterations of an m x n matrix (m <= n) take 4 m^2 n + 2 m^3 operations each. Tensor-parallel
ranks send their slices to the one that computes, and get slices back. Estimates, not measured: the time assumes that
owners and tensor-parallel ranks share the operations evenly.
"""

from __future__ import annotations

from collections.abc import Iterator

from megacode.capacity.buffers import MATRICES, state_elements, trains_with_muon
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout

_BYTES = {"fp32": 4, "bf16": 2}


def _shapes(place: Layout) -> Iterator[tuple[int, int]]:
    """Yield rows and columns of the whole matrices of a layer, as they are made orthogonal."""
    model = place.config.model
    queries, keys = model.num_attention_heads * model.head_size, model.query_groups * model.head_size
    yield from ((queries, model.hidden_size), (keys, model.hidden_size), (keys, model.hidden_size))
    yield model.hidden_size, queries
    yield from ((model.ffn_hidden_size, model.hidden_size),) * 2
    yield model.hidden_size, model.ffn_hidden_size


def seconds(place: Layout, hardware: Hardware) -> float:
    """Return the time of a rank's Newton-Schulz iterations in an optimizer step; 0 where the phase has none."""
    if not trains_with_muon(place):
        return 0.0
    settings, parallel = place.config.train.muon, place.config.parallel
    sides = [(min(shape), max(shape)) for shape in _shapes(place)]
    operations = settings.newton_schulz_steps * sum(4 * m * m * n + 2 * m**3 for m, n in sides)
    among = parallel.tensor * (place.shards if parallel.distributed_optimizer else 1)
    rate = hardware.peak_flops(settings.newton_schulz_dtype) * hardware["gemm_efficiency"]
    # More ranks than matrices: whoever computes does at least one whole layer's largest matrices alone.
    layers = max(place.stage_layers / among, 1 / len(MATRICES))
    return layers * operations / rate


def gathered_bytes(place: Layout) -> float:
    """Return the bytes that a rank's tensor-parallel group gathers and scatters in a step: both ways together."""
    if not trains_with_muon(place) or place.config.parallel.tensor == 1:
        return 0.0
    matrices = state_elements(place, 0, None)[0]
    # Each rank computes its share of the parameters, so it receives as much as it holds.
    return 2.0 * _BYTES[place.config.train.muon.newton_schulz_dtype] * matrices


def sends(place: Layout) -> int:
    """Return the number of collectives that send new weights: one per matrix, embedding and output, one for vectors."""
    return len(MATRICES) * place.stage_layers + 2


def step_bytes(place: Layout) -> int:
    """Return the memory of a step besides state: slices, whole matrices and results of the largest parameter."""
    if not trains_with_muon(place):
        return 0
    model = place.config.model
    largest = 2 * model.ffn_hidden_size * model.hidden_size
    side = min(model.ffn_hidden_size, model.hidden_size)
    return _BYTES[place.config.train.muon.newton_schulz_dtype] * (6 * largest + 3 * side * side)
