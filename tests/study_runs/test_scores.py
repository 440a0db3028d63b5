"""Scores of a study: each arm is scored once by each suite, whoever did it; another suite trains nothing."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.base.files import read_jsonl
from megacode.data.demo_items import INDEX
from megacode.study_runs import local_runs
from megacode.study_runs.disk import Disk
from megacode.study_runs.local_runs import Choices, check_choices
from megacode.study_runs.scores import ScoreBoard, score_arguments
from megacode.study_runs.status import study_status
from tests.study_runs.conftest import TEXTS, Trial

pytestmark = pytest.mark.slow


def own_suite(trial: Trial, text: str) -> None:
    """Write a suite of one text, and score the study's arms by it."""
    (trial.folder / "texts.txt").write_text(text)
    (trial.folder / "own.yaml").write_text("name: mine\nbits_per_byte: {files: [texts.txt]}\n")
    trial.document["suites"] = ["own.yaml"]


def kinds(trial: Trial) -> list[str]:
    """Return the kinds of the attempts so far."""
    return ["score" if line["name"].endswith(".mine") else "train" for line in read_jsonl(trial.place.attempts)]


def only_the_trunk(trial: Trial) -> None:
    for other in [*trial.place.path.glob("decayed-s1-*"), *trial.place.path.glob("longer-s1-*")]:
        shutil.rmtree(other)
    trial.document["arms"] = {"base": ["trunk"]}


def test_scores_have_an_identity_of_their_own(trained: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_trunk(trained)
    own_suite(trained, TEXTS[0])
    before = trained.iterations()
    assert trained.run()[0] == 0
    scored = kinds(trained).count("score")
    assert scored == 1
    (arm,) = study_status(trained.path)["arms"]
    assert (arm["state"], [score["presence"] for score in arm["scores"]]) == ("done", ["there"])
    assert study_status(trained.path)["next"].startswith("megacode study report")
    # A second call does nothing; another suite is scored, and trains nothing.
    assert trained.run()[0] == 0
    assert kinds(trained).count("score") == 1
    own_suite(trained, TEXTS[1] + " and more")
    (arm,) = study_status(trained.path)["arms"]
    assert (arm["state"], arm["cause"]) == ("trained", "own.yaml is of other questions")
    assert trained.run()[0] == 0
    assert (kinds(trained).count("score"), trained.iterations()) == (2, before)
    # Without its checkpoint the arm is still done, and nothing is trained for it.
    path = Path(arm["checkpoint"])
    shutil.rmtree(path.parent)
    (arm,) = study_status(trained.path)["arms"]
    assert (arm["state"], arm["flags"], arm["checkpoint"]) == ("done", ["deleted"], None)
    assert trained.run()[0] == 0
    assert trained.iterations() == before
    # Scores of another version of lm-eval do not stand beside new ones.
    monkeypatch.setattr("megacode.study_runs.scores.metadata.version", lambda name: "99")
    (arm,) = study_status(trained.path)["arms"]
    assert arm["scores"][0]["why"].startswith("made with lm-eval 0.")
    assert arm["state"] == "trained"
    # Nothing is trained for new questions alone, unless the user says so.
    code, printed = trained.run()
    assert (code, trained.iterations()) == (1, before)
    assert "not scored again: base seed 1: own.yaml is made with lm-eval" in printed


def test_scores_that_a_run_made_itself_are_found_and_all_arms_answer_the_same_items(trial: Trial) -> None:
    trial.document["suites"] = ["heldout"]
    trial.document["set"]["evaluate"] = {"suite": "heldout"}
    trial.document["phases"]["other"] = {**trial.document["phases"]["text"], "blend": {"code": 1}}
    trial.document["arms"] = {"base": ["text"], "other": ["other"]}
    code, printed = trial.run()
    assert code == 0, printed
    # No attempt but those of training: the runs scored themselves, on the study's items.
    assert {line["name"].rpartition("-s1")[0] for line in read_jsonl(trial.place.attempts)} == {"base", "other"}
    files = sorted(trial.place.path.glob("*/eval/heldout@iter_0000004.json"))
    digests = [json.loads(path.read_text())["suite_sha256"] for path in files]
    assert len(digests) == 2
    assert len(set(digests)) == 1
    index = json.loads((trial.place.items / "heldout" / INDEX).read_text())
    assert sorted(index["tasks"]) == ["heldout_code", "heldout_text"]


def test_a_score_file_says_what_is_wrong_with_it(trained: Trial) -> None:
    own_suite(trained, TEXTS[0])
    board = ScoreBoard(trained.tree(), Disk(trained.place.path))
    (score,) = next(iter(board.of.values()))
    assert score.checkpoint is not None
    assert score.path is not None
    node = board.tree.nodes[score.node]
    seal = json.loads((score.checkpoint / "megacode.json").read_text())["seal"]
    good: dict[str, Any] = {
        "model": {"megacode": {"checkpoint_seal": seal}},
        "settings": {"limit": None},
        "versions": {"lm_eval": metadata.version("lm_eval")},
        "suite_sha256": board.suites["own.yaml"].files_digest(),  # type: ignore[union-attr]
        "left_out": {},
    }
    cases: list[tuple[dict[str, Any], str, str]] = [
        (good, "there", ""),
        ({**good, "model": {"megacode": {"checkpoint_seal": "x"}}}, "outdated", "of another checkpoint"),
        ({**good, "suite_sha256": "x"}, "outdated", "of other questions"),
        ({**good, "settings": {"limit": 5}}, "outdated", "of 5 items a task"),
        ({**good, "left_out": {"humaneval": "excluded by --without"}}, "outdated", "without humaneval"),
        ({**good, "left_out": {"humaneval": "allow it with --run-generated-code"}}, "there", ""),
        ({}, "outdated", "a damaged file"),
    ]
    score.path.parent.mkdir(parents=True)
    for document, presence, why in cases:
        score.path.write_text(json.dumps(document))
        found = board.score("own.yaml", node, score.checkpoint)
        assert (found.presence, found.why) == (presence, why)
    allowing = ScoreBoard(trained.tree(), Disk(trained.place.path), allow_code=True)
    score.path.write_text(json.dumps(cases[5][0]))
    found = allowing.score("own.yaml", node, score.checkpoint)
    assert found.why == "without humaneval"
    arguments = score_arguments(found, trained.place, 2, allow_code=True)
    assert arguments[3:] == ["own.yaml", "--quiet", "--nproc", "2", "--overwrite", "--run-generated-code"]


def test_without_lm_eval_only_training_is_possible(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    own_suite(trial, TEXTS[0])
    monkeypatch.setattr(local_runs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lm-eval is not installed") as refused:
        check_choices(trial.tree(), Choices())
    assert "--no-scores" in str(refused.value)
    check_choices(trial.tree(), Choices(scores=False))


def test_a_machine_without_lm_eval_shows_and_submits_a_study(trained, monkeypatch):
    trained.document["suites"] = ["to-code"]
    monkeypatch.setattr("megacode.eval.suites.find_spec", lambda name: None)
    monkeypatch.setattr("megacode.study_runs.scores._lm_eval", lambda: None)
    assert trained.run(scores=False)[0] == 0
    assert {arm["state"] for arm in study_status(trained.path)["arms"]} == {"trained"}
