"""The status of a run as tables for people."""

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

_WIDEST = 100
_STARTS_SHOWN = 12
_HEARTBEATS_SHOWN = 4
_COLOURS = {"running": "green", "finished": "green", "stopped": "yellow", "new": "yellow", "died": "red", "hung": "red"}


def render_status(document: Json, console: Console) -> None:
    """Print where a run is, where its time went, its starts, its sources and what went wrong.

    Args:
        document: of `read_status`; with `samples` of `prove_samples`, that too.
        console: to print on; the tables fit into 80 columns.
    """
    parts: list[RenderableType] = [_headline(document)]
    if document["goodput"]:
        parts += [Text(), _rule("time"), _goodput(document["goodput"])]
    if document["starts"]:
        parts += [Text(), _rule("starts"), _starts(document["starts"])]
    if document["sources"]:
        parts += [Text(), _rule("tokens by source, up to the clock"), _sources(document["sources"])]
    incidents = list(_incidents(document))
    if incidents:
        parts += [Text(), _rule("what went wrong"), *(Text(line) for line in incidents)]
    ranks = _ranks(document)
    if ranks:
        parts += [Text(), _rule("ranks"), *(Text(line) for line in ranks)]
    if "samples" in document:
        parts += [Text(), _rule("samples"), _samples(document["samples"])]
    console.print(Padding(Group(*parts), 1), width=min(_WIDEST, console.width))


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim")


def _clock(time: float) -> str:
    """Return a moment in local time."""
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
    said = [f"{format_count(rates['tokens_per_second'])} tokens/s"] if rates["tokens_per_second"] else []
    if rates["flops_per_second"]:
        said.append(format_rate(rates["flops_per_second"], "FLOP/s"))
    if rates["mfu"] is not None:
        said.append(f"{rates['mfu']:.1%} MFU")
    if rates["seconds"]:
        said.append(f"{format_seconds(rates['seconds'])} an iteration")
    return f"{', '.join(said)} (median of the last {rates['iterations']})"


def _checkpoint(newest: Json) -> str:
    said = [newest["name"] if newest["present"] else f"{newest['name']} (NOT there)"]
    if newest["age"] is not None:
        said.append(f"{format_seconds(newest['age'])} old")
    said.append(f"{newest['iterations_since']:,} iterations since")
    if newest["bytes"]:
        said.append(format_bytes(newest["bytes"]))
    return ", ".join(said)


def _estimate(estimate: Json) -> str:
    ends = f", ends {_clock(estimate['end'])}" if estimate["end"] is not None else " once it goes on"
    return f"{format_seconds(estimate['seconds'])}{ends} (saving and validation add {estimate['overhead']:.1%})"


def _goodput(split: Json) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    for name in PARTS:
        grid.add_row(name, format_seconds(split[name]), f"{split['shares'][name]:.1%}")
    grid.add_row("wall clock", format_seconds(split["wall"]), "100.0%", style="dim")
    said = f"goodput {split['of_running']:.1%} of the time it ran, {split['of_wall']:.1%} of the wall clock"
    return Group(grid, Text(said, style="bold"))


def _starts(rows: list[Json]) -> RenderableType:
    figures = ("from", "done", "lost", "ranks")
    table = FigureTable("", "when", "because of", *figures, "host", figures=("", "when", *figures))
    hidden = len(rows) - _STARTS_SHOWN
    for row in rows[-_STARTS_SHOWN:]:
        counts = (f"{row[name]:,}" for name in ("from_iteration", "iterations", "lost_iterations"))
        ranks, host = str(row["ranks"] or "-"), str(row["host"] or "-")
        table.add_row(str(row["number"]), _clock(row["time"]), row["cause"] or "-", *counts, ranks, host)
    return Group(Text(f"{hidden:,} earlier ones"), table) if hidden > 0 else table


def _sources(rows: Json) -> RenderableType:
    figures = ("planned", "seen", "withheld", "learned")
    table = FigureTable("source", *figures, "", figures=figures)
    for name, row in rows.items():
        counts = (f"{row[key]:,}" for key in ("planned", "seen", "withheld", "learned"))
        verdict = Text("equal", style="green") if row["equal"] else Text("NOT EQUAL", style="red")
        table.add_row(name, *counts, verdict)
    return table


def _incidents(document: Json) -> list[str]:
    found = document["incidents"]
    lines = []
    if found["skipped_iterations"]:
        shown = ", ".join(f"{iteration:,}" for iteration in found["last_skipped"])
        lines.append(f"{found['skipped_iterations']:,} iterations left the weights as they were: the last {shown}")
    lines += [f"{count:,} samples are withheld ({reason})" for reason, count in found["withheld_samples"].items()]
    for kind in ("spikes", "rollbacks"):
        if found[kind]:
            last = found[kind][-1].get("iteration")
            lines.append(f"{len(found[kind]):,} {kind}, the last at iteration {last}")
    if found["fp8_alarms"]:
        last = found["fp8_alarms"][-1]
        ended = "; the run goes on without FP8" if last.get("fell_back") else ""
        lines.append(
            f"{len(found['fp8_alarms']):,} FP8 probes too far off, the last after iteration {last.get('iteration')}: "
            f"{last.get('alarm')}{ended}"
        )
    lines += [f"corrupt: {event.get('checkpoint')}: {event.get('what')}" for event in found["corrupt"]]
    lines += [f"not saved: {event.get('checkpoint')}: {event.get('error')}" for event in found["failed_saves"]]
    lines += [f"not scored: {event['checkpoint']}: {event['error']}" for event in document["scores"]["failed"]]
    for event in found["hangs"]:
        lines.append(f"rank {event.get('rank')} hung on {event.get('host')}: its stacks are in {event['stacks']}")
    if document["damaged_lines"]:
        lines.append(f"damaged lines: {document['damaged_lines']:,}, the last {document['last_damaged']}")
    return lines


def _ranks(document: Json) -> list[str]:
    lines, health = [], document["health"] or {}
    if health.get("slowest_seconds") is not None:
        median = f", the median {format_seconds(health['median_seconds'])}" if health.get("median_seconds") else ""
        place = f"rank {health.get('slowest_rank')} on {health.get('slowest_host')}"
        lines.append(f"slowest: {place}, {format_seconds(health['slowest_seconds'])} an iteration{median}")
    if health.get("memory_bytes") is not None:
        lines.append(f"most memory: {format_bytes(health['memory_bytes'])} on rank {health.get('memory_rank')}")
    beats = document["heartbeats"]
    if beats and document["state"] in ("running", "died", "hung"):
        shown = ", ".join(_heartbeat(beat) for beat in beats[:_HEARTBEATS_SHOWN])
        lines.append(f"oldest heartbeats of {len(beats):,}: {shown}")
    return lines


def _heartbeat(beat: Json) -> str:
    doing = f" ({beat['doing']})" if beat.get("doing") else ""
    return f"rank {beat['rank']} {format_seconds(beat['age'])} ago{doing}"


def _samples(proof: Json) -> RenderableType:
    said = f"{proof['equal']:,} of {proof['iterations']:,} iterations read exactly the planned samples"
    rest = ", to the plan's end" if proof["complete"] else f", up to sample {proof['consumed_samples']:,}"
    return Text(said + rest, style="red" if proof["differing"] else "green")
