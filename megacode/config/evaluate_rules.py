"""Rules of the `evaluate` section and what it needs of others; see `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.evaluate import DEMO_SOURCES, SHIPPED_SUITES
from megacode.config.rules import Rule
from megacode.config.suggestions import did_you_mean

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def the_suite_is_known(config: RunConfig) -> Iterator[Problem]:
    """A suite ships with megacode, or is a file."""
    wanted = config.evaluate
    if wanted is not None and not wanted.suite_is_a_file and wanted.suite not in SHIPPED_SUITES:
        fix = f"{did_you_mean(wanted.suite, list(SHIPPED_SUITES))}; a suite of your own is a YAML file"
        yield Problem(f"there is no suite {wanted.suite!r}", "evaluate.suite", fix)


def some_checkpoint_gets_scores(config: RunConfig) -> Iterator[Problem]:
    """A section that scores nothing is a mistake."""
    wanted = config.evaluate
    if wanted is not None and wanted.every is None and not wanted.at_phase_ends:
        fix = "add every: 1000 iterations, or at_phase_ends: true"
        yield Problem("no checkpoint would get scores", "evaluate.every", fix)


def what_is_scored_can_be_exported(config: RunConfig) -> Iterator[Problem]:
    """Exports carry the tokenizer; the demo suite asks about held-out documents of three sources, by name."""
    wanted = config.evaluate
    if wanted is None:
        return
    if config.tokenizer is None:
        what = "scores need an exported model, and a model without a tokenizer cannot be used"
        yield Problem(what, "evaluate", "add tokenizer: {kind: huggingface, path: DIR}, or remove evaluate")
    if wanted.suite != "demo":
        return
    if not set(DEMO_SOURCES) & set(config.sources):
        what = f"the demo suite asks about sources named {', '.join(DEMO_SOURCES)}, and this run has none"
        yield Problem(what, "evaluate.suite", "name a suite of your own, suite: FILE.yaml, or rename a source")
    if not config.validation.fraction:
        what = "the demo suite asks about held-out documents, and none is held out"
        yield Problem(what, "validation.fraction", "set it to 0.5% or more, or name another evaluate.suite")


def only_jobs_take_sbatch_options(config: RunConfig) -> Iterator[Problem]:
    """Options of sbatch need a job, and are options."""
    wanted = config.evaluate
    if wanted is None:
        return
    if wanted.sbatch and wanted.where != "slurm":
        yield Problem("sbatch's options are for jobs", "evaluate.sbatch", "add where: slurm, or remove them")
    for option in wanted.sbatch:
        if not option.startswith("-"):
            yield Problem(f"{option!r} is not an option", "evaluate.sbatch", "write them such as [--partition=debug]")


EVALUATE_RULES: tuple[Rule, ...] = (
    the_suite_is_known,
    some_checkpoint_gets_scores,
    what_is_scored_can_be_exported,
    only_jobs_take_sbatch_options,
)
