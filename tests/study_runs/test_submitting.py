"""Jobs of a study, with programs in place of SLURM's that write down what they are asked; see tests/slurm, too."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megacode.base.errors import ConfigError, LaunchError
from megacode.base.files import read_jsonl
from megacode.cli.studies import _repeatable
from megacode.data.heldout_items import build_items
from megacode.launch.submission import STUDY, Request
from megacode.study_runs.local_runs import Choices
from megacode.study_runs.outcomes import note_attempt, read_attempts
from megacode.study_runs.slurm_jobs import describe_end, end_job, job_words, queued_jobs, site_variable, slurm_name
from megacode.study_runs.status import study_status
from megacode.study_runs.submitted_table import render_submitted
from megacode.study_runs.submitting import JobFate, Submission, submit_study

SBATCH = """#!/usr/bin/env python3
import json, os, sys
place = os.environ["FAKE_SLURM"]
refused = open(f"{place}/refuse").read().split() if os.path.exists(f"{place}/refuse") else []
if any(word in " ".join(sys.argv) + sys.stdin.read() for word in refused):
    sys.exit("sbatch: error: Invalid account")
with open(f"{place}/calls", "a") as file:
    known = ("MEGACODE_STUDY", "RUN_DIR", "MEGACODE_CHAIN", "SITE", "MEGACODE_COMMAND")
    file.write(json.dumps({"words": sys.argv[1:], "variables": {name: os.environ.get(name) for name in known}}) + "\\n")
print(100 + len(open(f"{place}/calls").readlines()))
"""
SQUEUE = '#!/bin/bash\n[ -e "$FAKE_SLURM/silent" ] && { echo "squeue: error: no controller" >&2; exit 1; }\n' + (
    'cat "$FAKE_SLURM/queue"\n'
)


class Slurm:
    """What the programs wrote down, and what they answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "queue").write_text("")

    def calls(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "calls") if (self.folder / "calls").exists() else []

    def queue(self, trial: Any, entries: list[JobFate]) -> None:
        """Have SLURM answer that these jobs are in its queue."""
        lines = [f"{one.job}|PENDING|Priority|{slurm_name(trial.place, one.name)}\n" for one in entries]
        (self.folder / "queue").write_text("7|RUNNING|None|somebody's job\n" + "".join(lines))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", "#!/bin/bash\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    for name in ("CONTINUITY", "SITE", STUDY, "MEGACODE_CHAIN_BEFORE"):
        monkeypatch.delenv(name, raising=False)
    return Slurm(folder)


def submit(trial: Any, choices: Choices | None = None, **how: Any) -> list[JobFate]:
    trial.write()
    request = how.pop("request", Request(1, 1, 0, 1, "10"))
    given = Submission(request, **how)
    return submit_study(trial.path, choices or Choices(), given, build_items, dict(os.environ))


def test_a_run_is_submitted_after_the_one_that_it_starts_from_and_nothing_twice(trial, slurm):
    first = submit(trial, flags=("--account=mine",))
    assert [(one.fate, one.job, one.after) for one in first] == [
        ("submitted", "101", ()), ("submitted", "102", ("101",)), ("submitted", "103", ("101",))
    ]  # fmt: skip
    words = [call["words"] for call in slurm.calls()]
    assert all("--account=mine" in one for one in words)
    assert "--dependency=afterok:101" in words[1]
    assert "--kill-on-invalid-dep=yes" in words[1]
    assert not any(word.startswith("--dependency") for word in words[0])
    # Directories and chains of the shell are not those of the runs.
    assert all(call["variables"]["RUN_DIR"] == call["variables"]["MEGACODE_CHAIN"] == "" for call in slurm.calls())
    assert [line["job"] for line in read_jsonl(trial.place.jobs)] == ["101", "102", "103"]

    slurm.queue(trial, first)
    again = submit(trial)
    assert [(one.fate, one.job) for one in again] == [("queued", job) for job in ("101", "102", "103")]
    assert len(slurm.calls()) == 3
    words = job_words(trial.place)
    assert words[first[1].name] == "job 102, pending (Priority)"
    shown = study_status(trial.path, job_words)
    assert [run["state"] for run in shown["needed"]] == ["queued"] * 3
    assert shown["next"] == "wait; runs continue"
    assert study_status(trial.path)["next"] == f"megacode study submit {shlex.quote(str(trial.path))}"

    # The trunk's job alone is left: what starts from it waits for that one.
    slurm.queue(trial, first[:1])
    assert [(one.fate, one.after) for one in submit(trial)] == [
        ("queued", ()), ("submitted", ("101",)), ("submitted", ("101",))
    ]  # fmt: skip


