"""Rules of the `metrics` section; see `rules`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

from megacode.base.errors import Problem
from megacode.config.rules import Rule

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


_HTTP = ("http", "https")
_SECRET = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)  # in the names of a query's parts


def addresses_hold_no_secret(config: RunConfig) -> Iterator[Problem]:
    """The resolved config is written down, so addresses must not hold passwords."""
    for where, address, fix in _addresses(config):
        # The address itself is not shown, since logs are files too.
        if _tells_secret(address):
            yield Problem("the address holds a user or a secret, which would be written to run.yaml", where, fix)


def the_tracking_server_is_an_address(config: RunConfig) -> Iterator[Problem]:
    """MLflow itself knows more kinds of addresses than can be listed here, but no longer folders."""
    section = config.metrics.mlflow
    if section is None:
        return
    parts = _split(section.tracking_uri)
    if parts is None or (parts.scheme in ("", "file") and section.tracking_uri != "databricks"):
        fix = "give for example https://mlflow.example.org or sqlite:///mlflow.db"
        message = f"{section.tracking_uri!r} is no address of a server or database"
        yield Problem(message, "metrics.mlflow.tracking_uri", fix)


def the_collector_is_an_address(config: RunConfig) -> Iterator[Problem]:
    """OTLP goes over HTTP here."""
    section = config.metrics.opentelemetry
    if section is None or _tells_secret(section.endpoint):
        return
    parts = _split(section.endpoint)
    if parts is None or parts.scheme not in _HTTP or not parts.netloc:
        fix = "give the whole URL, for example http://localhost:4318/v1/metrics"
        yield Problem(f"{section.endpoint!r} is not an HTTP address", "metrics.opentelemetry.endpoint", fix)


def _addresses(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    metrics = config.metrics
    if metrics.mlflow is not None:
        fix = "remove it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        if not metrics.mlflow.tracking_uri.startswith(_HTTP):
            fix = "remove it; a database's client reads its own, as PGUSER and PGPASSWORD, from the environment"
        yield "metrics.mlflow.tracking_uri", metrics.mlflow.tracking_uri, fix
    if metrics.opentelemetry is not None:
        fix = "remove it, and set OTEL_EXPORTER_OTLP_HEADERS in the environment"
        yield "metrics.opentelemetry.endpoint", metrics.opentelemetry.endpoint, fix


def _tells_secret(address: str) -> bool:
    parts = _split(address)
    if parts is None:
        return False
    return "@" in parts.netloc or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query))


def _split(address: str) -> SplitResult | None:
    """Return an address's parts; None where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


MIRROR_RULES: tuple[Rule, ...] = (
    addresses_hold_no_secret,
    the_tracking_server_is_an_address,
    the_collector_is_an_address,
)
