"""A run at Weights & Biases. Each row is one step; its axes are logged with it, so a chart can be drawn over any.

wandb takes rows and writes or uploads them later, in another process. What it lacks after a kill is known at the next
start: each row is one step, and the server, or the files of an offline run, tell how many steps they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megacode.config.mirrors import Wandb
from megacode.metrics.mirrors.history import CurveRow
from megacode.metrics.mirrors.service import MirroredCurve, values
from megacode.metrics.mirrors.wandb_files import steps_in

_FLUSH_SECONDS = 2.0  # between writes to its file; what a kill loses is sent again


class WandbService:
    """See the module.

    Args:
        settings: `metrics.wandb`.
    """

    def __init__(self, settings: Wandb) -> None:
        self._settings = settings
        self._run: Any = None
        self._curve: MirroredCurve | None = None

    def open(self, curve: MirroredCurve) -> int | None:
        import wandb

        chosen = self._settings
        self._curve = curve
        have = steps_in(curve.run.mirrors, curve.unique)
        # Nothing of the process is recorded: its arguments, environment and output may hold what is not for others.
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True,
            x_disable_machine_info=True, x_save_requirements=False,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
        )  # fmt: skip
        self._run = wandb.init(
            project=chosen.project, entity=chosen.entity, name=curve.named(chosen.name), group=chosen.group,
            tags=chosen.tags, mode=chosen.mode, dir=str(curve.run.mirrors), id=curve.unique, resume="allow",
            config=curve.config, allow_val_change=True, settings=quiet,
        )  # fmt: skip
        for axis in ("iteration", "samples", "tokens"):
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric=chosen.x_axis)
        return int(self._run.starting_step) if chosen.mode == "online" else have

    def send(self, rows: Sequence[CurveRow]) -> None:
        assert self._curve is not None
        for row in rows:
            logged: dict[str, float] = {str(axis): count for axis, count in self._curve.axes(row).items()}
            logged |= {"/".join(name): value for name, value in values(row)}
            self._run.log({**logged, "_timestamp": row.time}, step=row.number, commit=True)

    def close(self, *, left: bool, finished: bool) -> None:
        if left:
            self._run.tags = (*self._run.tags, "superseded")
        self._run.finish()
