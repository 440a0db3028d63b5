"""A config is merged from its parts, validated once, and reports every mistake at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.config.config_file import dump_config, load_config, validate

GOOD = """
name: small
model: {num_layers: 2, hidden_size: 64, ffn_hidden_size: 128, num_attention_heads: 4, vocab_size: 256}
sources:
  text: {path: data/text}
  code: {path: data/code, max_epochs: 4}
phases:
  - {name: first, tokens: 64Ki, blend: {text: 0.5, code: 0.5},
     learning_rate: {schedule: cosine, peak: 3e-4, final: 3e-5, warmup: 10 iterations}}
  - {name: second, iterations: 20, blend: {text: 1}, repeat: {text: restart},
     learning_rate: {schedule: wsd, final: 0, decay: 10%}}
train: {seq_length: 64, global_batch_size: 8}
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(folder: Path, *overrides: str, text: str = GOOD) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_config_survives_being_written_and_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    again = load_config(write(tmp_path, dump_config(config), "again.yaml"))
    assert again == config


def test_quantities_become_counts_with_units(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert (config.phases[0].length.count, config.phases[0].length.unit) == (65536, "tokens")
    assert str(config.phases[0].learning_rate.warmup) == "10 iterations"
    assert config.phases[0].learning_rate.peak == 3e-4
    assert config.phases[1].learning_rate.decay == pytest.approx(0.1)
    assert config.phases[1].restarts("text")
    assert not config.phases[0].restarts("text")


def test_paths_become_absolute_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(write(tmp_path, GOOD))
    assert config.sources["text"].path == str(tmp_path / "data/text")
    assert config.directory == str(tmp_path / "runs/small")


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    path = write(tmp_path, "base: base.yaml\nname: child\ntrain: {global_batch_size: 16}\n", "child.yaml")
    config = load_config(path, ["train.micro_batch_size=4", "phases.second.iterations=5", "phases.0.blend={code: 1}"])
    assert (config.name, config.train.global_batch_size, config.train.micro_batch_size) == ("child", 16, 4)
    assert config.train.seq_length == 64
    assert config.phases[1].length.count == 5
    assert config.phases[0].blend == {"code": 1}


def test_inline_keys_win_over_a_preset(tmp_path: Path) -> None:
    document = {**yaml.safe_load(GOOD), "model": {"preset": "to-code-470m", "num_layers": 8}}
    config = load_config(write(tmp_path, yaml.safe_dump(document)))
    assert (config.model.num_layers, config.model.hidden_size, config.model.block) == (8, 1024, "parallel")


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    message = mistakes(
        tmp_path,
        "train.micro_batch_sise=2",
        "model.hidden_size=65",
        "model.num_query_groups=3",
        "phases.0.blend={txt: 1}",
        "phases.1.blend={text: 0}",
        "phases.1.tokens=2048",
        "parallel.tensor=3",
        "train.global_batch_size=7",
        "train.micro_batch_size=2",
        "precision.dtype=fp64",
        "validation.every=100",
    )
    for expected in (
        "train.micro_batch_sise: micro_batch_sise is not a setting\n      did you mean micro_batch_size?",
        "model.hidden_size: hidden_size 65 is not divisible by num_attention_heads 4\n      use 64 or 68",
        "model.num_query_groups: num_attention_heads 4 is not divisible by num_query_groups 3\n"
        "      use one of 1, 2, 4",
        "phases[0].blend.txt: 'txt' is not one of the sources\n      did you mean text?",
        "phases[1].blend: every weight of phase 'second' is zero",
        "phases[1]: phase 'second' needs exactly one length, and gives tokens and iterations",
        "parallel.tensor: model.num_attention_heads 4 is not divisible by parallel.tensor 3\n"
        "      set parallel.tensor to 1, or num_attention_heads to 3 or 6",
        "train.micro_batch_size: global_batch_size 7 is not divisible by micro_batch_size 2\n"
        "      set micro_batch_size to 1 or 7, which does not change training; or global_batch_size to 6 or 8",
        "precision.dtype: 'fp64' is not a valid value\n      use one of 'fp32' or 'bf16'",
        "validation.every: 100 has no unit\n      write '100 iterations', '100 samples' or '100 tokens'",
    ):
        assert expected in message
    assert message.startswith("Config error: 1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "phases.0.blend={text: -1, code: 2}",
            "blend.text: -1 is not a weight\n    give a share such as 0.5 or 50%, or 0",
        ),
        ("phases.0.blend={text: .nan}", "blend.text: nan is not a weight"),
        (
            "parallel={pipeline: 4}",
            "num_layers 2 is not divisible by parallel.pipeline 4\n    set pipeline to 2, or num_l",
        ),
        ("parallel={sequence_parallel: true}", "sequence_parallel is on with parallel.tensor 1"),
        ("parallel={virtual_pipeline: 2}", "virtual_pipeline is set with parallel.pipeline 1"),
        ("parallel={overlap_param_gather: true}", "overlap_param_gather needs distributed_optimizer and"),
        ("train.batch_ramp={start: 3, increment: 2, samples: 100}", "never reaches global_batch_size 8"),
        ("phases.0.until=65Ki tokens", "ends early after 66560 tokens, but is only 65536 tokens long"),
        ("phases.0.until=1025 samples", "is only 65536 tokens long\n    give at most 1024 samples, or lengthen"),
        ("phases.1.until=21 iterations", "give at most 20 iterations"),
        ("phases.1.name=first", "another phase is already named 'first'"),
        ("phases.0.learning_rate={schedule: cosine, final: 0}", "the first phase has no peak to start from"),
        ("phases.0.learning_rate={schedule: linear, peak: 1e-3}", "schedule linear needs final"),
        ("phases.0.learning_rate={schedule: constant, peak: 1, final: 0}", "schedule constant takes no final"),
        ("phases.0.learning_rate={schedule: wsd, peak: 1, final: 0}", "schedule wsd needs decay"),
        ("phases.0.learning_rate={schedule: wsd, peak: 1, final: 0, decay: 120%}", "1.2 is not a share of the phase"),
        ("phases.0.learning_rate={schedule: inverse_sqrt, peak: 1}", "inverse_sqrt needs warmup"),
        ("phases.0.learning_rate={schedule: linear, peak: 1, final: 2}", "final 2 is larger than peak 1"),
        ("model.vocab_size=null", "neither tokenizer nor model.vocab_size is given"),
        ("model.preset=to-code-470", "there is no preset 'to-code-470'\n    did you mean to-code-470m?"),
        ("model.kv_channels=15", "a head has 15 channels"),
        ("model.norm_bias=true", "norm_bias is set, and RMSNorm has no bias\n    set normalization: LayerNorm"),
        ("model={block: parallel, norm_placement: after}", "norm_placement after needs block sequential"),
        ("model.qk_norm=heads", "use one of 'none', 'shared', 'per_head' or 'across_heads'"),
        ("model.attention_pattern=[sliding]", "has sliding layers, and sliding_window is not given"),
        ("model.sliding_window=8", "sliding_window 8 is given, and attention_pattern has no sliding layer"),
        (
            "model.attention_pattern=[full, full, full]",
            "has 3 entries, and the model only 2 layers\n    give at most 2",
        ),
        ("model.rotary_pattern=[]", "give at least 1"),
        ("model.rotary_percent=0.3", "0.3 of 16 channels is not an even number of them\n    use 0.25, which is 4"),
        ("model.rotary_scaling={kind: linear}", "model.rotary_scaling.factor: required setting is missing"),
        ("model.rotary_scaling={kind: linear, factor: 2, beta_fast: 1}", "kind linear has no beta_fast"),
        ("model.rotary_scaling={kind: yarn, factor: 2}", "kind yarn needs original_length"),
        (
            "model.rotary_scaling={kind: yarn, factor: 2, original_length: 64, beta_fast: 1}",
            "beta_fast 1 is not larger than its lower counterpart 1\n    give more than 1",
        ),
        (
            "model={rotary_base: 1, rotary_scaling: {kind: yarn, factor: 2, original_length: 64}}",
            "kind yarn needs rotary_base above 1",
        ),
        (
            "model={num_layers: 2, rotary_pattern: [none], rotary_scaling: {kind: linear, factor: 2}}",
            "no layer has scaled rotary positions",
        ),
        ("model.rotary_scaling={kind: linear, factr: 2}", "did you mean factor?"),
        ("train.z_loss=-1", "give at least 0"),
        ("precision.fp8={recipe: delay}", "precision.fp8.recipe: 'delay' is not a valid value"),
        ("precision.fp8=all", "precision.fp8: 'all' is not a valid value"),
        (
            "precision.moments=fp8",
            "precision.moments: 'fp8' for both moments does not train: the second becomes zero where gradients are "
            "small\n    use fp8_bf16 (the first in FP8, the second in bf16), bf16 or fp32",
        ),
        ("precision.moments=fp16", "'fp16' is not a valid value\n    use one of 'fp32', 'bf16' or 'fp8_bf16'"),
        ("precision={dtype: fp32, moments: fp8_bf16}", "precision.moments: moments in FP8 and bf16 need bf16 weights"),
        (
            "precision={dtype: fp32, moments: bf16, gradients: bf16}",
            "precision.moments: moments in bf16 need bf16 weights, and precision.dtype is fp32\n    set "
            "precision.dtype: bf16, or precision.moments: fp32 and precision.gradients: fp32",
        ),
        (
            "precision={gradients: bf16, fp8: {recipe: tensorwise, param_gather: true}}",
            "precision.gradients: gradients in bf16 do not work with precision.fp8.param_gather",
        ),
        ("sources.text.max_epoch=3", "did you mean max_epochs?"),
        ("phases.0.tokns=3", "did you mean tokens?"),
        ("name=a b", "use letters, digits"),
        ("train.seq_length=1.5", "1.5 is not a whole number\n    write for example 200B"),
        ("phases.7.tokens=3", "there is no item '7'\n    known: 0, 1, first, second"),
        ("train", "'train' is not an override"),
        ("train.seq_length=[", "is not YAML"),
        ("train.seq_length=", "gives no value\n    write train.seq_length=VALUE; null removes a setting"),
        ("phases.0.blend={text: 50%, code: 0.5}", "mixes percentages and plain numbers: text 50% beside code 0.5"),
        (
            "phases.0.blend={text: 0.5, code: 40}",
            "mixes shares and percentages: text 0.5 beside code 40, 40.5 in total",
        ),
        ("phases.0.blend={text: 0.95, code: 5}", "mixes shares and percentages: text 0.95 beside code 5, 5.95"),
        ("phases.0.blend={text: 5O%}", "blend.text: '5O%' is not a weight"),
        ("phases.0.blend={text: true}", "blend.text: True is not a weight"),
        ("phases.0.blend={}", "phases[0].blend: the blend is empty"),
    ],
)
def test_each_rule_says_what_where_and_how_to_fix(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, override)


