"""Data and scores as jobs of a real SLURM: shards and their merge; training, export and scores one after another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir
from megacode.config.model import TokenizerConfig
from megacode.data import manifest as manifests
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.train_tokenizer import train_tokenizer
from megacode.metrics.reader import read_metrics
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
CONFIG = """
name: small
model: {num_layers: 1, hidden_size: 32, ffn_hidden_size: 64, num_attention_heads: 4, num_query_groups: 2}
tokenizer: {kind: huggingface, path: tokenizer/}
sources: {code: {path: one_text_document}}
validation: {fraction: 0.2, samples: 4}
phases:
  - {name: code, iterations: 4, blend: {code: 1}, learning_rate: {schedule: constant, peak: 1.0e-3}}
train: {seq_length: 256, global_batch_size: 4, micro_batch_size: 4}
precision: {dtype: fp32}
"""


@pytest.fixture
def slurm(cluster: Any) -> dict[str, str]:
    """The environment of a shell on the cluster's login node."""
    return {**cluster.environment, "VENV": sys.prefix}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with corpus/, tokenizer/, and the data set `one_text_document` that one process makes of it."""
    place = tmp_path_factory.mktemp("place")
    (place / "corpus").mkdir()
    (place / "slurm").symlink_to(ROOT / "slurm")
    (place / "tools").symlink_to(ROOT / "tools")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:90]
    rows = [json.dumps({"text": file.read_text(encoding="utf-8", errors="ignore")[:4000]}) + "\n" for file in files]
    for number in range(3):
        (place / "corpus" / f"{number}.jsonl").write_text("".join(rows[number * 30 : number * 30 + 30]))
    train_tokenizer("huggingface", [str(place / "corpus" / "*.jsonl")], 600, place / "tokenizer")
    tokenizer = TokenizerConfig(kind="huggingface", path=str(place / "tokenizer"))
    inputs = (str(place / "corpus" / "*.jsonl"),)
    preprocess(PreprocessJob(inputs, str(place / "one"), tokenizer, append_eod=True, shuffle_seed=5))
    return place


def submit(place: Path, environment: dict[str, str], *command: str, **variables: str) -> str:
    """Submit a script in a directory, one CPU and no GPU; return the job's number."""
    flags = ["--parsable", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10", "--output=job-%j.log"]
    done = subprocess.run(
        ["sbatch", *flags, *command], cwd=place, env={**environment, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(job: str, environment: dict[str, str]) -> tuple[set[str], set[str]]:
    """Wait for a job or all of an array; return its states and exit codes."""
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True, check=True
        ).stdout
        states = set(re.findall(r"JobState=(\w+)", shown))
        if not states & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
            return states, set(re.findall(r"ExitCode=(\d+)", shown))
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end: {shown}")


def merge_of(name: str, environment: dict[str, str]) -> str:
    """Return the one merge that an array of some name has submitted."""
    command = ["squeue", "--noheader", "--states=all", f"--name={name}-merge", "--format=%i"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 1
    return found[0]


def logs(place: Path) -> str:
    """Return the logs of all jobs so far."""
    return "".join(f"{path.name}\n{path.read_text()}" for path in sorted(place.glob("*.log")))


def test_an_array_and_its_merge_make_what_one_process_makes(slurm: dict[str, str], place: Path) -> None:
    names = {"INPUT": "corpus/*.jsonl", "OUTPUT": "many", "TOKENIZER": "tokenizer"}
    flags = ["slurm/preprocess.sh", "--append-eod", "--shuffle-seed", "5"]
    array = submit(place, slurm, "--array=0-4", *flags, **names)
    assert ended(array, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    merge = merge_of("preprocess", slurm)
    assert ended(merge, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    for end in ("bin", "idx"):
        assert (place / f"many_text_document.{end}").read_bytes() == (place / f"one_text_document.{end}").read_bytes()
    assert manifests.read(place / "many_text_document").identity == manifests.read(place / "one_text_document").identity
    assert not list(place.glob("*.shard_*"))


def test_one_job_makes_it_all_without_an_array(slurm: dict[str, str], place: Path) -> None:
    names = {"INPUT": "corpus/*.jsonl", "OUTPUT": "alone", "TOKENIZER": "tokenizer"}
    job = submit(place, slurm, "slurm/preprocess.sh", "--append-eod", "--shuffle-seed", "5", **names)
    assert ended(job, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert (place / "alone_text_document.bin").read_bytes() == (place / "one_text_document.bin").read_bytes()


def test_shards_can_be_made_again_and_merged_by_hand(slurm: dict[str, str], place: Path) -> None:
    names = {"INPUT": "corpus/*.jsonl", "OUTPUT": "again", "TOKENIZER": "tokenizer", "KEEP_SHARDS": "1"}
    flags = ["slurm/preprocess.sh", "--append-eod", "--shuffle-seed", "5"]
    nothing_submits = {**slurm, "BASH_FUNC_sbatch%%": "() { return 1; }"}
    array = submit(place, nothing_submits, "--array=0-1", *flags, **names)
    assert ended(array, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert "merge: MERGE_SHARDS=2 OUTPUT=again KEYS='text' sbatch slurm/preprocess.sh" in logs(place)
    for path in place.glob("again*.shard_0001_of_0002.*"):
        path.unlink()
    broken = submit(place, slurm, "slurm/preprocess.sh", MERGE_SHARDS="2", OUTPUT="again")
    assert ended(broken, slurm) == ({"FAILED"}, {"2"})
    assert "shard 1 of 2 is missing" in (place / f"job-{broken}.log").read_text()
    array = submit(place, slurm, "--array=1", "--job-name=again", *flags, SHARDS="2", **names)
    assert ended(array, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert ended(merge_of("again", slurm), slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert (place / "again_text_document.bin").read_bytes() == (place / "one_text_document.bin").read_bytes()
    assert len(list(place.glob("again*.shard_*"))) == 6


def test_a_wrong_input_ends_the_array_and_cancels_the_merge(slurm: dict[str, str], place: Path) -> None:
    names = {"INPUT": "corpus/*.nothing", "OUTPUT": "wrong", "TOKENIZER": "tokenizer"}
    array = submit(place, slurm, "--array=0-1", "--job-name=wrong", "slurm/preprocess.sh", **names)
    assert ended(array, slurm) == ({"FAILED"}, {"2"}), logs(place)
    assert "--input corpus/*.nothing: there is no such file" in logs(place)
    assert ended(merge_of("wrong", slurm), slurm)[0] == {"CANCELLED"}
    for missing in names:
        job = submit(place, slurm, "slurm/preprocess.sh", **{**names, missing: ""})
        assert ended(job, slurm) == ({"FAILED"}, {"2"})
        assert f"Config error: {missing} is not set" in (place / f"job-{job}.log").read_text()
    job = submit(place, slurm, "--array=1-2", "slurm/preprocess.sh", **names)
    assert ended(job, slurm) == ({"FAILED"}, {"2"})
    assert "the array is not 0-1" in logs(place)


def test_training_export_and_scores_follow_each_other(slurm: dict[str, str], place: Path) -> None:
    (place / "small.yaml").write_text(CONFIG)
    run = RunDir(place / "run")
    names = {"CONFIG": "small.yaml", "RUN_DIR": "run"}
    train = submit(place, slurm, "--nodes=1", "--ntasks-per-node=1", "slurm/pretrain_470m.sh", **names)
    after = submit(
        place, slurm, f"--dependency=afterok:{train}", "slurm/evaluate.sh", "demo", "--limit", "2", RUN_DIR="run"
    )
    assert ended(train, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert ended(after, slurm) == ({"COMPLETED"}, {"0"}), logs(place)
    assert '"verified": true' in (run.hf / "iter_0000004" / "megacode.json").read_text()
    assert json.loads(run.score("demo", 4).read_text())["scores"]
    again = submit(place, slurm, "slurm/evaluate.sh", RUN_DIR="run")
    assert ended(again, slurm) == ({"COMPLETED"}, {"0"})
    assert (place / f"job-{again}.log").read_text().count("already exists") == 2


def test_evaluate_ends_with_the_exit_code_of_what_failed(slurm: dict[str, str], place: Path) -> None:
    (place / "unproven").mkdir()
    (place / "unproven" / "latest").write_text("iter_0000001\n")
    program = place / "unproven" / "program.sh"
    program.write_text('#!/bin/bash\necho "$@" && exit 3\n')
    program.chmod(0o755)
    job = submit(place, slurm, "slurm/evaluate.sh", RUN_DIR="unproven", CONTAINER_EXEC=str(program))
    assert ended(job, slurm) == ({"FAILED"}, {"3"})
    called = "megacode convert to-hf unproven/checkpoints/iter_0000001 unproven/hf/iter_0000001"
    assert called in (place / f"job-{job}.log").read_text()  # srun's own word of the exit code may come before
    assert "evaluate" not in (place / f"job-{job}.log").read_text()


def test_evaluate_refuses_what_is_no_run(slurm: dict[str, str], place: Path) -> None:
    (place / "empty").mkdir()
    for given, message in (("nowhere", "which is not a directory"), ("empty", "empty has no checkpoint yet")):
        job = submit(place, slurm, "slurm/evaluate.sh", RUN_DIR=given)
        assert ended(job, slurm) == ({"FAILED"}, {"2"})
        assert message in (place / f"job-{job}.log").read_text()


def test_a_run_has_jobs_score_its_checkpoints_and_the_next_start_finds_them(
    slurm: dict[str, str], place: Path, tmp_path: Path
) -> None:
    run = RunDir(place / "scored")
    section = "{where: slurm, limit: 2, sbatch: [--gpus-per-node=0, --cpus-per-task=1, --time=10]}"
    more = "  - {name: rest, iterations: 30000, blend: {code: 1}, learning_rate: {schedule: constant}}\n"
    text = CONFIG.replace("train: ", more + "train: ")
    (place / "scored.yaml").write_text(f"{text}run_dir: scored\nevaluate: {section}\n")

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "megacode.cli", "train", "scored.yaml"]
        with (tmp_path / "train.log").open("ab") as log:
            return subprocess.Popen(command, cwd=place, env=slurm, stdout=log, stderr=log)

    def jobs() -> list[str]:
        command = ["squeue", "--noheader", "--states=all", "--format=%j"]
        shown = subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout.split()
        return [name for name in shown if name.startswith("scores-iter_0000004-")]

    def until(there: Callable[[], object]) -> None:
        deadline = time.monotonic() + HANG
        while not there():
            assert time.monotonic() < deadline, (tmp_path / "train.log").read_text()[-3000:] + logs(run.eval / "logs")
            time.sleep(0.3)

    def stop(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        assert process.wait(HANG) == 75

    log = run.score_log("demo", 4)
    first = start()
    until(lambda: log.exists() and "submitted job" in log.read_text())
    stop(first)
    second = start()

    def scored() -> bool:
        return any(line["kind"] == "score" for line in read_metrics(run.metrics))

    # On a slow machine the job may be done before the second start asks for it.
    until(lambda: "already exists; waiting for it" in log.read_text() or scored())
    until(scored)
    stop(second)
    assert len(jobs()) == 1
    (line,) = [line for line in read_metrics(run.metrics) if line["kind"] == "score"]
    assert (line["iteration"], line["suite"], line["limit"]) == (4, "demo", 2)
    assert not list(run.hf.rglob("*.safetensors"))
