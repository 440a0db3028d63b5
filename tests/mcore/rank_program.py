"""What runs on the ranks of tests/mcore: tiny models, tiny batches, and what each layout made of them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.mcore import groups
from megacode.mcore.build import build
from megacode.mcore.nodes import NODE
from megacode.mcore.rank_model import RankModel

SOURCES, SEQ_LENGTH, BATCH, MICRO, VOCAB = 2, 32, 8, 2, 250


@dataclass
class Batch:
    """One micro-batch, as data.loader would make it."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None
    source_ids: Tensor
    samples: Tensor
    digests: Tensor | None = None
    fim_tokens: Tensor | None = None


def run_config(
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    dtype: str = "fp32",
    seed: int = 7,
    precision: dict[str, Any] | None = None,
) -> RunConfig:
    """Return the config of a tiny model; 250 tokens, so that the embedding is padded, differently with TP 1 and 2."""
    shape = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4}
    rate = {"schedule": "constant", "peak": 1e-3}
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "model": {**shape, "num_query_groups": 2, "vocab_size": VOCAB, **(model or {})},
            "sources": {"code": {"path": "code"}, "text": {"path": "text"}},
            "phases": [{"name": "all", "iterations": 100, "blend": {"code": 1, "text": 1}, "learning_rate": rate}],
            "train": {
                "seq_length": SEQ_LENGTH,
                "global_batch_size": BATCH,
                "micro_batch_size": MICRO,
                **(train or {}),
            },
            "parallel": {"distributed_optimizer": False, **(parallel or {})},
            "precision": {"dtype": dtype, **(precision or {})},
        }
    )


