"""Rules of the `evaluate` section, and of what it needs from other sections; see `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.evaluate import DEMO_SOURCES, MADE_SUITES, SHIPPED_SUITES
from megacode.config.rules import Rule
from megacode.config.suggestions import did_you_mean

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def the_suite_is_known(config: RunConfig) -> Iterator[Problem]:
    """A suite ships with megacode, or is a file."""
    evaluate = config.evaluate
    if evaluate is not None and not evaluate.suite_is_a_file and evaluate.suite not in SHIPPED_SUITES:
        fix = f"{did_you_mean(evaluate.suite, list(SHIPPED_SUITES))}; your own suite is given as a YAML file"
        yield Problem(f"there is no suite {evaluate.suite!r}", "evaluate.suite", fix)


def some_checkpoint_gets_scores(config: RunConfig) -> Iterator[Problem]:
    """A section that selects no checkpoint is a mistake."""
    evaluate = config.evaluate
    if evaluate is not None and evaluate.every is None and not evaluate.at_phase_ends:
        fix = "add every: 1000 iterations, or at_phase_ends: true"
        yield Problem("no checkpoint would be scored", "evaluate.every", fix)


def what_is_scored_can_be_exported(config: RunConfig) -> Iterator[Problem]:
    """Exports carry the tokenizer; two suites need held-out documents, `demo` of three sources known by name."""
    evaluate = config.evaluate
    if evaluate is None:
        return
    if config.tokenizer is None:
        message = "scoring needs an exported model, and an export needs a tokenizer"
        yield Problem(message, "evaluate", "add tokenizer: {kind: huggingface, path: DIR}, or remove evaluate")
    if evaluate.suite not in MADE_SUITES:
        return
    # One of the three is enough: tasks of the others are left out.
    if evaluate.suite == "demo" and not set(DEMO_SOURCES) & set(config.sources):
        message = f"the demo suite needs a source named one of {', '.join(DEMO_SOURCES)}, and this run has none"
        yield Problem(message, "evaluate.suite", "use a suite of your own, suite: FILE.yaml, or rename a source")
    if not config.validation.fraction:
        message = f"the suite {evaluate.suite} needs held-out documents, and none are held out"
        yield Problem(message, "validation.fraction", "set it to 0.5% or more, or choose another evaluate.suite")


def only_jobs_take_sbatch_options(config: RunConfig) -> Iterator[Problem]:
    """sbatch options need `where: slurm`, and begin with a dash."""
    evaluate = config.evaluate
    if evaluate is None:
        return
    if evaluate.sbatch and evaluate.where != "slurm":
        yield Problem("sbatch options only apply to SLURM jobs", "evaluate.sbatch", "add where: slurm, or remove them")
    # A word without a dash would become the job's script, and sbatch would run that.
    for option in evaluate.sbatch:
        if not option.startswith("-"):
            yield Problem(
                f"{option!r} is not an sbatch option", "evaluate.sbatch", "write for example [--partition=debug]"
            )


def vllm_scores_in_jobs(config: RunConfig) -> Iterator[Problem]:
    """vLLM takes a GPU of its own, which a process beside the trainer does not have."""
    evaluate = config.evaluate
    if evaluate is not None and evaluate.backend == "vllm" and evaluate.where != "slurm":
        yield Problem("vLLM needs a GPU that no rank uses", "evaluate.backend", "add where: slurm, or remove it")
    if evaluate is not None and evaluate.backend == "vllm" and evaluate.device is not None:
        yield Problem("vLLM chooses its device itself", "evaluate.device", "remove it")


EVALUATE_RULES: tuple[Rule, ...] = (
    the_suite_is_known,
    some_checkpoint_gets_scores,
    what_is_scored_can_be_exported,
    only_jobs_take_sbatch_options,
    vllm_scores_in_jobs,
)
