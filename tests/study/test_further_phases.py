"""Levels that continue every arm with the same phases: one trunk, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.study.matching import prove

TUNED = {"tuning": {"before": {}, "after": {"then": ["cooldown", {"phase": "text", "until": "8 iterations"}]}}}


def with_factors(study: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**study, "factors": TUNED, "arms": {"one": ["balanced"], "two": ["balanced", "text"]}, **changes}


def test_what_a_level_adds_continues_the_arm_s_own_end(study, tree_of) -> None:
    tree = tree_of(with_factors(study, seeds=[1]))
    for arm in ("one", "two"):
        before, after = (tree.paths[f"{arm}@{level}", 1] for level in ("before", "after"))
        assert after[: len(before)] == before
        assert len(after) == len(before) + 2
    phases = [phase.name for phase in tree.grid.of("two")[1].plan.config.phases]
    # The second use of a phase gets a number, as in an arm.
    assert phases == ["balanced", "text", "cooldown", "text-2"]
    last = tree.grid.of("two")[1].plan.schedule.phases[-1]
    assert (last.samples, last.full_samples) == (64, 160)


def test_a_level_changes_the_settings_of_the_phase_that_it_adds(study, tree_of) -> None:
    after = {"then": ["cooldown"], "set": {"phases.cooldown.iterations": 3}}
    tree = tree_of(with_factors(study, factors={"tuning": {"before": {}, "after": after}}, seeds=[1]))
    assert tree.grid.of("one")[1].plan.schedule.phases[-1].samples == 24


def test_claims_about_an_arm_s_end_are_those_of_its_own_phases(study, grid_of) -> None:
    arms = {"one": ["balanced", "cooldown"], "two": ["text", "cooldown"]}
    claims = [{"arms": ["one", "two"], "end": "cooldown"}]
    factors = {"tuning": {"before": {}, "after": {"then": ["trunk"]}}}
    proofs = prove(grid_of(with_factors(study, arms=arms, factors=factors, match=claims)))
    assert len(proofs) == 2
    assert [problem.what for proof in proofs for problem in proof.problems if "ends with" in problem.what] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {"t": {"a": {}, "b": {"then": ["cooldwn"]}}}}, r"factors\.t\.b\.then\[0\].*no phase 'cooldwn'"),
        (
            {"arms": {"one": {"phases": ["trunk"], "anneal": {"merge": {"decay": "linear", "last": 2}}}}},
            r"factors\.tuning\.after\.then.*'one' ends with a mean of checkpoints",
        ),
    ],
)
def test_mistakes_are_named(changes, message, study, grid_of) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_of(with_factors(study, **changes))
