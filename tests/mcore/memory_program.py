"""What runs on the ranks of test_memory.py: bytes that real parts hold, and that real iterations keep."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import rank_program as program

from megacode.mcore.optimizer_state import held, prime
from megacode.mcore.rank_model import RankModel


def holdings(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Build each case's parts; return, by case, where this rank stands and the bytes of what it holds."""
    return {name: _holdings(program.started(program.run_config(**case))) for name, case in cases.items()}


def _holdings(rank_model: RankModel) -> dict[str, Any]:
    prime(rank_model.optimizer)
    runs = list(held(rank_model.optimizer))
    buffers = [buffer for chunk in rank_model.chunks for buffer in chunk.buffers]
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage() for c in rank_model.chunks for p in c.parameters()}
    copies = [run.tensors["model"] for run in runs if run.parameter.dtype != torch.float32]
    moments = [tensor for run in runs for name, tensor in run.tensors.items() if name != "model"]
    return {
        "rank": rank_model.ranks.rank,
        "parameters": sum(p.numel() for chunk in rank_model.chunks for p in chunk.parameters()),
        "weights": sum(storage.nbytes() for storage in weights.values()),
        "gradients": sum(buffer.grad_data.untyped_storage().nbytes() for buffer in buffers),
        "optimizer": sum(tensor.numel() * tensor.element_size() for tensor in (*copies, *moments)),
    }


def checkpoints(case: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of weights and moments that this rank writes into a checkpoint, and its rank."""
    from megacode.checkpoint.tensors import saved_pieces

    rank_model = program.started(program.run_config(**case))
    found = [
        piece for piece in saved_pieces(rank_model) if piece.name.split(".")[0] in ("model", "exp_avg", "exp_avg_sq")
    ]
    return {"rank": rank_model.ranks.rank, "bytes": sum(p.data.numel() * p.data.element_size() for p in found)}


def activations(cases: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Train an iteration of each case; return, by case, the most bytes that were kept for a backward pass at once."""
    found = {}
    for name, case in cases.items():
        rank_model = program.started(program.run_config(**case))
        with kept_bytes(rank_model) as most:
            program.iterate(rank_model, 0, 1)
        found[name] = most[0]
    return found


class _Kept:
    """Stands in the graph for a tensor; when the graph lets go of it, so does the count."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@contextmanager
def kept_bytes(rank_model: RankModel) -> Iterator[list[int]]:
    """Follow the storages that graphs keep, weights left out; yield the most bytes at once."""
    weights = {p.untyped_storage().data_ptr() for chunk in rank_model.chunks for p in chunk.parameters()}
    graphs: Counter[int] = Counter()
    now, most = [0], [0]

    def pack(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in weights:
            return tensor
        kept = _Kept(tensor)
        now[0] += 0 if graphs[key] else size
        graphs[key] += 1
        most[0] = max(most[0], now[0])
        weakref.finalize(kept, release, key, size)
        return kept

    def release(key: int, size: int) -> None:
        graphs[key] -= 1
        now[0] -= 0 if graphs[key] else size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: getattr(kept, "tensor", kept)):
        yield most
