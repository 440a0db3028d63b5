"""The run's status in a sentence, and its headline numbers."""

from __future__ import annotations

import math
import statistics
from typing import Any

from megacode.base.files import Json
from megacode.base.units import format_count, format_seconds
from megacode.report import contamination
from megacode.report import figure as fig
from megacode.report.run_record import RunRecord
from megacode.report.scores import MEAN, Score, form
from megacode.report.series import value

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def status(record: RunRecord) -> dict[str, str]:
    """Return the run's status: `state` (finished, stopped, open, waiting) and `text`."""
    total, consumed = int(record.plan.get("total_samples") or 0), int(record.last.get("consumed_samples") or 0)
    if not record.train:
        return {"state": "waiting", "text": "Not started: no iteration has been done yet."}
    if total and consumed >= total:
        return {"state": "finished", "text": "Finished: every planned sample was read."}
    # Without a plan there is no total to compare with.
    share = f"{100 * consumed / total:.1f} % of the planned samples" if total else f"{consumed:,} samples"
    # Only a stop event proves an end: a killed process writes none, and looks like a running one.
    last = record.events[-1] if record.events else {}
    if last.get("event") == "stop":
        reason = f" ({last['reason']})" if last.get("reason") else ""
        return {"state": "stopped", "text": f"Stopped early{reason} after {share}; the same command resumes it."}
    return {"state": "open", "text": f"Still running, or interrupted, after {share}; this page shows what there is."}


def summary(record: RunRecord) -> str:
    """Return the run in a sentence."""
    parameters = record.plan.get("parameters")
    model = [f"{format_count(parameters_of(parameters))} parameters"] if parameters else []
    sources = _listed(record.sources)
    size = f"{format_count(record.planned_tokens)} tokens" if record.planned_tokens else "no tokens yet"
    names = " → ".join(span.name for span in record.spans)
    number = COUNTS[len(record.spans)] if len(record.spans) < len(COUNTS) else str(len(record.spans))
    phases = [f"in {number} phase{'s' if len(record.spans) != 1 else ''}: {names}"] if names else []
    return ", ".join([*model, f"{size} of {sources}" if sources else size, *phases]) + "."


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def parameters_of(parameters: Any) -> int:
    """Return the number of parameters in a plan, given as a number or as a breakdown."""
    if isinstance(parameters, dict):
        return int(parameters.get("total") or sum(v for v in parameters.values() if isinstance(v, int)))
    return int(parameters or 0)


def cards(record: RunRecord, scores: list[Score]) -> list[dict[str, str]]:
    """Return the headline numbers, each with `label`, `value` and `note`."""
    return [
        _parameters_card(record),
        _tokens_card(record),
        _iterations_card(record),
        _time_card(record),
        _loss_card(record),
        _bits_card(record, scores),
        contamination.card(record),
        _parity_card(record),
    ]


def _card(label: str, number: str, note: str) -> dict[str, str]:
    return {"label": label, "value": number, "note": note}


def _parameters_card(record: RunRecord) -> dict[str, str]:
    count = parameters_of(record.plan.get("parameters"))
    model = record.config.get("model") or {}
    layers, width = model.get("num_layers"), model.get("hidden_size")
    note = f"{layers} layers, {width} wide, {model.get('block', 'sequential')} blocks" if layers else ""
    return _card("Parameters", format_count(count) if count else fig.NOTHING, note)


def _tokens_card(record: RunRecord) -> dict[str, str]:
    consumed, planned = record.tokens(record.last), record.planned_tokens
    note = f"{consumed:,} of {planned:,} planned" if consumed != planned else f"{consumed:,}, as planned"
    return _card("Tokens read", format_count(consumed), note)


def _iterations_card(record: RunRecord) -> dict[str, str]:
    planned = sum(int(phase.get("iterations") or 0) for phase in record.phases)
    iteration = int(record.last.get("iteration") or 0)
    batch = record.last.get("batch_size")
    size = f"{batch} x {record.seq_length:,} tokens each" if batch else ""
    notes = [f"of {planned:,}" if planned > iteration else "", size]
    return _card("Iterations", f"{iteration:,}", ", ".join(filter(None, notes)))


