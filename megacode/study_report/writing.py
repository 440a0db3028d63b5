"""Write a study's report: a page, Markdown, CSV and LaTeX, all from one document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import write_text
from megacode.study_report import latex, long_form, markdown, page
from megacode.study_report.shapes import StudyReport

FOLDER = "report"  # below the study's runs, unless another place is asked for
# Each file, how an earlier one of ours begins, and what makes it.
_FILES: dict[str, tuple[str, Callable[[StudyReport, Path], str]]] = {
    "report.html": ('<meta name="generator" content="megacode', page.render),
    "report.md": (markdown.MARK, markdown.render_markdown),
    "report.csv": (long_form.MARK, lambda document, directory: long_form.render_csv(document)),
    "report.tex": (latex.MARK, lambda document, directory: latex.render_latex(document)),
}
_HEAD = 4096  # bytes in which the mark is looked for


def check_targets(directory: Path) -> list[Path]:
    """Return the files of a report; refuse to overwrite what is not an earlier report.

    Raises:
        ConfigError: with every file that is in the way.
    """
    problems = []
    if directory.exists() and not directory.is_dir():
        problems.append(Problem("the output is a file, not a directory", str(directory), "give a directory: --out DIR"))
    else:
        for name, (mark, _) in _FILES.items():
            if not _is_ours(directory / name, mark):
                message = "this file is not a report of megacode, and would be overwritten"
                problems.append(Problem(message, str(directory / name), "move it away, or give another --out DIR"))
    if problems:
        raise ConfigError(problems=problems)
    return [directory / name for name in _FILES]


def _is_ours(file: Path, mark: str) -> bool:
    """Return whether a file may be written: it is not there, is empty, or is an earlier report."""
    try:
        with file.open("rb") as handle:
            head = handle.read(_HEAD)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    # An empty file is what a full disk leaves of a report.
    return not head or mark.encode() in head


def write_report(document: StudyReport, directory: Path) -> list[Path]:
    """Write all files of a report; the same document gives the same bytes.

    Raises:
        ConfigError: a file is in the way, or cannot be written.
    """
    files = check_targets(directory)
    # All texts first, so that a mistake in one leaves the earlier report whole.
    texts = {name: make(document, directory) for name, (_, make) in _FILES.items()}
    for name, text in texts.items():
        try:
            write_text(directory / name, text)
        except OSError as error:
            message = f"the report cannot be written: {error.strerror}"
            raise ConfigError(message, str(directory / name), "choose another directory with --out") from error
    return files
