"""The passes over windows and items, and what they leave: inner products of steps on sources with gradients of tasks.

Let g_A be the gradient of source A's mean loss over its windows, P g_A the optimizer's step along it, and h_i that of
the summed loss of the answer to item i, which has n_i tokens. Item i then contributes c_Ai = r <P g_A, h_i> to

    T[A, task] = sum_i c_Ai / sum_i n_i

the nats per token of the answers that one step on A of learning rate r lowers their loss by. Three passes:

1. each source's windows: g_A and P g_A are kept on the host;
2. each item: c_Ai for all sources; the sum of a task's h_i is kept on the host;
3. each source's windows again, in groups: T without one group at a time, for the spread over windows (see `spread`).

Memory beside the model and its optimizer: one gradient on the device, and on the host two for each source, one for each
task, and three more, all in fp32. Time: a forward and a backward pass of each item, and two of each window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from megacode.base.progress import Advance
from megacode.mcore import alignment
from megacode.mcore.alignment import InnerProducts
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.update_directions import KINDS, Gradient

GROUPS = 16  # of a source's windows: each costs a step, and inner products with all tasks
MakeBatch = Callable[[], MicroBatch]  # made when it is needed: items of all tasks would fill the memory


@dataclass
class TaskSums:
    """What the passes find of one task, for S sources, I items and J groups of windows.

    Attributes:
        loss_sum, tokens: float64[I], of each answer: nats, and number of its tokens.
        contributions: float64[S, I]: <P g_A, h_i>, per unit of learning rate.
        by_kind: the sum of the contributions over items, by kind of layer; float64[S] each.
        norm: of the gradient of the task's summed loss.
        without_group: by source float64[J]: `contributions` summed over items, without a group of the source's windows.
        cosines: float64[S]: of g_A with the gradient of the task's loss.
    """

    loss_sum: np.ndarray
    tokens: np.ndarray
    contributions: np.ndarray
    by_kind: dict[str, np.ndarray]
    norm: float
    without_group: list[np.ndarray] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class MeanGradient:
    """The gradient of the mean loss of some tokens, on the host, fp32; their number; that loss in nats."""

    gradient: Gradient
    tokens: int
    loss: float


@dataclass(frozen=True)
class SourceSums:
    """Of a source: the mean loss on its windows, in nats per token, and the norm of its gradient."""

    loss: float
    norm: float


def measure(
    rank_model: RankModel,
    windows: Mapping[str, Sequence[MakeBatch]],
    items: Mapping[str, Sequence[MakeBatch]],
    plain: bool,
    advance: Advance,
) -> tuple[dict[str, SourceSums], dict[str, TaskSums]]:
    """Run the three passes.

    Args:
        rank_model: on one process.
        windows: by source; at least two each.
        items: by task.
        plain: step along the gradient itself, not along what the optimizer makes of it.
        advance: told of each backward pass; there are two a window and one an item.
    """
    passes = _Passes(rank_model, plain, advance)
    with alignment.undisturbed(rank_model):
        # All steps before the first item: an item then costs one backward pass, however many sources there are.
        means = {name: passes.mean(own) for name, own in windows.items()}
        steps = [passes.step(mean.gradient) for mean in means.values()]
        sums: dict[str, TaskSums] = {}
        gradients: list[Gradient] = []
        for name, own in items.items():
            sums[name], whole = passes.task(own, steps)
            gradients.append(whole)
        # The third pass makes steps of its own: this returns the memory of one gradient a source to the host.
        # With `plain` nothing is freed, since the steps are the gradients.
        steps.clear()
        norms = {name: passes.source(own, means[name], gradients, list(sums.values())) for name, own in windows.items()}
    return {name: SourceSums(mean.loss, norms[name]) for name, mean in means.items()}, sums


def backward_passes(windows: Mapping[str, Sequence[MakeBatch]], items: Mapping[str, Sequence[MakeBatch]]) -> int:
    """Return how many backward passes `measure` makes."""
    return 2 * sum(map(len, windows.values())) + sum(map(len, items.values()))


@dataclass(frozen=True)
class _Passes:
    rank_model: RankModel
    plain: bool
    advance: Advance

    def step(self, gradient: Gradient) -> Gradient:
        """Return the step along a gradient, on the host."""
        return gradient if self.plain else alignment.direction(self.rank_model, gradient)

    def mean(self, batches: Sequence[MakeBatch]) -> MeanGradient:
        """Return the gradient of the mean loss of some batches."""
        total, tokens, nats = None, 0, 0.0
        for gradient, count, loss in self._gradients(batches):
            total, tokens, nats = _added(total, gradient, count), tokens + count, nats + loss
        assert total is not None
        # max: windows in which no token counts have a gradient of 0, not nan.
        return MeanGradient(_scaled(total, 1.0 / max(tokens, 1)), tokens, nats / max(tokens, 1))

    def task(self, items: Sequence[MakeBatch], steps: Sequence[Gradient]) -> tuple[TaskSums, Gradient]:
        """Return what the second pass finds of a task, and the gradient of its summed loss, on the host."""
        total, tokens, losses, products = None, [], [], []
        for gradient, count, nats in self._gradients(items):
            # The gradient is of the mean over the answer's tokens.
            products.append(count * self._products(steps, [gradient]).places[:, :, 0])
            total = _added(total, gradient, count)
            tokens.append(count)
            losses.append(nats)
        assert total is not None
        places = torch.stack(products)
        by_kind = {
            kind: np.asarray(matrix)[:, 0] for kind, matrix in InnerProducts(places.sum(0)[:, :, None]).by_kind.items()
        }
        contributions = places.sum(1).T.numpy()
        assert set(by_kind) == set(KINDS)
        norm = math.sqrt(self._products([total], [total]).whole[0][0])
        return TaskSums(np.array(losses), np.array(tokens, dtype=float), contributions, by_kind, norm), total

    def source(
        self, windows: Sequence[MakeBatch], whole: MeanGradient, tasks: Sequence[Gradient], sums: Sequence[TaskSums]
    ) -> float:
        """Add what the third pass finds of a source to each task's sums; return the norm of its gradient."""
        without: list[np.ndarray] = []
        for part in groups(len(windows)):
            left_out = self.mean([windows[number] for number in part])
            # By subtraction, so a window is passed once more, not once for every group that keeps it.
            step = self.step(_without(whole, left_out))
            without.append(np.asarray(self._products([step], tasks).whole)[0])
        # Gradients, not steps: a cosine has no direction from source to task, and knows no optimizer.
        plain = np.asarray(self._products([whole.gradient, *tasks], [whole.gradient]).whole)[:, 0]
        norm = math.sqrt(plain[0])
        for number, task in enumerate(sums):
            task.without_group.append(np.array([row[number] for row in without]))
            task.cosines.append(float(plain[number + 1] / (norm * task.norm)) if norm * task.norm else math.nan)
        return norm

    def _gradients(self, batches: Sequence[MakeBatch]) -> Iterator[tuple[Gradient, int, float]]:
        """Yield the gradient of each batch's mean loss, its number of tokens, and its summed loss."""
        for make in batches:
            # The next call overwrites this gradient: who keeps it must copy it, as `_added` does.
            gradient, losses = alignment.gradient(self.rank_model, [make()], 1)
            yield gradient, sum(losses.tokens), sum(losses.loss_sum)
            self.advance(1)

    def _products(self, left: Sequence[Gradient], right: Sequence[Gradient]) -> InnerProducts:
        return alignment.inner_products(self.rank_model, left, right)


