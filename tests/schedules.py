"""Configs and schedules in memory, as fixtures for tests of the plan and of what reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings

from megacode.capacity.layout import Layout
from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.phases import Schedule, SourceSize, build_schedule

settings.register_profile("plan", deadline=None)  # a shared machine stalls now and then
settings.load_profile("plan")

MODEL = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 1000}
RATE = {"schedule": "constant", "peak": 1e-3}


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """Return a function from phases (length, blend, further keys) to a run's config; other keys replace its parts."""

    def make(
        phases: Sequence[tuple[int | str, dict[str, float]] | tuple[int | str, dict[str, float], dict[str, Any]]],
        *,
        seq_length: int = 4,
        batch: int = 1,
        caps: dict[str, float] | None = None,
        sources: Sequence[str] = (),
        train: dict[str, Any] | None = None,
        **changes: Any,
    ) -> RunConfig:
        names = sorted({*sources, *(name for phase in phases for name in phase[1])})
        raw_phases = []
        for number, (length, blend, *more) in enumerate(phases):
            count, _, unit = str(length).partition(" ")
            raw = {"name": f"p{number}", unit or "samples": int(count), "blend": blend, "learning_rate": RATE}
            raw_phases.append(raw | (more[0] if more else {}))
        limits = caps or {}
        raw_sources = {n: {"path": f"data/{n}"} | ({"max_epochs": limits[n]} if n in limits else {}) for n in names}
        raw_train = {"seq_length": seq_length, "global_batch_size": batch} | (train or {})
        raw_run = {"name": "t", "model": MODEL, "sources": raw_sources, "phases": raw_phases, "train": raw_train}
        return validate(raw_run | changes, "test.yaml")

    return make


@pytest.fixture(scope="session")
def schedule_of() -> Callable[[RunConfig, dict[str, int]], Schedule]:
    """Return a function from a config and the sources' tokens to the schedule."""

    def build(config: RunConfig, tokens: dict[str, int]) -> Schedule:
        return build_schedule(config, {n: SourceSize(n, t, identity=f"hash of {n}") for n, t in tokens.items()})

    return build


@pytest.fixture(scope="session")
def clocks_of(schedule_of: Callable[..., Schedule]) -> Callable[..., tuple[Schedule, BatchSchedule]]:
    """Return a function from a config to its schedule and batches, with sources that are large enough."""

    def build(config: RunConfig) -> tuple[Schedule, BatchSchedule]:
        schedule = schedule_of(config, dict.fromkeys(config.sources, 10**9))
        return schedule, BatchSchedule(config, schedule)

    return build


@pytest.fixture(scope="session")
def rates_of(clocks_of: Callable[..., tuple[Schedule, BatchSchedule]]) -> Callable[[RunConfig], LearningRateSchedule]:
    """Return a function from a config to its learning rate."""
    return lambda config: LearningRateSchedule(config, *clocks_of(config))


@pytest.fixture(scope="session")
def place() -> Callable[..., Layout]:
    """Return a function from GPUs and changes to a config to a run laid over them: a Llama-like model of 8 layers."""

    def make(gpus: int = 1, dtype: str = "bf16", **changes: dict[str, Any]) -> Layout:
        shape = {"num_layers": 8, "hidden_size": 1024, "ffn_hidden_size": 4096, "num_attention_heads": 8}
        raw = {
            "name": "t",
            "model": {**shape, "num_query_groups": 8, "vocab_size": 32768, **changes.get("model", {})},
            "sources": {"text": {"path": "data/text"}},
            "phases": [{"name": "all", "iterations": 10, "blend": {"text": 1}, "learning_rate": RATE}],
            "train": {"seq_length": 2048, "global_batch_size": 64, **changes.get("train", {})},
            "parallel": changes.get("parallel", {}),
            "precision": {"dtype": dtype, **changes.get("precision", {})},
            "checkpoint": changes.get("checkpoint", {}),
        }
        return Layout(validate(raw, "test.yaml"), gpus, 32768)

    return make


@pytest.fixture(scope="session")
def on_one_gpu() -> Callable[[str, int, str | None, bool], Layout]:
    """Return a function from preset, micro-batch, FP8 recipe and its `output_layer` to what `gpu_step.py` measures."""

    def build(preset: str, micro: int, recipe: str | None, output_layer: bool) -> Layout:
        config = validate(
            {
                "name": "t",
                "model": {"preset": preset},
                "sources": {"text": {"path": "data/text"}},
                "phases": [{"name": "all", "iterations": 9, "blend": {"text": 1}, "learning_rate": RATE}],
                "train": {"seq_length": 8192, "global_batch_size": 32, "micro_batch_size": micro},
                "precision": {"fp8": {"recipe": recipe, "output_layer": output_layer} if recipe else "none"},
            },
            "test.yaml",
        )
        return Layout(config, 1, 256_000)

    return build
