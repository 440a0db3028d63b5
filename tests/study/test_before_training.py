"""What a study is refused for before anything is trained: metrics that no suite has, and another working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError, MegacodeError
from megacode.config.yaml_reader import parse_yaml
from megacode.eval import known_metrics
from megacode.eval.suites import SHIPPED
from megacode.study.declared_metrics import check_metrics
from megacode.study.document import plan_study
from megacode.study.grid import Grid
from megacode.study.study_file import load_study

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]
FILE = Path("small.yaml")


@pytest.fixture
def scored(study: Document) -> Document:
    """The study with a tokenizer that is only named, as for a plan."""
    study["set"]["tokenizer"] = {"kind": "huggingface", "path": "tokenizer"}
    return study


def checked(document: Document, grid_of: GridOf) -> str:
    """Return what is wrong with a study's metrics; empty if nothing is."""
    try:
        check_metrics(grid_of(document), FILE)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("suites", "metric", "said"),
    [
        (["to-code"], "mean/total", ""),
        (["to-code"], "mean/totl", "did you mean mean/total?"),
        (["to-code"], "total", "'total' is not a metric of the form TASK/METRIC or mean/NAME"),
        # What lm-eval scores a task by is not known here; which tasks there are is.
        (["to-code"], "piqa/acc_norm", ""),
        (["to-code"], "piqua/acc", "there is no metric 'piqua/acc' in the suites to-code"),
        (["to-code"], "quizzes/acc", "known: mean/code, mean/knowledge, mean/nl, mean/reasoning, mean/total"),
        (["to-code", "to-code-gold"], "mean/to-code-gold.nl", ""),
        (["to-code", "to-code-gold"], "to-code-gold.piqa/bits_per_byte", ""),
        (["to-code", "to-code-gold"], "to-code-gold.piqa/acc", "did you mean to-code-gold.piqa/bits_per_byte?"),
        (["heldout"], "heldout_code/bits_per_byte", ""),
        (["heldout"], "heldout_markup/bits_per_byte", "there is no metric"),
        (["demo"], "demo_endings_text/acc_mutual_info", ""),
        (["demo"], "demo_endings_text/accuracy", "did you mean demo_endings_text/acc?"),
        (["demo"], "demo_bits_markup/bits_per_byte", "there is no metric"),
        ([], "anything/at_all", ""),
    ],
)
def test_a_metric_that_no_suite_has_is_refused_by_the_plan(
    suites: list[str], metric: str, said: str, scored: Document, grid_of: GridOf
) -> None:
    scored |= {"suites": suites, "compare": {"secondary": [metric]}}
    found = checked(scored, grid_of)
    assert said in found
    assert bool(found) == bool(said)
    assert not found or "small.yaml: compare.secondary[0]" in found


def test_a_forecast_of_a_metric_that_no_suite_has_is_refused(scored: Document, grid_of: GridOf) -> None:
    forecast = {"mean/bits": {"value": 1, "low": 0, "high": 2}}
    scored["suites"] = ["heldout"]
    scored["arms"]["two"] = {"phases": ["balanced", "text"], "forecast": forecast}
    assert "arms.two.forecast: there is no metric 'mean/bits'" in checked(scored, grid_of)


def test_an_own_suite_is_closed_only_where_all_its_tasks_are_single_ones(
    scored: Document, grid_of: GridOf, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a")
    suite = {
        "tasks": ["mmlu", "piqa"],
        "bits_per_byte": {"files": ["texts.txt"]},
        "categories": {"own": {"piqa": "acc"}},
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(suite))
    scored |= {"suites": [str(file)], "compare": {"primary": ["mmlu_anatomy/acc", "mean/own"]}}
    assert checked(scored, grid_of) == "", "mmlu is a group"
    scored["compare"]["primary"] = ["bits_per_byte_texts.txt/bits_per_char"]
    assert "did you mean bits_per_byte_texts.txt/bits_per_byte?" in checked(scored, grid_of)
    file.write_text(yaml.safe_dump({**suite, "tasks": ["piqa"]}))
    scored["compare"]["primary"] = ["mmlu_anatomy/acc"]
    assert "there is no metric 'mmlu_anatomy/acc'" in checked(scored, grid_of)


def test_the_metrics_of_the_demo_suite_are_those_of_its_task_files() -> None:
    endings = (SHIPPED / "demo" / "endings_yaml").read_text()
    metrics = parse_yaml(endings.replace("!function ", ""), "endings")["metric_list"]
    assert tuple(one["metric"] for one in metrics) == known_metrics._ENDINGS
    assert "{metric: exact_match," in (SHIPPED / "demo" / "demo_next_word_code.yaml").read_text()
    assert "{metric: bits_per_byte," in (SHIPPED / "demo" / "bits_yaml").read_text()


@pytest.fixture
def elsewhere(scored: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study's file in a directory of its own; the working directory is another one."""
    (tmp_path / "project").mkdir()
    (tmp_path / "other").mkdir()
    file = tmp_path / "project" / "small.yaml"
    file.write_text(yaml.safe_dump(scored))
    monkeypatch.chdir(tmp_path / "other")
    return file


def test_a_study_that_was_run_from_another_directory_is_refused_with_that_directory(elsewhere: Path) -> None:
    place = elsewhere.parent
    assert plan_study(elsewhere)["tokens_to_train"] > 0, "a new study may be run anywhere"
    (place / "runs" / "small").mkdir(parents=True)
    assert load_study(elsewhere)
    (place / "runs" / "small" / "study.jsonl").write_text("")
    with pytest.raises(ConfigError, match="this study was run from another directory") as caught:
        load_study(elsewhere)
    assert f"exists below {place}: cd {place}; a second study needs another name" in str(caught.value)
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/study.jsonl").write_text("")
    assert load_study(elsewhere)


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda document: document["set"]["sources"]["text"].pop("tokens"), "data/text.idx"),
        (lambda document: document["set"]["model"].pop("vocab_size"), "tokenizer"),
        (lambda document: document.update(suites=["own.yaml"]), "own.yaml"),
    ],
)
def test_files_that_are_there_from_the_directory_of_the_study_are_named(
    change: Callable[[Document], object], made: str, elsewhere: Path
) -> None:
    document = yaml.safe_load(elsewhere.read_text())
    change(document)
    elsewhere.write_text(yaml.safe_dump(document))
    with pytest.raises(MegacodeError) as caught:
        plan_study(elsewhere)
    assert "exists below" not in str(caught.value), "there is none anywhere"
    (elsewhere.parent / made).parent.mkdir(exist_ok=True)
    (elsewhere.parent / made).touch()
    with pytest.raises(MegacodeError) as caught:
        plan_study(elsewhere)
    assert f"exists below {elsewhere.parent}: cd {elsewhere.parent}" in str(caught.value)
    assert caught.value.exit_code == 2
