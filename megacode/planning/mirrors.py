"""Whether the mirrors that a run's config names can work here. Imports none of their libraries."""

from __future__ import annotations

import importlib.metadata
import netrc
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from megacode.base.errors import Problem
from megacode.config.run import RunConfig

# By mirror: the module that must be there, what people call it, and megacode's extra that brings it.
_LIBRARIES = {
    "wandb": ("wandb", "wandb", "wandb"),
    "mlflow": ("mlflow", "MLflow", "mlflow"),
    "opentelemetry": ("opentelemetry.exporter.otlp.proto.http", "OpenTelemetry's OTLP exporter", "otel"),
}
_OLDEST_WANDB = (0, 31)  # the first that writes rows to its file as they come, instead of by blocks of 32 KiB
_WANDB = "https://api.wandb.ai"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def mirror_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield why mirrors of a run would not work: a library or a key is missing."""
    for name in config.metrics.mirrors:
        module, called, extra = _LIBRARIES[name]
        if not _present(module):
            fix = f"pip install 'megacode[{extra}]', or remove metrics.{name}"
            yield Problem(f"{called} is not installed", f"metrics.{name}", fix)
    wandb, mlflow = config.metrics.wandb, config.metrics.mlflow
    if wandb is not None and _present("wandb") and (old := _too_old_wandb()):
        message = f"wandb {old} is older than {'.'.join(map(str, _OLDEST_WANDB))}"
        yield Problem(message, "metrics.wandb", "pip install --upgrade 'megacode[wandb]'")
    if wandb is not None and wandb.mode == "online" and not _has_key():
        message = f"there is no key for {_wandb_host()}: neither WANDB_API_KEY nor an entry in {_netrc_path()}"
        yield Problem(
            message, "metrics.wandb", "run `wandb login`, set WANDB_API_KEY, or set metrics.wandb.mode=offline"
        )
    if mlflow is not None and mlflow.tracking_uri.startswith(_DATABASES) and not _present("sqlalchemy", "alembic"):
        fix = "pip install sqlalchemy alembic, or give the address of a tracking server"
        yield Problem("MLflow writes into a database with SQLAlchemy", "metrics.mlflow.tracking_uri", fix)


def _present(*modules: str) -> bool:
    try:
        # A folder of that name where the user stands, as wandb leaves one, counts as a module without an origin.
        return all((spec := find_spec(module)) is not None and spec.origin is not None for module in modules)
    except ModuleNotFoundError:  # a package above it is missing
        return False


def _too_old_wandb() -> str:
    """Return the version of wandb if it lacks what its mirror needs, else nothing."""
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("wandb")
        # Two numbers decide: a candidate such as 0.31.0rc1 counts as 0.31.
        return version if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST_WANDB else ""
    return ""


def _wandb_host() -> str:
    return urlsplit(os.environ.get("WANDB_BASE_URL") or _WANDB).netloc


def _netrc_path() -> Path:
    """Return the file that wandb reads: NETRC, else ~/.netrc or ~/_netrc."""
    chosen = [Path(os.environ[name]) for name in ("NETRC",) if os.environ.get(name)]
    paths = chosen or [Path.home() / ".netrc", Path.home() / "_netrc"]
    return next((path for path in paths if path.exists()), paths[0])


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(_netrc_path()).authenticators(_wandb_host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False
