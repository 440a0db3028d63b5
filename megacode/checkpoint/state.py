"""What a checkpoint says of itself, besides tensors: `megacode.json` in its directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, digest, strict, write_json

FILE_NAME = "megacode.json"
_ADDED = {"ledger"}  # fields that checkpoints of earlier releases lack


@dataclass
class TrainState:
    """The clock of a run, and what proves that a checkpoint belongs to it.

    Attributes:
        iteration: optimizer steps done.
        consumed_samples: samples read; the clock that decides all data.
        phase: name of the phase the clock stands in (the last one at the run's end).
        samples_by_source: samples really read of each source, counted by the training step.
        fingerprints: the schedule's chain, one entry a phase up to the clock.
        withheld: samples before the clock that were read, but not learned from, by the ledger of that time.
        ledger: the entries of that ledger up to the clock, so that a branch knows what its trunk withheld.
        health: what the spike detector remembers.
        config: the resolved config as YAML.
        layout: parallel sizes it was saved under.
        tokenizer_hash: of the tokenizer that made the data; empty without a tokenizer.
        versions: packages it was saved with.
        keep: why it is kept for good: `start`, `phase end`, `keep_every`; empty for one that makes room some day.
        files: size and hash of each file, `{name: {bytes, xxh3}}`.
    """

    iteration: int = 0
    consumed_samples: int = 0
    phase: str = ""
    samples_by_source: dict[str, int] = field(default_factory=dict)
    fingerprints: list[dict[str, Any]] = field(default_factory=list)
    withheld: int = 0
    ledger: list[dict[str, Any]] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    layout: dict[str, int] = field(default_factory=dict)
    tokenizer_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    keep: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seal(self) -> str:
        """A hash of all this, so of the checkpoint's every byte."""
        return _seal(asdict(self))

    def write(self, directory: Path) -> None:
        """Write the state into a checkpoint's directory, sealed by a hash of itself."""
        write_json(directory / FILE_NAME, {**asdict(self), "seal": self.seal})

    @classmethod
    def read(cls, directory: Path) -> TrainState:
        """Read the state of a checkpoint.

        Raises:
            CheckpointError: if the directory is no checkpoint, or its state is damaged.
        """
        path = directory / FILE_NAME
        fix = "give a run directory, or one of its checkpoints/iter_* directories"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            seal = document.pop("seal")
            names = [item.name for item in fields(cls) if item.name in document or item.name not in _ADDED]
            state = cls(**{name: document[name] for name in names})
        except FileNotFoundError:
            what = "there is no megacode.json, so this is not a checkpoint"
            raise CheckpointError(what, str(directory), fix) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, str(error)) from None
        if seal != _seal(document):
            raise _damaged(path, "its contents do not match its seal")
        return state


def seal_of(run: RunDir, iteration: int) -> str:
    """Return the seal of a run's checkpoint; empty where none lies there, or it is damaged."""
    try:
        return TrainState.read(run.checkpoint(iteration)).seal
    except CheckpointError:
        return ""


def _seal(document: dict[str, Any]) -> str:
    return digest(json.dumps(strict(document), sort_keys=True))


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"megacode.json is damaged: {what}", str(path), "use the checkpoint before it")
