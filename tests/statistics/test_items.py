"""Items files: reading many of one study gives what reading each alone gives, and no damage goes unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.statistics.items import ItemsReader, TaskItems

CHANGES = {
    "nothing": lambda lines: None,
    "swapped lines": lambda lines: lines.reverse(),
    "another question": lambda lines: lines[2].update(doc_hash="other"),
    "a passage behind the results": lambda lines: lines[1].update(cluster="late"),
    "another metric": lambda lines: [line.update(metrics=["other"], other=line.pop("acc")) for line in lines],
    "one line more": lambda lines: lines.append({**lines[-1], "item": 99}),
    "one line less": lambda lines: lines.pop(),
    "another filter": lambda lines: lines[3].update(filter="strict"),
    "texts that look like a line": lambda lines: lines[0].update(answers=['", "metrics": ["acc"], "', '"cluster": ']),
    "no space after colons": None,
}


def lines_of(seed: int, tasks: int = 2, items: int = 12, pairs: bool = False) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    lines = []
    for task in range(tasks):
        for item in range(items):
            value = [float(random.normal()), int(item + 1)] if pairs else float(random.random() < 0.5)
            head = {
                "task": f"t{task}",
                "item": item,
                "filter": "none",
                "doc_hash": f"{task}-{item}",
                "prompt_hash": "p",
            }
            head |= {"cluster": str(item // 3)} if task else {}
            lines.append({**head, "acc": value, "metrics": ["acc"], "target": "é", "answers": [[str(seed), "False"]]})
    return lines


def write(path: Path, lines: list[dict[str, Any]], **how: Any) -> Path:
    path.write_text("".join(json.dumps(line, **how) + "\n" for line in lines))
    return path


def plain(items: dict[str, TaskItems]) -> dict[str, Any]:
    return {
        task: (
            {key: (one.items, one.hashes, one.clusters) for key, one in found.questions.by_filter.items()},
            found.values, found.questions.digest, found.questions.first.passages[1],
        )
        for task, found in items.items()
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(change=st.sampled_from(sorted(CHANGES)), seed=st.integers(2, 99), pairs=st.booleans())
def test_a_file_read_after_another_is_as_if_read_alone(
    tmp_path_factory: pytest.TempPathFactory, change: str, seed: int, pairs: bool
) -> None:
    folder = tmp_path_factory.mktemp("items")
    first, own = lines_of(1, pairs=pairs), lines_of(seed, pairs=pairs)
    how = {"separators": (",", ":")} if CHANGES[change] is None else {}
    if CHANGES[change] is not None:
        CHANGES[change](own)
    reader = ItemsReader()
    reader.read(write(folder / "first.jsonl", first))
    second = write(folder / "second.jsonl", own, **how)
    assert plain(reader.read(second)) == plain(ItemsReader().read(second))


def test_models_of_one_study_share_their_questions(tmp_path: Path) -> None:
    reader = ItemsReader()
    one, other = (reader.read(write(tmp_path / f"{seed}.jsonl", lines_of(seed))) for seed in (1, 2))
    assert one["t1"].questions is other["t1"].questions
    assert one["t1"].values != other["t1"].values


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"acc": 1.0', '"acc": 1.', 1),
        lambda text: text.replace('"acc": 0.0, ', "", 1),
        lambda text: text.replace('"item": 5', '"item": ', 1),
        lambda text: text[:-30],
    ],
)
def test_a_damaged_line_is_named_in_a_second_file_as_well(tmp_path: Path, damage: Any) -> None:
    reader = ItemsReader()
    path = write(tmp_path / "first.jsonl", lines_of(1))
    reader.read(path)
    second = tmp_path / "second.jsonl"
    second.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match="damaged") as caught:
        reader.read(second)
    assert str(second) in caught.value.problems[0].where
