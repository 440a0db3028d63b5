"""Made-up studies that several tests read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from megacode.study_report.document import report_document
from megacode.study_report.shapes import StudyReport
from tests.study_report.made_suites import MadeSuite, MadeTask, Recipe, small_recipe, small_study
from tests.study_report.synthetic import make_study

TASKS = {
    "piqa": MadeTask("acc", 200, 0.6, chance=0.5),
    "boolq": MadeTask("acc", 150, 0.6, passage=5, chance=0.5),
    "humaneval": MadeTask("pass_at_1", 164, 0.2),
}
TINY_SUITE = MadeSuite(
    "tiny",
    TASKS,
    {"nl": {"piqa": "acc", "boolq": "acc"}, "code": {"humaneval": "pass_at_1"}},
    {"total": ["nl", "code"]},
)
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the small study, trained and scored."""
    return make_study(tmp_path_factory.mktemp("small") / "small.yaml", small_study(), small_recipe())


@pytest.fixture(scope="session")
def small_report(small: Path) -> StudyReport:
    """Its report."""
    return report_document(small)


def tiny_study(seeds: int = 2, **changes: Any) -> dict[str, Any]:
    """Return a study of three arms: `base`, `half`, and `half` with a cooldown."""
    study = small_study(range(1, seeds + 1))
    study["phases"] = {name: study["phases"][name] for name in ("text", "balanced", "cooldown")}
    study["arms"] = {"base": ["text"], "half": ["balanced"], "cooled": ["balanced", "cooldown"]}
    del study["match"]
    study |= {"baseline": "base", "compare": {"primary": ["mean/total"]}, "suites": ["tiny"], "name": "tiny"}
    return {**study, **changes}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes a tiny study: keys of the study, and `recipe` for how it is scored."""

    def made(seeds: int = 2, recipe: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        scored = Recipe(**{"suites": [TINY_SUITE], **(recipe or {})})
        place = tmp_path / f"study-{len(list(tmp_path.iterdir()))}"
        return make_study(place / "tiny.yaml", tiny_study(seeds, **changes), scored)

    return made


def score_files(study: Path, pattern: str = "*") -> list[Path]:
    """Return the score files below a study's runs."""
    return sorted((study.parent / "runs").glob(f"{pattern}/eval/*.json"))


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