def test_an_optimizer_that_stores_less_needs_sharding_and_adamw(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD)
    changes = ["precision.masters=bf16_remainder", "train.optimizer=muon", "parallel.distributed_optimizer=false"]
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", changes)
    assert [problem.what for problem in caught.value.problems] == [
        "masters as remainders need the distributed optimizer",
        "masters as remainders need AdamW, and a phase trains with Muon",
    ]
    assert all(problem.where.endswith("precision.masters") for problem in caught.value.problems)


def test_a_first_moment_in_fp8_needs_a_beta1_with_which_it_decays(tmp_path: Path) -> None:
    given = ["precision.moments=fp8_bf16", "train.adam_beta1=0.95"]
    expected = (
        "precision.moments: a first moment in FP8 would never decay with adam_beta1 0.95\n    set "
        "train.adam_beta1 to at most 0.944, or precision.moments: bf16"
    )
    assert expected in mistakes(tmp_path, *given)
    run = tmp_path / "run.yaml"
    assert load_config(run, ["precision.moments=bf16", given[1]]).precision.moments == "bf16"
    assert load_config(run, [given[0], "train.adam_beta1=0.944"]).precision.moments == "fp8_bf16"


def test_bf16_gradients_of_tied_interleaved_stages_are_not_reduced_with_overlap(tmp_path: Path) -> None:
    settings = {
        "precision.gradients": "bf16",
        "model.share_embeddings_and_output_weights": "true",
        "model.num_layers": "4",
        "parallel.pipeline": "2",
        "parallel.virtual_pipeline": "2",
        "parallel.overlap_grad_reduce": "true",
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    assert "an interleaved pipeline with tied embeddings" in mistakes(tmp_path, *given)
    run = tmp_path / "run.yaml"
    for allowed in ("parallel.overlap_grad_reduce=false", "parallel.virtual_pipeline=null", "precision.gradients=fp32"):
        changed = [one for one in given if one.partition("=")[0] != allowed.partition("=")[0]]
        assert load_config(run, [*changed, allowed]).parallel.pipeline == 2


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    for text, expected in (("- 1", "holds no settings"), ("a: [1\nb: 2", "not valid YAML"), ("", "holds no settings")):
        assert expected in mistakes(tmp_path, text=text)
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    assert "base files form a cycle" in mistakes(tmp_path, text="base: run.yaml")
    assert "base is 3" in mistakes(tmp_path, text="base: 3")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    assert "train.seq_length: required setting is missing\n    add seq_length" in mistakes(
        tmp_path, text=GOOD.replace("seq_length: 64, ", "")
    )


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.seq_length=many", "train.seq_length"),
        ("train.global_batch_size=-8", "train.global_batch_size"),
        ("train.micro_batch_size=2 iterations", "train.micro_batch_size"),
        ("phases.0.tokens=64 KiB", "phases[0].tokens"),
        ("phases.1.iterations=half", "phases[1].iterations"),
        ("phases.0.until=10", "phases[0].until"),
        ("phases.0.blend.text=lots", "phases[0].blend.text"),
        ("phases.0.blend.text=-1", "phases[0].blend.text"),
        ("phases.0.learning_rate.warmup=10 epochs", "phases[0].learning_rate.warmup"),
        ("phases.1.learning_rate.decay=some", "phases[1].learning_rate.decay"),
        ("phases.0.learning_rate.peak=high", "phases[0].learning_rate.peak"),
        ("model.num_attention_heads=four", "model.num_attention_heads"),
        ("parallel={tensor: two, sequence_parallel: true}", "parallel.tensor"),
        ("validation.fraction=x%", "validation.fraction"),
        ("train={seq_length: 64}", "train.global_batch_size"),
        ("sources=data", "sources"),
    ],
)
def test_a_wrong_value_gives_one_problem(tmp_path: Path, override: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD), [override])
    assert [problem.where.rpartition(": ")[2] for problem in caught.value.problems] == [where]


