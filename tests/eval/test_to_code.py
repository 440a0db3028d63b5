"""The suite `to-code` from the command line, offline, on small data in the data sets' real formats."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.limits import HANG

slow = pytest.mark.slow
TASKS = [
    "boolq", "piqa", "sciq", "social_iqa", "quac", "cb", "copa", "storycloze", "hellaswag", "winogrande", "arc_easy",
    "triviaqa", "nq_open", "humaneval", "mbpp",
]  # fmt: skip


@pytest.fixture
def place(to_code: Path, tmp_path: Path) -> Path:
    """A copy of the directory that a test may change."""
    return Path(shutil.copytree(to_code, tmp_path / "here"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "megacode.cli", "evaluate", *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_"))}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def run(place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=place, env={**environment(), **more}, capture_output=True, text=True, check=False
    )  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def killed_after(place: Path, tasks: int, *arguments: str) -> Path:
    """Start an evaluation, kill it when some tasks are done, and return the directory where it kept them."""
    process = subprocess.Popen(
        command(*arguments), cwd=place, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(place.glob(".model.to-code.*.partial/[!.]*.json"))) >= tasks:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    return next(place.glob(".model.to-code.*.partial"))


@slow
def test_a_killed_evaluation_goes_on_and_ranks_give_the_scores_of_one_process(place):
    kept = killed_after(place, 3, "model", "--suite", "to-code", "--cache", "cache", "--run-generated-code")
    assert not (place / "model.to-code.json").exists()
    done = sorted(path for path in kept.glob("*.json"))
    assert 3 <= len(done) < len(TASKS)
    part = read(done[0])
    part["facts"]["seconds"] = 12345.0  # a mark that a second run of this task would not leave
    done[0].write_text(json.dumps(part))

    one = run(place, "model", "--suite", "to-code", "--cache", "cache", "--run-generated-code", "--json")
    assert one.returncode == 0, one.stderr
    document = json.loads(one.stdout)
    assert [facts["seconds"] for facts in document["tasks"].values()].count(12345.0) == 1
    assert not list(place.glob(".model*"))
    check_document(place, document)

    two = run(
        place, "model", "--suite", "to-code", "--cache", "cache", "--run-generated-code", "--nproc", "2",
        "--out", "two.json",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("hellaswag") == 1, "one rank speaks for both"
    again = read(place / "two.json")
    assert again["settings"]["ranks"] == 2
    assert again["scores"] == document["scores"]
    assert again["means"] == document["means"]
    for task, facts in again["tasks"].items():
        assert facts["items"] == 3
        assert facts["questions_sha256"] == document["tasks"][task]["questions_sha256"]


def check_document(place: Path, document: dict) -> None:
    assert document == read(place / "model.to-code.json")
    assert list(document["scores"]) == TASKS
    scores, means = document["scores"], document["means"]
    reasoning = [scores[task]["f1" if task == "quac" else "acc"] for task in TASKS[:11]]
    assert means["reasoning"]["score"] == pytest.approx(sum(reasoning) / 11)
    assert means["knowledge"]["score"] == (scores["triviaqa"]["exact_match"] + scores["nq_open"]["exact_match"]) / 2
    assert means["nl"]["score"] == pytest.approx((means["reasoning"]["score"] + means["knowledge"]["score"]) / 2)
    three = [means[name]["score"] for name in ("reasoning", "knowledge", "code")]
    assert means["total"]["score"] == pytest.approx(sum(three) / 3)
    assert document["mean_parts"]["nl"] == ["reasoning", "knowledge"]
    assert list(document["mean_parts"]["code"]) == ["humaneval", "mbpp"]
    assert document["left_out"] == {}
    assert document["contamination"]["checked"] is False  # a model without a run
    assert document["versions"]["lm_eval"] == "0.4.13"
    assert all(facts["version"] is not None for facts in document["tasks"].values())
    lines = [json.loads(line) for line in (place / document["items_file"]).read_text().splitlines()]
    assert [line["task"] for line in lines] == [task for task in TASKS for _ in range(3)]
    assert {line["task"] for line in lines if "cluster" in line} == {"boolq", "social_iqa", "quac"}
    assert len({line["cluster"] for line in lines if line["task"] == "quac"}) == 1
    assert sum(line["acc"] for line in lines if line["task"] == "storycloze") / 3 == scores["storycloze"]["acc"]


@slow
def test_without_a_word_no_generated_code_runs_and_a_task_may_be_left_out(place):
    shutil.rmtree(place / "openai")  # its data are not needed then either
    shutil.rmtree(place / "cache/megacode/story_cloze")
    done = run(place, "model", "--suite", "to-code", "--cache", "cache", "--without", "storycloze", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "left out: humaneval: it runs code that the model writes: allow it with --run-generated-code" in " ".join(
        done.stdout.split()
    )
    document = read(place / "model.to-code.json")
    assert set(document["left_out"]) == {"humaneval", "mbpp", "storycloze"}
    assert list(document["scores"]) == [task for task in TASKS if task not in document["left_out"]]
    assert document["means"]["reasoning"]["missing"] == ["storycloze"]
    assert document["means"]["code"]["score"] is document["means"]["total"]["score"] is None
    assert document["means"]["nl"]["score"] is not None


@slow
def test_data_sets_that_lack_are_all_named_with_the_way_to_fetch_them(place):
    for gone in ("baber", "allenai/winogrande", "cache/megacode/quac", "cache/megacode/story_cloze"):
        shutil.rmtree(place / gone)
    scoring = run(place, "model", "--suite", "to-code", "--cache", "cache")
    # A hub that cannot be reached, on a machine with network too.
    fetching = run(
        place, "--prefetch", "--suite", "to-code", "--cache", "cache", HF_ENDPOINT="http://127.0.0.1:9"
    )  # fmt: skip
    for done in (scoring, fetching):
        assert done.returncode == 2
        assert "task piqa: a task's data cannot be loaded" in done.stderr
        assert "task winogrande: a task's data cannot be loaded" in done.stderr
        assert "QuAC's validation file is missing" in done.stderr
        assert "its authors send it on request only" in done.stderr
        assert "5 problems" in done.stderr
        assert "hellaswag" not in done.stderr
        assert "Traceback" not in done.stderr
    assert "megacode evaluate --prefetch" in scoring.stderr
    assert "http://127.0.0.1:9 cannot be reached from here" in fetching.stderr
    assert not list(place.glob("model.*"))


@slow
def test_a_directory_of_models_gets_the_scores_that_are_missing(place, to_code):
    models = place / "hf"
    for name in ("iter_0000010", "iter_0000020"):
        shutil.copytree(to_code / "model", models / name)
    (place / "books").mkdir()
    texts = ["The old cat slept.\n" * 9, "Kim saw the river. " * 7]
    (place / "books/a.txt").write_text(texts[0])
    (place / "books/b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", *texts]))
    done = run(place, "hf", "--texts", "books/*", "--json")
    assert done.returncode == 0, done.stderr
    documents = json.loads(done.stdout)["models"]
    assert len(documents) == 2
    scores = documents[0]["scores"]
    assert list(scores) == ["bits_per_byte_a.txt", "bits_per_byte_b.jsonl"]
    lines = [json.loads(line) for line in (models / "iter_0000010.texts.items.jsonl").read_text().splitlines()]
    assert [line["bits_per_byte"][1] for line in lines] == [len(texts[0]), *map(len, texts)]
    nats, size = (sum(line["bits_per_byte"][i] for line in lines[1:]) for i in (0, 1))
    assert scores["bits_per_byte_b.jsonl"]["bits_per_byte"] == pytest.approx(-nats / math.log(2) / size)

    (models / "iter_0000020.texts.json").unlink()
    again = run(place, "hf", "--texts", "books/*", "--json")
    assert [Path(one["model"]["path"]).name for one in json.loads(again.stdout)["models"]] == ["iter_0000020"]


def test_answers_are_judged_by_running_their_tests():
    from importlib.util import module_from_spec, spec_from_file_location

    from megacode.eval.suites import SHIPPED

    spec = spec_from_file_location("to_code_code", SHIPPED / "to-code/code.py")
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    problem = {
        "prompt": "def double(x):\n", "entry_point": "double",
        "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
    }  # fmt: skip
    assert code.humaneval_scores(problem, ["    return 2 * x\n"]) == {"pass_at_1": 1.0}
    assert code.humaneval_scores(problem, ["    return x\n"]) == {"pass_at_1": 0.0}
    task = {"test_setup_code": "import math", "test_list": ["assert root(4) == math.sqrt(4)", "assert root(9) == 3"]}
    assert code.mbpp_scores(task, ["def root(x):\r\n    return x ** 0.5"]) == {"pass_at_1": 1.0}
    assert code.mbpp_scores(task, ["def root(x):\n    return 2"]) == {"pass_at_1": 0.0}


def test_quac_is_scored_by_the_words_shared_with_the_best_answer(to_code, monkeypatch):
    from importlib.util import module_from_spec, spec_from_file_location

    from megacode.eval.manual_datasets import read_quac, read_storycloze
    from megacode.eval.suites import SHIPPED

    monkeypatch.setenv("HF_HOME", str(to_code / "cache"))
    spec = spec_from_file_location("to_code_tasks", SHIPPED / "to-code/data.py")
    data = module_from_spec(spec)
    spec.loader.exec_module(data)
    first, second, _ = read_quac()
    assert first["prompt"] == "Cats - Old age\n\nThere is an old cat.\n\nQ: What of the cat?\nA:"
    assert second["prompt"].startswith(first["prompt"] + " the old cat\nQ: ")
    assert first["answers"] == ["the old cat", "I don't know."]
    assert data.quac_scores(first, [" The old cat!"]) == {"f1": 1.0, "exact_match": 1.0}
    assert data.quac_scores(first, ["an old big cat"])["f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert data.quac_scores(first, [""]) == {"f1": 0.0, "exact_match": 0.0}
    story = read_storycloze()[1]
    assert story["answer"] == 1
    assert story["endings"] == ["Kim was glad.", "Kim ate it."]
    assert story["context"].count("Kim, who is") == 4
