"""A run directory as `megacode train`, `convert` and `evaluate` leave it, made up but in every law of its schemas."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alignment_records import alignment_record

SEQ_LENGTH, BATCH = 512, 16
PHASES = {
    "balanced": (200, {"text": 0.5, "code": 0.4, "markup": 0.1}, (1e-3, 1e-4)),
    "text": (180, {"text": 0.9, "code": 0.1}, (1e-3, 1e-4)),
    "cooldown": (40, {"text": 0.7, "code": 0.2, "markup": 0.1}, (1e-4, 1e-6)),
}
SIZES = {"text": 2_400_000, "code": 1_500_000, "markup": 210_000}
PARITY = {"verified": True, "points": [{"point": "logits", "largest": 0.0}], "end_to_end": {"largest": 2.4e-06}}
FLOORS = {"text": (3.1, 6.2), "code": (2.1, 6.8), "markup": (1.9, 7.0)}


def _config(name: str) -> dict[str, Any]:
    return {
        "name": name, "seed": 1234,
        "model": {"num_layers": 6, "hidden_size": 256, "num_attention_heads": 8, "block": "parallel"},
        "sources": {source: {"path": f"data/{source}_text_document"} for source in SIZES},
        "train": {"seq_length": SEQ_LENGTH, "global_batch_size": BATCH, "clip_grad": 1.0},
        "phases": [{"name": phase, "blend": blend} for phase, (_, blend, _) in PHASES.items()],
    }  # fmt: skip


def _plan() -> dict[str, Any]:
    phases, links, first, read = [], [], 0, dict.fromkeys(SIZES, 0)
    for name, (iterations, blend, rates) in PHASES.items():
        samples, rows = iterations * BATCH, {}
        for source, share in blend.items():
            count = round(samples * share)
            read[source] += count * SEQ_LENGTH
            rows[source] = {"samples": count, "tokens": count * SEQ_LENGTH, "share": share,
                            "epochs_after": read[source] / SEQ_LENGTH / _windows(source),
                            "first_repetition_sample": None, "tail_unused_tokens": 87}  # fmt: skip
        phases.append({"name": name, "first_sample": first, "samples": samples, "tokens": samples * SEQ_LENGTH,
                       "iterations": iterations, "sources": rows,
                       "learning_rate": {"start": 0.0, "peak": rates[0], "end": rates[1]}})  # fmt: skip
        links.append({"phase": name, "first_sample": first, "fingerprint": f"{len(links) + 1}f3a" * 16})
        first += samples
    sources = {
        name: {"tokens": size, "windows": _windows(name), "identity": name[0] * 64} for name, size in SIZES.items()
    }
    return {"name": "demo", "seq_length": SEQ_LENGTH, "phases": phases, "sources": sources, "total_samples": first,
            "total_iterations": 420, "parameters": 7_345_408, "flops": 1.6e14, "fingerprints": links,
            "warnings": ["text: the learning rate jumps from 0.0001 to 0.001 without a warmup"]}  # fmt: skip


def _windows(source: str) -> int:
    return (SIZES[source] - 1) // SEQ_LENGTH


def _metrics(limit: int | None) -> list[dict[str, Any]]:
    """Draw samples as evenly as the laws ask, with losses that fall and stand off from each other."""
    rng, lines, iteration = random.Random(7), [], 0
    seen, consumed = dict.fromkeys(SIZES, 0), 0
    lines.append(_validation(rng, 0, 0, "balanced", "start"))
    for phase, (iterations, blend, (peak, final)) in PHASES.items():
        drawn = dict.fromkeys(blend, 0)
        for index in range(iterations):
            if limit is not None and iteration == limit:
                return lines
            target = {s: round((index + 1) * BATCH * share) for s, share in blend.items()}
            target[next(iter(blend))] += (index + 1) * BATCH - sum(target.values())
            now = {s: target[s] - drawn[s] for s in blend if target[s] > drawn[s]}
            drawn, iteration, consumed = target, iteration + 1, consumed + BATCH
            for source, count in now.items():
                seen[source] += count * SEQ_LENGTH
            losses = {s: _loss(s, consumed) * rng.gauss(1, 0.035) for s in now}
            warm, share = min(1.0, (index + 1) / 20), index / max(1, iterations - 1)
            seconds = 0.52 * rng.gauss(1, 0.04) * (2.3 if rng.random() < 0.015 else 1)
            lines.append({
                "kind": "train", "iteration": iteration, "consumed_samples": consumed,
                "consumed_tokens": consumed * SEQ_LENGTH, "phase": phase,
                "loss": sum(losses[s] * n for s, n in now.items()) / BATCH,
                "loss_by_source": losses, "samples_by_source": now,
                "tokens_by_source": {s: {"planned": n, "seen": n} for s, n in seen.items()},
                "learning_rate": (warm if phase != "cooldown" else 1)
                * (final + (peak - final) * (1 + math.cos(math.pi * share)) / 2),
                "grad_norm": 0.45 * math.exp(rng.gauss(0, 0.2)) + 6 * math.exp(-iteration / 15),
                "tokens_per_second": BATCH * SEQ_LENGTH / seconds, "seconds": seconds,
                "flops_per_second": 4.7e7 * BATCH * SEQ_LENGTH / seconds, "mfu": None, "batch_size": BATCH,
            })  # fmt: skip
            if iteration % 50 == 0 or index == iterations - 1:
                reason = "phase_end" if index == iterations - 1 else "interval"
                lines.append(_validation(rng, iteration, consumed, phase, reason))
    return lines


def _loss(source: str, consumed: int) -> float:
    floor, height = FLOORS[source]
    return floor + height / (1 + consumed / 260) ** 0.8


def _alignments() -> list[dict[str, Any]]:
    """Measure every 20 iterations: code helps text less and less in the text phase, and markup is against text."""
    lines, iteration = [], 0
    for phase, (iterations, _, (peak, final)) in PHASES.items():
        for index in range(20, iterations + 1, 20):
            fade = 0.3 * (1 - index / iterations) if phase == "text" else 0.3
            shared = {("code", "text"): fade, ("markup", "text"): -0.15, ("text", "code"): 0.2, ("markup", "code"): 0.4}
            at, rate = iteration + index, final + (peak - final) * (1 - index / iterations)
            lines.append(alignment_record(list(SIZES), shared, iteration=at, consumed=at * BATCH, phase=phase,
                                          learning_rate=rate))  # fmt: skip
        iteration += iterations
    return lines


def _validation(rng: random.Random, iteration: int, consumed: int, phase: str, reason: str) -> dict[str, Any]:
    losses = {source: _loss(source, consumed) * rng.gauss(1.01, 0.004) for source in SIZES}
    return {"kind": "validation", "iteration": iteration, "consumed_samples": consumed, "phase": phase,
            "loss": sum(losses.values()) / 3, "loss_by_source": losses, "reason": reason}  # fmt: skip


def _scores(gain: float) -> dict[str, Any]:
    bits = {
        f"demo_bits_{s}": {"bits_per_byte": 3.4 - 1.5 * gain - 0.2 * i, "bits_per_byte_stderr": 0.04}
        for i, s in enumerate(SIZES)
    }
    endings = {
        f"demo_endings_{s}": {"acc": 0.25 + (0.2 + 0.06 * i) * gain, "acc_stderr": 0.03,
                              "acc_norm": 0.25 + (0.24 + 0.05 * i) * gain, "acc_norm_stderr": 0.03}
        for i, s in enumerate(SIZES)
    }  # fmt: skip
    word = {"demo_next_word_code": {"exact_match": 0.4 * gain, "exact_match_stderr": 0.03}}
    return {
        "suite": "demo",
        "scores": {**bits, **endings, **word},
        "chance": dict.fromkeys(endings, 0.25),
        "tasks": {name: {"higher_is_better": {"bits_per_byte": False}, "items": 300} for name in bits},
        "versions": {"lm_eval": "0.4.13"},
        "date": "2026-11-23T12:00:00+00:00",
        "contamination": _contamination([*bits, *endings, *word], gain),
    }


def _contamination(tasks: list[str], gain: float) -> dict[str, Any]:
    if not gain:
        return {"checked": False, "why": "the model has consumed no samples yet"}
    rows = {task: {"items": 80, "overlapping": round((10 + number) * gain)} for number, task in enumerate(tasks)}
    return {
        "checked": True,
        "rule": "13 tokens in a row",
        "tokens_read": 3_000_000,
        "share_checked": 1.0,
        "tasks": rows,
    }


def _samples(iteration: int) -> dict[str, Any]:
    texts = [
        {"kind": "code", "prompt": "def f(", "text": f"x):  # of {iteration}", "tokens": 8, "ended": "end of text"}
    ]
    return {"iteration": iteration, "settings": {"temperature": 0.8, "seed": 0}, "samples": texts}


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _build(
    path: Path, *, limit: int | None = None, models: bool = True, name: str = "demo", aligned: bool = False
) -> Path:
    """Write a run directory.

    Args:
        path: where; made anew.
        limit: iterations done; all by default.
        models: whether models were exported and scored.
        name: the run's name.
        aligned: whether alignment was measured.
    """
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(yaml.safe_dump(_config(name), sort_keys=False), encoding="utf-8")
    _write_json(path / "plan.json", _plan())
    _write_lines(path / "metrics.jsonl", [*_metrics(limit), *(_alignments() if aligned else [])])
    start = {"time": 1_795_000_000.0, "event": "start", "iteration": 0, "consumed_samples": 0, "ranks": 2}
    end = [{"time": 1_795_000_260.0, "event": "stop", "reason": "finished"}] if limit is None else []
    _write_lines(path / "events.jsonl", [start, *end])
    for iteration, gain in ((0, 0.0), (200, 0.7), (380, 0.9), (420, 1.0)) if models else ():
        facts = {"parity": PARITY, "hashes": {"tokenizer": "ab" * 32}, "versions": {"megacode": "0.1.0"}}
        _write_json(path / f"hf/iter_{iteration:07d}/megacode.json", facts)
        _write_json(path / f"eval/demo@iter_{iteration:07d}.json", _scores(gain))
        _write_json(path / f"samples/iter_{iteration:07d}.json", _samples(iteration))
    return path


@pytest.fixture
def build_run() -> Callable[..., Path]:
    """Return the function that writes a run directory."""
    return _build
