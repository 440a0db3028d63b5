"""Rules of the `metrics` section; see `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from megacode.base.errors import Problem
from megacode.config.rules import Rule

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def addresses_hold_no_secret(config: RunConfig) -> Iterator[Problem]:
    """The resolved config is written down, so addresses must not hold passwords."""
    for where, address, fix in _addresses(config):
        parts = _split(address)
        # The address itself is not shown, since logs are files too.
        if parts is not None and "@" in parts[1]:
            yield Problem("the address holds a user or a password, which would be written to run.yaml", where, fix)


def the_collector_is_an_address(config: RunConfig) -> Iterator[Problem]:
    """OTLP goes over HTTP here."""
    section = config.metrics.opentelemetry
    if section is None:
        return
    parts = _split(section.endpoint)
    if parts is None or parts[0] not in ("http", "https") or not parts[1]:
        fix = "give the whole URL, for example http://localhost:4318/v1/metrics"
        yield Problem(f"{section.endpoint!r} is not an HTTP address", "metrics.opentelemetry.endpoint", fix)


def _addresses(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    metrics = config.metrics
    if metrics.mlflow is not None:
        fix = "remove it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        yield "metrics.mlflow.tracking_uri", metrics.mlflow.tracking_uri, fix
    if metrics.opentelemetry is not None:
        fix = "remove it, and set OTEL_EXPORTER_OTLP_HEADERS in the environment"
        yield "metrics.opentelemetry.endpoint", metrics.opentelemetry.endpoint, fix


def _split(address: str) -> tuple[str, str] | None:
    """Return an address's scheme and host, with user and port; None where it is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return parts.scheme, parts.netloc


MIRROR_RULES: tuple[Rule, ...] = (addresses_hold_no_secret, the_collector_is_an_address)
