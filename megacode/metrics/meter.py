"""From what a step returns to one record: losses by source, tokens planned and seen, rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from megacode.mcore.step import StepResult
from megacode.plan.phases import Schedule


@dataclass
class Meter:
    """Turns step results into records of metrics.jsonl.

    Attributes:
        schedule: the plan of the data order, which says what should have been seen.
        flops_per_token: forward and backward, of the whole model.
        peak_flops: of all devices together, or None where it is not known.
        seen: samples of each source that training has really read, counted by the steps.
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
            result: of the step; equal on every rank.
            iteration: number of the iteration, from 1.
            consumed_before: clock before the iteration, in samples.
            consumed: clock after it.
            learning_rate: it was done with.
            fp8: the recipe it was computed with; None: without FP8.
            seconds: wall time it took.
        """
        names = self.schedule.source_names
        samples = {name: int(n) for name, n in zip(names, result.samples_by_source, strict=True) if n}
        for name, count in samples.items():
            self.seen[name] = self.seen.get(name, 0) + count
        tokens = (consumed - consumed_before) * self.schedule.seq_length
        flops = tokens * self.flops_per_token / seconds
        return {
            "kind": "train",
            "iteration": iteration,
            "consumed_samples": consumed,
            "consumed_tokens": consumed * self.schedule.seq_length,
            "phase": self.schedule.phase_at(consumed_before).name,
            "loss": result.loss,
            "loss_by_source": source_means(names, result.loss_sum_by_source, result.tokens_by_source),
            "samples_by_source": samples,
            "samples_digest": result.samples_digest,
            "tokens_by_source": self._planned_and_seen(consumed),
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "skipped": result.skipped,
            "fp8": fp8,
            "batch_size": consumed - consumed_before,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            "mfu": flops / self.peak_flops if self.peak_flops else None,
        }

    def _planned_and_seen(self, consumed: int) -> dict[str, dict[str, int]]:
        length = self.schedule.seq_length
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
    """Return the record of one validation; its `loss` is the plain mean over sources."""
    mean = sum(loss_by_source.values()) / len(loss_by_source)
    return {
        "kind": "validation",
        "iteration": iteration,
        "consumed_samples": consumed,
        "phase": phase,
        "loss": mean,
        "loss_by_source": loss_by_source,
        "reason": reason,
    }


def fp8_probe_record(found: dict[str, Any], *, iteration: int, consumed: int, phase: str) -> dict[str, Any]:
    """Return the record of one comparison of FP8 with the run's own dtype, made before an iteration."""
    return {"kind": "fp8_probe", "iteration": iteration, "consumed_samples": consumed, "phase": phase, **found}


def health_record(
    reports: Sequence[tuple[float, int, str]], *, iteration: int, consumed: int, phase: str
) -> dict[str, Any]:
    """Return the record of how the ranks are.

    Args:
        reports: by rank: seconds it worked on the last iteration before it waited for the others, its memory
            high-water in bytes, and its host.
        iteration, consumed, phase: where the run is.
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
