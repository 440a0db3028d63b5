"""Settings of a study as parts of a run's config: dotted keys, phases by name, and names of runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from megacode.config.config_file import merge
from megacode.config.run import RunConfig
from megacode.study.schema import PhaseUse, Study

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted settings as a document; those of phases are left out, they have names."""
    document: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("phases."):
            continue
        item: Any = value
        for part in reversed(key.split(".")):
            item = {part: item}
        document = merge(document, item)
    return document


def slug(name: str) -> str:
    """Return a name as it can stand in a run's name."""
    # Arrows and plus signs carry the meaning of many names, so they become words and not dashes.
    plain = _UNSAFE.sub("-", name.replace("→", "-to-").replace("+", "-plus-")).strip("-.")
    return plain or "arm"


def phases_of(study: Study, uses: Sequence[PhaseUse], settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return phases of a study as a run's config has them; one that is used again gets a number.

    Args:
        study: the study.
        uses: its phases that are used, in order.
        settings: dotted, the last with the last word; those of phases are laid over them.
    """
    found, taken = [], set[str]()
    # The second use of a phase needs a name of its own: a run's config refuses two phases of one name.
    for use in uses:
        known = {*taken, *study.phases} if use.phase in taken else taken
        own = free_name(use.phase, known)
        taken.add(own)
        phase = merge({}, study.phases[use.phase])
        for one in settings:
            for key, value in one.items():
                section, _, rest = key.partition(".")
                name, _, inside = rest.partition(".")
                if section == "phases" and name == use.phase:
                    phase = merge(phase, nested({inside: value}))
        until = {} if use.until is None else {"until": str(use.until)}
        found.append({"name": own, **phase, **until})
    return found


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with the first number from 2 on that makes it another than those that are taken."""
    # As the study compares names: some file systems take `A` and `a` for one.
    held = {one.casefold() for one in taken}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name.casefold() not in held else next(one for one in numbered if one.casefold() not in held)


def seeds_of(study: Study, config: RunConfig, seed: int) -> dict[str, Any]:
    """Return what a seed of the study changes in a run's config: data order, first weights, or both (`vary`)."""
    if study.vary == "both":
        return {"seed": seed}
    first = study.seeds[0]
    order, weights = (seed, first) if study.vary == "data" else (first, seed)
    return {"seed": order, "model": config.model.model_copy(update={"init_seed": weights})}
