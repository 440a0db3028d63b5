"""What an arm's first weights come from: its name in the arm's identity, and whether they fit the arm's model."""

from __future__ import annotations

from pathlib import Path

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.config_file import dump_config
from megacode.plan.difference import adapts, model_changes, shown
from megacode.planning.run_plan import Plan, prove_same_model
from megacode.study.identity import RANDOM, start_from
from megacode.study.schema import ArmInit


def start_of(init: ArmInit | None, origin: tuple[str, Plan] | None, plan: Plan, where: str) -> str:
    """Return the past of an arm's first phase.

    Args:
        init: of the arm.
        origin: the end of the arm that it starts from, and that arm's plan; None: it starts from none.
        plan: of the arm.
        where: the place of `init` in the study file, for messages.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
    """
    if origin is not None:
        _check_same_model(origin[1], plan, f"{where}.arm")
        return start_from("state", origin[0])
    if init is None or init.from_ is None:
        return RANDOM
    try:
        checkpoint = find_checkpoint(Path(init.from_))
        state = TrainState.read(checkpoint)
        prove_same_model(plan, state, checkpoint, weights_only=True)
    except MegacodeError as error:
        problem = error.problems[0]
        raise ConfigError(problem.what, f"{where}.from: {problem.where}", problem.fix) from None
    return start_from("checkpoint", state.seal)


def _check_same_model(origin: Plan, plan: Plan, where: str) -> None:
    # Found here, it costs nothing; found by the run, the origin has been trained for weeks.
    problems = [
        Problem(
            f"{change.key} is {shown(change.old)} in the arm that it starts from, and {shown(change.new)} here",
            where,
            "weights fit one model only: remove the setting, or start from another arm",
        )
        for change in model_changes(dump_config(origin.config), plan.config)
        if not adapts(change)
    ]
    if problems:
        raise ConfigError(problems=problems)
