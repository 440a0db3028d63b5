"""The processes of a run: join them, lay the model out over them, seed them, and run small collectives."""

from __future__ import annotations

import gc
import os
import pickle
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import megacode.mcore.eager  # noqa: F401  before Megatron-core
from megacode.base.files import digest
from megacode.config.training import Parallel
from megacode.mcore import device, gloo, layout_check, meeting, rendezvous

# A collective ends the run only so many seconds after the hang timeout: the watchdog, which says why, comes first.
_AFTER_THE_WATCHDOG = 600.0
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The position of this process in the layout.

    Attributes:
        rank, world_size: among all processes.
        tp_rank, tp_size: tensor parallel: which slice of every matrix.
        pp_rank, pp_size: pipeline parallel: which layers.
        dp_rank, dp_size: data parallel: which samples.
        cp_rank, cp_size: context parallel: which part of every sequence.
        is_first_stage, is_last_stage: holds the embedding; holds the output layer and computes the loss.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    cp_rank: int
    cp_size: int
    is_first_stage: bool
    is_last_stage: bool


def start(parallel: Parallel, seed: int, patience: float = 1800.0, asked: meeting.Asked = meeting.nobody_asks) -> Ranks:
    """Join the other processes, make the layout's groups, and seed the random states.

    Works under torchrun, under srun, and for one process without either. If the processes have joined already (a
    caller that tries several layouts in turn), only the layout is replaced.

    Args:
        parallel: the layout.
        seed: of the random states.
        patience: hang timeout in seconds.
        asked: see `meeting.meet`.

    Raises:
        LaunchError: the environment is incomplete, or the number of processes is not divisible by the model size.
        StoppedError: see `meeting.meet`.
    """
    device.install()
    timeout = timedelta(seconds=patience + _AFTER_THE_WATCHDOG)
    if not dist.is_initialized():
        # Checked before joining too: a wrong number of processes is reported at once, not after the last has come.
        place = rendezvous.read(os.environ)
        layout_check.data_parallel_size(parallel, place.world_size)
        _join(place, timeout, asked)
    layout_check.data_parallel_size(parallel, dist.get_world_size())
    _lay_out(parallel, timeout)
    ranks = _ranks()
    seed_ranks(seed, ranks)
    return ranks


def join(patience: float = 1800.0, asked: meeting.Asked = meeting.nobody_asks) -> None:
    """Join the other processes, unless they have joined; `start` makes a layout over them.

    Args:
        patience: hang timeout in seconds.
        asked: see `meeting.meet`.

    Raises:
        LaunchError: the environment is incomplete, or see `meeting.meet`.
        StoppedError: see `meeting.meet`.
    """
    if not dist.is_initialized():
        device.install()
        _join(rendezvous.read(os.environ), timedelta(seconds=patience + _AFTER_THE_WATCHDOG), asked)


def rank() -> int:
    """Return the global rank of this process."""
    return dist.get_rank()


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size()


def stop() -> None:
    """Leave the other processes and destroy every group. Not a collective: other ranks may be gone."""
    if not dist.is_initialized():
        return
    _end_layout()
    dist.destroy_process_group()
    gc.collect()


def leave_layout() -> None:
    """Destroy the layout's groups but stay joined, for a caller that continues with another layout. Collective.

    Threads and sockets of a group end with the last reference to it, so drop the model and the optimizer first.
    """
    dist.barrier()  # a rank that still computes with a group must not find it closed
    _end_layout()
    gc.collect()  # modules and their hooks refer to each other in circles, and hold groups


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def broadcast_object(value: T | None, source: int = 0) -> T:
    """Return on all ranks the value of rank `source`; the argument of other ranks is ignored."""
    # Two broadcasts, of the size and of the bytes. Fine at starts and saves; a step uses tensors.
    box = [packed(value) if rank() == source else None]
    dist.broadcast_object_list(box, src=source)
    received: T = unpacked(box[0])
    return received


def gather_objects(value: T) -> list[T]:
    """Return on all ranks the values of all ranks, by rank."""
    # Every rank receives world size times the largest value: keep values small on 4,096 ranks.
    box: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(box, packed(value))
    return [unpacked(own) for own in box]


