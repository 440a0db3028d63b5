"""An opened checkpoint: its state, config, run directory and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint and the run it belongs to.

    Attributes:
        path: the checkpoint's directory.
        state: its recorded state: clock, counters, fingerprints, versions.
        config: the run's resolved config.
    """

    path: Path
    state: TrainState
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> OpenedCheckpoint:
        """Open a checkpoint, or the newest one of a run directory.

        Raises:
            CheckpointError: there is none, or it is corrupted.
            ConfigError: its config is not one of this version of megacode.
        """
        checkpoint = find_checkpoint(path).resolve()
        state = TrainState.read(checkpoint)
        return cls(checkpoint, state, validate(yaml.safe_load(state.config), str(checkpoint)))

    @cached_property
    def run(self) -> RunDir:
        """The run directory: the one that contains the checkpoint, else the one its config names."""
        # A run directory may have been moved since its config was written, so its own place comes first.
        inside = self.path.parent.name == "checkpoints"
        return RunDir(self.path.parent.parent if inside else self.config.directory)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer.

        Raises:
            CheckpointError: the run has none, it has changed since training, or it has no end-of-document token.
            DataError: its files are missing.
        """
        fix = "restore the run's tokenizer to the path in its config"
        if self.config.tokenizer is None:
            message = "the run has no tokenizer, and a model cannot be used without one"
            raise CheckpointError(
                message, str(self.path), "set the data's tokenizer in the config's tokenizer: section"
            )
        tokenizer = load_tokenizer(self.config.tokenizer)
        # Another tokenizer would give the exported weights another meaning, without any error.
        if tokenizer.hash != self.state.tokenizer_hash:
            message = (
                f"the tokenizer is {tokenizer.hash[:12]}, but the run was trained with {self.state.tokenizer_hash[:12]}"
            )
            raise CheckpointError(message, str(tokenizer.path), fix)
        if tokenizer.eod is None:
            message = "the tokenizer has no end-of-document token, so generation would never end"
            raise CheckpointError(message, str(tokenizer.path), "train a tokenizer with one, such as <|endoftext|>")
        return tokenizer

    @property
    def label(self) -> str:
        """The run's name and the iteration."""
        return f"{self.config.name}@{RunDir.iteration_name(self.state.iteration)}"

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this checkpoint from every other."""
        # Name and iteration may repeat after a fresh start; the fingerprint of the data order does not.
        last = self.state.fingerprints[-1]["fingerprint"] if self.state.fingerprints else ""
        return {"run": self.config.name, "iteration": self.state.iteration, "fingerprint": last}
