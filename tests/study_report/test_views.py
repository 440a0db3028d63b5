"""What stands beside the scores: curves over the clock, views, the paper's numbers, exposure, limits and history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.study.paper import the_paper
from megacode.study.study_file import load_study
from megacode.study_report.beside import counterpart
from megacode.study_report.document import report_document
from megacode.study_report.journeys import scores_in
from megacode.study_report.limits import _listed
from megacode.study_report.shapes import StudyReport
from megacode.study_report.tasks import read_facts, title_of
from tests.study_report.conftest import Make, tiny_study

STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"


def validations(report: StudyReport, arm: str, seed: int) -> list[dict[str, Any]]:
    """Return the validations of the run that holds an arm's end."""
    (model,) = [one for one in report["models"] if (one["arm"], one["seed"]) == (arm, seed)]
    lines = (Path(str(model["run"])) / "metrics.jsonl").read_text().splitlines()
    return [line for text in lines if (line := json.loads(text))["kind"] == "validation"]


def test_the_paper_s_gains_are_computed_from_its_table(small_report: StudyReport) -> None:
    rows = {(row["arm"], row["baseline"], row["metric"]): row for row in small_report["paper"]}
    gain = rows["balanced-to-text", "text-only", "mean/reasoning"]
    assert gain["relative"] == pytest.approx(0.0816, abs=5e-5)
    assert (gain["points"], gain["note"]) == (4.0, "")
    # With the cooldown on both sides little is left, and knowledge gets worse.
    pair = ("balanced-to-text+cooldown", "text-only+cooldown")
    assert rows[(*pair, "mean/reasoning")]["relative"] == pytest.approx(0.0148, abs=5e-5)
    assert rows[(*pair, "mean/knowledge")]["relative"] == pytest.approx(-0.0180, abs=5e-5)
    stated = rows["balanced-only", "text-only", "mean/reasoning"]
    assert stated["relative"] == pytest.approx(0.0571, abs=5e-5)
    assert stated["note"] == "its text says +3.2 %, its table gives +5.7 %"
    # 4.8 points against 0.4: no percentage.
    code = rows["balanced-to-text", "text-only", "mean/code"]
    assert (code["relative"], code["stated"]) == (None, 11.0)
    assert code["note"].startswith("no percentage: the baseline has 0.4 points")
    assert rows["code-50", "text-only", "mean/nl"]["paper_arm"] == "balanced-to-text, initial"
    assert "by 1.5 %" in " ".join(small_report["paper_notes"]) or "1.5 % better" in " ".join(
        small_report["paper_notes"]
    )


def test_every_named_arm_of_the_paper_s_table_is_one_of_the_example(tmp_path: Path) -> None:
    study = load_study(STUDIES / "to_code.yaml")
    assert set(the_paper().table) <= set(study.arms)
    assert {counterpart(study, arm) for arm in study.arms} - {None} == set(the_paper().table)


def test_an_arm_may_name_its_counterpart_and_only_one_that_exists(make: Make, tmp_path: Path) -> None:
    arms = {
        "base": {"phases": ["text"], "paper": "text-only"},
        "half": {"phases": ["balanced"], "paper": "balanced-only"},
    }
    report = report_document(make(1, arms=arms))
    assert {(row["arm"], row["paper_arm"]) for row in report["paper"]} == {("half", "balanced-only")}
    assert len(report["paper"]) == 5
    arms["half"]["paper"] = "balanced-olny"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(tiny_study(1, arms=arms)))
    with pytest.raises(ConfigError, match="the paper has no arm 'balanced-olny'") as caught:
        load_study(tmp_path / "wrong.yaml")
    assert "balanced-only" in caught.value.problems[0].fix
    assert caught.value.problems[0].where == "wrong.yaml: arms.half.paper"