def packed(value: object) -> bytes:
    """Return an object as few bytes: collectives on objects copy them to the GPU, whose memory may be full."""
    return zlib.compress(pickle.dumps(value), level=1)


def unpacked(value: bytes | None) -> Any:
    """Return the object that was passed to `packed`."""
    assert value is not None
    return pickle.loads(zlib.decompress(value))


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Return on all ranks, for each flag, whether it is set on any rank: how ranks agree on what to do next."""
    # One reduction for all flags, and a wait for the GPU: call it once per iteration at most.
    tensor = torch.tensor(flags, dtype=torch.float32, device=device.device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tuple(bool(value) for value in tensor.tolist())


def total(count: int) -> int:
    """Return on all ranks the sum of their counts."""
    tensor = torch.tensor([count], dtype=torch.int64, device=device.device())
    dist.all_reduce(tensor)
    return int(tensor.item())


def all_equal(numbers: Sequence[int | None]) -> list[bool]:
    """Return on all ranks, for each number, whether it is equal on all ranks that have it.

    Args:
        numbers: equally many on every rank, below 2**62; None: this rank has none.
    """
    # One MIN reduction gives both ends: the largest number is the negative of the smallest negative.
    nothing = 1 << 62  # above every number and its negative, so it never wins a minimum against a real one
    low = [nothing if number is None else number for number in numbers]
    high = [nothing if number is None else -number for number in numbers]
    tensor = torch.tensor([low, high], dtype=torch.int64, device=device.device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return [first == -last or first == nothing for first, last in zip(*tensor.tolist(), strict=True)]


def seed_ranks(seed: int, ranks: Ranks) -> None:
    """Seed the random states that dropout draws from; initial weights and data order have their own keys.

    Tensor-parallel ranks share the state used outside their slices of matrices, and have different ones inside
    (mcore's tracker does that). So dropout differs between layouts, by design; nothing else does.
    """
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    # One number per pipeline stage and set of tokens, but not per tensor-parallel rank: mcore adds that rank itself.
    tokens = ranks.dp_rank + ranks.dp_size * ranks.cp_rank
    own = int(digest("random state", str(seed), str(ranks.pp_rank), str(tokens))[:7], 16)
    random.seed(own)
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(own)


def _join(place: rendezvous.Rendezvous, timeout: timedelta, asked: meeting.Asked) -> None:
    store: dist.Store
    if place.address:
        # For what reads the environment later: `device()`, torch, and libraries that ask for torchrun's variables.
        os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port), LOCAL_RANK=str(place.local_rank))
        store = meeting.meet(place, timeout.total_seconds(), asked)
    else:
        store = dist.HashStore()
    backend = device.backend()
    if backend == "gloo":
        backend = gloo.backend()
    dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=timeout, store=store)


def _end_layout() -> None:
    """Destroy the groups that mcore made; its own `destroy_model_parallel` only drops its references."""
    from megatron.core import parallel_state

    for group in reversed(parallel_state._global_process_group_list or []):  # the same order on every rank
        if group is not None:  # None stands for the default group
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def _lay_out(parallel: Parallel, timeout: timedelta) -> None:
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        leave_layout()
    # mcore's default order puts neighbouring ranks into one tensor-parallel group: it stays within a node's NVLink.
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        # Its extra gloo groups serve its own checkpoints and logs; each would cost threads and sockets.
        create_gloo_process_groups=False,
        # In whole minutes, rounded up, or these groups would give up before the watchdog.
        distributed_timeout_minutes=-(-int(timeout.total_seconds()) // 60),
    )


def _ranks() -> Ranks:
    from megatron.core import parallel_state as mpu

    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        tp_size=mpu.get_tensor_model_parallel_world_size(),
        pp_rank=mpu.get_pipeline_model_parallel_rank(),
        pp_size=mpu.get_pipeline_model_parallel_world_size(),
        dp_rank=mpu.get_data_parallel_rank(),
        dp_size=mpu.get_data_parallel_world_size(),
        cp_rank=mpu.get_context_parallel_rank(),
        cp_size=mpu.get_context_parallel_world_size(),
        is_first_stage=mpu.is_pipeline_first_stage(ignore_virtual=True),
        is_last_stage=mpu.is_pipeline_last_stage(ignore_virtual=True),
    )
