"""The charts of a study: each mark at its place, legible without colour, and nothing for what is not there."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megacode.report.figure import Figure
from megacode.report.svg import Span
from megacode.study_report.charts import marks
from megacode.study_report.charts.clock import SourceLoss, clock, range_of
from megacode.study_report.charts.forest import Effect, ForestPanel, ForestRow, forest
from megacode.study_report.charts.law import LawPoint, law
from megacode.study_report.charts.proportion import SharePoint, proportion
from megacode.study_report.charts.scatter import ScatterAxes, ScatterPoint, scatter
from megacode.study_report.charts.tree import TreeBar, tree
from megacode.study_report.charts.waterfall import Stair, StairPanel, Stairs, waterfall
from tests.study_report.pages import Drawn, at

LONG = "code-to-text-with-a-name-that-never-ends+cooldown@470m"
POINTS = ForestPanel("total", "total", "points", "higher", 0.5)


def wide(figure: Figure) -> Drawn:
    return Drawn(figure.drawings[0])


def effect(difference: float, *, verdict: str = "better", half: float = 1.0, paper: float = math.nan) -> Effect:
    ends = (difference - half, difference + half, difference - 1.5 * half, difference + 1.5 * half)
    return Effect(difference, *ends, verdict, f"{difference:+.1f}", "said", "#from-0", paper)


def test_a_forest_plot_puts_points_and_both_intervals_on_one_scale():
    rows = [ForestRow("up", "base", {"total": effect(4.0)}), ForestRow("down", "base", {"total": effect(-2.0)})]
    drawn = wide(forest(rows, [POINTS]))
    zero = at(drawn.all("line", "zero")[0], "x1")[0]
    up, down = (at(one, "cx", "cy") for one in drawn.all("circle", "solid"))
    assert (zero - down[0]) * 2 == pytest.approx(up[0] - zero, abs=0.5)
    assert down[1] > up[1]
    unit = (up[0] - zero) / 4
    for kind, half in (("thick", 1.0), ("thin", 1.5)):
        left, right = at(drawn.all("line", kind)[0], "x1", "x2")
        assert [left, right] == pytest.approx([up[0] - half * unit, up[0] + half * unit], abs=0.3)
    margin = at(drawn.all("rect", "margin")[0], "x", "width")
    assert margin == pytest.approx([zero - 0.5 * unit, unit], abs=0.3)


def test_a_forest_plot_is_read_without_colour():
    verdicts = ["better", "worse", "higher", "lower", "equal", ""]
    rows = [
        ForestRow(f"arm{i}", "base", {"total": effect(i + 1.0, verdict=v, paper=2.0)}) for i, v in enumerate(verdicts)
    ]
    figure = forest(rows, [POINTS])
    shapes = {tuple(marks.VERDICTS[verdict][1:]) for verdict in verdicts}
    assert len(shapes) == len(verdicts)
    drawn = wide(figure)
    assert len(drawn.all("circle", "hollow")) == 1  # what is not distinguishable
    assert len(drawn.all("path", "hollow", "ink")) == len(verdicts)  # the paper's values
    assert drawn.texts("figure") == [f"{i + 1:+.1f}" for i in range(len(verdicts))]
    assert {entry.label for entry in figure.legend} >= {"better", "worse", "not distinguishable", "margin"}


def test_an_exact_test_has_a_mark_and_no_interval():
    none = Effect(1.0, math.nan, math.nan, math.nan, math.nan, "", "+1.0")
    drawn = wide(forest([ForestRow("arm", "base", {"total": none})], [POINTS]))
    assert not drawn.all("line", "thin")
    assert not drawn.all("line", "thick")
    assert len(drawn.all("circle", "hollow")) == 1


def test_an_interval_far_wider_than_the_others_is_cut_and_shown_as_cut():
    rows = [ForestRow(f"arm{i}", "base", {"total": effect(1.0 + i)}) for i in range(20)]
    rows.append(ForestRow("wild", "base", {"total": effect(1.0, half=500)}))
    drawn = wide(forest(rows, [POINTS]))
    assert len(drawn.all("path", "cut")) == 4
    first, last = (at(drawn.all("circle", "solid")[i], "cx")[0] for i in (0, 19))
    assert last - first > 100  # the others are not squeezed together


def test_groups_are_headed_by_what_is_subtracted():
    rows = [ForestRow("a", "one", {"total": effect(1)}), ForestRow("b", "two", {"total": effect(1)})]
    drawn = wide(forest(rows, [POINTS]))
    assert {"minus one", "minus two"} <= set(drawn.texts("phase"))


@pytest.mark.parametrize("narrow", [False, True])
def test_panels_that_do_not_fit_go_below_and_long_names_are_shortened_in_their_middle(narrow: bool):
    panels = [ForestPanel(str(i), f"metric {i}", "points") for i in range(7)]
    rows = [ForestRow(LONG, "base", {str(i): effect(i) for i in range(7)})]
    drawn = Drawn(forest(rows, panels).drawings[int(narrow)])
    assert len(drawn.all("circle", "solid")) == 7
    assert len({at(one, "y")[0] for one in drawn.all("text", "phase")}) > 2
    names = set(drawn.texts("name"))
    assert len(names) == 1
    assert (shown := names.pop()).endswith("@470m")
    assert shown.startswith("code-")
    for one in drawn.all("circle", "solid"):
        assert 0 < at(one, "cx")[0] < drawn.width


def test_a_forest_plot_without_comparisons_says_what_to_do():
    assert "megacode study run" in forest([], [POINTS]).missing


def test_error_crosses_arrows_and_the_frontier():
    points = [
        ScatterPoint("low", 1, 1, 0.5, 1.5, 0.8, 1.2, baseline=True),
        ScatterPoint("right", 3, 2, 2.5, 3.5, 1.8, 2.2, after=0),
        ScatterPoint("top", 2, 3, 1.5, 2.5, 2.8, 3.2),
        ScatterPoint("beaten", 1.5, 1.5),
        ScatterPoint("the paper's", 2, 2, paper=True, tooltip="the paper"),
    ]
    figure = scatter("p", "code against language", points, ScatterAxes("language", "code"), "")
    drawn = wide(figure)
    places = [at(one, "cx", "cy") for one in drawn.all("circle", "solid")]
    assert len(places) == 3  # the baseline is a square
    right, top = places[0], places[1]
    assert right[0] > top[0]
    assert right[1] > top[1]
    assert len(drawn.all("line", "cross")) == 6
    frontier = drawn.all("path", "planned")[0].attrib["d"]
    assert frontier == f"M{top[0]:g} {top[1]:g}L{right[0]:g} {right[1]:g}"
    assert len(drawn.all("g", "arrow")) == 1
    assert {"low", "right", "top", "beaten"} <= set(drawn.texts("note"))
    assert len(drawn.all("path", "hollow", "ink")) == 1


def test_an_arrow_leads_from_before_to_after():
    points = [ScatterPoint("before", 0, 0), ScatterPoint("after", 10, 10, after=0)]
    drawn = wide(scatter("p", "t", points, ScatterAxes("x", "y"), ""))
    line = drawn.all("g", "arrow")[0][0].attrib["d"]
    x0, y0, x1, y1 = (float(v) for v in re.findall(r"[-\d.]+", line))
    assert x1 > x0
    assert y1 < y0


def test_a_paper_s_value_far_from_the_study_s_own_is_left_out():
    own = [ScatterPoint(f"arm{i}", i, i) for i in range(4)]
    far = ScatterPoint("the paper", 4000, 4000, paper=True)
    assert not wide(scatter("p", "t", [*own, far], ScatterAxes("x", "y"), "")).all("path", "hollow")
    curve = [SharePoint("a", 0.0, 1.0, paper=60.0), SharePoint("b", 0.5, 2.0, paper=2.2)]
    assert len(wide(proportion("p", "nl", "%", "code", curve)).all("path", "hollow", "ink")) == 1


def test_lower_is_better_turns_the_frontier():
    points = [ScatterPoint("cheap", 1, 1), ScatterPoint("dear", 2, 2), ScatterPoint("worse", 2, 0.5)]
    drawn = wide(scatter("g", "t", points, ScatterAxes("FLOPs", "score", True, "low", "high", costs=True), ""))
    frontier = re.findall(r"[-\d.]+ [-\d.]+", drawn.all("path", "planned")[0].attrib["d"])
    places = [" ".join(f"{v:g}" for v in at(one, "cx", "cy")) for one in drawn.all("circle", "solid")]
    assert frontier == places[:2]


def test_a_proportion_curve_has_a_ribbon_and_a_ring_for_each_seed():
    points = [SharePoint(f"arm{i}", i / 4, 30 + i, 29 + i, 31 + i, [29.5 + i, 30.5 + i]) for i in range(5)]
    drawn = wide(proportion("p", "nl", "%", "code", list(reversed(points))))
    dots = [at(one, "cx", "cy") for one in drawn.all("circle", "solid")]
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)
    assert dots[4][0] - dots[3][0] == pytest.approx(dots[1][0] - dots[0][0], abs=0.2)
    assert len(drawn.all("circle", "hollow")) == 10
    ribbon = re.findall(r"([-\d.]+) ([-\d.]+)", drawn.all("path", "ribbon")[0].attrib["d"])
    assert len(ribbon) == 10
    assert float(ribbon[0][1]) < dots[0][1] < float(ribbon[-1][1])


def test_one_arm_alone_has_a_dot_and_no_ribbon():
    drawn = wide(proportion("p", "nl", "%", "code", [SharePoint("only", 0.3, 30.0, 29.0, 31.0)]))
    assert len(drawn.all("circle", "solid")) == 1
    assert not drawn.all("path", "ribbon")
    assert proportion("p", "nl", "%", "code", [SharePoint("none", 0.3, math.nan)]).missing


def test_legends_say_the_level_that_was_asked_for():
    shares = [SharePoint("only", 0.3, 30.0, 29.0, 31.0)]
    points = [ScatterPoint("one", 1.0, 2.0), ScatterPoint("two", 2.0, 1.0)]
    for level, said in ((0.95, "95 %"), (0.9, "90 %")):
        curve = proportion("p", "nl", "%", "code", shares, level=level)
        cross = scatter("p", "t", points, ScatterAxes("x", "y"), "", level=level)
        assert [f"mean over seeds, {said} interval", f"arm, with {said} intervals"] == [
            figure.legend[0].label for figure in (curve, cross)
        ]


def test_a_waterfall_steps_from_phase_to_phase():
    steps = [Stair("first", {"m": 10.0}, {"m": "10.0"}), Stair("second", {"m": 14.0}, {"m": "14.0"}),
             Stair("third", {"m": 11.0}, {"m": "11.0"})]  # fmt: skip
    drawn = wide(waterfall([Stairs("arm", steps)], [StairPanel("m", "score", "%")]))
    up, down = drawn.all("rect", "step")
    assert "better" in up.attrib["class"]
    assert "worse hatched" in down.attrib["class"]
    x, w = at(up, "x", "width")
    x2, w2 = at(down, "x", "width")
    assert x2 + w2 == pytest.approx(x + w, abs=0.2)  # begins where the one before ended
    assert w2 / w == pytest.approx(3 / 4, abs=0.02)
    assert drawn.texts("figure") == ["11.0"]


def test_where_lower_is_better_a_falling_phase_improves():
    steps = [Stair("first", {"m": 1.2}, {"m": "1.2"}), Stair("second", {"m": 1.0}, {"m": "1.0"})]
    drawn = wide(waterfall([Stairs("arm", steps)], [StairPanel("m", "bits per byte", "bits", "lower")]))
    assert "better" in drawn.all("rect", "step")[0].attrib["class"]
    assert "← better" in drawn.texts("title")


def test_a_phase_without_scores_leaves_a_gap_and_not_a_zero():
    steps = [Stair("first", {}, {}), Stair("second", {"m": 5.0}, {"m": "5.0"})]
    drawn = wide(waterfall([Stairs("arm", steps)], [StairPanel("m", "score", "%")]))
    assert not drawn.all("rect", "step")
    assert len(drawn.all("rect", "solid")) == 1
    assert waterfall([Stairs("arm", [Stair("first", {}, {})])], [StairPanel("m", "score", "%")]).missing


def test_losses_over_the_clock_mark_what_was_forgotten():
    losses = [SourceLoss("code", 1, [1, 2, 3, 4], [9.0, 2.0, 2.5, 3.0], 1.0), SourceLoss("text", 0, [1, 4], [4, 2], 0)]
    spans = [Span("balanced", 0, 2), Span("text", 2, 4)]
    figure = clock("c", "arm", losses, spans, range_of([losses]))
    drawn = wide(figure)
    line = drawn.all("line", "drop")
    assert len(line) == 1
    dots = [at(one, "cx", "cy") for one in drawn.all("circle", "dot", "s1")]
    assert at(line[0], "x1", "y1") == pytest.approx(dots[0], abs=0.2)  # the first, before training, is out of range
    assert len(dots) == 3
    assert "+1.00" in drawn.texts("note")
    assert [entry.note for entry in figure.legend] == ["+1.000 since its best", "at its best"]
    assert {"balanced", "text"} <= {text.strip() for text in drawn.texts("phase")}


def stretch(key: str, parent: str, start: float, stop: float, **changes: object) -> TreeBar:
    values: dict[str, object] = {
        "blend": {"text": 0.75, "code": 0.25},
        "arms": [key],
        "users": 1,
        "trained": 3,
        "seeds": 3,
    }
    return TreeBar(key, parent, key, start, stop, **{**values, **changes})  # type: ignore[arg-type]


def test_the_tree_has_a_bar_a_stretch_split_by_its_blend():
    nodes = [stretch("cooldown", "root", 200, 240), stretch("root", "", 0, 200, users=2, arms=[])]
    drawn = wide(tree(nodes, ["text", "code"]))
    root, child = drawn.all("rect", "stretch")
    x, w, y = at(root, "x", "width", "y")
    cx, cw, cy = at(child, "x", "width", "y")
    assert cy > y  # a child stands below its parent, whatever the order of the list
    assert cx == pytest.approx(x + w + 2, abs=0.3)
    assert (cw + 2) / (w + 2) == pytest.approx(0.2, abs=0.01)
    text, code = (at(drawn.all("rect", "area", css)[0], "height")[0] for css in ("s0", "s1"))
    assert text == pytest.approx(3 * code, abs=0.2)
    assert any("in 2 arms" in one for one in drawn.texts("name"))


def test_the_tree_tells_what_is_not_trained_and_how_much_of_it():
    nodes = [stretch("done", "", 0, 10), stretch("part", "", 0, 10, trained=1, state="1 of 3 seeds trained")]
    figure = tree(nodes, ["text", "code"])
    drawn = wide(figure)
    assert len(drawn.all("rect", "ahead")) == 1
    bar, part = at(drawn.all("rect", "ahead")[0], "width")[0], at(drawn.all("rect", "trained")[0], "width")[0]
    assert part == pytest.approx(bar / 3, abs=0.1)
    assert any(one.endswith("1 of 3 seeds trained") for one in drawn.texts("name"))
    assert "not trained yet" in {entry.label for entry in figure.legend}


def test_a_node_whose_parent_is_elsewhere_is_not_lost():
    assert len(wide(tree([stretch("orphan", "gone", 5, 10)], ["text", "code"])).all("rect", "stretch")) == 1


@pytest.mark.parametrize("narrow", [False, True])
def test_no_text_of_the_tree_is_cut_at_an_edge(narrow: bool):
    nodes = [stretch("a", "", 0, 400, arms=[LONG]), stretch("b", "a", 400, 440, arms=[LONG, "another-arm"])]
    drawn = Drawn(tree(nodes, ["text", "code"]).drawings[int(narrow)])
    texts = drawn.all("text", "phase") + drawn.all("text", "name")
    assert len(texts) == 4
    for one in texts:
        (left,) = at(one, "x")
        width = marks.width_of(one.text or "", bold="phase" in one.attrib["class"])
        assert left >= 0
        assert left + width <= drawn.width + 1


def test_a_law_is_drawn_fitted_and_left_out():
    points = [LawPoint("a", 1.0, 1.0, 1.1), LawPoint("b", 2.0, 2.0, math.nan)]
    drawn = wide(law("l", "bits", "bits per byte", points, "R² = 0.9"))
    assert len(drawn.all("circle", "hollow")) == 2
    assert len(drawn.all("path", "solid")) == 1
    dot = at(drawn.all("circle", "hollow")[0], "cx", "cy")
    other = at(drawn.all("circle", "hollow")[1], "cx", "cy")
    assert dot[0] < other[0]
    assert dot[1] > other[1]


def test_names_that_differ_at_their_ends_stay_different():
    names = [f"a-very-long-recipe-of-many-words-{i}" for i in range(10)]
    assert len({marks.shortened(name, 90) for name in names}) == 10
    assert marks.shortened("short", 90) == "short"
    assert marks.width_of(marks.shortened(names[0], 90)) <= 90


def test_labels_never_cover_each_other():
    spots = [(50.0 + 4 * i, 50.0) for i in range(12)]
    plot = marks.Box(0, 0, 300, 120)
    texts = [f"label {i}" for i in range(12)]
    placed = marks.place_labels(texts, spots, plot, spots)
    boxes = []
    for text, spot in zip(texts, placed, strict=True):
        if spot:
            (x, y), anchor = spot
            wide_ = marks.width_of(text)
            left = {"start": x, "end": x - wide_, "middle": x - wide_ / 2}[anchor]
            boxes.append(marks.Box(left, y - 11, left + wide_, y + 3))
    assert len(boxes) > 3
    assert None in placed  # twelve do not fit there
    assert not any(one.meets(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(plot.holds(box) for box in boxes)


numbers = st.one_of(st.floats(-1e6, 1e6), st.just(0.0), st.just(math.nan), st.floats(-1e-9, 1e-9))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6))
@example([(0.0, 0.0, 5e-324)])
@example([(0.0, 5e-324, 0.0)])
def test_no_numbers_make_a_chart_say_nan(values: list[tuple[float, float, float]]) -> None:
    rows = [
        ForestRow(
            f"arm{i}", "base", {"total": Effect(a, a - abs(b), a + abs(b), a - abs(c), a + abs(c), "", "?", paper=b)}
        )
        for i, (a, b, c) in enumerate(values)
    ]
    points = [ScatterPoint(f"arm{i}", a, b, y_low=b - abs(c), y_high=b + abs(c)) for i, (a, b, c) in enumerate(values)]
    shares = [SharePoint(f"arm{i}", abs(b) / 1e6 if b == b else 0.0, a, a - 1, a + 1, [a], paper=c)
              for i, (a, b, c) in enumerate(values)]  # fmt: skip
    steps = [Stair(f"phase{i}", {"m": a} if a == a else {}, {"m": "?"}) for i, (a, _, _) in enumerate(values)]
    figures = [
        forest([row for row in rows if row.effects["total"].difference == row.effects["total"].difference], [POINTS]),
        scatter("s", "t", points, ScatterAxes("x", "y"), ""),
        proportion("p", "t", "%", "code", shares),
        waterfall([Stairs("arm", steps)], [StairPanel("m", "score", "%")]),
    ]
    drawings = [str(drawing) for figure in figures for drawing in figure.drawings]
    assert not any(re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', drawing) for drawing in drawings)
    assert all(figure.drawings or figure.missing for figure in figures)
