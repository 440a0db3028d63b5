"""Compare the config that a checkpoint was saved with and the config that resumes it.

Settings are compared after defaults are filled in, so a setting that an older version did not have counts as its
default. The effect on the data schedule is listed separately: tokens of each source after the clock, before and now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import yaml

from megacode.base.errors import CheckpointError, MegacodeError
from megacode.base.units import format_count
from megacode.config.config_file import dump_config, validate
from megacode.config.run import RunConfig
from megacode.plan.effects import effect_of
from megacode.plan.fingerprint import Link, prove_past
from megacode.plan.phases import Schedule, SourceSize, build_schedule

# The same YAML, ten times as fast where PyYAML has libyaml: a study reads the configs of all its checkpoints.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNKNOWN_TOKENS = 10**15  # for a source that was planned, never read and is gone: treat it as inexhaustible
# Settings of `model` that do not change what trained weights compute: initialization, dropout, padding that is
# never saved, and the vocabulary, which may come from the tokenizer.
_FREE = (
    "preset", "hidden_dropout", "attention_dropout", "make_vocab_size_divisible_by", "init_method_std", "init_seed",
    "vocab_size",
)  # fmt: skip
# Settings of `model` that trained weights adapt to: positions, windows, an epsilon and a scale. Others, such as
# `qk_norm` or heads, would use the same numbers for something else, even where names and shapes agree.
_ADAPTED = (
    "attention_pattern", "sliding_window", "rotary_pattern", "rotary_base", "rotary_percent", "rotary_scaling",
    "layernorm_epsilon", "logit_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One setting that has changed.

    Attributes:
        key: the setting, such as `train.clip_grad`; `phases[2]` is a whole phase that was added, removed or replaced.
        old, new: its values, plain; None where there is none.
        effect: what it affects, such as `future data`, `learning rate`, `optimizer`, `layout` or `bookkeeping`.
    """

    key: str
    old: Any
    new: Any
    effect: str


@dataclass(frozen=True)
class Difference:
    """What changes after a checkpoint.

    Attributes:
        changes: changed settings.
        sources: by name, tokens `read` so far, and planned after the clock, `before` and `now`; `before` is None where
            the former plan cannot be rebuilt.
        total_tokens: of the whole run, `before` and `now`.
        lost: the cost of a changed past (`past.lost`), where one was accepted.
    """

    changes: list[Change]
    sources: dict[str, dict[str, int | None]]
    total_tokens: dict[str, int | None]
    lost: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain values for JSON; `lost` is present only where a changed past was accepted."""
        document = asdict(self)
        if self.lost is None:
            del document["lost"]
        return document


def render_changes(changes: Sequence[Change]) -> list[str]:
    """Return changes as lines for a log."""
    return [f"{change.key}: {shown(change.old)} -> {shown(change.new)} ({change.effect})" for change in changes]


def shown(value: Any) -> str:
    """Return a setting's value on one line, as in YAML."""
    if value is None:
        return "-"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def compare_configs(former: str, config: RunConfig, chain: Sequence[Link], consumed_samples: int) -> list[Change]:
    """Return the settings in which a config differs from a former one.

    Args:
        former: the config that the checkpoint carries, YAML.
        config: the present one.
        chain: the checkpoint's fingerprints, which tell which phases are over and have no effect any more.
        consumed_samples: its clock.
    """
    try:
        old = yaml.safe_load(dump_config(former_config(former)))
    except MegacodeError:  # from another version, with settings that no longer exist
        old = yaml.safe_load(former) or {}
    new = yaml.safe_load(dump_config(config))
    over = sum(link["first_sample"] + link["read"] <= consumed_samples for link in chain)
    phases = list(_phase_changes(old.pop("phases", []), new.pop("phases"), over))
    settings = [Change(key, *values, effect_of(key)) for key, values in _changed(old, new)]
    return phases + settings


def model_changes(former: str, config: RunConfig) -> list[Change]:
    """Return the changed settings that affect shapes of weights or the forward pass.

    The vocabulary is not compared: it may be in the config or come from a tokenizer.
    """
    changes = compare_configs(former, config, (), 0)
    free = [f"model.{key}" for key in _FREE]
    return [change for change in changes if change.key.startswith("model.") and change.key not in free]


def adapts(change: Change) -> bool:
    """Return whether a changed setting of `model` leaves trained weights usable: a run can start from them, at clock 0.

    They are then trained under the new setting, as for longer sequences. A run that is resumed keeps its model.
    """
    return change.key.split(".")[1] in _ADAPTED


