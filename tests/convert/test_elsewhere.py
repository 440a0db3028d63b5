"""A run knows its exports wherever they lie, and text comes from a run as from an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, read_jsonl
from megacode.cli import app
from megacode.convert.hf import to_hf
from megacode.eval.generate import model_of
from megacode.report.run_record import read_run


@pytest.fixture
def run(runs, tmp_path) -> RunDir:
    """A run that may be changed."""
    place = RunDir(tmp_path / "a run")
    shutil.copytree(runs("cohere"), place.path)
    (place.path / "metrics.jsonl").write_text("")
    return place


def test_an_export_outside_of_the_run_is_noted_there(run, out) -> None:
    report = to_hf(run.path, out)
    (line,) = read_jsonl(run.exports)
    assert line["directory"] == str(out)
    assert line["iteration"] == 3
    assert line["parity"] == json.loads(json.dumps(report.document()))
    (export,) = read_run(run.path).exports
    assert (export["iteration"], export["directory"]) == (3, str(out))


def test_an_export_in_the_run_needs_no_note(run) -> None:
    to_hf(run.path, run.hf / "iter_0000003")
    assert not run.exports.exists()
    assert [export["directory"] for export in read_run(run.path).exports] == ["iter_0000003"]


def test_a_run_where_nothing_may_be_written_does_not_lose_the_export(run, out, caplog) -> None:
    run.exports.mkdir()
    to_hf(run.path, out)
    assert (out / "config.json").exists()
    assert "the run's report will not show it" in caplog.text


def test_a_run_writes_through_its_newest_checkpoint_which_is_exported_once(run) -> None:
    arguments = ["generate", str(run.path), "--prompt", "def", "--max-new-tokens", "5", "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert document["model"] == str(run.hf / "iter_0000003")
    written = (run.hf / "iter_0000003" / "megacode.json").stat().st_mtime_ns
    assert json.loads(CliRunner().invoke(app, arguments).stdout) == document
    assert (run.hf / "iter_0000003" / "megacode.json").stat().st_mtime_ns == written


def test_an_export_of_other_weights_is_not_taken_for_the_checkpoints(run) -> None:
    export = model_of(run.path)
    card = json.loads((export / "megacode.json").read_text())
    seal = card["checkpoint_seal"]
    (export / "megacode.json").write_text(json.dumps({**card, "checkpoint_seal": "other"}))
    assert json.loads((model_of(run.path) / "megacode.json").read_text())["checkpoint_seal"] == seal
    (export / "megacode.json").write_text(json.dumps({"checkpoint": "of another run", "checkpoint_seal": "x"}))
    with pytest.raises(CheckpointError, match="does not contain an export of"):
        model_of(run.path)


def test_where_no_export_can_be_written_it_is_said_how(run) -> None:
    Path(run.hf).write_text("in the way")
    with pytest.raises(CheckpointError, match="the export cannot be written") as refusal:
        model_of(run.path)
    assert "megacode convert to-hf" in str(refusal.value)