def microbatch(iteration: int, index: int, isolated: bool = False) -> Batch:
    """Return micro-batch `index` of an iteration's global batch: the same tokens in every layout.

    Half of the tokens follow from the one before them, so that there is something to learn; some labels are masked.
    """
    generator = torch.Generator().manual_seed(1000 * iteration + index)
    tokens = torch.randint(0, VOCAB, (MICRO, SEQ_LENGTH + 1), generator=generator)
    tokens[:, 1::2] = (tokens[:, :-1:2] * 3 + 1) % VOCAB
    mask = (torch.rand(MICRO, SEQ_LENGTH, generator=generator) < 0.9).float()
    borders = torch.tensor([0, 5, 20, SEQ_LENGTH, SEQ_LENGTH + 1 + index, MICRO * SEQ_LENGTH], dtype=torch.int32)
    return Batch(
        tokens[:, :-1].contiguous(),
        tokens[:, 1:].contiguous(),
        mask,
        torch.arange(SEQ_LENGTH).expand(MICRO, -1),
        borders if isolated else None,
        torch.tensor([index % SOURCES, (index // 2) % SOURCES]),
        BATCH * iteration + MICRO * index + torch.arange(MICRO),
    )


def microbatches(rank_model: RankModel, iteration: int) -> list[Batch]:
    """Return this rank's micro-batches of an iteration."""
    ranks, isolated = rank_model.ranks, rank_model.config.train.isolate_documents
    count = BATCH // MICRO
    return [microbatch(iteration, index, isolated) for index in range(count)][ranks.dp_rank :: ranks.dp_size]


def started(config: RunConfig) -> RankModel:
    """Return the parts of a run on the ranks there are, where memory that nobody has written yet is nan."""
    torch.set_num_threads(1)
    # This alone makes torch fill it. The public function imports torch's compiler first: two seconds a process.
    torch._C._set_deterministic_algorithms(True)
    return build(config, groups.start(config.parallel, config.seed), VOCAB)


def iterate(rank_model: RankModel, first: int, count: int) -> list[dict[str, Any]]:
    """Train some iterations; return what each said."""
    from megacode.mcore.step import train_step

    results = []
    for iteration in range(first, first + count):
        result = train_step(rank_model, microbatches(rank_model, iteration), 4e-4 * (iteration + 1), SOURCES)
        results.append(vars(result))
    return results


def layouts(cases: dict[str, dict[str, Any]], iterations: int = 10) -> dict[str, Any]:
    """Train each case's config from its initial weights.

    Returns:
        By case: what each `iteration` said, the `logits` of some sequences after them (a sum and one value), their
        `losses` without training, the number of tensor-parallel `collectives` of an iteration, and how many
        `parameters` this rank holds.
    """
    return {name: _layout(dict(case), iterations) for name, case in cases.items()}


def _layout(case: dict[str, Any], iterations: int) -> dict[str, Any]:
    from megacode.mcore.step import evaluate, logits

    spoil = case.pop("spoil", None)
    rank_model = started(run_config(**case))
    if spoil:
        _SPOILERS[spoil](rank_model)
    results = iterate(rank_model, 0, iterations - 1)
    with counted_collectives() as count:
        results += iterate(rank_model, iterations - 1, 1)
    found = logits(rank_model, microbatch(0, 0).tokens).double()
    return {
        "iterations": results,
        "logits": [found.sum().item(), found[1, 7, 9].item()],
        "losses": vars(evaluate(rank_model, microbatches(rank_model, iterations), SOURCES)),
        "collectives": count[0],
        "parameters": sum(p.numel() for chunk in rank_model.chunks for p in chunk.parameters()),
    }


def gradients(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by case, the norm of each parameter's gradient in the first iteration."""
    return {name: _gradients(dict(case)) for name, case in cases.items()}


def _gradients(case: dict[str, Any]) -> dict[str, float]:
    from megacode.mcore import gradient_norms
    from megacode.mcore.step import train_step

    spoil = case.pop("spoil", None)
    rank_model = started(run_config(**case))
    if spoil:
        _SPOILERS[spoil](rank_model)
    found: dict[str, float] = {}

    def accepts(loss: float, grad_norm: float) -> bool:
        found.update(gradient_norms.by_parameter(rank_model))
        return True

    train_step(rank_model, microbatches(rank_model, 0), 1e-3, SOURCES, accepts)
    return found


@contextmanager
def counted_collectives() -> Iterator[list[int]]:
    """Count the collectives of the tensor-parallel group."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import mappings

    count, originals = [0], {}
    group = parallel_state.get_tensor_model_parallel_group()
    places = [
        (torch.distributed, "all_reduce"),
        (mappings, "dist_all_gather_func"),
        (mappings, "dist_reduce_scatter_func"),
    ]
    for place, name in places:
        originals[place, name] = getattr(place, name)
        setattr(place, name, partial(_counting, originals[place, name], group, count))
    yield count
    for (place, name), original in originals.items():
        setattr(place, name, original)


def _counting(original: Any, counted: Any, count: list[int], *args: Any, **kwargs: Any) -> Any:
    count[0] += kwargs.get("group") is counted
    return original(*args, **kwargs)


def _unmark_norms(rank_model: RankModel) -> None:
    for chunk in rank_model.chunks:
        for parameter in chunk.parameters():
            parameter.sequence_parallel = False


def _do_not_sum_head_norms(rank_model: RankModel) -> None:
    rank_model.chunks[0].config.qk_layernorm = False


def _batch_p2p(rank_model: RankModel) -> None:
    rank_model.chunks[0].config.batch_p2p_comm = True


def _overlap_p2p(rank_model: RankModel) -> None:
    rank_model.chunks[0].config.overlap_p2p_comm = True


def _fuse_cross_entropy(rank_model: RankModel) -> None:
    from megatron.core.models.common.language_module.language_module import LanguageModule

    from megacode.mcore.sharding import bare

    rank_model.chunks[0].config.cross_entropy_loss_fusion = True
    model = bare(rank_model.chunks[0])
    model.compute_language_model_loss = LanguageModule.compute_language_model_loss.__get__(model)


def _contiguous_places(rank_model: RankModel) -> None:
    """As if rank r of c held the r-th c-th of each sequence: the positions it would then begin with, on rank 0."""
    from megacode.mcore.sharding import bare

    table = bare(rank_model.chunks[0]).rotary_pos_emb
    table._context_group = None
    needed = table.get_rotary_seq_len
    table.get_rotary_seq_len = lambda *arguments: needed(*arguments) // rank_model.ranks.cp_size


def _slices_alone(rank_model: RankModel) -> None:
    """As if each rank's slice were a matrix: Megatron-core's default."""
    from torch import distributed

    optimizer = rank_model.optimizer
    optimizer._tensor = distributed.new_group([rank_model.ranks.rank], use_local_synchronization=True)


_SPOILERS = {
    "slices alone": _slices_alone,
    "contiguous places": _contiguous_places,
    "unmarked norms": _unmark_norms,
    "unsummed head norms": _do_not_sum_head_norms,
    "batched p2p": _batch_p2p,
    "overlapped p2p": _overlap_p2p,
    "fused cross entropy": _fuse_cross_entropy,
}


def recomputations(cases: dict[str, dict[str, Any]], iterations: int = 3) -> dict[str, Any]:
    """Train each case's config from its initial weights, once for each way to recompute activations.

    Returns:
        By case and way: what each `iteration` said, and a digest of this rank's parameters after them.
    """
    ways = ("none", "selective", "full")
    return {name: {way: _recomputed(dict(case), way, iterations) for way in ways} for name, case in cases.items()}


def _recomputed(case: dict[str, Any], way: str, iterations: int) -> dict[str, Any]:
    rank_model = started(run_config(**{**case, "parallel": {**case.get("parallel", {}), "recompute": way}}))
    results = iterate(rank_model, 0, iterations)
    hashed = hashlib.sha256()
    for chunk in rank_model.chunks:
        for parameter in chunk.parameters():
            hashed.update(parameter.detach().float().numpy().tobytes())
    return {"iterations": results, "parameters": hashed.hexdigest()}


def several(calls: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Call several functions of this file with their arguments; return what each returned."""
    return {name: globals()[name](**arguments) for name, arguments in calls.items()}


def decayed(cases: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Make one step without gradients; return, by case, the names of the parameters that it made smaller."""
    return {name: _decayed(case) for name, case in cases.items()}


def _decayed(case: dict[str, Any]) -> list[str]:
    from megacode.mcore import optimizer

    rank_model = started(run_config(**case))
    named = [pair for chunk in rank_model.chunks for pair in chunk.module.named_parameters()]
    before = [parameter.detach().clone() for _, parameter in named]
    for chunk in rank_model.chunks:
        chunk.zero_grad_buffer()
    optimizer.set_learning_rate(rank_model.optimizer, 0.1)
    optimizer.update(rank_model.optimizer, optimizer.measure(rank_model.optimizer, 1), 1.0)
    pairs = zip(named, before, strict=True)
    return [name for (name, now), then in pairs if now.detach().norm() < 0.995 * then.norm()]


def policies() -> list[int]:
    """Return the scheduling policies of this rank's threads, the main one first, when all groups are made."""
    started(run_config())
    threads = sorted(int(name) for name in os.listdir("/proc/self/task"))
    assert threads[0] == os.getpid()
    return [os.sched_getscheduler(thread) for thread in threads]


def arrivals(slowed_by: float) -> list[float]:
    """Train two iterations, the last rank slowed in the second; return after how many seconds this rank arrived."""
    from megacode.mcore import gradients

    rank_model = started(run_config())
    found = []
    for iteration in range(2):
        if iteration == 1 and rank_model.ranks.rank == rank_model.ranks.world_size - 1:
            rank_model.chunks[0].register_forward_pre_hook(lambda *unused: time.sleep(slowed_by))
        gradients.time_the_device(iteration == 1)
        iterate(rank_model, iteration, 1)
        found.append(gradients.arrival())
    gradients.time_the_device(False)
    return found


def skips(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Spoil the loss on the last rank alone; return, by layout, what a rank said, and whether a parameter moved."""
    return {name: _skip(case) for name, case in cases.items()}


def _skip(case: dict[str, Any]) -> dict[str, Any]:
    from megacode.mcore.step import train_step

    rank_model = started(run_config(**case))
    iterate(rank_model, 0, 1)
    before = [p.detach().clone() for chunk in rank_model.chunks for p in chunk.parameters()]
    batches = microbatches(rank_model, 1)
    if rank_model.ranks.rank == rank_model.ranks.world_size - 1:
        batches[0].loss_mask[0, 0] = 3e38
    result = train_step(rank_model, batches, 1e-3, SOURCES)
    after = [p.detach() for chunk in rank_model.chunks for p in chunk.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return {"skipped": result.skipped, "unchanged": same, "next": iterate(rank_model, 1, 1)[0]["loss"]}


def resumes(cases: dict[str, list[dict[str, Any]]], directory: str, before: int = 3, after: int = 3) -> dict[str, Any]:
    """Save under each case's first config, and go on under each of its configs from the checkpoint.

    Every resumed run is built with another seed, so that nothing but the checkpoint can make it equal.

    Returns:
        By case: the iterations of the uninterrupted run after the save and those of each resumed run.
    """
    from megacode.checkpoint import tensors

    found = {}
    for name, configs in cases.items():
        path = Path(directory) / name
        rank_model = started(run_config(**configs[0]))
        iterate(rank_model, 0, before)
        save(rank_model, path)
        uninterrupted = iterate(rank_model, before, after)
        resumed = []
        for config in configs:
            rank_model = started(run_config(**{**config, "seed": 99}))
            tensors.load(rank_model, path)
            resumed.append(iterate(rank_model, before, after))
            _assert_own_counters(rank_model)
        found[name] = {"uninterrupted": uninterrupted, "resumed": resumed}
    return found


def writes(
    layouts: dict[str, dict[str, Any]],
    directory: str,
    dtype: str,
    model: dict[str, Any],
    precision: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Save after two iterations under each layout; return the losses of the two iterations after that."""
    found = {}
    for name, layout in layouts.items():
        rank_model = started(run_config(parallel=layout, dtype=dtype, model=model, train=train, precision=precision))
        stand_on_nodes(rank_model)
        iterate(rank_model, 0, 2)
        save(rank_model, Path(directory) / name)
        found[name] = [result["loss"] for result in iterate(rank_model, 2, 2)]
    return found


def reads(
    layouts: dict[str, dict[str, Any]],
    directory: str,
    dtype: str,
    model: dict[str, Any],
    names: list[str],
    precision: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Load each of some checkpoints under each layout, into one model after the other; return losses as `writes`."""
    from megacode.checkpoint import tensors

    found = {}
    for own, layout in layouts.items():
        changes = {"model": model, "train": train, "precision": precision}
        rank_model = started(run_config(parallel=layout, dtype=dtype, seed=99, **changes))
        found[own] = {}
        for name in names:
            tensors.load(rank_model, Path(directory) / name)
            _assert_weights_of(rank_model, Path(directory) / name)
            found[own][name] = [result["loss"] for result in iterate(rank_model, 2, 2)]
    return found


def gradients_of(case: dict[str, Any]) -> dict[str, tuple[str, Tensor]]:
    """Return the prepared gradients of the first iteration by parameter: the type they are held in, and as fp32."""
    from megacode.mcore import gradient_norms, optimizer, optimizer_state
    from megacode.mcore.step import backward

    rank_model = started(run_config(**case))
    losses = backward(rank_model, microbatches(rank_model, 0), SOURCES)
    optimizer.measure(rank_model.optimizer, sum(losses.tokens))
    names = gradient_norms.names(rank_model)
    optimizer_state.prime(rank_model.optimizer)
    found = {}
    for held in optimizer_state.held(rank_model.optimizer):
        gradient = optimizer.gradient_of(held.main)
        found[names[id(held.parameter)]] = (str(gradient.dtype), gradient.float())
    return found


def rounded_alike(case: dict[str, Any], iterations: int = 12) -> dict[str, Any]:
    """Train; fp32 masters are rounded to bf16 weights with halfway cases away from zero, as remainders need it.

    Returns:
        What each `iteration` said, and the bits of all `weights` and `masters`.
    """
    from megacode.mcore import optimizer_state

    rank_model = started(run_config(**case))
    [inner] = rank_model.optimizer.chained_optimizers
    adam, step = inner.optimizer, inner.optimizer.step

    def step_and_round() -> None:
        step()
        for param, state in adam.state.items():
            if state["master_param"].dtype == torch.float32:
                # Half a unit in the last place of bf16 is added to the magnitude, and the rest cut off.
                bits = state["master_param"].view(torch.int32) + 0x8000
                param.copy_((bits & -0x10000).view(torch.float32))

    adam.step = step_and_round
    said = iterate(rank_model, 0, iterations)
    held = list(optimizer_state.held(rank_model.optimizer))
    masters = [one.tensors["model"] for one in held]
    whole = [weight if isinstance(weight, Tensor) else weight.joined() for weight in masters]
    return {
        "iterations": said,
        "weights": [one.parameter.detach().view(torch.int16).tolist() for one in held],
        "masters": [weight.view(torch.int32).tolist() for weight in whole],
    }


def reduced(parts: list[float]) -> float:
    """Let each rank's bf16 gradients be its part; return what they are reduced to, the same everywhere."""
    precision = {"dtype": "bf16", "gradients": "bf16"}
    rank_model = started(run_config(parallel={"distributed_optimizer": True}, precision=precision))
    [chunk] = rank_model.chunks
    for buffer in chunk.buffers:
        buffer.grad_data.fill_(parts[rank_model.ranks.rank])
    chunk.finish_grad_sync()
    found = set()
    rank_model.optimizer.prepare_grads()
    for inner in rank_model.optimizer.chained_optimizers:
        for param in inner.get_parameters():
            found |= set(param.decoupled_grad.tolist())
    [value] = found
    return value


def saved_state(
    case: dict[str, Any], path: Path, load: Path | None = None, iterations: int = 0, weights_only: bool = False
) -> dict[str, Tensor]:
    """Load a checkpoint if there is one, train, save; return weights and moments as they are on disk."""
    from megacode.checkpoint import tensors
    from megacode.checkpoint.reader import Reader

    rank_model = started(run_config(**case))
    if load is not None:
        tensors.load(rank_model, load, weights_only=weights_only)
    iterate(rank_model, 0, iterations)
    save(rank_model, path)
    reader = Reader(path)
    return {name: reader.whole(name) for name in reader.tensors if name.startswith(("model.", "exp_avg"))}


def changes(layouts: dict[str, dict[str, Any]], directory: str, names: list[str]) -> dict[str, Any]:
    """Train with AdamW, Muon and AdamW, two iterations each; save, train two more, and resume from checkpoints there.

    Returns:
        By layout: the losses of all 8 iterations, and those of the last two from the own checkpoint and those of names.
    """
    from megacode.checkpoint import tensors
    from megacode.mcore import optimizer

    found: dict[str, Any] = {}
    for own, layout in layouts.items():
        plain = run_config(parallel=layout)
        muon = plain.phases[0].model_copy(update={"name": "muon", "optimizer": "muon"})
        config = plain.model_copy(update={"phases": (*plain.phases, muon)})
        rank_model = started(config)
        results = iterate(rank_model, 0, 2)
        for first, kind in ((2, "muon"), (4, "adamw")):
            assert optimizer.use(config, rank_model.optimizer, kind)
            results += iterate(rank_model, first, 2)
        save(rank_model, Path(directory) / own)
        results += iterate(rank_model, 6, 2)
        found[own] = {"losses": [result["loss"] for result in results], "resumed": {}}
        for name in (own, *names):
            other = started(config.model_copy(update={"seed": 99}))
            tensors.load(other, Path(directory) / name)
            found[own]["resumed"][name] = [result["loss"] for result in iterate(other, 6, 2)]
    return found


def stand_on_nodes(rank_model: RankModel, ranks_per_node: int = 2) -> None:
    """Let these ranks be those of several nodes."""
    os.environ[NODE] = f"n{rank_model.ranks.rank // ranks_per_node}"


def _assert_weights_of(rank_model: RankModel, path: Path) -> None:
    """Every weight of this rank is the stored one, rounded: also where other ranks have read it."""
    from megacode.checkpoint.reader import Reader
    from megacode.mcore import checkpoint_pieces, remainder

    held = checkpoint_pieces.weights(rank_model)
    stored = [replace(piece, data=torch.full(piece.data.shape, torch.nan)) for piece in held]
    Reader(path).fill(stored)
    assert held
    away_from_zero = rank_model.config.precision.masters == "bf16_remainder"
    for mine, read in zip(held, stored, strict=True):
        rounded = remainder.split(read.data)[0] if away_from_zero else read.data.to(mine.data.dtype)
        assert torch.equal(mine.data, rounded), mine.name


def shares(directory: str) -> dict[str, Any]:
    """Save and load on ranks of two nodes; return what this rank `created` and `opened` by file, and `read`."""
    from megacode.checkpoint import tensors

    rank_model = started(run_config(parallel={"distributed_optimizer": True}))
    stand_on_nodes(rank_model)
    iterate(rank_model, 0, 1)
    with _counted_files(Path(directory)) as written:
        save(rank_model, Path(directory))
    with _counted_files(Path(directory)) as loaded:
        tensors.load(rank_model, Path(directory))
    _assert_weights_of(rank_model, Path(directory))
    created = {name: count for name, count in written.opened.items() if name != "index.json"}
    return {"created": created, "opened": dict(loaded.opened), "read": loaded.bytes}


class _Files:
    """Which files below a directory this process opens, how often, and how many bytes it reads of them."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.opened, self.bytes, self.counting = directory, Counter[str](), 0, True

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.counting and event == "open" and str(arguments[0]).startswith(f"{self.directory}/"):
            self.opened[Path(str(arguments[0])).name] += 1


@contextmanager
def _counted_files(directory: Path) -> Iterator[_Files]:
    counted, preadv = _Files(directory), os.preadv

    def counting(*arguments: Any) -> int:
        count = preadv(*arguments)
        counted.bytes += count
        return count

    sys.addaudithook(counted.hear)  # there is no way to remove one
    os.preadv = counting
    yield counted
    os.preadv, counted.counting = preadv, False


def fails_together(directory: str) -> list[str]:
    """Load a checkpoint of which rank 1 sees one file less, and one that is not there; return what was said."""
    import shutil

    from megacode.base.errors import CheckpointError
    from megacode.checkpoint import tensors

    rank_model = started(run_config(parallel={"distributed_optimizer": True}))
    stand_on_nodes(rank_model, 1)
    whole = Path(directory) / "whole"
    save(rank_model, whole)
    if rank_model.ranks.rank == 1:
        shutil.copytree(whole, torn := Path(directory) / "torn")
        (torn / "shard_00001.safetensors").unlink()
    said = []
    for name in ("torn" if rank_model.ranks.rank == 1 else "whole", "absent"):
        try:
            tensors.load(rank_model, Path(directory) / name)
        except CheckpointError as error:
            said.append(str(error))
    return said


def save(rank_model: RankModel, path: Path) -> None:
    """Write a checkpoint; every rank returns when it is whole."""
    from megacode.checkpoint import tensors

    path.mkdir(exist_ok=True)
    tensors.save(rank_model, path)
    groups.barrier()


def _assert_own_counters(rank_model: RankModel) -> None:
    from megacode.mcore.optimizer import adams

    for adam in adams(rank_model.optimizer):
        counters = [state["step"] for state in adam.state.values()]
        assert len({counter.data_ptr() for counter in counters}) == len(counters)
        assert len({counter.item() for counter in counters}) == 1


def joins(parallel: dict[str, Any]) -> list[Any]:
    """Return how the ranks see themselves and each other."""
    ranks = groups.start(run_config(parallel=parallel).parallel, 1)
    told = groups.broadcast_object({"from": ranks.rank}, source=1)
    anyone = list(groups.any_of(ranks.rank == 1, False))
    groups.barrier()
    groups.stop()
    return [vars(ranks), told, anyone]


def threads_of_layouts(layouts: list[dict[str, Any]]) -> list[int]:
    """Train one iteration under each layout in turn; return the threads of this rank after each, and after the end."""
    found = [_threads_of_layout(layout) for layout in layouts]
    groups.stop()
    return [*found, _threads()]


def _threads_of_layout(layout: dict[str, Any]) -> int:
    iterate(started(run_config(parallel=layout)), 0, 1)
    return _threads()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def idle() -> dict[str, Any]:
    """Join, and return how many groups this rank has, and its threads by their names."""
    from collections import Counter

    from torch.distributed import distributed_c10d

    groups.start(run_config().parallel, 1)
    made = len(distributed_c10d._world.pg_names)
    names = Counter((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    groups.barrier()
    groups.stop()
    return {"groups": made, "threads": dict(names)}


def compiler() -> dict[str, Any]:
    """Return what is `imported` that no rank needs, whether mcore `fuses` by it, and whose `compile` torch has."""
    from megatron.core import jit

    def function() -> None:
        pass

    return {
        "imported": [
            name for name in ("torch._inductor", "torch._dynamo.convert_frame", "wandb") if name in sys.modules
        ],
        "fuses": jit.jit_fuser(function) is not function,
        "compile": torch.compile.__module__,
    }
