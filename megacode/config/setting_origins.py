"""Where a setting stands: on the command line, in the config file, or in one of its base files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megacode.base.errors import Problem
from megacode.config.overrides import COMMAND_LINE, Location, Override

_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


@dataclass(frozen=True)
class Layer:
    """One file's settings, before they were merged.

    Attributes:
        name: of the file, for messages.
        document: what it holds.
    """

    name: str
    document: dict[str, Any]


@dataclass(frozen=True)
class Origins:
    """What a config was merged from.

    Attributes:
        layers: files, the one with the last word first; at least one.
        overrides: of the command line, which win over all of them.
    """

    layers: Sequence[Layer]
    overrides: Sequence[Override] = ()

    def place(self, problem: Problem) -> Problem:
        """Return a problem with the file, or the command line, in front of its key."""
        where = problem.where
        if where == COMMAND_LINE:
            return problem
        return Problem(problem.what, f"{self._of(where)}: {where}" if where else self.layers[0].name, problem.fix)

    def _of(self, where: str) -> str:
        location: Location = tuple(int(number) if number else name for number, name in _STEP.findall(where))
        for override in reversed(self.overrides):
            if location[: len(override.location)] == override.location:
                return COMMAND_LINE
        inside = [other for other in self.overrides if other.location[: len(location)] == location]
        if inside and not any(_holds(layer.document, location) for layer in self.layers):
            return COMMAND_LINE
        file = self._file(location)
        return f"{file}, with {inside[-1].text} of the {COMMAND_LINE}" if inside else file

    def _file(self, location: Location) -> str:
        """Return the file that sets the value, or that sets the most of the way to one that is missing."""
        for length in range(len(location), 0, -1):
            for layer in self.layers:
                if _holds(layer.document, location[:length]):
                    return layer.name
        return self.layers[0].name


def _holds(document: Any, location: Location) -> bool:
    for step in location:
        in_list = isinstance(document, list) and isinstance(step, int) and step < len(document)
        if not in_list and not (isinstance(document, dict) and step in document):
            return False
        document = document[step]
    return True
