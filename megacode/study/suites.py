"""Check the suite files that a study names, before anything is trained for them."""

from __future__ import annotations

from pathlib import Path

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.config.evaluate import SUITE_FILES
from megacode.planning.suite import score_name
from megacode.study.schema import Study


def check_suites(study: Study, path: Path) -> None:
    """Refuse suite files that are missing or wrong, and two suites whose scores would have one file name.

    Args:
        study: the study; its rules know the suites that ship with megacode.
        path: of its file, for messages.

    Raises:
        ConfigError: with every such suite.
    """
    problems: list[Problem] = []
    names: dict[str, str] = {}
    for number, suite in enumerate(study.suites):
        where = f"{path.name}: suites[{number}]"
        if suite.endswith(SUITE_FILES):
            # Heavy to import, and most studies name shipped suites only.
            from megacode.eval.suites import load_suite

            try:
                load_suite(suite, None)
            except MegacodeError as error:
                problems += [Problem(one.what, f"{where}: {one.where}", one.fix) for one in error.problems]
        other = names.setdefault(score_name(suite), suite)
        if other != suite:
            what = f"scores of {other!r} and {suite!r} would have one file name"
            problems.append(Problem(what, where, "give one of them another name"))
    if problems:
        raise ConfigError(problems=problems)