def test_a_wrong_value_hides_no_other_mistake(tmp_path: Path) -> None:
    message = mistakes(
        tmp_path,
        "train.seq_length=many",
        "train=oops=",
        "nonsense",
        "phases.0.blend={txt: 1, text: lots}",
        "phases.1.blend={text: 0}",
        "sources.code.path=[3]",
        "model.preset=to-code-470",
    )
    for expected in (
        "'nonsense' is not an override",
        "'train=oops=' would replace 'train.seq_length=many'",
        "train.seq_length: 'many' is not a number",
        "blend.txt: 'txt' is not one of the sources",
        "blend.text: 'lots' is not a weight",
        "every weight of phase 'second' is zero",
        "sources.code.path: [3] is not a valid value",
        "there is no preset 'to-code-470'",
    ):
        assert expected in message


def test_a_mistake_is_said_to_stand_where_it_was_written(tmp_path: Path) -> None:
    base, child, line = str(tmp_path / "base.yaml"), str(tmp_path / "child.yaml"), "command line"
    write(tmp_path, GOOD.replace("max_epochs: 4", "max_epoch: 4"), "base.yaml")
    path = write(tmp_path, "base: base.yaml\nname: a child\ntrain: {clip_grd: 1}\n", "child.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.wieght_decay=1", "phases.first.blend={txt: 1}", "phases.second.tokens=64Ki"])
    assert {problem.where for problem in caught.value.problems} == {
        f"{base}: sources.code.max_epoch",
        f"{child}: name",
        f"{child}: train.clip_grd",
        f"{line}: train.wieght_decay",
        f"{line}: phases[0].blend.txt",
        f"{base}, with phases.second.tokens=64Ki of the {line}: phases[1]",
    }


