"""Recompute one iteration of a run in memory: what it read, the loss of each sample, the gradient of each parameter.

A run is deterministic. So training from the newest checkpoint before an iteration repeats that iteration, bit for bit
on the run's own layout and device; the record in metrics.jsonl proves it. In the run directory only the file of the
replay is written, and the run may be training meanwhile.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from megacode.base.errors import ConfigError, MegacodeError
from megacode.base.files import Json, RunDir, write_json
from megacode.checkpoint.ledger import Ledger
from megacode.config.config_file import dump_config
from megacode.data.loader import Loader
from megacode.data.source_stream import SourceStream, window_tokens
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_streams
from megacode.mcore import gradient_norms, groups, optimizer
from megacode.mcore.agreement import decided, prove_equal
from megacode.mcore.build import build
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import StepResult, evaluate, train_step
from megacode.metrics.meter import source_means
from megacode.metrics.reader import read_metrics
from megacode.planning.order import sample_rows
from megacode.planning.run_plan import Plan
from megacode.replay.comparison import COMPARED, agreement, ranks_of, replayable, worst_first
from megacode.train import restoring
from megacode.train.fp8_watch import Fp8Watch
from megacode.train.origin import find_origin

log = logging.getLogger(__name__)

_TEXTS = 5  # of the worst samples; all texts of a large batch would be megabytes
_CHARACTERS = 400  # of each text


@dataclass
class _Run:
    """One rank's state of a run between two iterations.

    Attributes:
        plan, streams, rank_model, loader, ledger: as in training.
        iteration, clock: iterations done and samples consumed so far.
        checkpoint: that the state was loaded from; None: the run's start.
        layout: that the checkpoint was saved under; empty at the run's start.
        fp8: switches the number format of the next iteration.
        fp8_until: the iteration from which on the run trained without FP8; infinite if it never fell back.
    """

    plan: Plan
    streams: dict[str, SourceStream]
    rank_model: RankModel
    loader: Loader
    ledger: Ledger
    iteration: int
    clock: int
    checkpoint: Path | None
    layout: dict[str, int]
    fp8: Fp8Watch
    fp8_until: float

    def enter(self) -> None:
        """Set the phase's number format and optimizer, as training did before the next iteration."""
        # A probe's fallback is not a function of the config: it is replayed from the record of the probes.
        self.fp8.fell_back = self.fp8.fell_back or self.iteration + 1 >= self.fp8_until
        schedule = self.plan.schedule
        phase = self.plan.config.phases[schedule.phase_at(self.clock).index]
        self.fp8.enter(phase, self.batch, len(schedule.source_names))
        config = self.plan.config
        optimizer.use(config, self.rank_model.optimizer, config.optimizer_in(phase))

    def batch(self) -> list[MicroBatch]:
        """Return this rank's micro-batches of the next iteration."""
        return self.loader.batch(self.clock)

    def next_clock(self) -> int:
        """Return the clock after the next iteration; batch sizes may ramp up."""
        return self.plan.batches.next(self.clock)

    def step(self, probe: _Probe | None = None) -> StepResult:
        """Train the next iteration as the run did, and advance the clock."""
        self.enter()
        after = self.next_clock()
        withheld = self.ledger.withheld(self.clock, after) is not None

        # Called between backward pass and update. The ledger decides what training's update guard decided then.
        def accepts(loss: float, grad_norm: float) -> bool:
            if probe is not None:
                probe.measure(self.rank_model)
            return not withheld

        sources = len(self.plan.schedule.source_names)
        result = train_step(self.rank_model, self.batch(), self.plan.rates.at(after), sources, accepts)
        self.iteration, self.clock = self.iteration + 1, after
        return result


