"""A tiny trained run of two sources that share no word, and a suite with a task from each source's own text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.data.indexed import IndexedDatasetWriter
from megacode.train.main import run as train

# Words that follow each other in a fixed order, so that a model learns what comes next.
LANGUAGES = {
    "north": (["amo", "bel", "dako", "feru", "gilan", "hopi", "jasu", "kemo", "lavi", "mornu"], 3),
    "south": (["Tarn", "Veck", "Wulf", "Xyst", "Yorn", "Zelk", "Quib", "Rusk", "Pelf", "Osk"], 7),
}
DOCUMENTS, WORDS = 60, 60
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metadata: {{version: 1.0}}
"""


def text_of(language: str, seed: str) -> str:
    """Return a document of a language; now and then a word is any word of it."""
    words, step = LANGUAGES[language]
    draw = random.Random(seed)
    place, made = draw.randrange(len(words)), []
    for _ in range(WORDS):
        made.append(words[place])
        place = (place + step) % len(words) if draw.random() < 0.8 else draw.randrange(len(words))
    return " ".join(made)


def _tokenizer(place: Path, texts: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    place.mkdir()
    tokenizer.save(str(place / "tokenizer.json"))
    return tokenizer


def _write_items(place: Path, language: str, count: int) -> None:
    """Write questions whose true answer is how a new document of a language continues."""
    lines = []
    for number in range(count):
        words = text_of(language, f"item {number}").split()
        true, false = (" " + " ".join(part) for part in (words[8:12], words[20:24]))
        lines.append(
            {"question": " ".join(words[:8]), "choices": [false, true], "label": 1, "passage": f"p{number // 2}"}
        )
    (place / f"{language}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "tasks" / f"{language}.yaml").write_text(
        TASK.format(name=f"of_{language}", file=place / f"{language}.jsonl")
    )


def write_suite(place: Path, **more: Any) -> Path:
    """Write tasks with their items and a suite; return the suite's file."""
    (place / "tasks").mkdir(parents=True)
    for language in LANGUAGES:
        _write_items(place, language, 12)
    suite = {"tasks": [f"of_{language}" for language in LANGUAGES], "include_path": "tasks", **more}
    (place / "languages.yaml").write_text(yaml.safe_dump(suite))
    return place / "languages.yaml"


def config_of(place: Path, **changes: Any) -> dict[str, Any]:
    """Return the config of a run in a directory."""
    return {
        "name": "languages",
        "run_dir": str(place / "run"),
        "model": {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4,
                  "num_query_groups": 2},
        "tokenizer": {"kind": "huggingface", "path": str(place / "tokenizer")},
        "sources": {name: {"path": str(place / name)} for name in LANGUAGES},
        "validation": {"fraction": 0.2},
        "phases": [
            {"name": "both", "iterations": 20, "blend": {"north": 0.5, "south": 0.5},
             "learning_rate": {"schedule": "cosine", "peak": 5e-3, "final": 0}},
        ],
        "train": {"seq_length": 64, "global_batch_size": 8, "micro_batch_size": 4, "isolate_documents": True},
        "precision": {"dtype": "fp32"},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space in its name: `tokenizer/`, data sets, the trained `run/`, and `languages.yaml`."""
    place = tmp_path_factory.mktemp("transfer") / "two languages"
    place.mkdir()
    texts = {name: [text_of(name, str(number)) for number in range(DOCUMENTS)] for name in LANGUAGES}
    tokenizer = _tokenizer(place / "tokenizer", [text for several in texts.values() for text in several])
    for name, several in texts.items():
        with IndexedDatasetWriter(place / name, np.uint16) as writer:
            for text in several:
                ids = np.array([*tokenizer.encode(text).ids, 0], dtype=np.uint16)
                writer.add(ids, np.array([len(ids)]))
    write_suite(place)
    (place / "run.yaml").write_text(yaml.safe_dump(config_of(place), sort_keys=False))
    train(place / "run.yaml", [])
    return place
