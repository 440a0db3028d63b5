"""CUDA or CPU: every difference between them is here.

Megatron-core is written for CUDA. On a machine without it, `install()` lets the CPU stand in for the device: it
replaces only calls that would raise there (`torch.cuda.current_device`, the CUDA random state, `device="cuda"` in
tensor factories, `Tensor.cuda`), so nothing that works changes. `torch.cuda.is_available()` goes on saying no, and
other libraries are not misled. On a machine with CUDA nothing is replaced.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import resource
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._device

from megacode.mcore import version

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like")
_OPTIMIZER_MODULES = "megatron.core.optimizer"

# Dense peak of one GPU in TFLOP/s, half of what is advertised "with sparsity". Source: NVIDIA's data sheets.
# fp32 is that of the CUDA cores: torch computes fp32 matrix products in TF32 only where it is told to.
_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "H100 PCIe": {"bf16": 756.0, "fp8": 1513.0, "fp32": 51.0},
    "H100 NVL": {"bf16": 835.5, "fp8": 1671.0, "fp32": 60.0},
    "H100": {"bf16": 989.4, "fp8": 1978.9, "fp32": 67.0},
    "H200 NVL": {"bf16": 835.5, "fp8": 1671.0, "fp32": 60.0},
    "H200": {"bf16": 989.4, "fp8": 1978.9, "fp32": 67.0},
    "B200": {"bf16": 2250.0, "fp8": 4500.0, "fp32": 75.0},
}
# Seen on CPU ranks in each layout; `megacode doctor` says which libraries are here.
_AT_EVERY_START = (
    r"(Transformer Engine and Apex are|Apex is) not installed",
    r"full scope is deprecated\. Use empty cuda_graph_scope",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r".*(_tensor|_into_tensor|load_state_dict)` is deprecated",
)
_installed = False


def on_gpu() -> bool:
    """Return whether this machine trains on CUDA."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return this rank's device: its local GPU, or the CPU."""
    if not on_gpu():
        return _CPU
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local % torch.cuda.device_count())


def backend() -> str:
    """Return torch.distributed's backend for this device."""
    return "nccl" if on_gpu() else "gloo"


def name() -> str:
    """Return the device's name as its maker writes it."""
    return torch.cuda.get_device_name(device()) if on_gpu() else platform.processor() or platform.machine()


def peak_flops(dtype: str, device_name: str | None = None) -> float | None:
    """Return the dense peak of one device in FLOP/s, the denominator of MFU.

    Args:
        dtype: `fp32`, `bf16` or `fp8`, as the matrix products are computed.
        device_name: the device; absent: this rank's.

    Returns:
        The peak, or None where it is not known: on a CPU, and on GPUs outside the table.
    """
    if device_name is None:
        if not on_gpu():
            return None
        device_name = name()
    known = [model for model in _PEAK_TFLOPS if all(word in device_name for word in model.split())]
    if not known:
        return None
    tflops = _PEAK_TFLOPS[max(known, key=len)].get(dtype)
    return None if tflops is None else tflops * 1e12


def synchronize() -> None:
    """Wait until this rank's device has done its work; on a CPU it always has."""
    if on_gpu():
        torch.cuda.synchronize()


def memory_high_water() -> int:
    """Return the most memory that this process ever held, in bytes: the GPU's, or on a CPU that of the process."""
    if on_gpu():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def make_deterministic(wanted: bool) -> None:
    """Let GPU kernels add up in an order that does not change from run to run, or in the fastest; CPUs always do.

    To be called before the model is built: attention asks then.
    """
    if on_gpu():
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0" if wanted else "1"
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it; it costs some MiB
        torch.use_deterministic_algorithms(wanted)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on this rank's device, copied in the background from pinned memory where that is a GPU."""
    if not on_gpu() or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device(), non_blocking=True)


def host_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return memory of the host to be filled and given to `to_device`, which then copies it no second time.

    On a GPU machine it is pinned; torch keeps pinned memory and gives it out again once the copies from it are done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=on_gpu())


class SideStream:
    """A queue of the device beside the one in which it computes; on a CPU there is none, and nothing to wait for."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream(device()) if on_gpu() else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let this thread's copies and kernels go into the queue."""
        if self._stream is None:
            yield
            return
        torch.cuda.set_device(device())  # of which each thread has one of its own, at first GPU 0
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Return a mark behind everything that is in the queue now."""
        return None if self._stream is None else self._stream.record_event()

    def hand_over(self, mark: Any, tensors: Iterable[torch.Tensor]) -> None:
        """Let the calling thread's queue, not the host, wait for a mark, and then use what was made before it."""
        if mark is None:
            return
        here = torch.cuda.current_stream()
        here.wait_event(mark)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(here)  # their memory is not given out again before this queue is done with it


def install() -> None:
    """Make ready for Megatron-core: check its release and, without CUDA, let the CPU stand in for the device.

    To be called before anything else of mcore; calling it again does nothing.

    Raises:
        LaunchError: see `version.check`.
    """
    global _installed
    if _installed:
        return
    version.check()
    _quieten()
    if on_gpu():
        torch.cuda.set_device(device())
    else:
        _cpu_stands_in()
    _installed = True


def _quieten() -> None:
    """Leave out warnings that mcore gives at every start and that a user can do nothing about; rank 0 shows others."""
    for message in _AT_EVERY_START:
        warnings.filterwarnings("ignore", message=message)
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        warnings.filterwarnings("ignore", module=r"megatron\.")


def _cpu_stands_in() -> None:
    generator = torch.default_generator
    torch.cuda.current_device = lambda: _CPU
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.manual_seed = lambda seed: generator.manual_seed(seed)
    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = lambda device="cuda": generator.get_state()
    torch.cuda.set_rng_state = torch.cuda.random.set_rng_state = lambda state, device="cuda": _restore(state)
    # torch finds the factories that `with torch.device("meta")` redirects by identity, once: it must see the originals,
    # or models built in such a context (transformers does) are left uninitialised, without an error.
    torch.utils._device._device_constructors()
    for factory in _FACTORIES:
        setattr(torch, factory, _on_cpu(getattr(torch, factory)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = _named_for_the_optimizer(torch.Tensor.type)
    from megatron.core.tensor_parallel import random as mcore_random

    mcore_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: _restore(state)
    # The tracker forks the one generator there is, so its warning that the CPU's state moved is no news.
    logging.getLogger(mcore_random.__name__).addFilter(_not_about_the_cpu_state)


def _restore(state: torch.Tensor) -> None:
    torch.default_generator.set_state(state)


def _not_about_the_cpu_state(record: logging.LogRecord) -> bool:
    return "CPU RNG state changed" not in record.getMessage()


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        wanted = kwargs.get("device")
        if wanted is not None and str(wanted).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return make


def _named_for_the_optimizer(type_of: Callable[..., Any]) -> Callable[..., Any]:
    """mcore's optimizers ask whether `Tensor.type()` is `torch.cuda.FloatTensor`; they alone get that answer."""

    def answer(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = type_of(self, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(result, str) and caller.startswith(_OPTIMIZER_MODULES):
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    return answer
