"""`megacode demo`: the complete workflow on this machine's own files, in minutes on two cores.

Real files become three indexed data sets. A small GPT with the paper's parallel block trains through balanced -> text
-> cooldown on two ranks. The model of each phase is exported, proven and scored, and a page shows the results. Every
step leaves its result on disk and is skipped if it exists, so an interrupted demo resumes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from megacode.base.errors import EXIT_RESUMABLE, ConfigError
from megacode.base.files import RunDir, write_text
from megacode.base.units import format_bytes, format_seconds
from megacode.config.suggestions import did_you_mean

log = logging.getLogger(__name__)

SOURCES = ("text", "code", "markup")
# The same run on two ranks in three ways: data, tensor or pipeline parallel.
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"distributed_optimizer": True},
    "tp2": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
}
RANKS = 2
VOCABULARY = 4096
ITERATIONS = {"balanced": 180, "text": 140, "cooldown": 60}
PAGE_WIDTH = 100
# Measured on two free cores, by the widest vectors of the CPU.
FREE_SECONDS = {"AVX-512": 258, "AVX2": 366}
_DATA_STEPS = 3  # corpus, tokenizer, data sets
# Far more than usual: the corpus is small, and the questions come from held-out documents.
HELD_OUT = 0.05
# The recipe writes these documents last, and keeps what they hold out of the others. Slightly more than the run holds
# out: the recipe counts documents, the run tokens.
CUT_OFF = 0.06


def demo_config(out: Path, layout: str) -> dict[str, Any]:
    """Return the config of the demo's run, as a user would write it.

    Args:
        out: the demo's directory.
        layout: one of `LAYOUTS`.
    """
    rate = {"schedule": "cosine", "peak": 3.0e-3, "final": 6.0e-4}
    return {
        "name": "demo",
        "seed": 1234,
        "model": {
            "num_layers": 4,
            "hidden_size": 192,
            "ffn_hidden_size": 512,
            "num_attention_heads": 6,
            "num_query_groups": 2,
            "block": "parallel",
            "normalization": "LayerNorm",
            # Untied, two embeddings of 4,096 x 192 would be a large part of this small model.
            "share_embeddings_and_output_weights": True,
        },
        "tokenizer": {"kind": "huggingface", "path": str(out / "tokenizer")},
        "sources": {name: {"path": str(out / "data" / f"{name}_text_document")} for name in SOURCES},
        "validation": {"fraction": HELD_OUT, "every": "50 iterations", "samples": 48},
        "phases": [
            {
                "name": "balanced",
                "iterations": ITERATIONS["balanced"],
                "blend": {"text": 0.5, "code": 0.4, "markup": 0.1},
                "learning_rate": {**rate, "warmup": "20 iterations"},
            },
            {
                "name": "text",
                "iterations": ITERATIONS["text"],
                "blend": {"text": 0.9, "code": 0.08, "markup": 0.02},
                "learning_rate": {**rate, "peak": 2.0e-3, "warmup": "10 iterations"},
            },
            {
                "name": "cooldown",
                "iterations": ITERATIONS["cooldown"],
                "blend": {"text": 0.7, "code": 0.2, "markup": 0.1},
                "learning_rate": {"schedule": "linear", "final": 1.0e-5},
            },
        ],
        "train": {"seq_length": 256, "global_batch_size": 16, "micro_batch_size": 8},
        "parallel": LAYOUTS[layout],
        "precision": {"dtype": "fp32"},
        # At the start too: the untrained model is scored, so that the page shows where learning began.
        "checkpoint": {"every": "25 iterations", "at_start": True, "keep_last": 1, "keep_phase_ends": True},
        "run_dir": str(out / "run"),
    }


def demo_recipe(out: Path) -> dict[str, Any]:
    """Return the recipe of the demo's corpus, as a user would write it: `examples/corpora/machine.yaml`.

    Args:
        out: the demo's directory.
    """
    return {
        "name": "machine",
        "output": str(out / "corpus"),
        "sources": {name: {"kind": "machine", "held_out": f"{100 * CUT_OFF:.0f}%"} for name in SOURCES},
        "duplicates": {"threshold": 0.7},
        "decontaminate": {"held_out": True},
        "seed": 0,
    }


def run_demo(out: Path, layout: str, data_only: bool = False) -> int:
    """Run the demo, or what is left of it.

    Args:
        out: directory for all results.
        layout: parallel layout of the two ranks: `dp2`, `tp2` or `pp2`.
        data_only: stop after the tokenizer and the data sets, which `examples/studies/to_code_mini.yaml` reads.

    Returns:
        The exit code: 0, or that of training (75: stopped and resumable).
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"there is no layout {layout!r}", "--layout", did_you_mean(layout, list(LAYOUTS)))
    started = time.perf_counter()
    demo = _Demo(out.resolve(), layout)
    if not data_only and not (demo.out / "report.html").exists():
        cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        demo.console.print(expected_time(cores, load, _vectors()), highlight=False)
    for title, step in demo.steps()[: _DATA_STEPS if data_only else None]:
        begun = time.perf_counter()
        demo.console.rule(f"[bold]{title}", align="left")
        # Imports are inside the steps: a finished demo prints its result without loading torch.
        code = step()
        if code:
            if code == EXIT_RESUMABLE:
                demo.console.print("\nStopped and saved. Run the same command again to resume.")
            return code
        log.info("%s: %s", title, format_seconds(time.perf_counter() - begun))
    next_step = f"Data sets are in {demo.out / 'data'}" if data_only else f"Open {demo.out / 'report.html'}"
    demo.console.print(f"\nDone in {format_seconds(time.perf_counter() - started)}. {next_step}")
    return 0


