"""The suites `reasoning`, `code-plus` and `to-code-plus`: few-shot prompts, pass@k, true answers, joined suites."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.eval.sampled_answers import pass_at_k
from megacode.eval.suites import SHIPPED, load_suite
from tests.eval import reasoning_data, to_code_data

slow = pytest.mark.slow
GOLD = {
    "gsm8k_cot": ("Q: Kim has 0 cats and finds 2. How many?\nA:", " Kim has 0 + 2 = 2.\n#### 2"),
    "minerva_math500": ("Problem:\nWhat is $0+2$?\n\nSolution:", " It is $\\boxed{2}$."),
    "bbh_fewshot_snarks": ("Q: Is a cat a river?\nA:", " True"),
    "mmlu_anatomy_continuation": ("Question: Which is a cat?\nAnswer:", " cat"),
    "arc_challenge": ("Question: Which is a cat?\nAnswer:", " cat"),
    "drop": ("There were 2 cats. How many cats were there?", " 2"),
    "logiqa": ("A. cat\nB. river\nC. stone\nD. snow\nAnswer:", " cat"),
    "humaneval_plus": ('def f0(x):\n    """Return x plus 0."""\n', "    return x + 0\n"),
    "mbpp_plus": ('"""\nWrite a function to add 0.\nassert add(0) == 0\n"""\n', "def add(x):\n  return x + 0"),
}


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    choices = list(itertools.combinations(answers, k))
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k(sum(answers), len(answers), k) == pytest.approx(share)


def test_the_joined_suites_have_the_tasks_and_means_of_their_parts():
    for gold in ("", "-gold"):
        whole = load_suite(f"to-code-plus{gold}", None)
        parts = [load_suite(f"{name}{gold}", None) for name in ("to-code", "reasoning", "code-plus")]
        assert whole.tasks == tuple(task for part in parts for task in part.tasks)
        assert whole.categories == {name: tasks for part in parts for name, tasks in part.categories.items()}
        assert whole.means.keys() == {"nl", "total", "steps", "total_plus"}
        assert {name for mean in whole.means.values() for name in mean} <= whole.categories.keys()
        assert whole.few_shot == parts[1].few_shot
        assert (whole.gold_answers is None) == (gold == "")
    assert len(load_suite("reasoning", None).categories["mmlu"]) == 57
    assert len(load_suite("reasoning", None).categories["bbh"]) == 27


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [a]\nfew_shot: {a: -1}", "-1 is no number of examples"),
        ("tasks: [a]\nfew_shot: {a: many}", "'many' is no number of examples"),
        ("tasks: [a]\nsamples: {a: 20}", "20 is no way to sample answers"),
        ("tasks: [a]\nsamples: {a: {n: 0}}", "n is 0, not a number of answers"),
        ("tasks: [a]\nsamples: {a: {n: 5, k: [1, 10]}}", "not a list of numbers from 1 to n = 5"),
        ("tasks: [a]\nsamples: {a: {n: 5, temperature: 0}}", "temperature is above 0"),
        ("tasks: [a]\ngold_answers: {}\nsamples: {a: {n: 5}}", "answers are sampled in a suite of true answers"),
        ("suites: [to-code]\ntasks: [boolq]", "tasks: boolq is in two of these suites"),
        ("suites: [to-code, to-code-gold]", "some of these suites score true answers"),
        ("suites: [to-cod]", "there is no suite 'to-cod'"),
        ("suites: [demo]", "the items of demo are made for each run"),
        ("suites: [mine.yaml]", "this suite joins itself"),
        ("suites: [to-code]\nmeans: {x: [reasoning, y]}", "a mean lists categories"),
    ],
)
def test_mistakes_in_a_suites_file_are_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message.replace("[", "\\[")):
        load_suite(tmp_path / "mine.yaml", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reasoning")
    reasoning_data.write_data_sets(place, items=2, examples=30)
    to_code_data.save_model(place / "model", context=8192)
    to_code_data.save_model(place / "silent", context=8192, silent=True)
    return place


def evaluate(place: Path, model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_"))}
    return subprocess.run(
        [sys.executable, "-m", "megacode.cli", "evaluate", model, *arguments, "--cache", "cache", "--json"],
        cwd=place, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


ASKING = """
import json, sys
from megacode.base.errors import MegacodeError
from megacode.eval.offline import surroundings
from megacode.eval.suites import load_suite
from megacode.eval.task_loading import load_tasks

results = []
with surroundings(True, False, False):
    for suite, names in json.loads(sys.argv[1]):
        try:
            tasks, _ = load_tasks(load_suite(suite, None), True)
        except MegacodeError as error:
            results.append(str(error))
            continue
        for name in names:
            tasks[name].build_all_requests(limit=1)
        results.append({name: tasks[name].instances[0].args for name in names})
