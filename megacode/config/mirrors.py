"""The `metrics` section: where a run's measurements are mirrored, so that people see them where they look.

No setting here is a secret: keys and passwords come from the environment, where each library looks for its own.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from megacode.config.evaluate import SecondsOrNone
from megacode.config.quantity import Frozen

Axis = Literal["iteration", "samples", "tokens"]
Text = Annotated[str, Field(min_length=1)]

_SQLITE = "sqlite:///"


class Wandb(Frozen):
    """A run at Weights & Biases; its key comes from WANDB_API_KEY or ~/.netrc.

    Attributes:
        project: of the run.
        entity: a team or user; absent: the key's default.
        name: of the run there; absent: the run's own name.
        group: that runs are shown in.
        tags: of the run.
        mode: `online`, or `offline`: only files below the run directory, which `wandb sync` uploads later.
        x_axis: what charts are drawn over.
    """

    project: Text
    entity: Text | None = None
    name: Text | None = None
    group: Text | None = None
    tags: tuple[Text, ...] = ()
    mode: Literal["online", "offline"] = "online"
    x_axis: Axis = "iteration"


class Mlflow(Frozen):
    """A run of an MLflow tracking server; MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN come from the environment.

    Attributes:
        tracking_uri: `https://HOST`, `sqlite:///FILE`, or another that MLflow knows; no folder.
        experiment: that the run belongs to; it is created if needed.
        name: of the run there; absent: the run's own name.
        x_axis: what MLflow takes for the step.
    """

    tracking_uri: Text
    experiment: Text = "megacode"
    name: Text | None = None
    x_axis: Axis = "iteration"


class OpenTelemetry(Frozen):
    """Gauges for an OpenTelemetry collector, over HTTP; OTEL_EXPORTER_OTLP_HEADERS comes from the environment.

    Attributes:
        endpoint: the whole URL: `http://HOST:4318/v1/metrics`.
    """

    endpoint: Text


class Metrics(Frozen):
    """Mirrors of metrics.jsonl. They run beside the training, and no iteration waits for them.

    Attributes:
        wandb, mlflow, opentelemetry: each absent: no such mirror.
        wait: how long the end of a run waits for what is not sent yet. All ranks stay allocated meanwhile.
    """

    wandb: Wandb | None = None
    mlflow: Mlflow | None = None
    opentelemetry: OpenTelemetry | None = None
    wait: SecondsOrNone = Field(default=30.0, le=600.0)

    @property
    def mirrors(self) -> tuple[str, ...]:
        """The names of the mirrors that are configured."""
        named = {"wandb": self.wandb, "mlflow": self.mlflow, "opentelemetry": self.opentelemetry}
        return tuple(name for name, section in named.items() if section is not None)

    def absolute(self) -> Metrics:
        """Return these settings with absolute paths."""
        if self.mlflow is None:
            return self
        uri = self.mlflow.tracking_uri
        if not uri.startswith(_SQLITE):
            return self
        uri = _SQLITE + os.path.abspath(uri.removeprefix(_SQLITE))
        return self.model_copy(update={"mlflow": self.mlflow.model_copy(update={"tracking_uri": uri})})