def former_schedule(
    former: str, chain: Sequence[Link], consumed_samples: int, sizes: Mapping[str, SourceSize]
) -> Schedule | None:
    """Return the schedule that a checkpoint was saved with, or None where it cannot be rebuilt.

    Args:
        former: the config that the checkpoint carries, YAML.
        chain: its fingerprints, which hold the sizes of the sources that were read.
        consumed_samples: its clock.
        sizes: present sizes, for sources that were only planned.
    """
    known = {
        name: SourceSize(name, facts["tokens"], identity=facts["identity"], form=facts.get("form"))
        for link in chain
        for name, facts in link["sources"].items()
    }
    try:
        config = former_config(former)
        declared = {name: SourceSize(name, source.tokens or _UNKNOWN_TOKENS) for name, source in config.sources.items()}
        # Later entries win: sizes that the chain has proven, then present ones, then declared ones.
        schedule = build_schedule(config, {**declared, **sizes, **known})
        # A rebuilt schedule counts only if it proves the checkpoint's own chain.
        prove_past(schedule, chain, consumed_samples)
    except MegacodeError:
        return None
    return schedule


def compare_schedules(old: Schedule | None, new: Schedule, consumed_samples: int) -> Difference:
    """Compare what two schedules read after a clock; the changed settings are added by the caller.

    Args:
        old: the former one; None: unknown.
        new: the present one.
        consumed_samples: the clock.
    """
    before, now = (_to_come(schedule, consumed_samples) for schedule in (old or new, new))
    read = (old or new).counts_at(min(consumed_samples, (old or new).total_samples))
    length = (old or new).seq_length
    names = [name for name in sorted({*before, *now}) if before.get(name) or now.get(name) or read.get(name)]
    sources: dict[str, dict[str, int | None]] = {
        name: {
            "read": read.get(name, 0) * length,
            "before": before.get(name, 0) if old else None,
            "now": now.get(name, 0),
        }
        for name in names
    }
    total = {"before": old.total_samples * old.seq_length if old else None, "now": new.total_samples * new.seq_length}
    return Difference([], sources, total)


@lru_cache(maxsize=64)  # one config is asked for several times, and by each checkpoint of a run
def former_config(former: str) -> RunConfig:
    """Return the config that a checkpoint carries.

    Raises:
        MegacodeError: it is none, or another version's.
    """
    raw = yaml.load(former, Loader=_Loader)
    if not isinstance(raw, dict):
        raise CheckpointError("the checkpoint contains no config", "megacode.json", "use another checkpoint")
    return validate(raw, "the checkpoint's config")


def _to_come(schedule: Schedule, clock: int) -> dict[str, int]:
    """Return the tokens of each source after a clock."""
    done = schedule.counts_at(min(clock, schedule.total_samples))
    whole = schedule.counts_at(schedule.total_samples)
    return {name: (whole[name] - done[name]) * schedule.seq_length for name in whole}


def _phase_changes(old: list[dict[str, Any]], new: list[dict[str, Any]], over: int) -> Iterator[Change]:
    for number in range(max(len(old), len(new))):
        was = old[number] if number < len(old) else None
        now = new[number] if number < len(new) else None
        key = f"phases[{number}]"
        # Phases are matched by position; another name there is another phase.
        if was is None or now is None or was["name"] != now["name"]:
            yield Change(key, was and _phase_title(was), now and _phase_title(now), "future data, learning rate")
            continue
        for name, values in _changed(was, now):
            effect = effect_of(f"{key}.{name}")
            if number < over:
                # Phases that are over cannot change what will be read, unless their data changed (the chain refuses
                # that).
                effect = "past data" if effect == "future data" else "nothing: the phase is over"
            yield Change(f"{key}.{name}", *values, effect)


def _phase_title(phase: Mapping[str, Any]) -> str:
    unit = next(unit for unit in ("tokens", "samples", "iterations") if unit in phase)
    left = f", ends early after {phase['until']}" if "until" in phase else ""
    return f"{phase['name']}, {format_count(phase[unit])} {unit}{left}"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the dotted keys whose values differ, with both values; sections that only one side has are not split."""
    for key in [*old, *(key for key in new if key not in old)]:
        # A setting without a default is absent on one side: compare it with None.
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changed(was, now, f"{above}{key}.")
        elif was != now:
            yield f"{above}{key}", (was, now)
