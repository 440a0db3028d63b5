"""`megacode compare` over score files: what it says, what it refuses, and that nothing but the scores moves it."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from megacode.base.errors import ConfigError, DataError, MegacodeError
from megacode.cli import app
from megacode.statistics.arms import read_arms
from megacode.statistics.comparing import ComparisonDesign, compare
from megacode.statistics.table import render_comparison
from megacode.statistics.words import span
from tests.statistics.synthetic import BITS, write_scores

A, B = ([float(digit) for digit in word] for word in ("11101011", "10100010"))
D = [[0.1, 0, 0.2, 0.1], [0.2, 0.1, 0.3, 0.2], [0, 0.1, 0.1, 0.2]]
SHAPE = {
    "arm", "baseline", "metric", "difference", "low", "high", "simultaneous_low", "simultaneous_high",
    "degrees_of_freedom", "seeds", "items", "distinguishable", "relative",
}  # fmt: skip


def compared(*words: str, baseline: str = "base", **settings: Any) -> dict[str, Any]:
    arms = read_arms(words)
    return compare(arms, ComparisonDesign(baseline, **settings))


def only(document: dict[str, Any]) -> dict[str, Any]:
    (one,) = document["comparisons"]
    return dict(one)


def graded(rate: float, count: int, seed: int) -> list[float]:
    """Return right and wrong answers: the same items are hard for all."""
    rng = np.random.default_rng(7)
    ease = rng.normal(0, 1, count)
    own = np.random.default_rng([seed, int(1e4 * rate)]).normal(0, 0.5, count)
    return [float(value) for value in ease + own < np.quantile(ease, rate)]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., list[str]]:
    """Write two score files of one task; the second may be changed."""

    def write(change: Callable[..., None] | None = None, seed: int | None = 1) -> list[str]:
        one = write_scores(tmp_path / "one.json", {"piqa": graded(0.6, 200, 1)})
        two = write_scores(tmp_path / "two.json", {"piqa": graded(0.8, 200, 2)}, seed=seed, change=change)
        return [f"base={one}", f"arm={two}"]

    return write


def test_the_worked_examples_come_out_of_score_files(tmp_path: Path) -> None:
    arm = ",".join(str(write_scores(tmp_path / f"a{s}.json", {"t": row}, "f1", seed=s)) for s, row in enumerate(D))
    base = ",".join(str(write_scores(tmp_path / f"b{s}.json", {"t": [0.0] * 4}, "f1", seed=s)) for s in range(3))
    one = only(compared(f"base={base}", f"arm={arm}"))
    assert one["difference"] == pytest.approx(0.133333, abs=5e-7)
    assert (one["low"], one["high"]) == pytest.approx((0.00341, 0.26326), abs=5e-6)
    assert one["degrees_of_freedom"] == pytest.approx(3.0, abs=5e-4)
    assert (one["seeds"], one["items"], one["metric"], one["relative"]) == (3, 4, "t/f1", None)
    eight = [write_scores(tmp_path / f"{name}.json", {"t": row}) for name, row in (("x", A), ("y", B))]
    one = only(compared(f"base={eight[1]}", f"arm={eight[0]}"))
    assert (one["difference"], one["p"], one["method"], one["low"]) == (0.375, 0.25, "exact", None)
    assert (one["items_for"], one["items_against"], one["distinguishable"]) == (3, 0, False)
    assert one["words"].endswith(
        "3 of 8 items differ, 3 up and 0 down (exact test, p = 0.25); this is about these two models"
    )


def test_a_clear_difference_is_said_in_words(pair: Callable[..., list[str]]) -> None:
    document = compared(*pair())
    one = only(document)
    assert set(one) >= SHAPE
    assert one["distinguishable"]
    assert one["simultaneous_low"] == pytest.approx(one["low"]), "a family of one"
    assert one["low"] > 0
    assert one["relative"]["low"] < one["relative"]["value"] < one["relative"]["high"]
    assert re.fullmatch(
        r"piqa/acc: arm is better than base by \d+\.\d points \(\+\d+\.\d \.\. \+\d+\.\d, \+\d+\.\d %\); "
        r"this is about these two models",
        one["words"],
    )
    assert "recipes" not in one["words"]


def test_identical_models_have_no_difference_and_no_interval(tmp_path: Path) -> None:
    rows = {"piqa": graded(0.6, 50, 1), "arc": graded(0.6, 50, 2)}
    one, two = (write_scores(tmp_path / f"{name}.json", rows) for name in "ab")
    document = compared(f"base={one}", f"arm={two}")
    assert len(document["comparisons"]) == 2
    for found in document["comparisons"]:
        assert (found["difference"], found["low"], found["distinguishable"], found["p"]) == (0.0, None, False, 1.0)
        assert "not distinguishable: no item differs" in found["words"]
    assert "NaN" not in json.dumps(document)


def of_weights(init_seed: int) -> Callable[..., None]:
    return lambda document, lines: document["model"]["megacode"].update(init_seed=init_seed)


def varied(tmp_path: Path, seeds: list[tuple[int, int]]) -> list[str]:
    """Write two arms whose models have these seeds of data and of first weights."""
    words = []
    for arm, rate in (("base", 0.4), ("arm", 0.6)):
        files = [
            str(write_scores(tmp_path / f"{arm}{seed}-{own}.json", {"a": graded(rate, 300, 10 * seed + own)}, seed=seed,
                             change=of_weights(own)))
            for seed, own in seeds
        ]  # fmt: skip
        words.append(f"{arm}={','.join(files)}")
    return words


def test_models_of_one_order_of_data_are_seeds_if_their_first_weights_differ(tmp_path: Path) -> None:
    document = compared(*varied(tmp_path, [(5, 2), (5, 1), (5, 3)]))
    one = only(document)
    assert (one["seeds"], one["paired_seeds"], one["about"]) == (3, True, "recipes")
    assert (document["arms"][0]["seeds"], document["arms"][0]["init_seeds"]) == ([5, 5, 5], [1, 2, 3])
    said = "seeds vary the first weights alone: intervals do not hold for other seeds of the order of data"
    assert document["notes"] == [said]
    screen = io.StringIO()
    render_comparison(document, Console(file=screen, width=100))
    assert "base: 3 models, seed 5, first weights 1, 2, 3, the baseline" in screen.getvalue()
    data = compared(*varied(tmp_path, [(1, 5), (2, 5)]))
    assert data["notes"] == [
        "seeds vary the order of data alone: intervals do not hold for other seeds of the first weights"
    ]
    both = compared(*varied(tmp_path, [(1, 1), (2, 2)]))
    assert both["notes"] == []


def test_two_models_of_one_seed_whose_first_weights_are_equal_or_unknown_are_refused(tmp_path: Path) -> None:
    rows = {"a": graded(0.5, 50, 1)}
    first = write_scores(tmp_path / "first.json", rows, seed=5, change=of_weights(1))
    same = write_scores(tmp_path / "same.json", rows, seed=5, change=of_weights(1))
    older = write_scores(tmp_path / "older.json", rows, seed=5)
    with pytest.raises(DataError, match="both have seed 5") as caught:
        read_arms([f"base={first},{same}", f"arm={older}"])
    assert "score both again" not in str(caught.value)
    with pytest.raises(DataError, match=r"both have seed 5(.|\n)*if their first weights differ: score both again"):
        read_arms([f"base={first},{older}", f"arm={same}"])


def test_lower_bits_per_byte_are_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(100, 900, 40)
    nats = -0.7 * sizes * rng.uniform(0.9, 1.1, 40)
    files = [
        write_scores(tmp_path / f"{name}.json", {"books": list(zip(factor * nats, sizes.tolist(), strict=True))}, BITS)
        for name, factor in (("one", 1.0), ("two", 0.9))
    ]
    one = only(compared(f"base={files[0]}", f"arm={files[1]}"))
    assert one["difference"] == pytest.approx(0.1 * nats.sum() / np.log(2) / sizes.sum())
    assert one["relative"]["value"] == pytest.approx(-0.1)
    assert re.match(r"books/bits_per_byte: arm is better than base by 0\.10\d+ bits per byte", one["words"])


def test_means_are_of_categories_of_tasks_and_their_variance_is_too(tmp_path: Path) -> None:
    def parts(document: dict[str, Any], _: object) -> None:
        document["mean_parts"] = {"x": {"a": "acc", "b": "acc"}, "y": {"c": "acc", "gone": "acc"}, "all": ["x", "y"]}

    rows = [{t: graded(r, n, s) for t, r, n in (("a", 0.5, 40), ("b", 0.6, 90), ("c", 0.7, 30))} for s in (1, 2)]
    files = [write_scores(tmp_path / f"{s}.json", row, change=parts) for s, row in enumerate(rows)]
    document = compared(f"base={files[0]}", f"arm={files[1]}")
    found = {one["metric"]: one for one in document["comparisons"]}
    assert {name for name, one in found.items() if one["family"] == "primary"} == {"mean/x", "mean/y", "mean/all"}
    gaps = {task: np.array(rows[1][task]) - np.array(rows[0][task]) for task in "abc"}
    weights = {"a": 0.25, "b": 0.25, "c": 0.5}
    assert found["mean/all"]["difference"] == pytest.approx(sum(w * gaps[t].mean() for t, w in weights.items()))
    variance = sum(w**2 * gaps[t].var(ddof=1) / len(gaps[t]) for t, w in weights.items())
    assert found["mean/all"]["standard_error"] ** 2 == pytest.approx(variance)
    assert found["mean/all"]["items"] == 160
    assert "mean/all is a mean without gone" in document["notes"]
    assert compared(f"base={files[0]}", f"arm={files[1]}", primary=["a/acc"])["comparisons"][0]["metric"] == "a/acc"


def test_a_task_that_one_arm_lacks_is_left_out_of_all_and_named(tmp_path: Path) -> None:
    def why(document: dict[str, Any], _: object) -> None:
        document["left_out"] = {"humaneval": "it runs code"}

    one = write_scores(tmp_path / "one.json", {"a": graded(0.5, 60, 1), "humaneval": graded(0.5, 60, 1)})
    two = write_scores(tmp_path / "two.json", {"a": graded(0.7, 60, 2)}, change=why)
    document = compared(f"base={one}", f"arm={two}")
    assert [found["metric"] for found in document["comparisons"]] == ["a/acc"]
    assert document["left_out"] == {"humaneval": "arm has no scores of it (two.json): it runs code"}
    three = write_scores(tmp_path / "three.json", {"other": graded(0.7, 60, 2)})
    with pytest.raises(DataError, match="no task in common"):
        compared(f"base={one}", f"arm={three}")


def test_seeds_are_paired_by_their_number_and_speak_of_recipes(tmp_path: Path) -> None:
    names: dict[str, list[str]] = {"base": [], "arm": []}
    for arm, rate in (("base", 0.5), ("arm", 0.7)):
        for seed in (3, 1, 2):
            path = tmp_path / f"{arm}{seed}.json"
            names[arm].append(str(write_scores(path, {"a": graded(rate, 300, seed)}, seed=seed)))
    words = [f"base={','.join(names['base'])}", f"arm={','.join(reversed(names['arm']))}"]
    document = compared(*words)
    one = only(document)
    assert one["seeds"] == 3
    assert one["paired_seeds"]
    assert one["words"].endswith("this is about these recipes (3 seeds)")
    assert document["arms"][0]["seeds"] == [1, 2, 3]
    single = compared(words[0], f"arm={names['arm'][0]}")
    assert only(single)["seeds"] == 1
    assert only(single)["words"].endswith(
        "one arm has a single seed, and is assumed to spread over seeds as the others do"
    )
    assert only(single)["seeds_could_move_by"] is None
    assert "recipes" not in only(single)["words"]
    assert any("one seed are assumed to vary over seeds as much" in note for note in single["notes"])
    assert any("not paired by seed" in note for note in single["notes"])
    both = compared(f"base={names['base'][0]}", f"arm={names['arm'][0]}", f"third={','.join(names['arm'])}")
    reach = both["comparisons"][0]["seeds_could_move_by"]
    assert reach == pytest.approx(2 * 2**0.5 * both["arms"][2]["seed_sd"]["a/acc"])
    known = compared(f"base={names['base'][0]}", f"arm={names['arm'][0]}", seed_sd={"a/acc": 0.01})
    assert "these two models; other seeds alone may move it by 2.8 points" in only(known)["words"]


def test_a_bound_that_rounds_to_0_gets_the_digits_that_tell_its_side() -> None:
    one = {"unit": "points", "standard_error": 0.02}
    assert span(one, -0.0003, 0.127) == "-0.03 .. +12.7"
    assert span(one, 0.00002, 0.127) == "+0.002 .. +12.7"
    assert span(one, 0.0, 0.127) == "+0.0 .. +12.7"
    assert span(one, -1e-9, 0.127) == "+0.0000 .. +12.7"
    assert span({"unit": "bits per byte", "standard_error": 0.02}, -0.00004, 0.1) == "-0.00004 .. +0.100"


def test_a_margin_makes_equality_a_finding(pair: Callable[..., list[str]]) -> None:
    assert only(compared(*pair(), margin=0.9))["words"].startswith("piqa/acc: arm and base are equal within the margin")


def test_what_is_not_distinguishable_says_what_would_have_been_seen(tmp_path: Path) -> None:
    files = [write_scores(tmp_path / f"{s}.json", {"a": graded(0.5, 100, s)}) for s in (1, 2)]
    words = only(compared(f"base={files[0]}", f"arm={files[1]}"))["words"]
    assert re.search(
        r"are not distinguishable \(.* \.\. .*\); a difference of \d+\.\d points would be detected",
        words,
    )


def test_tasks_beside_means_are_exploratory_and_a_second_family_is_holm_s(tmp_path: Path) -> None:
    rows = [{f"t{i}": graded(0.3 + 0.1 * i + 0.03 * s, 200, s) for i in range(5)} for s in range(3)]
    files = [write_scores(tmp_path / f"{s}.json", row) for s, row in enumerate(rows)]
    words = [f"base={files[0]}", f"b={files[1]}", f"c={files[2]}"]
    document = compared(*words, primary=["t0/acc"], secondary=["t1/acc", "t2/acc"])
    families = [one["family"] for one in document["comparisons"]]
    assert families == ["primary"] * 2 + ["secondary"] * 4 + ["exploratory"] * 4
    for one in document["comparisons"]:
        outside = not one["simultaneous_low"] <= 0 <= one["simultaneous_high"]
        assert one["distinguishable"] == outside
        assert one["simultaneous_low"] <= one["low"] < one["high"] <= one["simultaneous_high"]
        assert one["adjusted_p"] >= one["p"] * 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, ls: d["settings"].update(limit=100), "limit none and 100"),
        (lambda d, ls: d["versions"].update(lm_eval="0.4.9"), "lm-eval version 0.4.13 and 0.4.9"),
        (lambda d, ls: d["tasks"]["piqa"].update(version=2.0), "task version 1.0 and 2.0"),
        (lambda d, ls: d["tasks"]["piqa"].update(prompts_sha256="x"), "different prompts"),
        (lambda d, ls: d["tasks"]["piqa"].update(cut={"items": 1}), "truncated to different context lengths"),
        (lambda d, ls: [line.update(cluster="a") for line in ls], "different passages"),
    ],
)
def test_what_was_asked_differently_is_refused_and_both_are_named(
    pair: Callable[..., list[str]], change: Callable[..., None], said: str
) -> None:
    with pytest.raises(DataError, match=r"one\.json and .*two\.json: piqa was scored differently") as caught:
        compared(*pair(change))
    assert said in str(caught.value)
    assert "--without piqa" in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_items_are_refused(tmp_path: Path) -> None:
    one = write_scores(tmp_path / "one.json", {"a": graded(0.5, 60, 1), "b": A})
    two = write_scores(tmp_path / "two.json", {"a": graded(0.5, 50, 1), "b": B})
    with pytest.raises(DataError, match="a was scored differently: different items"):
        compared(f"base={one}", f"arm={two}")
    arms = read_arms([f"base={one}", f"arm={two}"], ["a"])
    document = compare(arms, ComparisonDesign("base"), ["a"])
    assert only(document)["metric"] == "b/acc"
    assert document["left_out"] == {"a": "left out on request"}


def test_means_of_other_tasks_are_refused(pair: Callable[..., list[str]], tmp_path: Path) -> None:
    words = pair(lambda d, ls: d.update(mean_parts={"x": {"piqa": "acc"}}))
    third = write_scores(
        tmp_path / "three.json", {"piqa": graded(0.6, 200, 3)}, change=lambda d, ls: d.update(mean_parts={"x": {}})
    )
    with pytest.raises(DataError, match="mean/x is a mean of different tasks in each file"):
        compared(*words, f"third={third}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base={one}"], "there is only 1 arm"),
        (["base={one}", "base={two}"], "list the seeds of one arm as base=A.json,B.json"),
        (["base={one}", "Base={two}"], "'base' and 'Base' differ only in case"),
        (["base={one}", "a/b={two}"], "the name 'a/b' contains a /"),
        (["base={one}", "{two}"], "is not of the form NAME=SCORES"),
        (["base={one}", "arm="], "is not of the form NAME=SCORES"),
        (["base={one}", "arm={two},{one}"], "both have seed 1"),
        (["base={one}", "arm={two},{two}"], "the same model, not two seeds"),
        (["base={one}", "arm={one}x"], "the score file does not exist"),
    ],
)
def test_arms_that_are_none_are_refused(pair: Callable[..., list[str]], words: list[str], said: str) -> None:
    one, two = (word.partition("=")[2] for word in pair())
    with pytest.raises(MegacodeError) as caught:
        compared(*(word.format(one=one, two=two) for word in words))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_names_are_refused_with_a_suggestion(pair: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        compared(*pair(), baseline="bas")
    with pytest.raises(ConfigError, match=r"--primary: there is no 'piqa/ac'\n.*did you mean 'piqa/acc'"):
        compared(*pair(), primary=["piqa/ac"])
    with pytest.raises(ConfigError, match=r"--secondary: there is no 'x'\n.*give one of piqa/acc"):
        compared(*pair(), secondary=["x"])


def test_a_task_that_no_file_has_cannot_be_left_out(pair: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigError, match=r"--without: no score file has a task 'piqua'\n.*did you mean piqa"):
        read_arms(pair(), ["piqua"])


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-30])


def drop_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def rewrite(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("two.json", cut, "two.json: the score file is damaged: line 1, column"),
        ("two.json", rewrite('"scores"', '"scored"'), "this is not a score file: scores is missing"),
        ("two.json", rewrite('"tasks": {"piqa"', '"tasks": {"copa"'), "it has no settings of the task piqa"),
        ("two.json", rewrite('{"acc": 0.', '{"acc": 0.0'), "piqa/acc is 0.0"),
        ("two.items.jsonl", cut, "two.items.jsonl:200: the line is damaged"),
        ("two.items.jsonl", drop_line, "it has 199 lines of piqa, but the score file has 200 items"),
        ("two.items.jsonl", rewrite('"doc_hash": "piqa0"', '"doc_hash": "x"'), "its items of piqa differ"),
        (
            "two.items.jsonl",
            rewrite('"filter"', '"filtre"'),
            "two.items.jsonl:1: the line is damaged: filter is missing",
        ),
        ("two.items.jsonl", rewrite('["acc"]', '["acc", "f1"]'), "f1 is missing"),
        ("two.items.jsonl", lambda path: path.write_text(""), "it has no items of the task piqa"),
        ("two.items.jsonl", Path.unlink, "the score file's items file is missing"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    pair: Callable[..., list[str]], tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    words = pair()
    damage(tmp_path / name)
    with pytest.raises(DataError) as caught:
        compared(*words)
    assert said in str(caught.value)
    assert str(tmp_path / "two") in str(caught.value)


def said_of(words: list[str]) -> str:
    """Return the refusal of a comparison; empty where it is made."""
    try:
        compared(*words)
    except MegacodeError as error:
        return f"{error.exit_code} {error}"
    return ""


def test_any_value_of_another_type_is_refused_and_breaks_nothing(
    pair: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = pair(lambda d, ls: d.update(mean_parts={"x": {"piqa": "acc"}, "y": ["x"]}))
    path, said = tmp_path / "two.json", []
    whole = json.loads(path.read_text())
    for key, value in [*whole.items(), *whole["tasks"]["piqa"].items(), *whole["settings"].items()]:
        for other in (None, 3, "x", [], {}, {"piqa": 3}, ["x"]):
            text = json.dumps(whole).replace(f'"{key}": {json.dumps(value)}', f'"{key}": {json.dumps(other)}')
            path.write_text(text)
            said.append(said_of(words))
    refused = [one for one in said if one]
    assert len(refused) > 60
    assert [
        one for one in refused if not one.startswith("2 ") or not ("two." in one or "/x: the score file's items" in one)
    ] == []
    assert len(refused) < len(said)


def test_scores_that_are_no_means_of_items_are_named(tmp_path: Path) -> None:
    def f1(document: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        document["scores"]["cb"] |= {"f1": 0.7, "perplexity": 3.0}
        for line in lines:
            line["metrics"] = ["acc", "f1"]
            line["f1"] = [1, "label"]

    files = [write_scores(tmp_path / f"{s}.json", {"cb": graded(0.5, 60, s)}, change=f1) for s in (1, 2)]
    document = compared(f"base={files[0]}", f"arm={files[1]}")
    assert only(document)["metric"] == "cb/acc"
    assert document["left_out"] == dict.fromkeys(["cb/f1", "cb/perplexity"], "it is not a mean of its items")


def test_neither_the_order_of_lines_nor_a_second_call_changes_a_byte(tmp_path: Path) -> None:
    rows = [{f"t{i}": graded(0.4 + 0.05 * s, 80, s) for i in range(3)} for s in range(3)]
    files = [write_scores(tmp_path / f"{s}.json", row) for s, row in enumerate(rows)]
    words = [f"base={files[0]}", f"b={files[1]}", f"c={files[2]}"]
    first = json.dumps(compared(*words))
    assert json.dumps(compared(*words)) == first
    for path in files:
        items = path.with_suffix(".items.jsonl")
        lines = items.read_text().splitlines(keepends=True)
        random.Random(1).shuffle(lines)
        items.write_text("".join(lines))
    assert json.dumps(compared(*words)) == first


def test_items_of_one_passage_are_counted_together(tmp_path: Path) -> None:
    def passages(_: object, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["cluster"] = f"p{line['item'] // 10}"

    plain, clustered = tmp_path / "plain", tmp_path / "clustered"
    for place, change in ((plain, None), (clustered, passages)):
        for seed in (1, 2):
            write_scores(place / f"{seed}.json", {"a": graded(0.4 + 0.2 * seed, 300, seed)}, change=change)
    alone, together = (only(compared(f"base={p / '1.json'}", f"arm={p / '2.json'}")) for p in (plain, clustered))
    assert (alone["degrees_of_freedom"], together["degrees_of_freedom"]) == (299, 29)
    assert alone["difference"] == together["difference"]


def test_a_run_stands_for_the_scores_of_its_newest_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_scores(run / "eval" / "demo@iter_0000010.json", {"a": graded(0.4, 60, 1)})
    newest = write_scores(run / "eval" / "demo@iter_0000020.json", {"a": graded(0.5, 60, 1)})
    other = write_scores(tmp_path / "other.json", {"a": graded(0.7, 60, 2)})
    for place in (run, run / "eval"):
        assert compared(f"base={other}", f"arm={place}")["arms"][1]["files"] == [str(newest)]
    write_scores(run / "eval" / "more@iter_0000020.json", {"a": graded(0.5, 60, 1)})
    with pytest.raises(DataError, match=r"scores of 2 suites: demo@iter_0000020\.json, more@iter_0000020\.json"):
        compared(f"base={other}", f"arm={run}")
    with pytest.raises(DataError, match="there are no score files here"):
        compared(f"base={other}", f"arm={tmp_path}")


def test_the_command_prints_one_json_document_or_a_table_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "an-arm-whose-name-is-longer-than-any-column-of-80-would-like"

    def parts(document: dict[str, Any], _: object) -> None:
        document["mean_parts"] = {"total": {"a_task_with_a_long_name": "acc", "b": "acc"}}

    rows = [{t: graded(0.4 + 0.2 * (s > 2), 150, s) for t in ("a_task_with_a_long_name", "b")} for s in range(6)]
    files = [str(write_scores(tmp_path / f"{s}.json", row, seed=s % 3, change=parts)) for s, row in enumerate(rows)]
    words = [f"text-only={','.join(files[:3])}", f"{long}={','.join(files[3:])}"]
    done = CliRunner().invoke(app, ["compare", *words, "--json", "--level", "0.9"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["level"], document["baseline"]) == (0.9, "text-only")
    assert len(document["comparisons"]) == 3
    assert all(set(one) >= SHAPE for one in document["comparisons"])
    shown = CliRunner().invoke(app, ["compare", *words]).stdout
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "text-only: 3 models, seed 0, 1, 2, the baseline" in shown
    assert "these recipes" in shown.replace("\n", " ")
    screen = Console(file=io.StringIO(), width=80)
    render_comparison(document, screen)
    assert isinstance(screen.file, io.StringIO)
    said, one = screen.file.getvalue(), document["comparisons"][0]
    assert "± 90 %" in said
    for number in (one["difference"], one["high"] - one["difference"], one["score"], one["baseline_score"]):
        assert f"{100 * number:.1f}" in said