def test_scores_follow_their_runs(trial, slurm):
    trial.document["suites"] = ["heldout"]
    entries = submit(trial, score_flags=("--time=5",))
    runs = {one.name: one.job for one in entries if one.kind == "train"}
    scores = [one for one in entries if one.kind == "score"]
    assert len(runs) == len(scores) == 3
    assert [one.after for one in scores] == [(runs[one.name.partition("@")[0]],) for one in scores]
    words = slurm.calls()[-1]["words"]
    assert "--time=5" in words
    assert words[words.index("--tasks") + 1] == str(trial.place.items / "heldout")
    assert words[-1] != "evaluate"
    assert (trial.place.items / "heldout" / "items.json").exists()
    assert len(submit(trial, Choices(scores=False))) == 3


@pytest.mark.parametrize("by_site", [False, True])
def test_in_a_chain_only_what_can_start_is_submitted(trial, slurm, monkeypatch, by_site):
    site = trial.folder / "my site.env"
    site.write_text("CONTINUITY=chain\necho a module was loaded\n")
    if not by_site:
        monkeypatch.setenv("CONTINUITY", "chain")
    entries = submit(trial, site=site if by_site else None)
    assert [one.fate for one in entries] == ["submitted", "waits", "waits"]
    assert entries[1].why == f"until {entries[0].name} has ended"


def test_what_slurm_refuses_is_told_and_the_rest_goes_on(trial, slurm):
    trial.document["arms"]["other"] = ["text"]
    (slurm.folder / "refuse").write_text("trunk-s1 base-s1")
    entries = submit(trial)
    fates = {one.name.rpartition("-")[0]: one for one in entries}
    assert {name: one.fate for name, one in fates.items()} == {
        "base-s1": "refused", "decayed-s1": "held", "longer-s1": "held", "other-s1": "submitted"
    }  # fmt: skip
    assert fates["base-s1"].why == "sbatch: error: Invalid account"
    assert fates["decayed-s1"].cause == fates["base-s1"].name
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    render_submitted(entries, trial.path, console)
    shown = console.export_text()
    assert f"{fates['base-s1'].name}: sbatch: error: Invalid account; 2 more start from it" in shown
    assert "1 job submitted" in shown


def test_wrong_input_is_not_tried_again_nor_what_starts_from_it(trial, slurm):
    first = submit(trial)
    failed = first[0].name
    end = describe_end(trial.place, failed, "train", [])
    end_job({STUDY: end}, 2, "Data error: it is gone")
    assert read_attempts(trial.place)[failed]["error"] == "Data error: it is gone"
    entries = submit(trial)
    assert [one.fate for one in entries] == ["held"] * 3
    assert entries[0].why == "failed: Data error: it is gone"
    assert [one.fate for one in submit(trial, Choices(retry=True))] == ["submitted"] * 3
    # Another exit code is tried again.
    note_attempt(trial.place, failed, 1, trial.place.log(failed))
    assert [one.fate for one in submit(trial)] == ["submitted"] * 3


def test_the_last_job_of_a_chain_submits_what_starts_from_its_run_alone(trial, slurm, trained_runs):
    trial.document["arms"]["other"] = ["text"]
    trial.write()
    (done,) = (trained_runs / "small").glob("base-*")
    parent = Path(shutil.copytree(done, trial.place.path / done.name))
    entries = submit(trial, after=parent.name)
    assert sorted(one.name.rpartition("-")[0] for one in entries) == ["decayed-s1", "longer-s1"]
    assert [one.fate for one in entries] == ["submitted"] * 2

    # The same by the job itself: it knows its study by one variable.
    (slurm.folder / "calls").unlink()
    submit(trial)  # writes the configs
    (slurm.folder / "calls").unlink()
    config = next(trial.place.configs.glob("decayed-*.yaml"))
    shutil.copy(config, trial.place.config(parent.name))
    arguments = [str(trial.path), "--gpus-per-node=0"]
    told = {STUDY: describe_end(trial.place, parent.name, "train", arguments)}
    end_job({**os.environ, **told}, 0)
    assert slurm.calls() == [], "a job that kept its number has released its children"
    end_job({**os.environ, **told, "CONTINUITY": "chain"}, 0)
    assert len(slurm.calls()) == 2
    assert read_attempts(trial.place)[parent.name]["code"] == 0


def test_a_job_of_no_study_tells_nobody_and_a_damaged_variable_fails_no_job(trial, caplog):
    end_job({}, 0)
    assert not caplog.records
    end_job({STUDY: "{torn"}, 0)
    assert "the study was not told how this job ended" in caplog.text
    assert not trial.place.path.exists()


