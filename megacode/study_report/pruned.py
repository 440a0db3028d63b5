"""Models whose checkpoint was deleted, known by the score files that are left: their scores are as good as ever.

A score file carries the clock, the fingerprints and the seal of its checkpoint; the run directory has the config. That
is enough to tell which state it was, and nothing else is known of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from megacode.base.errors import MegacodeError
from megacode.base.files import Json, RunDir, read_json
from megacode.checkpoint.state import TrainState
from megacode.metrics.reader import read_events
from megacode.report.run_record import iteration_of
from megacode.study.found import place_of, proven_plan
from megacode.study.identity import LearnedPast
from megacode.study.merging import merged_state


def pruned_states(
    directory: Path, nodes: Collection[str], starts: Collection[str], ids: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, RunDir, TrainState, str]]:
    """Yield node, run directory, state and seal of models below a directory that have scores and no checkpoint.

    Args:
        directory: of the runs.
        nodes: ids that are looked for.
        starts: what a run's first phase may have started from, as `LearnedPast` takes it.
        ids: of the states that are on disk, by the seal of their checkpoint.
    """
    seen: set[tuple[Path, int]] = set()
    # Sorted, so that of two runs of one state the same one is found each time.
    for file in sorted(directory.glob("**/eval/*@iter_*.json")):
        run, iteration = RunDir(file.parents[1]), iteration_of(file.name)
        if iteration < 0 or (run.path, iteration) in seen or run.checkpoint(iteration).exists():
            continue
        card = (read_json(file).get("model") or {}).get("megacode")
        # After a changed past was accepted, the config is not the one that all was learned with.
        if not isinstance(card, dict) or any(event.get("changed_past") for event in read_events(run, [])):
            continue
        try:
            state, names = _merged(card, ids) if card.get("merged") else _trained(run, card, starts)
        # A damaged card, or one of another version: its model is not trained, as far as can be told.
        except (MegacodeError, OSError, KeyError, TypeError, ValueError):
            continue
        for node in names:
            if node in nodes:
                seen.add((run.path, iteration))
                yield node, run, state, str(card["checkpoint_seal"])


def _state(card: Json, text: str) -> TrainState:
    """Return what a card tells of a deleted checkpoint."""
    return TrainState(
        iteration=int(card["iteration"]), consumed_samples=int(card["consumed_samples"]), phase=str(card["phase"]),
        fingerprints=card["fingerprints"], withheld=int(card.get("withheld") or 0), config=text,
        layout=card.get("layout") or {}, versions=card.get("versions") or {},
        tokenizer_hash=str((card.get("hashes") or {}).get("tokenizer") or ""),
    )  # fmt: skip


def _trained(run: RunDir, card: Json, starts: Collection[str]) -> tuple[TrainState, list[str]]:
    """Return what is known of a deleted checkpoint, and its id for each start."""
    state = _state(card, text := run.config.read_text(encoding="utf-8"))
    # Without tensors the run's plan is what knows the size of the vocabulary.
    vocabulary = int(read_json(run.plan).get("vocab_size") or 0)
    plan = proven_plan(text, state.fingerprints, state.consumed_samples, vocabulary)
    if plan is None:
        raise ValueError("the config proves another past")
    place = place_of(plan, state.consumed_samples)
    return state, [LearnedPast(plan, state.tokenizer_hash, start).at(*place) for start in starts]


def _merged(card: Json, ids: Mapping[str, Sequence[str]]) -> tuple[TrainState, list[str]]:
    """Return what is known of a deleted mean, and its ids; none where a checkpoint that it was made of is gone, too."""
    parts = card["merged"]["of"]
    # As many names each, one for each name of the trunk's start; see `study.found`.
    names = zip(*(ids.get(part["seal"], ()) for part in parts), strict=True)
    weights = [float(part["weight"]) for part in parts]
    return _state(card, ""), [merged_state(zip(weights, own, strict=True)) for own in names]
