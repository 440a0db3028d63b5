"""`study run`: each stretch is trained once, whatever happens between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from megacode.base import child_processes
from megacode.base.errors import EXIT_RESUMABLE, ConfigError, LaunchError
from megacode.base.files import RunDir, read_jsonl
from megacode.config.config_file import dump_config
from megacode.eval.checkpoint_scores import score_checkpoints
from megacode.eval.harness import ScoringOptions
from megacode.statistics.reading import ITEMS
from megacode.study.document import plan_study
from megacode.study.found import find_states
from megacode.study_runs.disk import Disk
from megacode.study_runs.history import former_arms
from megacode.study_runs.jobs import jobs_of
from megacode.study_runs.local_runs import Choices, check_choices
from megacode.study_runs.runs import needed_runs
from megacode.study_runs.scores import ScoreBoard
from megacode.study_runs.status import study_status
from tests.limits import HANG
from tests.study_runs.conftest import RATE, TEXTS, Trial

pytestmark = pytest.mark.slow


def weights(trial: Trial, arm: str) -> dict[str, torch.Tensor]:
    """Return all tensors of the checkpoint at the end of an arm, but random states."""
    found = find_states(trial.place.path)
    path = found[trial.tree().paths[arm, 1][-1]].path
    tensors = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("random.")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_three_arms_share_their_trunk_and_a_second_call_trains_nothing(trained: Trial) -> None:
    assert trained.names() == ["base-s1", "decayed-s1", "longer-s1"]
    assert trained.iterations() == 8 + 4 + 4
    states = {arm["name"]: arm["state"] for arm in study_status(write(trained))["arms"]}
    assert states == {"base": "trained", "decayed": "trained", "longer": "trained"}
    before = sorted(path.name for path in trained.place.logs.iterdir())
    code, printed = trained.run()
    assert (code, trained.iterations()) == (0, 16)
    assert "all runs are there" in printed
    assert sorted(path.name for path in trained.place.logs.iterdir()) == before


def write(trial: Trial) -> Path:
    trial.write()
    return trial.path


def test_a_branched_arm_and_its_scores_are_bit_equal_to_the_arm_trained_alone(trained: Trial) -> None:
    cell = trained.tree().grid.of("decayed")[0]
    config = cell.plan.config.model_copy(update={"name": "alone", "run_dir": str(trained.folder / "alone")})
    path = trained.folder / "alone.yaml"
    path.write_text(dump_config(config))
    subprocess.run(child_processes.command(["train", str(path), "--nproc", "1"]), check=True, capture_output=True)
    alone = RunDir(trained.folder / "alone").checkpoint(12)
    tensors = load_file(next(alone.glob("*.safetensors")))
    assert same(weights(trained, "decayed"), {n: t for n, t in tensors.items() if not n.startswith("random.")})
    branched = find_states(trained.place.path)[trained.tree().paths["decayed", 1][-1]].path
    (trained.folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[::50]))
    (trained.folder / "own.yaml").write_text("name: mine\nbits_per_byte: {files: [texts.jsonl]}\n")
    scores, items = zip(*(score(checkpoint) for checkpoint in (branched, alone)), strict=True)
    assert scores[0] == scores[1]
    assert items[0] == items[1]
    assert len(items[0]) == 4


def score(checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
    """Score a checkpoint by `own.yaml`; return its scores, and the lines of its items."""
    (document,) = score_checkpoints([checkpoint], "own.yaml", ScoringOptions(device="cpu"))
    run = RunDir(checkpoint.parents[1])
    items = run.score("mine", RunDir.iteration_of(checkpoint)).with_suffix(ITEMS)
    return document["scores"], items.read_text().splitlines()


def test_an_arm_that_is_added_trains_only_its_own_nodes_and_one_that_is_removed_is_retired(trained: Trial) -> None:
    del trained.document["arms"]["longer"]
    trained.document["arms"]["further"] = ["trunk", "decay", "text"]
    code, _ = trained.run()
    assert (code, trained.iterations()) == (0, 16 + 4)
    assert trained.names() == ["base-s1", "decayed-s1", "further-s1", "longer-s1"]
    (former,) = former_arms(trained.tree(), Disk(trained.place.path), trained.place)
    assert (former.arm, former.kind, former.tokens) == ("longer", "retired", 4 * 4 * 16)
    assert (former.found[0].path / "megacode.json").exists()
    # Renamed, it is the same training: nothing is retired and nothing is trained.
    trained.document["arms"]["renamed"] = ["trunk", "text"]
    code, _ = trained.run()
    assert (code, trained.iterations()) == (0, 20)
    assert former_arms(trained.tree(), Disk(trained.place.path), trained.place) == []


def test_a_phase_that_has_changed_is_trained_again_only_if_the_user_says_so(trained: Trial) -> None:
    trained.document["phases"]["decay"]["learning_rate"]["final"] = 1e-4
    with pytest.raises(ConfigError) as refused:
        trained.run()
    said = str(refused.value)
    assert "'decayed' has changed since it was trained: 256 tokens a seed are stale, 256 are to be trained" in said
    assert "learning_rate.final: 0.0 -> 0.0001" in said
    assert "--retrain-stale" in said
    assert trained.iterations() == 16
    code, _ = trained.run(retrain=True)
    assert (code, trained.iterations()) == (0, 20)
    document = study_status(trained.path)
    assert [(one["arm"], one["kind"]) for one in document["former"]] == [("decayed", "stale")]
    assert document["versions"] == 2
    # Back to what is there: nothing to ask, nothing to train.
    trained.document["phases"]["decay"]["learning_rate"]["final"] = 0
    assert trained.run()[0] == 0
    assert trained.iterations() == 20


def test_a_failing_arm_leaves_all_others_done_and_its_mistake_is_not_repeated(trial: Trial) -> None:
    arms = {"base": ["trunk"], "other": ["text", "trunk"], "wrong": ["text", "decay"]}
    trial.document["arms"] = {**arms, "child": ["text", "decay", "trunk"], "next": ["text", "decay", "text"]}
    # A file in the place of a run's directory: wrong input that no plan can see.
    run = next(run for run in needed_runs(trial.tree(), Disk(trial.place.path)) if run.name.startswith("wrong"))
    run.run.path.parent.mkdir(parents=True)
    run.run.path.write_text("in the way")
    code, printed = trial.run()
    assert code == 1
    name = run.name
    assert f"failed: {name}: " in printed
    document = study_status(trial.path)
    states = {arm["name"]: (arm["state"], arm["cause"]) for arm in document["arms"]}
    assert states["base"] == states["other"] == ("trained", "")
    assert states["wrong"][0] == "failed"
    assert states["child"] == states["next"] == ("waiting", f"failed {name}")
    attempts = len(read_jsonl(trial.place.attempts))
    code, printed = trial.run()
    assert (code, len(read_jsonl(trial.place.attempts))) == (1, attempts)
    assert f"not tried again: {name}: failed" in printed
    # Nothing in the study has changed, so a person says that the cause is gone.
    run.run.path.unlink()
    assert trial.run(retry=True)[0] == 0


def test_an_unfinished_run_goes_on_although_an_arm_was_added_that_leaves_it_in_the_middle(trained: Trial) -> None:
    base = next(trained.place.path.glob("base-s1-*"))
    go_back(RunDir(base), 4)
    for other in [*trained.place.path.glob("decayed-s1-*"), *trained.place.path.glob("longer-s1-*")]:
        shutil.rmtree(other)
    trained.document["arms"] = {"base": ["trunk"], "early": [{"phase": "trunk", "until": "5 iterations"}, "text"]}
    runs = needed_runs(trained.tree(), Disk(trained.place.path))
    assert [(run.run.path.name == base.name, run.continues) for run in runs] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    assert runs[0].checkpoint(runs[0].last).name == "iter_0000005"
    code, _ = trained.run()
    assert code == 0
    # The rest of the trunk lies beside the run that was cut short, under a name of its own.
    assert trained.names() == ["base-s1", "base-s1-" + base.name.split("-")[-1], "early-s1"]
    lines = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "segment"] == [4]
    assert lines[-2]["iteration"] == 5
    assert trained.run()[0] == 0


def test_an_unfinished_run_goes_on_although_it_has_not_read_all_its_sources_yet(trial: Trial) -> None:
    trial.document["arms"] = {"late": ["text", "trunk"]}
    trial.document["baseline"] = "late"
    assert trial.run()[0] == 0
    (run,) = trial.place.path.glob("late-s1-*")
    go_back(RunDir(run), 4)
    again = needed_runs(trial.tree(), Disk(trial.place.path))
    assert [(one.run.path.name, one.continues) for one in again] == [(run.name, True)]
    assert [arm["state"] for arm in study_status(trial.path)["arms"]] == ["ready"]


def go_back(run: RunDir, iteration: int) -> None:
    """Leave a run as if it had been killed after an iteration's checkpoint."""
    for later in [number for number in run.iterations() if number > iteration]:
        shutil.rmtree(run.checkpoint(later))
    run.latest.write_text(run.iteration_name(iteration) + "\n")


