"""Several runs on one page."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from megacode.base.errors import ConfigError
from megacode.base.files import read_jsonl
from megacode.cli import app
from megacode.report import several_runs
from megacode.report.page import write_report
from megacode.report.run_record import read_run
from megacode.report.series import slots, total_shares


@pytest.fixture
def runs(build_run, tmp_path):
    """Two runs; the second has another seed, no `markup` in its first phase's blend, and is not done."""
    first, second = build_run(tmp_path / "a", name="first"), build_run(tmp_path / "b", name="second", limit=300)
    config = yaml.safe_load((second / "run.yaml").read_text())
    config["seed"] = 7
    del config["phases"][0]["blend"]["markup"]
    (second / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return [first, second]


def test_each_source_has_a_chart_with_a_line_a_run(runs):
    page = several_runs.page([read_run(run) for run in runs])
    assert [figure.title for figure in page["losses"]] == ["Loss on text", "Loss on code", "Loss on markup"]
    for figure in page["losses"]:
        assert [entry.label for entry in figure.legend] == ["first", "second", "held out"]
        assert figure.drawings[0].count('class="line s0"') == 2  # over tokens, and over FLOPs
        assert figure.drawings[0].count('class="line s1"') == 2


def test_validation_is_that_of_the_runs(runs):
    legend = several_runs.page([read_run(run) for run in runs])["validation"].legend
    for run, entry in zip(runs, legend, strict=True):
        last = [line for line in read_jsonl(run / "metrics.jsonl") if line["kind"] == "validation"][-1]
        assert entry.final == f"{last['loss']:.3f}"
    assert legend[1].note == "at 2.46M tokens"


def test_scores_stand_side_by_side_with_intervals_and_overlap(runs):
    file = runs[1] / "eval/demo@iter_0000420.json"
    document = json.loads(file.read_text())
    document["scores"]["demo_endings_text"]["acc"] = 0.5
    file.write_text(json.dumps(document))
    found = several_runs.score_table(several_runs.named([read_run(run) for run in runs]))
    row = next(row for group in found["groups"] for row in group["rows"] if row["task"] == "demo_endings_text")
    assert row["cells"] == [
        {"value": "45.0", "error": "± 5.9", "overlap": "13 of 80"},
        {"value": "50.0", "error": "± 5.9", "overlap": "13 of 80"},
    ]
    assert row["remark"] == ""


def test_scores_on_other_questions_say_so(runs):
    for number, run in enumerate(runs):
        file = run / "eval/demo@iter_0000420.json"
        document = json.loads(file.read_text())
        document["tasks"]["demo_bits_text"]["questions_sha256"] = str(number)
        file.write_text(json.dumps(document))
    found = several_runs.score_table(several_runs.named([read_run(run) for run in runs]))
    remarks = {row["task"]: row["remark"] for group in found["groups"] for row in group["rows"]}
    assert remarks["demo_bits_text"] == "other questions"
    assert remarks["demo_bits_code"] == ""


def test_differences_of_configs_and_data_are_listed_and_nothing_else(runs):
    plan = json.loads((runs[1] / "plan.json").read_text())
    plan["sources"]["code"]["identity"] = "f" * 64
    (runs[1] / "plan.json").write_text(json.dumps(plan))
    rows = several_runs.config_rows(several_runs.named([read_run(run) for run in runs]))
    assert {row["key"]: row["cells"] for row in rows} == {
        "seed": ["1234", "7"],
        "phases.balanced.blend.markup": ["0.1", "—"],
        "content of code": ["c" * 12, "f" * 12],
    }


def test_runs_of_the_same_name_are_told_apart_by_their_directories(build_run, tmp_path):
    records = [read_run(build_run(tmp_path / name)) for name in ("a", "b")]
    assert [run.label for run in several_runs.named(records)] == [str(record.path) for record in records]


def test_the_page_is_whole_and_of_its_own(runs, tmp_path):
    html = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    for part in ('id="losses"', 'id="validation-losses"', 'id="scores"', 'id="read"', 'id="config"', "first, second"):
        assert part in html
    assert "StrictUndefined" not in html
    assert "src=" not in html


def test_a_run_without_scores_or_plan_has_its_place(runs, tmp_path):
    (runs[1] / "plan.json").unlink()
    for file in (runs[1] / "eval").glob("*.json"):
        file.unlink()
    html = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    assert "not every plan has its FLOPs" in html
    assert "no scores" in html


def test_a_run_that_has_not_begun_has_its_place(runs, tmp_path):
    (tmp_path / "new").mkdir()
    (runs[0] / "run.yaml").rename(tmp_path / "new" / "run.yaml")
    html = write_report([tmp_path / "new", runs[1]], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "waiting" in html
    assert html.count("No run has measured it yet.") == 0


def test_a_run_named_twice_is_refused(runs):
    with pytest.raises(ConfigError, match="listed twice"):
        write_report([runs[0], runs[1], runs[0].parent / "." / runs[0].name])


def test_the_command_takes_several_runs_and_writes_here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["report", *map(str, runs)])
    assert result.exit_code == 0
    assert result.output.strip() == "report.html"
    assert (tmp_path / "report.html").is_file()


def test_a_branch_has_read_what_its_trunk_read(runs):
    """The second run's metrics begin in the middle, as those of a branch do."""
    whole = read_run(runs[0])
    file = runs[1] / "metrics.jsonl"
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line.get("iteration", 0) > 210))
    branch = read_run(runs[1])
    assert branch.train[0]["iteration"] == 211
    assert branch.before == whole.tokens(whole.train[209])
    assert slots(branch)[0].start == branch.before
    assert slots(whole)[0].start == 0
    read = several_runs.page([whole, branch])["read"]
    assert {row["source"] for row in read} == {"text", "code", "markup"}
    for row in read:
        assert row["cells"][0] == row["cells"][1]
    shares = [float(row["cells"][1]["share"].split()[0].rstrip("%")) for row in read]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert total_shares(branch) == total_shares(whole)