def groups(windows: int) -> list[range]:
    """Return the numbers of a source's windows in at most `GROUPS` groups of neighbours, of nearly equal size."""
    count = min(windows, GROUPS)
    # Neighbours may share a document. In different groups they would hide how much documents differ.
    ends = [number * windows // count for number in range(count + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


def _added(total: Gradient | None, gradient: Gradient, weight: float) -> Gradient:
    """Add a weighted gradient to a sum on the host; None: it is the first."""
    # fp32 whatever the model's type: a sum in bf16 would lose small gradients beside a large total.
    parts = [tensor.detach().float().cpu() for tensor in gradient.tensors]
    if total is None:
        return Gradient(tuple(part * weight for part in parts))
    for own, part in zip(total.tensors, parts, strict=True):
        own.add_(part, alpha=weight)
    return total


def _scaled(gradient: Gradient, factor: float) -> Gradient:
    for tensor in gradient.tensors:
        tensor.mul_(factor)
    return gradient


def _without(whole: MeanGradient, part: MeanGradient) -> Gradient:
    """Return the gradient of the mean loss without some of its tokens; `part` is overwritten."""
    rest = whole.tokens - part.tokens
    for own, left_out in zip(whole.gradient.tensors, part.gradient.tensors, strict=True):
        left_out.mul_(-part.tokens / rest).add_(own, alpha=whole.tokens / rest)
    return part.gradient
