from __future__ import annotations

import math

import pytest

from megacode.eval.categories import category_means

SCORES = {"a": {"acc": 0.5, "acc_stderr": 0.03}, "b": {"f1": 0.3, "f1_stderr": 0.04, "acc": 0.9}, "c": {"acc": 0.2}}


def test_a_category_is_the_mean_of_its_tasks_and_a_mean_that_of_its_categories():
    found = category_means(SCORES, {"x": {"a": "acc", "b": "f1"}, "y": {"c": "acc"}}, {"all": ["x", "y"]})
    assert found["x"]["score"] == pytest.approx(0.4)
    assert found["x"]["stderr"] == pytest.approx(math.hypot(0.03, 0.04) / 2)
    assert found["y"] == {"score": 0.2, "stderr": None, "of": 1, "missing": []}
    assert found["all"] == {"score": pytest.approx(0.3), "stderr": None, "of": 2, "missing": []}


def test_what_was_not_scored_is_named_and_an_empty_category_has_no_mean():
    found = category_means(SCORES, {"x": {"a": "acc", "d": "acc"}, "y": {"b": "exact"}}, {"all": ["x", "y"]})
    assert (found["x"]["score"], found["x"]["missing"]) == (0.5, ["d"])
    assert found["y"] == {"score": None, "stderr": None, "of": 1, "missing": ["b"]}
    assert found["all"] == {"score": None, "stderr": None, "of": 2, "missing": ["d", "b"]}