print(json.dumps(results))
"""


def asked(place: Path, *suites: tuple[str, list[str]]) -> list:
    """Return the first question of tasks with the answer that is scored, or the error that a suite ends in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASKING, json.dumps(suites)], cwd=place, capture_output=True, text=True, check=False,
        env={**kept, "HF_HOME": str(place / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@slow
def test_true_answers_follow_solved_examples_and_the_question(data):
    reasoning, code = asked(data, ("reasoning-gold", list(GOLD)[:7]), ("code-plus-gold", list(GOLD)[7:]))
    wanted = {**reasoning, **code}
    for task, (question, answer) in GOLD.items():
        assert wanted[task][0].endswith(question), task
        assert wanted[task][1] == answer, task
    assert wanted["arc_challenge"][0].count("Question:") == 26
    assert wanted["mmlu_anatomy_continuation"][0].count("Question:") == 6
    assert wanted["bbh_fewshot_snarks"][0].count("\nA:") == 4
    # lm-eval's own task shows the names of the answer's fields instead.
    assert all(block.split("? ")[1].isdigit() for block in wanted["drop"][0].split("\n\n")[:3])


@slow
def test_a_suite_of_several_steps_is_scored_whole(data):
    done = evaluate(data, "silent", "--suite", "reasoning", "--limit", "1", "--out", "whole.json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["scores"]) == 89
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= document["scores"]["gsm8k_cot"].keys()
    assert {name: mean["missing"] for name, mean in document["means"].items() if mean["missing"]} == {}
    assert document["means"]["mmlu"]["of"] == 57
    assert document["means"]["steps"]["score"] is not None
    assert all(facts["cut"] is None for facts in document["tasks"].values())


SAMPLED = """\
name: sampled
tasks: [humaneval_plus, arc_challenge]
include_path: SHIPPED/code-plus
lm_eval: [arc]
samples: {humaneval_plus: {n: 6, k: [1, 3]}}
few_shot: {arc_challenge: 3}
""".replace("SHIPPED", str(SHIPPED))


@slow
def test_answers_are_sampled_and_examples_do_not_depend_on_ranks(data):
    (data / "sampled.yaml").write_text(SAMPLED)
    for ranks in ("1", "2"):
        options = ("--run-generated-code", "--nproc", ranks, "--out", f"ranks{ranks}.json")
        done = evaluate(data, "model", "--suite", "sampled.yaml", *options)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((data / f"ranks{ranks}.json").read_text()) for ranks in ("1", "2"))
    assert one["scores"]["humaneval_plus"].keys() >= {"pass_at_1", "pass_at_3"}
    for task in one["tasks"]:
        assert one["tasks"][task]["prompts_sha256"] == two["tasks"][task]["prompts_sha256"]
    assert one["scores"]["arc_challenge"] == two["scores"]["arc_challenge"]
    lines = [json.loads(line) for line in (data / "ranks1.items.jsonl").read_text().splitlines()]
    answers = next(line["answers"][0] for line in lines if line["task"] == "humaneval_plus")
    assert len(answers) == 6
    assert len(set(answers)) > 3, "answers are sampled, not the greedy one many times"


def test_reference_solutions_pass_the_added_tests_and_wrong_ones_do_not():
    code = runpy.run_path(str(SHIPPED / "code-plus/code.py"))
    for kind, solution in (("humaneval_plus", "canonical_solution"), ("mbpp_plus", "code")):
        row = reasoning_data.row(kind, 3)
        scores = code[f"{kind}_scores"]
        assert scores(row, [row[solution]]) == {"pass_at_1": 1.0}
        # Right for the test that the prompt shows, wrong for an added one.
        wrong = row[solution].replace("x + 3", "x + 3 if x < 5 else 0")
        assert scores(row, [wrong]) == {"pass_at_1": 0.0}


@slow
def test_examples_that_are_not_there_are_refused(data):
    refusals = {
        "{humaneval_plus: 1}": "humaneval_plus has 0 solved examples to show, not 1",
        "{arc_challenge: 31}": "arc_challenge has 30 solved examples to show, not 31",
        "{arc_*: 1, arc_challenge: 2}": "two entries match arc_challenge: arc_*, arc_challenge",
        "{mmlu_*: 5}": "no task is called 'mmlu_*'",
    }
    for number, few_shot in enumerate(refusals):
        (data / f"wrong{number}.yaml").write_text(SAMPLED.replace("{arc_challenge: 3}", few_shot))
    errors = asked(data, *((f"wrong{number}.yaml", []) for number in range(len(refusals))))
    for error, message in zip(errors, refusals.values(), strict=True):
        assert message in error
