"""Arms and seeds as a tree: what is shared is one node, and totals are those of the paper's set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.config.yaml_reader import parse_yaml
from megacode.study.grid import Grid, build_grid
from megacode.study.keeping import check_kept
from megacode.study.study_file import read_study
from megacode.study.tree import Totals, Tree, totals
from tests.study.conftest import STUDY

Document = dict[str, Any]
TreeOf = Callable[[Document], Tree]
STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"
A_BATCH = 512 * 8192  # tokens
WHOLE = {40: 9537, 180: 42915, 200: 47684, 360: 85831, 400: 95367}  # billions of tokens in whole global batches


def example(name: str) -> tuple[Document, Path]:
    path = STUDIES / f"{name}.yaml"
    return parse_yaml(path.read_text(encoding="utf-8"), str(path)), path


def one_seed(document: Document, path: Path, level: str = "470m") -> tuple[Tree, Totals]:
    """The tree of an example with its first seed, and the totals at one scale."""
    document["seeds"] = document["seeds"][:1]
    tree = Tree(build_grid(read_study(document, path), path))
    return tree, totals(tree, [cell for cell in tree.grid.cells if cell.place in ((), (level,))])


def batches(**counts: int) -> int:
    """Tokens of some runs: `batches(b200=3)` is three times 200B, each in whole global batches."""
    return A_BATCH * sum(count * WHOLE[int(name[1:])] for name, count in counts.items())


def test_the_paper_s_set_has_the_totals_of_its_arithmetic() -> None:
    tree, found = one_seed(*example("to_code"))
    assert found.tree == batches(b200=10 + 3, b400=2, b40=5)
    assert found.rows == batches(b200=2 * 3 + 6 + 4 + 2, b400=2, b40=5)
    assert found.alone == batches(b200=2 * 2 + 3 * 2 + 6 + 4 + 2, b400=2 + 2, b40=5)
    assert [round(total / 1e9) for total in (found.tree, found.rows, found.alone)] == [3600, 4600, 6200]
    named = {cell.arm for cell in tree.grid.cells if cell.place == ("470m",)}
    distinct = {cell.original for cell in tree.grid.cells if cell.place == ("470m",)}
    assert (len(named), len(distinct)) == (20, 19)


def test_two_halves_in_place_of_one_cosine_share_more() -> None:
    document, path = example("to_code")
    document["arms"]["text-only"]["phases"] = ["code-0", "code-0"]
    document["arms"]["balanced-only"]["phases"] = ["balanced", "balanced"]
    document["arms"]["text-only+cooldown"]["phases"] = ["code-0", "code-0", "cooldown"]
    document["arms"]["balanced-only+cooldown"]["phases"] = ["balanced", "balanced", "cooldown"]
    del document["phases"]["text"], document["phases"]["balanced-400b"]
    _, found = one_seed(document, path)
    assert [round(total / 1e9) for total in (found.tree, found.rows, found.alone)] == [3200, 4600, 6200]


def test_seeds_multiply_everything() -> None:
    document, path = example("to_code")
    tree = Tree(build_grid(read_study(document, path), path))
    once, thrice = one_seed(*example("to_code"))[0], totals(tree)
    assert thrice == Totals(*(3 * total for total in vars(totals(once)).values()))


def test_decays_of_one_trunk_share_it() -> None:
    tree, found = one_seed(*example("wsd_budgets"))
    # The merged arm costs what its trunk costs where nothing is shared, and nothing in a table beside the others.
    assert [round(total / 1e9) for total in (found.tree, found.rows, found.alone)] == [435, 750, 750 + 360]
    trunk = [node for node in tree.nodes.values() if tree.grid.cells[0].plan.config.phases[0].name in node.name]
    assert [round(node.tokens / 1e9) for node in trunk] == [45, 45, 90, 180]
    assert [node.parent for node in trunk] == [None, *(node.id for node in trunk[:-1])]
    assert all(len(node.children) == 2 for node in trunk[:-1])


def test_an_arm_that_is_added_cuts_a_node_and_keeps_its_end(study: Document, tree_of: TreeOf) -> None:
    study["arms"] = {"long": ["trunk"], "other": ["text"]}
    study["baseline"] = "long"
    before = tree_of(study)
    study["arms"]["early"] = [{"phase": "trunk", "until": "20 iterations"}, "cooldown"]
    after = tree_of(study)
    end = before.paths["long", 1][-1]
    assert after.paths["long", 1] == [after.paths["early", 1][0], end]
    assert after.nodes[end].tokens == 20 * 8 * 16
    assert set(before.nodes) < set(after.nodes)


def test_a_wsd_phase_shares_what_lies_before_its_decay(study: Document, tree_of: TreeOf) -> None:
    wsd = {"schedule": "wsd", "peak": 3e-4, "warmup": "2 iterations", "final": 0, "decay": "10%"}
    study["phases"]["wsd"] = {**study["phases"]["trunk"], "learning_rate": wsd}
    cut = {"phase": "trunk", "until": "30 iterations"}
    study["arms"] = {
        "wsd": ["wsd"],
        "branch": [cut, "cooldown"],
        "late": [{**cut, "until": "38 iterations"}, "cooldown"],
    }
    study["baseline"] = "wsd"
    tree = tree_of(study)
    assert tree.paths["wsd", 1][0] == tree.paths["branch", 1][0] == tree.paths["late", 1][0]
    assert tree.paths["wsd", 1][1] != tree.paths["late", 1][1]


def test_a_cut_inside_a_batch_is_shared_with_no_longer_arm(study: Document, tree_of: TreeOf) -> None:
    study["arms"] = {"long": ["trunk"], "cut": [{"phase": "trunk", "until": "100 samples"}, "cooldown"]}
    study["baseline"] = "long"
    tree = tree_of(study)
    assert len(tree.paths["long", 1]) == 1
    study["arms"]["cut"][0]["until"] = "104 samples"
    assert len(tree_of(study).paths["long", 1]) == 2


def test_an_arm_may_start_from_the_weights_of_another(study: Document, tree_of: TreeOf) -> None:
    study["arms"]["from-two"] = {"phases": ["trunk"], "init": {"arm": "two"}}
    study["arms"]["alone"] = ["trunk"]
    tree = tree_of(study)
    path = tree.paths["from-two", 1]
    assert path[:-1] == tree.paths["two", 1]
    last = tree.nodes[path[-1]]
    assert (last.parent, last.resumes, last.clock) == (path[-2], False, 40 * 8)
    assert path[-1] != tree.paths["alone", 1][-1]
    cell = next(cell for cell in tree.grid.cells if cell.arm == "from-two")
    assert cell.tokens == 80 * 8 * 16
    assert tree.starts_run(last)


def test_a_chain_of_only_children_is_one_run(study: Document, tree_of: TreeOf) -> None:
    tree = tree_of(study)
    three = tree.paths["three", 1]
    assert {tree.run_of(state) for state in three} == {three[-1]}
    assert [tree.starts_run(tree.nodes[state]) for state in three] == [True, False, False]
    study["arms"]["four"] = ["text", "balanced", "trunk"]
    tree = tree_of(study)
    assert tree.run_of(three[0]) == tree.run_of(three[1]) == three[1]
    assert tree.starts_run(tree.nodes[three[2]])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_tree_depends_on_no_order_of_arms(data: st.DataObject, tree_of: TreeOf) -> None:
    document = copy.deepcopy(STUDY)
    document["arms"]["four"] = [{"phase": "trunk", "until": "20 iterations"}, "text"]
    document["arms"]["five"] = ["trunk", "cooldown"]
    document["arms"]["six"] = ["balanced", "trunk"]
    before = tree_of(document)
    arms = data.draw(st.permutations(list(document["arms"].items())))
    after = tree_of({**document, "arms": dict(arms)})
    assert len(before.nodes) == 2 * 10
    assert [(node.id, node.parent) for node in after.nodes.values()] == [
        (node.id, node.parent) for node in before.nodes.values()
    ]
    assert totals(after) == totals(before)
    assert all(tokens == node.tokens for node in after.nodes.values() for tokens in [before.nodes[node.id].tokens])


def test_two_arms_that_are_the_same_are_refused(study: Document, tree_of: TreeOf) -> None:
    study["phases"]["again"] = {
        **study["phases"]["balanced"],
        "learning_rate": study["phases"]["text"]["learning_rate"],
    }
    study["arms"]["twice"] = ["again"]
    with pytest.raises(ConfigError) as caught:
        tree_of(study)
    assert str(caught.value) == (
        "Config error: arms.twice: 'one' and 'twice' are the same training\n"
        "    write same_as: one if it should have both names, or remove it"
    )
    study["arms"]["twice"] = {"same_as": "one"}
    assert tree_of(study).paths["twice", 1] == tree_of(study).paths["one", 1]


def test_arms_that_are_the_same_at_different_levels_are_no_second_names(study: Document, tree_of: TreeOf) -> None:
    clip = {"train.clip_grad": 0.5}
    study["arms"] = {"one": ["balanced"], "two": {"phases": ["balanced"], "set": clip}}
    study["factors"] = {"clip": {"a": {"set": clip, "only": ["one"]}, "b": {}}}
    with pytest.raises(ConfigError) as caught:
        tree_of(study)
    assert str(caught.value) == (
        "Config error: arms.two: 'one@a' and 'two@b' are the same training\n"
        "    remove one of them, limit one with `only`, or let it change something that is learned from"
    )
    study["factors"]["clip"]["a"]["only"] = ["one", "two"]
    with pytest.raises(ConfigError, match=r"'one@a' and 'two@a' are the same training\n +write same_as: one"):
        tree_of(study)


def test_two_levels_that_are_the_same_are_refused(study: Document, tree_of: TreeOf) -> None:
    study["factors"] = {"train.micro_batch_size": [1, 2]}
    with pytest.raises(ConfigError) as caught:
        tree_of(study)
    assert "factors.train.micro_batch_size.2: 'one@1' and 'one@2' are the same training" in str(caught.value)
    assert len(caught.value.problems) == 3


def test_a_branch_whose_checkpoint_would_be_deleted_is_refused(study: Document, tree_of: TreeOf) -> None:
    study["arms"]["four"] = ["balanced", "cooldown"]
    study["set"]["checkpoint"] = {"every": "5 iterations", "keep_last": 2, "keep_phase_ends": False}
    with pytest.raises(ConfigError) as caught:
        check_kept(tree_of(study))
    said = str(caught.value)
    assert "starts from iteration 20 of 'one', which keep_last: 2 deletes before that" in said
    assert "set checkpoint.keep_phase_ends: true" in said
    for harmless in ({"keep_phase_ends": True}, {"keep_last": None}, {"keep_every": "10 iterations"}):
        allowed = {**study["set"], "checkpoint": {**study["set"]["checkpoint"], **harmless}}
        check_kept(tree_of({**study, "set": allowed}))


def test_the_order_of_data_and_the_first_weights_can_be_varied_apart(
    study: dict[str, Any], grid_of: Callable[[dict[str, Any]], Grid]
) -> None:
    both = grid_of(study).of("two", 2)[0]
    first = grid_of(study).of("two", 1)[0]
    data, weights = (grid_of({**study, "vary": kind}).of("two", 2)[0] for kind in ("data", "weights"))
    assert (both.plan.config.seed, both.plan.config.model.init_seed) == (2, None)
    assert (data.plan.config.seed, data.plan.config.model.init_seed) == (2, 1)
    assert (weights.plan.config.seed, weights.plan.config.model.init_seed) == (1, 2)
    # All four are different trainings, and the first seed is the same in each.
    assert len({cell.past.ends[-1] for cell in (first, both, data, weights)}) == 4
    alike = {grid_of({**study, "vary": kind}).of("two", 1)[0].past.ends[-1] for kind in ("both", "data", "weights")}
    assert alike == {first.past.ends[-1]}
    # With one order, all seeds read the same windows.
    assert weights.plan.schedule.fingerprints() == first.plan.schedule.fingerprints()


def test_an_arm_starts_from_weights_that_fit_its_model(study: Document, grid_of: Callable[[Document], Grid]) -> None:
    study["arms"]["wide"] = {"phases": ["text"], "init": {"arm": "one"}, "set": {"model.ffn_hidden_size": 256}}
    with pytest.raises(ConfigError, match=r"small.yaml: arms.wide.init.arm: model.ffn_hidden_size is \d+ in the arm"):
        grid_of(study)
