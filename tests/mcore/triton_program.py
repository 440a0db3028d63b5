"""What runs on the ranks of test_triton_kernels.py: each kernel beside autograd's own of the same formula.

In processes of their own, since Triton decides when it is imported whether it compiles for a GPU or interprets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megacode.mcore import triton_kernels as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, VOCABULARY, IGNORED = 6, 6000, -100


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest distance of one tensor from what is expected, relative to that, absolute where that is 0."""
    relative = [(a - b).norm() / (b.norm() if b.any() else 1.0) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(relative).max())  # nan if one of them is


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def distances() -> dict[str, float]:
    """Return how far each kernel's results are from autograd's."""
    found = {"sum": _sum(), "loss": _loss(0.0), "loss and z-loss": _loss(0.3)}
    for centred in (True, False):
        for branches in (1, 2):
            found[f"{'LayerNorm' if centred else 'RMSNorm'}, {branches} branches"] = _norm(centred, branches)
    for groups, heads, size, turning in ((3, 1, 8, 8), (2, 4, 16, 16), (5, 3, 12, 12), (2, 2, 16, 6), (2, 1, 8, 0)):
        name = f"rotary positions of {groups} x {heads} heads of {size}, {turning} of which turn"
        found[name] = _rotary(groups, heads, size, turning)
    return found


def _sum() -> float:
    parts = [random(7, 301, seed=n) for n in range(3)]
    return apart([kernels.added(*parts)], [parts[0] + parts[1] + parts[2]])


def _norm(centred: bool, branches: int) -> float:
    x, weight = (random(5, 3, 40) + 0.5).requires_grad_(), random(40, seed=2).requires_grad_()
    plain = F.layer_norm(x, (40,), weight, None, 1e-5) if centred else F.rms_norm(x, (40,), weight, 1e-5)
    gradients = [random(5, 3, 40, seed=3 + n) for n in range(1 + branches)]
    expected = torch.autograd.grad([x * 1.0, *(plain * 1.0 for _ in range(branches))], (x, weight), gradients)
    x, weight = x.detach(), weight.detach()
    found = kernels.norm_backward(x, weight, 1e-5, centred, gradients[0], tuple(gradients[1:]))
    return apart([kernels.norm(x, weight, 1e-5, centred), *found], [plain.detach(), *expected])


def _rotary(groups: int, heads: int, size: int, turning: int) -> float:
    mixed, angles = random(6, 2, groups, heads + 2, size), random(6, turning // 2, seed=2)
    table = torch.cat((angles.cos(), angles.cos(), -angles.sin(), angles.sin()), dim=-1)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None, None, None]
    channels = torch.complex(mixed[..., : turning // 2], mixed[..., turning // 2 : turning]) * turns
    turned = torch.cat((channels.real, channels.imag, mixed[..., turning:]), dim=-1)
    found = kernels.rotary_split(mixed, table)
    expected = (turned[..., :-2, :].flatten(2, 3), turned[..., -2, :], mixed[..., -1, :])
    # A rotation's gradient is the rotation back: what went in comes out.
    return apart([*found, kernels.rotary_join(*found, table)], [*expected, mixed])


def _case(z_loss: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, labels, losses and the gradient with a z-loss; the last columns and one label do not count."""
    logits = 4 * random(TOKENS, VOCABULARY)
    logits[:, 4000:] = float("-inf")
    labels = torch.randint(0, 4000, (TOKENS,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    labels[2] = IGNORED
    leaf = logits.clone().requires_grad_()
    losses = F.cross_entropy(leaf, labels, reduction="none", ignore_index=IGNORED)
    trained_on = losses + z_loss * leaf.logsumexp(-1).square() * (labels != IGNORED)
    return logits, labels, losses.detach(), torch.autograd.grad(trained_on.sum(), leaf)[0]


def _loss(z_loss: float) -> float:
    logits, labels, losses, gradient = _case(z_loss)
    found = kernels.RowStatistics(TOKENS, logits.device)
    kernels.cross_entropy(logits, labels, found, 0, IGNORED, z_loss, statistics=True, gradient=True)
    counted = labels != IGNORED
    return apart([found.losses()[counted], logits], [losses[counted], gradient])


def sliced() -> float:
    """Return the distance of losses and gradient where each rank holds a slice of the vocabulary."""
    dist.init_process_group("gloo")
    z_loss = 0.3
    logits, labels, losses, gradient = _case(z_loss)
    rank, size = dist.get_rank(), dist.get_world_size()
    own = logits.chunk(size, dim=1)[rank].contiguous()
    found, first = kernels.RowStatistics(TOKENS, own.device), own.size(1) * rank
    kernels.cross_entropy(own, labels, found, first, IGNORED, z_loss, statistics=True, gradient=False)
    found.merge(dist.group.WORLD)
    kernels.cross_entropy(own, labels, found, first, IGNORED, z_loss, statistics=False, gradient=True)
    dist.destroy_process_group()
    counted = labels != IGNORED
    return apart([found.losses()[counted], own], [losses[counted], gradient.chunk(size, dim=1)[rank]])