def test_overrides_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for second in ("phases.0.iterations=3", "phases.first={name: first}", "phases=[]"):
        message = mistakes(tmp_path, "phases.first.iterations=2", second)
        assert f"{second!r} would replace 'phases.first.iterations=2'" in message
    config = load_config(write(tmp_path, GOOD), ["seed=3", "seed=3", "train.batch_ramp=null", "seed=3"])
    assert config.seed == 3


def test_percentages_are_shares_that_survive_being_written(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("{text: 0.5, code: 0.5}", "{text: 33.3%, code: 66.7 %}"))
    config = load_config(path)
    assert config.phases[0].blend == {"text": 0.333, "code": 0.667}
    assert config.phases[0].sums_to == 1
    assert load_config(write(tmp_path, dump_config(config), "again.yaml")) == config


@pytest.mark.parametrize(
    ("blend", "whole"),
    [
        ("{text: 1}", 1),
        ("{text: 0.3333333, code: 0.6666667}", 1),
        ("{text: 99.5, code: 0.5}", 100),
        ("{text: 0.5, code: 0.6}", None),
        ("{text: 3, code: 1}", None),
        ("{text: 0.5, code: 2}", None),
        ("{text: 50%, code: 40%}", None),
    ],
)
def test_what_a_blend_sums_to(tmp_path: Path, blend: str, whole: int | None) -> None:
    assert load_config(write(tmp_path, GOOD), [f"phases.0.blend={blend}"]).phases[0].sums_to == whole


