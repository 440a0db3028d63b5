"""Windows of sources in object storage, fetched some iterations before they are read: the schedule knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from megacode.config.run import RunConfig

if TYPE_CHECKING:
    from megacode.data.rank_windows import Rows
    from megacode.data.windows import SourceStream


class ObjectsAhead:
    """Begins to fetch what a rank reads next.

    Args:
        config: sequence length, and how many iterations ahead.
        streams: the opened sources, by their number in the schedule; None: it is not read.
    """

    def __init__(self, config: RunConfig, streams: Sequence[SourceStream | None]) -> None:
        self._window, self._iterations = config.train.seq_length + 1, config.objects.ahead
        opened = {number: stream.data.remote for number, stream in enumerate(streams) if stream is not None}
        self._remote = {number: tokens for number, tokens in opened.items() if tokens is not None}
        self._begun: frozenset[int] = frozenset()

    def fetch(self, following: Iterable[tuple[int, Rows]]) -> None:
        """Begin to fetch the windows of an iteration and of the next ones.

        Args:
            following: the clocks of this iteration and of those after it, and their rows; read as far as needed.
        """
        if not self._remote or not self._iterations:
            return
        near = dict(islice(following, self._iterations + 1))
        # The first of them is needed now: its windows are requested together, not one after another.
        for clock, rows in near.items():
            if clock not in self._begun:
                self.fetch_rows(rows)
        self._begun = frozenset(near)

    def fetch_rows(self, rows: Rows) -> None:
        """Begin to fetch the windows of some rows."""
        for number, tokens in self._remote.items():
            firsts = np.unique(rows.first_tokens[rows.source_ids == number])
            tokens.fetch_ahead(firsts.tolist(), self._window)
