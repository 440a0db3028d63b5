"""Changes of the optimizer at phase borders: what they cost, and the proof that a checkpoint's state fits.

Both optimizers train embeddings, output layer and vectors with AdamW, whose state continues. They differ in the
matrices of the blocks, whose state of the former optimizer means nothing to the new one.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from megacode.base.errors import CheckpointError
from megacode.config.run import RunConfig
from megacode.config.training import OptimizerName

_STATE = {"adamw": "exp_avg and exp_avg_sq", "muon": "momentum"}
_VERB = {"adamw": "start", "muon": "starts"}


def change_of_state(old: OptimizerName, new: OptimizerName) -> str:
    """Return in words what a change does to the state of the blocks' matrices."""
    dropped = f"{_STATE[old]} {'are' if old == 'adamw' else 'is'} dropped"
    return f"their {_STATE[new]} {_VERB[new]} at zero, {dropped}"


def optimizer_changes(config: RunConfig) -> Iterator[str]:
    """Yield a line for each phase that trains with another optimizer than the phase before it."""
    former = config.optimizer_in(config.phases[0])
    for phase in config.phases[1:]:
        now = config.optimizer_in(phase)
        if now != former:
            yield (
                f"{phase.name}: the blocks' matrices change from {former} to {now}: {change_of_state(former, now)}; "
                "all else keeps its state"
            )
        former = now


def prove_same_optimizer(
    config: RunConfig, number: int, former: str, former_number: int, where: str, *, over: bool
) -> None:
    """Prove that the state of a checkpoint is that of the optimizer which the config names for its past.

    Args:
        config: to resume with.
        number: of the phase of the checkpoint's last sample.
        former: the config that the checkpoint was saved with, YAML.
        former_number: of the same phase in that config.
        where: the checkpoint.
        over: that phase ends at the checkpoint.

    Raises:
        CheckpointError: it is another one's.
    """
    trained, now = _optimizer_of(former, former_number), config.optimizer_in(config.phases[number])
    if trained == now:
        return
    message = (
        f"{where} holds the state of {trained}, and the config says that phase {config.phases[number].name!r} was "
        f"trained with {now}"
    )
    fix = f"set phases[{number}].optimizer: {trained}"
    if over:
        fix += f", as it was trained; the next phase may have optimizer: {now}"
    else:
        fix += f"; to change to {now} here, end the phase here with `until` and add one with optimizer: {now}"
    raise CheckpointError(message, f"phases[{number}].optimizer", fix)


def _optimizer_of(former: str, number: int) -> str:
    """Return the optimizer of a phase; configs of earlier releases name none, and trained with AdamW."""
    document = yaml.safe_load(former) or {}
    phases = document.get("phases") or [{}]
    phase = phases[min(number, len(phases) - 1)]
    return str(phase.get("optimizer") or (document.get("train") or {}).get("optimizer") or "adamw")
