"""`megacode study plan` and `study arms`: what they show, find on disk, and refuse."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from megacode.base.errors import ConfigError, PlanError
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config
from megacode.study.costs import Costs, Gpus
from megacode.study.document import check_claims, plan_study
from megacode.study.found import find_states, states_of
from megacode.study.grid import Cell, Grid
from megacode.study.identity import start_from
from megacode.study.tables import render_study
from megacode.study.tree import Tree
from megacode.study.why import reasons
from tests.limits import HANG

Document = dict[str, Any]
STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"


def save(cell: Cell, clock: int, path: Path, formers: dict[int, Cell] | None = None, **config: Any) -> Path:
    """Write what a checkpoint of a cell's run says of itself at a clock, without tensors; `formers` by last clock."""
    schedule = cell.plan.schedule
    chain = [link for link in schedule.fingerprints() if link["first_sample"] < clock]
    text = dump_config(cell.plan.config.model_copy(update=config))
    path.mkdir(parents=True)
    configs = {until: dump_config(other.plan.config) for until, other in (formers or {}).items()}
    state = TrainState(iteration=1, config=next(iter(configs.values()), text))
    # As a run that is resumed with the next config at each of these clocks.
    for until, after in zip(configs, [*configs.values(), text][1:], strict=True):
        state.consumed_samples = until
        state.continue_with(after)
    state.consumed_samples, state.fingerprints = clock, chain
    state.write(path)
    return path


def test_the_shape_that_others_read_is_fixed() -> None:
    document = plan_study(STUDIES / "order_matched.yaml")
    assert set(document["tokens"]) == {"tree", "rows", "alone"}
    node = document["nodes"][0]
    assert set(node) >= {"id", "name", "parent", "tokens", "seed", "arms", "state"}
    arm = document["arms"][0]
    assert set(arm) >= {"name", "seed", "nodes", "tokens"}
    tokens = {row["id"]: row["tokens"] for row in document["nodes"]}
    assert all(arm["tokens"] == sum(tokens[node] for node in arm["nodes"]) for arm in document["arms"][:9])
    assert len(document["arms"]) == 9
    match = document["match"][0]
    assert (match["arms"], match["equal"]) == (["early", "uniform", "late"], True)
    assert match["samples_by_source"]["late"] == {"code": 15_625_114, "text": 38_086_246}
    assert json.loads(json.dumps(document)) == document


def test_costs_are_those_of_the_runs_alone() -> None:
    document = plan_study(STUDIES / "wsd_budgets.yaml", Gpus(16, "H200"))
    assert document["flops"] == sum(row["flops"] for row in document["nodes"])
    assert document["flops"] / document["tokens"]["tree"] == pytest.approx(3.611e9, rel=1e-3)
    assert document["nodes"][0]["checkpoint_bytes"] == pytest.approx(5.6e9, rel=0.01)
    # Eight nodes a seed, and a mean that holds weights alone.
    assert document["disk_bytes"] == 2 * (8 * 3 + 1) * document["nodes"][0]["checkpoint_bytes"] // 3
    more = plan_study(STUDIES / "wsd_budgets.yaml", Gpus(32, "H200"))
    assert document["gpu_hours"] < more["gpu_hours"] < 1.2 * document["gpu_hours"]


def test_hours_are_those_of_the_vocabulary_of_each_arm(study: Document, tree_of: Callable[[Document], Tree]) -> None:
    node = next(iter(tree_of(study).nodes.values()))
    wide = replace(node, cell=replace(node.cell, plan=replace(node.cell.plan, vocab_size=200_000)))
    costs, alone = Costs(Gpus(1)), Costs(Gpus(1))
    small, large = costs.hours(node), costs.hours(wide)
    assert small is not None
    assert large is not None
    assert small < large == alone.hours(wide)


def test_gpu_hours_are_unknown_where_the_usual_gpus_do_not_fit_and_refused_where_asked_for() -> None:
    assert plan_study(STUDIES / "to_code_mini.yaml")["gpu_hours"] is None
    with pytest.raises(ConfigError, match="micro_batch_size 8 x data parallel 8"):
        plan_study(STUDIES / "to_code_mini.yaml", Gpus(8))
    assert plan_study(STUDIES / "to_code_mini.yaml", Gpus(1))["gpu_hours"] > 0