def _vectors() -> str:
    """Return the widest vectors of the CPU, a key of `FREE_SECONDS`."""
    path = Path("/proc/cpuinfo")
    return "AVX-512" if path.exists() and "avx512f" in path.read_text() else "AVX2"


def expected_time(cores: int, load: float, vectors: str) -> str:
    """Return a sentence about how long the whole demo takes on this machine, and why.

    Args:
        cores: that this process may use.
        load: processes that already wish to run, on average.
        vectors: the CPU's widest, a key of `FREE_SECONDS`.
    """
    # The demo's ranks and the others share the cores evenly.
    free = FREE_SECONDS[vectors]
    usual, mine = (round(one / 60) for one in (free, free * max(1.0, (load + RANKS) / cores)))
    here = f"This machine has {cores} {'core' if cores == 1 else 'cores'} and a load of {load:.1f}"
    return f"On two free cores with {vectors} the demo takes about {usual} minutes. {here}: expect about {mine}."


class _Demo:
    """The steps of the demo; each leaves its result on disk and is skipped if that exists."""

    def __init__(self, out: Path, layout: str) -> None:
        self.out = out
        self.layout = layout
        self.console = Console(stderr=True, width=None if sys.stderr.isatty() else PAGE_WIDTH)
        self.run = RunDir(out / "run")
        self.config = out / "demo.yaml"
        self.recipe = out / "corpus.yaml"

    def steps(self) -> list[tuple[str, Callable[[], int | None]]]:
        """Return titles and functions of the steps, in order."""
        return [
            ("1. Make a corpus of this machine's files", self.corpus),
            ("2. Train a tokenizer", self.tokenizer),
            ("3. Preprocess into indexed data sets", self.preprocess),
            ("4. Plan", self.plan),
            (f"5. Train three phases on {RANKS} ranks ({self.layout})", self.train),
            ("6. Export to Hugging Face, and prove it equal", self.export),
            ("7. Score with lm-eval, before and after each phase", self.score),
            ("8. Write the page", self.report),
        ]

    def corpus(self) -> None:
        """Write corpus/corpus/SOURCE/*.jsonl.zst and corpus/corpus/card.html."""
        from megacode.corpus.engine import run_recipe
        from megacode.corpus.recipe import load_recipe

        text = yaml.safe_dump(demo_recipe(self.out), sort_keys=False, width=120)
        write_text(self.recipe, "# The demo's corpus, ready for `megacode data corpus`.\n" + text)
        # A killed demo, or one of another version, leaves a corpus that no longer fits.
        manifest = run_recipe(load_recipe(self.recipe), "megacode demo", processes=RANKS, overwrite=True)
        assert manifest is not None
        for name, part in manifest["sources"].items():
            log.info("%s: %d documents, %s", name, part["documents"], format_bytes(part["bytes"]))

    def _documents(self, name: str, *, held_out: bool) -> list[str]:
        """Return the files of a source."""
        from megacode.corpus.layout import CorpusDir
        from megacode.data.machine_files import WHOLE

        return [str(CorpusDir(self.out / "corpus").output(name, WHOLE, held_out=held_out).parent / "*.zst")]

    def tokenizer(self) -> None:
        """Write tokenizer/: byte-level BPE, trained on all three sources."""
        from megacode.data.train_tokenizer import train_tokenizer

        if not (self.out / "tokenizer" / "tokenizer.json").exists():
            inputs = [file for name in SOURCES for file in self._documents(name, held_out=False)]
            train_tokenizer("huggingface", inputs, VOCABULARY, self.out / "tokenizer", overwrite=True)

    def preprocess(self) -> None:
        """Write data/NAME_text_document.bin, .idx and a manifest for each source."""
        from megacode.config.model import TokenizerConfig
        from megacode.data.manifest import manifest_path
        from megacode.data.preprocess import PreprocessJob, preprocess

        tokenizer = TokenizerConfig(kind="huggingface", path=str(self.out / "tokenizer"))
        for name in SOURCES:
            prefix = str(self.out / "data" / name)
            # Held-out documents come last, as the run expects them; the others were collected in a keyed order.
            inputs = self._documents(name, held_out=False) + self._documents(name, held_out=True)
            job = PreprocessJob(tuple(inputs), prefix, tokenizer, append_eod=True, command="megacode demo")
            job = replace(job, overwrite=True)  # a killed demo leaves files without a manifest
            if not manifest_path(job.prefix("text")).exists():
                preprocess(job)

    def plan(self) -> None:
        """Write demo.yaml and show its plan."""
        from megacode.config.config_file import load_config
        from megacode.planning.run_plan import plan_run
        from megacode.planning.tables import render_plan

        # Before demo.yaml is overwritten, which records the layout.
        self._refuse_another_layout()
        text = yaml.safe_dump(demo_config(self.out, self.layout), sort_keys=False, width=120)
        write_text(self.config, "# The demo's run, ready for `megacode plan` and `megacode train`.\n" + text)
        render_plan(plan_run(load_config(self.config)), self.console)

    def _refuse_another_layout(self) -> None:
        """Refuse a second layout in one directory: it would resume the run of the first one."""
        if self.config.exists() and yaml.safe_load(self.config.read_text())["parallel"] != LAYOUTS[self.layout]:
            message = f"the demo in this directory has another layout than {self.layout}"
            raise ConfigError(message, str(self.config), f"add --out runs/demo-{self.layout}, or use the same --layout")

    def train(self) -> int:
        """Train, or resume from the newest checkpoint."""
        from megacode.launch.local_ranks import run_ranks

        # Phase ends are never deleted, so the last checkpoint proves that training is done.
        if self.run.checkpoint(self.milestones()[-1]).exists():
            return 0
        return run_ranks(["train", str(self.config)], RANKS)

    def milestones(self) -> list[int]:
        """Return the iterations before the first phase and after each phase."""
        total, ends = 0, [0]
        for iterations in ITERATIONS.values():
            total += iterations
            ends.append(total)
        return ends

    def export(self) -> None:
        """Write run/hf/iter_*: the untrained model and the one at the end of each phase."""
        from megacode.convert.hf import to_hf
        from megacode.convert.verify import render_report

        for iteration in self.milestones():
            target = self.run.hf / self.run.iteration_name(iteration)
            # A published export is a proven one, so its existence is enough.
            if not target.exists():
                render_report(to_hf(self.run.checkpoint(iteration), target), self.console)

    def score(self) -> None:
        """Write run/eval/demo@iter_*.json, on questions made from held-out documents."""
        from megacode.eval.harness import evaluate_many, render_scores

        # All models in one call: lm-eval and the tasks are loaded only once.
        missing = [i for i in self.milestones() if not self.run.score("demo", i).exists()]
        if missing:
            models = [self.run.hf / self.run.iteration_name(iteration) for iteration in missing]
            for document in evaluate_many(models, "demo", [self.run.score("demo", i) for i in missing]):
                render_scores(document, self.console)

    def report(self) -> None:
        """Write report.html."""
        from megacode.report.page import write_report

        write_report(self.run.path, self.out / "report.html")
