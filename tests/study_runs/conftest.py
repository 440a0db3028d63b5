"""A study that is really trained: tiny models, three arms that share a trunk, two data sets and a tokenizer."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import yaml
from rich.console import Console
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.data.heldout_items import build_items
from megacode.data.indexed import IndexedDatasetWriter
from megacode.study.grid import build_grid
from megacode.study.places import StudyDir
from megacode.study.study_file import read_study
from megacode.study.tree import Tree
from megacode.study_runs.local_runs import Choices, run_study

RATE = {"schedule": "constant", "peak": 3e-3, "warmup": "2 iterations"}
TEXTS = [f"The {word} of number {number} is here, and so on. " * 4 for number in range(100) for word in ("cat", "sum")]


@dataclass
class Trial:
    """A study in a directory of its own.

    Attributes:
        folder: working directory; its name has a space.
        document: of the study; change it, then `write` it.
    """

    folder: Path
    document: dict[str, Any]

    @property
    def path(self) -> Path:
        """The study file."""
        return self.folder / "small.yaml"

    @property
    def place(self) -> StudyDir:
        """Its runs."""
        return StudyDir(self.folder / "runs" / "small")

    def write(self) -> None:
        """Write the study file."""
        self.path.write_text(yaml.safe_dump(self.document, sort_keys=False))

    def run(self, **choices: Any) -> tuple[int, str]:
        """Call `study run` in this process; return the exit code and what it printed."""
        self.write()
        with open(self.folder / "out.txt", "w") as file:
            console = Console(file=file, width=80, markup=False)
            code = run_study(self.path, Choices(**{"parallel": 2, **choices}), build_items, console)
        return code, (self.folder / "out.txt").read_text()

    def tree(self) -> Tree:
        """Return the tree of the study."""
        return Tree(build_grid(read_study(copy.deepcopy(self.document), self.path), self.path))

    def iterations(self) -> int:
        """Return how many iterations all starts of all runs have trained: lines of metrics, repeated ones included."""
        files = sorted(self.place.path.glob("*/metrics.jsonl"))
        return sum(line.startswith('{"kind": "train"') for path in files for line in path.read_text().splitlines())

    def names(self) -> list[str]:
        """Return the run directories, without ids."""
        return sorted(path.parent.name.rpartition("-")[0] for path in self.place.path.glob("*/run.yaml"))


@pytest.fixture(scope="session")
def study_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer, and the data sets `text` and `code`."""
    folder = tmp_path_factory.mktemp("study_data")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    for name, texts in (("text", TEXTS), ("code", [text.upper() for text in TEXTS])):
        with IndexedDatasetWriter(folder / name, np.uint16) as writer:
            for text in texts:
                ids = np.array([*tokenizer.encode(text).ids, 0], dtype=np.uint16)
                writer.add(ids, np.array([len(ids)]))
    return folder


@pytest.fixture(scope="session")
def study_document(study_data: Path) -> dict[str, Any]:
    """The document of the study; to be copied before it is changed."""
    return {
        "seeds": [1],
        "set": {
            "model": {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 2},
            "tokenizer": {"kind": "huggingface", "path": str(study_data / "tokenizer")},
            "sources": {name: {"path": str(study_data / name)} for name in ("text", "code")},
            "validation": {"fraction": 0.1, "samples": 4},
            "train": {"seq_length": 16, "global_batch_size": 4},
            "precision": {"dtype": "fp32"},
            "checkpoint": {"every": "2 iterations"},
        },
        "phases": {
            "trunk": {"iterations": 8, "blend": {"text": 0.5, "code": 0.5}, "learning_rate": RATE},
            "text": {"iterations": 4, "blend": {"text": 1}, "learning_rate": RATE},
            "decay": {"iterations": 4, "blend": {"text": 1}, "learning_rate": {"schedule": "linear", "final": 0}},
        },
        "arms": {"base": ["trunk"], "decayed": ["trunk", "decay"], "longer": ["trunk", "text"]},
        "baseline": "base",
    }


@pytest.fixture
def trial(tmp_path: Path, study_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Trial:
    """The study in a new directory, which is the working directory."""
    folder = tmp_path / "a study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Trial(folder, copy.deepcopy(study_document))


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, study_document: dict[str, Any]) -> Path:
    """The directory of the study's runs after all of it was trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, printed = Trial(folder, copy.deepcopy(study_document)).run()
    assert code == 0, printed
    return folder / "runs"


@pytest.fixture
def trained(trial: Trial, trained_runs: Path) -> Trial:
    """The study in a new directory, with all of its runs: a copy, so their absolute paths lead elsewhere."""
    shutil.copytree(trained_runs, trial.folder / "runs")
    return trial


Refused = Callable[[], str]
