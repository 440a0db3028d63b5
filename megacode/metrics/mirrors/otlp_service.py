"""Gauges for an OpenTelemetry collector, over OTLP and HTTP: each row's numbers, at the time of its line.

Names are `megacode.train.loss`, and `megacode.train.loss_by_source` with the attribute `source`. A collector knows
times and no iterations. So each row has gauges of iteration, samples and tokens, and what a rollback supersedes stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import megacode
from megacode.config.mirrors import OpenTelemetry
from megacode.metrics.mirrors.history import CurveRow
from megacode.metrics.mirrors.service import MirroredCurve, values
from megacode.metrics.numbers import Name

_PARTS = {"fp8_probe": "layers"}  # what the names below a key are, by kind of record; else sources


class OtlpService:
    """See the module.

    Args:
        settings: `metrics.opentelemetry`.
    """

    def __init__(self, settings: OpenTelemetry) -> None:
        import logging

        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails is said once, by the mirror

        self._exporter: Any = OTLPMetricExporter(endpoint=settings.endpoint)
        self._endpoint = settings.endpoint
        self._curve: MirroredCurve | None = None
        self._resource: Any = None

    def open(self, curve: MirroredCurve) -> int | None:
        from opentelemetry.sdk.resources import Resource

        job = os.environ.get("SLURM_JOB_ID")
        facts = {
            "service.name": "megacode",
            "service.version": megacode.__version__,
            "megacode.run": str(curve.config["name"]),
            "megacode.run_id": curve.unique,
            "megacode.run_directory": str(curve.run.path.absolute()),
            **({"slurm.job_id": job} if job else {}),
        }
        self._curve, self._resource = curve, Resource.create(facts)  # OTEL_RESOURCE_ATTRIBUTES adds to them
        return None

    def send(self, rows: Sequence[CurveRow]) -> None:
        from opentelemetry.sdk.metrics import export
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        points: dict[str, list[Any]] = {}
        for row in rows:
            for name, attributes, value in self._gauges(row):
                point = export.NumberDataPoint(attributes, 0, int(row.time * 1e9), value)
                points.setdefault(name, []).append(point)
        gauges = [export.Metric(name, "", _unit(name), export.Gauge(made)) for name, made in points.items()]
        scope = export.ScopeMetrics(InstrumentationScope("megacode", megacode.__version__), gauges, "")
        data = export.MetricsData([export.ResourceMetrics(self._resource, [scope], "")])
        if self._exporter.export(data) is not export.MetricExportResult.SUCCESS:
            raise OSError(f"{self._endpoint} did not answer, or did not accept {len(rows)} lines")

    def close(self, *, left: bool, finished: bool) -> None:
        if not left:
            self._exporter.shutdown()

    def _gauges(self, row: CurveRow) -> Iterator[tuple[str, dict[str, str], float]]:
        assert self._curve is not None
        if row.record["kind"] == "train":
            for axis, count in self._curve.axes(row).items():
                yield f"megacode.{axis}", {}, float(count)
        for name, value in values(row):
            yield (*_named(name), value)


def _named(name: Name) -> tuple[str, dict[str, str]]:
    """Return a gauge's name and attributes: what varies between runs and suites is an attribute."""
    kind, *rest = name
    if kind == "score":
        suite, task, *metric = rest
        return f"megacode.score.{'.'.join(metric)}", {"suite": suite, "task": task}
    if len(rest) == 1:
        return f"megacode.{kind}.{rest[0]}", {}
    key, part, *below = rest
    if kind == "alignment" and below:
        return f"megacode.{kind}.{key}", {"step": part, "loss": below[0]}
    return ".".join(("megacode", kind, key, *below)), {_PARTS.get(kind, "source"): part}


def _unit(name: str) -> str:
    """Return a gauge's unit as UCUM writes it; empty where it has none."""
    last = name.rpartition(".")[2]
    return "s" if last.endswith("seconds") else "By" if last.endswith("bytes") else ""
