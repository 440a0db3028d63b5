"""Order tests by construction: arms that match are proven to, others are told what would match."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.config.config_file import merge
from megacode.config.yaml_reader import parse_yaml
from megacode.study.confounds import exposures
from megacode.study.grid import Grid, build_grid
from megacode.study.matching import exposure, matched, prove
from megacode.study.placing import PLACES, check_places, place_arms, placed_document, written
from megacode.study.study_file import load_study, read_study
from tests.study.conftest import CONSTANT, STUDY

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]
PATH = Path(__file__).resolve().parents[2] / "examples" / "studies" / "order_matched.yaml"


def order_matched(*arms: str, **phases: Document) -> Document:
    document = parse_yaml(PATH.read_text(encoding="utf-8"), str(PATH))
    rate = document["phases"]["half"]["learning_rate"]
    document["phases"] |= {name: {"learning_rate": rate, **phase} for name, phase in phases.items()}
    document["arms"]["other"] = [*arms, "cooldown"]
    document["match"] = [{"arms": ["early", "other"], "exposure": "samples"}]
    return document


def only_problem(document: Document, path: Path = PATH) -> tuple[str, str]:
    (proof,) = prove(build_grid(read_study(document, path), path))
    assert not proof.equal
    (problem,) = proof.problems
    return problem.what, problem.fix


def test_the_shipped_order_test_is_proven() -> None:
    proofs = prove(build_grid(load_study(PATH), PATH))
    assert [(proof.claim.exposure, proof.equal) for proof in proofs] == [("samples", True), (None, True)]
    counts = list(proofs[0].samples_by_source.values())
    assert counts[0] == counts[1] == counts[2] == {"code": 15_625_114, "text": 38_086_246}


def test_one_phase_in_place_of_two_does_not_match_and_the_length_that_does_is_told() -> None:
    document = order_matched("one", one={"tokens": "400B", "blend": {"text": 0.7, "code": 0.3}})
    what, fix = only_problem(document)
    assert "code 15,624,960 in place of 15,625,114" in what
    assert fix == "in arm 'other' give phase 'one' samples: 48828416"
    document["phases"]["one"] = {**document["phases"]["one"], "samples": 48_828_416}
    del document["phases"]["one"]["tokens"]
    (proof,) = prove(build_grid(read_study(document, PATH), PATH))
    assert proof.equal


def test_code_first_is_told_both_lengths() -> None:
    pure = {"c": {"tokens": "120B", "blend": {"code": 1}}, "t": {"tokens": "280B", "blend": {"text": 1}}}
    document = order_matched("c", "t", **pure)
    _, fix = only_problem(document)
    assert fix == "in arm 'other' give phase 'c' samples: 14648525, and give phase 't' samples: 34179891"


def test_where_lengths_do_not_suffice_the_blend_is_told_as_counts() -> None:
    document = order_matched("x", "tenth", x={"tokens": "200B", "blend": {"text": 0.6, "code": 0.4}})
    _, fix = only_problem(document)
    found = re.findall(r"(give|use a copy of) phase '(\w+)'(?: with)? samples: (\d+)(?:, blend: ({[^}]*}))?", fix)
    assert [(how, name) for how, name, _, _ in found] == [("give", "x"), ("use a copy of", "tenth")]
    for _, name, samples, blend in found:
        assert blend
        phase = {key: value for key, value in document["phases"][name].items() if key != "tokens"}
        document["phases"][f"{name}-own"] = {**phase, "samples": int(samples), "blend": yaml.safe_load(blend)}
    document["arms"]["other"] = ["x-own", "tenth-own", "cooldown"]
    (proof,) = prove(build_grid(read_study(document, PATH), PATH))
    assert proof.equal


def test_arms_without_a_source_in_common_cannot_match(study: Document, grid_of: GridOf) -> None:
    study["phases"]["pure"] = {**study["phases"]["text"], "blend": {"text": 1}}
    study["arms"]["pure"] = ["pure"]
    study["match"] = [{"arms": ["one", "pure"], "exposure": "samples"}]
    (proof,) = prove(grid_of(study))
    assert proof.problems[0].fix == "no lengths of the phases of 'pure' give these: change their blends"


def test_a_restart_reads_other_windows(study: Document, grid_of: GridOf) -> None:
    study["phases"]["again"] = {**study["phases"]["text"], "repeat": "restart"}
    study["arms"] |= {"two": ["balanced", "text"], "again": ["balanced", "again"]}
    study["match"] = [{"arms": ["two", "again"], "exposure": "samples"}]
    (proof,) = prove(grid_of(study))
    assert [problem.fix for problem in proof.problems] == ["remove repeat: restart, so that arms read the same windows"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"validation.fraction": 0.1}, "reads other windows of 'code' than 'two'"),
        ({"sources.code.take": 7000}, "reads other windows of 'code' than 'two'"),
        ({"train.seq_length": 32}, "samples of 'two' have 16 tokens, those of 'four' 32"),
    ],
)
def test_another_cut_of_the_data_reads_other_windows(
    change: Document, said: str, study: Document, grid_of: GridOf
) -> None:
    study["arms"]["four"] = {"phases": ["balanced", "text"], "set": change}
    study["match"] = [{"arms": ["two", "four"], "exposure": "samples"}]
    (proof,) = prove(grid_of(study))
    assert said in proof.problems[0].what
    assert proof.problems[0].fix


def test_ends_are_compared_in_samples_and_rate(study: Document, grid_of: GridOf) -> None:
    study["phases"]["flat"] = {**study["phases"]["balanced"], "learning_rate": CONSTANT}
    study["arms"] |= {"a": ["balanced", "cooldown"], "b": ["text", "cooldown"], "c": ["flat", "cooldown"]}
    study["match"] = [{"arms": ["a", "b"], "end": "cooldown"}, {"arms": ["a", "c"], "end": "cooldown"}]
    study["match"].append({"arms": ["a", "one"], "end": "cooldown"})
    good, other_rate, other_end = prove(grid_of(study))
    assert good.equal
    assert (
        other_rate.problems[0].what == "the learning rate of 'cooldown' differs: it starts in 'a' 3e-05 and 'c' 0.0003"
    )
    assert other_end.problems[0].what == "'one' ends with 'balanced', not with 'cooldown'"
    study["arms"]["b"] = {"phases": ["text", "cooldown"], "set": {"phases.cooldown.iterations": 4}}
    other_length = prove(grid_of(study))[0]
    assert other_length.problems[0].what == "'b' ends with text 32 samples, 'a' with text 40 samples"
    assert (
        other_length.problems[0].fix == "in arm 'b' use a copy of phase 'cooldown' with samples: 40, blend: {text: 40}"
    )


def test_an_end_is_the_phase_itself_not_one_whose_name_begins_alike(study: Document, grid_of: GridOf) -> None:
    study["phases"]["cooldown-long"] = study["phases"]["cooldown"]
    study["arms"] = {"one": ["balanced", "cooldown"], "b": ["text", "cooldown-long"]}
    study["arms"]["c"] = ["text", "cooldown", "balanced", "cooldown"]
    study["match"] = [{"arms": ["one", "b"], "end": "cooldown"}, {"arms": ["one", "c"], "end": "cooldown"}]
    wrong, again = prove(grid_of(study))
    assert [problem.what for problem in wrong.problems] == ["'b' ends with 'cooldown-long', not with 'cooldown'"]
    assert again.equal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources.text.take": 7000}, "reads other windows of 'text' than 'one'"),
        ({"train.seq_length": 32}, "samples of 'one' have 16 tokens, those of 'b' 32"),
    ],
)
def test_ends_on_other_data_do_not_match(change: Document, said: str, study: Document, grid_of: GridOf) -> None:
    study["arms"] = {"one": ["balanced", "cooldown"], "b": {"phases": ["balanced", "cooldown"], "set": change}}
    study["match"] = [{"arms": ["one", "b"], "end": "cooldown"}]
    (proof,) = prove(grid_of(study))
    assert [said in problem.what for problem in proof.problems] == [True]


def test_what_an_arm_starts_from_counts_in_its_exposure(study: Document, grid_of: GridOf) -> None:
    study["phases"]["short"] = {**study["phases"]["text"], "iterations": 4}
    after = {"init": {"arm": "one"}}
    study["arms"] = {"one": ["balanced"], "two": ["balanced", "text"], "text": ["text"]}
    study["arms"] |= {"later": {"phases": ["text"], **after}, "c": {"phases": ["text", "short"], **after}}
    study["arms"]["d"] = {"phases": ["short", "text"], **after}
    study["arms"]["balanced-later"] = {"phases": ["balanced"], "init": {"arm": "text"}}
    claims = (("text", "later"), ("two", "later"), ("c", "d"), ("later", "balanced-later"))
    study["match"] = [{"arms": list(arms), "exposure": "samples"} for arms in claims]
    grid = grid_of(study)
    ignored, again, equal, reverse = prove(grid)
    assert ignored.problems[0].what.startswith("'later' does not read as many samples as 'text': ")
    assert ignored.samples_by_source["later"] == exposure(grid.of("two")[0].plan.schedule)
    said = "'later' reads other windows of '{}' than 'two': after `init` a source is read from its beginning again"
    assert [problem.what for problem in again.problems] == [said.format("code"), said.format("text")]
    assert equal.equal
    assert reverse.equal


def test_lengths_that_match_leave_out_what_was_read_before(study: Document, grid_of: GridOf) -> None:
    study["phases"]["longer"] = {**study["phases"]["text"], "iterations": 30}
    study["arms"] = {"one": ["balanced"], "b": {"phases": ["longer"], "init": {"arm": "one"}}}
    study["arms"]["c"] = {"phases": ["text"], "init": {"arm": "one"}}
    study["match"] = [{"arms": ["b", "c"], "exposure": "samples"}]
    (proof,) = prove(grid_of(study))
    assert proof.problems[0].fix == "in arm 'c' give phase 'text' samples: 240"


def windows_read(grid: Grid, arm: str) -> set[tuple[int, int, int]]:
    """All (source, epoch, window) that an arm reads with its first seed."""
    schedule = grid.of(arm)[0].plan.schedule
    read = schedule.draws(np.arange(schedule.total_samples))
    found = set(zip(read.source_id.tolist(), read.epoch.tolist(), read.window.tolist(), strict=True))
    assert len(found) == schedule.total_samples
    return found


@settings(max_examples=25, deadline=None)
@given(
    blends=st.lists(st.tuples(*[st.integers(0, 9)] * 3).filter(any), min_size=2, max_size=4),
    lengths=st.lists(st.integers(24, 90), min_size=4, max_size=4),
    kept=st.booleans(),
)
def test_placed_arms_read_the_same_windows_to_the_sample(
    blends: list[tuple[int, ...]], lengths: list[int], kept: bool, grid_of: GridOf
) -> None:
    sources = {name: {"path": name, "tokens": 900} for name in "abc"}
    document = {**STUDY, "seeds": [5], "set": merge(STUDY["set"], {"sources": sources}), "baseline": "from"}
    document["phases"] = {
        f"p{number}": {"samples": length, "blend": dict(zip("abc", blend, strict=True)), "learning_rate": CONSTANT}
        for number, (blend, length) in enumerate(zip(blends, lengths, strict=False))
    }
    document["phases"]["cooldown"] = STUDY["phases"]["cooldown"] | {"blend": {"a": 0.3, "b": 0.7}}
    names = [name for name in document["phases"] if name != "cooldown"]
    document["arms"] = {"from": [*names, "cooldown"] if kept else names}
    grid = grid_of(document)
    assume(len({name for blend in blends for name, weight in zip("abc", blend, strict=True) if weight}) > 1)
    found = place_arms(grid, "from", PLACES, keep=["cooldown"] if kept else [])
    added = placed_document(grid, "from", found)
    assert set(added["arms"]) | set(added["unchanged"])
    document["phases"] |= added["phases"]
    document["arms"] |= added["arms"]
    document["match"] = added["match"]
    after = grid_of(document)
    assert all(proof.equal for proof in prove(after))
    wanted = windows_read(after, "from")
    assert [arm for arm in document["arms"] if windows_read(after, arm) != wanted] == []


def shares(grid: Grid, place: str, **options: Any) -> list[float]:
    """The share of code in the placed phases of the shipped order test's uniform arm."""
    (arm,) = place_arms(grid, options.pop("arm", "uniform"), [place], keep=["cooldown"], **options)
    return [round(counts.get("code", 0) / sum(counts.values()), 3) for counts in arm.phase_counts[:-1]]