RICH = """
tokenizer: {kind: huggingface, path: x}
parallel: {tensor: 1, pipeline: 1}
precision: {dtype: bf16, fp8: {recipe: tensorwise}}
validation: {fraction: 0.01, every: 5 iterations}
evaluate: {every: 5 iterations, suite: demo}
checkpoint: {every: 5 iterations}
health: {spikes: {policy: warn}, hang_timeout: 30m}
limits: {wall_clock: 3h}
init: {from: random}
"""
NUMBERS = (-1, 0, 1.5, float("nan"), float("inf"), 10**400)
ODD = (None, *NUMBERS, "", "x", "50%", "3 iterations", "1e400", "-5", b"x", True, [], [1], {}, {"a": 1}, {1: 2})


def _places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key))


def test_whatever_stands_at_a_setting_it_is_accepted_or_refused_by_name() -> None:
    refused: list[str] = []
    document = yaml.safe_load(GOOD) | yaml.safe_load(RICH)
    for place in list(_places(document)):
        for odd in ODD:
            changed = copy.deepcopy(document)
            *path, last = place
            inner = changed
            for step in path:
                inner = inner[step]
            inner[last] = odd
            try:
                validate(changed, "run.yaml")
            except ConfigError as error:
                refused += [problem.where for problem in error.problems]
    assert len(refused) > 1000
    assert all(where.startswith("run.yaml: ") for where in refused)
