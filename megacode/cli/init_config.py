"""Choose the settings of a first config: a model size for the data, the training length, the batch size.

Rules of thumb, each explained in the file: one pass over the data or 20 tokens per parameter, whichever is less;
shares in proportion to tokens; batches of at most a million tokens, and at least 500 of them if the data suffice.

Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", table 3, for 20 tokens a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, DataError
from megacode.base.units import parse_count
from megacode.capacity.costs import parameters
from megacode.cli.init_data import DataSet, open_streams, read_data_sets
from megacode.config.config_file import presets
from megacode.config.model import ModelConfig, TokenizerConfig
from megacode.config.suggestions import did_you_mean
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import tokenizer_at
from megacode.plan.sources import windows

TOKENS_A_PARAMETER = 20
_LARGEST_BATCH = 1 << 20  # tokens
_SMALLEST_BATCH = 8  # sequences: two ranks of micro-batches of 4
_ITERATIONS = 500  # at least, so that warm-up and decay have a shape
_SMALL_WINDOWS = 64  # minimum number of windows of the smallest source
# A run's name becomes a directory and a SLURM job's name: no separators, no leading dot.
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Shape:
    """A model's shape and the usual training settings for its size.

    Attributes:
        keys: of the section `model`, without the vocabulary.
        fields: the whole shape, presets resolved.
        seq_length: tokens a sequence.
        micro_batch_size: sequences per rank and forward pass.
        peak: peak learning rate.
        dtype: of the weights; fp32 for small models, which are for a first run, often without a GPU.
    """

    keys: Mapping[str, Any]
    fields: Mapping[str, Any]
    seq_length: int = 2048
    micro_batch_size: int = 1
    peak: str = "3.0e-4"
    dtype: str = "bf16"

    def parameters(self, vocab_size: int) -> int:
        """Return the number of parameters with a given vocabulary."""
        return parameters(ModelConfig.model_validate({**self.fields, "vocab_size": vocab_size}), vocab_size)


@dataclass(frozen=True)
class InitOptions:
    """The options of `megacode init`; empty or None: chosen here.

    Attributes:
        out: the file to write.
        name: of the run.
        data: `NAME=PREFIX` of each data set.
        tokenizer: its path.
        model: a preset.
        tokens: length of the run.
        seq_length: tokens a sequence.
    """

    out: Path
    name: str
    data: tuple[str, ...]
    tokenizer: str
    model: str = ""
    tokens: str = ""
    seq_length: int | None = None


@dataclass(frozen=True)
class NewConfig:
    """The chosen settings, and the numbers that the file's comments quote.

    Attributes:
        options: from the command line.
        data_sets: the sources.
        tokenizer: their tokenizer.
        vocab_size: number of tokens in its vocabulary.
        shape: the model.
        seq_length: tokens a sequence.
        fraction: held-out share of each source.
        streams: the sources by name, without the held-out share.
    """

    # Everything below is derived, and computed once when it is first asked for.
    ratio = TOKENS_A_PARAMETER
    options: InitOptions
    data_sets: Sequence[DataSet]
    tokenizer: TokenizerConfig
    vocab_size: int
    shape: Shape
    seq_length: int
    fraction: float
    streams: Mapping[str, SourceStream]

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return self.shape.parameters(self.vocab_size)

    @property
    def why(self) -> str:
        """The reason for this model, as text of a comment."""
        if self.options.model:
            return "as given by --model"
        if TOKENS_A_PARAMETER * self.parameters > sum(data.tokens for data in self.data_sets):
            return "the smallest known model, because there is little data"
        return f"the largest known model for which the data have {TOKENS_A_PARAMETER} tokens per parameter"

    @cached_property
    def even(self) -> dict[str, str]:
        """Equal shares of all sources."""
        return shares(dict.fromkeys(self.streams, 1))

    @cached_property
    def blend(self) -> dict[str, str]:
        """Shares in proportion to tokens, as decimals that sum to 1."""
        return shares({name: stream.train_tokens for name, stream in self.streams.items()})

    @cached_property
    def one_pass(self) -> int:
        """Tokens that the run can read before any source starts its second epoch."""
        # The -1 leaves room for rounding: a phase's shares become whole samples.
        return min(
            int((windows(stream.train_tokens, self.seq_length, stream.packed) - 1) / float(self.blend[name]))
            * self.seq_length
            for name, stream in self.streams.items()
        )

    @cached_property
    def wanted(self) -> int:
        """Tokens to train on, before rounding to whole batches.

        Raises:
            ConfigError: `--tokens` is not a number.
        """
        if not self.options.tokens:
            return min(self.one_pass, TOKENS_A_PARAMETER * self.parameters)
        try:
            return parse_count(self.options.tokens)
        except ValueError as error:
            raise ConfigError(str(error), "--tokens", "write for example --tokens 20B") from None

    @cached_property
    def global_batch_size(self) -> int:
        """Sequences per iteration: a power of two, so that it is divisible by most numbers of ranks."""
        most = min(_LARGEST_BATCH, self.wanted // _ITERATIONS) // self.seq_length
        return max(_SMALLEST_BATCH, 1 << max(0, most.bit_length() - 1))  # the largest power of two up to `most`

    @property
    def batch_tokens(self) -> int:
        """Tokens per iteration."""
        return self.global_batch_size * self.seq_length

    @cached_property
    def iterations(self) -> int:
        """Number of iterations.

        Raises:
            ConfigError: `--tokens` is less than one batch.
            DataError: the data sets hold less than one batch.
        """
        batch = self.batch_tokens
        if self.wanted >= batch:
            return round(self.wanted / batch) if self.options.tokens else self.wanted // batch  # the plan rounds, too
        if self.options.tokens:
            what = f"{self.options.tokens} is less than one batch of {batch:,} tokens"
            raise ConfigError(what, "--tokens", f"give --tokens {batch} or more, or a smaller --seq-length")
        what = f"the data sets have {self.wanted:,} tokens for training, less than one batch of {batch:,}"
        raise DataError(what, "--data", "use larger data sets, or a smaller --seq-length")

    @property
    def passes(self) -> float:
        """Number of passes over the source that is read most often."""
        return self.iterations * self.batch_tokens / max(1, self.one_pass)

    @cached_property
    def every(self) -> int:
        """Iterations between checkpoints, and between measurements of the held-out loss."""
        return max(1, min(1000, self.iterations // 10))


def compose(options: InitOptions) -> NewConfig:
    """Choose the settings for some data sets.

    Raises:
        ConfigError: a name, the preset or the number of tokens is invalid.
        DataError: a data set or the tokenizer is missing or damaged, or they do not belong together.
    """
    # What costs nothing to check comes first; opening data sets and the tokenizer takes seconds.
    if not _RUN_NAME.fullmatch(options.name):
        what = f"the run's name {options.name!r} may only hold letters, digits, ., - and _"
        raise ConfigError(what, "--name", "give for example --name first-run")
    known = presets()
    if options.model and options.model not in known:
        raise ConfigError(f"there is no preset {options.model!r}", "--model", did_you_mean(options.model, list(known)))
    tokenizer = tokenizer_at(options.tokenizer)
    data_sets, made_with = read_data_sets(options.data, tokenizer)
    # Model first, then sequence length, then the held-out share: each depends on the one before.
    shape = _shape(options.model, sum(data.tokens for data in data_sets), made_with.vocab_size)
    seq_length = options.seq_length or _fitting(shape.seq_length, min(data.tokens for data in data_sets))
    fraction, streams = open_streams(data_sets, seq_length)
    for stream in streams.values():
        stream.check_vocabulary(made_with.vocab_size)
    return NewConfig(options, data_sets, tokenizer, made_with.vocab_size, shape, seq_length, fraction, streams)


def _shapes() -> list[Shape]:
    """Return all models that may be chosen; those smaller than every preset have no name."""
    # About 3, 25 and 85 million parameters without the embeddings, for data sets that fit on a laptop.
    small = [
        Shape(keys, keys, 512, 4, "1.0e-3", "fp32")
        for layers, hidden, ffn, heads in ((4, 256, 704, 4), (8, 512, 1408, 8), (12, 768, 2048, 12))
        for keys in [
            {
                "num_layers": layers,
                "hidden_size": hidden,
                "ffn_hidden_size": ffn,
                "num_attention_heads": heads,
                "share_embeddings_and_output_weights": True,
            }
        ]
    ]
    return [*small, *(Shape({"preset": name}, fields) for name, fields in presets().items())]


def _shape(preset: str, tokens: int, vocab_size: int) -> Shape:
    """Return the preset, or else the largest model with enough tokens per parameter (the smallest if none has)."""
    shapes = sorted(_shapes(), key=lambda shape: shape.parameters(vocab_size))
    if preset:
        return next(shape for shape in shapes if shape.keys.get("preset") == preset)
    affordable = [shape for shape in shapes if TOKENS_A_PARAMETER * shape.parameters(vocab_size) <= tokens]
    return affordable[-1] if affordable else shapes[0]


def _fitting(seq_length: int, tokens: int) -> int:
    """Return a sequence length, halved until the smallest data set has enough windows of it."""
    while seq_length > _SMALL_WINDOWS and tokens // seq_length < _SMALL_WINDOWS:
        seq_length //= 2
    return seq_length


def shares(tokens: Mapping[str, int]) -> dict[str, str]:
    """Return shares in proportion to tokens, as decimals that sum to exactly 1.

    Args:
        tokens: of each source, at least 1.

    Returns:
        decimals of 3 digits, or as many as keep the smallest source's rounding error at 1 % or less.
    """
    total, smallest, largest = sum(tokens.values()), min(tokens.values()), max(tokens, key=lambda name: tokens[name])
    digits = 3
    while smallest * 10**digits < 50 * total:
        digits += 1
    units = {name: round(count * 10**digits / total) for name, count in tokens.items()}
    units[largest] += 10**digits - sum(units.values())  # the largest share absorbs the rounding: it notices least
    return {name: f"{count / 10**digits:.{digits}f}".rstrip("0").rstrip(".") for name, count in units.items()}
