"""A plan says which mirrors would not work, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from megacode.config.config_file import validate
from megacode.planning.mirrors import mirror_problems

BASE = {
    "name": "small",
    "model": {
        "num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9,
    },
    "sources": {"text": {"path": "text", "tokens": 10**6}},
    "phases": [
        {"name": "a", "iterations": 1, "blend": {"text": 1}, "learning_rate": {"schedule": "constant", "peak": 1}},
    ],
    "train": {"seq_length": 8, "global_batch_size": 1},
}  # fmt: skip
ALL = {
    "wandb": {"project": "p"},
    "mlflow": {"tracking_uri": "sqlite:///here.db"},
    "opentelemetry": {"endpoint": "http://localhost:4318/v1/metrics"},
}


def problems(**metrics: Any) -> list[str]:
    return [
        f"{one.where}: {one.what}; {one.fix}" for one in mirror_problems(validate({**BASE, "metrics": metrics}, "test"))
    ]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_a_key_is_found_where_wandb_looks_for_it(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    assert len(problems(wandb={"project": "p"})) == 1
    assert problems(wandb={"project": "p", "mode": "offline"}) == []
    no_key.write_text("machine elsewhere login user password secret\n")
    assert len(problems(wandb={"project": "p"})) == 1
    no_key.write_text("machine api.wandb.ai login user password secret\n")
    assert problems(wandb={"project": "p"}) == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (found,) = problems(wandb={"project": "p"})
    assert "wandb.example.org" in found
    assert "secret" not in found
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert problems(wandb={"project": "p"}) == []


def test_each_library_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("wandb", "mlflow", "opentelemetry.exporter.otlp.proto.http", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, module, None)  # how Python marks a module that cannot be imported
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    found = problems(**ALL)
    assert len(found) == 4
    for text, extra in zip(found, ("wandb", "mlflow", "otel"), strict=False):
        assert f"pip install 'megacode[{extra}]'" in text
    assert "pip install sqlalchemy alembic" in found[3]


def test_an_old_wandb_and_a_folder_of_its_name_are_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    metadata = tmp_path / "old" / "wandb-0.30.2.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.30.2\n")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path / "old")
        (found,) = problems(wandb={"project": "p"})
        assert "wandb 0.30.2 is older than 0.31; pip install --upgrade 'megacode[wandb]'" in found
    # Where wandb has logged offline it leaves a folder `wandb`, which Python can import where it finds nothing else.
    (tmp_path / "here" / "wandb").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    (found,) = problems(wandb={"project": "p"})
    assert "wandb is not installed" in found


def test_a_run_without_mirrors_needs_nothing() -> None:
    assert problems() == []
    assert problems(wait="1m") == []


def test_paths_of_a_database_are_absolute_in_the_resolved_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = validate({**BASE, "metrics": ALL}, "test")
    assert config.metrics.mlflow is not None
    assert config.metrics.mlflow.tracking_uri == f"sqlite:///{tmp_path}/here.db"
    for address in ("https://host", "databricks"):
        kept = validate({**BASE, "metrics": {"mlflow": {"tracking_uri": address}}}, "test").metrics.mlflow
        assert kept is not None
        assert kept.tracking_uri == address
