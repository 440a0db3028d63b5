"""From a study file to a frozen `Study`, or to every mistake in it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacode.base.errors import ConfigError, Problem
from megacode.config.loading import read_document
from megacode.config.placeholders import LENIENT, while_known
from megacode.config.problems import problems_of
from megacode.study.rules import RULES
from megacode.study.schema import Study
from megacode.study.working_directory import check_directory

WANTED = "a study's YAML file"


def load_study(path: Path) -> Study:
    """Read and validate a study file; what its settings mean for each arm is checked by `grid`.

    Args:
        path: the file; its stem names the study unless it has a `name`.

    Raises:
        ConfigError: with every mistake: what, where, and how to fix it; or it was run from another directory.
    """
    study = read_study(read_document(path, WANTED), path)
    check_directory(study, path)
    return study


def read_study(document: dict[str, Any], path: Path) -> Study:
    """Validate a study's document.

    Args:
        document: what the file holds.
        path: of the file, for its name and for messages.

    Raises:
        ConfigError: with every mistake.
    """
    raw = {"name": path.stem, **document}
    problems: list[Problem] = []
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, Study)
        # A second reading with unknowns in place of what is wrong, so that rules can check the rest.
        study = Study.model_validate(raw, context=LENIENT)
    for rule in RULES:
        problems += while_known(rule(study))
    if problems:
        placed = (Problem(one.what, f"{path.name}: {one.where}", one.fix) for one in dict.fromkeys(problems))
        raise ConfigError(problems=list(placed))
    return study
