"""YAML: a key that stands twice is named with both lines, in every file that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.config.config_file import load_config
from megacode.config.yaml_reader import parse_yaml

RUN = """\
name: twice
model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, ffn_hidden_size: 128, vocab_size: 1024}
sources: {web: {path: web, tokens: 1M}, code: {path: code, tokens: 1M}}
phases:
  - name: a
    tokens: 1M
    learning_rate: {schedule: constant, peak: 1.0e-3}
    blend: {web: 1}
train: {seq_length: 64, global_batch_size: 8}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"x:3: duplicate key 'a', in lines 1 and 3"),
        ("blend:\n  web: 1\n  code: 2\n  web: 3\n", r"x:4: duplicate key 'web', in lines 2 and 4"),
        ("{a: 1, a: 2}", r"x:1: duplicate key 'a', in lines 1 and 1"),
        ("- {a: {b: 1, 'b': 2}}", r"duplicate key 'b'"),
        ("a: [", r"x:1: not valid YAML"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "x")
    assert caught.value.exit_code == 2


def test_a_merged_mapping_may_be_overruled_and_the_same_key_may_stand_in_two_mappings() -> None:
    text = "base: &b {x: 1, y: 2}\nmiddle: &m {<<: *b, y: 3}\nend: {<<: *m, x: 4}\nrates: [3e-4, 1]\n"
    found = parse_yaml(text, "x")
    assert found["middle"] == {"x": 1, "y": 3}
    assert found["end"] == {"x": 4, "y": 3}
    assert found["rates"] == [3e-4, 1]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("blend: {web: 1}", "blend: {web: 0.6, code: 0.4, web: 0.1}", "web"),
        ("train: {", "train: {seq_length: 32, global_batch_size: 4}\ntrain: {", "train"),
    ],
)
def test_a_run_whose_config_says_something_twice_is_refused(old: str, new: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    load_config(path)
    path.write_text(RUN.replace(old, new))
    with pytest.raises(ConfigError, match=f"duplicate key '{key}'"):
        load_config(path)


def test_a_base_file_and_an_override_are_read_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RUN + "seed: 1\nseed: 2\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nname: other\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:11: duplicate key 'seed', in lines 10 and 11"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "base.yaml").write_text(RUN)
    with pytest.raises(ConfigError, match=r"command line: .*duplicate key 'web'"):
        load_config(tmp_path / "run.yaml", ["phases.a.blend={web: 1, web: 2}"])
