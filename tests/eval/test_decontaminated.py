from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.base.files import write_json
from megacode.cli.data import script
from megacode.corpus.decontaminate import Benchmark
from megacode.data import manifest as manifests
from megacode.data.decontaminated import _outputs, common_suites, decontaminated_inputs
from megacode.data.demo_items import build_demo_tasks
from megacode.eval.decontaminated import decontamination, describe_decontamination
from megacode.eval.offline import surroundings
from megacode.eval.suite_items import suite_items
from megacode.eval.suites import load_suite
from megacode.eval.task_loading import load_tasks

SUITE = """
tasks: [tiny]
include_path: tasks
"""
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The items of the suite `demo`."""
    place = tmp_path_factory.mktemp("eval") / "demo"
    documents = ["".join(f"document {d} says something else in line {i}\n" for i in range(20)) for d in range(5)]
    build_demo_tasks({"text": documents}, place, seed=0)
    return place


@pytest.mark.slow
def test_items_of_a_suite_file_have_no_examples_of_other_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "Is {n} even?", "answer": {n % 2}}}\n' for n in range(5)))
    (tmp_path / "tasks/tiny.yaml").write_text(TASK.format(data=data))
    (tmp_path / "mine.yaml").write_text(SUITE)
    found = suite_items(tmp_path / "mine.yaml")
    assert found.name == "mine"
    assert [item.text for item in found.items[:2]] == ["Q: Is 0 even? A: yes", "Q: Is 1 even? A: no"]
    assert found.items[0].question == "Q: Is 0 even? A:"
    assert found.facts()["tasks"]["tiny"]["items"] == 5


@pytest.mark.slow
def test_items_of_a_task_whose_module_fetches_a_metric_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # lm-eval's own module of HumanEval, beside a task of ours that has data.
    own = Path(str(find_spec("lm_eval").submodule_search_locations[0])) / "tasks/humaneval"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/utils.py").write_text((own / "utils.py").read_text())
    data = tmp_path / "data.jsonl"
    rows = [f'{{"prompt": "def f{n}(x):", "test": "assert f{n}(1)", "entry_point": "f{n}"}}\n' for n in range(5)]
    data.write_text("".join(rows))
    task = (own / "humaneval.yaml").read_text().replace("task: humaneval", "task: tiny")
    place = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{data}"}}}}'
    (tmp_path / "tasks/tiny.yaml").write_text(task.replace("dataset_path: openai/openai_humaneval", place))
    (tmp_path / "mine.yaml").write_text(SUITE)
    assert [item.question for item in suite_items(tmp_path / "mine.yaml").items] == [f"def f{n}(x):" for n in range(5)]


def test_an_unknown_suite_has_no_items() -> None:
    with pytest.raises(ConfigError, match="there is no suite 'demoo'"):
        suite_items("demoo")


@pytest.mark.slow
def test_made_items_and_the_tasks_that_score_them_have_one_digest(made: Path) -> None:
    benchmark = suite_items(made)
    assert benchmark.name == "demo"
    suite = load_suite("demo", None, made)
    with surroundings(suite.offline, True, False):
        tasks, _ = load_tasks(suite, run_code=False)
    assert decontamination(None, tasks) == {"known": False, "why": "the model's run is not known"}
    place = made.parent / "run"
    write_run(place, {"a": benchmark, "b": benchmark})
    assert decontamination(place, tasks) == {"known": True, "whole": True, "missing": {}}
    write_run(place, {"a": benchmark, "b": without(benchmark, "demo_bits_text")})
    assert decontamination(place, tasks) == {"known": True, "whole": False, "missing": {"demo_bits_text": ["b"]}}
    write_run(place, {"a": None})
    assert decontamination(place, tasks)["missing"] == {task: ["a"] for task in tasks}
    write_run(place, {"a": benchmark}, init={"from": "elsewhere"})
    assert decontamination(place, tasks)["initial_weights"].endswith("elsewhere")
    write_run(place, {"a": replace(benchmark, digests=dict.fromkeys(tasks, "other"))})
    assert decontamination(place, tasks)["missing"] == {task: ["a"] for task in tasks}


def without(benchmark: Benchmark, task: str) -> Benchmark:
    return replace(benchmark, digests={name: value for name, value in benchmark.digests.items() if name != task})


def write_run(place: Path, sources: dict[str, Benchmark | None], **config: Any) -> None:
    place.mkdir(exist_ok=True)
    hashes = dict.fromkeys(("bin_hash", "idx_hash", "bin_sample", "idx_sample"), "")
    for name, benchmark in sources.items():
        suites = [{"suite": benchmark.name, "tasks": dict(benchmark.digests)}] if benchmark else []
        made = manifests.Manifest(1, 1, "uint16", "x", 0, 0, **hashes, decontaminated=tuple(suites))
        manifests.write(place / name, made)
    document = {
        "name": "run",
        "model": {
            "num_layers": 1,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 2,
            "vocab_size": 100,
        },
        "sources": {name: {"path": str(place / name)} for name in sources},
        "phases": [
            {
                "name": "one",
                "samples": 8,
                "blend": dict.fromkeys(sources, 1 / len(sources)),
                "learning_rate": {"schedule": "constant", "peak": 1e-3},
            }
        ],
        "train": {"seq_length": 32, "global_batch_size": 4, "micro_batch_size": 2},
        **config,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(document))


def test_a_score_document_says_against_what_the_model_s_data_was_decontaminated() -> None:
    document: dict[str, Any] = {"tasks": {"one": {}, "two": {}}}
    assert describe_decontamination(document) == ""
    document["decontaminated"] = {"known": False, "why": "x"}
    assert describe_decontamination(document) == ""
    document["decontaminated"] = {"known": True, "whole": True, "missing": {}}
    assert describe_decontamination(document).startswith("decontaminated against this suite")
    document["decontaminated"] = {"known": True, "whole": False, "missing": {"two": ["a"]}}
    assert describe_decontamination(document) == "decontaminated against 1 of 2 tasks: one"
    document["decontaminated"] = {"known": True, "whole": False, "missing": {}, "initial_weights": "base"}
    assert describe_decontamination(document).endswith("what the initial weights had read is not known: base")
    document["decontaminated"] = {"known": True, "whole": False, "missing": {"one": ["a"], "two": ["a"]}}
    assert describe_decontamination(document) == ""


def test_a_data_set_is_decontaminated_if_all_its_inputs_are(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    files = [corpus / "text" / name for name in ("one.jsonl.zst", "two.jsonl.zst", "foreign.jsonl")]
    suites = [{"suite": "s", "tasks": {"t": {"items": 3, "sha256": "ab"}}}]
    (corpus / "text").mkdir(parents=True)
    for file in files:
        file.write_bytes(b"twelve bytes")
    outputs = [{"path": f"text/{name}.jsonl.zst", "file_bytes": 12} for name in ("one", "two")]
    write_json(corpus / "manifest.json", {"outputs": outputs, "contamination": {"suites": suites}})
    assert decontaminated_inputs(files[:2]) == ({"suite": "s", "tasks": {"t": "ab"}},)
    assert decontaminated_inputs(files) == ()
    assert decontaminated_inputs([tmp_path / "elsewhere/x.jsonl", files[0]]) == ()
    assert decontaminated_inputs([]) == ()
    with files[1].open("ab") as file:
        file.write(b"more")
    assert decontaminated_inputs(files[:1]) == ({"suite": "s", "tasks": {"t": "ab"}},)
    assert decontaminated_inputs(files[:2]) == ()


def test_manifests_of_other_programs_say_nothing_of_contamination(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(b"")
    for foreign in ({"outputs": 5}, {"outputs": None}, {"outputs": ["raw/a.jsonl"]}, {}):
        write_json(tmp_path / "manifest.json", foreign)
        _outputs.cache_clear()
        assert decontaminated_inputs([tmp_path / "raw" / "a.jsonl"]) == ()


def test_merged_data_sets_are_decontaminated_against_what_all_parts_are() -> None:
    first = {"suite": "s", "tasks": {"t": "ab", "u": "cd"}}
    assert common_suites([[first], [{"suite": "s", "tasks": {"t": "ab", "u": "other"}}]]) == (
        {"suite": "s", "tasks": {"t": "ab"}},
    )
    assert common_suites([[first], []]) == ()
    assert common_suites([[first]]) == (first,)


@pytest.mark.slow
def test_a_recipe_drops_what_holds_items_of_lm_evals_own_tasks_and_names_those_without_data(
    to_code_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    to_code_data.write_data_sets(tmp_path, 3)
    for name, tasks in (("known", ["hellaswag", "boolq"]), ("unknown", ["hellaswag", "lambada_openai", "gsm8k"])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    leaked = "Some words before. Walking: a man sees a cat; he takes the cat! And some words behind."
    texts = [leaked, *(f"page {number} is about the number {number} and nothing else at all" for number in range(20))]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {"name": "x", "output": "out", "sources": {"s": {"kind": "text", "inputs": "in.jsonl"}}}

    def run(suite: str) -> int:
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, "decontaminate": {"suites": [suite]}}))
        return script("corpus", "corpus", ["r.yaml"])

    assert run("unknown.yaml") == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "task lambada_openai: a task's data cannot be loaded" in said
    assert "task gsm8k: a task's data cannot be loaded" in said
    assert "task hellaswag" not in said
    assert not (tmp_path / "out/corpus").exists()
    assert run("known.yaml") == 0
    manifest = json.loads((tmp_path / "out/corpus/manifest.json").read_text())
    (suite,) = manifest["contamination"]["suites"]
    assert {task: row["items"] for task, row in suite["tasks"].items()} == {"hellaswag": 3, "boolq": 3}
    assert manifest["contamination"]["documents"] == suite["tasks"]["hellaswag"]["documents"] == 1
    assert manifest["sources"]["s"]["documents"] == len(texts) - 1
