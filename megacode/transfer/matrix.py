"""The matrix sources x tasks of a checkpoint: check everything, load the model, measure, and put the document together.

Everything that a user may get wrong is checked before a model is loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
from megacode.base.files import Json, write_json
from megacode.base.progress import bar
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.config.run import RunConfig
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.data.tokenizer import Tokenizer
from megacode.eval.suites import Suite
from megacode.transfer.checkpoint_model import check_moments, loaded, open_checkpoint
from megacode.transfer.gold_items import AskedTask, gold_tasks, read_suite
from megacode.transfer.passes import MakeBatch, SourceSums, TaskSums, backward_passes, groups, measure
from megacode.transfer.sequences import AnswerTokens, answer_batch, answer_tokens, window_batch
from megacode.transfer.sources import SourceWindows, open_windows
from megacode.transfer.spread import interval

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferOptions:
    """What is asked.

    Attributes:
        sources: names of the run's sources, or NAME=PREFIX of other data sets; empty: all of the run's.
        suite: a suite's name or file.
        samples: windows of each source, at most.
        items: items of each task, at most.
        without: tasks to leave out.
        tasks_dir: directory of the items of `demo`; None: the run's.
        learning_rate: of the step; None: the peak of the phase that the checkpoint is in.
        level: of the intervals.
        plain: step along the gradient itself, not along what the optimizer makes of it.
        out: the file to write; None: none.
        overwrite: replace an existing file.
    """

    suite: str
    sources: Sequence[str] = ()
    samples: int = 64
    items: int = 100
    without: Sequence[str] = ()
    tasks_dir: Path | None = None
    learning_rate: float | None = None
    level: float = 0.95
    plain: bool = False
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class _Question:
    """What is measured, checked and opened; no model is loaded yet."""

    source: OpenedCheckpoint
    suite: Suite
    learning_rate: float
    windows: list[SourceWindows]
    tasks: list[AskedTask]
    answers: dict[str, list[AnswerTokens]] = field(default_factory=dict)


def transfer_matrix(path: Path, options: TransferOptions) -> Json:
    """Measure what a step on each source does to the loss of each task's gold answers.

    Args:
        path: a checkpoint, or a run directory, which stands for its newest one.
        options: what is asked.

    Returns:
        The document that docs/transfer.md describes; `options.out` holds the same.

    Raises:
        CheckpointError: there is no checkpoint, it holds weights only, or the run's tokenizer is missing.
        ConfigError: an unknown source, suite or task, or one that cannot be measured.
        DataError: data cannot be read.
    """
    # Before any work: minutes of measuring must not end in a refusal.
    if options.out is not None:
        refuse_existing([options.out], options.overwrite, "--out")
        refuse_unwritable(options.out, "--out")
    question = _checked(path, options)
    if options.out is None:
        return _measured(question, options)
    # Held while it measures: a second command with this --out is refused at once.
    with claimed(options.out, "--out", new=not options.overwrite):
        document = _measured(question, options)
        write_json(options.out, document)
    return document


def _checked(path: Path, options: TransferOptions) -> _Question:
    source = open_checkpoint(path)
    if not options.plain:
        check_moments(source.path)
    rate = options.learning_rate or peak_rate(source.config, _phase(source).name)
    tokenizer = source.tokenizer
    # Sources first: a mistake in them shows at once, while tasks take seconds to load.
    windows = open_windows(source.config, tokenizer.hash, options.sources, options.samples)
    suite = read_suite(options.suite, source.path, options.tasks_dir)
    tasks = gold_tasks(suite, options.items, options.without)
    question = _Question(source, suite, rate, windows, tasks)
    for task in tasks:
        question.answers[task.name] = answer_tokens(tokenizer, task.items, source.config.train.seq_length)
        if cut := sum(item.cut > 0 for item in question.answers[task.name]):
            message = "%s: %d of %d items exceed the context of %d tokens; their beginning was cut"
            log.warning(message, task.name, cut, len(task.items), source.config.train.seq_length)
    return question


def _measured(question: _Question, options: TransferOptions) -> Json:
    started = time.perf_counter()
    windows, items = _batches(question, question.source.tokenizer)
    with loaded(question.source, options.plain) as rank_model:
        with bar("backward passes", backward_passes(windows, items)) as advance:
            sources, sums = measure(rank_model, windows, items, options.plain, advance)
        steps_along = "gradient" if options.plain else question.source.config.optimizer_in(_phase(question.source))
    return {
        **_facts(question, options),
        "learning_rate": question.learning_rate,
        "steps_along": steps_along,
        "sources": [_source(one, sources[one.name]) for one in question.windows],
        "tasks": [_task(task, question, sums[task.name], options.level) for task in question.tasks],
        "seconds": round(time.perf_counter() - started, 3),
    }


def _batches(
    question: _Question, tokenizer: Tokenizer
) -> tuple[dict[str, list[MakeBatch]], dict[str, list[MakeBatch]]]:
    train = question.source.config.train
    assert tokenizer.eod is not None, "an opened checkpoint's tokenizer has one"
    windows: dict[str, list[MakeBatch]] = {
        one.name: [partial(window_batch, one.stream, first, train.isolate_documents) for first in one.first_tokens]
        for one in question.windows
    }
    items: dict[str, list[MakeBatch]] = {
        name: [partial(answer_batch, item, tokenizer.eod, train.seq_length) for item in answers]
        for name, answers in question.answers.items()
    }
    return windows, items


def _phase(source: OpenedCheckpoint) -> Any:
    """Return the phase of the config that a checkpoint is in."""
    named = [phase for phase in source.config.phases if phase.name == source.state.phase]
    # An imported checkpoint has trained in none.
    return named[0] if named else source.config.phases[0]


def peak_rate(config: RunConfig, phase: str) -> float:
    """Return the peak learning rate of a phase; of one without a peak, where the phase before it ends.

    Raises:
        ConfigError: that is 0, or not in the config, as `inverse_sqrt` ends where its length says.
    """
    rate: float | None = 0.0
    for one in config.phases:
        own = one.learning_rate
        rate = own.peak or rate
        if one.name == phase:
            break
        rate = None if own.schedule == "inverse_sqrt" else rate if own.final is None else own.final
    if not rate:
        reason = "starts at a learning rate of 0" if rate == 0 else "has no peak and follows one of inverse_sqrt"
        raise ConfigError(f"the checkpoint's phase, {phase}, {reason}", "--learning-rate", "give it, such as 1e-4")
    return rate


def _facts(question: _Question, options: TransferOptions) -> Json:
    source, state = question.source, question.source.state
    return {
        "checkpoint": str(source.path),
        "run": source.config.name,
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "phase": state.phase,
        # Proves later which weights were measured, wherever the checkpoint was moved.
        "seal": state.seal,
        "suite": question.suite.name,
        "suite_sha256": question.suite.files_digest(),
        "level": options.level,
    }


def _source(windows: SourceWindows, sums: SourceSums) -> Json:
    return {
        "source": windows.name,
        "data": windows.stream.prefix,
        "held_out": windows.held_out,
        "windows": len(windows.first_tokens),
        "groups": len(groups(len(windows.first_tokens))),
        "loss": sums.loss,
        "gradient_norm": sums.norm,
    }


def _task(task: AskedTask, question: _Question, sums: TaskSums, level: float) -> Json:
    clusters = [item.cluster for item in task.items]
    tokens = sums.tokens.sum()
    return {
        "task": task.name,
        "items": len(task.items),
        "of_items": task.of,
        # An item without a passage is a cluster of its own: its number stands for it.
        "clusters": len({number if one is None else one for number, one in enumerate(clusters)}),
        "tokens": int(tokens),
        "cut_items": sum(item.cut > 0 for item in question.answers[task.name]),
        "loss": float(sums.loss_sum.sum() / tokens),
        "transfer": {
            windows.name: _entry(sums, number, clusters, question.learning_rate, level)
            for number, windows in enumerate(question.windows)
        },
    }


def _entry(sums: TaskSums, number: int, clusters: Sequence[str | None], rate: float, level: float) -> Json:
    transfer = interval(sums.contributions[number], sums.tokens, clusters, sums.without_group[number], level)
    value, half = rate * transfer.value, rate * transfer.half_width
    # Not `abs(value) <= half`: an interval that is not known (nan) makes nothing clear.
    verdict = "unclear" if not abs(value) > half else "helps" if value > 0 else "hurts"
    return {
        "value": value,
        "standard_error": rate * transfer.error,
        "low": value - half,
        "high": value + half,
        "variance_of_items": transfer.of_items,
        "verdict": verdict,
        "cosine": sums.cosines[number],
        # Divided by the same tokens as `value`, so that the parts add up to it.
        "by_kind": {kind: rate * float(part[number]) / float(sums.tokens.sum()) for kind, part in sums.by_kind.items()},
    }