def test_loss_over_the_clock_is_put_together_from_the_runs_of_an_arm(small_report: StudyReport) -> None:
    curves = {(c["arm"], c["seed"], c["source"]): c for c in small_report["loss_by_source"]}
    assert len(curves) == 13 * 3 * 3
    one = curves["balanced-to-text+plain", 2, "code"]
    assert one["borders"] == [102_400, 204_800, 225_280]
    assert one["tokens"] == sorted(set(one["tokens"]))
    assert (one["tokens"][0], one["tokens"][-1]) == (10_240, 225_280)
    # Its last stretch lies in its own run, its trunk in that of other arms.
    own = {line["consumed_samples"] * 64: line["loss_by_source"]["code"]
           for line in validations(small_report, "balanced-to-text+plain", 2)}  # fmt: skip
    assert min(own) > 204_800
    assert dict(zip(one["tokens"], one["loss"], strict=True)).items() >= own.items()
    shared = curves["balanced-to-text", 2, "code"]
    assert one["loss"][: len(shared["loss"])] == shared["loss"]


def test_forgetting_is_the_loss_at_a_phase_s_end_minus_the_best_before_it(small_report: StudyReport) -> None:
    rows = {(r["arm"], r["phase"], r["source"]): r for r in small_report["forgetting"]}
    row = rows["code-to-text", "mostly-text", "code"]
    curves = [c for c in small_report["loss_by_source"] if (c["arm"], c["source"]) == ("code-to-text", "code")]
    assert len(curves) == 3
    for curve in curves:
        pairs = list(zip(curve["tokens"], curve["loss"], strict=True))
        best = min(loss for tokens, loss in pairs if tokens <= 102_400)
        assert row["by_seed"][str(curve["seed"])] == pytest.approx(pairs[-1][1] - best)
    assert row["value"] == pytest.approx(sum(row["by_seed"].values()) / 3)
    assert ("text-only", "text", "code") not in rows  # nothing comes before a first phase


def test_a_waterfall_has_the_scores_of_each_phase_end(small_report: StudyReport) -> None:
    arms = {one["arm"]: one["steps"] for one in small_report["waterfall"]}
    steps = arms["balanced-to-text+cooldown"]
    assert [(step["phase"], step["tokens"]) for step in steps] == [
        ("balanced", 102_400), ("mostly-text", 204_800), ("cooldown", 225_280),
    ]  # fmt: skip
    last = {row["metric"]: row for row in small_report["scores"] if row["arm"] == "balanced-to-text+cooldown"}
    first = {row["metric"]: row for row in small_report["scores"] if row["arm"] == "code-50"}
    assert len(last) > 20
    for metric, row in last.items():
        assert steps[-1]["values"][metric] == pytest.approx(row["value"])
        assert steps[0]["values"][metric] == pytest.approx(first[metric]["value"])
    assert "late" not in arms  # nothing was scored on its way
    assert scores_in({"scores": {"a": {"acc": 1, "acc_stderr": 0.1}}, "means": {"b": {"score": None}}}) == {"a/acc": 1}


def test_a_proportion_curve_has_arms_that_differ_in_one_share(small_report: StudyReport) -> None:
    (curve,) = small_report["proportion"]
    assert (curve["rest"], curve["of"]) == ("text", ["code", "markup"])
    assert [(p["arm"], round(p["share"], 3)) for p in curve["points"]] == [
        ("code-0", 0.0), ("code-25", 0.25), ("code-50", 0.5), ("code-100", 1.0),
    ]  # fmt: skip


def test_a_pareto_joins_an_arm_with_its_cooldown(small_report: StudyReport) -> None:
    (pareto,) = small_report["pareto"]
    assert (pareto["x"], pareto["y"]) == ("mean/nl", "mean/code")
    assert ["balanced-to-text", "balanced-to-text+cooldown"] in pareto["arrows"]
    assert ["balanced-to-text", "code-to-text"] not in pareto["arrows"]


def test_without_the_paper_s_means_the_axes_are_bits_per_byte_of_two_sources(make: Make) -> None:
    from tests.study_report.made_suites import held_out_suite

    suite = held_out_suite(["text", "code", "markup"], 30)
    study = make(2, {"suites": [suite]}, suites=["heldout"], compare={"primary": ["mean/bits_per_byte"]})
    report = report_document(study)
    (pareto,) = report["pareto"]
    assert (pareto["x"], pareto["y"]) == ("heldout_text/bits_per_byte", "heldout_code/bits_per_byte")
    assert {row["unit"] for row in report["metrics"]} == {"bits per byte"}
    assert all(row["higher_is_better"] is False for row in report["comparisons"])
    (half,) = [row for row in report["headlines"] if row["arm"] == "half"]
    assert half["metric"] == "mean/bits_per_byte"


