"""Relative paths of a study are below the working directory, as in every config; `base` alone is beside its file.

So a study that is read from another directory finds neither its data nor its runs. The same command there would train
everything again, so such a study is refused wherever it can be told.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from megacode.base.errors import ConfigError, MegacodeError
from megacode.config.run import RunConfig
from megacode.study.places import StudyDir
from megacode.study.schema import Study


def other_directory(file: Path, path: Path, ending: str = "") -> Path | None:
    """Return the nearest directory at or above a study file that has a path which the working directory lacks.

    Args:
        file: of the study.
        path: relative, or absolute and below the working directory.
        ending: of the file that the path is a prefix of.
    """
    here = Path.cwd()
    if path.is_absolute():
        if not path.is_relative_to(here):
            return None
        path = path.relative_to(here)
    if Path(f"{path}{ending}").exists():
        return None
    return next((place for place in file.resolve().parents if Path(f"{place / path}{ending}").exists()), None)


def advice(file: Path, path: Path, ending: str = "") -> str:
    """Return what to do about a path that is not there because of the working directory; empty if it is not."""
    place = other_directory(file, path, ending)
    if place is None:
        return ""
    change = f"cd {shlex.quote(str(place))}"
    return f"relative paths are below the working directory, and this one exists below {place}: {change}"


def check_directory(study: Study, file: Path) -> None:
    """Refuse a study whose runs lie below another directory.

    Raises:
        ConfigError: with that directory.
    """
    # The history is written by the first `study run`; an empty directory of this name means nothing.
    directory = Path(study.directory)
    fix = "" if directory.is_absolute() else advice(file, StudyDir(directory).history)
    if fix:
        message = f"no runs are in {study.directory}, and this study was run from another directory"
        raise ConfigError(message, f"{file.name}: runs", f"{fix}; a second study needs another name")


def advised(error: MegacodeError, file: Path, config: RunConfig) -> MegacodeError:
    """Return an error about files of a config, with what to do where they are there from another directory."""
    fixes = advice_on(config, file)
    problems = [
        replace(
            problem,
            fix=next((fix for path, fix in fixes.items() if path in f"{problem.where} {problem.what}"), problem.fix),
        )
        for problem in error.problems
    ]
    return type(error)(problems=problems)


def advice_on(config: RunConfig, file: Path) -> dict[str, str]:
    """Return by path what to do about a config's tokenizer and data sets that are there from another directory."""
    paths = [(source.path, ".idx") for source in config.sources.values()]
    paths += [(config.tokenizer.path, "")] if config.tokenizer is not None else []
    return {path: fix for path, ending in paths if (fix := advice(file, Path(path), ending))}
