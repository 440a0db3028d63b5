"""A study's report over partial, odd and damaged results: what is listed, flagged, refused, and never made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megacode.base.errors import ConfigError, DataError, MegacodeError
from megacode.base.files import RunDir, to_json
from megacode.checkpoint.state import TrainState
from megacode.cli import app
from megacode.study.grid import Cell
from megacode.study_report.document import report_document
from megacode.study_report.markdown import render_markdown
from megacode.study_report.writing import write_report
from tests.study_report.conftest import TINY_SUITE, Make, change_json, score_files, tiny_study
from tests.study_report.made_suites import Recipe, held_out_suite
from tests.study_report.synthetic import make_study

Change = Callable[[Cell, str, dict[str, Any], list[dict[str, Any]]], None]


def test_what_is_missing_is_listed_and_never_filled_in(make: Make) -> None:
    study = make(2, {
        "trained": lambda cell: (cell.arm, cell.seed) != ("cooled", 2),
        "scored": lambda cell, suite: (cell.arm, cell.seed) != ("half", 1),
    })  # fmt: skip
    report = report_document(study)
    states = {(model["arm"], model["seed"]): model["state"] for model in report["models"]}
    assert states["half", 1] == "not scored"
    assert states["cooled", 2] == "not trained"
    assert not report["complete"]
    declared, *missing = report["missing"]
    assert declared.startswith("source code, source markup, source text: declared, and not there: ")
    assert missing == [
        "1 of 6 models is not trained yet: cooled seed 2",
        "1 of 6 models is trained and not scored yet: half seed 1",
    ]
    assert {arm["name"]: (arm["state"], arm["scored_seeds"]) for arm in report["arms"]} == {
        "base": ("scored", [1, 2]), "half": ("partly scored", [2]), "cooled": ("partly scored", [1]),
    }  # fmt: skip
    assert {row["arm"]: row["seeds"] for row in report["scores"]} == {"base": 2, "half": 1, "cooled": 1}
    assert "the arms have different seeds, so differences are not paired by seed" in report["notes"]
    assert report["comparisons"]


def test_a_study_without_any_score_has_a_report(make: Make, tmp_path: Path) -> None:
    report = report_document(make(1, {"trained": lambda cell: False}))
    assert (report["scores"], report["comparisons"], report["headlines"]) == ([], [], [])
    assert report["missing"][1:] == ["3 of 3 models are not trained yet: base seed 1, half seed 1, cooled seed 1"]
    assert len(write_report(report, tmp_path / "out")) == 4


def test_without_its_baseline_nothing_is_compared(make: Make) -> None:
    report = report_document(make(2, {"scored": lambda cell, suite: cell.arm != "base"}))
    assert report["comparisons"] == []
    assert "the baseline base is not scored by tiny, so nothing is compared with it" not in report["missing"]
    assert "the baseline base is not scored, so nothing is compared with it" in report["missing"]
    assert {row["arm"] for row in report["scores"]} == {"half", "cooled"}


def test_suites_that_not_all_models_have_are_compared_apart(make: Make) -> None:
    suites = [TINY_SUITE, held_out_suite(["text", "code"], 40)]
    more = {"suites": suites, "scored": lambda cell, suite: suite == "tiny" or cell.arm != "cooled"}
    report = report_document(make(2, more, suites=["tiny", "heldout"]))
    compared = {(row["arm"], row["metric"].partition("/")[0]) for row in report["comparisons"]}
    assert ("half", "heldout_text") in compared
    assert ("cooled", "heldout_text") not in compared
    assert ("cooled", "piqa") in compared
    assert "2 scored models without scores of the suite heldout" in report["missing"]
    whole = report_document(make(2, {"suites": suites}, suites=["tiny", "heldout"]))
    assert whole["missing"] == []
    assert {row["suite"] for row in whole["metrics"]} == {"tiny", "heldout"}


def test_levels_are_compared_inside_themselves(make: Make) -> None:
    factors = {"scale": {"small": {}, "large": {"set": {"model.hidden_size": 128}}}}
    report = report_document(make(2, factors=factors, compare={"pairs": [["cooled", "half"]]}))
    assert [arm["place"] for arm in report["arms"]] == ["small", "large"] * 3
    for row in report["comparisons"]:
        place = row["arm"].partition("@")[2]
        assert row["baseline"] in (f"base@{place}", f"half@{place}")
        assert row["place"] == place
    assert len(report["comparisons"]) == 2 * 3 * 6
    (total,) = [row for row in report["decision_accuracy"] if row["metric"] == "mean/total"]
    assert (total["places"], total["pairs"]) == (["small", "large"], 3)
    sizes = next(line for line in report["limits"] if "parameters" in line)
    assert " and " in sizes


def dented(study: Path, place: str, **changes: Any) -> None:
    """Change what checkpoints say of themselves, and their score files' seals with it."""
    count = 0
    for file in sorted((study.parent / "runs").glob(f"{place}/checkpoints/*/megacode.json")):
        state = TrainState.read(file.parent)
        for key, value in changes.items():
            setattr(state, key, value)
        state.write(file.parent)
        run = RunDir(file.parents[2])
        for score in run.eval.glob(f"*@{file.parent.name}.json"):
            change_json(score, lambda d, seal=state.seal: d["model"]["megacode"].update(checkpoint_seal=seal))
        count += 1
    assert count


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"withheld": 512}, "512 samples were withheld from training"),
        ({"health": {"fp8": {"fell_back": True}}}, "it fell back from FP8"),
        ({"layout": {"tensor": 2}}, "it was trained on another layout than most (tensor 2)"),
        ({"versions": {"megacode": "0.0.9"}}, "it was trained with megacode 0.0.9, most with 0.1.0"),
    ],
)
def test_a_dented_model_flags_its_arm(make: Make, changes: dict[str, Any], said: str) -> None:
    study = make(2)
    dented(study, "text-s2-*", **changes)
    report = report_document(study)
    flags = {arm["name"]: arm["flags"] for arm in report["arms"]}
    assert len(flags["base"]) == 1
    assert flags["base"][0].startswith(f"seed 2: {said}")
    assert flags["half"] == flags["cooled"] == []
    assert any(line.startswith(f"base: seed 2: {said}") for line in report["limits"])


