from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.data.demo_items import build_demo_tasks
from megacode.eval.made_items import items_dir, run_of
from megacode.eval.suites import find_texts, load_suite


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the demo's items, and a model in its hf/."""
    run = tmp_path / "run"
    (run / "hf/iter_0000010").mkdir(parents=True)
    (run / "run.yaml").write_text("name: x\n")
    documents = ["".join(f"document {d} says something else in line {i}\n" for i in range(20)) for d in range(5)]
    build_demo_tasks({"text": documents}, items_dir(run), seed=0)
    return run


def test_the_demo_suite_finds_its_items_in_the_models_run(run):
    suite = load_suite("demo", run / "hf/iter_0000010")
    assert suite.tasks == ("demo_endings_text", "demo_bits_text")
    assert suite.items == run / "eval/items/demo"
    assert suite.chance == {"demo_endings_text": 0.25}
    assert suite.offline
    assert not suite.defaults


def test_every_task_of_the_demo_suite_ships_with_a_task_file():
    from megacode.data.demo_items import SOURCES
    from megacode.eval.suites import SHIPPED

    names = {path.stem for path in (SHIPPED / "demo").glob("*.yaml")}
    assert names == {f"demo_{kind}_{s}" for kind in ("endings", "bits") for s in SOURCES} | {"demo_next_word_code"}


@pytest.mark.parametrize("absolute", [True, False])
def test_a_model_elsewhere_finds_its_run_through_megacode_json(run, tmp_path, absolute):
    model = tmp_path / "exported"
    model.mkdir()
    assert run_of(model) is None
    (model / "megacode.json").write_text(json.dumps({"run_dir": str(run) if absolute else "../run"}))
    assert run_of(model) == run
    assert load_suite("demo", model).items == run / "eval/items/demo"


def test_a_run_that_is_gone_is_as_good_as_none(tmp_path):
    (tmp_path / "megacode.json").write_text('{"run_dir": "/nowhere/at/all"}')
    assert run_of(tmp_path) is None
    (tmp_path / "megacode.json").write_text("{torn")
    assert run_of(tmp_path) is None


def test_the_items_directory_can_be_named(run, tmp_path):
    assert load_suite("demo", tmp_path, run / "eval/items/demo").items == run / "eval/items/demo"


def test_the_digest_changes_with_the_items(run):
    suite = load_suite("demo", run / "hf/iter_0000010")
    before = suite.files_digest()
    assert load_suite("demo", run / "hf/iter_0000010").files_digest() == before
    (run / "eval/items/demo/demo_bits_text.jsonl").write_text('{"text": "another"}\n')
    assert suite.files_digest() != before


def test_a_model_without_a_run_says_how_to_name_the_items(tmp_path):
    with pytest.raises(ConfigError, match=r"this model's run is unknown\n.*--tasks"):
        load_suite("demo", tmp_path)


def test_missing_and_damaged_items_are_errors(run, tmp_path):
    with pytest.raises(ConfigError, match=r"items.json is missing or invalid \(FileNotFoundError\)"):
        load_suite("demo", tmp_path, tmp_path)
    (run / "eval/items/demo/demo_bits_text.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"items are missing: demo_bits_text.jsonl"):
        load_suite("demo", run / "hf/iter_0000010")


@pytest.mark.parametrize(
    ("name", "fix"),
    [("dem", "did you mean 'demo'"), ("mmlu-pro", "use one of code-plus, code-plus-gold, demo, heldout")],
)
def test_an_unknown_suite_is_an_error_with_a_fix(tmp_path, name, fix):
    with pytest.raises(ConfigError, match=rf"there is no suite '{name}'\n.*{fix}"):
        load_suite(name, tmp_path)


def test_a_users_suite_is_read_from_yaml(tmp_path):
    (tmp_path / "my_tasks").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text("tasks: [a, b]\ninclude_path: my_tasks\n")
    suite = load_suite(file, tmp_path)
    assert (suite.name, suite.tasks, suite.include_path) == ("mine", ("a", "b"), (tmp_path / "my_tasks",))
    assert not suite.defaults
    file.write_text("name: paper\ntasks: [piqa]\noffline: false\n")
    suite = load_suite(str(file), tmp_path)
    assert (suite.name, suite.defaults, suite.offline) == ("paper", True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [a]\ntaskz: 1\n", "unknown key 'taskz'.*\n.*did you mean 'tasks'"),
        ("tasks: [a]\nseed: 1\n", "unknown key 'seed'.*\n.*the keys are name, tasks"),
        ("tasks: []\n", "mine.yaml: tasks: it lists no tasks"),
        ("name: x\n", "it lists no tasks"),
        ("tasks: [a]\noffline: perhaps\n", "mine.yaml: offline: 'perhaps' is not a valid value for this key"),
        ("tasks: [a]\ninclude_path: gone\n", "there is no directory gone.*\n.*relative to this file"),
        ("tasks: [a]\nlm_eval: a\n", "mine.yaml: lm_eval: 'a' is not a valid value for this key"),
        ("tasks: [a]\nclusters: {b: passage}\n", "mine.yaml: clusters.b: it names no task and field"),
        ("tasks: [a]\ngold_answers: {b: x}\n", "mine.yaml: gold_answers.b: it names no task and template"),
        ("tasks: [a]\ngold_answers: true\n", "mine.yaml: gold_answers: True is not a valid value for this key"),
        ("bits_per_byte: {file: [a.txt]}\n", "mine.yaml: bits_per_byte: it lists no files"),
        ("bits_per_byte: {files: [gone*.txt]}\n", "bits_per_byte: no file matches 'gone\\*.txt'"),
        ("bits_per_byte: {files: [mine.yaml]}\n", "mine.yaml is neither .txt nor .jsonl"),
        ("tasks: [a]\ncategories: {x: [a]}\n", "categories.x: a category maps tasks to metrics"),
        ("tasks: [a]\ncategories: {x: {b: acc}}\n", "categories.x: no such task: b"),
        ("tasks: [a]\ncategories: {x: {a: acc}}\nmeans: {all: [y]}\n", "means.all: a mean lists categories"),
        ("- a\n", "a suite is a mapping"),
        ("tasks: [a\n", "not valid YAML"),
    ],
)
def test_a_wrong_suite_file_says_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_suite(file, tmp_path)


