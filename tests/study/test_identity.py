"""A state's id is a hash of what was learned from, and of nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.config.config_file import merge, validate
from megacode.data.indexed import IndexedDatasetWriter
from megacode.plan.effects import EFFECTS, OUTSIDE
from megacode.plan.learning_rate import PhaseRate
from megacode.planning.run_plan import make_plan
from megacode.study.grid import Grid
from megacode.study.identity import LearnedPast, rate_facts, start_from
from megacode.study.matching import prove
from tests.study.conftest import COSINE, STUDY

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]

RUN: Document = {
    "name": "t",
    "model": {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 99},
    "sources": {"text": {"path": "data/text", "tokens": 40_000}, "code": {"path": "data/code", "tokens": 9_000}},
    "phases": [
        {"name": "first", "iterations": 20, "blend": {"text": 0.5, "code": 0.5}, "learning_rate": COSINE},
        {"name": "second", "iterations": 20, "blend": {"text": 0.9, "code": 0.1}, "learning_rate": COSINE},
    ],
    "train": {"seq_length": 16, "global_batch_size": 8, "batch_ramp": {"start": 4, "increment": 2, "samples": 64}},
    "precision": {"fp8": {"recipe": "tensorwise"}},
    "health": {"spikes": {"policy": "rollback"}, "fp8_probe": {"every": "9 iterations", "policy": "fall_back"}},
}
NO_TOKENIZER = {"kind": "huggingface", "path": "nowhere"}
# A change of each setting: nested, laid over RUN. What stands in RUN is there so that these have an effect.
CHANGES: dict[str, Document] = {
    "name": {"name": "other"},
    "run_dir": {"run_dir": "elsewhere"},
    "seed": {"seed": 7},
    "caps": {"caps": "spread", "sources": {"code": {"max_epochs": 0.05}}},
    "init.from": {"init": {"from": "somewhere"}},
    "init.load": {"init": {"load": "all"}},
    "limits.wall_clock": {"limits": {"wall_clock": "1h"}},
    "tokenizer.kind": {"tokenizer": {"kind": "sentencepiece", "path": "nowhere"}},
    "tokenizer.path": {"tokenizer": {"kind": "huggingface", "path": "nowhere"}},
    **{f"tokenizer.fim.{role}": {"tokenizer": {"fim": {role: "<x>"}}} for role in ("prefix", "middle", "suffix")},
    **{
        f"checkpoint.{key}": {"checkpoint": {key: value}}
        for key, value in {
            "every": "5 iterations",
            "keep_last": 2,
            "keep_every": "5 iterations",
            "at_start": True,
            "keep_phase_ends": False,
            "async": False,
        }.items()
    },
    **{
        f"evaluate.{key}": {"tokenizer": {"kind": "huggingface", "path": "nowhere"}, "evaluate": {key: value}}
        for key, value in {
            "every": "5 iterations",
            "at_phase_ends": True,
            "suite": "to-code",
            "limit": 5,
            "without": ["piqa"],
            "run_generated_code": True,
            "where": "slurm",
            "device": "cuda",
            "threads": 2,
            "sbatch": [],
            "keep_exports": True,
            "wait": 9,
        }.items()
    },
    "metrics.wait": {"metrics": {"wait": 9}},
    **{
        f"metrics.wandb.{key}": {"metrics": {"wandb": {"project": "other", "mode": "offline"} | {key: value}}}
        for key, value in {
            "project": "mine",
            "entity": "us",
            "name": "x",
            "group": "y",
            "tags": ["z"],
            "mode": "online",
            "x_axis": "tokens",
        }.items()
    },
    **{
        f"metrics.mlflow.{key}": {"metrics": {"mlflow": {"tracking_uri": "http://localhost:5000"} | {key: value}}}
        for key, value in {
            "tracking_uri": "http://localhost:5001",
            "experiment": "mine",
            "name": "x",
            "x_axis": "samples",
        }.items()
    },
    "metrics.opentelemetry.endpoint": {"metrics": {"opentelemetry": {"endpoint": "http://localhost:4318/v1/metrics"}}},
    "evaluate.backend": {
        "tokenizer": {"kind": "huggingface", "path": "nowhere"},
        "evaluate": {"backend": "vllm", "where": "slurm"},
    },
    "health.hang_timeout": {"health": {"hang_timeout": 60}},
    "health.report_every": {"health": {"report_every": 7}},
    **{
        f"health.spikes.{key}": {"health": {"spikes": {key: value}}}
        for key, value in {"policy": "skip", "window": 64, "threshold": 5, "withhold": 2, "limit": 3}.items()
    },
    **{
        f"health.fp8_probe.{key}": {"health": {"fp8_probe": {key: value}}}
        for key, value in {
            "every": "7 iterations",
            "loss": 0.1,
            "gradient": 0.1,
            "patience": 3,
            "policy": "warn",
        }.items()
    },
    **{
        f"model.{key}": {"model": {key: value}}
        for key, value in {
            "num_layers": 8,
            "hidden_size": 128,
            "ffn_hidden_size": 256,
            "num_attention_heads": 2,
            "num_query_groups": 2,
            "kv_channels": 32,
            "vocab_size": 100,
            "block": "parallel",
            "normalization": "LayerNorm",
            "layernorm_epsilon": 1e-6,
            "norm_placement": "after",
            "qk_norm": "shared",
            "qkv_bias": True,
            "rotary_pattern": ["rotary", "none"],
            "rotary_base": 5e5,
            "rotary_percent": 0.5,
            "rotary_scaling": {"kind": "linear", "factor": 2},
            "logit_scale": 0.5,
            "share_embeddings_and_output_weights": True,
            "init_method_std": 0.01,
            "init_seed": 5,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "make_vocab_size_divisible_by": 64,
        }.items()
    },
    "model.norm_bias": {"model": {"normalization": "LayerNorm", "norm_bias": True}},
    "model.attention_pattern": {"model": {"attention_pattern": ["sliding"], "sliding_window": 8}},
    "model.sliding_window": {"model": {"attention_pattern": ["sliding", "full"], "sliding_window": 9}},
    "model.preset": {},  # see test_a_preset_is_its_shape
    **{
        f"parallel.{key}": {"parallel": {"tensor": 2, "pipeline": 2, "overlap_grad_reduce": True, key: value}}
        for key, value in {
            "tensor": 4,
            "pipeline": 4,
            "virtual_pipeline": 2,
            "context": 2,
            "sequence_parallel": True,
            "distributed_optimizer": False,
            "overlap_grad_reduce": False,
            "overlap_param_gather": True,
            "recompute": "full",
        }.items()
    },
    "precision.dtype": {"precision": {"dtype": "fp32"}},
    "precision.fp8": {"precision": {"fp8": "none"}},
    "precision.moments": {"precision": {"moments": "bf16"}},
    "precision.masters": {"precision": {"masters": "bf16_remainder"}},
    "precision.gradients": {"precision": {"gradients": "bf16"}},
    "precision.transformer_impl": {"precision": {"transformer_impl": "local"}},
    **{
        f"sources.*.{key}": {"sources": {"code": {key: value}}}
        for key, value in {"path": "moved", "max_epochs": 4, "tokens": 8_000, "take": 7_000}.items()
    },
    "sources.*.fim_rate": {"tokenizer": NO_TOKENIZER, "sources": {"code": {"fim_rate": 0.5}}},
    "sources.*.fim_spm_rate": {"tokenizer": NO_TOKENIZER, "sources": {"code": {"fim_rate": 0.5, "fim_spm_rate": 0.1}}},
    "sources.*.loss": {"sources": {"code": {"loss": "answers"}}},
    **{
        f"train.{key}": {"train": {key: value}}
        for key, value in {
            "seq_length": 32,
            "global_batch_size": 12,
            "micro_batch_size": 2,
            "weight_decay": 0.2,
            "adam_beta1": 0.8,
            "adam_beta2": 0.9,
            "adam_eps": 1e-9,
            "weight_decay_exempt": [],
            "clip_grad": 0.5,
            "z_loss": 1e-4,
            "isolate_documents": True,
            "loader": "dali",
            "prefetch": 0,
            "deterministic": True,
        }.items()
    },
    **{
        f"train.batch_ramp.{key}": {"train": {"batch_ramp": {key: value}}}
        for key, value in {"start": 2, "increment": 4, "samples": 80}.items()
    },
    **{
        f"objects.{key}": {"objects": {key: value}}
        for key, value in {
            "cache": "blocks",
            "cache_bytes": "1GB",
            "ahead": 2,
            "requests": 8,
            "retries": 1,
            "timeout": "5s",
        }.items()
    },
    "validation.fraction": {"validation": {"fraction": 0.1}},
    "validation.every": {"validation": {"every": "5 iterations"}},
    "validation.samples": {"validation": {"samples": 5}},
    **{
        f"phases.*.{key}": {"phases": value}
        for key, value in {
            "name": {"name": "renamed"},
            "tokens": {"iterations": None, "tokens": 16 * 8 * 15},
            "samples": {"iterations": None, "samples": 152},
            "iterations": {"iterations": 19},
            "until": {"until": "10 iterations"},
            "blend": {"blend": {"text": 0.6, "code": 0.4}},
            "repeat": {"repeat": "restart", "blend": {"text": 0.6, "code": 0.4}},
            "fp8": {"fp8": "none"},
            "optimizer": {"optimizer": "muon"},
        }.items()
    },
    "train.optimizer": {"train": {"optimizer": "muon"}},
    **{
        f"train.muon.{key}": {"train": {"optimizer": "muon", "muon": {key: value}}}
        for key, value in {
            "momentum": 0.9,
            "nesterov": False,
            "newton_schulz_steps": 6,
            "newton_schulz_dtype": "bf16",
            "scale": "spectral",
            "scale_factor": 2.0,
        }.items()
    },
    **{
        f"phases.*.learning_rate.{key}": {"phases": {"learning_rate": value}}
        for key, value in {
            "schedule": {"schedule": "linear"},
            "peak": {"peak": 2e-4},
            "final": {"final": 1e-5},
            "warmup": {"warmup": "3 iterations"},
            "decay": {"schedule": "wsd", "decay": "20%"},
        }.items()
    },
}
HARMLESS = {"sources.*.max_epochs"}  # a cap that does not bind


def changed(change: Document, number: int = 0) -> Document:
    raw = copy.deepcopy(RUN)
    change = copy.deepcopy(change)
    phase = change.pop("phases", {})
    raw["phases"][number] = merge(raw["phases"][number], phase)
    return merge(raw, change)


def past(raw: Document, tokenizer: str = "") -> LearnedPast:
    return LearnedPast(make_plan(validate(copy.deepcopy(raw), "test.yaml"), allow_declared=True), tokenizer)


def test_every_setting_has_a_change_to_be_tried() -> None:
    assert set(CHANGES) == set(EFFECTS)


# A tokenizer is known by its hash, and its sentinels by their ids: `tests/data/test_fim.py`.
@pytest.mark.parametrize(
    "key", sorted(key for key in set(EFFECTS) - {"model.preset"} if key.split(".")[0] != "tokenizer")
)
def test_a_setting_changes_the_id_if_and_only_if_it_is_learned_from(key: str) -> None:
    outside = EFFECTS[key] in OUTSIDE or key in HARMLESS
    assert (past(changed(CHANGES[key])).ends == past(RUN).ends) is outside


@pytest.mark.parametrize("key", sorted(key for key in CHANGES if key.startswith("phases.") and key != "phases.*.name"))
def test_what_changes_in_a_phase_is_new_from_there_on_only(key: str) -> None:
    one, other = past(RUN), past(changed(CHANGES[key], 1))
    assert one.ends[0] == other.ends[0]
    assert one.ends[1] != other.ends[1]


@pytest.mark.parametrize("key", sorted(key for key in CHANGES if key.startswith("train.muon.")))
def test_muons_settings_are_learned_from_where_it_trains(key: str) -> None:
    setting = {"train": {"muon": CHANGES[key]["train"]["muon"]}}
    assert past(changed(setting)).ends == past(RUN).ends
    muon = {"phases": {"optimizer": "muon"}}
    plain, other = past(changed(muon, 1)).ends, past(changed(merge(muon, setting), 1)).ends
    assert plain[0] == other[0] == past(RUN).ends[0]
    assert plain[1] != other[1]


def test_a_preset_is_its_shape() -> None:
    named = merge(RUN, {"model": {"preset": "to-code-470m"}, "precision": {"fp8": "none"}})
    shape = validate(copy.deepcopy(named), "test.yaml").model.model_dump(exclude={"preset"})
    assert past(named).ends == past({**named, "model": shape}).ends


def test_a_default_that_is_written_out_is_the_same() -> None:
    assert past(merge(RUN, {"model": {"num_query_groups": 4, "kv_channels": 16}})).ends == past(RUN).ends


def test_a_tokenizer_is_known_by_its_hash() -> None:
    assert past(RUN, "abc").ends == past(RUN, "abc").ends
    assert past(RUN, "abc").ends != past(RUN, "abd").ends


def test_fill_in_the_middle_is_learned_from_by_both_of_its_rates() -> None:
    def ends(**keys: float) -> list[str]:
        return past(merge(RUN, {"tokenizer": NO_TOKENIZER, "sources": {"code": keys}})).ends

    assert len({tuple(ends(fim_rate=rate, fim_spm_rate=spm)) for rate in (0.5, 0.6) for spm in (0.1, 0.5)}) == 4
    assert ends(fim_rate=0.5) == ends(fim_rate=0.5, fim_spm_rate=0.5)
    assert ends(fim_rate=0, fim_spm_rate=0.1) == past(RUN).ends


def test_policies_that_withhold_nothing_are_one() -> None:
    without = [past(merge(RUN, {"health": {"spikes": {"policy": policy}}})) for policy in ("off", "warn")]
    assert without[0].ends == without[1].ends
    assert without[0].ends != past(RUN).ends
    wide = merge(RUN, {"health": {"spikes": {"policy": "warn", "window": 64}}})
    assert past(wide).ends == without[0].ends


def test_what_a_run_starts_from_is_learned_from() -> None:
    plan = make_plan(validate(copy.deepcopy(RUN), "test.yaml"), allow_declared=True)
    starts = ["random", start_from("state", "a"), start_from("state", "b"), start_from("checkpoint", "a")]
    assert len({LearnedPast(plan, "", start).ends[0] for start in starts}) == 4


def test_a_point_does_not_know_where_other_arms_are_cut() -> None:
    whole, left = past(RUN), past(changed({"phases": {"until": "12 iterations"}}))
    read = left.plan.schedule.phases[0].samples
    assert whole.at(0, read) == left.ends[0]
    assert left.ends[1] != whole.ends[1]


def test_the_rate_counts_up_to_the_point_only() -> None:
    rates = {
        rule: PhaseRate(rule, 0, 100, 10, decay, 0.0, 1.0, final)
        for rule, decay, final in (("constant", 90, 1.0), ("wsd", 20, 0.1), ("linear", 90, 0.1), ("cosine", 90, 0.1))
    }
    assert len({str(rate_facts(rate, 10)) for rate in rates.values()}) == 1
    assert rate_facts(rates["constant"], 80) == rate_facts(rates["wsd"], 80)
    assert len({str(rate_facts(rate, 81)) for rate in rates.values()}) == 4
    assert rate_facts(rates["linear"], 50) == rate_facts(PhaseRate("wsd", 7, 100, 10, 90, 0.0, 1.0, 0.1), 50)


@st.composite
def studies(draw: st.DrawFn) -> Document:
    """Some arms of one to three phases, no two alike."""
    document = copy.deepcopy(STUDY)
    path = st.lists(
        st.sampled_from(sorted(document["phases"])[:1] + sorted(document["phases"])[2:]), min_size=1, max_size=3
    )
    arms = draw(st.lists(path, min_size=2, max_size=5, unique_by=tuple))
    document["arms"] = {f"arm{number}": phases for number, phases in enumerate(arms)}
    document["baseline"] = "arm0"
    return document


def ids(grid: Grid) -> dict[tuple[tuple[str, ...], int], list[str]]:
    """The ids of a grid by what arms do and their seeds, whatever they are called."""
    uses = grid.study.uses
    return {(tuple(use.phase for use in uses(cell.arm)), cell.seed): cell.past.ends for cell in grid.cells}


@settings(max_examples=25, deadline=None)
@given(document=studies(), data=st.data())
def test_permuted_and_renamed_arms_and_other_layouts_have_the_same_ids(
    document: Document, data: st.DataObject, grid_of: GridOf
) -> None:
    before = ids(grid_of(document))
    arms = data.draw(st.permutations(list(document["arms"].items())))
    other = {**document, "arms": {f"new {name}": phases for name, phases in arms}, "baseline": "new arm0"}
    other["name"] = "elsewhere"
    other["set"] = merge(
        document["set"],
        {
            "train": {"micro_batch_size": 2},
            "parallel": {"tensor": 2},
            "checkpoint": {"every": "3 iterations"},
        },
    )
    assert ids(grid_of(other)) == before


@settings(max_examples=15, deadline=None)
@given(document=studies())
@pytest.mark.parametrize(
    "change",
    [
        {"train": {"clip_grad": 0.5}},
        {"train": {"global_batch_size": 16}},
        {"sources": {"text": {"tokens": 39_000}, "code": {"tokens": 7_000}}},
    ],
)
def test_clip_batch_and_data_change_every_id(document: Document, change: Document, grid_of: GridOf) -> None:
    before = {state for ends in ids(grid_of(document)).values() for state in ends}
    after = {
        state for ends in ids(grid_of({**document, "set": merge(document["set"], change)})).values() for state in ends
    }
    assert len(before) >= 2
    assert not before & after


def test_seeds_share_nothing(study: Document, grid_of: GridOf) -> None:
    grid = grid_of(study)
    one, other = ({state for cell in grid.cells if cell.seed == seed for state in cell.past.ends} for seed in (1, 2))
    assert len(one) == len(other) == 5
    assert not one & other


def test_a_source_that_is_only_declared_is_known_by_its_path(study: Document, grid_of: GridOf) -> None:
    study["phases"]["pure"] = {**study["phases"]["text"], "blend": {"text": 1}}
    study["arms"] = {"one": ["pure", "balanced"]}
    study["arms"]["two"] = {"phases": ["pure", "balanced"], "set": {"sources.code.path": "data/other-code"}}
    study["match"] = [{"arms": ["one", "two"], "exposure": "samples"}]
    grid = grid_of(study)
    one, two = (grid.of(arm)[0].past.ends for arm in ("one", "two"))
    assert one[0] == two[0]
    assert one[1] != two[1]
    (proof,) = prove(grid)
    assert "'two' reads other windows of 'code' than 'one'" in proof.problems[0].what


def write(prefix: Path, tokens: np.ndarray) -> None:
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        writer.add(tokens, np.full(len(tokens) // 50, 50))


def test_one_byte_of_a_source_is_another_past_and_a_moved_source_the_same(
    study: Document, grid_of: GridOf, tmp_path: Path
) -> None:
    tokens = np.arange(20_000) % 99
    other = tokens.copy()
    other[19_000] += 1
    for name, content in (("code", tokens), ("moved", tokens), ("other", other), ("text", tokens)):
        write(tmp_path / name, content)
    study["set"]["sources"]["text"] = {"path": str(tmp_path / "text")}
    study["phases"]["text"]["blend"] = {"text": 1}
    study["arms"] = {"one": ["text"], "two": ["text", "balanced"]}

    def with_code(name: str) -> dict[tuple[tuple[str, ...], int], list[str]]:
        study["set"]["sources"]["code"] = {"path": str(tmp_path / name)}
        grid = grid_of(study)
        assert grid.provisional == []
        return ids(grid)

    first, moved, changed_byte = with_code("code"), with_code("moved"), with_code("other")
    assert first == moved
    two = ("text", "balanced")
    assert first[("text",), 1] == changed_byte[("text",), 1]
    assert first[two, 1][0] == changed_byte[two, 1][0]
    assert first[two, 1][1] != changed_byte[two, 1][1]
