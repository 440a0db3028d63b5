from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from megacode.base.errors import ConfigError
from megacode.capacity.cluster import Cluster
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.phases import SourceSize, build_schedule
from megacode.planning.tables import plan_document, render_plan

Make = Callable[..., Any]


def document_of(config: RunConfig, tokens: dict[str, int], gpus: int | None = None, **size: Any) -> dict[str, Any]:
    sizes = {name: SourceSize(name, count, **({"identity": "x"} | size)) for name, count in tokens.items()}
    schedule = build_schedule(config, sizes)
    batches = BatchSchedule(config, schedule)
    rates = LearningRateSchedule(config, schedule, batches)
    return plan_document(
        config, schedule, batches, rates, config.model.vocab_size or 0, Cluster(gpus) if gpus else None
    )


def rendered(document: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render_plan(document, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    cosine = {"learning_rate": {"schedule": "cosine", "peak": 3e-4, "final": 3e-5, "warmup": "3 iterations"}}
    linear = {"learning_rate": {"schedule": "linear", "final": 1e-6}, "name": "cooldown"}
    phases = [("403 tokens", {"text": 0.5, "code": 0.5}, cosine), ("5 iterations", {"text": 0.8, "code": 0.2}, linear)]
    result: RunConfig = make_config(phases, batch=10)
    return result


def test_the_document_has_its_fixed_shape_and_survives_json(config: RunConfig) -> None:
    document = document_of(config, {"text": 1000, "code": 100})
    assert json.loads(json.dumps(document)) == document
    first, second = document["phases"]
    assert (first["name"], first["first_sample"], first["samples"]) == ("p0", 0, 100)
    assert (first["tokens"], first["iterations"]) == (400, 10)
    assert (second["first_sample"], second["samples"], second["first_iteration"]) == (100, 50, 10)
    code = {key: second["sources"]["code"][key] for key in ("samples", "tokens", "epochs_before", "epochs_after")}
    assert code == {"samples": 10, "tokens": 40, "epochs_before": 50 / 24, "epochs_after": 60 / 24}
    assert (document["total_samples"], document["total_tokens"], document["total_iterations"]) == (150, 600, 15)
    assert document["parameters"] == sum(document["parameters_by_component"].values())
    assert document["vocab_size_padded"] == 1024
    assert document["parameters_padded"] - document["parameters"] == 2 * 24 * 64
    assert document["flops"] == 600 * document["flops_per_token"]
    assert [link["phase"] for link in document["fingerprints"]] == ["p0", "cooldown"]
    assert first["learning_rate"] == {
        "schedule": "cosine", "start": 0.0, "peak": 3e-4, "end": 3e-5, "warmup_samples": 30,
    }  # fmt: skip
    assert (second["learning_rate"]["start"], second["learning_rate"]["end"]) == (3e-5, 1e-6)
    assert document["sources"]["code"]["tail_unused_tokens"] == second["sources"]["code"]["tail_unused_tokens"] == 3


def test_a_plan_shows_of_which_sources_only_a_part_is_used(make_config: Make) -> None:
    whole = make_config([(10, {"a": 1, "b": 1})])
    part = make_config([(10, {"a": 1, "b": 1})], sources=("a", "b"))
    part = part.model_copy(
        update={"sources": part.sources | {"a": part.sources["a"].model_copy(update={"take": 1234})}}
    )
    document = document_of(part, {"a": 1234, "b": 100})
    assert [row["take"] for row in document["sources"].values()] == [1234, None]
    assert "only the first training tokens are used (take): a 1,234 " in rendered(document)
    assert "take" not in rendered(document_of(whole, {"a": 1234, "b": 100}))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 60),
            st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.integers(1, 3)}),
            st.fixed_dictionaries({"repeat": st.sampled_from(["continue", "restart"])}),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(5, 120),
)
def test_the_first_repetition_is_the_first_window_read_again(make_config: Make, phases: Any, tokens: int) -> None:
    config = make_config(phases)
    sizes = {"a": SourceSize("a", tokens), "b": SourceSize("b", tokens + 9)}
    schedule = build_schedule(config, sizes)
    seen: set[tuple[str, int]] = set()
    first: dict[tuple[str, str], int] = {}
    for sample in range(schedule.total_samples):
        draw = schedule.draw(sample)
        if (draw.source, draw.window) in seen:
            first.setdefault((draw.phase, draw.source), sample)
        seen.add((draw.source, draw.window))
    found = document_of(config, {"a": tokens, "b": tokens + 9})["phases"]
    assert len(found) == len(phases) > 0
    for phase in found:
        assert "b" in phase["sources"]
        for name, row in phase["sources"].items():
            assert row["first_repetition_sample"] == first.get((phase["name"], name))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_says_everything_in_eighty_columns(config: RunConfig, width: int) -> None:
    text = rendered(document_of(config, {"text": 1000, "code": 100}, gpus=5), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "cosine 0 → 3e-4 → 3e-5" in text
    assert "linear 3e-5 → 1e-6" in text
    assert "2.08 → 2.50" in text
    assert "all of it" in text
    assert "data parallel 5, 2 micro-batches" in text
    for said in ("50.0%", "10 iterations", "cooldown", "unused", "repeats from", "text", "code"):
        assert said in text


def test_a_narrow_terminal_and_long_names_do_not_break_it(make_config: Make) -> None:
    name = "a_very_long_source_name_with_no_end_in_sight"
    document = document_of(make_config([(10, {name: 1, "b": 0})]), {name: 10**13})
    assert name[:20] in rendered(document)
    assert max(len(line) for line in rendered(document, 60).splitlines()) <= 60


def warnings_of(config: RunConfig, tokens: dict[str, int], **size: Any) -> str:
    document = document_of(config, tokens, **size)
    text = "\n".join(document["warnings"])
    assert all(warning.split()[0] in rendered(document) for warning in document["warnings"])
    return text


def test_nothing_to_remark_gives_no_warning(config: RunConfig) -> None:
    assert warnings_of(config, {"text": 1000, "code": 300}) == ""


def test_declared_unused_and_much_repeated_sources_are_remarked(make_config: Make) -> None:
    config = make_config([(90, {"text": 1})], sources=["spare"])
    said = warnings_of(config, {"text": 60}, identity="")
    assert "text: sizes are declared, not read from data" in said
    assert "spare: in sources, but no phase draws from it" in said
    assert "text: read 6.4 times over the run" in said


def test_clipped_shares_rounded_lengths_short_batches_and_jumps_are_remarked(make_config: Make) -> None:
    jump = {"learning_rate": {"schedule": "constant", "peak": 9e-3}}
    phases = [(45, {"a": 0.5, "b": 0.5}), ("50 tokens", {"a": 0.5, "b": 0.5}, jump)]
    config = make_config(phases, batch=10, caps={"a": 1}).model_copy(update={"caps": "spread"})
    said = warnings_of(config, {"a": 41, "b": 1000})
    assert "p0: a reaches max_epochs 1, so its share is 22.2% instead of 50.0%" in said
    assert "p1: a reaches max_epochs 1, so its share is 0.0% instead of 50.0%" in said
    assert "p1: 50 tokens requested, 40 in whole global batches" in said
    assert "p0: its last batch has only 5 samples" in said
    assert "p1: the learning rate jumps from 0.001 to 0.009 without a warmup" in said


def test_gpus_that_do_not_fit_are_refused_with_the_nearest_numbers(make_config: Make) -> None:
    config = make_config([(64, {"a": 1})], batch=64, parallel={"tensor": 4}, train={"micro_batch_size": 2})
    assert document_of(config, {"a": 999}, gpus=16)["gpus"]["micro_batches"] == 8
    with pytest.raises(ConfigError, match="--gpus: 10 is not divisible by 4, the GPUs that hold one") as caught:
        document_of(config, {"a": 999}, gpus=10)
    assert caught.value.problems[0].fix == "use 8 or 12, or change the parallel section"
    with pytest.raises(ConfigError, match=r"parallel: global_batch_size 64 is not divisible by 6 \(micro_batch_size 2"):
        document_of(config, {"a": 999}, gpus=12)


def against(**more: Any) -> dict[str, Any]:
    sources = {"text": {"read": 10**9, "before": None, "now": 3 * 10**9}}
    total = {"before": None, "now": 5 * 10**9}
    facts = {"checkpoint": "runs/x", "consumed_samples": 1234, "changes": [], "sources": sources}
    return facts | {"total_tokens": total} | more


def test_an_unchanged_past_is_said(config: RunConfig) -> None:
    document = document_of(config, {"text": 1000, "code": 300})
    document["against"] = against()
    assert "✓ the 1,234 samples read by runs/x are unchanged" in rendered(document)
    assert "affects" not in rendered(document)


def test_changes_and_tokens_to_come_are_shown_in_eighty_columns(config: RunConfig) -> None:
    document = document_of(config, {"text": 1000, "code": 300})
    changes = [
        {"key": "train.clip_grad", "old": 1.0, "new": 0.5, "effect": "optimizer"},
        {"key": "phases[1]", "old": None, "new": "decay, 20 iterations", "effect": "future data, learning rate"},
        {"key": "sources.long", "old": None, "new": {"path": "/a/very/long/path" * 4}, "effect": "future data"},
    ]
    document["against"] = against(changes=changes)
    text = rendered(document, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for said in ("train.clip_grad", "0.5", "optimizer", "to come, was", "whole run", "?", "3B", "decay, 20"):
        assert said in text


def test_a_phase_that_is_left_early_says_of_how_much(make_config: Make) -> None:
    phases = [("800 tokens", {"a": 1}, {"until": "10 iterations"}), ("8 iterations", {"a": 1})]
    document = document_of(make_config(phases, batch=10), {"a": 10_000})
    assert "ends early after 400 of 800 tokens, 10 iterations" in rendered(document)
    first = document["phases"][0]
    assert (first["samples"], first["full_samples"], first["full_tokens"], first["left_early"]) == (100, 200, 800, True)
    assert document["total_samples"] == 180


def test_a_lost_past_is_said_in_place_of_the_proof(config: RunConfig) -> None:
    document = document_of(config, {"text": 1000, "code": 300})
    row = {"read": 9, "taken": 7, "repeated": 3, "lost": 1, "exact": True, "why": ""}
    loss = {"consumed_samples": 1234, "comparable": True, "exact": True, "sources": {"text": row}}
    document["against"] = against(lost=loss)
    text = " ".join(rendered(document).split())
    assert "are unchanged" not in text
    assert "text: 9 windows were read, 7 count as read; 3 are repeated in their epoch, 1 are lost in it" in text
