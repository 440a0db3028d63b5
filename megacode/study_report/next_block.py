"""A proposed blend as YAML to paste into the study: a phase, an arm of it, and a forecast of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from megacode.study.schema import Study, StudyArm
from megacode.study_report.next_points import Point

Block = dict[str, Any]


class BlockWriter:
    """Writes arms that are like a point but for their blend.

    Args:
        study: that they are added to.
        like: the point.
        levels: that a forecast is for.
    """

    def __init__(self, study: Study, like: Point, levels: Sequence[str]) -> None:
        self._study, self._like, self._levels = study, like, list(levels)
        self._taken = {name.casefold() for name in (*study.arms, *study.phases)}

    def block(self, name: str, blend: Mapping[str, float], forecast: Mapping[str, Mapping[str, float]]) -> Block:
        """Return the `phases` and `arms` to add for one blend.

        Args:
            name: of phase and arm; a number is added where the study has one of this name.
            blend: shares by source.
            forecast: by metric: value, low, high.
        """
        name = self._free(name)
        arm = self._study.arms[self._like.cell.original]
        uses = arm.named_phases[: self._like.phase + 1]
        old = uses[-1].phase
        phase = {**self._study.phases[old], "blend": {source: share for source, share in blend.items() if share}}
        written = [use.phase if use.until is None else {"phase": use.phase, "until": str(use.until)} for use in uses]
        # Phases before the last one stay: points of a cooldown law share their trunk.
        last = written[-1]
        written[-1] = {**last, "phase": name} if isinstance(last, dict) else name
        at = {"at": self._levels} if self._levels else {}
        own: dict[str, Any] = {
            "phases": written,
            "set": _settings(arm, old, name, {use.phase for use in uses[:-1]}),
            "init": arm.init and arm.init.model_dump(by_alias=True, exclude_none=True),
            "anneal": _anneal(arm) if self._like.facts["merge"] else None,
            "forecast": {metric: {**values, **at} for metric, values in forecast.items()},
        }
        return {"phases": {name: phase}, "arms": {name: {key: value for key, value in own.items() if value}}}

    def notes(self, block: Block) -> list[str]:
        """Return what must be added by hand: settings of levels for the phase that a block replaces."""
        # A level's settings name phases, and cannot know the new one.
        old = self._study.uses(self._like.cell.original, self._like.cell.levels)[self._like.phase].phase
        (new,) = block["phases"]
        return [
            f"factors.{factor}.{level}.set has {key}: add phases.{new}.{key.split('.', 2)[2]} beside it"
            for factor, levels in self._study.factors.items()
            for level, one in levels.items()
            for key in one.set
            if key.startswith(f"phases.{old}.") and not key.startswith(f"phases.{old}.blend")
        ]

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free.casefold() in self._taken:
            number += 1
            free = f"{name}-{number}"
        self._taken.add(free.casefold())
        return free


def _anneal(arm: StudyArm) -> dict[str, Any] | None:
    """Return how an arm's end is merged, as a study file writes it."""
    if arm.anneal is None:
        return None
    merge = arm.anneal.merge
    length = {"last": merge.last} if merge.over is None else {"over": str(merge.over)}
    return {"merge": {"decay": merge.decay, **length}}


def _settings(arm: StudyArm, old: str, new: str, kept: set[str]) -> dict[str, Any]:
    """Return an arm's settings for an arm whose last phase has another name and another blend."""
    found: dict[str, Any] = {}
    for key, value in arm.set.items():
        section, _, rest = key.partition(".")
        phase, _, inside = rest.partition(".")
        # Settings of phases that the arm does not use are an error of the study file.
        if section != "phases" or phase in kept:
            found[key] = value
        if section == "phases" and phase == old and inside.partition(".")[0] != "blend":
            found[f"phases.{new}.{inside}"] = value
    return found


def merged(blocks: Sequence[Block]) -> Block:
    """Return several blocks as one."""
    return {key: {name: one for block in blocks for name, one in block[key].items()} for key in ("phases", "arms")}


def written(block: Block) -> str:
    """Return a block as YAML."""
    return yaml.dump(block, Dumper=_Plain, sort_keys=False, width=76, default_flow_style=None)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what is pasted in parts must not refer to other parts."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out."""
        return True
