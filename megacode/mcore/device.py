"""CUDA or CPU: every difference between them is here.

Megatron-core is written for CUDA. On a machine without it, `install()` lets the CPU stand in for the device. It
replaces only calls that would raise there: `torch.cuda.current_device` and `current_stream`, the CUDA random state,
`device="cuda"` in tensor factories, and `Tensor.cuda`. Nothing that works changes. `torch.cuda.is_available()` still
returns False, so other libraries are not misled. On a machine with CUDA nothing is replaced.
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

# Dense peak of one GPU in TFLOP/s, half of the figure advertised "with sparsity". Source: NVIDIA's data sheets.
# fp32 is the peak of the CUDA cores: torch uses TF32 for fp32 matrix products only on request.
_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "H100 PCIe": {"bf16": 756.0, "fp8": 1513.0, "fp32": 51.0},
    "H100 NVL": {"bf16": 835.5, "fp8": 1671.0, "fp32": 60.0},
    "H100": {"bf16": 989.4, "fp8": 1978.9, "fp32": 67.0},
    "H200 NVL": {"bf16": 835.5, "fp8": 1671.0, "fp32": 60.0},
    "H200": {"bf16": 989.4, "fp8": 1978.9, "fp32": 67.0},
    "B200": {"bf16": 2250.0, "fp8": 4500.0, "fp32": 75.0},
}
# Warnings seen at every start on CPU ranks, in each layout; `megacode doctor` lists the installed libraries instead.
_AT_EVERY_START = (
    r"(Transformer Engine and Apex are|Apex is) not installed",
    r"full scope is deprecated\. Use empty cuda_graph_(scope|modules)",
    r"MimoModelConfig is experimental",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r".*(_tensor|_into_tensor|load_state_dict)` is deprecated",
)
# Records of mcore 0.19's loggers, likewise; `megacode doctor` says once that GPTModel is deprecated.
_LOGGED_AT_EVERY_START = {
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided with",
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes",
    "megatron.core.transformer.transformer_layer": "Rewrapping ModuleSpec with module <class 'functools.partial'>",
}
_installed = False


def on_gpu() -> bool:
    """Return whether this machine trains on CUDA."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return this rank's device: its local GPU, or the CPU."""
    if not on_gpu():
        return _CPU
    # Some SLURM sites show each task only its own GPU, as number 0. The remainder is right there as well.
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local % torch.cuda.device_count())


def backend() -> str:
    """Return torch.distributed's backend for this device."""
    return "nccl" if on_gpu() else "gloo"


def name() -> str:
    """Return the device's name as its vendor writes it."""
    return torch.cuda.get_device_name(device()) if on_gpu() else platform.processor() or platform.machine()


def peak_flops(dtype: str, device_name: str | None = None) -> float | None:
    """Return the dense peak of one device in FLOP/s, the denominator of MFU.

    Args:
        dtype: `fp32`, `bf16` or `fp8`: the number format of the matrix products.
        device_name: the device; None: this rank's.

    Returns:
        The peak; None if it is not known, as on a CPU or on GPUs outside the table.
    """
    if device_name is None:
        if not on_gpu():
            return None
        device_name = name()
    # "NVIDIA H100 80GB HBM3" matches "H100"; "NVIDIA H100 NVL" matches both, and the longer key wins.
    known = [model for model in _PEAK_TFLOPS if all(word in device_name for word in model.split())]
    if not known:
        return None
    tflops = _PEAK_TFLOPS[max(known, key=len)].get(dtype)
    return None if tflops is None else tflops * 1e12


def synchronize() -> None:
    """Wait until this rank's GPU has finished its queued work; does nothing on a CPU."""
    if on_gpu():
        torch.cuda.synchronize()


def memory_high_water() -> int:
    """Return the peak memory of this process in bytes: torch's reserved GPU memory, or on a CPU its resident set."""
    if on_gpu():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def make_deterministic(wanted: bool) -> None:
    """Make GPU kernels sum in a reproducible order, or allow the fastest; CPU kernels are always reproducible.

    Call it before the model is built: Transformer Engine's attention reads the setting then.
    """
    if on_gpu():
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0" if wanted else "1"
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it; it costs some MiB
        torch.use_deterministic_algorithms(wanted)
        # Deterministic mode also fills each new tensor with nan: a pass over memory that nothing here needs.
        torch.utils.deterministic.fill_uninitialized_memory = False


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on this rank's device; to a GPU it is copied asynchronously from pinned memory."""
    if not on_gpu() or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device(), non_blocking=True)


