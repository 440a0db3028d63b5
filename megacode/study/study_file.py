"""From a study file to a frozen `Study`, or to every mistake in it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megacode.config.config_file import read_document
from megacode.config.validation import validated
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
    return validated(Study, {"name": path.stem, **document}, RULES, path.name)
