from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from megacode.mcore import device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what the CPU does where there is no CUDA")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    device.install()


def test_cuda_goes_on_being_absent_to_everyone_else() -> None:
    assert torch.cuda.is_available() is False
    assert device.backend() == "gloo"
    assert device.device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        (
            "models.gpt.gpt_model",
            "GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes, no new features.",
        ),
        ("transformer.transformer_layer", "Rewrapping ModuleSpec with module <class 'functools.partial'> to forward."),
        ("distributed.distributed_data_parallel", "DistributedDataParallel: full_param_layout not provided with use_"),
        ("tensor_parallel.random", "CPU RNG state changed within GPU RNG context"),
    ],
)
def test_records_that_come_at_every_start_are_dropped_and_no_others(
    caplog: pytest.LogCaptureFixture, logger: str, message: str
) -> None:
    for said in (message, "GPTModel has a new problem", "CPU RNG state is odd"):
        logging.getLogger(f"megatron.core.{logger}").warning(said)
    assert caplog.messages == ["GPTModel has a new problem", "CPU RNG state is odd"]


def test_installing_twice_changes_nothing() -> None:
    before = torch.zeros
    device.install()
    assert torch.zeros is before


@pytest.mark.parametrize("factory", ["zeros", "ones", "empty"])
def test_tensors_asked_for_on_cuda_are_made_on_the_cpu(factory: str) -> None:
    assert getattr(torch, factory)(2, device="cuda").device.type == "cpu"


@pytest.mark.parametrize("factory", ["zeros", "ones", "empty", "arange"])
def test_a_device_context_still_decides_where_tensors_are_made(factory: str) -> None:
    with torch.device("meta"):
        assert getattr(torch, factory)(2).device.type == "meta"


def test_the_tensor_type_is_a_cuda_type_to_mcores_optimizers_alone() -> None:
    assert torch.zeros(1).type() == "torch.FloatTensor"
    answer = eval("tensor.type()", {"__name__": "megatron.core.optimizer.clip_grads", "tensor": torch.zeros(1)})
    assert answer == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type(torch.float64).dtype is torch.float64


def test_the_random_state_of_the_device_is_the_cpus() -> None:
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "fp8", 1978.9),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA B200", "bf16", 2250.0),
    ],
)
def test_the_peak_of_known_gpus(name: str, dtype: str, tflops: float) -> None:
    assert device.peak_flops(dtype, name) == pytest.approx(tflops * 1e12)


def test_an_unknown_peak_is_none() -> None:
    assert device.peak_flops("bf16") is None
    assert device.peak_flops("bf16", "Some Other GPU") is None
    assert device.peak_flops("fp8", "NVIDIA A100-SXM4-80GB") is None


def test_moving_to_the_device_copies_nothing_on_a_cpu() -> None:
    tensor = torch.zeros(2)
    assert device.to_device(tensor) is tensor
    device.synchronize()
    assert device.name()


def test_the_memory_high_water_is_that_of_the_process() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    (seen,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    # Newer kernels sum their counters for the one and estimate them for the other, some hundred KiB apart.
    assert device.memory_high_water() >= seen - (2 << 20)
    assert seen > 10_000_000