def host_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return host memory to fill and pass to `to_device`, which then needs no extra copy into pinned memory.

    On a GPU machine it is pinned. torch caches pinned memory, and reuses it once the copies from it have finished.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=on_gpu())


class SideStream:
    """A CUDA stream beside the one that computes; on a CPU there is none, and nothing to wait for."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream(device()) if on_gpu() else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Run this thread's copies and kernels on the stream."""
        if self._stream is None:
            yield
            return
        torch.cuda.set_device(device())  # the current device is per thread, and starts as GPU 0
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Return an event after everything that is on the stream now; None on a CPU."""
        return None if self._stream is None else self._stream.record_event()

    def hand_over(self, mark: Any, tensors: Iterable[torch.Tensor]) -> None:
        """Make the calling thread's stream wait for an event, and use tensors made before it; the host does not wait.

        Args:
            mark: of `mark`.
            tensors: what the calling thread's stream will read.
        """
        if mark is None:
            return
        stream = torch.cuda.current_stream()
        stream.wait_event(mark)
        for tensor in tensors:
            if tensor.is_cuda:
                # torch's allocator knows only the stream that made the tensor, and could reuse its memory too early.
                tensor.record_stream(stream)


def install() -> None:
    """Prepare for Megatron-core: check its version and, without CUDA, let the CPU stand in for the device.

    Call it before importing anything of mcore that makes tensors. A second call does nothing.

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
    """Hide mcore's warnings that come at every start and need no action; only rank 0 shows its other warnings."""
    # By environment variable: torch.distributed is not initialized this early.
    for message in _AT_EVERY_START:
        warnings.filterwarnings("ignore", message=message)
    for logger, message in _LOGGED_AT_EVERY_START.items():
        _hide(logger, message)
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        warnings.filterwarnings("ignore", module=r"megatron\.")


def _cpu_stands_in() -> None:
    # There is one random state on a CPU: the "CUDA" state is that of the host's default generator.
    generator = torch.default_generator
    torch.cuda.current_device = lambda: _CPU
    torch.cuda.synchronize = lambda device=None: None
    # mcore 0.19 asks for the stream before it reduces gradients, and uses it only with CUDA graphs.
    torch.cuda.current_stream = lambda device=None: None
    torch.cuda.manual_seed = lambda seed: generator.manual_seed(seed)
    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = lambda device="cuda": generator.get_state()
    torch.cuda.set_rng_state = torch.cuda.random.set_rng_state = lambda state, device="cuda": _restore(state)
    # torch lists the factories that `with torch.device("meta")` redirects by identity, once. It must see the originals.
    # Otherwise models built in such a context (transformers does this) stay uninitialized, without an error.
    torch.utils._device._device_constructors()
    for factory in _FACTORIES:
        setattr(torch, factory, _on_cpu(getattr(torch, factory)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = _named_for_the_optimizer(torch.Tensor.type)
    from megatron.core.tensor_parallel import random as mcore_random

    mcore_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: _restore(state)
    # The tracker forks the only generator there is, so its warning that the CPU's state changed means nothing.
    _hide(mcore_random.__name__, "CPU RNG state changed")


def _restore(state: torch.Tensor) -> None:
    torch.default_generator.set_state(state)


def _hide(logger: str, message: str) -> None:
    """Drop a logger's records that contain a message, and no others."""
    logging.getLogger(logger).addFilter(lambda record: message not in record.getMessage())


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        wanted = kwargs.get("device")
        if wanted is not None and str(wanted).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return make


def _named_for_the_optimizer(type_of: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `Tensor.type` that gives mcore's optimizers CUDA's names; they raise for any other."""

    def answer(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = type_of(self, *args, **kwargs)
        # Everybody else must see the true name: torch and transformers choose code by it.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(result, str) and caller.startswith(_OPTIMIZER_MODULES):
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    return answer
