"""`megacode study next`: the planted optimum is proposed, ready to paste, and every reason against one is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from megacode.base.errors import ConfigError, DataError
from megacode.cli import app
from megacode.mixture.gates import ProposalError
from megacode.planning.run_plan import make_plan
from megacode.study_report.next_arms import check_proposed, next_mixture
from megacode.study_report.next_points import find_points
from megacode.study_report.next_target import Wanted, read_budget, read_joins, read_weights
from tests.house.test_eighty_columns import assert_whole
from tests.limits import HANG
from tests.statistics.synthetic import write_scores
from tests.study_report.mixtures import (
    CODE,
    CONSTANT,
    TEXT,
    Document,
    blends_of_two,
    grid_of,
    planted,
    score,
    seal_at,
    study_of,
    write_run,
    write_study,
)


def reasons(document: Mapping[str, Any]) -> dict[str, str]:
    return {one["reason"]: one["what"] for one in document["refusals"]}


def of_kind(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    (one,) = (row for row in document["proposals"] if row["kind"] == kind)
    return dict(one)


def sealed(path: Path) -> Callable[..., None]:
    """Return a change of a score file that makes it one of the checkpoint that lies beside it."""

    def change(document: dict[str, Any], *_: Any) -> None:
        document["model"]["megacode"]["checkpoint_seal"] = seal_at(path)

    return change


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worked example as a study of six arms and two seeds."""
    return write_study(tmp_path_factory.mktemp("two"), study_of(blends_of_two()))


def test_the_planted_optimum_is_proposed_with_what_it_will_score(two: Path) -> None:
    document = next_mixture(two, Wanted(pull=0.0))
    assert document["refusals"] == []
    law = of_kind(document, "law")
    assert law["blend"]["code"] == pytest.approx(0.5996, abs=0.01)
    assert sum(law["blend"].values()) == pytest.approx(1)
    assert law["shares"]["code"]["low"] < 0.5996 < law["shares"]["code"]["high"]
    truth = planted(law["blend"])
    for metric, task in ((TEXT, "text"), (CODE, "code")):
        one = law["predicted"][metric]
        assert one["low"] < truth[task] < one["high"]
        assert one["new"]["low"] < one["low"] < one["high"] < one["new"]["high"]
        assert one["seeds_alone"]["low"] < one["value"] < one["seeds_alone"]["high"]
    assert law["gain"]["low"] > 0
    assert law["nearest"] == {"arm": "mix-2", "distance": pytest.approx(abs(law["blend"]["code"] - 0.5))}
    best = of_kind(document, "best arm")
    assert (best["arm"], best["block"]) == ("mix-2", None)
    assert of_kind(document, "unimax")["blend"] == {"code": 0.5, "text": 0.5}
    assert json.loads(json.dumps(document)) == document


def test_the_block_is_ready_to_paste_and_its_arm_is_a_point_of_the_same_law(two: Path, tmp_path: Path) -> None:
    law = of_kind(next_mixture(two), "law")
    block, study = yaml.safe_load(law["block"]), yaml.safe_load(two.read_text())
    assert list(block["arms"]["next-law"]["forecast"]) == [TEXT, CODE]
    for section, added in block.items():
        study[section] |= added
    file = tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump(study))
    points = {point.name: point for point in find_points(grid_of(file))}
    assert points["next-law"].key == points["mix-0"].key
    shares = dict(zip(("code", "text"), points["next-law"].shares(["code", "text"]), strict=True))
    assert shares == pytest.approx(law["blend"], abs=1e-4)


