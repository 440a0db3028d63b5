"""One run on several numbers of GPUs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from megacode.base.errors import ConfigError
from megacode.capacity.cluster import Cluster
from megacode.capacity.layout import Layout
from megacode.capacity.scaling import parse_counts, render_scaling, scaling_document

Place = Callable[..., Layout]


def rows(placed: Layout, *counts: int, price: float | None = None) -> list[dict[str, Any]]:
    work = {"flops": 1e18, "total_samples": 10**6, "phases": [{"samples": 10**6}]}
    return scaling_document(placed.config, Cluster(scale=counts, price=price), placed.vocab_size, work)


def test_every_number_of_gpus_gets_its_fastest_layout(place: Place) -> None:
    found = rows(place(train={"global_batch_size": 1024}), 8, 64, 512, price=2.0)
    assert json.loads(json.dumps(found)) == found
    assert [row["gpus"] for row in found] == [8, 64, 512]
    assert found[0]["seconds"] > found[1]["seconds"] > found[2]["seconds"]
    assert found[0]["mfu"] >= found[1]["mfu"] >= found[2]["mfu"] > 0
    for row in found:
        layout = row["layout"]
        ranks = layout["tensor"] * layout["pipeline"] * layout["context"] * layout["data_parallel"]
        assert ranks == row["gpus"]
        assert row["cost"] == pytest.approx(row["gpu_hours"] * 2.0)
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(1024 * 2048)


def test_numbers_that_nothing_fits_are_said(place: Place) -> None:
    found = rows(place(train={"global_batch_size": 64}), 8, 4096 * 3)
    assert (found[0]["layout"] is None, found[1]["layout"]) == (False, None)
    console = Console(file=io.StringIO(), width=78)
    for part in render_scaling(found):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "no layout fits 12,288" in text
    assert "…" not in text
    assert "the fastest layout by number of H100" in text


def test_numbers_of_gpus_are_read_or_refused() -> None:
    assert parse_counts("8, 64,512") == (8, 64, 512)
    for text in ("8;64", "8,", "0", "-8", "many"):
        with pytest.raises(ConfigError, match=r"--scale: .* is not a number of GPUs") as caught:
            parse_counts(text)
        assert caught.value.problems[0].fix == "give numbers such as 8,64,512"
