"""Muon for the matrices of the blocks, AdamW for all other parameters; both in one optimizer with mcore's interface.

For a whole matrix W with gradient G, learning rate r, momentum m and weight decay d:

    B <- m B + (1 - m) G              momentum; the factor 1 - m cancels in the orthogonalization
    U  = m B + (1 - m) G              with Nesterov, else B
    O  = orthogonalized(U)            about U V^T of its singular value decomposition
    W <- (1 - r d) W - r scale(W) O

Momentum is elementwise, so each tensor-parallel rank keeps that of its slice. O is not: slices are gathered, one rank
computes O of the whole matrix, and each gets its slice back. Queries, keys and values are three matrices (of all heads
together), gate and up projection two. So every layout trains the same model. Of several parameters, each
tensor-parallel rank computes some, none is computed twice.

A phase may train the matrices with AdamW instead. What is held where stays the same, and so does AdamW's state of the
other parameters; the state of the matrices starts at zero.

Sources: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); Liu et al., Muon is Scalable for
LLM Training (2025), algorithm 1 for the distribution over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.config.training import OptimizerName
from megacode.mcore.matrices import stacks
from megacode.mcore.newton_schulz import orthogonalized, step_scale
from megacode.mcore.owners import Owned, Shares
from megacode.mcore.sharding import model_state

MOMENTUM = "momentum"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MuonOptimizer:
    """The optimizer of a run in which a phase trains with Muon; it stands where mcore's optimizers stand.

    Args:
        config: of the run.
        chunks: of `build_model`, not sharded by mcore.

    Attributes:
        kind: the present optimizer of the matrices.
        optimizer: torch's AdamW of all that AdamW trains at present.
    """

    is_stub_optimizer = False

    def __init__(self, config: RunConfig, chunks: list[Any]) -> None:
        from megatron.core import parallel_state

        self._config, self._settings = config, config.train.muon
        self._tensor = parallel_state.get_tensor_model_parallel_group()
        self._model_parallel = parallel_state.get_model_parallel_group()
        parameters = _parameters(chunks)
        self._stacks = stacks(config.model, self._tensor.size(), parameters)
        copies = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self._shares = Shares(parameters, set(self._stacks), copies, config.parallel.distributed_optimizer)
        self._muon: dict[str, Any] = {"params": [], "wd_mult": 1.0, "lr": 0.0, "weight_decay": 0.0}
        self._momentum: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW([{"params": []}], lr=0.0)
        self.kind: OptimizerName = config.optimizer_in(config.phases[0])
        self._arrange()

    # What is held, and its state.

    @property
    def owned(self) -> list[Owned]:
        """The runs of elements that this rank updates."""
        return self._shares.owned

    @property
    def sharded(self) -> bool:
        """Whether each element is updated by one data-parallel rank only."""
        return self._shares.sharded

    def state_of(self, owned: Owned) -> dict[str, Tensor]:
        """Return the state of a run by name: `momentum`, or AdamW's `exp_avg` and `exp_avg_sq`; fp32, of its shape."""
        if owned.name in self._momentum:
            return {MOMENTUM: self._momentum[owned.name]}
        state = self.optimizer.state[owned.main]
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def use(self, kind: OptimizerName) -> bool:
        """Train the matrices with Muon or AdamW from now on, with their state at zero; return whether that is new."""
        if kind == self.kind:
            return False
        self.kind = kind
        self._arrange()
        return True

    def steps(self, *, of_matrices: bool) -> int | None:
        """Return how many steps AdamW has done with the matrices, or with all else; None if this rank has none."""
        for owned in self.owned:
            if owned.is_matrix == of_matrices and owned.main in self.optimizer.state:
                return int(self.optimizer.state[owned.main]["step"])
        return None

    def set_steps(self, count: int, *, of_matrices: bool) -> None:
        """Set how many steps AdamW has done with the matrices, or with all else."""
        for owned in self.owned:
            if owned.is_matrix == of_matrices and owned.main in self.optimizer.state:
                self.optimizer.state[owned.main]["step"].fill_(count)

    def init_state_fn(self, _: Any) -> None:
        """Do nothing: all state exists from the beginning."""

    def _arrange(self) -> None:
        """Distribute what is held to Muon and AdamW; AdamW's state of what it keeps stays."""
        muon = [owned for owned in self.owned if owned.is_matrix and self.kind == "muon"]
        adam = [owned for owned in self.owned if owned not in muon]
        self._momentum = {owned.name: torch.zeros_like(owned.main) for owned in muon}
        self._muon["params"] = [owned.main for owned in muon]
        exempt = {owned for owned in adam if self._exempt(owned)}
        groups = [
            {"params": [owned.main for owned in adam if (owned in exempt) == free], "wd_mult": 0.0 if free else 1.0}
            for free in (False, True)
        ]
        kept = self.optimizer.state
        self.optimizer = torch.optim.AdamW(groups, lr=0.0)
        for owned in adam:
            # torch's fused kernel expects its counter where the parameter is.
            state = kept.get(owned.main) or {"step": torch.zeros((), device=owned.main.device)}
            for name in ("exp_avg", "exp_avg_sq"):
                state.setdefault(name, torch.zeros_like(owned.main))
            self.optimizer.state[owned.main] = state

    def _exempt(self, owned: Owned) -> bool:
        kinds = self._config.train.weight_decay_exempt
        embeds = owned.name.endswith("embedding.word_embeddings.weight")
        embeds = embeds or getattr(owned.parameter, "shared_embedding", False)
        return ("norms" in kinds and owned.parameter.dim() == 1) or ("embeddings" in kinds and embeds)

    # The interface of mcore's optimizers.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups, and Muon's."""
        return [*self.optimizer.param_groups, self._muon]

    def get_parameters(self) -> list[Tensor]:
        """Return all that this rank updates, fp32."""
        return [owned.main for owned in self.owned]

    def zero_grad(self) -> None:
        """Forget the gradients; mcore's buffer keeps them until the next iteration clears it."""
        for owned in self.owned:
            owned.main.grad = None

    def prepare_grads(self) -> bool:
        """Let the gradients point into mcore's buffer, where they have been summed over ranks."""
        for owned in self.owned:
            owned.main.grad = owned.gradient
        return False

    def get_main_grads_for_grad_norm(self) -> list[Tensor]:
        """Return the gradients that count in the global norm: of copies on several ranks only one does."""
        from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
        from megatron.core.transformer.module import param_is_not_shared

        mains = (owned.main for owned in self.owned)
        return [
            main.grad
            for main in mains
            if main.grad is not None and param_is_not_shared(main) and param_is_not_tensor_parallel_duplicate(main)
        ]

    def get_grad_stats_parallel_group(self) -> Any:
        """Return the ranks over which squares of gradients are summed: all, or those of one copy of the model."""
        return dist.group.WORLD if self.sharded else self._model_parallel

    @torch.no_grad()
    def step_with_ready_grads(self) -> bool:
        """Update what this rank owns, and exchange the new weights."""
        self.optimizer.step()
        self._step_matrices()
        self._shares.exchange()
        return True

    def _copy_main_params_to_model_params(self) -> None:
        self._shares.exchange()

    def _step_matrices(self) -> None:
        rate, decay = self._muon["lr"], self._muon["weight_decay"]
        for one, update in zip(self.matrices, self.updates(self._direction), strict=True):
            one.main.mul_(1.0 - rate * decay).sub_(update, alpha=rate)

    @property
    def matrices(self) -> list[Owned]:
        """What of this rank Muon updates at present."""
        # The largest first, so that the parameters of a round below cost about the same.
        return sorted((one for one in self.owned if one.name in self._momentum), key=lambda one: -one.main.numel())

    # Whole matrices, from the slices of tensor-parallel ranks.

    def updates(self, direction_of: Callable[[Owned], Tensor]) -> Iterator[Tensor]:
        """Yield this rank's slice of the scaled update of each of `matrices`, fp32; a tensor-parallel collective.

        Args:
            direction_of: returns what is orthogonalized of a slice, fp32 of its shape, in memory of its own.
        """
        # In each round every tensor-parallel rank computes one parameter. All of them own the same ones, in this order.
        owned, size = self.matrices, self._tensor.size()
        for first in range(0, len(owned), size):
            yield from self._round(owned[first : first + size], direction_of)

    def _round(self, owned: Sequence[Owned], direction_of: Callable[[Owned], Tensor]) -> list[Tensor]:
        directions = [direction_of(one).to(_DTYPES[self._settings.newton_schulz_dtype]) for one in owned]
        if self._tensor.size() == 1:
            return [self._whole_update(one, [each])[0].float() for one, each in zip(owned, directions, strict=True)]
        rank, size, slices = self._tensor.rank(), self._tensor.size(), list[Tensor]()
        for number, direction in enumerate(directions):
            received = [torch.empty_like(direction) for _ in range(size)] if number == rank else None
            dist.gather(direction, received, group=self._tensor, group_dst=number)
            slices = slices if received is None else received
        results = self._whole_update(owned[rank], slices) if rank < len(owned) else None
        for number, direction in enumerate(directions):
            dist.scatter(direction, results if number == rank else None, group=self._tensor, group_src=number)
        return [direction.float() for direction in directions]

    def _direction(self, owned: Owned) -> Tensor:
        """Advance the momentum of a slice, and return what is to be orthogonalized, in memory of its own."""
        gradient, momentum = owned.main.grad, self._momentum[owned.name]
        assert gradient is not None
        momentum.lerp_(gradient, 1.0 - self._settings.momentum)
        # A copy: tensor-parallel ranks receive the update in its place.
        return gradient.lerp(momentum, self._settings.momentum) if self._settings.nesterov else momentum.clone()

    def _whole_update(self, owned: Owned, slices: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor-parallel rank's slice of the scaled update of a parameter."""
        lying, settings = self._stacks[owned.name], self._settings
        updates = [
            orthogonalized(matrix, settings.newton_schulz_steps) * step_scale(settings, *matrix.shape)
            for matrix in lying.whole(slices)
        ]
        return lying.slices(updates, len(slices))


def _parameters(chunks: list[Any]) -> dict[str, Tensor]:
    """Return the parameters that this rank trains, by name; layers have their number in the whole model."""
    described = (entry for state in model_state(chunks).values() for entry in state.values())
    entries = (entry for entry in described if isinstance(getattr(entry, "data", None), Tensor))
    return {entry.key: entry.data for entry in entries if entry.data.requires_grad}
