"""Build any rank of any number of GPUs on one CPU: the real modules, without memory and without other processes.

torch's *fake* process group completes every collective at once and moves nothing, so one process can be rank 300 of
512. Tensors are made on the `meta` device: they have a shape and no storage. Groups, layout, model, data-parallel wrap
and optimizer are built by the functions that training calls, and we count what they built. The blocks are always
megacode's own, without FP8; Transformer Engine's have the same parameters.

A fake group does not fill in received objects. mcore gathers objects once, when it builds an optimizer: the parameter
groups of every rank. Those are alike on all ranks here, so this rank's own stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from megacode.base.errors import ConfigError
from megacode.capacity.buffers import buffers, countable, rank_parameters
from megacode.capacity.costs import ParameterCounts
from megacode.capacity.layout import Layout
from megacode.config.run import RunConfig
from megacode.mcore import device, groups
from megacode.mcore.fp8_moments import MomentValues
from megacode.mcore.groups import Ranks
from megacode.mcore.remainder import SplitWeights

_KINDS = {
    "word_embeddings": "embedding",
    "linear_qkv": "attention_qkv",
    "linear_proj": "attention_proj",
    "linear_fc1": "mlp_gate_up",
    "linear_fc2": "mlp_down",
    "output_layer": "output",
}


@dataclass(frozen=True)
class Built:
    """The size of what one rank holds.

    Attributes:
        ranks: its position in the layout.
        parameters: elements by component.
        modules: number of modules and of elements, for each class of module that has parameters.
        weights, gradients, optimizer: bytes.
        buckets: number of gradient buckets, over all its chunks.
    """

    ranks: Ranks
    parameters: ParameterCounts
    modules: dict[str, tuple[int, int]]
    weights: int
    gradients: int
    optimizer: int
    buckets: int


def dry_run(place: Layout, ranks: Iterable[int]) -> list[dict[str, Any]]:
    """Build some ranks of a run and compare each with the plan's arithmetic.

    Args:
        place: the run on its GPUs.
        ranks: which ranks; empty: the first, one in the middle and the last.

    Returns:
        One dict per rank, for JSON: its position, `parameters` in total and by component, `modules`, bytes of
        `weights`, `gradients` and `optimizer`, and `unequal`: where built and planned values differ.

    Raises:
        ConfigError: there is no such rank, or the config does not fit this number of GPUs.
    """
    wanted = sorted(set(ranks)) or sorted({0, place.gpus // 2, place.gpus - 1})
    for rank in wanted:
        if not 0 <= rank < place.gpus:
            raise ConfigError(f"there is no rank {rank}", "--dry-run-rank", f"give 0 to {place.gpus - 1}")
    built = build_ranks(_buildable(place.config), place.gpus, wanted, place.vocab_size)
    return [_compared(place, rank, sizes) for rank, sizes in zip(wanted, built, strict=True)]


def _buildable(config: RunConfig) -> RunConfig:
    """Return the config with blocks that every machine can build."""
    precision = config.precision.model_copy(update={"fp8": "none", "transformer_impl": "local"})
    phases = tuple(phase.model_copy(update={"fp8": None}) for phase in config.phases)
    return config.model_copy(update={"precision": precision, "phases": phases})


def _compared(place: Layout, rank: int, built: Built) -> dict[str, Any]:
    stage, index = place.coordinates(rank)
    counted, planned_buffers = countable(place, stage, index), buffers(place, stage)
    planned = {
        **vars(rank_parameters(place, stage)),
        "weights": counted.weights,
        "gradients": counted.gradients,
        "optimizer": counted.optimizer,
        "buckets": sum(len(buffer.buckets) for buffer in planned_buffers),
    }
    sizes = {name: getattr(built, name) for name in ("weights", "gradients", "optimizer", "buckets")}
    counts = {**vars(built.parameters), **sizes}
    ranks = built.ranks
    return {
        "rank": rank,
        "tensor": ranks.tp_rank,
        "pipeline": ranks.pp_rank,
        "context": ranks.cp_rank,
        "data": ranks.dp_rank,
        "parameters": built.parameters.total,
        "parameters_by_component": vars(built.parameters),
        "modules": {name: {"count": count, "parameters": own} for name, (count, own) in built.modules.items()},
        **sizes,
        "unequal": {key: {"built": n, "planned": planned[key]} for key, n in counts.items() if n != planned[key]},
    }


def build_ranks(config: RunConfig, world_size: int, ranks: Iterable[int], vocab_size: int) -> list[Built]:
    """Build some ranks of a run, one after the other.

    Args:
        config: the run's config.
        world_size: number of ranks of the run.
        ranks: which of them to build.
        vocab_size: tokens in the vocabulary, without padding.

    Raises:
        ConfigError: the config does not fit this number of ranks, or asks for something this machine cannot compute.
    """
    # The fake group becomes this process's default group; a real one could not exist beside it.
    assert not dist.is_initialized(), "a dry run needs a process of its own"
    return [_build_rank(config, world_size, rank, vocab_size) for rank in ranks]


def _build_rank(config: RunConfig, world_size: int, rank: int, vocab_size: int) -> Built:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    device.install()
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        position = groups.start(config.parallel, config.seed)
        from megacode.mcore.build import build

        with _without_memory():
            rank_model = build(config, position, vocab_size)
        return _count(position, rank_model.chunks, rank_model.optimizer)
    finally:
        groups.stop()


class _OnMeta(TorchFunctionMode):
    """Make every tensor on the meta device, whichever device is asked for, and keep it there."""

    # `with torch.device("meta")` does not suffice: it loses to an explicit `device=`, and mcore passes one.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _device_constructors():
            kwargs["device"] = "meta"
        elif func is torch.Tensor.to and args[0].is_meta:
            args = tuple("meta" if isinstance(value, torch.device) else value for value in args)
        return func(*args, **kwargs)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Build on the meta device; gathered objects of all other ranks are copies of this rank's."""
    type_of, gather = torch.Tensor.type, dist.all_gather_object

    def echo(answers: list[Any], own: Any, group: Any = None) -> None:
        answers[:] = [own] * len(answers)

    def as_on_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # mcore's optimizers accept only CUDA tensors, by the name of their type.
        result = type_of(self, *args, **kwargs)
        return f"torch.cuda.{result.rsplit('.', 1)[1]}" if isinstance(result, str) and self.is_meta else result

    torch.Tensor.type, dist.all_gather_object = as_on_cuda, echo
    try:
        with _OnMeta():
            yield
    finally:
        torch.Tensor.type, dist.all_gather_object = type_of, gather


