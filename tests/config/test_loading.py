"""A config is merged from its parts, validated once, and reports every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.config.loading import dump_config, load_config

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
        "model.hidden_size: hidden_size 65 does not divide by num_attention_heads 4\n      use 64 or 68",
        "model.num_query_groups: num_query_groups 3 does not divide num_attention_heads 4\n      use one of 1, 2, 4",
        "phases[0].blend.txt: 'txt' is not one of the sources\n      did you mean text?",
        "phases[1].blend: every weight of phase 'second' is zero",
        "phases[1]: phase 'second' has one length, and gives tokens and iterations",
        "model.num_attention_heads: num_attention_heads 4 does not divide by parallel.tensor 3\n      use 3 or 6",
        "train.global_batch_size: global_batch_size 7 does not divide by micro_batch_size 2\n      use 6 or 8",
        "precision.dtype: 'fp64' does not fit\n      use one of 'fp32' or 'bf16'",
        "validation.every: 100 has no unit\n      write '100 iterations', '100 samples' or '100 tokens'",
    ):
        assert expected in message
    assert message.startswith("Config error: 1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("phases.0.blend={text: -1, code: 2}", "weight -1 of 'text' is not a share"),
        ("phases.0.blend={text: .nan}", "weight nan of 'text' is not a share"),
        ("parallel={pipeline: 4}", "num_layers 2 does not divide by parallel.pipeline 4\n    use 4, or fewer"),
        ("parallel={sequence_parallel: true}", "sequence_parallel is on with parallel.tensor 1"),
        ("parallel={virtual_pipeline: 2}", "virtual_pipeline is set with parallel.pipeline 1"),
        ("parallel={overlap_param_gather: true}", "overlap_param_gather is on without"),
        ("train.batch_ramp={start: 3, increment: 2, samples: 100}", "the batch never becomes 8"),
        ("phases.0.until=65Ki tokens", "is left after 66560 tokens, but is only 65536 tokens long"),
        ("phases.0.until=1025 samples", "is only 65536 tokens long\n    give at most 1024 samples, or lengthen"),
        ("phases.1.until=21 iterations", "give at most 20 iterations"),
        ("phases.1.name=first", "a second phase is named 'first'"),
        ("phases.0.learning_rate={schedule: cosine, final: 0}", "the first phase has no peak to start from"),
        ("phases.0.learning_rate={schedule: linear, peak: 1e-3}", "schedule linear needs final"),
        ("phases.0.learning_rate={schedule: constant, peak: 1, final: 0}", "schedule constant has no final value"),
        ("phases.0.learning_rate={schedule: wsd, peak: 1, final: 0}", "schedule wsd and decay do not fit"),
        ("phases.0.learning_rate={schedule: wsd, peak: 1, final: 0, decay: 120%}", "1.2 is no share of the phase"),
        ("phases.0.learning_rate={schedule: inverse_sqrt, peak: 1}", "inverse_sqrt needs warmup"),
        ("phases.0.learning_rate={schedule: linear, peak: 1, final: 2}", "final 2 lies above peak 1"),
        ("model.vocab_size=null", "neither tokenizer nor model.vocab_size is given"),
        ("model.preset=to-code-470", "there is no preset 'to-code-470'\n    did you mean to-code-470m?"),
        ("model.kv_channels=15", "a head is 15 channels wide"),
        ("precision.fp8={recipe: delay}", "precision.fp8.recipe: 'delay' does not fit"),
        ("precision.fp8=all", "precision.fp8: 'all' does not fit"),
        ("sources.text.max_epoch=3", "did you mean max_epochs?"),
        ("phases.0.tokns=3", "did you mean tokens?"),
        ("name=a b", "use letters, digits"),
        ("train.seq_length=1.5", "1.5 is not a whole number\n    write for example 200B"),
        ("phases.7.tokens=3", "names no item '7'\n    known: 0, 1, first, second"),
        ("train", "'train' is not an override"),
        ("train.seq_length=[", "is not YAML"),
    ],
)
def test_each_rule_says_what_where_and_how_to_mend(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, override)


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    for text, expected in (("- 1", "holds no settings"), ("a: [1\nb: 2", "not YAML"), ("", "holds no settings")):
        assert expected in mistakes(tmp_path, text=text)
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    assert "base files name each other" in mistakes(tmp_path, text="base: run.yaml")
    assert "base is 3" in mistakes(tmp_path, text="base: 3")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    assert "train.seq_length: it is missing\n    add seq_length" in mistakes(
        tmp_path, text=GOOD.replace("seq_length: 64, ", "")
    )
