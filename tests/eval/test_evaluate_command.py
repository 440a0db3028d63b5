from __future__ import annotations

import json

import pytest

from megacode.base.errors import CheckpointError, ConfigError
from megacode.cli import models
from megacode.eval.models import models_in


def test_a_command_without_a_model_says_so():
    with pytest.raises(ConfigError, match="it names no model"):
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
    with pytest.raises(CheckpointError, match="this is no Hugging Face model"):
        models.evaluate(tmp_path)


def test_ranks_are_started_with_the_same_command_but_for_their_number():
    given = ["evaluate", "hf", "--nproc", "2", "--suite", "to-code", "--nproc=3"]
    assert models._without_nproc(given) == ["evaluate", "hf", "--suite", "to-code"]
