"""Apply `key.path=value` overrides from the command line, and refuse contradictory ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from megacode.base.errors import Problem
from megacode.config.suggestions import did_you_mean
from megacode.config.yaml_reader import TwiceError

COMMAND_LINE = "command line"
Location = tuple[str | int, ...]  # keys of mappings and numbers of list items


@dataclass(frozen=True)
class Override:
    """One value from the command line.

    Attributes:
        text: as written.
        location: its place in the document; phases by number, also where a name was given.
        value: parsed as YAML.
    """

    text: str
    location: Location
    value: Any


class _Unusable(Exception):  # noqa: N818 (carries a problem to the caller, never shown)
    def __init__(self, message: str, fix: str) -> None:
        self.problem = Problem(message, COMMAND_LINE, fix)


def apply_overrides(
    raw: dict[str, Any], texts: Sequence[str], parse: Callable[[str], Any]
) -> tuple[list[Override], list[Problem]]:
    """Write values from the command line into a document.

    Args:
        raw: the document; changed.
        texts: `key.path=value` each.
        parse: reads a value; raises `yaml.YAMLError`.

    Returns:
        The overrides, and the problems of those that cannot be used.
    """
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in dict.fromkeys(texts):  # an identical repetition is harmless
        try:
            override = _read(raw, text, parse)
            _refuse_contradiction(override, overrides)
        except _Unusable as unusable:
            problems.append(unusable.problem)
            continue
        overrides.append(override)
        _write(raw, override)
    return overrides, problems


def _read(raw: dict[str, Any], text: str, parse: Callable[[str], Any]) -> Override:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(name.strip() for name in names):
        fix = "write key.path=value, for example train.global_batch_size=64"
        raise _Unusable(f"{text!r} is not an override", fix)
    if not value.strip():
        fix = f"write {key.strip()}=VALUE; null removes a setting"
        raise _Unusable(f"{text!r} gives no value", fix)
    try:
        # The same YAML types as in a file: `64` is a number, `null` removes a setting.
        parsed = parse(value)
    except TwiceError as error:
        raise _Unusable(f"in {text!r} {error.problem}", "remove one of them") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _Unusable(f"the value of {text!r} is not YAML", "quote it for the shell") from None
    location: list[str | int] = []
    place: Any = raw
    for name in names:
        if isinstance(place, list):
            number = _index(place, name, text)
            location.append(number)
            place = place[number]
        else:
            location.append(name)
            # A key that does not exist yet is created by `_write`; the schema decides whether it is legal.
            place = place.get(name) if isinstance(place, dict) else None
    return Override(text, tuple(location), parsed)


def _index(place: list[Any], name: str, text: str) -> int:
    """Return the index of a list item, given its number or the name of a phase."""
    names = [str(item.get("name")) if isinstance(item, dict) else "" for item in place]
    # A phase may be named "1": names win over numbers.
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(place):
        return int(name)
    known = [*filter(None, names), *(str(number) for number in range(len(place)))]
    raise _Unusable(f"{text!r}: there is no item {name!r}", did_you_mean(name, known))


def _refuse_contradiction(override: Override, before: list[Override]) -> None:
    """Refuse a value that would silently replace another one from the command line."""
    for other in before:
        # The other order is fine: train={...} first, then train.seq_length=64, refines it.
        if other.location[: len(override.location)] == override.location:
            fix = (
                "give it only once"
                if other.location == override.location
                else f"put {override.text!r} first, or remove {other.text!r}"
            )
            raise _Unusable(f"{override.text!r} would replace {other.text!r}", fix)


def _write(raw: dict[str, Any], override: Override) -> None:
    *path, last = override.location
    place: Any = raw  # a mapping, or a list where the step is a number
    for step in path:
        # A section that is missing, or holds a scalar such as `fp8: none`, becomes a mapping.
        if isinstance(place, dict) and not isinstance(place.get(step), (dict, list)):
            place[step] = {}
        place = place[step]
    place[last] = override.value
