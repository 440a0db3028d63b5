"""Find where a setting was given: on the command line, in the config file, or in one of its base files."""

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
    """One file's settings before merging.

    Attributes:
        name: of the file, for messages.
        document: its parsed content.
    """

    name: str
    document: dict[str, Any]


@dataclass(frozen=True)
class Origins:
    """The files and overrides that a config was merged from.

    Attributes:
        layers: files, the highest precedence first; at least one.
        overrides: from the command line, which win over all files.
    """

    layers: Sequence[Layer]
    overrides: Sequence[Override] = ()

    def place(self, problem: Problem) -> Problem:
        """Return a problem with the file, or `command line`, in front of its key."""
        where = problem.where
        if where == COMMAND_LINE:
            return problem
        return Problem(problem.what, f"{self._of(where)}: {where}" if where else self.layers[0].name, problem.fix)

    def _of(self, where: str) -> str:
        location: Location = tuple(int(number) if number else name for number, name in _STEP.findall(where))
        # The last override that covers the key has decided its value.
        for override in reversed(self.overrides):
            if location[: len(override.location)] == override.location:
                return COMMAND_LINE
        # The problem is about a section of which an override set only a part: name both.
        inside = [other for other in self.overrides if other.location[: len(location)] == location]
        if inside and not any(_holds(layer.document, location) for layer in self.layers):
            return COMMAND_LINE
        file = self._file(location)
        return f"{file}, with {inside[-1].text} of the {COMMAND_LINE}" if inside else file

    def _file(self, location: Location) -> str:
        """Return the file that sets a value; for a missing one, the file that sets its closest parent."""
        # A missing key is reported at the file that holds its section, the most specific one first.
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
