"""Who teaches whom, arm by arm: put together from the alignment probes of a study's runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacode.study_report.document import report_document
from megacode.study_report.markdown import render_markdown
from megacode.study_report.page import render
from megacode.study_report.shapes import StudyReport
from tests.alignment_records import alignment_record
from tests.study_report.conftest import Make
from tests.study_report.pages import StrictPage

SOURCES = ("text", "code", "markup")


def add_alignments(study: Path) -> None:
    """Add a record of alignment wherever a run of a study has validated."""
    for number, file in enumerate(sorted((study.parent / "runs").glob("*/metrics.jsonl"))):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        places = [
            {"iteration": line["iteration"], "consumed": line["consumed_samples"], "phase": line["phase"]}
            for line in lines if line["kind"] == "validation"
        ]  # fmt: skip
        records = [alignment_record(SOURCES, {("code", "text"): 0.4}, seed=number, **place) for place in places]
        with file.open("a") as handle:
            handle.writelines(json.dumps(record) + "\n" for record in records)


def shares(report: StudyReport, arm: str, seed: int) -> dict[int, float]:
    """Return by tokens how much of a step on text one on code is worth, from the run that holds an arm's end."""
    (model,) = [one for one in report["models"] if (one["arm"], one["seed"]) == (arm, seed)]
    lines = [json.loads(line) for line in (Path(str(model["run"])) / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "alignment"]
    return {line["consumed_samples"] * 64: line["transfer"][1][0] / line["transfer"][0][0] for line in found}


def test_transfer_is_put_together_from_the_runs_of_an_arm_and_averaged_by_phase(make: Make) -> None:
    study = make(2)
    assert report_document(study)["transfer"] == []
    add_alignments(study)
    report = report_document(study, level=0.9)
    curves = {(c["arm"], c["seed"], c["step"], c["loss"]): c for c in report["transfer"]}
    losses = next(c for c in report["loss_by_source"] if (c["arm"], c["seed"]) == ("cooled", 2))
    one = curves["cooled", 2, "code", "text"]
    assert (one["borders"], one["tokens"]) == (losses["borders"], losses["tokens"])
    # Every pair of two sources has its curve, and no source one with itself.
    pairs = {(step, loss) for step in SOURCES for loss in SOURCES if step != loss}
    assert {key[2:] for key in curves if key[:2] == ("cooled", 2)} == pairs
    means = {}
    for seed in (1, 2):
        curve, own = curves["cooled", seed, "code", "text"], shares(report, "cooled", seed)
        inside = {t: share for t, share in zip(curve["tokens"], curve["share"], strict=True) if t > curve["borders"][0]}
        assert inside == pytest.approx({tokens: own[tokens] for tokens in inside})
        means[str(seed)] = sum(inside.values()) / len(inside)
    rows = {(r["arm"], r["phase"], r["step"], r["loss"]): r for r in report["transfer_by_phase"]}
    row = rows["cooled", "cooldown", "code", "text"]
    assert row["by_seed"] == pytest.approx(means)
    assert row["value"] == pytest.approx(sum(means.values()) / 2)
    # Two seeds: t with one degree of freedom, times half their distance.
    half = 6.3138 * abs(means["1"] - means["2"]) / 2
    assert (row["low"], row["high"]) == pytest.approx((row["value"] - half, row["value"] + half), rel=1e-3)


def test_one_seed_has_no_interval(make: Make) -> None:
    study = make(1)
    add_alignments(study)
    rows = report_document(study)["transfer_by_phase"]
    assert {(row["low"], row["high"]) for row in rows} == {(None, None)}


def test_transfer_is_on_the_page_and_in_markdown(make: Make) -> None:
    study = make(2)
    add_alignments(study)
    report = report_document(study)
    page = StrictPage(render(report))
    assert {"transfer", "transfer-0-0"} <= page.values("id")
    row = next(r for r in report["transfer_by_phase"] if (r["step"], r["loss"]) == ("code", "text"))
    said = f"{row['value']:+.0%} ± {100 * (row['high'] - row['value']):.0f}"
    assert said in page.text
    markdown = render_markdown(report)
    assert f"| {row['arm']} | {row['phase']} | code to text | {said} |" in markdown