def test_a_changed_past_of_a_trunk_flags_every_arm_that_went_through_it(make: Make) -> None:
    study = make(1)
    (events,) = (study.parent / "runs").glob("cooldown-s1-*/events.jsonl")
    line = {"time": 1.0, "event": "resume", "kind": "resume", "consumed_samples": 800, "changed_past": ["text"]}
    events.write_text(events.read_text() + json.dumps(line) + "\n")
    flags = {arm["name"]: arm["flags"] for arm in report_document(study)["arms"]}
    assert flags["base"] == []
    assert [len(flags[name]) for name in ("half", "cooled")] == [1, 1]
    assert flags["half"][0].startswith("a changed past was accepted in cooldown-s1-")


def test_a_node_that_was_trained_twice_shows_both_seals(make: Make) -> None:
    study = make(1)
    (run,) = (study.parent / "runs").glob("text-s1-*")
    shutil.copytree(run / "checkpoints", run.parent / "again" / "checkpoints")
    (copy,) = (run.parent / "again").glob("checkpoints/*")
    state = TrainState.read(copy)
    state.layout = {"tensor": 2}
    state.write(copy)
    report = report_document(study)
    (base,) = [arm for arm in report["arms"] if arm["name"] == "base"]
    assert "was trained more than once (seals " in base["flags"][0]
    # The scores are those of the one that has some.
    (model,) = [model for model in report["models"] if model["arm"] == "base"]
    assert model["run"] == str(run)


def test_scores_of_another_checkpoint_do_not_count(make: Make) -> None:
    study = make(2)
    file = score_files(study, "text-s1-*")[0]
    change_json(file, lambda document: document["model"]["megacode"].update(checkpoint_seal="f" * 64))
    report = report_document(study)
    (model,) = [model for model in report["models"] if (model["arm"], model["seed"]) == ("base", 1)]
    assert model["state"] == "not scored"
    assert any(f"{file} is of another checkpoint (seal ffffffff" in line for line in report["missing"])


@pytest.mark.parametrize("init", [False, True])
def test_scores_outlive_their_checkpoint(make: Make, init: bool) -> None:
    more = {"init": {"arm": "half"}} if init else {}
    arms = {
        "base": ["text"],
        "half": ["balanced"],
        "cooled": {"phases": ["text"], **more, "set": {"train.clip_grad": 0.5}},
    }
    study = make(2, arms=arms)
    whole = report_document(study)
    before = {(model["arm"], model["seed"]): model["seal"] for model in whole["models"]}
    deleted = list((study.parent / "runs").glob("*/checkpoints"))
    assert len(deleted) == 6
    for place in deleted:
        shutil.rmtree(place)
    report = report_document(study)
    # What a deleted checkpoint's weights came from is known by the study alone.
    assert {(model["arm"], model["seed"]): model["seal"] for model in report["models"]} == before
    assert report["comparisons"] == whole["comparisons"]
    assert all(model["state"] == "scored" and model["checkpoint"] is None for model in report["models"])
    assert all(node["state"] == "trained" for node in report["tree"]["nodes"])
    assert report["tree"]["tokens_to_train"] == 0
    assert render_markdown(report).count("checkpoint deleted") == 6


def changed(arm: str, **settings: Any) -> Change:
    def change(cell: Cell, suite: str, document: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        if cell.arm == arm:
            document["settings"].update(settings.get("settings", {}))
            document["versions"].update(settings.get("versions", {}))
            for task in document["tasks"].values():
                task.update(settings.get("task", {}))

    return change


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"settings": {"limit": 50}}, "limit none and 50"),
        ({"versions": {"lm_eval": "0.4.9"}}, "lm-eval version 0.4.13 and 0.4.9"),
        ({"task": {"version": 2.0}}, "task version 1.0 and 2.0"),
        ({"task": {"prompts_sha256": "other"}}, "different prompts"),
    ],
)
def test_what_was_scored_differently_is_refused_and_both_are_named(
    make: Make, settings: dict[str, Any], said: str
) -> None:
    study = make(1, {"change": changed("half", **settings)})
    with pytest.raises(DataError) as caught:
        report_document(study)
    problem = caught.value.problems[0]
    assert said in problem.what
    assert "text-s1-" in problem.where
    assert "cooldown-s1-" in problem.where
    assert "--without piqa" in problem.fix


