from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megacode.base.claims import claimed
from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.data.demo_items import SuiteSizes, build_demo_tasks
from megacode.eval.harness import ScoringOptions, evaluate, evaluate_many
from megacode.eval.made_items import items_dir
from megacode.eval.scored_models import check_model, default_out
from megacode.statistics.arms import read_arms
from megacode.statistics.comparing import ComparisonDesign, compare

SOURCES = ("text", "code", "markup")
TASKS = (*(f"demo_{kind}_{source}" for kind in ("endings", "bits") for source in SOURCES), "demo_next_word_code")
SIZES = SuiteSizes(endings=6, bits=4, next_words=4)
slow = pytest.mark.slow


def documents(source: str) -> list[str]:
    """Real files of three kinds, so that a tokenizer trained on them is not degenerate."""
    library = Path(os.__file__).parent
    files = sorted((library / "json").glob("*.py")) + sorted((library / "email").glob("*.py"))[:12]
    texts = [path.read_text("utf-8") for path in files]
    if source == "code":
        return texts
    if source == "markup":
        return [f"<p>{text[:4000]}</p>\n".replace(" = ", "<b>is</b> ") for text in texts]
    return [text.replace("_", " ").replace("(", " of ").replace(")", "") for text in texts]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with the demo's items and two tiny random models in its hf/."""
    run = tmp_path_factory.mktemp("run")
    (run / "run.yaml").write_text("name: tiny\n")
    build_demo_tasks({source: documents(source) for source in SOURCES}, items_dir(run), seed=0, sizes=SIZES)
    for iteration in (0, 10):
        save_model(run / f"hf/iter_{iteration:07d}", seed=iteration)
    return run


