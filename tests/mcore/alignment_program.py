"""What runs on the ranks of test_alignment.py: gradients of three sources, and a run with and without a probe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from megacode.mcore import alignment, optimizer_state, precision
from megacode.mcore.alignment import Alignment
from megacode.mcore.rank_model import RankModel
from tests.mcore import rank_program as tiny

SEEN = {"first": 50, "second": 60, "third": 70}  # iterations whose batches stand for held-out windows


def described(found: Alignment) -> dict[str, Any]:
    """Return an alignment as JSON."""
    parts = {"plain": found.plain, "stepped": found.stepped}
    products = {
        name: {"whole": each.whole, "by_kind": each.by_kind, "by_layer": each.by_layer} for name, each in parts.items()
    }
    return {"losses": found.losses, **products}


def compared(rank_model: RankModel) -> Alignment:
    """Return the alignment of the three sources."""
    batches = {name: partial(tiny.microbatches, rank_model, iteration) for name, iteration in SEEN.items()}
    return alignment.compare(rank_model, batches, tiny.SOURCES)


def layouts(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Train each case's config for three iterations, and compare the three sources."""
    return {name: described(_trained_and_compared(dict(case))) for name, case in cases.items()}


def _trained_and_compared(case: dict[str, Any]) -> Alignment:
    rank_model = tiny.started(tiny.run_config(**case))
    tiny.iterate(rank_model, 0, 3)
    return compared(rank_model)


def untrained(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the three sources under each case's config, before any iteration."""
    return {name: described(compared(tiny.started(tiny.run_config(**case)))) for name, case in cases.items()}


def halves(counts: list[int]) -> list[float]:
    """Return the cosines of the gradients of two halves of a source, for some numbers of micro-batches in a half."""
    rank_model = tiny.started(tiny.run_config())
    tiny.iterate(rank_model, 0, 8)
    found = []
    for count in counts:
        both = [tiny.microbatch(200 + number // 4, number % 4) for number in range(2 * count)]
        batches = {"even": partial(list, both[::2]), "odd": partial(list, both[1::2])}
        products = alignment.compare(rank_model, batches, tiny.SOURCES).plain.whole
        found.append(products[0][1] / (products[0][0] * products[1][1]) ** 0.5)
    return found


def directions_of_items(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """As `layouts`, but with kept steps, and one gradient after the other beside them; also the alignment itself."""
    found = {}
    for name, case in cases.items():
        rank_model = tiny.started(tiny.run_config(**case))
        tiny.iterate(rank_model, 0, 3)
        with alignment.undisturbed(rank_model):
            steps, columns = [], []
            for iteration in SEEN.values():
                gradient, _ = alignment.gradient(rank_model, tiny.microbatches(rank_model, iteration), tiny.SOURCES)
                steps.append(alignment.direction(rank_model, gradient))
            for iteration in SEEN.values():
                gradient, _ = alignment.gradient(rank_model, tiny.microbatches(rank_model, iteration), tiny.SOURCES)
                columns.append(alignment.inner_products(rank_model, steps, [gradient]).whole)
        items = [[column[row][0] for column in columns] for row in range(len(steps))]
        found[name] = {"items": items, "alignment": described(compared(rank_model))["stepped"]["whole"]}
    return found


def with_and_without(cases: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Train each case's config twice, with and without a comparison between the iterations; return both outcomes."""
    return {name: [_run(dict(case), probe) for probe in (False, True)] for name, case in cases.items()}


def _run(case: dict[str, Any], probe: bool) -> dict[str, Any]:
    rank_model = tiny.started(tiny.run_config(**case))
    recipe = rank_model.config.fp8_in(rank_model.config.phases[0])
    precision.use(rank_model, recipe)
    results = tiny.iterate(rank_model, 0, 2)
    for iteration in range(2, 4):
        if probe:
            compared(rank_model)
        results += tiny.iterate(rank_model, iteration, 1)
    if probe:
        compared(rank_model)
    return {"iterations": results, "state": _digest(rank_model)}


def _digest(rank_model: RankModel) -> str:
    """Return a hash of this rank's weights, state of the optimizer, scales and random state."""
    from megacode.mcore import fp8_scales

    hashed = hashlib.sha256()
    for tensor in _tensors(rank_model):
        hashed.update(tensor.detach().float().numpy().tobytes())
    for tensor, _ in fp8_scales.snapshot(rank_model):
        hashed.update(tensor.numpy().tobytes())
    hashed.update(torch.get_rng_state().numpy().tobytes())
    hashed.update(repr(optimizer_state.step_counts(rank_model.optimizer)).encode())
    return hashed.hexdigest()


def _tensors(rank_model: RankModel) -> Iterator[torch.Tensor]:
    for chunk in rank_model.chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)  # the next forward pass would gather what the step has changed
        yield from chunk.parameters()
    for held in optimizer_state.held(rank_model.optimizer):
        yield from (tensor for tensor in held.tensors.values() if isinstance(tensor, torch.Tensor))


def predictions(case: dict[str, Any], rates: list[float], before: int = 6) -> dict[str, Any]:
    """Predict and measure what a real step on each source does to all sources' losses, at some learning rates.

    Returns:
        `predicted` and `measured`, [rate][source of the step][source of the loss].
    """
    predicted, measured = [], []
    for rate in rates:
        columns = []
        for name in SEEN:
            rank_model = tiny.started(tiny.run_config(**case))
            tiny.iterate(rank_model, 0, before)
            found = compared(rank_model)
            columns.append(_changes(rank_model, name, rate))
        predicted.append([[rate * value for value in row] for row in found.stepped.whole])
        measured.append(columns)
    return {"predicted": predicted, "measured": measured}


def _changes(rank_model: RankModel, name: str, rate: float) -> list[float]:
    """Return how far each source's loss falls by one real iteration on one source's batches."""
    from megacode.mcore.step import evaluate, train_step

    def losses() -> list[float]:
        batches = (tiny.microbatches(rank_model, iteration) for iteration in SEEN.values())
        return [evaluate(rank_model, batch, tiny.SOURCES).loss for batch in batches]

    then = losses()
    train_step(rank_model, tiny.microbatches(rank_model, SEEN[name]), rate, tiny.SOURCES)
    return [old - new for old, new in zip(then, losses(), strict=True)]


def planted(iterations: int = 30) -> dict[str, Any]:
    """Train on one rule; compare halves of its data, and the same texts with labels that contradict it."""
    rank_model = tiny.started(tiny.run_config())
    tiny.iterate(rank_model, 0, iterations)
    half = [tiny.microbatch(number, index) for number in range(80, 96) for index in range(4)]
    other = [tiny.microbatch(number, index) for number in range(100, 116) for index in range(4)]
    reversed_labels = [replace(batch, labels=tiny.VOCAB - 1 - batch.labels) for batch in half]
    sources = {"half": half, "other half": other, "reversed": reversed_labels}
    batches = {name: partial(list, batches) for name, batches in sources.items()}
    found = alignment.compare(rank_model, batches, tiny.SOURCES)
    return described(found)