def test_a_task_can_be_left_out_on_request(make: Make) -> None:
    def change(cell: Cell, suite: str, document: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        if cell.arm == "half":
            document["tasks"]["boolq"]["version"] = 2.0

    study = make(1, {"change": change})
    report = report_document(study, without=["boolq"])
    assert report["left_out"]["boolq"] == "left out on request"
    assert {row["metric"] for row in report["metrics"]} >= {"piqa/acc", "mean/total"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_text(file.read_text()[:100]), "the score file is damaged"),
        (lambda file: file.with_suffix(".items.jsonl").unlink(), "items file is missing"),
        (lambda file: file.with_suffix(".items.jsonl").write_text("{}\n"), "the line is damaged"),
        (lambda file: _cut(file.with_suffix(".items.jsonl")), "lines of humaneval, but the score file has 164"),
    ],
)
def test_a_damaged_score_file_is_named(make: Make, damage: Callable[[Path], Any], said: str) -> None:
    study = make(1)
    file = score_files(study, "cooldown-s1-*")[-1]
    damage(file)
    with pytest.raises(DataError) as caught:
        report_document(study)
    assert said in caught.value.problems[0].what
    assert file.stem in caught.value.problems[0].where


def _cut(items: Path) -> None:
    items.write_text("".join(items.read_text().splitlines(keepends=True)[:-1]))


def test_a_declared_metric_that_does_not_exist_is_refused_with_a_suggestion(make: Make) -> None:
    study = make(1, compare={"primary": ["mean/totl"]})
    with pytest.raises(ConfigError, match=r"did you mean 'mean/total'\?") as caught:
        report_document(study)
    assert caught.value.problems[0].where == "tiny.yaml: compare.primary"
    with pytest.raises(ConfigError, match="no score file has a task 'pika'") as caught:
        report_document(make(1), without=["pika"])
    assert "did you mean piqa?" in str(caught.value)


def test_a_foreign_file_is_not_overwritten_and_an_earlier_report_is(make: Make, tmp_path: Path) -> None:
    report = report_document(make(1))
    out = tmp_path / "out"
    first = {file.name: file.read_bytes() for file in write_report(report, out)}
    assert {file.name: file.read_bytes() for file in write_report(report, out)} == first
    # As an earlier version began it.
    (out / "report.csv").write_text("kind,arm,baseline,seed,task,metric,value,se,low,high,n,run,seal,scores\n")
    assert {file.name: file.read_bytes() for file in write_report(report, out)} == first
    (out / "report.csv").write_text("mine\n")
    (out / "report.tex").write_text("mine\n")
    with pytest.raises(ConfigError, match="not a report of megacode") as caught:
        write_report(report, out)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["report.csv", "report.tex"]
    assert (out / "report.csv").read_text() == "mine\n"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="a file, not a directory"):
        write_report(report, tmp_path / "file")


def test_the_command_prints_one_document_or_writes_four_files(make: Make, tmp_path: Path) -> None:
    study = make(1)
    printed = CliRunner().invoke(app, ["study", "report", str(study), "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == json.loads(to_json(report_document(study)))
    assert not (study.parent / "runs" / "report").exists()
    written = CliRunner().invoke(app, ["study", "report", str(study), "--out", str(tmp_path / "out")])
    assert written.exit_code == 0
    assert "mean/total: half" in written.stdout
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir()) == [".csv", ".html", ".md", ".tex"]


def test_mistakes_of_the_user_end_the_command_with_2(make: Make, tmp_path: Path) -> None:
    study = make(1, {"change": changed("half", settings={"limit": 50})})
    refused = CliRunner().invoke(app, ["study", "report", str(study), "--json"])
    assert isinstance(refused.exception, MegacodeError)
    assert refused.exception.exit_code == 2
    missing = CliRunner().invoke(app, ["study", "report", str(tmp_path / "none.yaml")])
    assert isinstance(missing.exception, MegacodeError)
    assert missing.exception.exit_code == 2


def test_a_name_of_two_suites_is_told_apart(tmp_path: Path) -> None:
    again = TINY_SUITE.__class__("again", TINY_SUITE.tasks, TINY_SUITE.categories, TINY_SUITE.means)
    study = make_study(tmp_path / "two.yaml", tiny_study(1, suites=["tiny", "again"]), Recipe([TINY_SUITE, again]))
    report = report_document(study)
    suites = {row["metric"]: row["suite"] for row in report["metrics"]}
    assert suites["piqa/acc"] == "tiny"
    assert suites["again.piqa/acc"] == suites["mean/again.total"] == "again"
