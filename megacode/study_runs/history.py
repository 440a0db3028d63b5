"""The versions of a study that were run: what changed, what that makes stale, and which arms were removed.

`study.jsonl` gets a line for each version when it is first run. Results of earlier versions are never deleted: those of
arms that were removed are *retired*, those of arms that have changed since are *stale*.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from megacode.base.appending import append_json
from megacode.base.errors import ConfigError, Problem
from megacode.base.files import Json, digest, read_jsonl
from megacode.base.units import format_count
from megacode.plan.effects import flat
from megacode.study.found import Found
from megacode.study.places import StudyDir
from megacode.study.schema import Study, StudyArm
from megacode.study.tree import Tree
from megacode.study.why import reasons
from megacode.study_runs.disk import Disk

FLAG = "--retrain-stale"
_VERSION_KEYS = {"time", "digest", "scored", "document", "arms", "tokens"}


@dataclass(frozen=True)
class Former:
    """An arm of an earlier version whose training is no longer that of an arm of this name.

    Attributes:
        arm: its name, with levels.
        seed: its seed.
        kind: `stale`: an arm of this name exists and is another training; `retired`: none exists.
        end: the id of the state that it ended with.
        tokens: of what is on disk and belongs to no arm any more.
        found: what is on disk of it, from its first state to its last.
    """

    arm: str
    seed: int
    kind: str
    end: str
    tokens: int
    found: tuple[Found, ...]


def versions(place: StudyDir) -> list[Json]:
    """Return the versions of a study that were run, oldest first.

    Each has `time`, `digest`, `scored` (whether any score existed before it), `document` (the study, with all
    defaults), `arms` (by name and seed the ids of their nodes) and `tokens` (of each node).
    """
    # A line of somebody else's, or a damaged one, is no version.
    return [line for line in read_jsonl(place.history, []) if line.keys() >= _VERSION_KEYS]


def version_of(tree: Tree, scored: bool) -> Json:
    """Return a study as a line of its history."""
    study = _document(tree.grid.study)
    arms: dict[str, dict[str, list[str]]] = {}
    for (name, seed), path in tree.paths.items():
        arms.setdefault(name, {})[str(seed)] = path
    # Ids as well: a changed base file changes what the study means, and not its own document.
    marks = digest(json.dumps([study, arms], sort_keys=True))
    return {
        "time": round(time.time(), 3),
        "digest": marks,
        "scored": scored,
        "document": study,
        "arms": arms,
        "tokens": {node.id: node.tokens for node in tree.nodes.values()},
    }


def former_arms(tree: Tree, disk: Disk, place: StudyDir) -> list[Former]:
    """Return the stale and the retired arms of a study that left something on disk, newest version first."""
    # By the end of an arm: its name may have changed.
    present = {path[-1] for path in tree.paths.values()}
    formers: dict[str, Former] = {}
    for version in reversed(versions(place)):
        for name, seed, path in _arms(version):
            # Under another name it is neither.
            if path[-1] in present or path[-1] in formers:
                continue
            left = tuple(disk.states[state] for state in path if state in disk.states and state not in tree.nodes)
            if left:
                tokens = sum(int(version["tokens"].get(state.id, 0)) for state in left)
                kind = "stale" if (name, seed) in tree.paths else "retired"
                formers[path[-1]] = Former(name, seed, kind, path[-1], tokens, left)
    return list(formers.values())


def changes_since_scores(study: Study, place: StudyDir) -> list[Json]:
    """Return what has changed in a study since it was first scored: `key`, `before` and `now` of each setting, as text.

    A baseline, a margin or primary metrics that are chosen after results were seen prove less, so all who show results
    must say it.

    Args:
        study: as its file is now.
        place: its directory of runs.
    """
    known = versions(place)
    if not known or not (place.is_scored or any(line["scored"] for line in known)):
        return []
    # The last version that began before any score existed is what was decided in advance.
    declared = [line for line in known if not line["scored"]] or known[:1]
    before, now = _shown(declared[-1]["document"]), _shown(_document(study))
    # A key that came with a later version of megacode stands at its default.
    smallest = Study(phases={"one": {}}, arms={"one": StudyArm(phases=("one",))}, baseline="one")
    defaults = _shown(_document(smallest))
    return [
        {"key": key, "before": before.get(key), "now": now.get(key)}
        for key in sorted({*before, *now})
        if before.get(key, defaults.get(key)) != now.get(key)
    ]


def _document(study: Study) -> Json:
    # pydantic warns of fields with a validator of our own; they become text.
    document = study.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)
    return dict(json.loads(json.dumps(document, default=str)))


def _shown(document: Json) -> dict[str, str]:
    # Values as text: fractions and lists are compared as they are shown.
    return {key: str(value) for key, value in flat(document) if value not in (None, {}, [], ())}


def accept(tree: Tree, disk: Disk, place: StudyDir, where: str, scored: bool, retrain: bool) -> Json | None:
    """Add a study to its history if it has changed since it was last run; return the new line, if any.

    Args:
        tree: of the study.
        disk: what exists.
        place: its directory of runs.
        where: the name of its file, for messages.
        scored: whether any score exists.
        retrain: the user accepts that changed arms are trained again.

    Raises:
        ConfigError: arms have changed since they were trained, and that is not accepted.
    """
    line, known = version_of(tree, scored), versions(place)
    if known and known[-1]["digest"] == line["digest"]:
        return None
    problems = list(_changed(tree, disk, known[-1], where)) if known and not retrain else []
    if problems:
        raise ConfigError(problems=problems)
    append_json(place.history, line)
    return line


def _changed(tree: Tree, disk: Disk, last: Json, where: str) -> Iterator[Problem]:
    """Yield the arms whose training differs from that of the last version, if something of that was trained."""
    why = None
    seen: set[str] = set()
    for name, seed, path in _arms(last):
        now = tree.paths.get((name, seed))
        if now is None or now[-1] == path[-1] or name in seen:
            continue
        gone = [state for state in path if state in disk.states and state not in tree.nodes]
        new = [state for state in now if state not in disk.states]
        # Nothing is lost, or nothing is trained, as after going back to what is there.
        if not gone or not new:
            continue
        # One seed tells it of all.
        seen.add(name)
        why = why or reasons(tree, disk.states.values())
        was, will = (format_count(sum(tokens)) for tokens in (
            [int(last["tokens"][state]) for state in gone], [tree.nodes[state].tokens for state in new],
        ))  # fmt: skip
        arm, fact = name.split("@")[0], why[new[0]].sentence()
        message = f"{name!r} has changed since it was trained: {was} tokens a seed are stale, {will} are to be trained"
        yield Problem(
            f"{message} ({fact})",
            f"{where}: arms.{arm}",
            f"undo the change, give the new training another name, or add {FLAG}; what is there is kept",
        )


def _arms(version: Json) -> Iterator[tuple[str, int, list[str]]]:
    for name, seeds in version["arms"].items():
        for seed, path in seeds.items():
            yield name, int(seed), path