def start(trial: Trial, *options: str) -> subprocess.Popen[bytes]:
    """Start `megacode study run` in the background."""
    trial.write()
    command = child_processes.command(["study", "run", str(trial.path), "--parallel", "2", *options])
    output = (trial.folder / "command.log").open("ab")
    return subprocess.Popen(command, cwd=trial.folder, stdout=output, stderr=output, start_new_session=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + HANG
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_a_while(trial: Trial, process: subprocess.Popen[bytes], dice: random.Random) -> None:
    """Wait for a random number of iterations, or of seconds."""
    wanted, moment = trial.iterations() + dice.randrange(1, 6), time.monotonic() + dice.uniform(0.5, 20)
    wait_for(lambda: trial.iterations() >= wanted or time.monotonic() > moment, process)
    time.sleep(dice.uniform(0, 0.2))


def test_killed_again_and_again_it_ends_like_an_undisturbed_study(trial: Trial, trained_runs: Path) -> None:
    # `STUDY_KILLS=20 pytest -k killed_again` for a long test; 3 keep the usual one short.
    kills, dice = int(os.environ.get("STUDY_KILLS", "3")), random.Random(os.environ.get("STUDY_SEED", "1"))
    for _ in range(kills):
        process = start(trial)
        # Some while processes start, some in the middle of training, some while it saves.
        wait_a_while(trial, process, dice)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family[1:])
        process.wait()
    code, printed = trial.run()
    assert code == 0, printed
    for arm in trial.document["arms"]:
        assert same(weights(trial, arm), weights(Trial(trained_runs.parent, trial.document), arm))
    assert trial.names() == ["base-s1", "decayed-s1", "longer-s1"]


