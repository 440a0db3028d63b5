"""The fastest layout of a run for several numbers of GPUs, with its share of communication and bubble."""

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
        ConfigError: one of them is not a positive whole number.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdigit() or not int(part):
            raise ConfigError(f"{part.strip()!r} is not a number of GPUs", "--scale", "give numbers such as 8,64,512")
        counts.append(int(part))
    return tuple(counts)


def scaling_document(config: RunConfig, cluster: Cluster, vocab_size: int, work: _Json) -> list[_Json]:
    """Return the fastest layout for each number of GPUs and its cost; `layout` is None where nothing fits.

    Args:
        config: the run; its own layout is ignored.
        cluster: numbers and kind of the GPUs.
        vocab_size: size of the vocabulary, without padding.
        work: the plan's document, as for `cluster_document`.
    """
    hardware, layers = load_hardware(cluster.gpu, cluster.file), layers_of(config)
    check_formats(config, hardware)
    rows: list[_Json] = []
    # Each count is searched from scratch: the best layout of 8 GPUs is rarely that of 512.
    for gpus in cluster.scale:
        fitting = choices(Layout(config, gpus, vocab_size, longest_phase(work)), hardware, layers)
        best = {"layout": None} if not fitting else _row(fitting[0], hardware, cluster.price, work)
        rows.append({"gpus": gpus, "gpu": hardware.gpu, **best})
    return rows


def _row(choice: LayoutCandidate, hardware: Hardware, price: float | None, work: _Json) -> _Json:
    config = choice.place.config
    hours = sum(row["hours"] for row in phase_times(choice.place, hardware, layers_of(config), work))
    tokens = config.train.global_batch_size * config.train.seq_length / choice.time.total
    # Data parallel grows with the GPUs while the batch stays: that is what ends perfect scaling.
    time = choice.time
    communication = time.tensor_parallel + time.context_parallel + time.pipeline_transfer + time.data_parallel
    return {
        "layout": {**choice.place.sizes, "micro_batches": choice.place.micro_batches},
        "overrides": choice.overrides,
        "memory": choice.memory.total,
        "seconds": time.total,
        "communication_share": communication / time.total,
        "bubble_share": time.bubble / time.total,
        "tokens_per_second": tokens,
        "mfu": model_rate(choice.place, time, work) / hardware.peak_flops(config.precision.dtype),
        "hours": hours,
        "gpu_hours": hours * choice.place.gpus,
        # Any currency: the price is only multiplied.
        "cost": None if price is None else hours * choice.place.gpus * price,
    }


def render_scaling(rows: list[_Json] | None) -> list[RenderableType]:
    """Return the table of layouts by number of GPUs; empty where none were given."""
    if not rows:
        return []
    figures = ("GPUs", "t", "p", "c", "d", "b", "GiB", "seconds", "comm", "bubble", "tokens/s", "MFU", "days")
    table = FigureTable(*figures, figures=figures, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(f"{row['gpus']:,}", *(_cells(row) if row["layout"] else ["-"]))
    legend = "t tensor, p pipeline x chunks, c context, d data, b micro-batch"
    if any(row["layout"] and row["layout"]["recompute"] != "none" for row in rows):
        legend += "; s selective, f full recompute"
    without = [f"{row['gpus']:,}" for row in rows if not row["layout"]]
    missing = [Text(f"no layout fits {', '.join(without)}", style="red")] if without else []
    title = Rule(Text(f"the fastest layout by number of {rows[0]['gpu']}", style="bold"), align="left", style="dim")
    return [Text(), title, table, *missing, Text(legend, style="dim")]


def _cells(row: _Json) -> list[str]:
    layout = row["layout"]
    # `4x2` is 4 stages of 2 chunks each, as in the legend.
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
