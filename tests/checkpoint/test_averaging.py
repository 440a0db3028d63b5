"""Means of checkpoints: what they hold, what they say of themselves, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from megacode.base.errors import CheckpointError, ConfigError, MegacodeError
from megacode.checkpoint import copying
from megacode.checkpoint.averaging import average
from megacode.checkpoint.copying import reshard
from megacode.checkpoint.files import shard_name
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import damage
from megacode.checkpoint.writer import bytes_of, write_alone
from megacode.config.config_file import dump_config
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.plan.decay_weights import decay_weights

EMBEDDING = "model.embedding.word_embeddings.weight"
SHAPES = {EMBEDDING: (10, 6), "model.decoder.final_layernorm.weight": (6,), "exp_avg.a": (6,)}
Save = Callable[..., Path]


@pytest.fixture
def save(make_config: Callable[..., RunConfig], tmp_path: Path) -> Save:
    """Return a function that writes a checkpoint of one run, in boxes of two ranks, with random tensors."""

    def write(iteration: int, run: str = "run", shapes: Any = SHAPES, order: str = "a", **changes: Any) -> Path:
        config = make_config([(100, {"text": 1})], batch=1, **changes)
        path = tmp_path / run / "checkpoints" / f"iter_{iteration:07d}"
        path.mkdir(parents=True)
        generator = torch.Generator().manual_seed(iteration)
        slots: list[list[Slot]] = [[], []]
        contents: list[list[torch.Tensor]] = [[], []]
        for name, shape in shapes.items():
            half = shape[0] // 2
            for rank, first, rows in ((0, 0, half), (1, half, shape[0] - half)):
                slots[rank].append(Slot(name, shape, "F32", (first, *([0] * (len(shape) - 1))), (rows, *shape[1:])))
                contents[rank].append(torch.randn((rows, *shape[1:]), generator=generator))
        files = [(shard_name(rank), slots[rank]) for rank in (0, 1)]
        written = write_alone(path, files, (bytes_of(tensor) for rank in (0, 1) for tensor in contents[rank]))
        chain = [{"phase": "p0", "first_sample": 0, "read": 100, "fingerprint": order, "sources": {}}]
        state = TrainState(iteration, iteration, "p0", {"text": iteration}, chain, config=dump_config(config))
        replace(state, files=written, tokenizer_hash="t", keep="phase end", health={"a": 1}).write(path)
        return path

    return write


def by_numpy(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a checkpoint through safetensors alone."""
    boxes: dict[str, list[NDArray[np.float32]]] = {}
    for shard in sorted(path.glob("shard_*.safetensors")):
        for entry, box in load_file(shard).items():
            boxes.setdefault(entry.partition("@")[0], []).append(box)
    return {name: np.concatenate(parts) for name, parts in boxes.items()}


