"""Small data in the real formats of the data sets of `reasoning` and `code-plus`, laid out as `to_code_data` does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from tests.eval.to_code_data import pick, write_folders

_TASKS = "lm_eval.tasks"


def _configs(folder: str) -> list[str]:
    """Return the configs of a data set that lm-eval's task files in a folder name."""
    spec = importlib.util.find_spec(_TASKS)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    place = Path(next(iter(spec.submodule_search_locations))) / folder
    files = [path for path in sorted(place.glob("*.yaml")) if not path.name.startswith("_")]
    return [yaml.safe_load(path.read_text().replace("!function", ""))["dataset_name"] for path in files]


def row(kind: str, number: int) -> dict[str, Any]:
    """Return a document of a kind."""
    a, b, c = (pick(number, shift) for shift in range(3))
    arc = {"label": ["A", "B", "C", "D"], "text": [a, b, c, "snow"]}
    date = {"day": "", "month": "", "year": ""}
    answer = {"number": str(number + 2), "date": date, "spans": [], "worker_id": "w", "hit_id": "h"}
    several = {key: [answer[key], answer[key]] for key in ("number", "date", "spans", "worker_id", "hit_id")}
    name = f"f{number}"
    rows: dict[str, dict[str, Any]] = {
        "gsm8k": {
            "question": f"Kim has {number} {a}s and finds 2. How many?",
            "answer": f"Kim has {number} + 2 = <<{number}+2={number + 2}>>{number + 2}.\n#### {number + 2}",
        },
        "math": {
            "problem": f"What is ${number}+2$?", "solution": f"It is $\\boxed{{{number + 2}}}$.",
            "answer": str(number + 2), "subject": "Algebra", "level": 1, "unique_id": f"test/{number}.json",
        },
        "bbh": {"input": f"Is a {a} a {b}?", "target": ("True", "False")[number % 2]},
        "mmlu": {"question": f"Which is a {a}?", "subject": "x", "choices": [a, b, c, "snow"], "answer": number % 4},
        "arc": {"id": f"Q{number}", "question": f"Which is a {a}?", "choices": arc, "answerKey": "ABCD"[number % 4]},
        "drop": {
            "section_id": "s", "query_id": f"q{number}", "passage": f"There were {number + 2} {a}s.",
            "question": f"How many {a}s were there?", "answer": answer, "validated_answers": several,
        },
        "logiqa": {
            "label": "abcd"[number % 4], "context": f"Each {a} is a {b}.", "question": f"What is a {a}?",
            "options": [a, b, c, "snow"],
        },
        "humaneval_plus": {
            "task_id": f"HumanEval/{number}", "prompt": f'def {name}(x):\n    """Return x plus {number}."""\n',
            "canonical_solution": f"    return x + {number}\n", "entry_point": name,
            "test": "import numpy as np\n\ndef check(candidate):\n    for x in range(9):\n"
            f"        assert candidate(x) == x + {number}, np.inf\n",
        },
        "mbpp_plus": {
            "task_id": number, "prompt": f"Write a function to add {number}.", "source_file": "x",
            "code": f"def add(x):\r\n  return x + {number}", "test_imports": ["import math"],
            "test_list": [f"assert add({i}) == {i + number}" for i in range(3)],
            "test": f"import numpy as np\n\nfor x in range(9):\n    assert add(x) == x + {number}, np.inf\n",
        },
    }  # fmt: skip
    return rows[kind]


def sets() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return data set, config, splits and kind of row of each."""
    return [
        ("openai/gsm8k", "main", ("train", "test"), "gsm8k"),
        ("HuggingFaceH4/MATH-500", "default", ("test",), "math"),
        *(("SaylorTwift/bbh", config, ("test",), "bbh") for config in _configs("bbh/cot_fewshot")),
        *(("cais/mmlu", config, ("dev", "validation", "test"), "mmlu") for config in _configs("mmlu/default")),
        ("allenai/ai2_arc", "ARC-Challenge", ("train", "validation", "test"), "arc"),
        ("EleutherAI/drop", "default", ("train", "validation"), "drop"),
        ("EleutherAI/logiqa", "logiqa", ("train", "validation", "test"), "logiqa"),
        ("evalplus/humanevalplus", "default", ("test",), "humaneval_plus"),
        ("evalplus/mbppplus", "default", ("test",), "mbpp_plus"),
    ]


def write_data_sets(place: Path, items: int, examples: int) -> None:
    """Write the data sets; splits that examples are taken from have `examples` rows, the others `items`."""
    write_folders(place, sets(), row, lambda split: examples if split in ("train", "dev") else items)
