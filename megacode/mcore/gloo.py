"""Gloo on CPU ranks: one device, and so one polling thread, for all groups of a process.

Megatron-core makes about 18 groups for a layout. By default torch gives each gloo group its own device, whose thread
polls its sockets a hundred times a second: an idle rank wakes 1,800 times a second. To change that, torch wants a
registered backend, which new groups inherit from the default group. `ProcessGroupGloo` itself is unchanged, and so is
every number it computes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from megacode.base.errors import LaunchError

BACKEND = "gloo_shared"
_INTERFACES = "GLOO_SOCKET_IFNAME"
# torch's own number; the threads sleep until there is a collective. With one, and the usual policy for threads, small
# all-reduces took 2 to 8 ms instead of 0.3 on two busy cores: decision 15.
_RUN_LOOPS = 2


def backend() -> str:
    """Return the name of the backend for CPU ranks; it is registered with torch.distributed at the first call."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _group, extended_api=True, devices=["cpu"])
    return BACKEND


@contextlib.contextmanager
def batch_threads() -> Iterator[None]:
    """Have threads that start in the body of this context wait for a free core when they wake (`SCHED_BATCH`).

    Gloo's send wakes a partner's thread while it holds a socket's lock. That thread would take the core from the
    sender, and the device thread would spin until it gets the lock: two fifths of the CPU time of four ranks on two
    cores. Nothing changes where the system has no such policy, does not allow it, or the process was given another.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    plain = os.sched_param(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_BATCH, plain)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, plain)


@functools.cache
def _devices() -> tuple[Any, ...]:
    """Return the gloo devices of this process: one per interface that the user names, else that of the host name.

    torch makes the same choice for its own groups. All groups share these devices and their polling threads.

    Raises:
        LaunchError: an interface does not exist, or has no address.
    """
    names = [name for name in os.environ.get(_INTERFACES, "").split(",") if name]
    if not names:
        with batch_threads():
            return (dist.ProcessGroupGloo.create_default_device(),)
    try:
        with batch_threads():
            return tuple(dist.ProcessGroupGloo.create_device(interface=name) for name in names)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(". ")[2]  # what precedes it is a place in gloo's source
        message = f"gloo cannot use this network interface: {reason}"
        fix = "name an interface that `ip address` lists, or unset the variable"
        raise LaunchError(message, f"environment {_INTERFACES}", fix) from None


def _group(wanted: Any, _: Any) -> dist.ProcessGroupGloo:
    """Return this rank's end of a new group.

    Args:
        wanted: torch's `DistributedBackendOptions`: store, rank, size and timeout of the group.
        _: backend options; Megatron-core passes none for gloo.
    """
    # What torch itself does for a gloo group, except for the shared devices.
    options = dist.ProcessGroupGloo._Options()
    options._devices = list(_devices())
    options._threads = _RUN_LOOPS * len(options._devices)
    options._timeout = wanted.timeout
    options.global_ranks_in_group = wanted.global_ranks_in_group
    options.group_name = wanted.group_id
    with batch_threads():
        group = dist.ProcessGroupGloo(wanted.store, wanted.group_rank, wanted.group_size, options)
    group._set_sequence_number_for_group()  # torch calls it for its built-in backends only
    return group