@pytest.mark.parametrize("rule", ["uniform", "decay:linear", "decay:cosine"])
@pytest.mark.parametrize("box_bytes", [50, 64 << 20])
def test_a_mean_is_that_of_numpy_to_the_bit(
    save: Save, tmp_path: Path, rule: str, box_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BOX_BYTES", box_bytes)
    paths = [save(iteration) for iteration in (10, 20, 30, 45)]
    mean = average(paths, tmp_path / "mean", rule)
    weights = [0.25] * 4 if rule == "uniform" else decay_weights(rule.removeprefix("decay:"), [10, 20, 30, 45])  # type: ignore[arg-type]
    assert list(mean.weights.values()) == weights
    sources, found = [by_numpy(path) for path in paths], by_numpy(tmp_path / "mean")
    assert set(found) == {name for name in SHAPES if name.startswith("model.")} != set()
    for name, array in found.items():
        stack = np.stack([source[name].astype(np.float64) for source in sources])
        assert np.array_equal(array, np.average(stack, axis=0, weights=weights).astype(np.float32))
    assert damage(tmp_path / "mean") == []


def test_a_mean_says_what_it_was_made_of(save: Save, tmp_path: Path) -> None:
    paths = [save(iteration) for iteration in (10, 20, 30)]
    average([tmp_path / "run"], tmp_path / "merged/checkpoints/iter_0000030", "decay:linear", last=2)
    state, before = TrainState.read(tmp_path / "merged/checkpoints/iter_0000030"), TrainState.read(paths[2])
    assert (state.iteration, state.consumed_samples, state.keep, state.health) == (30, 30, "", {})
    assert (state.merged["weights"], state.merged["over"]) == ("decay:linear", None)
    assert [(one["weight"], one["path"], one["seal"]) for one in state.merged["of"]] == [
        (0.5, str(path), TrainState.read(path).seal) for path in paths[1:]
    ]
    assert [(weight, one.consumed_samples) for weight, one in state.merged_from()] == [(0.5, 20), (0.5, 30)]
    assert state.merged_from()[0][1].samples_by_source == {"text": 20}
    assert "name: t-merged" in state.config
    assert str(tmp_path / "merged") in state.config
    assert state.seal != before.seal
    assert (tmp_path / "merged/latest").read_text().strip() == "iter_0000030"
    assert "merged" not in json.loads((paths[0] / "megacode.json").read_text())
    # A mean of means names the parts of its parts.
    average([tmp_path / "merged", paths[0]], tmp_path / "twice")
    (_, inner), (_, trained) = TrainState.read(tmp_path / "twice").merged_from()
    assert [one.consumed_samples for _, one in inner.merged_from()] == [20, 30]
    assert trained.merged_from() == []


def test_a_decay_of_some_length_takes_the_checkpoints_it_needs(save: Save, tmp_path: Path) -> None:
    for iteration in (10, 20, 30, 40):
        save(iteration)
    mean = average(
        [tmp_path / "run"], tmp_path / "mean", "decay:linear", over=Quantity(count=60, unit="tokens")
    )  # of 4 tokens a sample: 15 samples
    assert [Path(path).name for path in mean.weights] == ["iter_0000020", "iter_0000030", "iter_0000040"]
    assert list(mean.weights.values()) == decay_weights("linear", [20, 30, 40], 15)
    assert TrainState.read(tmp_path / "mean").merged["over"] == 15
    with pytest.raises(CheckpointError, match=r"reach back 30 samples, and the decay needs 31"):
        average([tmp_path / "run"], tmp_path / "more", "decay:cosine", over=Quantity(count=31, unit="iterations"))
    with pytest.raises(ConfigError, match="goes with a decay"):
        average([tmp_path / "run"], tmp_path / "more", over=Quantity(count=31, unit="samples"))


def test_weights_are_read_from_a_file(save: Save, tmp_path: Path) -> None:
    paths = [save(10), save(20), save(20, "other", seed=2)]
    file = tmp_path / "weights.yaml"
    file.write_text(f"iter_0000010: 0.5\n{paths[1]}: 0.25\n{paths[2]}: 0.25\n")
    assert list(average(paths, tmp_path / "mean", str(file)).weights.values()) == [0.5, 0.25, 0.25]
    file.write_text("iter_0000010: 1\niter_0000020: 3\n")
    assert list(average(paths[:2], tmp_path / "thirds", str(file), normalize=True).weights.values()) == [0.25, 0.75]
    assert TrainState.read(tmp_path / "thirds").merged["weights"] == "file"
    for text, said in (
        ("iter_0000010: 1\niter_0000020: 3\n", "sum to 4, not to 1"),
        ("iter_0000010: 1\n", "no weight for"),
        ("iter_0000010: 1\niter_0000020: 0\niter_0000030: 0\n", "none of the checkpoints"),
        ("iter_0000010: 2\niter_0000020: -1\n", "-1 is no weight"),
        ("iter_0000010: 1\niter_0000020: .inf\n", "inf is no weight"),
        ("iter_0000010: 0\niter_0000020: 0\n", "sum to 0"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            average(paths[:2], tmp_path / "no", str(file))
    file.write_text("iter_0000020: 0.5\niter_0000010: 0.5")
    with pytest.raises(ConfigError, match="several checkpoints are called 'iter_0000020'"):
        average(paths, tmp_path / "no", str(file))
    with pytest.raises(ConfigError, match=r"no such file.*\n?.*did you mean decay:linear"):
        average(paths, tmp_path / "no", "decay:liner")
    assert not (tmp_path / "no").exists()


def test_checkpoints_that_have_no_mean_are_refused(save: Save, tmp_path: Path) -> None:
    good = save(10)
    other = {EMBEDDING: (12, 6), "model.decoder.final_layernorm.weight": (6,)}
    more = {**SHAPES, "model.output_layer.weight": (10, 6)}
    rotary = {"model": {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4,
                        "vocab_size": 1000, "rotary_base": 7}}  # fmt: skip
    cases: list[tuple[list[Path], str, str]] = [
        ([good], "uniform", "at least 2 checkpoints, and got 1"),
        ([good, good.parent / "." / good.name], "uniform", "at least 2 checkpoints, and got 1"),
        ([good, save(20, "vocabulary", other)], "uniform", "has the shape"),
        ([good, save(20, "untied", more)], "uniform", "is missing"),
        ([save(20, "untied2", more), save(30)], "uniform", "output_layer.weight has the shape"),
        ([good, save(20, "rotary", **rotary)], "uniform", "model.rotary_base is"),
        ([good, save(20, "seed", order="b")], "decay:linear", "its data order differs"),
        ([good, save(10, "same")], "decay:linear", "has read as many samples as"),
        ([good, tmp_path / "nowhere"], "uniform", "no such directory"),
    ]
    tokenizer = save(20, "tokenizer")
    replace(TrainState.read(tokenizer), tokenizer_hash="u").write(tokenizer)
    cases.append(([good, tokenizer], "uniform", "its tokenizer is t, and u in"))
    for paths, rule, said in cases:
        with pytest.raises(CheckpointError, match=said):
            average(paths, tmp_path / "no", rule)
    broken = save(20, "broken") / shard_name(1)
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    with pytest.raises(MegacodeError, match=shard_name(1)):
        average([good, broken.parent], tmp_path / "no")
    with pytest.raises(CheckpointError, match="already exists"):
        average([good, save(20)], tmp_path / "run")
    assert not (tmp_path / "no").exists()


def test_a_copy_in_small_boxes_equals_its_source(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_BOX_BYTES", 50)
    reshard(save(10), tmp_path / "copy", files=2)
    before, after = by_numpy(tmp_path / "run/checkpoints/iter_0000010"), by_numpy(tmp_path / "copy")
    assert set(before) == set(after) == set(SHAPES)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(Reader(tmp_path / "copy").tensors[EMBEDDING].boxes) == 5
