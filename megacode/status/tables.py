"""Print a run's status as tables."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_count, format_measured, format_rate, format_seconds
from megacode.metrics import probes
from megacode.status.goodput import PARTS
from megacode.status.job import describe
from megacode.status.scores import score_rows

_WIDEST = 100  # on wider screens, figures would drift away from their names
_STARTS_SHOWN = 12
_HEARTBEATS_SHOWN = 4
_COLOURS = {"running": "green", "finished": "green", "stopped": "yellow", "new": "yellow", "died": "red", "hung": "red"}


def render_status(document: Json, console: Console) -> None:
    """Print a run's progress, time, starts, sources, incidents and ranks.

    Args:
        document: of `read_status`; if it has `samples` of `prove_samples`, they are printed too.
        console: to print on; the tables fit into 80 columns.
    """
    # Sections without content are left out, so that a young run has a short page.
    sections: list[RenderableType] = [_headline(document)]
    if document["goodput"]:
        sections += [Text(), _rule("time"), _goodput(document["goodput"])]
    if document["starts"]:
        sections += [Text(), _rule("starts"), _starts(document["starts"])]
    if document["sources"]:
        sections += [Text(), _rule("tokens by source so far"), _sources(document["sources"])]
    incidents = list(_incidents(document))
    if incidents:
        sections += [Text(), _rule("incidents"), *(Text(line) for line in incidents)]
    ranks = _ranks(document)
    if ranks:
        sections += [Text(), _rule("ranks"), *(Text(line) for line in ranks)]
    if "samples" in document:
        sections += [Text(), _rule("samples"), _samples(document["samples"])]
    console.print(Padding(Group(*sections), 1), width=min(_WIDEST, console.width))


# The headline: one row per fact, names on the left. Facts that are not known have no row.


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim")


def _clock(time: float) -> str:
    """Return a time as local date and time."""
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M:%S")


def _headline(document: Json) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    state, reason = document["state"], document["reason"]
    grid.add_row("run", Text(document["name"], style="bold"))
    grid.add_row("state", Text(f"{state} ({reason})" if reason else state, style=_COLOURS[state]))
    if document["job"]:
        grid.add_row("job", describe(document["job"]))
    grid.add_row("at", _position(document["progress"]))
    if document["loss"]:
        loss = document["loss"]
        grid.add_row("loss", f"{format_measured(loss['loss'], 4)}{_each(loss['loss_by_source'])}")
        if counted := loss["counted_tokens_by_source"]:
            each = ", ".join(f"{name} {tokens:,}" for name, tokens in counted.items())
            grid.add_row("counted", f"{each} tokens of the last batch, by loss mask")
    if document["validation"]:
        held_out = document["validation"]
        each = _each(held_out["loss_by_source"])
        grid.add_row("held out", f"{format_measured(held_out['loss'], 4)}{each} at iteration {held_out['iteration']:,}")
    if document["fp8"]:
        grid.add_row("FP8", _fp8(document["fp8"]))
    if document["rates"]["iterations"]:
        grid.add_row("rate", _rate(document["rates"]))
    if document["checkpoint"]:
        grid.add_row("checkpoint", _checkpoint(document["checkpoint"]))
    for title, text in score_rows(document["scores"]):
        grid.add_row(title, text)
    if document["estimate"]:
        grid.add_row("to go", _estimate(document["estimate"]))
    return grid


def _position(progress: Json) -> str:
    total = f" of {progress['total_iterations']:,}" if progress["total_iterations"] is not None else ""
    tokens = f"{format_count(progress['consumed_tokens'])} tokens"
    if progress["total_tokens"]:
        share = progress["consumed_tokens"] / progress["total_tokens"]
        tokens += f" of {format_count(progress['total_tokens'])} ({share:.1%})"
    phase = f", phase {progress['phase']}" if progress["phase"] else ""
    return f"iteration {progress['iteration']:,}{total}{phase}, {tokens}"


def _each(losses: Json | None) -> str:
    listed = ", ".join(f"{name} {format_measured(loss, 3)}" for name, loss in (losses or {}).items())
    return f" ({listed})" if listed else ""


def _fp8(fp8: Json) -> str:
    recipe, probe = fp8["recipe"] or "not in use", fp8["probe"]
    if probe is None:
        return f"{recipe}, not probed"
    return f"{recipe}; probe before iteration {probe['iteration']:,}: {probes.found(probe)}"


def _rate(rates: Json) -> str:
    # MFU is None on hardware without a known peak, such as a CPU.
    facts = [f"{format_count(rates['tokens_per_second'])} tokens/s"] if rates["tokens_per_second"] else []
    if rates["flops_per_second"]:
        facts.append(format_rate(rates["flops_per_second"], "FLOP/s"))
    if rates["mfu"] is not None:
        facts.append(f"{rates['mfu']:.1%} MFU")
    if rates["seconds"]:
        facts.append(f"{format_seconds(rates['seconds'])} per iteration")
    return f"{', '.join(facts)} (median of the last {rates['iterations']})"


def _checkpoint(newest: Json) -> str:
    facts = [newest["name"] if newest["present"] else f"{newest['name']} (MISSING)"]
    if newest["age"] is not None:
        facts.append(f"{format_seconds(newest['age'])} old")
    facts.append(f"{newest['iterations_since']:,} iterations since")
    if newest["bytes"]:
        facts.append(format_bytes(newest["bytes"]))
    return ", ".join(facts)


def _estimate(estimate: Json) -> str:
    ends = f", ends {_clock(estimate['end'])}" if estimate["end"] is not None else " after it is resumed"
    return f"{format_seconds(estimate['seconds'])}{ends} (saving and validation add {estimate['overhead']:.1%})"


# The tables below the headline.


def _goodput(split: Json) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    for name in PARTS:
        grid.add_row(name, format_seconds(split[name]), f"{split['shares'][name]:.1%}")
    grid.add_row("wall clock", format_seconds(split["wall"]), "100.0%", style="dim")
    # Two figures: time in a queue is idle, and says nothing about the run itself.
    line = f"goodput {split['of_running']:.1%} of the time it ran, {split['of_wall']:.1%} of the wall clock"
    return Group(grid, Text(line, style="bold"))


def _starts(rows: list[Json]) -> RenderableType:
    figures = ("from", "done", "lost", "ranks")
    table = FigureTable("", "when", "because of", *figures, "host", figures=("", "when", *figures))
    hidden = len(rows) - _STARTS_SHOWN  # the newest starts are the ones of interest
    for row in rows[-_STARTS_SHOWN:]:
        counts = (f"{row[name]:,}" for name in ("from_iteration", "iterations", "lost_iterations"))
        ranks, host = str(row["ranks"] or "-"), str(row["host"] or "-")
        table.add_row(str(row["number"]), _clock(row["time"]), row["cause"] or "-", *counts, ranks, host)
    return Group(Text(f"{hidden:,} earlier starts"), table) if hidden > 0 else table


def _sources(rows: Json) -> RenderableType:
    figures = ("planned", "seen", "withheld", "learned")
    table = FigureTable("source", *figures, "", figures=figures)
    for name, row in rows.items():
        counts = (f"{row[key]:,}" for key in ("planned", "seen", "withheld", "learned"))
        verdict = Text("equal", style="green") if row["equal"] else Text("NOT EQUAL", style="red")
        table.add_row(name, *counts, verdict)
    return table


def _incidents(document: Json) -> list[str]:
    """Return one line per kind of incident, and one per event of the kinds that are rare."""
    incidents = document["incidents"]
    lines = []
    # What happened to the training itself.
    if incidents["skipped_iterations"]:
        shown = ", ".join(f"{iteration:,}" for iteration in incidents["last_skipped"])
        lines.append(f"{incidents['skipped_iterations']:,} iterations skipped their update, most recently {shown}")
    lines += [f"{count:,} samples are withheld ({reason})" for reason, count in incidents["withheld_samples"].items()]
    for kind in ("spikes", "rollbacks"):
        if incidents[kind]:
            last = incidents[kind][-1].get("iteration")
            lines.append(f"{len(incidents[kind]):,} {kind}, the last at iteration {last}")
    alarms = incidents["fp8_alarms"]
    if alarms:
        last = alarms[-1]
        fallback = "; the run continues without FP8" if last.get("fell_back") else ""
        count, iteration = f"{len(alarms):,} FP8 probes out of tolerance", last.get("iteration")
        lines.append(f"{count}, the last after iteration {iteration}: {last.get('alarm')}{fallback}")
    # What happened to its files and processes.
    lines += [f"corrupt: {event.get('checkpoint')}: {event.get('what')}" for event in incidents["corrupt"]]
    lines += [f"not saved: {event.get('checkpoint')}: {event.get('error')}" for event in incidents["failed_saves"]]
    lines += [f"not scored: {event['checkpoint']}: {event['error']}" for event in document["scores"]["failed"]]
    for event in incidents["hangs"]:
        lines.append(f"rank {event.get('rank')} hung on {event.get('host')}; its stacks are in {event['stacks']}")
    if document["damaged_lines"]:
        lines.append(f"damaged lines: {document['damaged_lines']:,}, the last {document['last_damaged']}")
    return lines


def _ranks(document: Json) -> list[str]:
    lines, health = [], document["health"] or {}
    if health.get("slowest_seconds") is not None:
        median = f", the median {format_seconds(health['median_seconds'])}" if health.get("median_seconds") else ""
        place = f"rank {health.get('slowest_rank')} on {health.get('slowest_host')}"
        lines.append(f"slowest: {place}, {format_seconds(health['slowest_seconds'])} per iteration{median}")
    if health.get("memory_bytes") is not None:
        lines.append(f"most memory: {format_bytes(health['memory_bytes'])} on rank {health.get('memory_rank')}")
    beats = document["heartbeats"]
    # After a regular end, heartbeats are old and mean nothing.
    if beats and document["state"] in ("running", "died", "hung"):
        shown = ", ".join(_heartbeat(beat) for beat in beats[:_HEARTBEATS_SHOWN])
        lines.append(f"oldest heartbeats of {len(beats):,}: {shown}")
    return lines


def _heartbeat(beat: Json) -> str:
    doing = f" ({beat['doing']})" if beat.get("doing") else ""
    return f"rank {beat['rank']} {format_seconds(beat['age'])} ago{doing}"


def _samples(proof: Json) -> RenderableType:
    line = f"{proof['equal']:,} of {proof['iterations']:,} iterations read exactly the planned samples"
    extent = ", to the plan's end" if proof["complete"] else f", up to sample {proof['consumed_samples']:,}"
    return Text(line + extent, style="red" if proof["differing"] else "green")
