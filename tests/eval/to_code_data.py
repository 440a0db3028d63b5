"""Small data in the real formats of the data sets of the suite `to-code`, laid out so that lm-eval's own task files
find them offline: folders in the working directory with the data sets' names, and a cache with what people copy there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

WORDS = ("cat", "river", "stone", "window", "garden", "letter", "music", "winter")


def pick(number: int, shift: int = 0) -> str:
    return WORDS[(number * 3 + shift) % len(WORDS)]


def _rows(kind: str, number: int) -> dict[str, Any]:
    a, b, c = (pick(number, shift) for shift in range(3))
    arc = {"label": ["A", "B", "C", "D"], "text": [a, b, c, "snow"]}
    rows: dict[str, dict[str, Any]] = {
        "boolq": {"question": f"is the {a} old", "passage": f"The {a} is old.", "idx": number, "label": number % 2},
        "cb": {"premise": f"The {a} sang.", "hypothesis": f"the {b} sang", "idx": number, "label": number % 3},
        "copa": {
            "premise": f"The {a} fell.", "choice1": f"The {b} broke.", "choice2": f"The {c} slept.",
            "question": ("cause", "effect")[number % 2], "idx": number, "label": number % 2,
        },
        "piqa": {"goal": f"Find a {a}", "sol1": f"Look for the {a}.", "sol2": f"Eat the {b}.", "label": number % 2},
        "sciq": {
            "question": f"What is a {a}?", "distractor1": b, "distractor2": c, "distractor3": "mud",
            "correct_answer": a, "support": f" The {a} is known.",
        },
        "siqa": {
            "context": f"Kim saw a {a}.", "question": "What next?", "answerA": f"run to the {a}", "answerB": f"eat {b}",
            "answerC": f"hide the {c}", "label": str(number % 3 + 1),
        },
        "hellaswag": {
            "ind": number, "activity_label": "Walking", "ctx_a": f"A man sees a {a}.", "ctx_b": "he",
            "ctx": f"A man sees a {a}. he", "endings": [f"takes the {w}." for w in (a, b, c, "snow")],
            "source_id": f"activitynet~v_{number}", "split": "val", "split_type": "indomain", "label": str(number % 4),
        },
        "winogrande": {
            "sentence": f"The {a} met the {b} because the _ was late.", "option1": a, "option2": b,
            "answer": str(number % 2 + 1),
        },
        "arc": {"id": f"Q{number}", "question": f"Which is a {a}?", "choices": arc, "answerKey": "ABCD"[number % 4]},
        "triviaqa": {
            "question": f"Who owns the {a}?", "question_id": f"tc_{number}", "question_source": "x",
            "answer": {"value": a, "aliases": [a, f"the {a}"], "normalized_aliases": [a]},
        },
        "nq": {"question": f"who owns the {a}", "answer": [a, b]},
        "humaneval": {
            "task_id": f"HumanEval/{number}", "prompt": f'def f{number}(x):\n    """Return x plus {number}."""\n',
            "canonical_solution": f"    return x + {number}\n", "entry_point": f"f{number}",
            "test": f"\n\ndef check(candidate):\n    assert candidate(1) == {number + 1}\n",
        },
        "mbpp": {
            "task_id": 11 + number, "text": f"Write a function to add {number}.",
            "code": f"def add(x):\r\n  return x + {number}", "test_setup_code": "", "challenge_test_list": [],
            "test_list": [f"assert add({i}) == {i + number}" for i in range(3)],
        },
    }  # fmt: skip
    return rows[kind]


# data set, config, splits, kind of row
_SETS = (
    ("aps/super_glue", "boolq", ("train", "validation"), "boolq"),
    ("aps/super_glue", "cb", ("train", "validation"), "cb"),
    ("aps/super_glue", "copa", ("train", "validation"), "copa"),
    ("baber/piqa", "default", ("train", "validation"), "piqa"),
    ("allenai/sciq", "default", ("train", "validation", "test"), "sciq"),
    ("lighteval/siqa", "default", ("train", "validation"), "siqa"),
    ("Rowan/hellaswag", "default", ("train", "validation"), "hellaswag"),
    ("allenai/winogrande", "winogrande_xl", ("train", "validation"), "winogrande"),
    ("allenai/ai2_arc", "ARC-Easy", ("train", "validation", "test"), "arc"),
    ("mandarjoshi/trivia_qa", "rc.nocontext", ("train", "validation"), "triviaqa"),
    ("google-research-datasets/nq_open", "default", ("train", "validation"), "nq"),
    ("openai/openai_humaneval", "openai_humaneval", ("test",), "humaneval"),
    ("google-research-datasets/mbpp", "full", ("train", "validation", "test"), "mbpp"),
)


def write_data_sets(place: Path, items: int) -> None:
    """Write the data sets of the suite, each split with as many rows."""
    write_folders(place, _SETS, _rows, lambda split: items)


def write_folders(
    place: Path,
    sets: Iterable[tuple[str, str, tuple[str, ...], str]],
    rows: Callable[[str, int], dict[str, Any]],
    count: Callable[[str], int],
) -> None:
    """Write folders named like data sets, each with the front matter that names its configs and files.

    Args:
        place: the directory of the folders.
        sets: data set, config, splits and kind of row of each.
        rows: of a kind and a number, the row.
        count: of a split, how many rows it has.
    """
    configs: dict[str, list[str]] = {}
    for name, config, splits, kind in sets:
        folder = place / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f'- config_name: "{config}"', "  data_files:"]
        for split in splits:
            file = f"{config}-{split}.jsonl"
            text = "".join(json.dumps(rows(kind, number)) + "\n" for number in range(count(split)))
            (folder / file).write_text(text)
            lines += [f"  - split: {split}", f"    path: {file}"]
        configs.setdefault(name, []).extend(lines)
    for name, lines in configs.items():
        (place / name / "README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))


def write_own_data(cache: Path, items: int) -> None:
    """Write QuAC's and the Story Cloze Test's files as their authors give them out."""
    quac = cache / "megacode/quac/val_v0.2.json"
    quac.parent.mkdir(parents=True)
    questions = [
        {
            "id": f"C_1_q#{number}", "question": f"What of the {pick(number)}?", "yesno": "x", "followup": "y",
            "answers": [{"text": f"the old {pick(number)}", "answer_start": 0}, {"text": "CANNOTANSWER"}],
            "orig_answer": {"text": f"the old {pick(number)}", "answer_start": 0},
        }
        for number in range(items)
    ]  # fmt: skip
    section = {"context": "There is an old cat. CANNOTANSWER", "id": "C_1", "qas": questions}
    article = {"title": "Cats", "section_title": "Old age", "background": "Cats live.", "paragraphs": [section]}
    quac.write_text(json.dumps({"data": [article]}))
    stories = cache / "megacode/story_cloze/cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    stories.parent.mkdir(parents=True)
    names = ["InputStoryid", *(f"InputSentence{i}" for i in range(1, 5))]
    names += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
    with stories.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for number in range(items):
            sentences = [f"Kim, who is {n}, saw a {pick(number, n)}." for n in range(4)]
            writer.writerow([f"id{number}", *sentences, "Kim was glad.", "Kim ate it.", number % 2 + 1])


def save_model(path: Path, seed: int = 0, context: int = 1024, silent: bool = False) -> None:
    """Write a random model with a tokenizer of bytes; a silent one ends every text at once."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    signs = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    alphabet = {sign: number for number, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, bos_token_id=None, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if silent:  # all logits are 0, and of equal ones the first token's is taken: the end
        torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(path)
