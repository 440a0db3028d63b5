"""megacode's own step, as a run carries it out, fed from the host."""

from __future__ import annotations

from typing import Any

import torch

from gpu.measure import run_config
from megacode.mcore import groups, precision, te
from megacode.mcore.build import build as build_rank
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.step import train_step


def build(preset: str, micro: int, name: str) -> Any:
    """Return a function that trains one step and returns its loss."""
    wanted, _, head = name.removeprefix("megacode-").partition("+")
    fp8 = {} if wanted in ("bf16", "local") else {"fp8": {"recipe": wanted, "output_layer": head == "output"}}
    config = run_config(preset, micro, transformer_impl="local" if wanted == "local" else "auto", **fp8)
    # `auto` falls back to torch's layers, and the figure would then be of something else.
    assert te.used(config) == (wanted != "local"), te.obstacle()
    built = build_rank(config, groups.start(config.parallel, config.seed), config.model.vocab_size)
    # A run switches at each phase. Here there is one.
    precision.use(built, config.fp8_in(config.phases[0]))

    def step(batches: list[torch.Tensor]) -> float:
        # Micro-batches are made inside the clock. A run's loader makes them ahead in a thread.
        return train_step(built, [_microbatch(batch) for batch in batches], 1e-5, 2).loss

    return step


def _microbatch(batch: torch.Tensor) -> MicroBatch:
    rows, length = batch.size(0), batch.size(1) - 1
    return MicroBatch(
        tokens=batch[:, :-1].contiguous(),
        labels=batch[:, 1:].contiguous(),
        loss_mask=torch.ones(rows, length),
        position_ids=torch.arange(length).repeat(rows, 1),
        cu_seqlens=None,
        source_ids=torch.arange(rows) % 2,
        samples=torch.arange(rows),
    )