def test_stopped_by_a_signal_it_saves_and_a_second_one_is_refused_meanwhile(trial: Trial) -> None:
    trial.document["phases"]["trunk"]["iterations"] = 100_000  # more than it trains until it is stopped
    process = start(trial)
    wait_for(trial.iterations, process)
    with pytest.raises(LaunchError, match="this study is being run by process") as refused:
        trial.run()
    assert f"`touch {trial.place.stop_request}` makes it save and stop" in str(refused.value)
    assert study_status(trial.path)["arms"][0]["state"] == "running"
    process.terminate()
    assert process.wait(HANG) == EXIT_RESUMABLE
    said = (trial.folder / "command.log").read_text()
    assert "the same command resumes: megacode study run" in said
    document = study_status(trial.path)
    assert (document["arms"][0]["state"], document["owner"]) == ("interrupted", None)
    (run,) = document["needed"][:1]
    # Nothing is lost: what was trained was saved.
    assert run["tokens_done"] == trial.iterations() * 4 * 16
    assert trial.iterations() > 0


def test_a_run_whose_process_is_killed_is_started_again_in_the_same_call(trial: Trial) -> None:
    trial.document["arms"] = {"base": ["trunk"]}
    trial.document["phases"]["trunk"]["iterations"] = 400
    process = start(trial)
    wait_for(lambda: trial.iterations() > 4, process)
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    assert process.wait(HANG) == 0
    assert [line["code"] for line in read_jsonl(trial.place.attempts)] == [-signal.SIGKILL, 0]


