"""One run on several numbers of GPUs: the fastest layout that fits each, and what is left of perfect scaling."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text

from megacode.base.errors import ConfigError
from megacode.base.tables import FigureTable
from megacode.base.units import format_count
from megacode.capacity.activations import layers_of
from megacode.capacity.advice import LayoutCandidate, choices
from megacode.capacity.cluster import Cluster, check_formats, longest_phase, model_rate, phase_times
from megacode.capacity.hardware import GIB, Hardware, load_hardware
from megacode.capacity.layout import Layout
from megacode.config.run import RunConfig

_Json = dict[str, Any]


def parse_counts(text: str) -> tuple[int, ...]:
    """Read numbers of GPUs: `8,64,512`.

    Raises:
        ConfigError: one of them is no positive whole number.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdigit() or not int(part):
            raise ConfigError(f"{part.strip()!r} is not a number of GPUs", "--scale", "give some, such as 8,64,512")
        counts.append(int(part))
    return tuple(counts)


def scaling_document(config: RunConfig, cluster: Cluster, vocab_size: int, work: _Json) -> list[_Json]:
    """Return, for each number of GPUs, the fastest layout and what it costs; or that there is none.

    Args:
        config: the run; its own layout is not looked at.
        cluster: numbers and kind of the GPUs.
        vocab_size: tokens the model knows, without padding.
        work: the plan's document, as for `cluster_document`.
    """
    hardware, layers = load_hardware(cluster.gpu, cluster.file), layers_of(config)
    check_formats(config, hardware)
    rows: list[_Json] = []
    for gpus in cluster.scale:
        found = choices(Layout(config, gpus, vocab_size, longest_phase(work)), hardware, layers)
        best = {"layout": None} if not found else _row(found[0], hardware, cluster.price, work)
        rows.append({"gpus": gpus, "gpu": hardware.gpu, **best})
    return rows


def _row(choice: LayoutCandidate, hardware: Hardware, price: float | None, work: _Json) -> _Json:
    config, parallel = choice.place.config, choice.place.config.parallel
    hours = sum(row["hours"] for row in phase_times(choice.place, hardware, layers_of(config), work))
    tokens = config.train.global_batch_size * config.train.seq_length / choice.time.total
    time = choice.time
    talking = time.tensor_parallel + time.context_parallel + time.pipeline_transfer + time.data_parallel
    return {
        "layout": {
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual_pipeline,
            "context": parallel.context,
            "data_parallel": choice.place.data,
            "micro_batch_size": config.train.micro_batch_size,
            "micro_batches": choice.place.micro_batches,
            "recompute": parallel.recompute,
        },
        "overrides": choice.overrides,
        "memory": choice.memory.total,
        "seconds": time.total,
        "communication_share": talking / time.total,
        "bubble_share": time.bubble / time.total,
        "tokens_per_second": tokens,
        "mfu": model_rate(choice.place, time, work) / hardware.peak_flops(config.precision.dtype),
        "hours": hours,
        "gpu_hours": hours * choice.place.gpus,
        "cost": None if price is None else hours * choice.place.gpus * price,
    }


def render_scaling(rows: list[_Json] | None) -> list[RenderableType]:
    """Return the table of the numbers of GPUs; nothing where none were asked about."""
    if not rows:
        return []
    figures = ("GPUs", "t", "p", "c", "d", "b", "GiB", "seconds", "comm", "bubble", "tokens/s", "MFU", "days")
    table = FigureTable(*figures, figures=figures, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(f"{row['gpus']:,}", *(_cells(row) if row["layout"] else ["-"]))
    legend = "t tensor, p pipeline x pieces, c context, d data, b micro-batch"
    if any(row["layout"] and row["layout"]["recompute"] != "none" for row in rows):
        legend += "; s, f: recompute"
    without = [f"{row['gpus']:,}" for row in rows if not row["layout"]]
    missing = [Text(f"no layout fits {', '.join(without)}", style="red")] if without else []
    title = Rule(Text(f"the fastest layout on so many {rows[0]['gpu']}", style="bold"), align="left", style="dim")
    return [Text(), title, table, *missing, Text(legend, style="dim")]


def _cells(row: _Json) -> list[str]:
    layout = row["layout"]
    pieces = f"x{layout['virtual_pipeline']}" if layout["virtual_pipeline"] else ""
    recompute = "" if layout["recompute"] == "none" else layout["recompute"][0]
    return [
        str(layout["tensor"]),
        f"{layout['pipeline']}{pieces}",
        str(layout["context"]),
        f"{layout['data_parallel']:,}",
        f"{layout['micro_batch_size']}{recompute}",
        f"{row['memory'] / GIB:.1f}",
        f"{row['seconds']:.3f}" if row["seconds"] < 10 else f"{row['seconds']:.1f}",
        f"{row['communication_share']:.1%}",
        f"{row['bubble_share']:.1%}",
        format_count(row["tokens_per_second"]),
        f"{row['mfu']:.1%}",
        f"{row['hours'] / 24:,.1f}",
    ]