def test_all_mistakes_of_a_suite_file_are_reported_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("taskz: [a]\noffline: perhaps\n")
    with pytest.raises(ConfigError, match="3 problems"):
        load_suite(file, tmp_path)


def test_a_missing_suite_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="there is no such suite file"):
        load_suite(tmp_path / "gone.yaml", tmp_path)


def test_a_suite_of_texts_needs_no_tasks_and_none_of_lm_evals(tmp_path):
    (tmp_path / "books").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "books" / name).write_text("x")
    file = tmp_path / "mine.yaml"
    file.write_text("bits_per_byte: {files: [books/*, books/a.txt]}\n")
    suite = load_suite(file, tmp_path)
    texts = {f"bits_per_byte_{name}": tmp_path / "books" / name for name in ("a.txt", "b.jsonl")}
    assert suite.texts == texts
    assert (suite.tasks, suite.defaults) == ((), False)
    before = suite.files_digest()
    (tmp_path / "books/a.txt").write_text("y")
    assert suite.files_digest() != before
    assert suite.with_texts([tmp_path / "c.txt"]).texts == {**texts, "bits_per_byte_c.txt": tmp_path / "c.txt"}


def test_two_texts_of_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"--texts: .*/b/x.txt and .*/a/x.txt have the same name"):
        find_texts(["*/x.txt"], tmp_path, "--texts")


def test_the_suite_of_the_paper_has_its_fifteen_tasks_and_three_categories(tmp_path):
    suite = load_suite("to-code", tmp_path)
    assert suite.name == "to-code"
    assert [len(suite.categories[name]) for name in ("reasoning", "knowledge", "code")] == [11, 2, 2]
    assert sorted(suite.tasks) == sorted(task for tasks in suite.categories.values() for task in tasks)
    assert suite.means == {"nl": ["reasoning", "knowledge"], "total": ["reasoning", "knowledge", "code"]}
    assert (suite.offline, suite.defaults, suite.unsafe_code) == (True, False, False)
    assert all(place.is_dir() for place in suite.places())


def test_the_suite_of_true_answers_asks_the_same_questions(tmp_path):
    suite, gold = load_suite("to-code", tmp_path), load_suite("to-code-gold", tmp_path)
    assert (suite.gold_answers, sorted(gold.gold_answers)) == (
        None,
        ["humaneval", "mbpp", "nq_open", "quac", "triviaqa"],
    )
    assert (gold.tasks, gold.means, gold.clusters) == (suite.tasks, suite.means, suite.clusters)
    assert gold.places() == suite.places()
    assert {name: list(tasks) for name, tasks in gold.categories.items()} == {
        name: list(tasks) for name, tasks in suite.categories.items()
    }
    assert {metric for tasks in gold.categories.values() for metric in tasks.values()} == {"bits_per_byte"}


def test_the_suite_of_held_out_documents_has_a_task_for_each_source_and_one_mean(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    tasks = {"heldout_web/en": {"file": "a.jsonl"}, "heldout_code": {"file": "a.jsonl"}}
    (tmp_path / "items.json").write_text(json.dumps({"tasks": tasks}))
    suite = load_suite("heldout", None, tmp_path)
    assert suite.texts == dict.fromkeys(tasks, tmp_path / "a.jsonl")
    assert suite.categories == {"bits_per_byte": dict.fromkeys(tasks, "bits_per_byte")}
    before = suite.files_digest()
    (tmp_path / "a.jsonl").write_text('{"text": "two"}\n')
    assert suite.files_digest() != before


def test_a_directory_that_lm_eval_has_not_is_an_error(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("tasks: [a]\nlm_eval: [nothing_like_it]\n")
    with pytest.raises(ConfigError, match=r"lm-eval has no tasks in nothing_like_it\n.*defaults: true"):
        load_suite(file, tmp_path).places()
