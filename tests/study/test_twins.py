"""A twin repeats each source, phase by phase, as often as the full run does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.config.config_file import merge, validate
from megacode.data.indexed import IndexedDatasetWriter
from megacode.planning.run_plan import make_plan
from megacode.study.grid import Cell, Grid
from tests.study.conftest import STUDY

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]


def twins(document: Document, part: str, **changes: Any) -> Document:
    proxy = {"twin": part, "of": "full", "set": changes}
    return {**document, "factors": {"scale": {"full": {}, "proxy": proxy}}}


def of_level(grid: Grid, arm: str, level: str) -> Cell:
    (cell,) = [one for one in grid.of(arm) if one.place == (level,)]
    return cell


@settings(max_examples=25, deadline=None)
@given(
    part=st.sampled_from(["1/2", "1/3", "1/7", "12.5%", "0.3"]),
    iterations=st.lists(st.integers(30, 400), min_size=2, max_size=2),
    tokens=st.integers(2_000, 30_000),
    seq_length=st.sampled_from([8, 16, 32]),
    batch=st.sampled_from([2, 4]),
)
def test_passes_agree_up_to_a_window_whatever_the_twin_s_shape(
    part: str, iterations: list[int], tokens: int, seq_length: int, batch: int, grid_of: GridOf
) -> None:
    document = copy.deepcopy(STUDY)
    for name, count in zip(("balanced", "text"), iterations, strict=True):
        document["phases"][name]["iterations"] = count
    document["set"]["sources"]["code"]["tokens"] = tokens
    document["arms"] = {"one": ["balanced", "text"]}
    changes = {"train.seq_length": seq_length, "train.global_batch_size": batch, "model.num_layers": 1}
    cell = of_level(grid_of(twins(document, part, **changes)), "one", "proxy")
    assert cell.full is not None
    own, full = cell.plan.schedule, cell.full.schedule
    assert own.seq_length == seq_length
    assert len(own.phases) == len(full.phases) == 2
    for mine, theirs in zip(own.phases, full.phases, strict=True):
        for name in ("text", "code"):
            passes = mine.counts[name] / own.orders[name].windows
            wanted = theirs.counts[name] / full.orders[name].windows
            assert abs(passes - wanted) <= (4 + wanted) / own.orders[name].windows
    for name in ("text", "code"):
        reads = sum(phase.counts[name] for phase in own.phases), sum(phase.counts[name] for phase in full.phases)
        assert (
            abs(reads[0] / own.orders[name].windows - reads[1] / full.orders[name].windows)
            <= (5 + reads[1] / full.orders[name].windows) / own.orders[name].windows
        )


@pytest.mark.parametrize(
    "change",
    [
        {"phases.balanced.blend.extra": 0.1},
        {"sources.extra": {"path": "data/extra", "tokens": 5000}},
    ],
)
def test_a_source_of_the_twin_alone_is_refused(change: Document, study: Document, grid_of: GridOf) -> None:
    study["sources"] = {"extra": {"path": "data/extra", "tokens": 5000}}
    with pytest.raises(ConfigError) as caught:
        grid_of(twins(study, "1/4", **change))
    assert "factors.scale.proxy.twin: source 'extra' is one of the twin alone" in str(caught.value)
    assert "add 'extra' to the full run, or remove it from the twin's settings" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_take_depends_on_the_source_alone_so_that_twins_share_trunks(study: Document, grid_of: GridOf) -> None:
    grid = grid_of(twins(study, "1/4"))
    one, two = (of_level(grid, arm, "proxy") for arm in ("one", "two"))
    assert one.past.ends[0] == two.past.ends[0]
    windows = (8000 - 1) // 16
    assert one.plan.config.sources["code"].take == round(windows / 4) * 16 + 1
    assert one.plan.config.phases[0].samples == 20 * 8 // 4


def test_warmup_decay_ramp_and_cuts_are_scaled_unless_the_twin_gives_them(study: Document, grid_of: GridOf) -> None:
    study["set"]["train"]["batch_ramp"] = {"start": 4, "increment": 4, "samples": 64}
    wsd = {"schedule": "wsd", "peak": 1e-3, "final": 0, "warmup": "8 iterations", "decay": "8 iterations"}
    study["phases"]["trunk"]["learning_rate"] = wsd
    study["arms"] = {"one": [{"phase": "trunk", "until": "32 iterations"}, "text"]}
    full = of_level(grid_of(twins(study, "1/4")), "one", "full").plan
    config = of_level(grid_of(twins(study, "1/4")), "one", "proxy").plan.config
    trunk, rate = config.phases[0], full.rates.phases[0]
    assert str(trunk.until) == f"{full.schedule.phases[0].samples // 4} samples"
    assert str(trunk.learning_rate.warmup) == f"{rate.warmup // 4} samples"
    assert str(trunk.learning_rate.decay) == f"{rate.decay // 4} samples"
    assert config.train.batch_ramp is not None
    assert config.train.batch_ramp.samples == 16
    own = {
        "phases.trunk.learning_rate.warmup": "1 iteration",
        "train.batch_ramp": {"start": 4, "increment": 4, "samples": 20},
    }
    config = of_level(grid_of(twins(study, "1/4", **own)), "one", "proxy").plan.config
    assert str(config.phases[0].learning_rate.warmup) == "1 iteration"
    assert config.train.batch_ramp is not None
    assert config.train.batch_ramp.samples == 20


def test_a_twin_without_of_is_one_of_the_arm_as_it_is(study: Document, grid_of: GridOf) -> None:
    study["factors"] = {"scale": {"proxy": {"twin": "1/4", "set": {"train.global_batch_size": 2}}}}
    cell = grid_of(study).of("one")[0]
    assert cell.full is not None
    assert cell.full.config.train.global_batch_size == 8
    assert cell.plan.config.train.global_batch_size == 2


def test_the_full_run_may_have_its_model_at_its_own_level_only(study: Document, grid_of: GridOf) -> None:
    model = study["set"].pop("model")
    study["factors"] = {"scale": {"proxy": {"twin": "1/4", "set": {"model": model}}}}
    cell = grid_of(study).of("one")[0]
    assert cell.full is not None
    assert cell.full.schedule.total_samples == 4 * cell.plan.schedule.total_samples


def test_a_cap_that_just_fits_the_full_run_fits_the_twin(study: Document, grid_of: GridOf) -> None:
    full = grid_of(study).of("two")[0].plan.schedule
    samples = sum(phase.counts["code"] for phase in full.phases)
    study["set"]["sources"]["code"]["max_epochs"] = samples / full.orders["code"].windows + 1e-9
    study["arms"] = {"one": ["balanced", "text"]}
    for part in ("1/3", "1/7", "0.29"):
        changes = {"train.global_batch_size": 2}
        cell = of_level(grid_of(twins(study, part, **changes)), "one", "proxy")
        assert cell.plan.schedule.total_samples > 0


@pytest.mark.parametrize(
    ("part", "changes", "said", "fix"),
    [
        (
            "1/1000",
            {},
            "factors.scale.proxy.twin: phase 'balanced' would have 1 samples, less than one global batch of 8",
            "use a larger part, or set train.global_batch_size to at most 1",
        ),
        (
            "1/100",
            {"train.global_batch_size": 1, "sources.code.tokens": 600},
            "small.yaml: factors.scale.proxy.twin: source 'code' has 37 windows, and the twin would keep none of them",
            "use a larger part of the full run",
        ),
    ],
)
def test_a_twin_that_is_too_small_is_refused(
    part: str, changes: Document, said: str, fix: str, study: Document, grid_of: GridOf
) -> None:
    if "sources.code.tokens" in changes:
        study["set"]["sources"]["code"]["tokens"] = changes.pop("sources.code.tokens")
    with pytest.raises(ConfigError) as caught:
        grid_of(twins(study, part, **changes))
    assert said in str(caught.value)
    assert fix in str(caught.value)


def config_taking(folder: Path, take: int | None, **source: Any) -> Document:
    path = folder / "set"
    if not path.with_suffix(".bin").exists():
        with IndexedDatasetWriter(path, np.uint16) as writer:
            writer.add(np.arange(1000) % 90, np.full(100, 10))
    raw = {key: value for key, value in copy.deepcopy(STUDY["set"]).items() if key != "sources"}
    raw = merge(raw, {"name": "t", "validation": {"fraction": 0.1, "samples": 2}, "train": {"seq_length": 8}})
    raw["phases"] = [{"name": "p", "iterations": 4, "blend": {"text": 1}, "learning_rate": {"schedule": "constant"}}]
    raw["phases"][0]["learning_rate"]["peak"] = 1e-3
    raw["sources"] = {"text": {"path": str(path), **source} | ({"take": take} if take else {})}
    return raw


def test_what_is_taken_is_read_and_no_other_and_held_out_data_stay(tmp_path: Path) -> None:
    from megacode.data.windows import open_source

    part, whole = (validate(config_taking(tmp_path, take), "test.yaml") for take in (105, None))
    plan = make_plan(part)
    read = plan.schedule.draws(np.arange(plan.schedule.total_samples))
    assert plan.schedule.orders["text"].windows == 13
    assert int(read.first_token.max()) + 8 < 105
    assert int(read.epoch.max()) == 32 // 13
    taken, everything = open_source(part, "text"), open_source(whole, "text")
    assert (taken.train_tokens, taken.train_documents) == (105, 11)
    assert taken.validation_tokens == everything.validation_tokens == 100
    assert taken.validation_windows == everything.validation_windows == 2
    for number in range(2):
        assert (
            taken.window(taken.held_out_first_token(number, taken.validation_windows)).tolist()
            == everything.window(everything.held_out_first_token(number, everything.validation_windows)).tolist()
        )
    assert make_plan(whole).schedule.fingerprints() != plan.schedule.fingerprints()


def test_a_declared_source_may_be_taken_from(tmp_path: Path) -> None:
    raw = config_taking(tmp_path, 105, tokens=1000)
    raw["sources"]["text"]["path"] = str(tmp_path / "nowhere")
    plan = make_plan(validate(raw, "test.yaml"), allow_declared=True)
    assert (plan.schedule.sizes["text"].tokens, plan.schedule.sizes["text"].validation_tokens) == (105, 100)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("take", "said"),
    [
        (901, "sources.text.take: 901 tokens are to be taken, and it has 900 for training\n    give at most 900"),
        (8, "sources.text.take: 8 tokens are less than one window of seq_length + 1 = 9\n    give at least 9"),
    ],
)
def test_more_than_there_is_or_less_than_a_window_cannot_be_taken(
    take: int, said: str, there: bool, tmp_path: Path
) -> None:
    raw = config_taking(tmp_path, take, tokens=1000)
    if not there:
        raw["sources"]["text"]["path"] = str(tmp_path / "nowhere")
    with pytest.raises(DataError) as caught:
        make_plan(validate(raw, "test.yaml"), allow_declared=True)
    assert said in str(caught.value)
