"""`TrainState`: the state of a checkpoint besides its tensors, in `megacode.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, digest, strict, write_json
from megacode.checkpoint.former_configs import config_before, learned_otherwise

FILE_NAME = "megacode.json"
_ADDED = {"ledger", "former_configs", "merged", "start"}  # fields that checkpoints of earlier releases lack
_LEFT_OUT_EMPTY = ("former_configs", "merged", "start")  # so that checkpoints without them keep their seals

# What tells where in training a checkpoint of a mean stands.
_PLACE = (
    "iteration", "consumed_samples", "phase", "samples_by_source", "fingerprints", "config", "former_configs",
    "tokenizer_hash", "start",
)  # fmt: skip


@dataclass
class TrainState:
    """The clock of a run, and the proof that a checkpoint belongs to it.

    Attributes:
        iteration: optimizer steps done.
        consumed_samples: samples read; the clock that decides all data.
        phase: name of the phase that contains the clock (the last one at the end of the run).
        samples_by_source: samples of each source, as counted by the training step.
        fingerprints: the schedule's chain, one entry per phase up to the clock.
        withheld: samples before the clock that were read but not learned from, by the ledger at that time.
        ledger: the entries of that ledger up to the clock, so that a branch knows what its trunk withheld.
        health: state of the spike detector.
        config: the resolved config as YAML.
        former_configs: the other configs that it learned by before, in order: `was`, their settings that differ from
            the next one (see `former_configs.py`), and `consumed_samples`, the clock at which that took over.
        merged: of a weighted mean of checkpoints: `weights`, the rule; `over`, samples of the decay or None; and `of`:
            of each checkpoint `weight`, `path`, `seal`, and what differs from this state (see `merged_from`). All
            else is of the newest one. Empty: it was trained.
        start: of a run that began with the weights of a checkpoint: its `path` and `seal`, and as `state` what tells
            where in training it stood (see `started_from`). Empty: it began with random weights, or before this was
            recorded.
        layout: parallel sizes of the run that saved it.
        tokenizer_hash: of the data's tokenizer; empty without a tokenizer.
        versions: of the packages it was saved with.
        keep: why it is never deleted: `start`, `phase end`, `keep_every`; empty: keep_last may delete it.
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
    former_configs: list[dict[str, Any]] = field(default_factory=list)
    merged: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, int] = field(default_factory=dict)
    tokenizer_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    keep: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seal(self) -> str:
        """A hash over this state; it includes the hashes of all files, so it covers every byte of the checkpoint."""
        return _seal(self._document())

    def write(self, directory: Path) -> None:
        """Write the state into a checkpoint's directory, sealed by a hash of itself."""
        write_json(directory / FILE_NAME, {**self._document(), "seal": self.seal})

    def _document(self) -> dict[str, Any]:
        document = asdict(self)
        return {key: value for key, value in document.items() if value or key not in _LEFT_OUT_EMPTY}

    def continue_with(self, config: str) -> None:
        """Take another config from this clock on, and keep what was learned otherwise before it.

        Args:
            config: YAML.
        """
        # Before the first sample nothing was learned with the other config.
        was = learned_otherwise(self.config, config) if self.consumed_samples else []
        if was:
            self.former_configs.append({"consumed_samples": self.consumed_samples, "was": was})
        self.config = config

    def formers(self) -> list[tuple[int, str]]:
        """Return the configs that it learned by before, in order: the clock at which each ended, and its YAML."""
        configs, config = [], self.config
        for former in reversed(self.former_configs):
            config = config_before(former["was"], config)
            configs.append((former["consumed_samples"], config))
        return configs[::-1]

    def merged_from(self) -> list[tuple[float, TrainState]]:
        """Return the weights and states of the checkpoints that this one is the mean of; empty: it was trained.

        Their states hold what tells where they stand in training: config, clock, fingerprints, tokenizer.
        """
        return [(one["weight"], replace(self, **{"merged": {}, **one["state"]})) for one in self.merged.get("of", ())]

    def record_start(self, path: Path, state: TrainState) -> None:
        """Record the checkpoint whose weights a run begins with, so that it is known after that was deleted.

        Args:
            path: of the checkpoint.
            state: of it.
        """
        place = {key: value for key in (*_PLACE, "merged") if (value := getattr(state, key))}
        self.start = {"path": str(path.resolve()), "seal": state.seal, "state": place}

    def started_from(self) -> tuple[str, TrainState] | None:
        """Return the seal and the state of the checkpoint whose weights it began with; None where none is recorded."""
        return (self.start["seal"], TrainState(**self.start["state"])) if self.start else None

    def as_mean(self, weights: str, over: int | None, parts: Sequence[tuple[float, Path, TrainState]]) -> TrainState:
        """Return the state of a mean whose newest checkpoint has this state.

        Args:
            weights: the rule that the weights follow.
            over: samples of the decay that it stands for, or None.
            parts: weight, path and state of each checkpoint.
        """
        of = []
        for weight, path, state in parts:
            place = {key: value for key in _PLACE if (value := getattr(state, key)) != getattr(self, key)}
            # A mean of means names what its parts were made of, also where the newest one was made of the same.
            place |= {"merged": state.merged} if state.merged else {}
            of.append({"weight": weight, "path": str(path.resolve()), "seal": state.seal, "state": place})
        return replace(self, merged={"weights": weights, "over": over, "of": of}, keep="", health={}, files={})

    @classmethod
    def read(cls, directory: Path) -> TrainState:
        """Read the state of a checkpoint.

        Raises:
            CheckpointError: if the directory is not a checkpoint, or its state is damaged.
        """
        path = directory / FILE_NAME
        fix = "give a run directory, or one of its checkpoints/iter_* directories"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            # The seal covers everything else, so it is taken out before hashing.
            seal = document.pop("seal")
            # A field that older checkpoints lack takes its default; any other missing field is damage.
            names = [item.name for item in fields(cls) if item.name in document or item.name not in _ADDED]
            state = cls(**{name: document[name] for name in names})
        except FileNotFoundError:
            message = "not a checkpoint: it has no megacode.json"
            raise CheckpointError(message, str(directory), fix) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, str(error)) from None
        # Over the document as read: unknown fields of newer versions are covered too.
        if seal != _seal(document):
            raise _damaged(path, "its contents do not match its seal (hash)")
        return state


def seal_of(run: RunDir, iteration: int) -> str:
    """Return the seal of a run's checkpoint; empty where it is missing or damaged."""
    try:
        return TrainState.read(run.checkpoint(iteration)).seal
    except CheckpointError:
        return ""


def _seal(document: dict[str, Any]) -> str:
    # Of what strict JSON keeps: a NaN is null on disk, and must hash alike after reading.
    return digest(json.dumps(strict(document), sort_keys=True))


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"megacode.json is damaged: {reason}", str(path), "use an earlier checkpoint")
