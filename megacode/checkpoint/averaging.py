"""Weighted means of checkpoints: of a trunk, so that the mean stands for a decay, or of several seeds' cooldowns.

Only weights are merged. Moments and random states of several checkpoints have no mean that a run could resume from, and
FP8 scales start fresh, as at any start from weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from megacode.base.errors import CheckpointError, ConfigError, Problem
from megacode.base.files import RunDir
from megacode.checkpoint.copying import Copy, boxes_of, check_intact, check_out, read_box, write_copy
from megacode.checkpoint.listing import newest, of_run
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint, point_at
from megacode.config.config_file import dump_config, read_document
from megacode.config.quantity import Quantity
from megacode.config.suggestions import did_you_mean
from megacode.mcore.optimizer_state import WEIGHT
from megacode.plan.decay_weights import SHAPES, Shape, decay_weights, in_window
from megacode.plan.difference import former_config, model_changes, shown

UNIFORM, _DECAY = "uniform", "decay:"
_RULES = (UNIFORM, *(f"{_DECAY}{shape}" for shape in SHAPES))
# Weights that people write are rounded: three thirds are 0.3333 each.
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Source:
    """A checkpoint to merge: its directory and its state."""

    path: Path
    state: TrainState


@dataclass(frozen=True)
class Mean(Copy):
    """The result of a merge.

    Attributes:
        weights: by path of a checkpoint, its weight.
    """

    weights: dict[str, float]


def average(
    paths: Sequence[Path],
    out: Path,
    weights: str = UNIFORM,
    *,
    last: int | None = None,
    over: Quantity | None = None,
    normalize: bool = False,
) -> Mean:
    """Write the weighted mean of the weights of several checkpoints of one model, for evaluation or as a start.

    Sums are taken in fp64, in the order of the checkpoints. Source of the uniform mean: Izmailov et al., Averaging
    Weights Leads to Wider Optima (2018), section 3; of the others: `plan.decay_weights`.

    Args:
        paths: checkpoints, or run directories (of each its newest one).
        out: the new checkpoint, weights only; it says what it was made of, and its clock is that of the newest.
        weights: `uniform`, `decay:linear`, `decay:cosine`, or a YAML file: names or paths of checkpoints -> weights.
        last: merge the newest so many of one run directory.
        over: length of the decay, which ends at the newest checkpoint; of one run directory all others are there to be
            used.
        normalize: divide the weights of a file by their sum.

    Raises:
        CheckpointError: there are fewer than two, one is damaged, or they are of different models.
        ConfigError: the weights do not fit.
    """
    shape = _decay_of(weights)
    if over is not None and (shape is None or last is not None):
        fix = "give --weights decay:linear or decay:cosine, without --last"
        raise ConfigError("a decay's length goes with a decay", "--over", fix)
    check_out(out)
    whole_run = over is not None and len(paths) == 1
    sources = _sources(of_run(RunDir(paths[0])) if whole_run else newest(paths, last), in_order=shape is not None)
    length = None if over is None else _samples(over, sources[-1].state)
    if shape is not None:
        _check_one_trunk(sources)
        sources = _windowed(sources, length, paths[0])
        shares = decay_weights(shape, [source.state.consumed_samples for source in sources], length)
    elif weights == UNIFORM:
        shares = [1 / len(sources)] * len(sources)
    else:
        shares = _read_weights(Path(weights), [source.path for source in sources], normalize)
    return _write(sources, shares, weights if weights in _RULES else "file", length, out)


def _decay_of(weights: str) -> Shape | None:
    """Return the decay that a rule names; None for any other rule, or a file."""
    shape = next((shape for shape in SHAPES if weights == f"{_DECAY}{shape}"), None)
    if shape is None and weights not in _RULES and not Path(weights).is_file():
        fix = f"{did_you_mean(weights, list(_RULES))}, or the path of a YAML file"
        raise ConfigError(f"{weights!r} is no rule, and no such file", "--weights", fix)
    return shape


def _samples(over: Quantity, state: TrainState) -> int:
    """Return a length in samples, by the settings of the newest checkpoint; rounded up to a whole sample."""
    train = former_config(state.config).train
    if over.unit == "iterations":
        # The full batch: a decay is at the end of a run, where a ramp is over.
        return over.count * train.global_batch_size
    return -(-over.count // (train.seq_length if over.unit == "tokens" else 1))


def _sources(paths: Sequence[Path], in_order: bool) -> list[_Source]:
    """Open the checkpoints; those of a trunk in order of their clocks."""
    checkpoints = {path.resolve(): path for path in map(find_checkpoint, paths)}
    if len(checkpoints) < 2:
        fix = "give two or more, or one run with --last N"
        raise CheckpointError(f"averaging needs at least 2 checkpoints, and got {len(checkpoints)}", str(paths[0]), fix)
    sources = [_Source(path, TrainState.read(path)) for path in checkpoints.values()]
    return sorted(sources, key=lambda one: one.state.consumed_samples) if in_order else sources


def _check_one_trunk(sources: Sequence[_Source]) -> None:
    """Refuse checkpoints that do not follow each other in one training: a decay is between their updates.

    Raises:
        CheckpointError: two have the same clock, or another data order up to it.
    """
    fix = "give checkpoints of one run, or use --weights uniform"
    for before, after in pairwise(sources):
        if before.state.consumed_samples == after.state.consumed_samples:
            message = f"it has read as many samples as {before.path}: {after.state.consumed_samples:,}"
            raise CheckpointError(message, str(after.path), fix)
        clock = before.state.consumed_samples
        if _order(before.state, clock) != _order(after.state, clock):
            raise CheckpointError(f"it does not continue {before.path}: its data order differs", str(after.path), fix)


def _order(state: TrainState, clock: int) -> list[str]:
    # Equal links up to the clock mean equal windows: arms that branched later share a trunk.
    return [link["fingerprint"] for link in state.fingerprints if link["first_sample"] < clock]


def _windowed(sources: list[_Source], length: int | None, run: Path) -> list[_Source]:
    """Return the checkpoints that a decay of some samples needs; all of them without a length."""
    if length is None:
        return sources
    clocks = [source.state.consumed_samples for source in sources]
    first = in_window(clocks, length)
    if first is None:
        reach = clocks[-1] - clocks[0]
        message = f"its checkpoints reach back {reach:,} samples, and the decay needs {length:,}"
        raise CheckpointError(message, str(run), "give a shorter --over; set checkpoint.keep_every before training")
    return sources[first:]


def _read_weights(path: Path, checkpoints: Sequence[Path], normalize: bool) -> list[float]:
    """Read the weight of each checkpoint from a file.

    Raises:
        ConfigError: one is missing, unknown or negative, or they do not sum to 1.
    """
    weights = read_document(path, "a YAML file of weights")
    keys = [
        next((key for key in (str(checkpoint), checkpoint.name) if key in weights), "") for checkpoint in checkpoints
    ]
    missing = [str(one) for one, key in zip(checkpoints, keys, strict=True) if not key]
    unknown = [str(key) for key in weights if key not in keys]
    twice = sorted({key for key in keys if key and keys.count(key) > 1})
    fix = "write one line a checkpoint, with its name (iter_0000100) or path: its weight"
    problems = [Problem(f"it has no weight for {one}", str(path), fix) for one in missing]
    problems += [Problem(f"{key!r} is none of the checkpoints", str(path), fix) for key in unknown]
    problems += [Problem(f"several checkpoints are called {key!r}", str(path), "give their paths") for key in twice]
    for key, value in weights.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            problems.append(Problem(f"{value!r} is no weight", f"{path}: {key}", "write a number of at least 0"))
    if problems:
        raise ConfigError(problems=problems)
    shares = [float(weights[key]) for key in keys]
    total = math.fsum(shares)
    # Weights that sum to 0.9 would shrink the model: likely one was forgotten, so nothing is rescaled unasked.
    if not total or (abs(total - 1) > _SUM_TOLERANCE and not normalize):
        raise ConfigError(f"the weights sum to {total:g}, not to 1", str(path), "correct them, or add --normalize")
    return [share / total for share in shares]


def _write(sources: Sequence[_Source], shares: Sequence[float], rule: str, length: int | None, out: Path) -> Mean:
    for one in sources:
        check_intact(one.path)
    readers = [Reader(source.path) for source in sources]
    # The newest lends its state, and its names and shapes: of several with one clock, the last one given.
    lead = max(range(len(sources)), key=lambda number: (sources[number].state.consumed_samples, number))
    about = {name: tensor.shape for name, tensor in readers[lead].tensors.items() if name.startswith(f"{WEIGHT}.")}
    # Before any arithmetic: shapes could be broadcast without an error.
    _check_alike(sources, readers, sources[lead], about)
    parts = [(share, one.path, one.state) for share, one in zip(shares, sources, strict=True)]
    state = _named(sources[lead].state.as_mean(rule, length, parts), out)
    # fp32, as the weights of every checkpoint, whatever was read.
    slots = [box for name, shape in about.items() for box in boxes_of(name, shape, "F32")]
    write_copy(state, [slots], partial(_mean, readers, shares), out)
    run = _run_of(out)
    # A run's directory with one checkpoint: later commands may be given the directory.
    if run is not None and not run.latest.exists():
        point_at(run, out)
    weights = {str(one.path): share for share, one in zip(shares, sources, strict=True)}
    elements = sum(math.prod(shape) for shape in about.values())
    return Mean(str(sources[lead].path), str(out), len(about), elements, 1, weights)


def _mean(readers: Sequence[Reader], shares: Sequence[float], slot: Slot) -> Tensor:
    """Return the weighted mean of a box, fp32; one fp64 sum and one box that is read are in memory."""
    total = torch.zeros(slot.box or slot.shape, dtype=torch.float64)
    for share, reader in zip(shares, readers, strict=True):
        # fp64: adding many fp32 weights would lose the digits in which checkpoints differ.
        total += read_box(reader, slot).double() * share
    return total.float()


def _named(state: TrainState, out: Path) -> TrainState:
    """Return the state with a config that is not taken for that of the run which trained the newest checkpoint."""
    config = former_config(state.config)
    # In a run's directory it belongs to that run; elsewhere to none, so that no run's report lists its exports.
    run = _run_of(out)
    own = str(run.path) if run is not None else None
    changed = config.model_copy(update={"name": f"{config.name}-merged", "run_dir": own})
    return replace(state, config=dump_config(changed))


def _run_of(out: Path) -> RunDir | None:
    return RunDir(out.absolute().parents[1]) if out.absolute().parent.name == "checkpoints" else None


def _check_alike(
    sources: Sequence[_Source], readers: Sequence[Reader], lead: _Source, about: dict[str, tuple[int, ...]]
) -> None:
    """Refuse checkpoints of different models or tokenizers.

    Raises:
        CheckpointError: with every difference, or the first of many.
    """
    fix = "average checkpoints of the same model"
    problems = []
    config = former_config(lead.state.config)
    for one, reader in zip(sources, readers, strict=True):
        theirs = {name: tensor.shape for name, tensor in reader.tensors.items() if name.startswith(f"{WEIGHT}.")}
        for name in [name for name in {**about, **theirs} if about.get(name) != theirs.get(name)][:1]:
            ours, other = (_shape(shapes.get(name)) for shapes in (about, theirs))
            problems.append(Problem(f"{name} {other} here, and {ours} in {lead.path}", str(one.path), fix))
        problems += [
            Problem(
                f"{change.key} is {shown(change.old)} here, and {shown(change.new)} in {lead.path}", str(one.path), fix
            )
            for change in model_changes(one.state.config, config)
        ]
        hashes = {one.state.tokenizer_hash, lead.state.tokenizer_hash} - {""}
        if len(hashes) > 1:
            message = (
                f"its tokenizer is {one.state.tokenizer_hash[:12]}, and {lead.state.tokenizer_hash[:12]} in {lead.path}"
            )
            problems.append(Problem(message, str(one.path), "average checkpoints that were trained with one tokenizer"))
    if problems:
        raise CheckpointError(problems=problems)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has the shape {shape}"