def test_a_uniform_arm_is_spread_and_others_are_sorted() -> None:
    grid = build_grid(load_study(PATH), PATH)
    assert [shares(grid, place) for place in PLACES] == [[0.5, 0.1], [0.1, 0.5], [0.3, 0.3]]
    assert [shares(grid, place, arm="late") for place in PLACES] == [[0.5, 0.1], [0.1, 0.5], [0.3, 0.3]]
    assert shares(grid, "early", sources=["text"]) == [0.0, 0.6]


@pytest.mark.parametrize(
    ("code", "early", "late"),
    [
        ([10, 0, 9], [10, 9, 0], [0, 9, 10]),
        ([0, 500, 0], [10, 490, 0], [0, 490, 10]),
        ([0, 1000, 9], [10, 999, 0], [0, 999, 10]),
    ],
)
def test_what_lengths_leave_over_or_lack_stays_at_the_right_end(
    code: list[int], early: list[int], late: list[int], study: Document, grid_of: GridOf
) -> None:
    for number, (samples, count) in enumerate(zip((10, 1000, 10), code, strict=True)):
        blend = {"text": samples - count, "code": count}
        study["phases"][f"p{number}"] = {"samples": samples, "blend": blend, "learning_rate": CONSTANT}
    study["phases"]["p0"]["learning_rate"] = {**CONSTANT, "warmup": "1 iterations"}
    study["arms"] = {"one": ["p0", "p1", "p2"]}
    found = place_arms(grid_of(study), "one", ["early", "late"], ["code"])
    assert [[counts.get("code", 0) for counts in arm.phase_counts] for arm in found] == [early, late]


