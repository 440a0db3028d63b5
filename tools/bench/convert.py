#!/usr/bin/env python3
"""Exporting a model and proving the export: how much memory, and how long, beside the size of the model.

    python tools/bench/convert.py [--preset to-code-2.8b] [--untied] [--dtype bf16] [--dir DIR] [--json FILE]

A checkpoint of random weights is written, a tensor at a time, and exported. Writing and proving are each
a process of its own, whose most resident memory is read from the kernel: everything counts, the interpreter, torch and
what is mapped of files. The disk must hold the checkpoint in fp32 and the export.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import tokenizers
import torch
import typer
from tokenizers import decoders, models, pre_tokenizers

from megacode.base.units import format_bytes, format_count, format_seconds
from megacode.checkpoint.files import shard_name
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.writer import bytes_of, write_alone
from megacode.config.config_file import dump_config, validate
from megacode.config.run import RunConfig
from megacode.convert.hf import write_model
from megacode.convert.mapping import Sizes, mcore_shapes
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.texts import texts_of
from megacode.convert.verify import TYPES, Claim, prove
from megacode.data.tokenizer import load_tokenizer

Figures = dict[str, Any]


def run_config(preset: str, untied: bool, tokenizer: Path) -> RunConfig:
    """Return the config of a run of a preset."""
    untie = {"share_embeddings_and_output_weights": False} if untied else {}
    rate = {"schedule": "constant", "peak": 1e-4}
    return validate(
        {
            "name": f"bench-{preset}",
            "model": {"preset": preset, **untie},
            "tokenizer": {"kind": "huggingface", "path": str(tokenizer)},
            "sources": {"text": {"path": "text"}},
            "phases": [{"name": "all", "samples": 1, "blend": {"text": 1}, "learning_rate": rate}],
            "train": {"seq_length": 2048, "global_batch_size": 1},
        },
        "bench",
    )


def write_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write a tokenizer of bytes, and as many tokens that no text holds as make up the vocabulary."""
    known = ["<|endoftext|>", *pre_tokenizers.ByteLevel.alphabet()]
    known += [f"<unused {number}>" for number in range(vocabulary - len(known))]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(known)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_checkpoint(config: RunConfig, directory: Path) -> int:
    """Write a checkpoint of random weights, and return the number of parameters."""
    assert config.tokenizer is not None
    tokenizer = load_tokenizer(config.tokenizer)
    shapes = mcore_shapes(config.model, Sizes.of(config.model, tokenizer.vocab_size))
    directory.mkdir()
    slots = [Slot(f"model.{name}", shape, "F32") for name, shape in shapes.items()]
    # One tensor at a time: 3.5B parameters are 12.9 GiB in fp32, more than many machines have free.
    files = write_alone(directory, [(shard_name(0), slots)], (bytes_of(weight) for weight in _random(shapes)))
    state = TrainState(config=dump_config(config), tokenizer_hash=tokenizer.hash)
    state.layout = {"world_size": 1, "tensor": 1, "pipeline": 1, "context": 1}
    state.files = files
    state.write(directory)
    return sum(slot.bytes for slot in slots) // 4


def _random(shapes: dict[str, tuple[int, ...]]) -> Iterator[torch.Tensor]:
    """Yield weights: norms are one, the others random."""
    for shape in shapes.values():
        whole = torch.empty(shape)
        if len(shape) == 1:
            yield whole.fill_(1.0)
            continue
        # In blocks: the random numbers of a whole embedding would be a second copy of it.
        for block in whole.split(4096):
            block.copy_(torch.randn(len(block), shape[1])).mul_(0.02)
        yield whole


def measured(work: Callable[..., None], *arguments: Any) -> Figures:
    """Run something in a process of its own: its seconds, and the most memory it held."""
    # A forked child would begin with this process's memory in its peak.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, work, *arguments).result()


def _measure(work: Callable[..., None], *arguments: Any) -> Figures:
    before, start = _peak_memory(), time.perf_counter()
    work(*arguments)
    # What was held before, torch above all, is part of the peak. It is printed beside it.
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_memory(), "before_bytes": before}


def _peak_memory() -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


def claim_of(checkpoint: Path, dtype: str) -> Claim:
    """Return what is claimed of an export of a checkpoint."""
    source = OpenedCheckpoint.open(checkpoint)
    return Claim(source.label, source.config, source.path, source.tokenizer, texts_of(source), TYPES[dtype])


def write(checkpoint: Path, out: Path, dtype: str) -> None:
    """Write an export."""
    out.mkdir()
    write_model(claim_of(checkpoint, dtype), out)


def proof(checkpoint: Path, out: Path, dtype: str) -> None:
    """Prove an export."""
    prove(claim_of(checkpoint, dtype), out)


def main(
    preset: Annotated[str, typer.Option(help="Name of the model's shape.")] = "to-code-470m",
    untied: Annotated[bool, typer.Option("--untied", help="With an output layer of its own.")] = False,
    dtype: Annotated[str, typer.Option(help="Type of the exported weights.")] = "bf16",
    directory: Annotated[Path | None, typer.Option("--dir", help="Where the files go for the time being.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
) -> None:
    """Measure one export and its proof."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        root = Path(name)
        sizes = run_config(preset, untied, root / "tokenizer").model.vocab_size
        assert sizes is not None
        # The config needs the directory's name only, so it can tell the size of the tokenizer first.
        write_tokenizer(root / "tokenizer", sizes)
        parameters = write_checkpoint(run_config(preset, untied, root / "tokenizer"), root / "checkpoint")
        figures: Figures = {"preset": preset, "untied": untied, "dtype": dtype, "parameters": parameters}
        figures["write"] = measured(write, root / "checkpoint", root / "hf", dtype)
        figures["proof"] = measured(proof, root / "checkpoint", root / "hf", dtype)
        figures["export_bytes"] = sum(path.stat().st_size for path in (root / "hf").glob("*.safetensors"))
        shutil.rmtree(root / "hf")
    show(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def show(figures: Figures) -> None:
    """Write the figures as a table."""
    size = f"{format_count(figures['parameters'])} parameters, {format_bytes(4 * figures['parameters'])} in fp32"
    typer.echo(f"{figures['preset']}: {size}, {format_bytes(figures['export_bytes'])} exported as {figures['dtype']}")
    for stage in ("write", "proof"):
        row = figures[stage]
        memory = f"at most {format_bytes(row['peak_bytes'])} ({format_bytes(row['before_bytes'])} of it at the start)"
        typer.echo(f"{stage:6} {memory}, {format_seconds(row['seconds'])}")


if __name__ == "__main__":
    typer.run(main)
