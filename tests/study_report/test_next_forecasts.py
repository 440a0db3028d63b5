"""Forecasts: written into the study before an arm is trained, and scored after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.study.schema import Study
from megacode.study.study_file import read_study
from megacode.study.tree import Tree
from megacode.study_report.forecasts import score_forecasts
from megacode.study_report.next_arms import next_mixture
from megacode.study_runs.history import version_of
from tests.study_report.mixtures import CODE, blends_of_two, grid_of, planted, study_of, write_run, write_study

FORECAST = {CODE: {"value": 1.2, "low": 1.1, "high": 1.3}}


def with_forecast(**changes: Any) -> dict[str, Any]:
    study = study_of(blends_of_two(), **changes)
    study["arms"]["mix-2"] = {"phases": ["mix-2"], "forecast": FORECAST}
    return study


def read(document: dict[str, Any]) -> Study:
    return read_study(document, Path("blends.yaml"))


def test_a_forecast_is_no_part_of_what_an_arm_is(tmp_path: Path) -> None:
    plain, more = tmp_path / "plain.yaml", tmp_path / "more.yaml"
    plain.write_text(yaml.safe_dump(study_of(blends_of_two(), name="same")))
    more.write_text(yaml.safe_dump(with_forecast(name="same")))
    ends = [[cell.past.ends for cell in grid_of(file).cells] for file in (plain, more)]
    assert len(ends[0]) == 12
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("forecast", "said"),
    [
        ({"value": 1.4, "low": 1.1, "high": 1.3}, "the value 1.4 is not between 1.1 and 1.3"),
        ({"value": 1.2, "low": 1.1}, "required setting is missing"),
        ({"value": 1.2, "low": 1.1, "high": float("inf")}, "is not a valid value"),
        ({"value": 1.2, "low": 1.1, "high": 1.3, "at": ["larg"]}, "there is no level 'larg'"),
    ],
)
def test_a_forecast_that_is_none_is_refused(forecast: dict[str, Any], said: str) -> None:
    study = with_forecast(factors={"scale": {"large": {}}})
    study["arms"]["mix-2"]["forecast"] = {CODE: forecast}
    with pytest.raises(ConfigError, match=said) as caught:
        read(study)
    assert f"arms.mix-2.forecast.{CODE}" in str(caught.value)


def test_forecasts_are_scored() -> None:
    study = read(with_forecast())
    (row,) = score_forecasts(study, {"mix-2": {CODE: 1.25}})
    assert row == {
        "arm": "mix-2", "metric": CODE, "value": 1.2, "low": 1.1, "high": 1.3,
        "measured": 1.25, "error": pytest.approx(0.05), "inside": True, "registered": None,
    }  # fmt: skip
    (row,) = score_forecasts(study, {"mix-2": {CODE: 1.31}})
    assert (row["inside"], row["error"]) == (False, pytest.approx(0.11))
    for measured in ({}, {"mix-2": {}}, {"mix-1": {CODE: 1.2}}):
        (row,) = score_forecasts(study, measured)
        assert (row["arm"], row["measured"], row["inside"], row["error"]) == ("mix-2", None, None, None)


def test_a_forecast_is_for_the_levels_that_it_names() -> None:
    study = with_forecast(factors={"scale": {"small": {}, "large": {"set": {"model.num_layers": 4}}}})
    measured = {"mix-2@small": {CODE: 1.2}, "mix-2@large": {CODE: 1.0}}
    assert [row["arm"] for row in score_forecasts(read(study), measured)] == ["mix-2@small", "mix-2@large"]
    study["arms"]["mix-2"]["forecast"] = {CODE: {**FORECAST[CODE], "at": ["large"]}}
    assert [row["arm"] for row in score_forecasts(read(study), measured)] == ["mix-2@large"]
    assert [row["arm"] for row in score_forecasts(read(study), {})] == ["mix-2@large"]


def test_only_the_first_version_that_was_run_registers_a_forecast() -> None:
    study = read(with_forecast())
    before = {"document": {"arms": {"mix-2": {"phases": ["mix-2"], "forecast": FORECAST}}}}
    without: dict[str, Any] = {"document": {"arms": {"mix-2": {"phases": ["mix-2"]}}}}
    moved = {"document": {"arms": {"mix-2": {"forecast": {CODE: {"value": 1.2, "low": 1.0, "high": 1.3}}}}}}
    other: dict[str, Any] = {"document": {"arms": {"mix-1": {}}}}
    found = {
        name: score_forecasts(study, {"mix-2": {CODE: 1.2}}, history)[0]["registered"]
        for name, history in {
            "at first": [other, before], "later": [without, before], "changed": [moved, before], "never": [other],
        }.items()
    }  # fmt: skip
    assert found == {"at first": True, "later": False, "changed": False, "never": None}


def test_the_next_mixture_shows_forecasts_beside_what_was_measured(tmp_path: Path) -> None:
    file = write_study(tmp_path, with_forecast(), skip=["mix-2"])
    (row,) = next_mixture(file)["forecasts"]
    assert (row["measured"], row["registered"]) == (None, None)
    for cell in grid_of(file).cells:
        if cell.arm == "mix-2":
            write_run(cell, planted, 0.0)
    history = tmp_path / "runs" / "study.jsonl"
    # As `study run` writes it.
    history.write_text(json.dumps(version_of(Tree(grid_of(file)), scored=False)) + "\n")
    (row,) = next_mixture(file)["forecasts"]
    assert row["registered"] is True
    without = {"arms": {"mix-2": {"phases": ["mix-2"]}}}
    history.write_text(json.dumps({**version_of(Tree(grid_of(file)), scored=False), "document": without}) + "\n")
    (row,) = next_mixture(file)["forecasts"]
    assert row["measured"] == pytest.approx(planted({"code": 0.5})["code"])
    assert (row["inside"], row["registered"]) == (True, False)
