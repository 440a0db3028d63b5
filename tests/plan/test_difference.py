"""What is different between a checkpoint's config and the present one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from megacode.config.config_file import dump_config
from megacode.config.run import RunConfig
from megacode.plan.difference import Change, compare_configs, compare_schedules, former_schedule, render_changes
from megacode.plan.phases import Schedule

Make = Callable[..., Any]
PHASES = [(60, {"a": 0.6, "b": 0.4}), (40, {"a": 0.2, "b": 0.8})]
TOKENS = {"a": 900, "b": 700}


def changes(old: RunConfig, new: RunConfig, chain: list[Any] | None = None, clock: int = 0) -> list[Change]:
    return compare_configs(dump_config(old), new, chain or [], clock)


def test_an_equal_config_has_no_changes(make_config: Make) -> None:
    assert changes(make_config(PHASES), make_config(PHASES)) == []


@pytest.mark.parametrize(
    ("change", "key", "values", "effect"),
    [
        ({"seed": 7}, "seed", (1234, 7), "data order"),
        ({"name": "other", "run_dir": "elsewhere/t"}, "name", ("t", "other"), "bookkeeping"),
        ({"train": {"clip_grad": 0.5}}, "train.clip_grad", (1.0, 0.5), "optimizer"),
        ({"train": {"micro_batch_size": 2}, "batch": 2}, "train.micro_batch_size", (1, 2), "layout"),
        ({"batch": 2}, "train.global_batch_size", (1, 2), "batch size"),
        ({"parallel": {"tensor": 2}}, "parallel.tensor", (1, 2), "layout"),
        ({"precision": {"dtype": "fp32"}}, "precision.dtype", ("bf16", "fp32"), "number formats"),
        ({"caps": {"a": 9}}, "sources.a.max_epochs", (None, 9.0), "future data"),
        ({"checkpoint": {"every": "5 iterations"}}, "checkpoint.every", (None, "5 iterations"), "bookkeeping"),
        ({"health": {"report_every": 7}}, "health.report_every", (100, 7), "bookkeeping"),
        ({"health": {"spikes": {"window": 64}}}, "health.spikes.window", (128, 64), "withheld samples"),
        ({"validation": {"samples": 7}}, "validation.samples", (512, 7), "measurement"),
        ({"validation": {"fraction": 0.1}}, "validation.fraction", (0.005, 0.1), "held-out data"),
    ],
)
def test_each_setting_says_what_it_decides(
    make_config: Make, change: dict[str, Any], key: str, values: tuple[Any, Any], effect: str
) -> None:
    found = {item.key: item for item in changes(make_config(PHASES), make_config(PHASES, **change))}
    assert found[key] == Change(key, *values, effect)


def test_phases_are_compared_by_setting_or_as_a_whole(make_config: Make) -> None:
    rate = {"learning_rate": {"schedule": "linear", "peak": 1e-3, "final": 0.0}}
    new = [(60, PHASES[0][1], {"until": "30 samples"} | rate), (90, {"a": 1}, {"name": "decay"}), (5, {"b": 1})]
    found = changes(make_config(PHASES), make_config(new))
    assert [(item.key, item.effect) for item in found] == [
        ("phases[0].learning_rate.schedule", "learning rate"),
        ("phases[0].learning_rate.final", "learning rate"),
        ("phases[0].until", "future data"),
        ("phases[1]", "future data, learning rate"),
        ("phases[2]", "future data, learning rate"),
    ]
    assert render_changes(found)[-3:] == [
        "phases[0].until: - -> 30 samples (future data)",
        "phases[1]: p1, 40 samples -> decay, 90 samples (future data, learning rate)",
        "phases[2]: - -> p2, 5 samples (future data, learning rate)",
    ]


def test_what_changes_in_a_phase_that_is_over_is_past(make_config: Make, schedule_of: Make) -> None:
    chain = schedule_of(make_config(PHASES), TOKENS).fingerprints()
    rate = {"learning_rate": {"schedule": "constant", "peak": 2e-3}}
    new = make_config([(60, {"a": 0.5, "b": 0.5}, rate), PHASES[1]])
    found = changes(make_config(PHASES), new, chain, 60)
    assert {item.effect for item in found} == {"past data", "nothing: the phase is over"}
    assert {item.effect for item in changes(make_config(PHASES), new, chain, 59)} == {"future data", "learning rate"}


def test_settings_that_a_former_version_did_not_know_count_as_their_defaults(make_config: Make) -> None:
    raw = yaml.safe_load(dump_config(make_config(PHASES)))
    del raw["health"], raw["limits"], raw["parallel"]["recompute"]
    assert compare_configs(yaml.safe_dump(raw), make_config(PHASES), [], 0) == []


def test_a_former_config_that_is_no_longer_valid_is_compared_as_it_was_written(make_config: Make) -> None:
    raw = yaml.safe_load(dump_config(make_config(PHASES))) | {"gone": 3}
    assert compare_configs(yaml.safe_dump(raw), make_config(PHASES), [], 0) == [Change("gone", 3, None, "other")]


def test_the_former_schedule_is_made_again_from_what_a_checkpoint_carries(make_config: Make, schedule_of: Make) -> None:
    config = make_config(PHASES)
    old: Schedule = schedule_of(config, TOKENS)
    again = former_schedule(dump_config(config), old.fingerprints()[:1], 50, {})
    assert again is not None
    assert [again.draw(k) for k in range(100)] == [old.draw(k) for k in range(100)]
    other = schedule_of(make_config(PHASES, seed=3), TOKENS).fingerprints()
    assert former_schedule(dump_config(config), other, 50, {}) is None


def test_tokens_to_come_are_compared_by_source(make_config: Make, schedule_of: Make) -> None:
    old = schedule_of(make_config(PHASES), TOKENS)
    new = schedule_of(make_config([PHASES[0], (100, {"a": 0.5, "c": 0.5})], sources="b"), TOKENS | {"c": 900})
    found = compare_schedules(old, new, 50)
    assert found.sources == {
        "a": {"read": 120, "before": 56, "now": 224},
        "b": {"read": 80, "before": 144, "now": 16},
        "c": {"read": 0, "before": 0, "now": 200},
    }
    assert found.total_tokens == {"before": 400, "now": 640}
    unknown = compare_schedules(None, new, 50)
    assert unknown.sources["c"] == {"read": 0, "before": None, "now": 200}
    assert "lost" not in unknown.document()