def test_arms_are_written_as_yaml_that_can_be_pasted() -> None:
    grid = build_grid(load_study(PATH), PATH)
    text = written(grid, "early", place_arms(grid, "early", PLACES, keep=["cooldown"]))
    assert text.startswith("# early: early itself\n")
    document = parse_yaml(PATH.read_text(encoding="utf-8"), str(PATH))
    added = parse_yaml(text, "added")
    assert added["arms"]["early-late"] == ["early-late-1", "early-late-2", "cooldown"]
    assert added["phases"]["early-late-1"]["blend"] == {"code": 2_441_421, "text": 21_972_787}
    document["phases"] |= added["phases"]
    document["arms"] = {"early": document["arms"]["early"], **added["arms"]}
    document |= {"match": added["match"], "baseline": "early", "compare": {}}
    (proof,) = prove(build_grid(read_study(document, PATH), PATH))
    assert proof.equal


def test_a_placed_arm_has_the_settings_of_its_arm(study: Document, grid_of: GridOf) -> None:
    settings = {"train.clip_grad": 0.5, "phases.balanced.iterations": 30, "phases.cooldown.iterations": 6}
    study["arms"]["four"] = {"phases": ["balanced", "text", "cooldown"], "set": settings, "table": "order"}
    study["arms"]["four"]["init"] = {"arm": "one"}
    grid = grid_of(study)
    added = placed_document(grid, "four", place_arms(grid, "four", ["late"], keep=["cooldown"]))
    assert added["arms"]["four-late"] == {
        "phases": ["four-late-1", "four-late-2", "cooldown"],
        "table": "order",
        "set": {"train.clip_grad": 0.5, "phases.cooldown.iterations": 6},
        "init": {"arm": "one"},
    }
    study["phases"] |= added["phases"]
    study["arms"] |= added["arms"]
    study["match"] = added["match"]
    after = grid_of(study)
    assert [proof.equal for proof in prove(after)] == [True]
    assert after.of("four-late")[0].plan.config.train.clip_grad == 0.5


