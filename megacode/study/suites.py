"""Check the suites that a study names, before anything is trained for them."""

from __future__ import annotations

from pathlib import Path

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.config.evaluate import SHIPPED_SUITES, SUITE_FILES
from megacode.config.suggestions import did_you_mean
from megacode.planning.suite import score_name
from megacode.study.schema import Study
from megacode.study.working_directory import advice


def check_suites(study: Study, path: Path) -> None:
    """Refuse unknown suites, files that are missing or wrong, and two suites whose scores would have one file name.

    Args:
        study: the study. Its report is made without this check: a suite may have been removed since.
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
                fix = advice(path, Path(suite))
                problems += [
                    Problem(problem.what, f"{where}: {problem.where}", fix or problem.fix) for problem in error.problems
                ]
        elif suite not in SHIPPED_SUITES:
            fix = f"{did_you_mean(suite, list(SHIPPED_SUITES))}; your own suite is given as a YAML file"
            problems.append(Problem(f"there is no suite {suite!r}", where, fix))
        if number != study.suites.index(suite):
            problems.append(Problem(f"{suite!r} stands twice", where, "name each suite once"))
        other = names.setdefault(score_name(suite), suite)
        if other != suite:
            message = f"scores of {other!r} and {suite!r} would have one file name"
            problems.append(Problem(message, where, "give one of them another name"))
    if problems:
        raise ConfigError(problems=problems)
