"""Which runs a study needs before anything is trained: chains of nodes, their configs and their starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import ConfigError, PlanError
from megacode.config.config_file import load_config
from megacode.planning.run_plan import make_plan
from megacode.study_runs.disk import Disk
from megacode.study_runs.history import accept, changes_since_scores, versions
from megacode.study_runs.jobs import jobs_of, write_configs
from megacode.study_runs.local_runs import checked_tree
from megacode.study_runs.runs import StudyRun, needed_runs
from megacode.study_runs.scores import ScoreBoard
from megacode.study_runs.states import run_states
from megacode.study_runs.status import study_status
from tests.study_runs.conftest import Trial


def runs_of(trial: Trial, *arms: str) -> list[StudyRun]:
    return needed_runs(trial.tree(), Disk(trial.place.path), arms)


def test_a_run_goes_on_until_arms_part_and_branches_start_from_its_end(trial: Trial) -> None:
    trial.document["arms"]["alone"] = ["text", "trunk", "decay"]
    by_name = {run.name.rpartition("-s1")[0]: run for run in runs_of(trial)}
    assert sorted(by_name) == ["alone", "base", "decayed", "longer"]
    assert [len(by_name[name].nodes) for name in ("alone", "base", "decayed", "longer")] == [3, 1, 1, 1]
    assert by_name["alone"].start is None
    end = by_name["base"].checkpoint(by_name["base"].last)
    for name in ("decayed", "longer"):
        run = by_name[name]
        assert (run.start, run.parent) == (end, by_name["base"].last.id)
        assert (run.config.init.from_, run.config.init.load) == (str(end), "all")
        assert run.config.phases[0].name == "trunk"


def test_names_carry_ids_and_do_not_depend_on_other_arms(trial: Trial) -> None:
    before = {run.name for run in runs_of(trial)}
    trial.document["arms"]["another"] = ["text"]
    assert before < {run.name for run in runs_of(trial)}
    trial.document["phases"]["trunk"]["learning_rate"] = {
        **trial.document["phases"]["trunk"]["learning_rate"],
        "peak": 1,
    }
    assert not before & {run.name for run in runs_of(trial)}


def test_an_arm_that_leaves_a_phase_early_cuts_the_run_there(trial: Trial) -> None:
    trial.document["arms"]["early"] = [{"phase": "trunk", "until": "3 iterations"}, "decay"]
    by_name = {run.name.rpartition("-s1")[0]: run for run in runs_of(trial)}
    (first,) = [run for run in by_name.values() if run.start is None]
    assert str(first.config.phases[0].until) == "12 samples"
    assert make_plan(first.config).schedule.total_samples == 12
    rest = by_name["base"]
    assert (rest.start, rest.config.phases[0].until) == (first.checkpoint(first.last), None)


def test_weights_of_another_arm_start_a_run_at_clock_0(trial: Trial) -> None:
    trial.document["arms"] = {"base": ["trunk"], "tuned": {"phases": ["text"], "init": {"arm": "base"}}}
    base, tuned = runs_of(trial)
    assert (tuned.config.init.load, tuned.start, tuned.parent) == ("weights", base.checkpoint(base.last), base.last.id)
    assert [phase.name for phase in tuned.config.phases] == ["text"]
    # Only what an arm needs: `tuned` starts from `base`, and not the other way round.
    assert len(runs_of(trial, "tuned")) == 2
    assert len(runs_of(trial, "base")) == 1


def test_a_run_ends_where_its_policy_would_delete_a_checkpoint_that_is_scored(trial: Trial) -> None:
    trial.document["arms"] = {"base": ["trunk"], "decayed": ["trunk", "decay"]}
    assert [len(run.nodes) for run in runs_of(trial)] == [2]
    trial.document["set"]["checkpoint"] = {"keep_last": 1, "keep_phase_ends": False}
    assert [len(run.nodes) for run in runs_of(trial)] == [1, 1]
    trial.document["set"]["checkpoint"]["keep_every"] = "4 iterations"
    assert [len(run.nodes) for run in runs_of(trial)] == [2]


def test_configs_are_files_that_train_takes_by_hand(trial: Trial) -> None:
    runs = runs_of(trial)
    write_configs(runs, trial.place)
    for run in runs:
        assert load_config(trial.place.config(run.name)) == run.config
    times = [path.stat().st_mtime_ns for path in sorted(trial.place.configs.iterdir())]
    write_configs(runs, trial.place)
    assert [path.stat().st_mtime_ns for path in sorted(trial.place.configs.iterdir())] == times
    assert len(times) == 3


def test_jobs_come_with_the_longest_path_first_and_wait_for_the_run_that_makes_their_start(trial: Trial) -> None:
    trial.document["arms"]["short"] = ["text"]
    tree, disk = trial.tree(), Disk(trial.place.path)
    runs = needed_runs(tree, disk)
    jobs = jobs_of(runs, {}, ScoreBoard(tree, disk), trial.place, None, False)
    assert [job.name.rpartition("-s1")[0] for job in jobs[:1]] == ["base"]
    assert sorted(bool(job.needs) for job in jobs) == [False, False, True, True]
    assert jobs[0].arguments[-2:] == ("--nproc", "1")
    states = run_states(runs, trial.place)
    waiting = {name.rpartition("-s1")[0]: state.cause for name, state in states.items() if state.state == "waiting"}
    assert waiting == dict.fromkeys(("decayed", "longer"), jobs[0].name)


def test_history_keeps_each_version_once_and_tells_what_changed_after_the_first_score(trial: Trial) -> None:
    def note(scored: bool) -> None:
        tree = trial.tree()
        accept(tree, Disk(trial.place.path), trial.place, "small.yaml", scored, retrain=False)

    note(False)
    note(False)
    assert len(versions(trial.place)) == 1
    trial.document["compare"] = {"margin": "0.5 points"}
    note(False)
    assert changes_since_scores(trial.tree().grid.study, trial.place) == []
    trial.document["baseline"] = "longer"
    note(True)
    trial.document["compare"] = {"margin": "2 points"}
    note(True)
    assert [line["scored"] for line in versions(trial.place)] == [False, False, True, True]
    del trial.document["arms"]["decayed"]
    found = changes_since_scores(trial.tree().grid.study, trial.place)
    changes = {change["key"]: (change["before"], change["now"]) for change in found}
    assert changes.pop("baseline") == ("base", "longer")
    assert changes.pop("compare.margin") == ("0.5", "2.0")
    assert {key.rpartition(".")[0] for key in changes} == {"arms.decayed"}
    trial.write()
    declared = study_status(trial.path)["changed_after_scores"]
    assert [change["key"] for change in declared] == ["baseline", "compare.margin"]


@pytest.mark.filterwarnings("error")
def test_a_twin_is_part_of_the_history(trial: Trial) -> None:
    trial.document["factors"] = {"scale": {"full": {}, "proxy": {"twin": "1/2", "of": "full"}}}
    accept(trial.tree(), Disk(trial.place.path), trial.place, "small.yaml", False, retrain=False)
    (line,) = versions(trial.place)
    assert line["document"]["factors"]["scale"]["proxy"]["twin"] == "1/2"
    assert set(line["arms"]) == {
        f"{arm}@{level}" for arm in ("base", "decayed", "longer") for level in ("full", "proxy")
    }


def test_a_study_whose_data_are_not_there_is_refused_and_its_runs_are_planned(trial: Trial) -> None:
    trial.document["set"]["sources"]["code"] = {"path": str(trial.folder / "later"), "tokens": 10_000}
    trial.write()
    with pytest.raises(ConfigError, match="not there yet: source code"):
        checked_tree(trial.path)
    document = study_status(trial.path)
    assert {arm["state"] for arm in document["arms"]} == {"planned"}
    assert document["next"].startswith("make the data sets")


def test_a_claim_that_does_not_hold_ends_it_before_anything_is_trained(trial: Trial) -> None:
    trial.document["match"] = [{"arms": ["decayed", "longer"], "end": "decay"}]
    trial.write()
    with pytest.raises((PlanError, ConfigError)):
        checked_tree(trial.path)
    assert not Path(trial.place.path).exists()
