"""What a score file says of decontamination: whether the items of each task were dropped from the training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacode.base.errors import MegacodeError
from megacode.base.files import Json, RunDir
from megacode.config.config_file import load_config
from megacode.data import manifest as manifests
from megacode.data import objects
from megacode.data.items import rows_digest


def decontamination(run_dir: Path | None, tasks: Mapping[str, Any]) -> Json:
    """Return what the manifests of a model's sources say of some tasks.

    Args:
        run_dir: the model's run, None where that is not known.
        tasks: lm-eval's task objects.

    Returns:
        `known`: whether there are sources to ask; if not, `why`. Otherwise `whole`: whether every source was
        decontaminated against every task; and `missing`: by task the sources that were not.
    """
    if run_dir is None:
        return {"known": False, "why": "the model's run is not known"}
    try:
        config = load_config(RunDir(run_dir).config)
        objects.use(config.objects)
        by_source = {name: manifests.read(source.path) for name, source in config.sources.items()}
    except MegacodeError as error:
        return {"known": False, "why": " ".join(str(error).split())}
    clean = {name: _digests(manifest) for name, manifest in by_source.items()}
    missing: dict[str, list[str]] = {}
    # Hashing questions takes seconds for the largest suites: only where a source could be clean of them.
    for task in tasks if any(clean.values()) else ():
        digest = rows_digest(tasks[task].eval_docs)
        if lacking := [name for name, digests in clean.items() if digest not in digests]:
            missing[task] = lacking
    if not any(clean.values()):
        missing = {task: list(clean) for task in tasks}
    if config.init.from_ != "random":
        return {"known": True, "whole": False, "missing": missing, "initial_weights": str(config.init.from_)}
    return {"known": True, "whole": not missing, "missing": missing}


def _digests(manifest: manifests.Manifest | None) -> set[str]:
    suites = manifest.decontaminated if manifest is not None else ()
    return {digest for suite in suites for digest in suite["tasks"].values()}


def describe_decontamination(document: Mapping[str, Any]) -> str:
    """Return a score document's note as one line for the terminal; empty where nothing was decontaminated."""
    note = document.get("decontaminated") or {}
    if note.get("whole"):
        return "decontaminated against this suite: its items were dropped from all sources"
    tasks = [task for task in document["tasks"] if task not in note.get("missing", {})]
    if not note.get("known") or not tasks:
        return ""
    start = note.get("initial_weights")
    rest = f"; what the initial weights had read is not known: {start}" if start else ""
    return f"decontaminated against {len(tasks)} of {len(document['tasks'])} tasks: {', '.join(tasks)}{rest}"