class _Probe:
    """Takes the gradient norms of one iteration; the update overwrites the gradients."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}

    def measure(self, rank_model: RankModel) -> None:
        self.norms = self.norms or gradient_norms.by_parameter(rank_model)


def replay(run_dir: Path, iteration: int, out: Path | None = None) -> Json:
    """Recompute an iteration of a run, write the result and return it; every rank calls this.

    Args:
        run_dir: the run directory.
        iteration: from 1 to the last one trained, or one more if the plan has one more.
        out: the file to write; None: `replays/` in the run directory.

    Returns:
        The replay's document, the same on every rank.

    Raises:
        CheckpointError: a required checkpoint is missing, damaged or of another past.
        ConfigError: there is no such run or iteration.
        LaunchError: the number of processes does not fit the run's layout.
    """
    started = time.perf_counter()
    plan, record = replayable(run_dir, iteration)
    with _joined():
        run = _begin(plan, RunDir(run_dir), iteration)
        if iteration - 1 > run.iteration:
            log.info("recomputing iterations %d to %d", run.iteration + 1, iteration - 1)
        # No checkpoint right before the iteration: train up to it, at the run's own speed.
        while run.iteration < iteration - 1:
            run.step()
        document = _replayed(run, record)
        document["seconds"] = round(time.perf_counter() - started, 3)
        if run.rank_model.ranks.rank == 0:
            _write(document, out or RunDir(run_dir).replays / f"iteration_{iteration}.json")
        return groups.broadcast_object(document)


@contextmanager
def _joined() -> Iterator[None]:
    try:
        yield
    finally:
        groups.stop()


def _begin(plan: Plan, directory: RunDir, iteration: int) -> _Run:
    """Build the run's state from the newest intact checkpoint before an iteration, or from its start."""
    config = plan.config
    streams = open_streams(config)
    ranks = groups.start(config.parallel, config.seed)
    # As in training: ranks that differ in config or plan would compute something that no run ever computed.
    prove_equal({"config": yaml.safe_load(dump_config(config)), "plan": plan.schedule.fingerprints()})
    rank_model = build(config, ranks, plan.vocab_size)
    # Rank 0 decides what files say, because the run may be writing them, and every rank would see another moment.
    ledger = Ledger(directory, decided(lambda: Ledger.read(directory).entries))
    own = _checkpoint_before(directory, iteration, ledger)
    origin = decided(lambda: find_origin(plan, own))
    state = origin.state
    if origin.checkpoint is not None and origin.saved is not None:
        restoring.load(config, rank_model, origin.checkpoint, origin.saved, weights_only=origin.weights_only)
    if state.iteration >= iteration:  # a branch, asked for an iteration of its trunk
        what = f"the run branched off {origin.checkpoint}, after iteration {state.iteration}"
        raise ConfigError(what, "--iteration", f"give a number from {state.iteration + 1} on, or replay that run")
    loader = Loader(config, plan.schedule, plan.batches, streams, ranks.dp_rank, ranks.dp_size)
    fp8 = Fp8Watch(config, rank_model)
    fp8.restore(state.health.get("fp8", {}))
    return _Run(
        plan=plan,
        streams=streams,
        rank_model=rank_model,
        loader=loader,
        ledger=ledger,
        iteration=state.iteration,
        clock=state.consumed_samples,
        checkpoint=origin.checkpoint,
        layout=state.layout,
        fp8=fp8,
        fp8_until=_fp8_until(directory),
    )


def _fp8_until(directory: RunDir) -> float:
    """Return the iteration from which on a run trained without FP8, because a probe was out of tolerance."""
    probes = read_metrics(directory.metrics, "fp8_probe")
    return min((record["iteration"] for record in probes if record["fell_back"]), default=math.inf)


def _checkpoint_before(directory: RunDir, iteration: int, ledger: Ledger) -> Path | None:
    """Return the newest intact checkpoint that was saved before an iteration began; None if there is none."""
    numbers = decided(directory.iterations)
    earlier = [directory.checkpoint(number) for number in reversed(numbers) if number < iteration]
    return restoring.pick(earlier, ledger).path


