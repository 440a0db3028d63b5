"""Turn the result of a training step into a record: losses by source, tokens planned and seen, rates."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from megacode.mcore.alignment import Alignment, Matrix
from megacode.mcore.step import StepResult
from megacode.plan.phases import Schedule


@dataclass
class Meter:
    """Turns step results into records of metrics.jsonl.

    Attributes:
        schedule: the data order, for the planned token counts.
        flops_per_token: forward and backward, of the whole model.
        peak_flops: of all devices together; None if unknown.
        seen: samples of each source that were actually read, as counted by the steps.
    """

    schedule: Schedule
    flops_per_token: float
    peak_flops: float | None
    seen: dict[str, int] = field(default_factory=dict)

    def train(
        self,
        result: StepResult,
        *,
        iteration: int,
        consumed_before: int,
        consumed: int,
        learning_rate: float,
        fp8: str | None,
        seconds: float,
    ) -> dict[str, Any]:
        """Return the record of one iteration.

        Args:
            result: of the step; identical on every rank.
            iteration: number of the iteration, from 1.
            consumed_before: clock before the iteration, in samples.
            consumed: clock after it.
            learning_rate: of this iteration.
            fp8: its FP8 recipe; None: without FP8.
            seconds: its wall time.
        """
        names = self.schedule.source_names
        # Only sources of this batch: a run may have many, of which most are rarely read.
        samples = {name: int(n) for name, n in zip(names, result.samples_by_source, strict=True) if n}
        for name, count in samples.items():
            self.seen[name] = self.seen.get(name, 0) + count
        window = self.schedule.seq_length + 1  # a sample reads one token more than it trains on
        fim = {name: n for name, n in zip(names, result.fim_tokens_by_source, strict=True) if n}
        tokens = (consumed - consumed_before) * self.schedule.seq_length
        flops = tokens * self.flops_per_token / seconds
        return {
            "kind": "train",
            "iteration": iteration,
            "consumed_samples": consumed,
            "consumed_tokens": consumed * self.schedule.seq_length,
            # The clock before: the last iteration of a phase ends at the first sample of the next.
            "phase": self.schedule.phase_at(consumed_before).name,
            "loss": result.loss,
            "loss_by_source": source_means(names, result.loss_sum_by_source, result.tokens_by_source),
            "samples_by_source": samples,
            **({"counted_tokens_by_source": counted} if (counted := self._counted(result)) else {}),
            # Only where there are any: most runs have none.
            **({"fim_share_by_source": {name: n / samples[name] / window for name, n in fim.items()}} if fim else {}),
            "samples_digest": result.samples_digest,
            "tokens_by_source": self._planned_and_seen(consumed),
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            **({"z_loss": result.z_loss} if result.z_loss else {}),
            "skipped": result.skipped,
            "fp8": fp8,
            "batch_size": consumed - consumed_before,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            # Of the dense peak of the run's own dtype, also in FP8, so that runs are comparable.
            "mfu": flops / self.peak_flops if self.peak_flops else None,
            "time": round(time.time(), 3),
        }

    def _counted(self, result: StepResult) -> dict[str, int]:
        """Return how many tokens counted in the loss, of the sources of this batch that have a loss mask."""
        rows = zip(self.schedule.source_names, result.samples_by_source, result.tokens_by_source, strict=True)
        sizes = self.schedule.sizes
        return {name: n for name, samples, n in rows if samples and name in sizes and sizes[name].masked}

    def _planned_and_seen(self, consumed: int) -> dict[str, dict[str, int]]:
        length = self.schedule.seq_length
        # Two independent counts: the plan's arithmetic, and what the loss function really saw.
        planned = self.schedule.counts_at(consumed)
        return {
            name: {"planned": count * length, "seen": self.seen.get(name, 0) * length}
            for name, count in planned.items()
        }


def source_means(names: Sequence[str], sums: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """Return the mean loss per token of each source that had tokens."""
    return {name: total / count for name, total, count in zip(names, sums, tokens, strict=True) if count}


def validation_record(
    loss_by_source: dict[str, float], *, iteration: int, consumed: int, phase: str, reason: str
) -> dict[str, Any]:
    """Return the record of one validation; its `loss` is the unweighted mean over sources."""
    # Unweighted, so that it stays comparable when the blend changes between phases.
    # Without a held-out token that counts there is no loss.
    mean = sum(loss_by_source.values()) / len(loss_by_source) if loss_by_source else math.nan
    return {
        "kind": "validation",
        "iteration": iteration,
        "consumed_samples": consumed,
        "phase": phase,
        "loss": mean,
        "loss_by_source": loss_by_source,
        "reason": reason,
    }


def alignment_record(
    comparison: Alignment,
    *,
    iteration: int,
    consumed: int,
    phase: str,
    samples: int,
    learning_rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Return the record of one comparison of the sources' gradients, which is made after an iteration.

    In each matrix the row is the source of the step, and the column the source of the loss.

    Args:
        comparison: gradients and steps, compared.
        iteration, consumed, phase: position of the run.
        samples: held-out windows of each source.
        learning_rate: of the iteration; transfers are in nats per token for a step of this size.
        seconds: that the comparison took.
    """
    plain, stepped = comparison.plain, comparison.stepped
    squares = [row[number] for number, row in enumerate(plain.whole)]
    return {
        "kind": "alignment",
        "iteration": iteration,
        "consumed_samples": consumed,
        "phase": phase,
        "sources": comparison.names,
        "samples": samples,
        "learning_rate": learning_rate,
        "norms": {name: math.sqrt(square) for name, square in zip(comparison.names, squares, strict=True)},
        "cosines": _cosines(plain.whole),
        "transfer": _scaled(stepped.whole, learning_rate),
        "cosines_by_kind": {kind: _cosines(part) for kind, part in plain.by_kind.items()},
        "transfer_by_kind": {kind: _scaled(part, learning_rate) for kind, part in stepped.by_kind.items()},
        "transfer_by_depth": [_scaled(part, learning_rate) for part in stepped.by_layer],
        "seconds": seconds,
    }


