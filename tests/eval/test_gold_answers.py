"""Bits per byte of true answers: the same questions as the tasks', the true answer alone, and its bytes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megacode.base.files import digest
from megacode.statistics.arms import read_arms
from megacode.statistics.comparing import ComparisonDesign, compare

# What lm-eval's own task files make of the first item of the small data sets: question, then separator and answer.
FIRST = {
    "boolq": ("The cat is old.\nQuestion: is the cat old?\nAnswer:", " ", "no"),
    "piqa": ("Question: Find a cat\nAnswer:", " ", "Look for the cat."),
    "sciq": ("The cat is known.\nQuestion: What is a cat?\nAnswer:", " ", "cat"),
    "social_iqa": ("Q: Kim saw a cat. What next?\nA:", " ", "run to the cat"),
    "quac": ("Cats - Old age\n\nThere is an old cat.\n\nQ: What of the cat?\nA:", " ", "the old cat"),
    "cb": ("The cat sang.\nQuestion: the river sang. True, False, or Neither?\nAnswer:", " ", "True"),
    "copa": ("The cat fell because", " ", " the river broke."),
    "storycloze": (
        "Kim, who is 0, saw a cat. Kim, who is 1, saw a river. Kim, who is 2, saw a stone. Kim, who is 3, saw a window.",
        " ", "Kim was glad.",
    ),
    "hellaswag": ("Walking: A man sees a cat. He", " ", "takes the cat."),
    "winogrande": ("The cat met the river because the cat", " ", "was late."),
    "arc_easy": ("Question: Which is a cat?\nAnswer:", " ", "cat"),
    "triviaqa": ("Question: Who owns the cat??\nAnswer:", " ", "cat"),
    "nq_open": ("Answer these questions:\n\nQ: who owns the cat?\nA:", " ", "cat"),
    "humaneval": ('def f0(x):\n    """Return x plus 0."""\n', "", "    return x + 0\n"),
    "mbpp": ('"""\nWrite a function to add 0.\nassert add(0) == 0\n"""\n', "", "def add(x):\n  return x + 0"),
}  # fmt: skip


def nats(model: Path, question: str, answer: str) -> float:
    """Return the log-likelihood of an answer, computed from the model's logits; a token is a byte here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # lm-eval moves white space from a question's end to the answer, since tokens begin with it.
    before, ids = tokenizer.encode(question.rstrip()), tokenizer.encode(question + answer)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype="float32")(torch.tensor([ids])).logits[0]
    chosen = torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
    return float(chosen[len(before) - 1 :].sum())


@pytest.mark.slow
def test_true_answers_are_scored_to_the_same_questions_in_bits_per_byte(to_code, tmp_path):
    place = Path(shutil.copytree(to_code, tmp_path / "here"))
    for name in ("model", "other"):
        shutil.copytree(place / name, place / "hf" / name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_"))}
    command = ["evaluate", "hf", "--suite", "to-code-gold", "--cache", "cache", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "megacode.cli", *command], cwd=place, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document, other = json.loads(done.stdout)["models"]
    assert document["left_out"] == {}, "no code is run, so none is left out"
    assert list(document["scores"]) == list(FIRST)
    lines = [json.loads(line) for line in (place / "hf" / document["items_file"]).read_text().splitlines()]
    assert len(lines) == 3 * len(FIRST)
    assert {line["task"] for line in lines if "cluster" in line} == {"boolq", "social_iqa", "quac"}
    for task, (question, separator, answer) in FIRST.items():
        own = [line["bits_per_byte"] for line in lines if line["task"] == task]
        first = next(line for line in lines if line["task"] == task and line["item"] == 0)
        assert first["prompt_hash"] == digest(json.dumps([[question, separator + answer]]))[:16], task
        assert first["target"] == answer
        assert first["bits_per_byte"][0] == pytest.approx(nats(place / "model", question, separator + answer), rel=1e-4)
        assert first["bits_per_byte"][1] == len(answer.encode())
        bits = -sum(pair[0] for pair in own) / math.log(2) / sum(pair[1] for pair in own)
        assert document["scores"][task]["bits_per_byte"] == pytest.approx(bits), "a ratio of sums"
        assert document["tasks"][task]["higher_is_better"] == {"bits_per_byte": False}
        assert document["tasks"][task]["version"].endswith(", gold 1")
    scores = {task: one["bits_per_byte"] for task, one in document["scores"].items()}
    assert document["means"]["code"]["score"] == pytest.approx((scores["humaneval"] + scores["mbpp"]) / 2)
    assert list(document["means"]) == ["reasoning", "knowledge", "code", "nl", "total"]

    arms = read_arms([f"{name}={place / 'hf' / name}.to-code-gold.json" for name in ("model", "other")])
    compared = {one["metric"]: one for one in compare(arms, ComparisonDesign("model"))["comparisons"]}
    gap = other["means"]["code"]["score"] - document["means"]["code"]["score"]
    assert compared["mean/code"]["difference"] == pytest.approx(gap)
    assert compared["mean/code"]["higher_is_better"] is False
    assert compared["mean/code"]["items"] == 6
