"""Write the text of a first config, with the reason for every choice in comments, and list the next steps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from megacode.base.units import format_count
from megacode.cli.init_config import NewConfig
from megacode.config.config_file import presets, validate
from megacode.config.quantity import Quantity
from megacode.config.yaml_reader import parse_yaml

_PLAIN = re.compile(r"[A-Za-z0-9_./~-]+")  # needs no quotes in YAML, if YAML reads it as a string
_TEMPLATE = Template("""\
# A run on your own data sets, written by `megacode init`. Change what you like; docs/config.md lists every key.
# Paths are relative to the directory in which the commands are run:
#     megacode plan $out      what it will read, before anything starts; --gpus N adds memory and time
#     megacode train $out     trains; the same command resumes
name: $name    # the run directory is runs/NAME
seed: 1234    # decides the order of the data, and the initial weights

# The model: $parameters parameters, $why.
# Presets: $presets. vocab_size is the tokenizer's.
$model
tokenizer: $tokenizer

# max_epochs: 4 beside a path would limit how often a source may be read over the whole run.
sources:
$sources

# The last $held_out of each source is held out, in whole documents. Its loss is measured during the run.
validation: {fraction: $fraction, every: $every, samples: 128}

# One phase. Add more below it to change the blend or the learning rate during the run.
# Length: one pass over the data is $one_pass tokens, and $ratio tokens per parameter are $enough.
# $length_choice
# $blend_choice
phases:
  - name: main
    tokens: $tokens    # $iterations
    blend: $blend
    # A short linear warm-up to the peak, then a cosine down to a tenth of it.
    learning_rate: {schedule: cosine, peak: $peak, final: $final, warmup: $warmup}

# An iteration reads $batch tokens, whatever the number of ranks.
# micro_batch_size is the number of sequences per rank and forward pass: raise it while memory allows.
train: {seq_length: $seq_length, global_batch_size: $global_batch_size, micro_batch_size: $micro_batch_size}
precision: {dtype: $dtype}    # bf16 on GPUs; fp32 is faster on most CPUs

# A checkpoint every `every` iterations. The newest three are kept, and the one at the end of each phase.
checkpoint: {every: $every, keep_last: 3, keep_phase_ends: true}
""")


def render(new: NewConfig) -> str:
    """Return a config's text after planning it, so that `megacode plan` accepts what is written.

    Raises:
        MegacodeError: `megacode plan` would refuse it.
    """
    from megacode.planning.run_plan import plan_run

    text, where = _TEMPLATE.substitute(_names(new) | _lengths(new)), str(new.options.out)
    plan_run(validate(parse_yaml(text, where), where))
    return text


def _names(new: NewConfig) -> dict[str, Any]:
    fields = {"kind": new.tokenizer.kind, "path": scalar(new.tokenizer.path)}
    return {
        "out": shlex.quote(str(new.options.out)),
        "name": scalar(new.options.name),
        "parameters": format_count(new.parameters),
        "why": new.why,
        "presets": ", ".join(presets()),
        "model": "\n".join(_model(new)),
        "tokenizer": _flow(fields),
        "sources": "\n".join(_sources(new)),
        "fraction": new.fraction,
        "held_out": f"{100 * new.fraction:g}%",
        "blend": _flow(new.blend),
        "blend_choice": _blend_choice(new),
    }


def _model(new: NewConfig) -> Iterator[str]:
    keys = {**new.shape.keys, "vocab_size": new.vocab_size}
    if "preset" in keys:
        yield f"model: {_flow(keys)}"
        return
    yield "model:"
    for key, value in keys.items():
        yield f"  {key}: {_value(value)}"


def _blend_choice(new: NewConfig) -> str:
    if len(new.blend) == 1:
        return "Blend: the one source."
    return f"Blend: in proportion to tokens. Even shares would be {_flow(new.even)}."


def _sources(new: NewConfig) -> Iterator[str]:
    for data in new.data_sets:
        unknown = "" if data.has_manifest else "; no manifest says which tokenizer made it"
        yield f"  {scalar(data.name)}: {{path: {scalar(data.prefix)}}}    # {format_count(data.tokens)} tokens{unknown}"


def _lengths(new: NewConfig) -> dict[str, Any]:
    asked = new.options.tokens
    passes = f"Below is the value of --tokens. Passes over the data: {_times(new.passes)}."
    return {
        "one_pass": format_count(new.one_pass),
        "ratio": new.ratio,
        "enough": format_count(new.ratio * new.parameters),
        "length_choice": passes if asked else "Below is the smaller one, in whole batches.",
        "tokens": asked or new.iterations * new.batch_tokens,  # as the user wrote it: `20B` stays readable
        "iterations": _iterations(new.iterations),
        "every": _iterations(new.every),
        "peak": new.shape.peak,
        "final": f"{float(new.shape.peak) / 10:.1e}".replace("e-0", "e-"),
        # 2 % of the run, as is usual for large models, and never more than 2,000 iterations.
        "warmup": _iterations(max(1, min(2000, new.iterations // 50))),
        "batch": format_count(new.batch_tokens),
        "seq_length": new.seq_length,
        "global_batch_size": new.global_batch_size,
        "micro_batch_size": new.shape.micro_batch_size,
        "dtype": new.shape.dtype,
    }


def scalar(text: str) -> str:
    """Return a string as a YAML scalar, quoted if YAML would read it as another type."""
    # A source may be called `no` or `1e3`: YAML's own reader decides.
    plain = _PLAIN.fullmatch(text) and parse_yaml(text, "") == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _flow(mapping: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{scalar(key)}: {_value(value)}" for key, value in mapping.items()) + "}"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _iterations(count: int) -> str:
    return str(Quantity(count=count, unit="iterations"))


def _times(passes: float) -> str:
    return f"{passes:,.0f}" if passes >= 100 else f"{passes:.2g}"


def next_steps(new: NewConfig, out: Path) -> Iterator[str]:
    """Yield a summary of the config and the next commands, line by line."""
    model = new.shape.keys.get("preset", "a small model")
    blend = ", ".join(f"{name} {float(share):.1%}" for name, share in new.blend.items())
    tokens, path = format_count(new.iterations * new.batch_tokens), shlex.quote(str(out))
    yield f"{out}: {model}, {format_count(new.parameters)} parameters; {tokens} tokens, {_iterations(new.iterations)}"
    yield f"blend: {blend}; passes over the data: {_times(new.passes)}"
    yield "Next:"
    yield f"    megacode plan {path}"
    yield f"    megacode train {path} --nproc 2"
