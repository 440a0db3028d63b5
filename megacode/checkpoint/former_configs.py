"""Former configs of a run, as what they differ in from the next one. Needs no torch.

A run may be resumed many times, with other settings each time. Only settings that are learned from matter later, so
only these are kept: a checkpoint's state does not grow with each start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from megacode.plan.effects import OUTSIDE, effect_of

# A setting by the keys that lead to it, and its former value; None: it was not set. Names of sources may hold dots.
Was = list[tuple[list[str], Any]]


def learned_otherwise(former: str, now: str) -> Was:
    """Return the settings of a former config that training learned otherwise from; empty: the same was learned.

    Args:
        former: a run's config, YAML.
        now: the config that it resumes with.
    """
    old, new = (dict(_settings(yaml.safe_load(text) or {})) for text in (former, now))
    # Where the run started counts too: its first config tells what its first weights were.
    keys = [key for key in {**old, **new} if key[0] == "init" or not _outside(key)]
    return [(list(key), old.get(key)) for key in keys if old.get(key) != new.get(key)]


def config_before(was: Was, now: str) -> str:
    """Return the former config as YAML; settings that nothing is learned from are those of now.

    Args:
        was: from `learned_otherwise`.
        now: the config that followed.
    """
    document = yaml.safe_load(now) or {}
    # Removed first: a section may have been a single value before.
    for keys, _ in was:
        _remove(document, keys)
    for keys, value in was:
        if value is not None:
            section = document
            for key in keys[:-1]:
                section = section.setdefault(key, {})
            section[keys[-1]] = value
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _remove(document: dict[str, Any], keys: list[str]) -> None:
    """Remove a setting, and the sections that are empty without it: a source, for example."""
    inner = document.get(keys[0])
    if len(keys) > 1 and isinstance(inner, dict):
        _remove(inner, keys[1:])
    if len(keys) == 1 or inner == {}:
        document.pop(keys[0], None)


def _outside(key: tuple[str, ...]) -> bool:
    # The effects of a whole section are several.
    return set(effect_of(".".join(key)).split(", ")) <= OUTSIDE


def _settings(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the settings of a document: lists and empty sections are values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _settings(item, (*above, str(key)))
    else:
        yield above, value