def save_model(path: Path, seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(documents("code"), trainer)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=192, bos_token_id=None, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(path)


@pytest.fixture(scope="module")
def scored(run) -> dict:
    return evaluate(run / "hf/iter_0000000", choices=ScoringOptions(batch_size=3))


@pytest.fixture(scope="module")
def judge(run):
    """The model by hand: log-probabilities of a continuation, token by token, without lm-eval."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run / "hf/iter_0000000"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def nats(context: list[int], continuation: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation[:-1]])).logits[0].double()
        picked = logits[len(context) - 1 :].log_softmax(-1)
        return picked.gather(1, torch.tensor(continuation)[:, None]).sum().item()

    return model, tokenizer, nats


def items(run: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (items_dir(run) / f"{task}.jsonl").read_bytes().splitlines()]


@slow
def test_bits_per_byte_equal_a_direct_computation(run, scored, judge):
    model, tokenizer, nats = judge
    length = model.config.max_position_embeddings
    for source in SOURCES:
        total, size = 0.0, 0
        for item in items(run, f"demo_bits_{source}"):
            ids = tokenizer(item["text"])["input_ids"]
            assert len(ids) > length, "the item is to span several windows"
            total += nats([tokenizer.eos_token_id], ids[:length])
            for first in range(length, len(ids), length):
                last = min(first + length, len(ids))  # the last window reaches back to fill the model's length
                start = last - length
                total += nats(ids[start - 1 : first], ids[first:last])
            size += len(item["text"].encode())
        assert scored["scores"][f"demo_bits_{source}"]["bits_per_byte"] == pytest.approx(
            -total / math.log(2) / size, rel=1e-5
        )


@slow
def test_accuracy_equals_a_direct_computation(run, scored, judge):
    _, tokenizer, nats = judge
    for source in SOURCES:
        right, right_by_length, right_by_context = [], [], []
        for item in items(run, f"demo_endings_{source}"):
            context = tokenizer(item["context"])["input_ids"]
            scores = []
            for ending in item["endings"]:
                whole = tokenizer(item["context"] + ending)["input_ids"]
                scores.append(nats(context, whole[len(context) :]))
            alone = [nats([tokenizer.eos_token_id], tokenizer(ending)["input_ids"]) for ending in item["endings"]]
            by_context = [score - prior for score, prior in zip(scores, alone, strict=True)]
            right_by_context.append(by_context.index(max(by_context)) == item["answer"])
            by_length = [score / len(ending) for score, ending in zip(scores, item["endings"], strict=True)]
            right.append(scores.index(max(scores)) == item["answer"])
            right_by_length.append(by_length.index(max(by_length)) == item["answer"])
        found = scored["scores"][f"demo_endings_{source}"]
        assert found["acc"] == pytest.approx(sum(right) / len(right))
        assert found["acc_norm"] == pytest.approx(sum(right_by_length) / len(right_by_length))
        assert found["acc_mutual_info"] == pytest.approx(sum(right_by_context) / len(right_by_context))


@slow
def test_the_next_word_equals_a_direct_greedy_decoding(run, scored, judge):
    import re

    import torch

    model, tokenizer, _ = judge
    right = []
    for item in items(run, "demo_next_word_code"):
        ids = tokenizer(item["prompt"])["input_ids"][-(model.config.max_position_embeddings - 8) :]
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answer = re.match(r"\s*([A-Za-z_]\w*)", tokenizer.decode(ids[-8:]).split("\n")[0])
        right.append(bool(answer) and answer[1] == item["word"])
    assert scored["scores"]["demo_next_word_code"]["exact_match"] == pytest.approx(sum(right) / len(right))


@slow
def test_the_scores_are_those_of_lm_evals_own_simple_evaluate(run, scored):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from megacode.eval.suites import SHIPPED

    manager = TaskManager(
        include_path=str(SHIPPED / "demo"), include_defaults=False, metadata={"items": str(items_dir(run))}
    )
    arguments = {"pretrained": str(run / "hf/iter_0000000"), "dtype": "float32"}
    theirs = simple_evaluate(
        "hf", arguments, tasks=["demo"], batch_size=3, device="cpu", task_manager=manager, bootstrap_iters=0
    )["results"]  # fmt: skip
    assert set(scored["scores"]) == set(TASKS)
    for task, scores in scored["scores"].items():
        metrics = [name for name in scores if not name.endswith("_stderr")]
        assert metrics, task
        for metric in metrics:
            found = next(value for key, value in theirs[task].items() if key.startswith(f"{metric},"))
            assert scores[metric] == pytest.approx(found, rel=1e-6), (task, metric)


@slow
def test_the_score_document_says_what_was_measured_and_how(run, scored):
    out = run / "eval/demo@iter_0000000.json"
    assert json.loads(out.read_text()) == scored
    assert scored["suite"] == "demo"
    assert set(scored["tasks"]) == set(scored["scores"]) == {path.stem for path in items_dir(run).glob("*.jsonl")}
    assert scored["tasks"]["demo_endings_text"]["items"] == SIZES.endings
    assert scored["chance"]["demo_endings_text"] == 0.25
    assert scored["model"]["architecture"] == "LlamaForCausalLM"
    assert scored["model"]["parameters"] > 30_000
    assert len(scored["model"]["weights_sha256"]) == len(scored["suite_sha256"]) == 64
    assert scored["versions"]["lm_eval"] == "0.4.13"
    assert scored["settings"] == {
        "limit": None, "batch_size": 3, "device": "cpu", "dtype": "torch.float32", "backend": "hf", "ranks": 1
    }  # fmt: skip
    assert all(task["seconds"] > 0 for task in scored["tasks"].values())


@slow
def test_every_items_result_stands_beside_the_scores(run, scored):
    lines = [json.loads(x) for x in (run / "eval" / scored["items_file"]).read_bytes().splitlines()]
    assert {line["task"] for line in lines} == set(scored["scores"]) == set(TASKS)
    for task, scores in scored["scores"].items():
        own = [line for line in lines if line["task"] == task]
        assert len(own) == scored["tasks"][task]["items"]
        if "acc" in scores:
            assert sum(line["acc"] for line in own) / len(own) == pytest.approx(scores["acc"])
        if "bits_per_byte" in scores:
            nats, size = (sum(line["bits_per_byte"][i] for line in own) for i in (0, 1))
            assert -nats / math.log(2) / size == pytest.approx(scores["bits_per_byte"])


@slow
def test_several_models_are_scored_in_one_process_and_answer_the_same_questions(run, scored, tmp_path):
    models = [run / "hf/iter_0000000", run / "hf/iter_0000010"]
    first, second = evaluate_many(
        models, outs=[tmp_path / "a.json", tmp_path / "b.json"], choices=ScoringOptions(batch_size=3)
    )
    assert first["scores"] == scored["scores"]
    assert second["scores"] != scored["scores"]
    assert second["model"]["weights_sha256"] != first["model"]["weights_sha256"]
    for task, facts in first["tasks"].items():
        assert facts["questions_sha256"] == second["tasks"][task]["questions_sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.items.jsonl", "b.json", "b.items.jsonl"}
    arms = read_arms([f"a={tmp_path / 'a.json'}", f"b={tmp_path / 'b.json'}"])
    lines = [json.loads(line) for line in (tmp_path / "a.items.jsonl").read_bytes().splitlines()]
    assert lines
    assert all("cluster" in line for line in lines), "items of one document belong together"
    differences = {one["metric"]: one["difference"] for one in compare(arms, ComparisonDesign("a"))["comparisons"]}
    for task in TASKS:
        for metric in [name for name in first["scores"][task] if not name.endswith("_stderr")]:
            gap = second["scores"][task][metric] - first["scores"][task][metric]
            assert differences.pop(f"{task}/{metric}") == pytest.approx(gap, abs=1e-9)
    assert sorted(differences) == ["mean/bits_per_byte", "mean/endings"]
    bits = [f"demo_bits_{source}" for source in SOURCES]
    gaps = [second["scores"][task]["bits_per_byte"] - first["scores"][task]["bits_per_byte"] for task in bits]
    assert differences["mean/bits_per_byte"] == pytest.approx(sum(gaps) / 3)


@slow
def test_scoring_is_silent_and_touches_neither_network_nor_home_nor_working_directory(run, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from pathlib import Path\n"
        "from megacode.eval.harness import ScoringOptions, evaluate\n"
        f"out = Path({str(tmp_path / 'out.json')!r})\n"
        f"evaluate(Path({str(run / 'hf/iter_0000010')!r}), out=out, choices=ScoringOptions(limit=2))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []
    assert json.loads((tmp_path / "out.json").read_text())["tasks"]["demo_bits_text"]["items"] == 2
    assert not list(tmp_path.glob("megacode-eval-*"))


@slow
def test_a_users_own_suite_runs_from_its_yaml(run, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text[:200]}) + "\n" for text in documents("text")))
    task = {
        "task": "mine",
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    (tmp_path / "tasks/mine.yaml").write_text(json.dumps(task))
    suite = tmp_path / "own.yaml"
    suite.write_text("tasks: [mine]\ninclude_path: tasks\n")
    document = evaluate(run / "hf/iter_0000000", suite, choices=ScoringOptions(limit=3))
    assert document["tasks"]["mine"]["items"] == 3
    assert document["scores"]["mine"]["bits_per_byte_stderr"] > 0
    assert (run / "eval/own@iter_0000000.json").exists()
    suite.write_text("tasks: [mien]\ninclude_path: tasks\n")
    with pytest.raises(ConfigError, match=r"there is no task 'mien'\n.*did you mean 'mine'"):
        evaluate(run / "hf/iter_0000000", suite)
    suite.write_text("tasks: [mine]\ninclude_path: tasks\n")
    with pytest.raises(ConfigError, match=r"it has no task 'mien' to exclude\n.*did you mean 'mine'"):
        evaluate(run / "hf/iter_0000000", suite, choices=ScoringOptions(without=("mien",)))
    with pytest.raises(ConfigError, match=r"no task is left to run\n.*left out on request"):
        evaluate(run / "hf/iter_0000000", suite, choices=ScoringOptions(without=("mine",)))
    (tmp_path / "tasks/mine.yaml").write_text(json.dumps({**task, "unsafe_code": True}))
    with pytest.raises(ConfigError, match=r"no task is left to run\n.*--run-generated-code"):
        evaluate(run / "hf/iter_0000000", suite)
    suite.write_text("tasks: [mine]\ninclude_path: tasks\nunsafe_code: true\n")
    assert evaluate(run / "hf/iter_0000000", suite, choices=ScoringOptions(limit=1))["tasks"]["mine"]["items"] == 1
    (tmp_path / "tasks/mine.yaml").write_text(json.dumps(task))
    (tmp_path / "data.jsonl").unlink()
    suite.write_text("tasks: [mine]\ninclude_path: tasks\n")
    with pytest.raises(DataError, match=r"a task's data cannot be loaded"):
        evaluate(run / "hf/iter_0000000", suite)


def test_items_that_strict_json_cannot_hold_are_scored_and_written_all_the_same(run, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "a b c"}) + "\n" + json.dumps({"text": "d e"}) + "\n")
    (tmp_path / "tasks/odd.py").write_text(
        "import datetime, numpy\n\n\n"
        "def target(document):\n"
        "    return [document['text'], '\\ud83d', numpy.int64(3), float('nan'), datetime.date(2026, 1, 2)]\n\n\n"
        "def process(document, results):\n"
        "    return {'acc': 1.0}\n"
    )
    (tmp_path / "tasks/odd.yaml").write_text(
        f"task: odd\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{tmp_path}/data.jsonl'}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: !function odd.target\n"
        "process_results: !function odd.process\ngeneration_kwargs: {until: ['x'], max_gen_toks: 4}\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "odd.yaml").write_text("tasks: [odd]\ninclude_path: tasks\n")
    out = tmp_path / "scores.json"
    assert evaluate(run / "hf/iter_0000000", tmp_path / "odd.yaml", out)["scores"]["odd"]["acc"] == 1.0
    lines = [json.loads(line) for line in out.with_suffix(".items.jsonl").read_text("utf-8").splitlines()]
    assert [line["target"] for line in lines] == [[text, "?", 3, None, "2026-01-02"] for text in ("a b c", "d e")]


@slow
def test_an_answer_longer_than_the_context_is_a_clear_error(run, tmp_path):
    for file in (run / "hf/iter_0000000").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    with pytest.raises(DataError, match="an answer is longer than the model's context of 12 tokens") as caught:
        evaluate(tmp_path, out=tmp_path / "scores.json", choices=ScoringOptions(tasks_dir=items_dir(run)))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "scores.json").exists()
    words = json.loads((items_dir(run) / "items.json").read_text())
    words["tasks"] = {"demo_next_word_code": words["tasks"]["demo_next_word_code"]}
    (tmp_path / "words").mkdir()
    shutil.copy(items_dir(run) / "demo_next_word_code.jsonl", tmp_path / "words")
    (tmp_path / "words/items.json").write_text(json.dumps(words))
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    with pytest.raises(DataError, match="leave no room for a question in the model's context of 8 tokens"):
        evaluate(tmp_path, out=tmp_path / "scores.json", choices=ScoringOptions(tasks_dir=tmp_path / "words"))


@slow
def test_damaged_weights_are_an_error_without_a_score_file(run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run / "hf/iter_0000000", model)
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(CheckpointError, match=r"transformers cannot load it"):
        evaluate(model, choices=ScoringOptions(tasks_dir=items_dir(run)))
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@slow
def test_a_scored_model_is_not_scored_again_where_only_missing_ones_are(run, scored, tmp_path):
    out = tmp_path / "scores.json"
    shutil.copy(run / "eval/demo@iter_0000000.json", out)
    before = out.read_bytes()
    assert evaluate(run / "hf/iter_0000000", out=out, choices=ScoringOptions(missing_only=True)) == scored
    assert out.read_bytes() == before
    assert evaluate_many([run / "hf/iter_0000000"], outs=[out], choices=ScoringOptions(missing_only=True)) == []


def test_two_commands_cannot_write_one_score_file(run, tmp_path):
    out = tmp_path / "scores.json"
    with claimed(out, "--out"), pytest.raises(ConfigError, match="is being made by process"):
        evaluate(run / "hf/iter_0000000", out=out, choices=ScoringOptions(limit=1))
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such directory"):
        evaluate(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"config.json is missing or invalid.*\n.*megacode convert to-hf"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="no weights"):
        check_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        check_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model(tmp_path)


def test_scores_go_to_the_models_run_or_beside_the_model(tmp_path):
    model = tmp_path / "run/hf/iter_0000010"
    model.mkdir(parents=True)
    assert default_out(model, "demo") == model.parent / "iter_0000010.demo.json"
    (tmp_path / "run/run.yaml").write_text("")
    assert default_out(model, "demo") == tmp_path / "run/eval/demo@iter_0000010.json"


def test_without_lm_eval_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    build_demo_tasks({"text": documents("text")}, tmp_path / "items", seed=0, sizes=SIZES)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.evaluator", raising=False)
    with pytest.raises(ConfigError, match=r"lm-eval is not installed.*\n.*megacode\[eval\]"):
        evaluate(tmp_path, choices=ScoringOptions(tasks_dir=tmp_path / "items"))


def test_importing_the_harness_loads_neither_torch_nor_lm_eval():
    program = "import sys, megacode.eval.harness; assert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
