"""Models to score: how to find them, where their scores go, and whether they are scored already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.files import RunDir
from megacode.checkpoint.state import FILE_NAME
from megacode.config.evaluate import Backend
from megacode.eval.made_items import run_of
from megacode.eval.scores import model_facts
from megacode.eval.suites import Suite


def check_model(hf_dir: Path) -> None:
    """Check that a directory holds a Hugging Face model.

    Raises:
        CheckpointError: it does not; the message says what is missing.
    """
    fix = "give a directory that `megacode convert to-hf` wrote"
    if not hf_dir.is_dir():
        raise CheckpointError("there is no such directory", str(hf_dir), fix)
    try:
        config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
        # transformers chooses a model's class by this key; without it the directory is some other project's.
        known = isinstance(config, dict) and "model_type" in config
    except (OSError, ValueError):
        known = False
    if not known:
        message = "config.json is missing or invalid, so this is not a Hugging Face model"
        raise CheckpointError(message, str(hf_dir), fix)
    if not any(hf_dir.glob("*.safetensors")):
        raise CheckpointError("it contains no weights (*.safetensors)", str(hf_dir), fix)
    if not any(hf_dir.glob("tokenizer*")):
        raise CheckpointError("it contains no tokenizer", str(hf_dir), "export the model together with its tokenizer")


def models_in(place: Path) -> list[Path]:
    """Return the models in a directory of models, by name; the directory itself if it is a model or contains none.

    A directory whose name begins with a dot is an unfinished export.
    """
    if (place / "config.json").exists() or not place.is_dir():
        return [place]
    models = [item for item in sorted(place.iterdir()) if (item / "config.json").exists() and item.name[0] != "."]
    return models or [place]


def checkpoints_in(place: Path) -> list[Path]:
    """Return the checkpoints for a path: itself, or those of a run or of its `checkpoints/`, oldest first.

    Empty if it is none of these.
    """
    # A single checkpoint, a run, or its checkpoints/: whichever the user has at hand.
    if place.parent.name == "checkpoints" and (place / FILE_NAME).exists():
        return [place]
    for run in (RunDir(place), RunDir(place.parent)):
        if place in (run.path, run.checkpoints) and (iterations := run.iterations()):
            return [run.checkpoint(iteration) for iteration in iterations]
    return []


def default_out(hf_dir: Path, suite: str) -> Path:
    """Return where scores go: `RUN/eval/SUITE@iter_N.json` for a model of a run, else `MODEL.SUITE.json` beside it."""
    run, place = run_of(hf_dir), hf_dir.resolve()
    # Scores belong to the run, so that its report and metrics find them.
    if run is not None:
        return Path(RunDir(run).eval) / f"{suite}@{place.name}.json"
    return place.with_name(f"{place.name}.{suite}.json")


def is_scored(hf_dir: Path, suite: Suite, out: Path, left_out: Mapping[str, str]) -> bool:
    """Return whether a score file holds all of a suite's scores for the model as it is now.

    Args:
        hf_dir: the model.
        suite: the suite.
        out: the score file.
        left_out: the tasks that are excluded now; a file may lack no others.
    """
    try:
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        # Hashing the weights is the dear part, so cheaper reasons come first.
        same = document["suite_sha256"] == suite.files_digest() and document["settings"]["limit"] is None
        whole = set(document.get("left_out", {})) <= set(left_out)
        return same and whole and document["model"]["weights_sha256"] == model_facts(hf_dir)["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_other_backend(out: Path, backend: Backend) -> None:
    """Refuse to take scores of another backend for this one's, or to replace them unasked.

    Raises:
        ConfigError: the score file was made by another backend.
    """
    try:
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        earlier = document["settings"].get("backend", "hf")  # files of earlier versions have transformers' scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if earlier != backend:
        fix = f"--backend {earlier} keeps them; --overwrite replaces them; --out FILE of one model keeps both"
        raise ConfigError(f"its scores were made with --backend {earlier}", str(out), fix)