def test_intervals_to_expect_are_those_of_the_design(tmp_path: Path, study: Document) -> None:
    from megacode.statistics.power import expected, item_standard_error

    study["arms"] |= {"four": ["trunk"], "again": {"same_as": "two"}}
    study["compare"] = {"seed_sd": 0.8}
    found = plan_study(written(tmp_path, study), items=400)["expected"]
    assert (found["arms"], found["seed_spread"], found["seed_spread_assumed"]) == (4, 0.8, False)
    assert [row["seeds"] for row in found["rows"]] == [2, 3]
    wanted = expected(4, 2, item_standard_error(400, 50, 0.5), 0.8, 400)
    assert found["rows"][0]["degrees_of_freedom"] == wanted.df
    assert found["rows"][0]["smallest_visible"] == wanted.smallest_visible
    assert found["rows"][1]["smallest_visible_together"] < found["rows"][0]["smallest_visible_together"]
    assert found["rows"][0]["smallest_visible"] < found["rows"][0]["smallest_visible_together"]


def test_one_arm_has_no_intervals(tmp_path: Path, study: Document) -> None:
    study["arms"] = {"one": ["balanced"]}
    document = plan_study(written(tmp_path, study))
    assert document["expected"] is None
    assert "intervals to expect" not in printed(document)


def test_twins_are_shown_side_by_side(tmp_path: Path, study: Document) -> None:
    study["factors"] = {"scale": {"full": {}, "proxy": {"twin": "1/4", "of": "full"}}}
    document = plan_study(written(tmp_path, study))
    assert [twin["arm"] for twin in document["twins"]] == ["one@proxy", "two@proxy", "three@proxy"]
    code = document["twins"][1]["sources"]["code"]
    assert code["passes"] == pytest.approx(code["full_passes"], abs=0.01)
    assert document["twins"][1]["full_tokens"] == 4 * document["twins"][1]["tokens"]
    assert "twins: passes over each source" in printed(document)


def written(folder: Path, study: Document, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"runs": str(folder / "runs"), **study}, sort_keys=False, allow_unicode=True))
    return path


def printed(document: Document, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False)
    render_study(document, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["to_code", "order_matched", "wsd_budgets", "to_code_mini"])
def test_the_text_is_whole_at_80_columns(name: str) -> None:
    text = printed(plan_study(STUDIES / f"{name}.yaml"))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "training tree" in text
    assert "ids are provisional" in " ".join(text.split())


def test_the_text_names_totals_and_arms() -> None:
    text = printed(plan_study(STUDIES / "to_code.yaml"))
    assert "470m         1234    3.6T         4.6T    22%        6.2T     42%" in text
    assert "balanced-to-text+cooldown@470m" in text