def _replayed(run: _Run, record: Json | None) -> Json:
    """Train the next iteration and return its document."""
    first, last, schedule = run.clock, run.next_clock(), run.plan.schedule
    run.enter()
    losses = _losses_by_sample(run)  # before the step, which changes the weights
    probe = _Probe()
    result = run.step(probe)
    probe.measure(run.rank_model)  # if the step never asked `accepts`: a gradient that is not finite is still there
    replayed = _measured(run, result)
    entry = run.ledger.withheld(first, last)
    ranks, dtype = run.rank_model.ranks, run.plan.config.precision.dtype
    return {
        "iteration": run.iteration,
        "phase": schedule.phase_at(first).name,
        "first_sample": first,
        "last_sample": last,
        "checkpoint": str(run.checkpoint) if run.checkpoint else None,
        "ranks": ranks.world_size,
        "recorded_ranks": ranks_of(RunDir(run.plan.config.directory), run.iteration),
        "saved_layout": run.layout,
        "withheld": entry.reason if entry else None,
        "agreement": agreement(replayed, record, dtype),
        "recorded": {key: record[key] for key in COMPARED if key in record} if record else None,
        "replayed": replayed,
        "samples": _samples(run, first, losses) if ranks.rank == 0 else [],  # the losses are the same on all ranks
        "gradient_norms": probe.norms,
    }


def _measured(run: _Run, result: StepResult) -> Json:
    """Return an iteration's measurements in the form of metrics.jsonl."""
    names = run.plan.schedule.source_names
    return {
        "loss": result.loss,
        "loss_by_source": source_means(names, result.loss_sum_by_source, result.tokens_by_source),
        "grad_norm": result.grad_norm,
        "samples_digest": result.samples_digest,
        "samples_by_source": {name: n for name, n in zip(names, result.samples_by_source, strict=True) if n},
        "skipped": result.skipped,
    }


def _losses_by_sample(run: _Run) -> list[tuple[float, int]]:
    """Return the mean loss and the number of valid tokens of each sample of the next iteration, in order of the clock.

    Without dropout, before the update, on every rank.
    """
    # A forward pass sums losses by source. Here each sample gets a source number of its own, so the sums are by sample.
    size = run.next_clock() - run.clock
    alone = [
        replace(batch, source_ids=(batch.samples - run.clock).where(batch.samples >= 0, batch.source_ids))
        for batch in run.batch()
    ]
    sums = evaluate(run.rank_model, alone, size)
    return [(total / max(count, 1), count) for total, count in zip(sums.loss_sum, sums.tokens, strict=True)]


def _samples(run: _Run, first: int, losses: list[tuple[float, int]]) -> list[Json]:
    """Return each sample's source, window and loss, and the text of the worst ones; the worst first."""
    numbers = range(first, first + len(losses))
    rows: list[Json] = sample_rows(run.plan.schedule, numbers, run.ledger, run.streams.__getitem__)
    for row, (loss, tokens) in zip(rows, losses, strict=True):
        row |= {"loss": loss, "tokens": tokens, "text": None}
    rows = worst_first(rows)
    for row, text in zip(rows, _texts(run, [row["sample"] for row in rows[:_TEXTS]]), strict=False):
        row["text"] = text
    return rows


def _texts(run: _Run, samples: list[int]) -> list[str]:
    """Return the beginnings of some samples as text; nothing without a tokenizer."""
    config = run.plan.config
    if config.tokenizer is None:
        return []
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except MegacodeError as error:
        log.warning("the samples' text is not shown: %s", error.problems[0].what)
        return []
    texts = []
    for sample in samples:
        draw = run.plan.schedule.draw(sample)
        window = window_tokens(run.streams[draw.source], draw.first_token, draw.epoch)
        tokens = window.tokens[:_CHARACTERS]  # a token is at least a character
        texts.append(tokenizer.decode(tokens.tolist())[:_CHARACTERS])
    return texts


def _write(document: Json, path: Path) -> None:
    try:
        write_json(path, document)
        log.info("written to %s", path)
    except OSError as error:  # the result is printed anyway
        log.warning("the replay could not be written to %s (%s)", path, error)