def _loss_card(record: RunRecord) -> dict[str, str]:
    measured = [line for line in record.validation if math.isfinite(value(line, "loss"))]
    if measured:
        first, last = measured[0], measured[-1]
        note = f"mean over sources, held out, at iteration {last['iteration']:,}"
        start = f"; {value(first, 'loss'):.3f} before training" if first["iteration"] == 0 else ""
        return _card("Validation loss", f"{value(last, 'loss'):.3f}", note + start)
    if record.train:
        # One iteration's loss is noise, so the mean of ten is shown.
        recent = [value(line, "loss") for line in record.train[-10:] if math.isfinite(value(line, "loss"))]
        if recent:
            note = f"mean of the last {len(recent)} iterations"
            return _card("Training loss", f"{statistics.fmean(recent):.3f}", note)
    return _card("Loss", fig.NOTHING, "not measured yet")


def training_seconds(record: RunRecord) -> float:
    """Return the time inside iterations, in seconds."""
    return math.fsum(s for s in (value(line, "seconds") for line in record.train) if math.isfinite(s))


def _time_card(record: RunRecord) -> dict[str, str]:
    # Wall time includes queues and restarts; the card shows both.
    times = [value(event, "time") for event in record.events if math.isfinite(value(event, "time"))]
    resumes = sum(event.get("event") == "resume" for event in record.events)
    wall = f"{format_seconds(times[-1] - times[0])} from start to last event" if len(times) > 1 else ""
    again = f"resumed {resumes} time{'s' if resumes != 1 else ''}" if resumes else ""
    seconds = training_seconds(record)
    note = "; ".join(filter(None, [_rates(record), wall, again]))
    return _card("Time training", format_seconds(seconds) if seconds else fig.NOTHING, note)


def _rates(record: RunRecord) -> str:
    """Return the medians of tokens per second, FLOP/s and MFU, if they were measured."""
    # Medians: the first iterations after a start are slow, and a mean would show that.
    rates, flops, mfu = (
        [number for number in (value(line, key) for line in record.train) if math.isfinite(number)]
        for key in ("tokens_per_second", "flops_per_second", "mfu")
    )
    parts = [f"{format_count(round(statistics.median(rates)))} tokens/s"] if rates else []
    parts += [_flops(statistics.median(flops))] if flops else []
    parts += [f"{fig.percent(statistics.median(mfu))} MFU"] if mfu else []
    return ", ".join(parts) + (" (median)" if parts else "")


def _flops(rate: float) -> str:
    """Return a rate with SI prefixes: `738 GFLOP/s`, not 738B as for counts."""
    text = format_count(rate).replace("B", "G")
    return f"{text[:-1]} {text[-1]}FLOP/s" if text[-1:].isalpha() else f"{text} FLOP/s"


def parity(export: Json) -> float:
    """Return the largest end-to-end logit difference between megacode's model and an export; nan if not verified."""
    return value((export.get("parity") or {}).get("end_to_end") or {}, "largest")


def _parity_card(record: RunRecord) -> dict[str, str]:
    """Return whether the exports compute the same as the trainer."""
    label = "Export = trainer"
    if not record.exports:
        return _card(label, fig.NOTHING, "no Hugging Face model yet: megacode convert to-hf")
    numbers = [number for number in map(parity, record.exports) if math.isfinite(number)]
    count = len(record.exports)
    exports = f"{count} export{'s' if count != 1 else ''}"
    # One unverified export is enough to withdraw the claim.
    if len(numbers) < count:
        return _card(label, fig.NOTHING, f"{count - len(numbers)} of {exports} not verified")
    note = f"{exports} read back by transformers; logits differ by {fig.scientific(max(numbers))} at most"
    return _card(label, "equal", note)


def _bits_card(record: RunRecord, scores: list[Score]) -> dict[str, str]:
    """Return bits per byte, else the suite's last mean, else the number of scored tasks."""
    if not scores:
        return _card("Scores", fig.NOTHING, "not evaluated yet: megacode evaluate")
    # Bits per byte move first in training, so small models show something. Those of one suite, by source.
    sourced = [score for score in scores if score.is_bits and score.source]
    bits = [score for score in sourced if score.suite == sourced[-1].suite]
    if bits:
        ends = (bits[0].iteration, bits[-1].iteration)
        first, last = (statistics.fmean(s.value for s in bits if s.iteration == end) for end in ends)
        note = "mean over sources, held out"
        return _card("Bits per byte", f"{last:.3f}", f"{note}; {first:.3f} at first" if first != last else note)
    means = [score for score in scores if score.metric == MEAN]
    if means:
        last_mean = means[-1]
        without = f", without {', '.join(last_mean.missing)}" if last_mean.missing else ""
        note = f"mean “{last_mean.task}” of {last_mean.suite}{without}"
        return _card("Score", form(last_mean, last_mean.value), note)
    return _card("Scores", str(len({score.task for score in scores})), "tasks, in the table below")
