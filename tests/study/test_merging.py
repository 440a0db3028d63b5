"""Arms whose end is merged: planned, identified and found like any other, with nothing trained in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.checkpoint.state import TrainState
from megacode.plan.decay_weights import decay_weights
from megacode.study.document import plan_study
from megacode.study.found import states_of
from megacode.study.grid import Cell, Grid
from megacode.study.keeping import check_kept
from megacode.study.merging import merged_state
from megacode.study.tree import Tree, totals
from tests.study.test_study_plan import printed, save

Document = dict[str, Any]
GridOf = Callable[[Document], Grid]
TreeOf = Callable[[Document], Tree]


def merged(over: str | None = "16 iterations", **merge: Any) -> Document:
    return {"phases": ["trunk"], "anneal": {"merge": {"decay": "linear", **({"over": over} if over else {}), **merge}}}


@pytest.fixture
def trunk(study: Document) -> Document:
    """A trunk of 40 iterations of 8 samples, that keeps every tenth checkpoint; a decay of it; and a mean of it."""
    study["set"]["checkpoint"] = {"keep_every": "10 iterations", "keep_last": 2, "every": "5 iterations"}
    study["arms"] = {"decayed": ["trunk", "cooldown"], "merged": merged()}
    study["baseline"] = "decayed"
    return study


def parts(cell: Cell) -> list[tuple[int, float]]:
    assert cell.merging is not None
    return [(part.iteration, part.weight) for part in cell.merging.parts]


def test_a_merged_end_takes_the_kept_checkpoints_of_its_window(trunk: Document, grid_of: GridOf) -> None:
    cell = grid_of(trunk).of("merged")[0]
    weights = decay_weights("linear", [160, 240, 320], 128)
    assert parts(cell) == list(zip([20, 30, 40], weights, strict=True))
    assert cell.merging is not None
    assert [part.id for part in cell.merging.parts] == [cell.past.at(0, 160), cell.past.at(0, 240), cell.past.ends[0]]
    assert cell.end == cell.merging.id != cell.past.ends[0]
    for over in ("2048 tokens", "128 samples"):  # of 16 tokens a sample, 8 samples an iteration
        trunk["arms"]["merged"] = merged(over)
        assert grid_of(trunk).of("merged")[0].end == cell.end
    trunk["arms"]["merged"] = merged(None, last=3, decay="cosine")
    assert parts(grid_of(trunk).of("merged")[0]) == list(
        zip([20, 30, 40], decay_weights("cosine", [160, 240, 320]), strict=True)
    )
    del trunk["set"]["checkpoint"]["keep_last"]  # then all are kept
    assert [one for one, _ in parts(grid_of(trunk).of("merged")[0])] == [30, 35, 40]


def test_the_id_hashes_states_and_weights_and_nothing_else(trunk: Document, grid_of: GridOf) -> None:
    first = grid_of(trunk).of("merged")[0].end
    trunk["arms"]["other"] = trunk["arms"].pop("merged")
    trunk["set"]["train"]["micro_batch_size"] = 2
    trunk["set"]["checkpoint"]["every"] = "2 iterations"
    trunk["set"]["checkpoint"]["keep_every"] = "10 iterations"
    assert grid_of(trunk).of("other")[0].end == first
    trunk["set"]["checkpoint"]["keep_every"] = "5 iterations"
    assert grid_of(trunk).of("other")[0].end != first
    assert merged_state([(0.5, "a"), (0.5, "b")]) == merged_state([(0.5 + 1e-15, "b"), (0.5, "a")])
    assert len({merged_state([(0.5, "a"), (0.5, "b")]), merged_state([(0.4, "a"), (0.6, "b")]), "a"}) == 3


def test_nothing_is_trained_in_a_merged_end(trunk: Document, tree_of: TreeOf) -> None:
    tree = tree_of(trunk)
    cell = tree.grid.of("merged")[0]
    path = [tree.nodes[state] for state in tree.paths["merged", 1]]
    assert [(node.tokens, node.resumes, node.merging is None) for node in path] == [
        (5120, False, True), (0, False, False)
    ]  # fmt: skip
    assert path[1].parent == path[0].id == tree.paths["decayed", 1][0]
    assert (path[1].iteration, path[1].name) == (40, f"merged-s1-{cell.end[:8]}")
    del trunk["arms"]["merged"]
    without = totals(tree_of(trunk))
    assert (totals(tree).tree, totals(tree).rows) == (without.tree, without.rows)
    trunk["arms"] = {"trunk": ["trunk"], "merged": merged()}
    trunk["baseline"] = "trunk"
    both = totals(tree_of(trunk))
    assert both.tree == both.rows == both.alone / 2


def test_an_arm_may_start_from_a_merged_one(trunk: Document, tree_of: TreeOf) -> None:
    trunk["arms"]["later"] = {"phases": ["balanced"], "init": {"arm": "merged"}}
    tree = tree_of(trunk)
    path = tree.paths["later", 1]
    assert path[:2] == tree.paths["merged", 1]
    assert tree.nodes[path[2]].parent == path[1]
    check_kept(tree)
    # What is not on the trunk itself needs no checkpoint of it.
    trunk["arms"]["later"]["set"] = {"checkpoint.keep_every": "7 iterations"}
    check_kept(tree_of(trunk))


def test_a_twin_merges_over_its_part_of_the_decay(trunk: Document, grid_of: GridOf) -> None:
    scales: dict[str, Any] = {"full": {}, "proxy": {"twin": "1/2", "set": {"checkpoint.keep_every": "5 iterations"}}}
    trunk["factors"] = {"scale": scales}
    full, twin = grid_of(trunk).of("merged")
    assert [one for one, _ in parts(full)] == [20, 30, 40]
    assert [one for one, _ in parts(twin)] == [10, 15, 20]
    assert [weight for _, weight in parts(full)] == [weight for _, weight in parts(twin)]


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        (merged(None), "it gives the decay one length"),
        (merged(last=3), "it gives the decay one length"),
        (merged(None, last=1), "give at least 2"),
        (merged(None, last=9), "the run keeps 4 checkpoints, and 9 are to be merged"),
        (merged("40 iterations"), "the decay takes 320 samples of 320"),
        (merged("32 iterations"), "no checkpoint is kept before the end that a decay over 256 samples"),
        (merged("10 iterations"), "one checkpoint is kept before the end that a decay over 80 samples"),
        (merged(decay="steps"), "'linear' or 'cosine'"),
        ({"same_as": "decayed", "anneal": {"merge": {"decay": "linear", "last": 2}}}, "and has anneal of its own"),
    ],
)
def test_merges_that_cannot_be_made_are_refused(trunk: Document, grid_of: GridOf, arm: Document, said: str) -> None:
    trunk["arms"]["merged"] = arm
    with pytest.raises(ConfigError, match=said):
        grid_of(trunk)


def test_arms_that_are_merged_alike_are_the_same(trunk: Document, tree_of: TreeOf) -> None:
    trunk["arms"]["again"] = merged("128 samples")
    with pytest.raises(ConfigError, match="'merged' and 'again' are the same training"):
        tree_of(trunk)


def test_an_arm_of_the_same_trunk_must_keep_what_is_merged(trunk: Document, tree_of: TreeOf) -> None:
    check_kept(tree_of(trunk))
    trunk["arms"]["decayed"] = {"phases": ["trunk", "cooldown"], "set": {"checkpoint.keep_every": "20 iterations"}}
    with pytest.raises(ConfigError, match="merges iteration 30 of a trunk that is also that of 'decayed'"):
        check_kept(tree_of(trunk))


def mean_of(cell: Cell, clocks: list[int], weights: list[float], folder: Path, **changes: Any) -> Path:
    """Write what a mean of a cell's checkpoints says of itself, as the merge does, without tensors."""
    sources = [save(cell, clock, folder / f"source/iter_{clock}") for clock in clocks]
    states = [TrainState.read(path) for path in sources]
    path = folder / "mean/checkpoints/iter_0000040"
    path.mkdir(parents=True)
    state = states[-1].as_mean("decay:linear", 128, list(zip(weights, sources, states, strict=True)))
    replace(state, **changes).write(path)
    return path