def _cosines(products: Matrix) -> Matrix:
    norms = [math.sqrt(row[number]) for number, row in enumerate(products)]
    # Without a gradient there is no angle.
    return [
        [value / (left * right) if left * right else math.nan for value, right in zip(row, norms, strict=True)]
        for row, left in zip(products, norms, strict=True)
    ]


def _scaled(products: Matrix, factor: float) -> Matrix:
    return [[factor * value for value in row] for row in products]


def fp8_probe_record(distances: dict[str, Any], *, iteration: int, consumed: int, phase: str) -> dict[str, Any]:
    """Return the record of one FP8 probe, which compares FP8 with the run's own dtype before an iteration."""
    return {"kind": "fp8_probe", "iteration": iteration, "consumed_samples": consumed, "phase": phase, **distances}


def health_record(
    reports: Sequence[tuple[float, int, str]], *, iteration: int, consumed: int, phase: str
) -> dict[str, Any]:
    """Return the record of the slowest rank and of the one with most memory.

    Args:
        reports: by rank: seconds of work in the last iteration, before waiting for the others; peak memory in bytes;
            and host.
        iteration, consumed, phase: position of the run.
    """
    seconds, memory, hosts = zip(*reports, strict=True)
    slowest, fullest = seconds.index(max(seconds)), memory.index(max(memory))
    return {
        "kind": "health",
        "iteration": iteration,
        "consumed_samples": consumed,
        "phase": phase,
        "slowest_rank": slowest,
        "slowest_host": hosts[slowest],
        "slowest_seconds": seconds[slowest],
        "median_seconds": median(seconds),
        "memory_bytes": memory[fullest],
        "memory_rank": fullest,
    }
