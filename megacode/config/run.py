"""`RunConfig`: the root of the config schema."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.data import Phase, Source, Validation
from megacode.config.evaluate import Evaluate
from megacode.config.health import Health, Limits
from megacode.config.mirrors import Metrics
from megacode.config.model import ModelConfig, TokenizerConfig
from megacode.config.objects import Objects
from megacode.config.quantity import Frozen
from megacode.config.training import CheckpointPolicy, Fp8, Init, OptimizerName, Parallel, Precision, Training


class RunConfig(Frozen):
    """Everything that determines a run; no value in it is derived from another.

    Attributes:
        name: of the run, its directory and its model.
        seed: of the data order and of the initial weights.
        model: the model's shape.
        tokenizer: the tokenizer of the data sets; absent where only `model.vocab_size` is needed.
        sources: the data sets by name.
        objects: how those in object storage are read.
        validation: what is held out, and how often it is measured.
        phases: the phases of the run, in order.
        caps: what to do where `max_epochs` limits a source: `error`, or `spread` its share over the others.
        train: batches and optimizer.
        parallel: how the model is laid over ranks.
        precision: number formats.
        checkpoint: when to save and what to keep.
        evaluate: scores while training; absent: none.
        metrics: where the measurements are mirrored: Weights & Biases, MLflow, OpenTelemetry.
        health: monitoring of spikes, hangs and slow ranks.
        limits: how long one start may take.
        init: where the first weights come from.
        run_dir: where everything is written; absent: `runs/<name>` under the working directory.
    """

    # Also the name of a directory, so no spaces or slashes.
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=1234, ge=0)
    model: ModelConfig
    tokenizer: TokenizerConfig | None = None
    sources: dict[str, Source] = Field(min_length=1)
    objects: Objects = Objects()
    validation: Validation = Validation()
    phases: tuple[Phase, ...] = Field(min_length=1)
    caps: Literal["error", "spread"] = "error"
    train: Training
    parallel: Parallel = Parallel()
    precision: Precision = Precision()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    evaluate: Evaluate | None = None
    metrics: Metrics = Metrics()
    health: Health = Health()
    limits: Limits = Limits()
    init: Init = Init()
    run_dir: str | None = None

    @property
    def directory(self) -> str:
        """The run directory."""
        return self.run_dir or f"runs/{self.name}"

    def fp8_in(self, phase: Phase) -> Fp8 | None:
        """Return the FP8 recipe of a phase, or None."""
        # `fp8: none` in a phase switches it off; an absent key inherits.
        chosen = self.precision.fp8 if phase.fp8 is None else phase.fp8
        return chosen if isinstance(chosen, Fp8) else None

    @property
    def fp8_recipes(self) -> tuple[Fp8, ...]:
        """The FP8 recipes of all phases, each once."""
        return tuple(dict.fromkeys(recipe for phase in self.phases if (recipe := self.fp8_in(phase)) is not None))

    def optimizer_in(self, phase: Phase) -> OptimizerName:
        """Return the optimizer of the blocks' matrices in a phase."""
        return phase.optimizer or self.train.optimizer

    @property
    def uses_muon(self) -> bool:
        """Whether a phase trains with Muon: state is then held as Muon needs it, in all phases."""
        return any(self.optimizer_in(phase) == "muon" for phase in self.phases)

    @property
    def shards_as_mcore(self) -> bool:
        """Whether Megatron-core's distributed optimizer shards the state; Muon needs whole matrices."""
        return self.parallel.distributed_optimizer and not self.uses_muon
