"""Tables of memory, step time and advice for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_count, format_rate, format_seconds

_Json = dict[str, Any]
_GIB = 2**30
_NAMED = 3
# The third column tells how a number is known: counted to the byte, summed by tensor, or a stated constant.
_MEMORY = (
    ("weights", "weights", "counted"),
    ("gradients", "gradients", "counted"),
    ("optimizer", "optimizer", "counted"),
    ("fp8_weights", "FP8 weights", "counted"),
    ("stand_ins", "gradient stand-ins", "counted"),
    ("activations", "activations", "by tensor"),
    ("head", "after the layers", "by tensor"),
    ("logits", "logits", "by tensor"),
    ("working", "layer gradients", "by tensor"),
    ("fragmentation", "fragmentation", "stated"),
    ("workspace", "workspaces", "stated"),
    ("context", "CUDA, NCCL", "stated"),
)
_STEP = (
    ("matrices", "matrix products"),
    ("attention", "attention"),
    ("elementwise", "norms, SwiGLU, loss"),
    ("recompute", "recomputation"),
    ("launches", "waiting for launches"),
    ("tensor_parallel", "tensor parallel"),
    ("context_parallel", "context parallel"),
    ("pipeline_transfer", "between stages"),
    ("bubble", "pipeline bubble"),
    ("data_parallel", "data parallel"),
    ("optimizer", "optimizer"),
    ("overhead", "once an iteration"),
)


def headline(gpus: _Json) -> str:
    """Return a one-line summary of the GPUs."""
    split = f"data parallel {gpus['data_parallel']}, {gpus['micro_batches']} micro-batches"
    return f"{gpus['gpus']:,} x {gpus['gpu']}: {split}; {_days(gpus['hours'])}, {gpus['gpu_hours']:,.0f} GPU-hours"


def render_cluster(gpus: _Json | None) -> list[RenderableType]:
    """Return memory, time and advice; empty where no GPUs were given."""
    if gpus is None:
        return []
    title = Text(f"on {gpus['gpus']:,} x {gpus['gpu']}", style="bold")
    tables = Table.grid(padding=(0, 2))
    # Side by side they just fit 80 columns.
    tables.add_row(_memory(gpus["memory"]), _step(gpus["step"]))
    return [
        Text(),
        Rule(title, align="left", style="dim"),
        tables,
        Text(),
        _facts(gpus),
        Text(),
        _advice(gpus),
    ]


def render_dry_run(rows: list[_Json] | None) -> list[RenderableType]:
    """Return the table of the ranks of a dry run; empty where there was none."""
    if not rows:
        return []
    figures = ("rank", "tp", "pp", "cp", "dp", "parameters", "weights", "gradients", "optimizer")
    # Every row compares counts of a rank that was really built with the plan's.
    table = FigureTable(*figures, "equal", figures=figures, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(
            *(f"{row[key]:,}" for key in ("rank", "tensor", "pipeline", "context", "data", "parameters")),
            *(f"{row[key] / _GIB:.2f}" for key in ("weights", "gradients", "optimizer")),
            Text("no: " + ", ".join(row["unequal"]), style="bold red") if row["unequal"] else Text("✓", style="green"),
        )
    kinds = dict.fromkeys(name for row in rows for name in row["modules"])
    modules = "modules with parameters: " + ", ".join(kinds)
    title = Rule(Text("dry run: ranks as built, GiB, equal to the plan", style="bold"), align="left", style="dim")
    return [Text(), title, table, Text(modules, style="dim")]


def _memory(memory: _Json) -> Table:
    table = _plain(f"GiB, stage {memory['stage']}")
    for key, name, how in _MEMORY:
        if memory[key]:
            table.add_row(name, f"{memory[key] / _GIB:.2f}", Text(how, style="dim"))
    # The verdict stands beside the total, next to the capacity of the GPU.
    word, style = _verdict(memory)
    table.add_row(
        Text("all", style="bold"), f"{memory['total'] / _GIB:.2f}", Text(f"{word} {_gib(memory['capacity'])}", style)
    )
    return table


def _verdict(memory: _Json) -> tuple[str, str]:
    if not memory["fits"]:
        return "over", "bold red"
    return ("tight in", "yellow") if memory["tight"] else ("fits", "green")


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f}"


def _step(step: _Json) -> Table:
    table = _plain("an iteration")
    for key, name in _STEP:
        # Rows below 0.1 % would only be zeros.
        if step[key] / step["seconds"] >= 5e-4:
            table.add_row(name, format_seconds(step[key]), Text(f"{step[key] / step['seconds']:.1%}", style="dim"))
    table.add_row(Text("all", style="bold"), format_seconds(step["seconds"]), "")
    return table


def _plain(title: str) -> Table:
    table = FigureTable(title, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _facts(gpus: _Json) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    # MFU counts model FLOPs alone, so recomputation lowers it.
    each = gpus["tokens_per_second"] / gpus["gpus"]
    flops = f"{format_rate(gpus['model_flops_per_second_per_gpu'], 'FLOP/s')} a GPU, MFU {gpus['mfu']:.1%}"
    grid.add_row("a layer", _layer(gpus["activations"]))
    grid.add_row("speed", f"{format_count(gpus['tokens_per_second'])} tokens/s, {each:,.0f} a GPU; {flops}")
    cost = "" if gpus["cost"] is None else f", cost {gpus['cost']:,.0f}"
    # Phases differ in step time only where they differ in FP8.
    if len({phase["seconds"] for phase in gpus["phases"]}) > 1:
        grid.add_row("phases", "; ".join(_phase(phase) for phase in gpus["phases"]))
    grid.add_row("run", f"{_days(gpus['hours'])}, {gpus['gpu_hours']:,.0f} GPU-hours{cost}")
    if not gpus["memory"]["fits"]:
        need, have = (_gib(gpus["memory"][key]) for key in ("total", "capacity"))
        refusal = f"does not fit: a rank of stage {gpus['memory']['stage']} needs {need} GiB of {have}"
        grid.add_row("memory", Text(refusal, style="bold red"))
    saved = gpus["checkpoint"]
    grid.add_row(
        "checkpoint",
        f"{format_bytes(saved['bytes'])}, written in {format_seconds(saved['write_seconds'])}; "
        f"training waits {format_seconds(saved['held_up_seconds'])}",
    )
    grid.add_row("failures", _failures(gpus["failures"]))
    return grid


def _layer(activations: list[_Json]) -> str:
    """Return the activations of a layer as text, with its largest tensors by name."""
    kept = {row["tensor"]: row["bytes_per_token"] for row in activations if row["of"] == "layer"}
    # Three names fill the line; all tensors are in the JSON document.
    largest = sorted(kept, key=lambda name: -kept[name])[:_NAMED]
    named = ", ".join(f"{name} {kept[name]:,.0f}" for name in largest)
    return f"keeps {sum(kept.values()):,.0f} bytes per token: {named}{', ...' if len(kept) > len(largest) else ''}"


def _phase(phase: _Json) -> str:
    formats = f" in FP8 {phase['fp8']}" if phase["fp8"] else ""
    return f"{phase['name']} {format_seconds(phase['seconds'])} an iteration{formats}"


def _failures(failures: _Json) -> str:
    often = f"one every {_days(failures['hours_between'])}, {failures['expected']:.1f} in the run"
    every = f"saving every {failures['checkpoint_every_iterations']:,} iterations"
    best = failures["best_checkpoint_every_iterations"]
    lost = f"{failures['lost_share']:.1%} of the time" if failures["lost_share"] < 1 else "all of the time"
    text = f"{often}; {every}, failures and saves cost {lost}"
    return text if best == failures["checkpoint_every_iterations"] else f"{text} (best: every {best:,})"


def _advice(gpus: _Json) -> RenderableType:
    advice = gpus["advice"]
    if not advice["best"]:
        return _none_fits(advice["smaller_optimizer"])
    figures = ("tensor", "pipeline", "context", "data", "micro\nbatch", "recompute", "GiB", "iteration", "time")
    table = FigureTable(*figures, figures=figures, padding=(0, 1, 0, 0))
    for row in advice["best"]:
        pieces = f" x {row['virtual_pipeline']}" if row["virtual_pipeline"] else ""
        table.add_row(
            str(row["tensor"]),
            f"{row['pipeline']}{pieces}",
            str(row["context"]),
            f"{row['data_parallel']:,}",
            str(row["micro_batch_size"]),
            row["recompute"],
            f"{row['memory'] / _GIB:.1f}",
            format_seconds(row["seconds"]),
            # Relative to the config's own layout: -5 % is faster.
            f"{row['time_of_this'] - 1:+.1%}",
        )
    return Group(
        Text(_ranked(advice, gpus["memory"]["fits"])),
        table,
        Text("use " + " ".join(advice["best"][0]["overrides"]), style="dim"),
    )


def _none_fits(smaller: _Json | None) -> RenderableType:
    refusal = "no layout of this run fits these GPUs: use more of them, or GPUs with more memory"
    if smaller is None:
        return Text(refusal, style="bold red")
    changes = ", ".join(f"{name.partition('.')[2]}: {value}" for name, value in smaller["settings"].items())
    need = f"{_gib(smaller['memory'])} GiB and {format_seconds(smaller['seconds'])}"
    return Group(
        Text(f"{refusal},", style="bold red"),
        Text(f"or an optimizer that stores less (docs/optimizer_memory.md). It needs {need} with {changes}:"),
        Text("use " + " ".join(smaller["overrides"]), style="dim"),
    )


def _ranked(advice: _Json, fits: bool) -> str:
    faster, fitting = advice["faster_than_this"], advice["tried_that_fit"]
    if not fits:
        return f"{fitting} other layouts fit; the fastest, with times relative to this one:"
    if not faster:
        return f"none of the {fitting} layouts that fit is faster"
    return f"{faster} of the {fitting} layouts that fit are faster:"


def _days(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    # Days from 48 hours on, as people plan.
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