def test_exposure_and_proofs_are_those_of_the_plan(small_report: StudyReport) -> None:
    rows = {(row["arm"], row["source"]): row for row in small_report["exposure"]}
    late, early = rows["late", "code"], rows["balanced-to-text", "code"]
    assert late["samples"] == early["samples"] == sum(late["by_phase"].values())
    assert late["by_phase"] == {"mostly-text": 128, "balanced": 640}
    assert late["mean_age"] < early["mean_age"]
    assert late["passes"] == pytest.approx(sum(late["passes_by_phase"].values()))
    (match,) = small_report["match"]
    assert match["equal"]
    assert sum(row["rate_share"] for (arm, _), row in rows.items() if arm == "late") == pytest.approx(1)


def test_gain_stands_beside_the_flops_of_an_arm_alone(small_report: StudyReport) -> None:
    rows = {row["arm"]: row for row in small_report["gain_per_flop"]}
    assert rows["text-only"]["difference"] is None
    assert rows["balanced-to-text+cooldown"]["flops"] == pytest.approx(2.2 * rows["code-50"]["flops"])
    (row,) = [r for r in small_report["comparisons"]
              if (r["arm"], r["metric"], r["baseline"]) == ("late", "mean/total", "text-only")]  # fmt: skip
    assert rows["late"]["difference"] == row["difference"]


def test_contamination_is_listed_by_arm(small_report: StudyReport) -> None:
    rows = {(row["arm"], row["task"]): row for row in small_report["contamination"]}
    assert rows["late", "hellaswag"] == {
        "arm": "late", "task": "hellaswag", "hits": 20, "items": 1004, "share_checked": 1.0,
    }  # fmt: skip
    assert any("2.0 % of a task's items" in line for line in small_report["limits"])


def test_limits_say_what_is_confounded_and_how_small_all_is(small_report: StudyReport) -> None:
    text = " ".join(small_report["limits"])
    assert "148k parameters" in text
    assert "only where it is proven (balanced-to-text, late, uniform)" in text
    assert "Arms of one trunk share its luck" in text
    assert "BoolQ, SocialIQA, WinoGrande hardly rank corpora" in text
    assert _listed([str(n) for n in range(8)]) == "0, 1, 2, 3, 4, 5 and 2 more"


def test_tasks_have_names_and_published_reliability(small_report: StudyReport) -> None:
    rows = {row["metric"]: row for row in small_report["metrics"]}
    assert rows["hellaswag/acc"]["title"] == "HellaSwag, accuracy"
    assert rows["hellaswag/acc"]["reliability"]["decision_accuracy"]["300M"] == 0.83
    assert rows["mean/reasoning"]["chance"] == pytest.approx(0.356, abs=5e-4)
    assert rows["mean/nl"]["reliability"] is None
    assert rows["mean/knowledge"]["chance"] is None
    assert title_of("mean/bits_per_byte") == "mean bits per byte"
    assert title_of("something/acc_norm,none") == "something, accuracy by length"
    assert rows["mean/total"]["signal_to_noise"] > 1


def test_later_findings_have_a_source(small_report: StudyReport) -> None:
    assert len(small_report["later_findings"]) == len(read_facts("later_findings")) == 17
    assert all(row["source"] and row["numbers"] for row in small_report["later_findings"])


def test_what_changed_after_the_first_score_is_shown(make: Make) -> None:
    study = make(1)
    assert report_document(study)["history"] is None
    now = load_study(study).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert now.pop("vary") == "both"  # as if a version without this key had run it
    before = {**now, "baseline": "half", "compare": {**now["compare"], "margin": 1.0}}
    lines = [
        {"time": number, "digest": "", "scored": scored, "document": document, "arms": {}, "tokens": {}}
        for number, scored, document in ((1.0, False, before), (2.0, True, now))
    ]
    (study.parent / "runs" / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report_document(study)["history"] == {
        "versions": 2,
        "changes": [
            {"key": "baseline", "before": "half", "now": "base"},
            {"key": "compare.margin", "before": "1.0", "now": None},
        ],
    }
