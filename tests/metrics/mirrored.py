"""Runs to be mirrored, and what arrived: files of wandb, MLflow's client, a collector that speaks OTLP."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from megacode.base import child_processes
from megacode.base.files import RunDir
from tests.limits import HANG

Line = dict[str, Any]


def begin(path: Path, **metrics: Any) -> RunDir:
    """Make a run directory as a start leaves it, without any measurement."""
    run = RunDir(path).create()
    run.config.write_text(yaml.safe_dump({"name": "small", "train": {"seq_length": 64}, "metrics": metrics}))
    run.events.write_text('{"time": 1700000000.0, "event": "start", "iteration": 0, "consumed_samples": 0}\n')
    return run


def train(iteration: int, loss: float, **more: Any) -> Line:
    return {
        "kind": "train", "iteration": iteration, "consumed_samples": 8 * iteration, "phase": "first", "loss": loss,
        "loss_by_source": {"code": loss - 0.5, "text": loss + 0.5}, "samples_digest": 7 * iteration,
        "learning_rate": 1e-3, "grad_norm": 0.5, "skipped": False, "fp8": None, "mfu": None,
        "tokens_per_second": 1e6, "seconds": 0.5, "time": 1700000000.0 + iteration, **more,
    }  # fmt: skip


def validation(iteration: int, loss: float) -> Line:
    place = {"iteration": iteration, "consumed_samples": 8 * iteration, "phase": "first"}
    return {"kind": "validation", **place, "loss": loss, "loss_by_source": {"code": loss}, "reason": "interval"}


def score(iteration: int, value: float) -> Line:
    place = {"iteration": iteration, "consumed_samples": 8 * iteration, "phase": "first", "suite": "to-code"}
    return {"kind": "score", **place, "scores": {"piqa": {"acc": value, "acc_stderr": 0.01}}, "means": {"all": value}}


def segment(iteration: int) -> Line:
    return {"kind": "segment", "iteration": iteration, "consumed_samples": 8 * iteration, "time": 1700000100.0}


def append(run: RunDir, *lines: Line) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def valid(run: RunDir) -> dict[tuple[str, int], Line]:
    """The lines that count, found as docs/run_directory.md says."""
    lines: dict[tuple[str, int], Line] = {}
    for text in run.metrics.read_text().splitlines():
        line = json.loads(text)
        if line["kind"] == "segment":
            lines = {key: kept for key, kept in lines.items() if key[1] <= line["iteration"]}
        else:
            lines[line["kind"], line["iteration"]] = line
    return lines


def mirror(run: RunDir, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call `megacode mirror` on a run."""
    command = child_processes.command(["mirror", str(run.path), *options])
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, env=env)


# wandb: its files are a log as LevelDB writes it, of its own protocol buffers.

_BLOCK = 1 << 15
_HEADER = 7


def _records(raw: bytes) -> Iterator[bytes]:
    assert raw[:4] == b":W&B"
    place, parts = _HEADER, b""
    while place < len(raw):
        rest = _BLOCK - place % _BLOCK
        if rest < _HEADER:
            place += rest
            continue
        _, size, kind = struct.unpack_from("<IHB", raw, place)
        parts += raw[place + _HEADER : place + _HEADER + size]
        place += _HEADER + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def wandb_runs(run: RunDir) -> dict[str, dict[str, Any]]:
    """What all of wandb's files of a run hold, by the id of its runs: `rows`, `tags`, `config`, in order."""
    from wandb.proto import wandb_internal_pb2

    runs: dict[str, dict[str, Any]] = {}
    for path in sorted(run.mirrors.glob("wandb/*run-*/*.wandb")):
        held = runs.setdefault(path.stem.removeprefix("run-"), {"rows": [], "tags": [], "config": {}, "name": ""})
        for raw in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            if record.HasField("history"):
                items = record.history.item
                row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
                held["rows"].append(row)
            elif record.HasField("run"):
                held["tags"] = list(record.run.tags)
                held["name"] = record.run.display_name
                held["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return runs


def wandb_losses(rows: list[dict[str, Any]], kind: str = "train") -> list[tuple[int, float]]:
    """Iteration and loss of each row of a kind."""
    return [(row["iteration"], row[f"{kind}/loss"]) for row in rows if f"{kind}/loss" in row]


# MLflow


def mlflow_runs(uri: str) -> list[Any]:
    """The client, and the runs of the experiment `megacode`, oldest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("megacode")
    return [client, *reversed(client.search_runs([experiment.experiment_id]))]


def mlflow_points(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    """Step and value of each point of a metric."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


# OpenTelemetry


class Collector:
    """A collector's HTTP server, which keeps what it receives.

    Attributes:
        url: its endpoint.
        points: of all requests, in order: name, attributes, time in ns, value.
        resource: attributes of the last request.
        headers: of the last request.
    """

    def __init__(self) -> None:
        self.points: list[tuple[str, dict[str, str], int, float]] = []
        self.resource: dict[str, str] = {}
        self.headers: Mapping[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/metrics"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        import gzip

        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                collector.keep(ExportMetricsServiceRequest.FromString(body), dict(self.headers))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def keep(self, request: Any, headers: Mapping[str, str]) -> None:
        self.headers = headers
        for part in request.resource_metrics:
            self.resource = {item.key: item.value.string_value for item in part.resource.attributes}
            for metric in (metric for scope in part.scope_metrics for metric in scope.metrics):
                for point in metric.gauge.data_points:
                    attributes = {item.key: item.value.string_value for item in point.attributes}
                    self.points.append((metric.name, attributes, point.time_unix_nano, point.as_double))

    def values(self, name: str, **attributes: str) -> list[float]:
        return [value for called, given, _, value in self.points if (called, given) == (name, attributes)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def black_hole() -> Iterator[str]:
    """A server that takes connections and never answers; yields its host and port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