def test_written_names_are_free_in_the_study_and_uses_stay_as_they_are(study: Document, grid_of: GridOf) -> None:
    study["phases"] |= {"One-late-1": study["phases"]["text"], "text-2": study["phases"]["balanced"]}
    study["arms"] = {
        "one": ["text-2", "text", "text", "text", "cooldown"],
        "one-late": ["One-late-1"],
        "x": ["text", "text", "text-2"],
    }
    grid = grid_of(study)
    assert [phase.name for phase in grid.of("x")[0].plan.config.phases] == ["text", "text-3", "text-2"]
    added = placed_document(grid, "one", place_arms(grid, "one", ["late"], keep=["text-4", "cooldown"]))
    assert added["arms"] == {"one-late-2": ["one-late-2-1", "one-late-2-2", "one-late-2-3", "text", "cooldown"]}
    assert [*added["phases"]] == ["one-late-2-1", "one-late-2-2", "one-late-2-3"]
    study["phases"] |= added["phases"]
    study["arms"] |= added["arms"]
    study["match"] = added["match"]
    assert [proof.equal for proof in prove(grid_of(study))] == [True]


def test_an_arm_with_nothing_to_write_says_so(study: Document, grid_of: GridOf) -> None:
    study["arms"] = {"one": ["balanced", "text"]}
    grid = grid_of(study)
    assert written(grid, "one", place_arms(grid, "one", ["early"])) == "# early: one itself\n"


