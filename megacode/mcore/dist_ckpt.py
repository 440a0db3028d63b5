"""Checkpoints in torch's distributed format through mcore: model, optimizer and random states, sharded over ranks.

A checkpoint does not remember the layout that wrote it, but for the random states: another layout may read the rest.
Traps of mcore 0.16 with torch's AdamW, each met here and tested:
* the optimizer's state must exist before a load is described, and Adam makes it only in the first step: `_prime`;
* loading gives all parameters *one* step counter, which Adam then advances once a parameter: `_own_step_counters`;
* the writer starts a manager process merely to pass results back to itself, 8 s and a hang in scripts without a
  `__main__` guard: a save that the caller waits for gets a plain queue.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from megacode.base.errors import CheckpointError
from megacode.mcore import device, groups
from megacode.mcore.optimizer import adams, configure
from megacode.mcore.optimizer import parts as optimizer_parts
from megacode.mcore.parts import Parts
from megacode.mcore.sharding import bare, chunk_names, metadata, model_state

_log = logging.getLogger(__name__)
_LONGEST = 200  # characters of mcore's messages, which name every tensor there is
_LAYOUT, _RANDOM = "megacode_layout", "random_states"


def save(parts: Parts, path: str | Path) -> None:
    """Write a checkpoint; every rank calls it and returns when all have written.

    Args:
        parts: what to save.
        path: a directory that does not exist yet or is empty; the caller publishes it under its final name.
    """
    if parts.ranks.rank == 0:
        Path(path).mkdir(parents=True, exist_ok=True)
    groups.barrier()
    _prime(parts)
    state = {**_state(parts, is_loading=False), _LAYOUT: _layout(parts)}
    state[_RANDOM] = _random_states(parts)
    with _plain_queue():
        dist_checkpointing.save(state, str(path))
    groups.barrier()


def load(parts: Parts, path: str | Path, *, weights_only: bool = False) -> None:
    """Read a checkpoint into a built model and optimizer; every rank calls it.

    Args:
        parts: what to fill; the model's shape must be the saved one, the layout need not.
        path: a checkpoint of `save`.
        weights_only: leave the optimizer and the random states as they are after `build`.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or of a model of another shape.
    """
    common = _read(lambda: dist_checkpointing.load_common_state_dict(str(path)), path)
    state = {**_state(parts, is_loading=True, with_optimizer=not weights_only)}
    same_layout = common.get(_LAYOUT) == _layout(parts)
    if same_layout and not weights_only:
        state[_RANDOM] = _random_states(parts)
    loaded = _read(lambda: dist_checkpointing.load(state, str(path)), path)
    for name, chunk in zip(chunk_names(parts.chunks), parts.chunks, strict=True):
        bare(chunk).load_state_dict(loaded[name])
    if weights_only:
        if parts.optimizer is not None:
            parts.optimizer.reload_model_params()
        return
    with _step_counters_kept():
        parts.optimizer.load_state_dict(loaded["optimizer"])
    _own_step_counters(parts)
    configure(parts.config, parts.optimizer)
    if same_layout:
        _set_random_states(loaded[_RANDOM])
    else:
        _log.warning("The layout changed: dropout, if there is any, draws new random numbers from here on.")


def load_plain(path: str | Path) -> dict[str, Tensor]:
    """Return a checkpoint's model whole, for a process alone: mcore's parameter names -> full tensors on the CPU.

    Layers carry their number (`decoder.layers.0.self_attention.linear_qkv.weight`); the embedding keeps its padding
    rows; the gate is the first half of `linear_fc1`, the up projection the second.

    Raises:
        CheckpointError: the checkpoint is absent or damaged.
    """
    device.install()
    alone = not dist.is_initialized()
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wanted = _read(lambda: dist_checkpointing.load_tensors_metadata(str(path)), path)
        model = {key: value for key, value in wanted.items() if not key.startswith("optimizer.")}
        state = _read(lambda: dist_checkpointing.load(model, str(path), validate_access_integrity=False), path)
    finally:
        if alone:
            dist.destroy_process_group()
    return {key: state[key] for key in model}


def _state(parts: Parts, is_loading: bool, with_optimizer: bool = True) -> dict[str, Any]:
    state = model_state(parts.chunks)
    if with_optimizer:
        _prime(parts)
        described = parts.optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata())
        state["optimizer"] = described
    return state


def _read(reader: Any, path: str | Path) -> Any:
    if not (Path(path) / "metadata.json").exists():
        fix = "name a directory such as checkpoints/iter_0001000"
        raise CheckpointError("there is no checkpoint here", str(path), fix)
    try:
        return reader()
    except (Exception, CheckpointException) as error:
        # torch gathers the failures of all ranks into one that is no Exception; the first of them says most.
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        said = (str(cause).splitlines() or [""])[0][:_LONGEST] or "the file ends early"
        fix = "check that it is whole, and that the model's shape is the saved one"
        raise CheckpointError(f"the checkpoint cannot be read: {said}", str(path), fix) from error


def _layout(parts: Parts) -> dict[str, int]:
    ranks = parts.ranks
    chunks = len(parts.chunks)
    return {"tensor": ranks.tp_size, "pipeline": ranks.pp_size, "data": ranks.dp_size, "chunks": chunks}


def _random_states(parts: Parts) -> ShardedObject:
    ranks = parts.ranks
    states = {
        "host": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }
    shape = (ranks.pp_size, ranks.tp_size, ranks.dp_size)
    return ShardedObject(_RANDOM, states, shape, (ranks.pp_rank, ranks.tp_rank, ranks.dp_rank))


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["host"])
    torch.cuda.set_rng_state(states["device"])
    get_cuda_rng_tracker().set_states(states["tracker"])


@torch.no_grad()
def _prime(parts: Parts) -> None:
    """Give each parameter the state that AdamW would make in its first step."""
    for adam in adams(parts.optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                state = adam.state[parameter]
                if "step" not in state:
                    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    state.update(step=torch.zeros((), device=parameter.device), **zeros)


@contextmanager
def _step_counters_kept() -> Iterator[None]:
    """While the distributed optimizer loads: it looks for `step` among the saved tensors, where it is not."""
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    @torch.no_grad()
    def setter(self: Any, parameter: Any, tensors: dict[str, Tensor]) -> None:
        group, index = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][index]]
        if "step" in state:
            state["step"] = state["step"].clone()
            tensors = {**tensors, "step": state["step"]}
        original(self, parameter, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = setter
    try:
        yield
    finally:
        DistributedOptimizer._set_main_param_and_optimizer_states = original


def _own_step_counters(parts: Parts) -> None:
    """Give every parameter a step counter of its own, on its device, as torch's fused kernel wants it."""
    for adam in adams(parts.optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                state = adam.state[parameter]
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(parameter.device, copy=True)
    for inner in optimizer_parts(parts.optimizer):
        counters = [id(state["step"]) for state in inner.optimizer.state.values() if "step" in state]
        assert len(counters) == len(set(counters)), "parameters share a step counter"


@contextmanager
def _plain_queue() -> Iterator[None]:
    original = filesystem_async._results_queue
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        filesystem_async._results_queue = original