def test_a_mean_is_found_by_content(trunk: Document, grid_of: GridOf, tmp_path: Path) -> None:
    cell = grid_of(trunk).of("merged")[0]
    weights = [weight for _, weight in parts(cell)]
    path = mean_of(cell, [160, 240, 320], weights, tmp_path)
    assert [(state.id, state.seal, state.merged) for state in states_of(path)] == [
        (cell.end, TrainState.read(path).seal, True)
    ]
    # Never that of its newest checkpoint, whose clock it has.
    other = mean_of(cell, [160, 240, 320], [0.1, 0.2, 0.7], tmp_path / "other")
    assert {state.id for state in states_of(other)}.isdisjoint({cell.end, cell.past.ends[0]})
    # Several seeds.
    seeds = [grid_of(trunk).of("decayed", seed)[0] for seed in (1, 2)]
    saved = [save(one, 360, tmp_path / f"seed{one.seed}") for one in seeds]
    states = [TrainState.read(one) for one in saved]
    mean = tmp_path / "seeds"
    mean.mkdir()
    states[1].as_mean("uniform", None, list(zip([0.5, 0.5], saved, states, strict=True))).write(mean)
    assert [state.id for state in states_of(mean)] == [merged_state((0.5, one.end) for one in seeds)]
    wrong = [{**link, "fingerprint": "of another order"} for link in states[0].fingerprints]
    unknown = mean_of(cell, [160, 320], [0.5, 0.5], tmp_path / "unknown", fingerprints=wrong)
    assert states_of(unknown) == []


def test_the_plan_shows_what_is_merged(trunk: Document, tmp_path: Path, grid_of: GridOf) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"runs": str(tmp_path / "runs"), **trunk}))
    cell = grid_of(trunk).of("merged")[0]
    save(cell, 160, tmp_path / "runs/a/checkpoints/iter_0000020")
    document = plan_study(path, why=True)
    (row,) = [row for row in document["nodes"] if row["id"] == cell.end]
    assert (row["tokens"], row["flops"], row["phase"], row["state"]) == (0, 0, "merged", "planned")
    assert row["merge"]["over"] == 128
    assert [one["checkpoint"] is not None for one in row["merge"]["of"]] == [True, False, False]
    assert sum(one["weight"] for one in row["merge"]["of"]) == pytest.approx(1)
    trunk_row = next(one for one in document["nodes"] if one["id"] == row["parent"])
    assert row["checkpoint_bytes"] * 3 == trunk_row["checkpoint_bytes"]
    text = " ".join(printed(document, 120).split())
    assert "3 checkpoints, as a linear decay merged" in text
    assert "4, 2 merges, 6 nodes" in text
    assert "not constant" not in text
    trunk["phases"]["trunk"]["learning_rate"] = {"schedule": "cosine", "peak": 3e-4, "final": 3e-5}
    path.write_text(yaml.safe_dump(trunk))
    assert "merged: the learning rate is not constant over what is merged" in " ".join(plan_study(path)["warnings"])