def test_a_silent_slurm_is_an_error_for_submit_and_a_line_for_status(trial, slurm, monkeypatch, caplog):
    monkeypatch.setattr("megacode.launch.slurm._PAUSES", (0.0, 0.0))
    assert job_words(trial.place) == {}
    (slurm.folder / "silent").touch()
    with pytest.raises(LaunchError, match="no controller"):
        submit(trial)
    assert slurm.calls() == []
    assert job_words(trial.place) == {}, "never submitted, so nobody is asked"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (slurm.folder / "silent").unlink()
    submit(trial)
    (slurm.folder / "silent").touch()
    assert job_words(trial.place) == {}
    assert "jobs in the queue are not shown: squeue: error: no controller" in caplog.text


def test_names_of_jobs_tell_studies_apart_and_may_hold_anything(trial, slurm):
    entry = JobFate("run-1.my suite|x", "score", "submitted", "5")
    other = type(trial)(trial.folder / "elsewhere", {})
    slurm.queue(trial, [entry])
    assert list(queued_jobs(trial.place)) == [entry.name]
    assert queued_jobs(trial.place)[entry.name].number == "5"
    assert queued_jobs(other.place) == {}


def test_ranks_that_do_not_fit_words_and_site_files_are_refused(trial, slurm):
    with pytest.raises(ConfigError, match="'partition=x' is not an option of sbatch"):
        submit(trial, flags=("partition=x",))
    with pytest.raises(ConfigError, match="is not divisible by"):
        submit(trial, request=Request(3, 1, 0, 1, "10"))
    trial.document["set"]["parallel"] = {"tensor": 2}
    with pytest.raises(ConfigError, match=r"1 ranks are not divisible by tensor.* = 2\n.*--nodes and --ranks-per-node"):
        submit(trial)
    site = trial.folder / "site.env"
    site.write_text("exit 7\n")
    with pytest.raises(LaunchError, match=r"bash cannot read it: 7\n.*correct the site file"):
        site_variable(site, "CONTINUITY", {})
    assert slurm.calls() == []


def test_a_persons_word_for_once_is_not_repeated_by_jobs():
    given = ["s.yaml", "--after", "x", "--retry", "--nodes", "2", "--retrain-stale", "--json", "--", "--account=a"]
    assert _repeatable(given) == ("s.yaml", "--nodes", "2", "--", "--account=a")


def merged(trial: Any) -> None:
    """Give the study an arm whose end is merged of its trunk's checkpoints."""
    merge = {"decay": "linear", "over": "4 iterations"}
    trial.document["arms"]["merged"] = {"phases": ["trunk"], "anneal": {"merge": merge}}


def test_a_merge_is_submitted_as_what_it_is(trial, slurm, trained_runs, monkeypatch):
    merged(trial)
    entries = submit(trial)
    (merge,) = [one for one in entries if one.kind == "merge"]
    (trunk,) = [one for one in entries if one.name.startswith("base-")]
    assert (merge.fate, merge.after) == ("submitted", (trunk.job,))
    call = slurm.calls()[entries.index(merge)]
    assert call["variables"]["MEGACODE_COMMAND"] == "checkpoint average"
    after_script = call["words"][call["words"].index(next(one for one in call["words"] if one.endswith("score.sh"))) :]
    assert after_script[1].endswith("iter_0000004")
    assert after_script[after_script.index("--weights") + 1] == "decay:linear"

    # What starts from a merge, or scores it, is submitted by the merge's job of a chain.
    (slurm.folder / "calls").unlink()
    monkeypatch.setenv("CONTINUITY", "chain")
    asked: list[list[str]] = []
    run = lambda words, **_: asked.append(words) or Done()  # noqa: E731
    monkeypatch.setattr("megacode.study_runs.slurm_jobs.subprocess.run", run)
    end_job({STUDY: describe_end(trial.place, merge.name, "merge", [str(trial.path)]), "CONTINUITY": "chain"}, 0)
    assert asked[0][-3:] == ["--after", merge.name, str(trial.path)]


class Done:
    """A process that ended well."""

    returncode = 0


def test_a_merge_whose_parts_are_gone_is_held(trial, slurm, trained_runs):
    merged(trial)
    shutil.copytree(trained_runs, trial.folder / "runs")
    (base,) = trial.place.path.glob("base-*")
    shutil.rmtree(base / "checkpoints" / "iter_0000004")
    (entry,) = submit(trial)
    assert entry.fate == "held"
    assert entry.why.endswith("iter_0000004 is not there, and no run makes it")
    assert slurm.calls() == []
    code, printed = trial.run()
    assert code == 1
    assert f"not started: {entry.name}: " in printed
