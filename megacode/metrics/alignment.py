"""Read `alignment` records: what a step on one source does to the held-out loss of another.

Transfer in nats per step shrinks with the learning rate. So readers show the *share*: transfer from A to B, divided by
that from B to itself. A step on A then lowers B's loss by 0.3 times what a step on B does; negative: it raises it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def pairs(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the ordered pairs (step's source, source whose loss falls) of two different sources."""
    names = sources(record)
    return ((step, loss) for loss in names for step in names if step != loss)


def sources(record: Record) -> list[str]:
    """Return the sources of a record, in the order of its matrices."""
    return [str(name) for name in record.get("sources") or []]


def share(record: Record, step: str, loss: str) -> float:
    """Return how much of its own step's effect on a source's loss a step on another source has.

    Returns:
        nan where one of the two was not measured, or the own step does not lower the loss.
    """
    own = entry(record, "transfer", loss, loss)
    return entry(record, "transfer", step, loss) / own if own > 0 else math.nan


def has_shares(record: Record) -> bool:
    """Return whether a share is defined; at a learning rate of 0, as at the end of a decay, none is."""
    return any(not math.isnan(share(record, step, loss)) for step, loss in pairs(record))


def entry(record: Record, matrix: str, row: str, column: str) -> float:
    """Return an entry of `cosines` or `transfer`; nan if it is not there or not finite."""
    names = sources(record)
    if row not in names or column not in names:
        return math.nan
    return number(record.get(matrix), names.index(row), names.index(column))


def number(matrix: Sequence[Sequence[Any]] | None, row: int, column: int) -> float:
    """Return an entry of a matrix as a float; nan if it is not there or not finite (null in a file)."""
    try:
        value = (matrix or [])[row][column]
    except (IndexError, TypeError):
        return math.nan
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def found(record: Record) -> str:
    """Return a record in a line: `code to text +31%, math to text -4%`, the largest share and the smallest.

    Of two sources both shares are told. Empty without a share.
    """
    shares = [(share(record, step, loss), step, loss) for step, loss in pairs(record)]
    ranked = sorted((row for row in shares if not math.isnan(row[0])), reverse=True)
    return ", ".join(
        f"{step} to {loss} {value:+.0%}" for value, step, loss in dict.fromkeys([*ranked[:1], *ranked[-1:]])
    )
