"""A study as jobs of a real SLURM: a job for each run after the one that it starts from, and one for each score."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megacode.data.indexed import IndexedDatasetWriter
from tests.limits import HANG
from tests.slurm.conftest import await_that

pytestmark = pytest.mark.slow
RESOURCES = ("--gpus-per-node=0", "--ranks-per-node=1", "--cpus-per-task=1", "--time=10")
SCORES = ("--score-sbatch=--gpus-per-node=0", "--score-sbatch=--cpus-per-task=1")
RATE = {"schedule": "constant", "peak": 1e-3}


class Trial:
    """A study of three arms, two of which share a trunk, in a directory whose name has a space."""

    def __init__(self, folder: Path, cluster: Any) -> None:
        folder.mkdir()
        self.folder, self._cluster = folder, cluster
        self._environment = {**cluster.environment, "VENV": sys.prefix}
        signs = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(signs)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<|endoftext|>"])
        (folder / "tokenizer").mkdir()
        tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
        for name in ("text", "code"):
            with IndexedDatasetWriter(folder / name, np.uint16) as writer:
                for number in range(40):
                    ids = np.array([*tokenizer.encode(f"{name} {number} says this. " * 9).ids, 0], dtype=np.uint16)
                    writer.add(ids, np.array([len(ids)]))
        self.write(trunk=4)

    def write(self, trunk: int) -> None:
        """Write the study file; the trunk is so many iterations long."""
        phases = {
            "half": {"iterations": trunk, "blend": {"text": 0.5, "code": 0.5}, "learning_rate": RATE},
            "text": {"iterations": 2, "blend": {"text": 1}, "learning_rate": RATE},
            "code": {"iterations": 2, "blend": {"code": 1}, "learning_rate": RATE},
        }
        document = {
            "seeds": [1],
            "set": {
                "model": {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4},
                "tokenizer": {"kind": "huggingface", "path": "tokenizer"},
                "sources": {"text": {"path": "text"}, "code": {"path": "code"}},
                "validation": {"fraction": 0.1, "samples": 2},
                "train": {"seq_length": 64, "global_batch_size": 2},
                "precision": {"dtype": "fp32"},
            },
            "phases": phases,
            "arms": {"to-text": ["half", "text"], "to-code": ["half", "code"], "plain": ["text", "text"]},
            "baseline": "plain",
            "suites": ["heldout"],
        }
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def study(self, command: str, *options: str, **variables: str) -> dict[str, Any]:
        """Return what a command of megacode prints as JSON."""
        words = [sys.executable, "-m", "megacode.cli", "study", command, "tiny.yaml", "--json", *options]
        done = subprocess.run(
            words, cwd=self.folder, env={**self._environment, **variables}, capture_output=True, text=True,
            timeout=HANG, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def arms(self) -> dict[str, str]:
        """Return the state of each arm."""
        return {arm["name"]: arm["state"] for arm in self.study("status")["arms"]}

    def idle(self) -> bool:
        """Return whether no job is left."""
        return not self._cluster.ask("squeue", "--noheader")

    def logs(self) -> str:
        """Return the ends of the logs of all jobs."""
        found = sorted((self.folder / "runs/tiny/logs").glob("*"))
        return "".join(f"\n{path.name}\n{path.read_text()[-2000:]}" for path in found)


@pytest.fixture
def trial(cluster: Any, tmp_path: Path) -> Trial:
    return Trial(tmp_path / "a study", cluster)


def fates(document: dict[str, Any]) -> dict[str, str]:
    """Return what became of each run and score, by its name without the id: `to-text`, `to-text.heldout`."""
    named = {}
    for entry in document["jobs"]:
        arm, _, suite = entry["name"].partition(".")
        named[arm.partition("-s1-")[0] + (f".{suite}" if suite else "")] = entry["fate"]
    return named


def test_a_submitted_study_ends_trained_and_scored(trial: Trial) -> None:
    first = trial.study("submit", *RESOURCES, *SCORES)
    assert len(first["jobs"]) == 7
    assert set(fates(first).values()) == {"submitted"}
    again = trial.study("submit", *RESOURCES, *SCORES)
    # Nothing is submitted twice; what has ended meanwhile is not listed.
    assert set(fates(again).values()) <= {"queued"}
    assert fates(again)["to-text"] == "queued"
    await_that(trial.idle, HANG, trial.logs)
    assert trial.arms() == {"to-text": "done", "to-code": "done", "plain": "done"}, trial.logs()
    assert trial.study("submit", *RESOURCES, *SCORES) == {"jobs": []}
    scores = sorted((trial.folder / "runs/tiny").glob("*/eval/heldout@iter_*.json"))
    assert len(scores) == 3
    documents = [json.loads(path.read_text()) for path in scores]
    assert len({document["suite_sha256"] for document in documents}) == 1
    assert all(list(document["scores"]) == ["heldout_code", "heldout_text"] for document in documents)


def test_in_a_chain_the_last_job_of_a_run_submits_what_starts_from_it(trial: Trial) -> None:
    first = trial.study("submit", *RESOURCES, "--no-scores", CONTINUITY="chain")
    assert fates(first) == {"half": "submitted", "to-text": "waits", "to-code": "waits", "plain": "submitted"}

    def trained() -> bool:
        return trial.idle() and set(trial.arms().values()) == {"trained"}

    await_that(trained, HANG, trial.logs)


def test_what_starts_from_a_killed_run_does_not_wait_for_ever(trial: Trial, cluster: Any) -> None:
    trial.write(trunk=100_000)
    first = trial.study("submit", *RESOURCES, "--no-scores", "--only=to-text", "--only=to-code")
    trunk = next(entry for entry in first["jobs"] if entry["name"].startswith("half"))
    log = trial.folder / f"runs/tiny/logs/{trunk['name']}.log"
    await_that(lambda: log.exists() and "iteration 2/" in log.read_text(), HANG, trial.logs)
    cluster.ask("scancel", "--signal=KILL", "--full", trunk["job"])
    await_that(trial.idle, HANG, lambda: cluster.ask("squeue"))
    assert trial.arms()["to-text"] == "waiting"
    # A person submits again, and the run goes on.
    second = trial.study("submit", *RESOURCES, "--no-scores", "--only=to-text", "--", "--hold")
    assert fates(second) == {"half": "submitted", "to-text": "submitted"}
    cluster.ask("scancel", *(entry["job"] for entry in second["jobs"]))