def test_what_is_trained_is_found_by_content(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    grid = grid_of(study)
    cell = grid.of("two")[0]
    save(cell, 160, tmp_path / "runs/renamed/checkpoints/iter_0000020", name="renamed", run_dir="/gone")
    save(cell, 80, tmp_path / "runs/renamed/checkpoints/iter_0000010")
    (tmp_path / "runs/broken/checkpoints/iter_0000001").mkdir(parents=True)
    (tmp_path / "runs/broken/checkpoints/iter_0000001/megacode.json").write_text("{")
    found = find_states(tmp_path / "runs")
    assert set(found) == {cell.past.ends[0], cell.past.at(0, 80)}
    document = plan_study(written(tmp_path, study))
    trained = [row for row in document["nodes"] if row["state"] == "trained"]
    assert [row["id"] for row in trained] == [cell.past.ends[0]]
    assert trained[0]["checkpoint"].endswith("runs/renamed/checkpoints/iter_0000020")
    assert trained[0]["seal"]
    assert document["tokens_to_train"] == document["tokens"]["tree"] - trained[0]["tokens"]
    assert "1 node trained already" in printed(document)


def test_a_state_is_known_through_what_it_started_from(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    study["arms"]["later"] = {"phases": ["trunk"], "init": {"arm": "two"}}
    grid = grid_of(study)
    two, later = grid.of("two")[0], grid.of("later")[0]
    end = save(two, 320, tmp_path / "a/checkpoints/iter_0000040")
    init = later.plan.config.init.model_copy(update={"from_": str(end), "load": "weights"})
    of_weights = save(later, 320, tmp_path / "b/checkpoints/iter_0000040", init=init)
    assert later.past.ends[0] in {state.id for state in states_of(of_weights)}
    assert len(states_of(of_weights)) == 2  # by the seal of the checkpoint, too
    branch = init.model_copy(update={"from_": str(of_weights), "load": "all"})
    of_all = save(later, 320, tmp_path / "c/checkpoints/iter_0000040", init=branch)
    assert later.past.ends[0] in {state.id for state in states_of(of_all)}
    gone = save(later, 320, tmp_path / "d/checkpoints/iter_0000040", init=init.model_copy(update={"from_": "/gone"}))
    assert states_of(gone) == []
    # As training writes it: then the start may be deleted, and be moved, too.
    state = TrainState.read(gone)
    state.record_start(end, TrainState.read(end))
    state.write(gone)
    assert {later.past.ends[0], *(one.id for one in states_of(of_weights))} == {one.id for one in states_of(gone)}
    fresh = TrainState(config="model: {}")
    state.record_start(end, fresh)
    state.write(gone)
    assert [one.past.start for one in states_of(gone)] == [f"weights of checkpoint {fresh.seal}"]


def test_a_run_whose_settings_changed_on_the_way_is_the_state_of_no_arm(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    study["arms"]["clip"] = {"phases": ["balanced", "text"], "set": {"train.clip_grad": 0.5}}
    study["arms"]["layout"] = {"phases": ["balanced", "text", "text"], "set": {"train.micro_batch_size": 2}}
    study["arms"]["peak"] = {"phases": ["balanced", "text"], "set": {"phases.text.learning_rate.peak": 2e-4}}
    grid = grid_of(study)
    two, clip, layout, peak = (grid.of(arm)[0] for arm in ("two", "clip", "layout", "peak"))
    changed = save(clip, 320, tmp_path / "changed", {80: two})
    assert states_of(changed) == []
    back = save(clip, 320, tmp_path / "back", {80: clip, 100: two, 200: clip})
    assert states_of(back) == []
    late = save(peak, 320, tmp_path / "late", {240: two})
    assert states_of(late) == []
    assert TrainState.read(back).seal == json.loads((back / "megacode.json").read_text())["seal"]
    assert "former_configs" not in json.loads((save(two, 80, tmp_path / "never") / "megacode.json").read_text())
    # A branch off a phase that its trunk goes on with.
    study["arms"] |= {"long": ["trunk"], "cut": [{"phase": "trunk", "until": "20 iterations"}, "cooldown"]}
    long, cut = (grid_of(study).of(arm)[0] for arm in ("long", "cut"))
    branch = save(cut, 200, tmp_path / "branch", {160: long})
    assert [state.id for state in states_of(branch)] == [cut.past.ends[1]]
    # What changes no learning, or only what had not begun yet.
    same = save(two, 320, tmp_path / "same", {80: layout, 160: peak})
    assert [state.id for state in states_of(same)] == [two.past.ends[1]]


def test_an_arm_from_a_checkpoint_is_known_by_its_seal(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    end = save(grid_of(study).of("two")[0], 320, tmp_path / "a/checkpoints/iter_0000040")
    study["arms"]["later"] = {"phases": ["trunk"], "init": {"from": str(end)}}
    facts = grid_of(study).of("later")[0].past.facts(0, 320)
    assert facts["past"] == start_from("checkpoint", TrainState.read(end).seal)


def test_arms_from_a_checkpoint_stand_below_it_in_the_tree(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    end = save(grid_of(study).of("two")[0], 320, Path("a/checkpoints/iter_0000040"))
    study["arms"]["later"] = {"phases": ["trunk"], "init": {"from": str(end)}}
    study["arms"]["after"] = {"phases": ["text"], "init": {"arm": "later"}}
    document = plan_study(written(tmp_path, study))
    origins = {row["phase"]: row["from"] for row in document["nodes"] if row["parent"] is None}
    assert origins == {"balanced": None, "text": None, "trunk": str(end)}
    lines = [line.strip() for line in printed(document).splitlines()]
    assert "random weights" in lines
    assert lines[lines.index(f"weights of {end}") + 1].startswith("└── trunk")


def test_an_exposure_after_a_checkpoint_from_elsewhere_is_not_proven(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    end = save(grid_of(study).of("two")[0], 320, tmp_path / "a/checkpoints/iter_0000040")
    study["arms"] |= {"alone": ["trunk"], "later": {"phases": ["trunk"], "init": {"from": str(end)}}}
    study["match"] = [{"arms": ["alone", "later"], "exposure": "samples"}]
    (match,) = plan_study(written(tmp_path, study))["match"]
    (problem,) = match["problems"]
    assert problem["what"].startswith("'later' starts from weights of checkpoint ")
    assert problem["fix"] == "start both from random weights, or from one checkpoint"


def test_why_names_the_fact_that_makes_a_node_new(
    study: Document, tree_of: Callable[[Document], Tree], tmp_path: Path
) -> None:
    study["seeds"] = [1]
    study["arms"] = {
        "one": ["balanced", "text"],
        "clip": {"phases": ["balanced"], "set": {"train.clip_grad": 0.5}},
        "peak": {"phases": ["balanced"], "set": {"phases.balanced.learning_rate.peak": 2e-4}},
        "other": {"phases": ["balanced", "text"], "set": {"train.clip_grad": 0.5}},
    }
    tree = tree_of(study)
    said = {name: reasons(tree)[tree.paths[name, 1][-1]].sentence() for name in ("one", "clip", "peak", "other")}
    balanced, text = (tree.nodes[state].name for state in tree.paths["one", 1])
    assert said == {
        "one": "the first of its kind",
        "clip": f"like {balanced}, but train.clip_grad: 1.0 -> 0.5",
        "peak": f"like {balanced}, but learning_rate.peak: 0.0003 -> 0.0002",
        "other": f"like {text}, but train.clip_grad: 1.0 -> 0.5",
    }
    document = plan_study(written(tmp_path, study), why=True)
    assert all(row["why"] for row in document["nodes"])
    assert len(document["nodes"]) == 5
    assert "train.clip_grad" in printed(document)


def test_why_looks_at_what_lies_on_disk_too(
    study: Document, grid_of: Callable[[Document], Grid], tmp_path: Path
) -> None:
    study["arms"] = {"one": ["balanced"]}
    study["seeds"] = [1]
    path = save(grid_of(study).of("one")[0], 160, tmp_path / "runs/old/checkpoints/iter_0000020")
    study["set"]["train"]["weight_decay"] = 0.2
    (row,) = plan_study(written(tmp_path, study), why=True)["nodes"]
    assert row["why"] == f"like {path}, but train.weight_decay: 0.1 -> 0.2"
    # A checkpoint on a node's own way is nothing else that it could be like.
    save(grid_of(study).of("one")[0], 80, tmp_path / "runs/one/checkpoints/iter_0000010")
    (row,) = plan_study(written(tmp_path, study), why=True)["nodes"]
    assert row["why"] == f"like {path}, but train.weight_decay: 0.1 -> 0.2"


def test_a_claim_that_is_wrong_is_shown_and_then_refused(study: Document, tmp_path: Path) -> None:
    study["match"] = [{"arms": ["one", "two"], "exposure": "samples"}]
    document = plan_study(written(tmp_path, study))
    assert document["match"][0]["equal"] is False
    assert "✗ one, two do not match" in printed(document)
    with pytest.raises(PlanError) as caught:
        check_claims(document)
    assert caught.value.exit_code == 3
    assert "match[0].exposure: 'two' does not read as many samples as 'one'" in str(caught.value)


def test_unused_phases_and_a_single_seed_are_told(study: Document, tmp_path: Path) -> None:
    study["seeds"] = [1]
    warnings = plan_study(written(tmp_path, study))["warnings"]
    assert "trunk: no arm uses these phases" in warnings
    assert "one seed: differences will be those of these models, not of these recipes" in warnings


def test_an_unknown_gpu_is_an_input_error() -> None:
    with pytest.raises(ConfigError, match="unknown GPU"):
        plan_study(STUDIES / "order_matched.yaml", Gpus(kind="H1000"))


def call(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megacode.cli", "study", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, check=False)


def test_the_commands_answer_with_json_and_exit_codes(study: Document, tmp_path: Path) -> None:
    path = str(written(tmp_path, study))
    done = call("plan", path, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"]["tree"] > 0
    placed = call("arms", path, "--from", "two", "--place", "late", "--json", folder=tmp_path)
    assert list(json.loads(placed.stdout)["arms"]) == ["two-late"]
    text = call("arms", path, "--from", "two", folder=tmp_path)
    assert yaml.safe_load(text.stdout)["match"][0]["exposure"] == "samples"
    study["match"] = [{"arms": ["one", "two"], "exposure": "samples"}]
    wrong = call("plan", str(written(tmp_path, study)), "--json", folder=tmp_path)
    assert wrong.returncode == 3
    assert json.loads(wrong.stdout)["match"][0]["equal"] is False
    assert "in arm 'two'" in wrong.stderr or "change their blends" in wrong.stderr
    missing = call("plan", "gone.yaml", folder=tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "Traceback" not in missing.stderr
