"""The study file: what it means for each arm, and that every mistake is reported, at its place, with a fix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError, DataError, MegacodeError, PlanError
from megacode.config.config_file import load_config
from megacode.study.grid import Grid, build_grid
from megacode.study.settings import slug
from megacode.study.study_file import load_study
from tests.study.conftest import CONSTANT

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]
ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "text_only_470m": ("text-only", "470m"),
    "balanced_only_470m": ("balanced-only", "470m"),
    "balanced_to_text_470m": ("balanced-to-text+cooldown", "470m"),
    "code_to_text_470m": ("code-to-text+cooldown", "470m"),
    "balanced_to_text_2p8b": ("balanced-to-text+cooldown", "2.8b"),
}


@pytest.fixture(scope="module")
def paper() -> Grid:
    path = ROOT / "examples" / "studies" / "to_code.yaml"
    return build_grid(load_study(path), path)


def test_every_arm_that_is_written_by_hand_has_its_cell() -> None:
    written = {path.stem for path in (ROOT / "examples" / "to_code").glob("*.yaml")} - {"base"}
    assert written == set(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_the_study_resolves_what_is_written_by_hand(name: str, paper: Grid) -> None:
    arm, level = ARMS[name]
    (cell,) = [one for one in paper.of(arm, 1234) if one.place == (level,)]
    by_hand = load_config(ROOT / "examples" / "to_code" / f"{name}.yaml")
    config, other = (
        one.model_copy(update={"name": "", "run_dir": "", "phases": ()}) for one in (cell.plan.config, by_hand)
    )
    assert config == other
    assert _phases(cell.plan.config.phases) == _phases(by_hand.phases)
    assert cell.plan.config.directory.endswith(f"-{level}-s1234")


def _phases(phases: Any) -> list[Any]:
    """Phases without their names, which decide nothing."""
    return [phase.model_copy(update={"name": ""}) for phase in phases]


def test_settings_win_from_base_to_level(study: Document, grid_of: GridOf, tmp_path: Path) -> None:
    base = {**study.pop("set"), "name": "ignored"}
    base["train"] = {**base["train"], "clip_grad": 1.0, "weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.5}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    study["base"] = "base.yaml"
    study["set"] = {"train.weight_decay": 0.4, "train.adam_beta1": 0.4, "train.adam_beta2": 0.4}
    study["arms"]["one"] = {"phases": ["balanced"], "set": {"train": {"adam_beta1": 0.3}, "train.adam_beta2": 0.3}}
    study["factors"] = {"train.adam_beta2": [0.2, 0.1]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    path = tmp_path / "study.yaml"
    first, second = build_grid(load_study(path), path).of("one")
    train = first.plan.config.train
    assert (train.clip_grad, train.weight_decay, train.adam_beta1, train.adam_beta2) == (1.0, 0.4, 0.3, 0.2)
    assert second.plan.config.train.adam_beta2 == 0.1
    assert (first.name, second.name) == ("one@0.2", "one@0.1")
    assert first.plan.config.name == "study-one-0.2-s1"


def test_phases_used_twice_are_numbered_and_set_by_name(study: Document, grid_of: GridOf) -> None:
    study["arms"] = {"one": {"phases": ["balanced", "text", "balanced"], "set": {"phases.balanced.iterations": 7}}}
    (cell,) = grid_of(study).of("one")
    assert [(phase.name, phase.iterations) for phase in cell.plan.config.phases] == [
        ("balanced", 7), ("text", 20), ("balanced-2", 7),
    ]  # fmt: skip


def test_levels_are_crossed_and_limited(study: Document, grid_of: GridOf) -> None:
    study["factors"] = {
        "scale": {"small": {}, "wide": {"set": {"model.hidden_size": 128}, "only": ["one", "two"]}},
        "train.clip_grad": [1.0, 0.5],
    }
    cells = grid_of(study).cells
    assert len(cells) == 2 * (2 * 4 + 2)
    assert [cell.name for cell in cells if cell.seed == 1 and cell.arm == "three"] == [
        "three@small@1.0",
        "three@small@0.5",
    ]


def test_an_arm_has_the_study_s_sources_that_it_draws_from(study: Document, grid_of: GridOf) -> None:
    study["sources"] = {"extra": {"path": "data/extra", "tokens": 5000}}
    study["phases"]["more"] = {**study["phases"]["text"], "blend": {"text": 0.9, "extra": 0.1}}
    study["arms"]["four"] = ["more"]
    grid = grid_of(study)
    assert set(grid.of("four")[0].plan.config.sources) == {"text", "code", "extra"}
    assert set(grid.of("one")[0].plan.config.sources) == {"text", "code"}


def test_an_arm_may_start_from_a_checkpoint_that_is_there(study: Document, grid_of: GridOf, tmp_path: Path) -> None:
    study["arms"]["four"] = {"phases": ["trunk"], "init": {"from": str(tmp_path)}}
    with pytest.raises(ConfigError) as caught:
        grid_of(study)
    assert f"small.yaml: arms.four.init.from: {tmp_path}" in str(caught.value)


def test_names_become_parts_of_file_names() -> None:
    assert slug("balanced→text") == "balanced-to-text"
    assert slug("a+b (c)") == "a-plus-b-c"
    assert slug("→") == "-to-".strip("-")
    assert slug("§") == "arm"


LEVEL: Document = {"set": {"model.hidden_size": 128}}


@pytest.mark.parametrize(
    ("change", "said", "fix"),
    [
        ({"arms": {"one": ["balancd"]}}, "arms.one.phases[0]: there is no phase 'balancd'", "did you mean balanced?"),
        ({"basline": "one"}, "basline is not a setting", "did you mean baseline?"),
        ({"baseline": None}, "baseline: None is not a valid value", "give text"),
        ({"baseline": "on"}, "baseline: there is no arm 'on'", "did you mean one?"),
        ({"arms": {"one": []}}, "arms.one.phases: [] is not a valid value", "give at least 1"),
        ({"arms": {"one": {}}}, "arms.one.phases: it has no phases", "same_as: ARM"),
        ({"arms": {"one": {"phase": ["text"]}}}, "arms.one.phase: phase is not a setting", "did you mean phases?"),
        ({"arms": {"one": ["balanced"], "a\nb": ["text"]}}, r"the name 'a\nb' holds '\n'", "use letters, digits"),
        (
            {"compare": {"primary": ["mean/a"], "secondary": ["mean/b", "mean/a"]}},
            "compare.secondary[1]: 'mean/a' is declared twice",
            "one place",
        ),
        ({"arms": {"One": ["text"], "one": ["balanced"]}}, "'one' and 'One' differ in case alone", "another name"),
        ({"arms": {"one": ["text"], "a/b": ["balanced"]}}, "the name 'a/b' holds '/'", "use letters"),
        ({"arms": {"one": ["text"], "a@b": ["balanced"]}}, "the name 'a@b' holds '@'", "use letters"),
        ({"arms": {"one": ["text"], " a": ["balanced"]}}, "the name ' a' begins or ends with a space", "use letters"),
        ({"arms": {"one": {"same_as": "two"}}}, "arms.one.same_as: there is no arm 'two'", "known: one"),
        (
            {"arms": {"one": ["text"], "two": {"same_as": "gone"}}, "factors": {"scale": {"a": {}}}},
            "arms.two.same_as: there is no arm 'gone'",
            "did you mean one?",
        ),
        (
            {"arms": {"one": ["text"], "two": {"same_as": "one", "phases": ["text"]}}},
            "it is the same as 'one', and has phases of its own",
            "remove same_as, or phases",
        ),
        (
            {"arms": {"one": ["text"], "two": {"same_as": "one"}, "six": {"same_as": "two"}}},
            "'two' is itself a second name",
            "write same_as: one",
        ),
        (
            {"arms": {"one": ["text"], "two": {"same_as": "two"}}},
            "arms.two.same_as: it is a second name for itself",
            "give one of the names phases of its own",
        ),
        (
            {"arms": {"one": ["text"], "two": {"same_as": "six"}, "six": {"same_as": "two"}}},
            "arms.six.same_as: it is a second name for itself",
            "give one of the names phases of its own",
        ),
        (
            {"arms": {"one": {"phases": ["text"], "init": {}}}},
            "arms.one.init: it names one origin",
            "write init: {arm: NAME}, or init: {from: CHECKPOINT}",
        ),
        (
            {"arms": {"one": {"phases": ["text"], "init": {"arm": "oen"}}}},
            "arms.one.init.arm: there is no arm 'oen'",
            "did you mean one?",
        ),
        (
            {
                "arms": {
                    "one": {"phases": ["text"], "init": {"arm": "two"}},
                    "two": {"phases": ["text"], "init": {"arm": "one"}},
                }
            },
            "arms start from each other in a cycle: one from two from one",
            "let one of them start from random weights",
        ),
        (
            {"arms": {"one": {"phases": ["text"], "init": {"arm": "two"}}, "two": {"same_as": "one"}}},
            "arms start from each other in a cycle: one from two from one",
            "let one of them start from random weights",
        ),
        (
            {
                "arms": {
                    "one": {"phases": ["text"], "init": {"arm": "four"}},
                    "two": {"phases": ["text"], "init": {"arm": "one"}},
                    "three": {"phases": ["text"], "init": {"arm": "two"}},
                    "four": {"same_as": "two"},
                }
            },
            "arms.two.init.arm: arms start from each other in a cycle: two from one from four from two",
            "let one of them start from random weights",
        ),
        ({"phases": {"name": {"name": "x"}}}, "phases.name.name: its name is its key", "remove it"),
        (
            {"phases": {"cut": {"until": "5 iterations"}}},
            "where a phase ends early is said by the arm that uses it",
            "write {phase: cut, until: 5 iterations}",
        ),
        ({"seeds": [1, 2, 1]}, "seeds: 1 stands twice", "give each seed once"),
        ({"seeds": []}, "seeds: [] is not a valid value", "give at least 1"),
        ({"factors": {"scale": {}}}, "factors.scale: it has no levels", "add one"),
        ({"factors": {"train.clip_grad": [1, 1]}}, "a value stands twice", "name each level once"),
        ({"factors": {"scale": {"a": {**LEVEL, "only": ["onne"]}}}}, "there is no arm 'onne'", "did you mean one?"),
        (
            {"factors": {"scale": {"a": {**LEVEL, "only": ["two", "three"]}}}},
            "the baseline 'one' is not trained there",
            "add 'one' to it",
        ),
        (
            {"factors": {"scale": {"a": {**LEVEL, "only": ["one", "two"]}}}},
            "factors.scale: no level of it is crossed with arm 'three'",
            "add 'three' to `only` of a level",
        ),
        (
            {
                "arms": {"one": ["text"], "two": ["balanced"], "three": {"same_as": "two"}},
                "factors": {"scale": {"a": {}, "b": {**LEVEL, "only": ["one", "three"]}}},
            },
            "'three' is a second name for 'two', which is not trained there",
            "add 'two' to it",
        ),
        ({"factors": {"scale": {"a": {"twin": "2"}}}}, "'2' is not a part of a full run", "write for example 1/16"),
        (
            {"factors": {"scale": {"a": {}, "b": {"twin": "1/4", "of": "c"}}}},
            "factors.scale.b.of: there is no level 'c'",
            "known: a",
        ),
        (
            {"factors": {"scale": {"a": {}, "b": {"of": "a"}}}},
            "`of` names the full run of a twin",
            "add twin: 1/16 here",
        ),
        (
            {"factors": {"scale": {"b": {"twin": "1/4"}}, "other": {"c": {"twin": "1/4"}}}},
            "'scale' has twins too, and a run cannot be cut twice",
            "keep twins in one factor",
        ),
        ({"set": {"seed": 3}}, "set.seed: seed cannot be set here", "`seeds`"),
        ({"set": {"phases": []}}, "set.phases: phases cannot be set here", "phases.NAME.key changes one"),
        ({"set": {"phases.text": {}}}, "'phases.text' names no setting of a phase", "learning_rate.peak"),
        (
            {"set": {"phases.txt.iterations": 4}},
            "set.phases.txt.iterations: there is no phase 'txt'",
            "did you mean text?",
        ),
        (
            {"arms": {"one": {"phases": ["text"], "set": {"phases.trunk.iterations": 4}}}},
            "arms.one.set.phases.trunk.iterations: phase 'trunk' is not used here",
            "name one of text",
        ),
        ({"compare": {"margin": "0.5"}}, "compare.margin: '0.5' is not a difference", "write for example 0.5 points"),
        ({"compare": {"pairs": [["one", "tow"]]}}, "compare.pairs[0]: there is no arm 'tow'", "did you mean two?"),
        (
            {
                "factors": {"scale": {"a": {"only": ["one", "two"]}, "b": {**LEVEL, "only": ["one", "three"]}}},
                "compare": {"pairs": [["two", "three"]]},
            },
            "compare.pairs[0]: 'two' and 'three' are trained at no level together",
            "remove the pair, or add one of them to `only`",
        ),
        ({"match": [{"arms": ["one"], "end": "text"}]}, "match[0].arms: ['one'] is not a valid value", "at least 2"),
        ({"match": [{"arms": ["one", "one"], "end": "text"}]}, "an arm stands twice in it", "name each arm once"),
        ({"match": [{"arms": ["one", "two"]}]}, "match[0]: it claims nothing", "exposure: samples"),
        (
            {
                "factors": {"scale": {"a": {"only": ["one", "two"]}, "b": {**LEVEL, "only": ["one", "three"]}}},
                "match": [{"arms": ["two", "three"], "exposure": "samples"}],
            },
            "match[0].arms: 'two' is trained at no level that another arm of the claim is trained at",
            "leave 'two' out, or add it to `only`",
        ),
        (
            {
                "factors": {"scale": {"a": {"only": ["one", "two"]}, "b": {**LEVEL, "only": ["one", "three"]}}},
                "arms": {"one": ["text"], "two": ["balanced"], "three": ["text", "text"], "again": {"same_as": "two"}},
                "match": [{"arms": ["two", "three", "again"], "end": "text"}],
            },
            "match[0].arms: 'three' is trained at no level",
            "leave 'three' out",
        ),
        (
            {"match": [{"arms": ["one", "ten"], "end": "txt"}]},
            "match[0].end: there is no phase 'txt'",
            "did you mean text?",
        ),
    ],
)
def test_a_mistake_in_the_study_is_reported_with_its_place_and_a_fix(
    change: Document, said: str, fix: str, study: Document, grid_of: GridOf
) -> None:
    for key, value in change.items():
        keep = key in ("phases", "set")
        study[key] = {**study[key], **value} if keep else value
    if isinstance(study["arms"].get("one"), (dict, list)) and "two" not in study["arms"]:
        study["baseline"] = change.get("baseline", "one")
    with pytest.raises(ConfigError) as caught:
        grid_of(study)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert said in text
    assert fix in text
    assert "small.yaml: " in text


@pytest.mark.parametrize(
    ("arms", "levels", "said"),
    [
        (("a b", "a-b"), ("x",), "the runs of 'a b@x' and 'a-b@x' would both be called 'small-a-b-x-s1'"),
        (("code", "code-x"), ("x-470m", "470m"), "the runs of 'code@x-470m' and 'code-x@470m' would both be called"),
        (("one",), ("x y", "x-y"), "the runs of 'one@x y' and 'one@x-y' would both be called 'small-one-x-y-s1'"),
    ],
)
def test_runs_of_one_name_are_refused(
    arms: tuple[str, ...], levels: tuple[str, ...], said: str, study: Document, grid_of: GridOf
) -> None:
    study["arms"] = dict(zip(arms, (["balanced"], ["text"]), strict=False))
    study["baseline"] = arms[0]
    study["factors"] = {"scale": {name: {"set": {"model.num_layers": 3 + n}} for n, name in enumerate(levels)}}
    with pytest.raises(ConfigError) as caught:
        grid_of(study)
    assert said in str(caught.value)
    assert "give an arm or a level another name" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_study_without_a_baseline_says_so(study: Document, grid_of: GridOf) -> None:
    del study["baseline"]
    with pytest.raises(ConfigError, match=r"small\.yaml: baseline: required setting is missing\n    add baseline"):
        grid_of(study)


def test_all_mistakes_are_reported_at_once_and_each_once(study: Document, grid_of: GridOf) -> None:
    study["arms"]["four"] = ["txt"]
    study["seeds"] = [1, 1]
    study["compare"] = {"primry": ["total"]}
    with pytest.raises(ConfigError) as caught:
        grid_of(study)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("set", {"train.clip_gard": 1}, "small.yaml: set: train.clip_gard: clip_gard is not a setting"),
        ("arm", {"train.clip_gard": 1}, "small.yaml: arms.one.set: train.clip_gard: clip_gard is not a setting"),
        (
            "level",
            {"train.clip_gard": 1},
            "small.yaml: factors.scale.a.set: train.clip_gard: clip_gard is not a setting",
        ),
        ("phase", {"blend": {"txt": 1}}, "small.yaml: phases.text.blend.txt: 'txt' is not one of the sources"),
        ("phase", {"iteration": 3}, "small.yaml: phases.text.iteration: iteration is not a setting"),
    ],
)
def test_a_wrong_setting_is_reported_where_it_stands(
    place: str, change: Document, said: str, study: Document, grid_of: GridOf
) -> None:
    if place == "set":
        study["set"] |= change
    elif place == "arm":
        study["arms"]["one"] = {"phases": ["balanced"], "set": change}
    elif place == "level":
        study["factors"] = {"scale": {"a": {"set": change}}}
    else:
        study["phases"]["text"] |= change
    with pytest.raises(ConfigError) as caught:
        grid_of(study)
    assert said in str(caught.value)
    assert "did you mean" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_an_arm_that_cannot_be_trained_is_named(study: Document, grid_of: GridOf) -> None:
    study["set"]["sources"]["code"]["max_epochs"] = 0.1
    with pytest.raises(PlanError) as caught:
        grid_of(study)
    assert caught.value.exit_code == 3
    assert "small.yaml: phases.balanced.blend.code: arm 'one': source 'code' would be read" in str(caught.value)


def test_a_source_that_is_missing_and_not_declared_is_an_input_error(study: Document, grid_of: GridOf) -> None:
    del study["set"]["sources"]["code"]["tokens"]
    with pytest.raises(DataError, match=r"sources.code.path") as caught:
        grid_of(study)
    assert len(caught.value.problems) == 1


def test_first_weights_from_an_arm_that_is_not_trained_at_this_scale(study: Document, grid_of: GridOf) -> None:
    study["arms"]["four"] = {"phases": ["trunk"], "init": {"arm": "two"}}
    study["factors"] = {"scale": {"a": {}, "b": {**LEVEL, "only": ["one", "four"]}}}
    with pytest.raises(ConfigError, match=r"arms\.four\.init\.arm: arm 'two' is not trained at b"):
        grid_of(study)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file\n    give the path of a study's YAML file"),
        ("- a\n", "holds no settings"),
        ("arms: {a: [x], a: [y]}\n", "duplicate key 'a'"),
        ("base: gone.yaml\nbaseline: a\nphases: {x: {}}\narms: {a: [x]}\n", "gone.yaml: no such file"),
    ],
)
def test_a_file_that_is_no_study_is_an_input_error(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MegacodeError) as caught:
        build_grid(load_study(path), path)
    assert caught.value.exit_code == 2
    assert said in str(caught.value)


def test_a_document_is_left_as_it_was(study: Document, grid_of: GridOf) -> None:
    before = copy.deepcopy(study)
    study["phases"]["text"]["learning_rate"] = CONSTANT
    before["phases"]["text"]["learning_rate"] = CONSTANT
    grid_of(study)
    assert study == before
