"""A run of an MLflow tracking server. It is found again by a tag, so nothing about it is kept here.

A point is a name, a step, a time and a value. A database has each of them once: a row that was sent twice, because a
process was killed, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from megacode.config.mirrors import Mlflow
from megacode.metrics.mirrors.history import CurveRow
from megacode.metrics.mirrors.service import MirroredCurve, values

_ID = "megacode.id"
_METRICS, _PARAMETERS = 1000, 100  # at most in a request
_LONGEST = 5000  # characters of a parameter, or of a tag
_OTHER = re.compile(r"[^\w\-. :/]", re.ASCII)  # characters that names must not have


class MlflowService:
    """See the module.

    Args:
        settings: `metrics.mlflow`.
    """

    def __init__(self, settings: Mlflow) -> None:
        # Imported late: it takes seconds. Its own log lines are of no use here.
        import logging

        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._settings = settings
        self._client: Any = MlflowClient(tracking_uri=settings.tracking_uri)
        self._curve: MirroredCurve | None = None
        self._run = ""

    def open(self, curve: MirroredCurve) -> int | None:
        self._curve = curve
        experiment = self._experiment()
        runs = self._client.search_runs([experiment], f"tags.`{_ID}` = '{curve.unique}'", max_results=1)
        # The last start marked it as ended.
        if runs:
            self._client.update_run(runs[0].info.run_id, status="RUNNING")
        tags = {_ID: curve.unique, "megacode.run_directory": str(curve.run.path.absolute())}
        run = runs[0] if runs else self._client.create_run(experiment, run_name=self._name, tags=tags)
        self._run = run.info.run_id
        self._describe(run.data.params)
        return None

    def send(self, rows: Sequence[CurveRow]) -> None:
        points = iter([point for row in rows for point in self._points(row)])
        while batch := list(islice(points, _METRICS)):
            self._client.log_batch(self._run, metrics=batch)

    def close(self, *, left: bool, finished: bool) -> None:
        if left:
            # Not deleted: what a rollback abandoned may be the very thing that somebody wants to look at.
            self._client.set_tag(self._run, "megacode.superseded", "true")
        self._client.set_terminated(self._run, "FINISHED" if finished and not left else "KILLED")

    @property
    def _name(self) -> str:
        assert self._curve is not None
        return self._curve.named(self._settings.name)

    def _experiment(self) -> str:
        name = self._settings.experiment
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment is not None else self._client.create_experiment(name))

    def _describe(self, known: dict[str, str]) -> None:
        """Record the config as parameters; a parameter cannot change, so a later value becomes a tag."""
        from mlflow.entities import Param, RunTag

        assert self._curve is not None
        settings = dict(_flat(self._curve.config))
        new = iter([Param(name, value) for name, value in settings.items() if name not in known])
        while batch := list(islice(new, _PARAMETERS)):
            self._client.log_batch(self._run, params=batch)
        changed = [item for item in settings.items() if known.get(item[0], item[1]) != item[1]]
        if changed:
            self._client.log_batch(self._run, tags=[RunTag(f"config.{name}", value) for name, value in changed])

    def _points(self, row: CurveRow) -> Iterator[Any]:
        from mlflow.entities import Metric

        assert self._curve is not None
        step = self._curve.axes(row)[self._settings.x_axis]
        for name, value in values(row):
            # MLflow counts time in milliseconds.
            yield Metric(_OTHER.sub("_", "/".join(name)), value, int(row.time * 1000), step)


def _flat(value: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield all settings of a config by their dotted name."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        # Phases are a list of sections: `phases.0.blend.code`.
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield _OTHER.sub("_", above), str(value)[:_LONGEST]
        return
    for key, item in value.items():
        yield from _flat(item, f"{above}.{key}" if above else str(key))
