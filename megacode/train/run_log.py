"""Write a run's records to metrics.jsonl and its mirrors, and its events to events.jsonl.

All ranks have a RunLog; only rank 0's writes files, so that no caller has to ask which rank it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.mcore.alignment import Alignment
from megacode.metrics.meter import Meter, alignment_record, fp8_probe_record, health_record, validation_record
from megacode.metrics.reader import lost_work
from megacode.metrics.sinks import Events, Record, Sink, open_sinks
from megacode.train.calendar import Iteration
from megacode.train.stop_limits import process_start


class RunLog:
    """The records and events of a run.

    Args:
        run: the run directory.
        state: the clock that is written with events; replaced by `rewind`.
        meter: makes records of results.
        events: `events.jsonl`; None except on rank 0.
        total_iterations: of the whole run, for the console.
        sinks: where records are written; empty except on rank 0.

    Attributes:
        meter, events, sinks: the same.
    """

    def __init__(
        self,
        run: RunDir,
        state: TrainState,
        meter: Meter,
        events: Events | None,
        total_iterations: int,
        sinks: Sequence[Sink],
    ) -> None:
        self._run, self._state, self.meter, self.events = run, state, meter, events
        self._total_iterations, self.sinks = total_iterations, list(sinks)

    @property
    def writes(self) -> bool:
        """Whether this rank's log writes files."""
        return bool(self.sinks)

    def write(self, record: Record) -> None:
        """Write one record to every sink."""
        for sink in self.sinks:
            sink.write(record)

    def event(self, event: str, **facts: Any) -> None:
        """Write one event at the present clock."""
        # Every event has the clock, so that readers can place it without metrics.jsonl.
        if self.events is not None:
            clock = {"iteration": self._state.iteration, "consumed_samples": self._state.consumed_samples}
            self.events.write(event, **clock, **facts)

    def trained(self, iteration: Iteration, learning_rate: float, fp8: Any) -> Record:
        """Write the record of an iteration, and return it.

        Args:
            iteration: with the result of its step.
            learning_rate: of its update.
            fp8: name of its recipe; None without FP8.
        """
        assert iteration.result is not None
        record = self.meter.train(
            iteration.result,
            iteration=iteration.number,
            consumed_before=iteration.before,
            consumed=iteration.after,
            learning_rate=learning_rate,
            fp8=fp8,
            seconds=iteration.seconds,
        )
        self.write(record)
        return record

    def validated(self, losses: dict[str, float], phase: str, reason: str, seconds: float) -> None:
        """Write losses on held-out documents by source, in nats per token."""
        # A record for the curves, and an event for the time that it took.
        self.write(validation_record(losses, phase=phase, reason=reason, **self._clock()))
        self.event("validation", reason=reason, seconds=round(seconds, 4))

    def probed(self, probe: dict[str, Any], iteration: Iteration, phase: str) -> None:
        """Write an FP8 probe, which was made before an iteration."""
        self.write(fp8_probe_record(probe, iteration=iteration.number, consumed=iteration.before, phase=phase))
        if probe["alarm"]:
            self.event("fp8_alarm", alarm=probe["alarm"], fell_back=probe["fell_back"])

    def aligned(self, comparison: Alignment, phase: str, samples: int, learning_rate: float, seconds: float) -> None:
        """Write a comparison of the sources' gradients; arguments as of `alignment_record`."""
        seconds = round(seconds, 4)
        clock = self._clock()
        self.write(
            alignment_record(
                comparison, phase=phase, samples=samples, learning_rate=learning_rate, seconds=seconds, **clock
            )
        )
        self.event("alignment", seconds=seconds)

    def health(self, reports: Sequence[Any], phase: str) -> None:
        """Write which rank the others wait for, and the largest memory use of any rank."""
        self.write(health_record(reports, phase=phase, **self._clock()))

    def lost(self, iteration: int) -> tuple[int, float]:
        """Return how many iterations after this one were trained already, and their seconds; zeros except on rank 0."""
        # Read from the file: iterations of earlier starts count as well.
        return lost_work(self._run.metrics, iteration) if self.writes else (0, 0.0)

    def rewind(self, state: TrainState) -> None:
        """Continue at an earlier clock: reopen the sinks there, so that mirrors drop what will be trained again."""
        # TensorBoard keeps what it was given: only reopened at a step does it drop what comes after that.
        self._state = state
        if self.writes:
            self.close()
            self.sinks = open_sinks(self._run, state.iteration, state.consumed_samples, self._total_iterations)

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()

    def _clock(self) -> dict[str, int]:
        return {"iteration": self._state.iteration, "consumed": self._state.consumed_samples}


def seconds_since_start() -> float:
    """Return the seconds since this process started."""
    # From the system's record of the process: slow imports before this module count, too.
    return round(time.time() - process_start(), 3)
