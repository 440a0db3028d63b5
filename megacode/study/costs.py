"""Cost of a node: FLOPs, GPU-hours by the plan's model of step time, and the size of the checkpoint at its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.capacity.activations import layers_of
from megacode.capacity.cluster import check_formats
from megacode.capacity.costs import flops_per_token
from megacode.capacity.hardware import load_hardware
from megacode.capacity.interruptions import checkpoint_bytes, weight_bytes
from megacode.capacity.layout import Layout
from megacode.capacity.speed import step_time
from megacode.study.tree import TreeNode

# One node of most clusters. Only used to show hours before anyone has said where the study will run.
_USUAL_GPUS = 8
_HOUR = 3600


@dataclass(frozen=True)
class Gpus:
    """The GPUs that runs are planned for.

    Attributes:
        count: GPUs per run; None: eight, and no hours for a run that does not fit on them.
        kind: as `hardware.yaml` names it.
        file: the user's own table of hardware constants.
    """

    count: int | None = None
    kind: str = "H100"
    file: Path | None = None


class Costs:
    """Costs of nodes; nodes of equal shape are computed once.

    Args:
        gpus: the GPUs that runs are planned for.

    Raises:
        ConfigError: the kind of GPU is not known.
    """

    def __init__(self, gpus: Gpus) -> None:
        self.gpus, self._hardware = gpus, load_hardware(gpus.kind, gpus.file)
        self._seconds: dict[str, float | None] = {}

    @property
    def count(self) -> int:
        """GPUs per run."""
        return self.gpus.count or _USUAL_GPUS

    def flops(self, node: TreeNode) -> int:
        """Return the FLOPs of a node, forward and backward, with causal attention."""
        plan = node.cell.plan
        # The plan's formula, so that a node costs here what the run's own page will say.
        return node.tokens * flops_per_token(plan.config.model, plan.vocab_size, plan.schedule.seq_length)

    def checkpoint_bytes(self, node: TreeNode) -> int:
        """Return the size of the checkpoint at a node's end."""
        # A mean has weights alone.
        size = checkpoint_bytes if node.merging is None else weight_bytes
        return size(node.cell.plan.config, node.cell.plan.vocab_size)

    def hours(self, node: TreeNode) -> float | None:
        """Return a node's GPU-hours; None if no number of GPUs was given and the node does not fit on the default.

        Raises:
            ConfigError: the number of GPUs that was asked for does not fit.
        """
        config, plan = node.cell.plan.config, node.cell.plan
        parts = {"model": config.model, "train": config.train, "parallel": config.parallel}
        # Seeds and phases of one shape take equally long.
        key = json.dumps({name: part.model_dump(mode="json") for name, part in parts.items()})
        # The size of the vocabulary may be the tokenizer's, which the model's settings do not name.
        key += f"{plan.vocab_size} {config.precision} {config.phases[node.phase].fp8} "
        key += f"{config.optimizer_in(config.phases[node.phase])}"
        if key not in self._seconds:
            self._seconds[key] = self._iteration(node)
        seconds = self._seconds[key]
        if seconds is None:
            return None
        # Priced at the full batch, also during a batch ramp: small batches are slower than this says.
        return node.samples / config.train.global_batch_size * seconds * self.count / _HOUR

    def _iteration(self, node: TreeNode) -> float | None:
        config, plan = node.cell.plan.config, node.cell.plan
        place = replace(Layout(config, self.count, plan.vocab_size), phase=node.phase)
        try:
            place.check()
            check_formats(config, self._hardware)
        except ConfigError:
            # Eight GPUs were our guess, so a run that needs more is no mistake of the user.
            if self.gpus.count is None:
                return None
            raise
        return step_time(place, self._hardware, layers_of(config)).total