def test_a_constant_phase_alone_is_cut_into_halves(study: Document, grid_of: GridOf) -> None:
    study["arms"] = {"one": ["trunk", "cooldown"]}
    grid = grid_of(study)
    (early,) = place_arms(grid, "one", ["early"], keep=["cooldown"])
    assert [phase.samples for phase in early.phases] == [160, 160, None]
    assert early.phases[1].learning_rate.peak is None
    study["phases"] |= placed_document(grid, "one", [early])["phases"]
    study["arms"]["early"] = placed_document(grid, "one", [early])["arms"]["one-early"]
    cells = [grid_of(study).of(arm)[0] for arm in ("one", "early")]
    clocks = range(1, cells[0].plan.schedule.total_samples + 1)
    assert [cells[0].plan.rates.at(clock) for clock in clocks] == [cells[1].plan.rates.at(clock) for clock in clocks]


@pytest.mark.parametrize(
    ("options", "said", "fix"),
    [
        ({"arm": "onne"}, "--from: there is no arm 'onne'", "did you mean one?"),
        ({"places": ["erly"]}, "--place: there is no place 'erly'", "did you mean early?"),
        ({"sources": ["cod"]}, "--source: 'two' reads no 'cod' in the phases that are placed", "did you mean code?"),
        ({"sources": ["code", "text"]}, "nothing is left to place against", "name some of its sources, not all"),
        ({"keep": ["cooldwn"], "arm": "three"}, "--keep: 'three' has no phase 'cooldwn'", "did you mean cooldown?"),
        ({"keep": ["text"], "arm": "three"}, "only phases at the end can stay as they are", "name 'cooldown'"),
        ({"keep": ["balanced", "text"]}, "no phase is left to place samples in", "leave out 'balanced'"),
        ({"arm": "one"}, "phase 'balanced' stands alone, and a cosine rate cannot be cut in two", "schedule: constant"),
        ({"arm": "cut"}, "phase 'trunk' ends early", "give it its real length"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    options: Document, said: str, fix: str, study: Document, grid_of: GridOf
) -> None:
    study["arms"]["cut"] = [{"phase": "trunk", "until": "20 iterations"}, "text"]
    with pytest.raises(ConfigError) as caught:
        place_arms(
            grid_of(study),
            options.get("arm", "two"),
            check_places(options.get("places", PLACES)),
            options.get("sources", ()),
            options.get("keep", ()),
        )
    assert said in str(caught.value)
    assert fix in str(caught.value)


def test_a_wanted_exposure_that_is_there_changes_nothing(study: Document, grid_of: GridOf) -> None:
    plan = grid_of(study).of("two")[0].plan
    assert matched(plan.config, plan.schedule, exposure(plan.schedule)) == plan.config.phases


def test_what_else_differs_between_arms_that_match_is_told() -> None:
    grid = build_grid(load_study(PATH), PATH)
    early, late = (exposures(grid.of(arm)[0]) for arm in ("early", "late"))
    assert early["code"].samples == late["code"].samples
    assert early["code"].passes == late["code"].passes == pytest.approx(0.921, abs=1e-3)
    assert early["code"].mean_age > late["code"].mean_age + 100e9
    assert early["code"].rate_share < late["code"].rate_share
    assert sum(one.rate_share for one in early.values()) == pytest.approx(1)


def test_a_mean_age_is_counted_from_the_middle_of_each_phase(study: Document, grid_of: GridOf) -> None:
    study["phases"]["pure"] = {**study["phases"]["text"], "blend": {"text": 1}}
    study["arms"] = {"one": ["pure", "pure"]}
    found = exposures(grid_of(study).of("one")[0])
    assert found["text"].mean_age == 40 * 8 * 16 // 2


def test_what_an_arm_starts_from_has_ages_too(study: Document, grid_of: GridOf) -> None:
    study["phases"]["pure"] = {**study["phases"]["text"], "blend": {"text": 1}}
    study["arms"] = {"one": ["pure"], "two": {"phases": ["pure", "pure"], "init": {"arm": "one"}}}
    one, two = (exposures(grid_of(study).of(arm)[0])["text"] for arm in ("one", "two"))
    assert (two.samples, two.mean_age) == (3 * one.samples, 3 * one.mean_age)
    assert two.passes == pytest.approx(3 * one.passes)
