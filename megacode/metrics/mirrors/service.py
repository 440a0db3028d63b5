"""What a mirror needs of a service: to open a run there, to append rows, and to close it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megacode.base.files import RunDir
from megacode.config.mirrors import Axis
from megacode.metrics.mirrors.history import CurveRow
from megacode.metrics.numbers import Name, numbers

# The axes of a row, its time, and an identifier: numbers that make no curve.
_NO_CURVE = ("iteration", "consumed_samples", "consumed_tokens", "time", "samples_digest")


@dataclass(frozen=True)
class MirroredCurve:
    """One curve of a run: its history as long as nothing in it has changed.

    Attributes:
        run: the run directory.
        id: hexadecimal digits, the same at each start of a mirror of this run directory.
        number: of the curve, from 1.
        config: the resolved config, as plain YAML values.
    """

    run: RunDir
    id: str
    number: int
    config: dict[str, Any]

    @property
    def unique(self) -> str:
        """The id of this curve."""
        return self.id if self.number == 1 else f"{self.id}-{self.number}"

    def named(self, name: str | None) -> str:
        """Return how the curve is called.

        Args:
            name: that the user has chosen; None: the run's.
        """
        chosen = name or str(self.config["name"])
        return chosen if self.number == 1 else f"{chosen} ({self.number})"

    def axes(self, row: CurveRow) -> dict[Axis, int]:
        """Return where a row stands on each axis."""
        samples = int(row.record["consumed_samples"])
        tokens = samples * int(self.config["train"]["seq_length"])
        return {"iteration": int(row.record["iteration"]), "samples": samples, "tokens": tokens}


class MirrorService(Protocol):
    """A service that shows curves. Each method raises what its library raises."""

    def open(self, curve: MirroredCurve) -> int | None:
        """Open a curve, to append to it.

        Returns:
            The number of rows that it has; None if the service does not know.
        """

    def send(self, rows: Sequence[CurveRow]) -> None:
        """Append rows to the open curve."""

    def close(self, *, left: bool, finished: bool) -> None:
        """Send what is buffered, and close the curve.

        Args:
            left: it is no longer the run's history.
            finished: the run has consumed all its samples.
        """


def values(row: CurveRow) -> list[tuple[Name, float]]:
    """Return the numbers of a row that make curves."""
    return [item for item in numbers(row.record) if item[0][-1] not in _NO_CURVE]
