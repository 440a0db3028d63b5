"""Rules of the `model` section: heads, norms, windows and rotary positions; see `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.model import YARN_BETA_FAST, YARN_BETA_SLOW
from megacode.config.suggestions import neighbours

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

# Settings of `rotary_scaling` that only some kinds have: those they need, and those they may have.
_NEEDED = {
    "linear": (),
    "llama3": ("original_length", "low_frequency_factor", "high_frequency_factor"),
    "yarn": ("original_length",),
}
_OPTIONAL = {"linear": (), "llama3": (), "yarn": ("beta_fast", "beta_slow", "attention_factor")}


def heads_divide_the_width(config: RunConfig) -> Iterator[Problem]:
    """Without `kv_channels`, hidden_size is divided evenly among the heads."""
    model = config.model
    heads, hidden = model.num_attention_heads, model.hidden_size
    if model.kv_channels is None and hidden % heads:
        message = f"hidden_size {hidden} is not divisible by num_attention_heads {heads}"
        yield Problem(message, "model.hidden_size", f"use {neighbours(hidden, heads)}, or give model.kv_channels")
    # Only where the division works: otherwise the head size would be rounded, and this a second message for one
    # mistake.
    elif model.head_size % 2:
        message = f"a head has {model.head_size} channels, and rotary positions need an even number"
        yield Problem(message, "model.kv_channels", f"use {neighbours(model.head_size, 2)}, or another number of heads")


def groups_divide_the_heads(config: RunConfig) -> Iterator[Problem]:
    """Every query group serves the same number of heads."""
    # GQA; also Megatron's layout of the fused QKV matrix, which is grouped by query group.
    heads, groups = config.model.num_attention_heads, config.model.query_groups
    if heads % groups:
        legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        message = f"num_attention_heads {heads} is not divisible by num_query_groups {groups}"
        yield Problem(message, "model.num_query_groups", f"use one of {legal}")


def norms_fit_the_block(config: RunConfig) -> Iterator[Problem]:
    """RMSNorm has no bias, and norms after attention and MLP need a block where these follow each other."""
    model = config.model
    if model.norm_bias and model.normalization == "RMSNorm":
        message = "norm_bias is set, and RMSNorm has no bias"
        yield Problem(message, "model.norm_bias", "set normalization: LayerNorm, or norm_bias: false")
    if model.norm_placement == "after" and model.block == "parallel":
        message = "norm_placement after needs block sequential: the branches of a parallel block read one norm"
        yield Problem(message, "model.norm_placement", "set block: sequential, or norm_placement: before")


def a_window_has_sliding_layers(config: RunConfig) -> Iterator[Problem]:
    """`sliding_window` and sliding layers come together."""
    pattern, window = config.model.attention_pattern, config.model.sliding_window
    if window is None and "sliding" in pattern:
        message = "attention_pattern has sliding layers, and sliding_window is not given"
        yield Problem(message, "model.sliding_window", "add sliding_window: 4096, or remove attention_pattern")
    elif window is not None and "sliding" not in pattern:
        message = f"sliding_window {window} is given, and attention_pattern has no sliding layer"
        yield Problem(message, "model.attention_pattern", "add attention_pattern: [sliding], or remove sliding_window")


def patterns_fit_the_layers(config: RunConfig) -> Iterator[Problem]:
    """A pattern longer than the model would have entries without a layer."""
    model = config.model
    for name in ("attention_pattern", "rotary_pattern"):
        # A shorter pattern is repeated, also where its length does not divide the number of layers.
        length = len(getattr(model, name))
        if length > model.num_layers:
            message = f"{name} has {length} entries, and the model only {model.num_layers} layers"
            yield Problem(message, f"model.{name}", f"give at most {model.num_layers} entries; they are repeated")


def rotating_channels_are_pairs(config: RunConfig) -> Iterator[Problem]:
    """Rotary positions rotate pairs of channels."""
    model = config.model
    head, share = model.head_size, model.rotary_share
    # A head with an odd number of channels has a problem of its own.
    if head < 2 or head % 2 or (head * share >= 2 and head * share % 2 == 0):
        return
    near = max(2, 2 * round(head * share / 2))
    message = f"rotary_percent {model.rotary_percent:g} of {head} channels is not an even number of them"
    yield Problem(message, "model.rotary_percent", f"use {near / head:g}, which is {near} channels")


def scaling_has_its_settings(config: RunConfig) -> Iterator[Problem]:
    """Each kind of rotary scaling has settings of its own, and reaches a layer."""
    scaling, where = config.model.rotary_scaling, "model.rotary_scaling"
    if scaling is None:
        return
    needed, kind = _NEEDED[scaling.kind], scaling.kind
    allowed = (*needed, *_OPTIONAL[kind])
    for name in dict.fromkeys(name for table in (_NEEDED, _OPTIONAL) for names in table.values() for name in names):
        is_set = getattr(scaling, name) is not None
        if is_set and name not in allowed:
            yield Problem(f"kind {kind} has no {name}", f"{where}.{name}", "remove it")
        if not is_set and name in needed:
            yield Problem(f"kind {kind} needs {name}", f"{where}.{name}", f"add {name}")
    yield from _ordered(scaling.low_frequency_factor, scaling.high_frequency_factor, "high_frequency_factor")
    if kind == "yarn":
        if config.model.rotary_base <= 1:
            message = f"kind yarn needs rotary_base above 1, and it is {config.model.rotary_base:g}"
            yield Problem(message, "model.rotary_base", "give more than 1")
        # One of the two may be absent: what it is compared with is then the default.
        slow, fast = scaling.beta_slow or YARN_BETA_SLOW, scaling.beta_fast or YARN_BETA_FAST
        yield from _ordered(slow, fast, "beta_fast")
    # A setting that reaches no layer trains the same model as none: most likely it was meant for other layers.
    if not any(config.model.scales(layer) for layer in range(config.model.num_layers)):
        message = "rotary_scaling is given, and no layer has scaled rotary positions"
        yield Problem(message, where, "remove it, or change layers, rotary_pattern or attention_pattern")


def _ordered(low: float | None, high: float | None, name: str) -> Iterator[Problem]:
    if low is not None and high is not None and low >= high:
        where = f"model.rotary_scaling.{name}"
        yield Problem(
            f"{name} {high:g} is not larger than its lower counterpart {low:g}", where, f"give more than {low:g}"
        )


MODEL_RULES = (
    heads_divide_the_width,
    groups_divide_the_heads,
    norms_fit_the_block,
    a_window_has_sliding_layers,
    patterns_fit_the_layers,
    rotating_channels_are_pairs,
    scaling_has_its_settings,
)
