from __future__ import annotations

import json

import pytest

from megacode.base.errors import CheckpointError, ConfigError
from megacode.cli import models
from megacode.config.evaluate import DEMO_SOURCES, MADE_SUITES, SHIPPED_SUITES
from megacode.data.demo_items import SOURCES
from megacode.eval.checkpoint_scores import score_checkpoints
from megacode.eval.harness import ScoringOptions
from megacode.eval.scored_models import checkpoints_in, models_in
from megacode.eval.suites import SHIPPED


def test_a_command_without_a_model_says_so():
    with pytest.raises(ConfigError, match="no model is named"):
        models.evaluate()


def test_one_score_file_cannot_hold_several_models(tmp_path):
    for name in ("iter_0000010", "iter_0000002", ".iter_0000003.77.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert [path.name for path in models_in(tmp_path)] == ["iter_0000002", "iter_0000010"]
    assert models_in(tmp_path / "iter_0000010") == [tmp_path / "iter_0000010"]
    with pytest.raises(ConfigError, match="one score file cannot hold several models"):
        models.evaluate(tmp_path, out=tmp_path / "x.json")


def test_a_directory_without_models_is_refused_as_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="this is not a Hugging Face model"):
        models.evaluate(tmp_path)


def test_ranks_are_started_with_the_same_command_but_for_their_number():
    given = ["evaluate", "hf", "--nproc", "2", "--suite", "to-code", "--nproc=3"]
    assert models._without_nproc(given) == ["evaluate", "hf", "--suite", "to-code"]


def test_a_run_and_its_checkpoints_directory_mean_all_checkpoints_of_the_run(tmp_path):
    for iteration in (20, 3):
        (tmp_path / "checkpoints" / f"iter_{iteration:07d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "iter_0000003" / "megacode.json").write_text("{}")
    names = ["iter_0000003", "iter_0000020"]
    assert [path.name for path in checkpoints_in(tmp_path)] == names
    assert [path.name for path in checkpoints_in(tmp_path / "checkpoints")] == names
    one = tmp_path / "checkpoints" / "iter_0000003"
    assert checkpoints_in(one) == [one]
    (tmp_path / "hf").mkdir()
    assert checkpoints_in(tmp_path / "hf") == []
    assert checkpoints_in(tmp_path / "checkpoints" / "iter_0000020") == []


def test_a_device_that_is_none_is_refused_before_anything_is_exported(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "iter_0000003"
    with pytest.raises(ConfigError, match="'gpu' is not a device"):
        score_checkpoints([checkpoint], "demo", ScoringOptions(device="gpu"))
    with pytest.raises(ConfigError, match="there is no suite 'demoo'"):
        score_checkpoints([checkpoint], "demoo", ScoringOptions())


def test_several_processes_may_not_export_the_same_checkpoints(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes would export") as caught:
        score_checkpoints([tmp_path / "checkpoints" / "iter_0000003"], "demo", ScoringOptions())
    assert "--nproc" in str(caught.value)


def test_the_suites_that_a_config_may_name_are_those_that_ship():
    assert set(SHIPPED_SUITES) == {*MADE_SUITES, *(path.stem for path in SHIPPED.glob("*.yaml"))}
    assert DEMO_SOURCES == SOURCES