def test_a_run_that_diverges_is_tried_again_only_on_request(trial: Trial) -> None:
    trial.document["arms"] = {"base": ["trunk"], "wild": ["wild"]}
    wild = {**trial.document["phases"]["trunk"], "learning_rate": {**RATE, "peak": 1e30}}
    trial.document["phases"]["wild"] = wild
    trial.document["set"]["health"] = {"spikes": {"limit": 2}}
    code, printed = trial.run()
    assert code == 1
    assert "failed: wild-s1-" in printed
    document = study_status(write(trial))
    assert {arm["name"]: arm["state"] for arm in document["arms"]} == {"base": "trained", "wild": "diverged"}
    attempts = len(read_jsonl(trial.place.attempts))
    assert trial.run()[0] == 1
    assert len(read_jsonl(trial.place.attempts)) == attempts
    assert document["next"].endswith("--retry")
    assert trial.run(retry=True)[0] == 1
    assert len(read_jsonl(trial.place.attempts)) == attempts + 1


def test_unknown_arms_and_ranks_that_do_not_fit_are_named(trial: Trial) -> None:
    tree = trial.tree()
    with pytest.raises(ConfigError, match="there is no arm 'longr'") as refused:
        check_choices(tree, Choices(only=("longr",)))
    assert "did you mean longer?" in str(refused.value)
    trial.document["set"]["parallel"] = {"tensor": 2}
    with pytest.raises(ConfigError, match="3 ranks are not divisible by tensor x pipeline x context parallel = 2"):
        check_choices(trial.tree(), Choices(nproc=3))


def test_a_damaged_checkpoint_at_an_arms_end_is_made_again(trained):
    (decayed,) = trained.place.path.glob("decayed-*")
    state = decayed / "checkpoints" / "iter_0000012" / "megacode.json"
    state.write_text("{")
    jobs = [job for job in _jobs(trained) if job.kind == "train"]
    assert [job.name for job in jobs] == [decayed.name]
    assert not jobs[0].is_done
    code, printed = trained.run()
    assert code == 0
    assert f"trained {decayed.name}" in printed
    assert "all runs are there" in printed
    assert Disk(trained.place.path).states.keys() >= {path[-1] for path in trained.tree().paths.values()}


def _jobs(trial):
    disk, tree = Disk(trial.place.path), trial.tree()
    return jobs_of(needed_runs(tree, disk), {}, ScoreBoard(tree, disk), trial.place, None, False)


def test_wrong_suites_are_refused_before_anything_is_trained(trial):
    trial.document["suites"] = ["nosuch", "demo", "demo"]
    with pytest.raises(ConfigError) as caught:
        trial.run()
    said = str(caught.value)
    assert "suites[0]: there is no suite 'nosuch'" in said
    assert "suites[2]: 'demo' stands twice" in said
    for name in ("a", "b"):
        (trial.folder / f"{name}.yaml").write_text("name: mine\ntasks: [piqa]\n")
    trial.document["suites"] = ["none.yaml", "a.yaml", "b.yaml"]
    for call in (trial.run, lambda: plan_study(trial.path)):
        with pytest.raises(ConfigError) as caught:
            call()
        said = str(caught.value)
        assert "suites[0]: none.yaml: there is no such suite file" in said
        assert "suites[2]: scores of 'a.yaml' and 'b.yaml' would have one file name" in said
    assert not trial.place.path.exists()


def test_an_arm_is_known_after_what_it_took_its_weights_from_was_deleted(trial):
    trial.document["phases"]["trunk"]["iterations"] = 2
    trial.document["arms"] = {"base": ["trunk"], "child": {"phases": ["trunk"], "init": {"arm": "base"}}}
    assert trial.run()[0] == 0
    (base,) = trial.place.path.glob("base-*")
    shutil.rmtree(base)
    assert [run.name for run in needed_runs(trial.tree(), Disk(trial.place.path))] == [base.name]