def _count(ranks: Ranks, chunks: list[Any], optimizer: Any) -> Built:
    kinds = dict.fromkeys(ParameterCounts.__dataclass_fields__, 0)
    modules: dict[str, tuple[int, int]] = {}
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers]
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            kinds[_kind(name, parameter)] += parameter.numel()
        for module in chunk.modules():
            own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            if own:
                count, elements = modules.get(type(module).__name__, (0, 0))
                modules[type(module).__name__] = (count + 1, elements + own)
    # With the distributed optimizer weights live in padded buffers; otherwise they are tensors of their own.
    weights = [buffer.param_data for buffer in buffers if buffer.param_data is not None]
    return Built(
        ranks=ranks,
        parameters=ParameterCounts(**kinds),
        modules=modules,
        weights=_bytes(weights or [parameter for chunk in chunks for parameter in chunk.parameters()]),
        gradients=_bytes([buffer.grad_data for buffer in buffers]),
        optimizer=_optimizer_bytes(optimizer),
        buckets=sum(len(buffer.buckets) for buffer in buffers),
    )


def _kind(name: str, parameter: torch.Tensor) -> str:
    if parameter.dim() == 1:
        return "biases" if "linear_" in name else "norms"
    return next(kind for part, kind in _KINDS.items() if part in name)


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_bytes(optimizer: Any) -> int:
    """Return the bytes of moments and momentum, and of the masters unless the weights are fp32 themselves."""
    from megacode.mcore.optimizer_state import held, prime

    with _without_memory():
        prime(optimizer)
        runs = list(held(optimizer))
    masters = [run.tensors["model"] for run in runs if run.parameter.dtype != torch.float32]
    # Of a weight in two halves, the upper one is the model's.
    own = [weight.low if isinstance(weight, SplitWeights) else weight for weight in masters]
    moments = [tensor for run in runs for name, tensor in run.tensors.items() if name != "model"]
    stored = [moment.data if isinstance(moment, MomentValues) else moment for moment in moments]
    return _bytes([*own, *stored])