def test_passes_are_those_of_the_target_and_caps_bind_there(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["set"]["sources"]["code"]["tokens"] = 200_000
    file = write_study(tmp_path, study)
    free = next_mixture(file, Wanted(budget=1_000_000))
    law = of_kind(free, "law")
    assert law["passes"]["code"] == pytest.approx(law["blend"]["code"] * 1_000_000 / 200_000)
    assert 0.9 < law["worth"]["code"] < 1
    assert any("the target reads 6.25 times the arms' tokens" in note for note in free["notes"])
    capped = next_mixture(file, Wanted(budget=1_600_000, max_passes=3.8))
    assert of_kind(capped, "unimax")["passes"]["code"] <= 3.8
    assert capped["sources"]["code"]["largest_share"] == pytest.approx(0.475)
    # Its share is at the cap, so there is nothing to be unsure about; the best arm within it is another one.
    assert of_kind(capped, "best arm")["arm"] == "mix-1"
    assert of_kind(capped, "law")["blend"]["code"] == pytest.approx(0.475)
    assert of_kind(capped, "law")["shares"] == {"code": None, "text": None}
    short = next_mixture(file, Wanted(budget=10_000_000))
    assert reasons(short)["passes"] == "the sources have 2.4M tokens left in 4 passes, and the target is 10M"
    assert [row["kind"] for row in short["proposals"]] == ["best arm"]
    assert of_kind(short, "best arm")["above_cap"] == ["code", "text"]


def test_a_source_s_own_cap_counts(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["set"]["sources"]["code"] |= {"tokens": 300_000, "max_epochs": 1}
    document = next_mixture(write_study(tmp_path, study), Wanted(budget=1_000_000))
    assert document["sources"]["code"]["largest_share"] == pytest.approx(0.3)
    assert of_kind(document, "unimax")["blend"]["code"] == pytest.approx(0.3)


def test_too_few_blends_are_refused_and_the_arms_that_would_help_are_named(tmp_path: Path) -> None:
    file = write_study(tmp_path, study_of(blends_of_two((0, 0.25, 0.5, 1))))
    document = next_mixture(file, Wanted(arms=2))
    assert reasons(document) == {
        "too few blends": "distinct blends of 2 sources that are scored: 4; a law needs 6, 3 for each source"
    }
    assert [row["kind"] for row in document["proposals"]] == ["best arm", "unimax", "natural"]
    assert all(row["predicted"] is None for row in document["proposals"])
    informative = document["informative"]
    assert informative["by"] == "usual laws"
    block = yaml.safe_load(informative["block"])
    assert list(block["arms"]) == ["inform-1", "inform-2"]
    # Asked for arms, the command has done what it was asked.
    check_proposed(document)
    with pytest.raises(ProposalError, match="distinct blends of 2 sources that are scored: 4"):
        check_proposed(next_mixture(file))


def test_sources_that_never_varied_apart_are_refused_by_name(tmp_path: Path) -> None:
    blends = [{"text": 1 - q, "code": 0.8 * q, "markup": 0.2 * q} for q in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    blends = [{name: round(share, 3) for name, share in blend.items() if share > 1e-9} for blend in blends]
    document = next_mixture(write_study(tmp_path, study_of(blends)))
    assert reasons(document)["unvaried"] == "code and markup were always 4 to 1 and cannot be told apart"
    assert document["targets"][0]["law"] is None


def test_joined_sources_count_as_one_and_are_spread_by_their_ratio(tmp_path: Path) -> None:
    shares = (0, 0.25, 0.5, 0.75, 0.9, 1)
    blends = [{"text": 1 - r, "code": 0.8 * r, "markup": 0.2 * r} for r in shares]
    blends = [{name: share for name, share in blend.items() if share} for blend in blends]
    blends += [{"code": 1.0}, {"text": 0.5, "notebooks": 0.5}]
    joined = lambda blend: planted({"code": blend.get("code", 0) + blend.get("markup", 0)})  # noqa: E731
    study = study_of(blends)
    study["set"]["sources"]["markup"]["tokens"] = 20_000
    file = write_study(tmp_path, study, joined)
    assert {"too few blends"} <= set(reasons(next_mixture(file)))
    document = next_mixture(file, Wanted(pull=0.0, sources=["text", "code", "markup"], join=[["code", "markup"]]))
    assert document["left_out"] == {
        "mix-6": "code and markup are read in another ratio than in other arms",
        "mix-7": "it reads notebooks",
    }
    law = of_kind(document, "law")
    assert set(law["shares"]) == {"code+markup", "text"}
    assert law["blend"]["code"] + law["blend"]["markup"] == pytest.approx(0.5996, abs=0.01)
    assert law["blend"]["code"] == pytest.approx(4 * law["blend"]["markup"])
    assert law["passes"]["markup"] == pytest.approx(law["blend"]["markup"] * 160_000 / 20_000)
    assert set(yaml.safe_load(law["block"])["phases"]["next-law"]["blend"]) == {"text", "code", "markup"}
    # One pass over markup, which is a fifth of the joined share: 20k of 160k tokens.
    capped = next_mixture(file, Wanted(max_passes=1, sources=["text", "code", "markup"], join=[["code", "markup"]]))
    assert of_kind(capped, "unimax")["blend"] == pytest.approx({"code": 0.4, "markup": 0.1, "text": 0.5})
    tight = Wanted(budget=320_000, max_passes=1, sources=["text", "code", "markup"], join=[["code", "markup"]])
    assert of_kind(next_mixture(file, tight), "unimax")["blend"]["markup"] == pytest.approx(0.0624, abs=2e-4)
    for wanted, said in ((Wanted(sources=["txt"]), "--source: no scored arm reads 'txt'"),
                         (Wanted(join=[["code", "mark"]]), "--join: no scored arm reads 'mark'"),
                         (Wanted(sources=["markup"]), "no scored arm is left")):  # fmt: skip
        with pytest.raises((ConfigError, DataError), match=said):
            next_mixture(file, wanted)


@pytest.mark.parametrize(
    ("texts", "said"),
    [(["code"], "'code' joins nothing"), (["code+"], "joins nothing"), (["a+b", "b+c"], "'b' stands in two groups")],
)
def test_joins_that_are_none_are_refused(texts: list[str], said: str) -> None:
    assert read_joins(["code + markup"]) == [["code", "markup"]]
    with pytest.raises(ConfigError, match=said):
        read_joins(texts)


def test_noise_is_refused(tmp_path: Path) -> None:
    flat = lambda blend: {"text": 2.0, "code": 1.0}  # noqa: E731
    document = next_mixture(write_study(tmp_path, study_of(blends_of_two()), flat, noise=0.05))
    assert "the law of code/bits_per_byte does not predict arms left out" in reasons(document)["badly predicted"]


def test_a_gain_that_is_not_clear_is_refused(tmp_path: Path) -> None:
    # An arm lies at the optimum already.
    file = write_study(tmp_path, study_of(blends_of_two((0, 0.25, 0.5, 0.6, 0.8, 1))))
    document = next_mixture(file, Wanted(pull=0.0))
    assert set(reasons(document)) == {"no clear gain"}
    assert "gain over the best arm, 'mix-3'" in reasons(document)["no clear gain"]
    assert document["refusals"][0]["fix"].startswith("take 'mix-3'")


def test_an_optimum_outside_of_the_arms_is_refused(tmp_path: Path) -> None:
    file = write_study(tmp_path, study_of(blends_of_two((0, 0.05, 0.1, 0.15, 0.2, 0.25))))
    document = next_mixture(file, Wanted(pull=0.0))
    assert "where arms have at most 25.0%" in reasons(document)["outside"]
    # UniMax is no blend of the law, and stays; what the law would predict of it is not shown.
    assert of_kind(document, "unimax")["predicted"] is None
    assert "forecast" not in of_kind(document, "unimax")["block"]


def test_points_that_are_not_comparable_are_left_out_with_the_reason(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    mixed = {"blend": {"text": 0.5, "code": 0.5}, "learning_rate": CONSTANT}
    study["phases"] |= {
        "short": {"iterations": 50, **mixed},
        "faster": {"iterations": 100, **mixed, "learning_rate": {**CONSTANT, "peak": 1e-3}},
    }
    study["arms"] |= {
        "two-phases": ["mix-0", "mix-5"],
        "short": ["short"],
        "faster": ["faster"],
        "wider": {"phases": ["mix-1"], "set": {"model.ffn_hidden_size": 256}},
        "other-data": {"phases": ["mix-1"], "set": {"sources.text.path": "data/other"}},
        "later": ["mix-2", "mix-1"],
    }
    file = write_study(tmp_path, study, skip=["later"])
    document = next_mixture(file)
    assert document["left_out"] == {
        "two-phases": "more than one stretch, or another trunk",
        "short": "80k tokens, not 160k",
        "faster": "another learning rate",
        "wider": "other settings: model.ffn_hidden_size",
        "other-data": "its text is other data",
        "later": "more than one stretch, or another trunk",
    }
    assert [point["name"] for point in document["points"]] == [f"mix-{number}" for number in range(6)]
    assert document["refusals"] == []
    alone = next_mixture(file, Wanted(like="wider"))
    assert [point["name"] for point in alone["points"]] == ["wider"]
    assert set(reasons(alone)) == {"too few blends", "not comparable", "unvaried"}
    said = reasons(alone)["not comparable"]
    assert said.startswith("arms that are no points of this law: mix-0 (other settings: model.ffn_hidden_size), ")
    assert said.endswith(" and 5 more")


def test_the_first_phase_of_a_longer_arm_is_a_point_if_it_is_scored(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["arms"]["mix-5"] = ["mix-5", "mix-0"]
    file = write_study(tmp_path, study, skip=["mix-5"])
    assert "too few blends" in reasons(next_mixture(file))
    cell = next(cell for cell in grid_of(file).cells if cell.arm == "mix-5")
    config = cell.plan.config
    first = config.model_copy(update={"phases": config.phases[:1]})
    write_run(replace(cell, plan=make_plan(first, allow_declared=True)), planted, 0.0)
    document = next_mixture(file)
    assert document["points"][-1]["name"] == "mix-5 of mix-5"
    assert document["refusals"] == []


def test_a_law_of_cooldowns_is_fitted_on_branches_of_one_trunk(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["phases"]["trunk"] = {"iterations": 100, "blend": {"text": 1}, "learning_rate": CONSTANT}
    for number in range(6):
        study["phases"][f"mix-{number}"]["iterations"] = 20
        study["phases"][f"mix-{number}"]["learning_rate"] = {"schedule": "linear", "final": 1e-6}
        study["arms"][f"mix-{number}"] = {"phases": ["trunk", f"mix-{number}"]}
    document = next_mixture(write_study(tmp_path, study))
    assert document["refusals"] == []
    law = of_kind(document, "law")
    assert yaml.safe_load(law["block"])["arms"]["next-law"]["phases"] == ["trunk", "next-law"]
    # 160k of text are read before.
    assert document["budget"] == 32_000
    assert law["passes"]["text"] == pytest.approx((160_000 + law["blend"]["text"] * 32_000) / 400_000)


def at_two_scales(**levels: Any) -> Document:
    study = study_of(blends_of_two())
    study["factors"] = {"scale": {"small": {}, "large": {"set": {"model.num_layers": 4}, **levels}}}
    return study


def test_another_scale_is_refused_with_the_decision_accuracy(tmp_path: Path) -> None:
    file = write_study(tmp_path, at_two_scales(only=["mix-0", "mix-1", "mix-2", "mix-5"]))
    document = next_mixture(file)
    assert (document["levels"], document["refusals"]) == ({"scale": "small"}, [])
    forecast = yaml.safe_load(of_kind(document, "law")["block"])["arms"]["next-law"]["forecast"]
    assert forecast[CODE]["at"] == ["small"]
    other = next_mixture(file, Wanted(target="large"))
    assert reasons(other) == {
        "another scale": "the law of small does not know the losses at large; 4 arms are scored at both, which order "
        "6 of 6 pairs alike (100%)"
    }
    assert set(reasons(next_mixture(file, Wanted(like="mix-0@large")))) == {"too few blends", "not comparable"}
    with pytest.raises(ConfigError, match=r"--for: there is no level 'larg'\n.*did you mean large\?"):
        next_mixture(file, Wanted(target="larg"))
    for score_file in (tmp_path / "runs").glob("*large*/eval/*.json"):
        score_file.unlink()
    assert (
        "fewer than two arms are scored at both" in reasons(next_mixture(file, Wanted(target="large")))["another scale"]
    )


def test_the_target_of_twins_is_the_full_run(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["factors"] = {"scale": {"proxy": {"twin": "1/4"}}}
    document = next_mixture(write_study(tmp_path, study))
    assert (document["tokens"], document["budget"]) == (40_000, 160_000)
    assert document["sources"]["code"]["tokens"] == 400_000
    law = of_kind(document, "law")
    assert law["passes"]["code"] == pytest.approx(law["blend"]["code"] * 0.4)


def test_settings_of_levels_for_the_replaced_phase_are_pointed_out(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["factors"] = {"scale": {"small": {"set": {f"phases.mix-{n}.iterations": 50 for n in range(6)}}}}
    law = of_kind(next_mixture(write_study(tmp_path, study)), "law")
    assert law["block_notes"] == [
        "factors.scale.small.set has phases.mix-0.iterations: add phases.next-law.iterations beside it"
    ]


def test_metrics_for_which_higher_is_better_are_turned_around(tmp_path: Path) -> None:
    file = write_study(tmp_path, study_of(blends_of_two(), suites=["heldout", "quiz"]))
    scores = lambda code: {"quiz": [0.9 - 0.4 * 2.718 ** (-4 * code) - 0.1 * 2.718 ** (2 * (code - 1))] * 4}  # noqa: E731
    for cell in grid_of(file).cells:
        run = tmp_path / "runs" / cell.plan.config.name / "eval"
        counts = cell.plan.schedule.phases[0].counts
        path = run / f"quiz@iter_{100:07d}.json"
        write_scores(path, scores(counts.get("code", 0) / 10_000), "acc", change=sealed(path))
    document = next_mixture(file, Wanted({"quiz/acc": 1.0}, pull=0.0))
    law = of_kind(document, "law") if not document["refusals"] else None
    # One law falls and then rises nowhere: the sum of two exponentials is not in its family.
    assert law is None or law["predicted"]["quiz/acc"]["value"] > 0
    best = document["points"][0]
    assert best["weighted_loss"] == pytest.approx(-best["scores"]["quiz/acc"])
    assert document["targets"][0]["higher_is_better"] is True


def test_a_mean_beside_its_own_parts_decides_alone_unless_weights_are_given(two: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(two.read_text())
    file = tmp_path / two.name
    file.write_text(yaml.safe_dump({**document, "compare": {"primary": ["mean/heldout", TEXT, CODE]}}))
    found = next_mixture(file, Wanted())
    assert [row["weight"] for row in found["targets"]] == [1, 0, 0]
    said = f"mean/heldout decides, and holds {TEXT} and {CODE}: --weights lets these count by themselves"
    assert found["notes"][0] == said
    own = next_mixture(file, Wanted({"mean/heldout": 1, TEXT: 1}))
    assert [row["weight"] for row in own["targets"]] == [0.5, 0.5]
    assert own["notes"][0] == f"mean/heldout holds {TEXT}: their tasks count more than once"


def test_weights_choose_what_counts_and_weightless_metrics_are_predicted_beside(two: Path) -> None:
    document = next_mixture(two, Wanted({TEXT: 1.0, CODE: 3.0}, pull=0.0))
    assert [row["weight"] for row in document["targets"]] == [0.25, 0.75]
    equal = of_kind(next_mixture(two, Wanted(pull=0.0)), "law")
    assert of_kind(document, "law")["blend"]["code"] > equal["blend"]["code"] + 0.1
    # All for text: the best arm is the one without code.
    document = next_mixture(two, Wanted({TEXT: 1.0, CODE: 0.0}))
    assert of_kind(document, "best arm")["arm"] == "mix-0"
    assert set(of_kind(document, "best arm")["predicted"]) == {TEXT, CODE}
    assert read_weights(["a", "b"], None) == {"a": 1, "b": 1}
    assert read_weights(["a"], "b=2, c=0.5") == {"a": 1, "b": 2, "c": 0.5}
    assert (read_budget("200B"), read_budget(None)) == (200_000_000_000, None)


@pytest.mark.parametrize("text", ["a", "a=x", "=1", "a=-1", "a=inf", "a=nan"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a weight"):
        read_weights([], text)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Wanted({"cod/bits_per_byte": 1.0}),
            r"--metric: the scores have no 'cod/bits_per_byte'\n.*did you mean code/b",
        ),
        (Wanted({TEXT: 0.0}), "--weights: all weights are 0"),
        (Wanted(like="mix-9"), r"--like: there is no arm 'mix-9'\n.*did you mean mix-"),
    ],
)
def test_wrong_arguments_are_refused(two: Path, wanted: Wanted, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        next_mixture(two, wanted)


def test_a_budget_that_is_none_is_refused() -> None:
    for text in ("many", "0"):
        with pytest.raises(ConfigError, match="--budget: "):
            read_budget(text)


def test_a_study_without_scores_or_metrics_is_refused(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    study["phases"]["short"] = {"iterations": 50, "blend": {"text": 1}, "learning_rate": CONSTANT}
    study["arms"]["short"] = ["short"]
    file = write_study(tmp_path, study, skip=list(study["arms"]))
    with pytest.raises(DataError, match=r"blends.yaml: no arm of the study is scored"):
        next_mixture(file)
    write_run(grid_of(file).cells[0], planted, 0.0)
    with pytest.raises(DataError, match="no arm that is like 'short' is scored"):
        next_mixture(file, Wanted(like="short"))
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "compare": {}}))
    with pytest.raises(ConfigError, match=r"no metric is named\n.*mean/heldout, text/bits_per_byte"):
        next_mixture(file)


def test_a_mean_of_both_kinds_of_metrics_is_refused(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    file = write_study(tmp_path, study, skip=list(study["arms"]))

    def both(document: dict[str, Any], _: Any) -> None:
        document["mean_parts"] = {"both": {"a": "acc", "b": "acc"}}
        document["tasks"]["b"]["higher_is_better"] = {"acc": False}
        sealed(path)(document)

    path = write_run(grid_of(file).cells[0], planted, 0.0)
    write_scores(path, {"a": [1.0, 0.0], "b": [1.0, 1.0]}, "acc", change=both)
    with pytest.raises(ConfigError, match="mean/both is a mean of metrics for which higher"):
        next_mixture(file, Wanted({"mean/both": 1.0}))


def test_scores_of_a_former_checkpoint_do_not_count(tmp_path: Path) -> None:
    file = write_study(tmp_path, study_of(blends_of_two()))
    for path in (tmp_path / "runs").glob("blends-mix-5-*/eval/*.json"):
        document = json.loads(path.read_text())
        document["model"]["megacode"]["checkpoint_seal"] = "of another checkpoint"
        path.write_text(json.dumps(document))
    document = next_mixture(file)
    assert document["left_out"] == {"mix-5": "not scored"}
    assert "too few blends" in reasons(document)


def test_a_metric_of_two_suites_is_told_apart_by_the_suite(tmp_path: Path) -> None:
    study = study_of(blends_of_two())
    file = write_study(tmp_path, {**study, "suites": ["second", "heldout"]})
    for path in sorted((tmp_path / "runs").glob("*/eval/heldout@*0.json")):
        score(path.with_name(path.name.replace("heldout", "second")), {"text": 1.0})
    document = next_mixture(file, Wanted({"heldout.text/bits_per_byte": 1.0, TEXT: 0.0}))
    assert [row["suite"] for row in document["targets"]] == ["heldout", "second"]
    assert document["points"][0]["scores"][TEXT] == pytest.approx(1.0)
    # Means are named as in the report.
    (target,) = next_mixture(file, Wanted({"mean/heldout.heldout": 1.0}))["targets"]
    assert target["suite"] == "heldout"


def test_the_command_prints_one_document_and_ends_with_3_where_it_refuses(two: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["study", "next", str(two), "--json", "--budget", "1M", "--weights", f"{CODE}=0.5,{TEXT}=0.5"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["budget"] == 1_000_000
    file = write_study(tmp_path, study_of(blends_of_two((0, 0.5, 1))))
    program = (
        "import sys; sys.argv = ['megacode', 'study', 'next', sys.argv[1], '--json']\n"
        "from megacode.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'lm_eval') if m in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("No proposal: blends.yaml: distinct blends of 2 sources that are scored: 3")
    assert ended.stderr.endswith("[]\n")
    assert [one["reason"] for one in json.loads(ended.stdout)["refusals"]] == ["too few blends"]


def test_the_table_is_whole_at_80_columns(two: Path) -> None:
    from megacode.study_report.next_tables import render_next

    for wanted in (Wanted(budget=1_000_000), Wanted(arms=3, like="mix-1")):
        document = next_mixture(two, wanted)
        assert_whole(lambda console, document=document: render_next(document, console))  # type: ignore[misc]
