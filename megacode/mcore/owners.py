"""Which data-parallel rank updates what, where matrices must stay whole; and the exchange of updated weights.

With `parallel.distributed_optimizer`, a matrix of the blocks has one owner among the ranks with the same weights. It
holds the fp32 master and all optimizer state, and sends the new weights to the others. Other parameters are cut into
equal runs of elements, one per rank: each embedding by itself, all vectors together. Without it, every rank holds all.

Megatron-core's distributed optimizer cuts everything into runs and reduces gradients into them, so it cannot be used
here: gradients are all-reduced, which moves twice as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.capacity.owners import owners, run_of


@dataclass(frozen=True, eq=False)
class Owned:
    """A run of a parameter's elements that this rank updates.

    Attributes:
        name: mcore's name of the parameter.
        parameter: this tensor-parallel rank's slice of it.
        start: number of the first element, in the slice's own order.
        main: what is updated, fp32: the elements themselves, or the masters of bf16 ones. All of a matrix has the
            slice's shape; a run is flat.
        is_matrix: of a block, always held as a whole.
    """

    name: str
    parameter: Tensor
    start: int
    main: Tensor
    is_matrix: bool

    @property
    def target(self) -> Tensor:
        """The elements of the parameter, a view of main's shape."""
        return _run(self.parameter.detach(), self.start, self.main)

    @property
    def gradient(self) -> Tensor:
        """Their gradients in mcore's buffer, fp32, a view of main's shape."""
        return _run(self.parameter.main_grad, self.start, self.main)


def _run(whole: Tensor, start: int, like: Tensor) -> Tensor:
    return whole.view(-1)[start : start + like.numel()].view(like.shape)


class Shares:
    """What this rank updates of the parameters, and the exchange with the ranks that hold the same weights.

    Args:
        parameters: of this rank by mcore's name; all ranks of `group` have the same.
        matrices: names of those to be held as a whole.
        group: the ranks with the same weights: data- and context-parallel ones.
        sharded: divide the state among them; False: each holds everything.

    Attributes:
        owned: what this rank updates, by name.
        sharded: the same as the argument.
    """

    def __init__(self, parameters: Mapping[str, Tensor], matrices: set[str], group: Any, sharded: bool) -> None:
        self._group, self.sharded = group, sharded
        self._ranks = group.size() if sharded else 1
        self._rank = group.rank() if sharded else 0
        self._matrices = {name: parameters[name] for name in sorted(matrices)}
        self._owners = owners({name: each.numel() for name, each in self._matrices.items()}, self._ranks)
        self._bundles = _bundles({name: each for name, each in parameters.items() if name not in matrices})
        self.owned = [*self._owned_matrices(), *(owned for each in self._bundles for owned in self._owned_runs(each))]

    def _owned_matrices(self) -> Iterator[Owned]:
        for name, parameter in self._matrices.items():
            if self._owners[name] == self._rank:
                yield Owned(name, parameter, 0, _main(parameter, 0, parameter.shape), True)

    def _owned_runs(self, bundle: Mapping[str, Tensor]) -> Iterator[Owned]:
        first, last = run_of(sum(each.numel() for each in bundle.values()), self._ranks, self._rank)
        begin = 0
        for name, parameter in bundle.items():
            start, end = max(first - begin, 0), min(last - begin, parameter.numel())
            if start < end:
                yield Owned(name, parameter, start, _main(parameter, start, (end - start,)), False)
            begin += parameter.numel()

    def exchange(self) -> None:
        """Round the masters into the weights, and give every rank all weights; a collective of the group."""
        for owned in self.owned:
            if owned.parameter.dtype != torch.float32:
                owned.target.copy_(owned.main)
        if self._ranks == 1:
            return
        sends = [
            dist.broadcast(parameter.detach(), group_src=self._owners[name], group=self._group, async_op=True)
            for name, parameter in self._matrices.items()
        ]
        for bundle in self._bundles:
            self._gather(list(bundle.values()))
        for send in sends:
            send.wait()

    def _gather(self, bundle: Sequence[Tensor]) -> None:
        """Give every rank all runs of some parameters."""
        total = sum(each.numel() for each in bundle)
        first, last = run_of(total, self._ranks, self._rank)
        length = -(-total // self._ranks)
        # Runs of equal size: gloo gathers no others. An embedding that divides evenly is gathered in place.
        if len(bundle) == 1 and total == length * self._ranks:
            flat = bundle[0].detach().view(-1)
            dist.all_gather_into_tensor(flat, flat[first:last].clone(), group=self._group)
            return
        padded = torch.zeros(length * self._ranks, dtype=bundle[0].dtype, device=bundle[0].device)
        torch.cat([each.detach().view(-1) for each in bundle], out=padded[:total])
        own = padded[self._rank * length : (self._rank + 1) * length].clone()
        dist.all_gather_into_tensor(padded, own, group=self._group)
        for each, values in zip(bundle, padded[:total].split([each.numel() for each in bundle]), strict=True):
            each.detach().view(-1).copy_(values)


def _bundles(parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return each embedding by itself, and all vectors together: one collective for many small tensors."""
    names = sorted(parameters)
    alone = [{name: parameters[name]} for name in names if parameters[name].dim() > 1]
    vectors = {name: parameters[name] for name in names if parameters[name].dim() == 1}
    return [*alone, vectors] if vectors else alone


def _main(parameter: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """Return the fp32 tensor that is updated: the weights themselves, or masters of them, with mcore's marks."""
    from megatron.core import tensor_parallel

    count = torch.Size(shape).numel()
    run = parameter.detach().view(-1)[start : start + count].view(shape)
    main = run if run.dtype == torch.float32 else run.float()
    # Which copies count in the gradient's norm is told by these marks.
    tensor_parallel.copy_tensor_model_parallel_attributes(main, parameter)
    if hasattr(parameter, "shared"):
        main.shared = parameter.shared
    return main
