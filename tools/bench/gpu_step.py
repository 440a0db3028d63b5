"""Training step on one GPU: megacode in bf16 and FP8, Megatron-core as upstream sets it up, and a transformers loop.

    python tools/bench/gpu_step.py [--models to-code-2.8b] [--only megacode-bf16,transformers] [--profile] [--json FILE]

All train the same shape on the same random tokens with AdamW and clipping, a step of some micro-batches each, and run
in one call, one after the other, each in a process of its own, so that none meets another's memory or failure. While
one is measured the next ones have done their imports and wait. Reported are medians over steps, wall clock between two
waits for the GPU, and the most memory that tensors took, and that torch's allocator reserved for them.

MFU counts causal attention only, against the GPU's dense bf16 peak, in FP8 too; beside it stands the same with
attention counted whole, as most published figures do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parent))

# The first that does not fail is what the ratios refer to.
MODELS = {
    "to-code-2.8b": [
        "megacode-bf16",
        "megacode-tensorwise",
        "megacode-delayed",
        "megacode-delayed+output",
        "megacode-blockwise",
        "megatron-bf16",
        "megatron-delayed",
        "transformers",
    ],
    "to-code-470m": [
        "megacode-bf16",
        "megacode-delayed",
        "megacode-delayed+output",
        "megatron-bf16",
        "megatron-delayed",
        "transformers",
    ],
}
_COLUMNS = (
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("ratio", "ratio", "{:.2f}"),
    ("ms a step", "milliseconds", "{:,.0f}"),
    ("MFU", "mfu", "{:.1%}"),
    ("(whole)", "mfu_whole_attention", "{:.1%}"),
    ("GiB", "memory_gib", "{:.1f}"),
    ("reserved", "reserved_gib", "{:.1f}"),
    ("loss", "loss", "{:.3f}"),
)


def main(
    models: Annotated[str, typer.Option(help="presets")] = ",".join(MODELS),
    only: Annotated[str, typer.Option(help="contenders, in this order; empty: all")] = "",
    steps: Annotated[int, typer.Option(help="timed steps of each")] = 3,
    # With 4 sequences an optimizer step weighs eight times as much as with 32, so rates are lower.
    sequences: Annotated[int, typer.Option(help="sequences a step")] = 32,
    micro: Annotated[int, typer.Option(help="sequences a micro-batch; 0: what each contender fits best")] = 0,
    profile: Annotated[bool, typer.Option(help="also print where megacode's time goes")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="also write all figures here")] = None,
    contender: Annotated[str, typer.Option(hidden=True)] = "",
    turn: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every contender and print one table a model."""
    if contender:
        _measure_one(models, contender, steps, sequences, micro, profile, turn)
        return
    asked = [
        (model, name)
        for model in models.split(",")
        for name in (only.split(",") if only else MODELS[model])
        if name in MODELS[model]
    ]
    options = ["--steps", str(steps), "--sequences", str(sequences), "--micro", str(micro)]
    options += ["--profile"] if profile else []
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        # All start at once, so that imports take no turn of the GPU. A busy GPU hardly needs the host's cores.
        waiting = [_Contender(*pair, options, Path(directory)) for pair in asked]
        for each in waiting:
            figures.setdefault(each.model, {})[each.name] = each.measured()
            if out:  # as far as it got, should something stop the benchmark
                out.write_text(json.dumps(figures, indent=2) + "\n")
    for model, rows in figures.items():
        _print(model, rows)


class _Contender:
    """A contender's process, which does its imports at once and goes on when it is its turn."""

    def __init__(self, model: str, name: str, options: list[str], directory: Path) -> None:
        self.model, self.name = model, name
        self._turn = directory / f"{model}-{name}"
        command = [sys.executable, __file__, "--models", model, "--contender", name, *options]
        command += ["--turn", str(self._turn)]
        # A CUDA context and what torch has compiled go away only with their process.
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def measured(self) -> dict[str, Any]:
        """Let it go on, and return what it printed as its last line, or how it failed."""
        self._turn.touch()
        # This waits for its end: the GPU's memory is free before the next turn.
        output, errors = self._process.communicate()
        lines = output.strip().splitlines()
        for line in lines[:-1]:
            typer.echo(f"[{self.name}] {line}")
        if self._process.returncode == 0 and lines:
            row: dict[str, Any] = json.loads(lines[-1])
            typer.echo(f"[{self.name}] {row['tokens_per_second']:,.0f} tokens/s, {row['memory_gib']:.1f} GiB")
            return row
        typer.echo(f"[{self.name}] failed:\n{errors[-3000:]}")
        # Out of memory is a row of the table. The others still have their turn.
        return {"error": errors.strip().splitlines()[-1] if errors.strip() else f"exit {self._process.returncode}"}


def _measure_one(
    model: str, name: str, steps: int, sequences: int, micro: int, profile: bool, turn: Path | None
) -> None:
    """Do the imports, wait for the turn, measure, and print a JSON line."""
    from gpu.measure import measure, prepare

    build, parent = prepare(name), os.getppid()
    while turn is not None and not turn.exists():
        if os.getppid() != parent:
            # Nobody would give the turn, and the process would wait for ever.
            raise SystemExit("the benchmark is gone")
        time.sleep(0.02)
    print(json.dumps(measure(build, model, name, steps, sequences, micro, profile)))


def _print(model: str, rows: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = next((row for row in rows.values() if "error" not in row), {})
    title = f"{model}, {first.get('device', '?')}, sequences of {first.get('seq_length', '?')}"
    table = Table("contender", *(column for column, _, _ in _COLUMNS), "micro", title=title)
    for name, row in rows.items():
        if "error" in row:
            table.add_row(name, row["error"][:60])
            continue
        # Ratios hold within a run only. Another H200 did the same matrix products in 3.4 % less time.
        row["ratio"] = row["tokens_per_second"] / first["tokens_per_second"]
        shown = [form.format(row[key]) if row[key] is not None else "-" for _, key, form in _COLUMNS]
        table.add_row(name, *shown, str(row["micro_batch_size"]))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
