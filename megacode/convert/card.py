"""The model card and `megacode.json` of an export: which run, which phases, how much data, what was verified."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import megacode
from megacode.base.appending import append_json
from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir, digest, write_json, write_text
from megacode.base.units import format_count
from megacode.checkpoint.state import TrainState
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.verify import Report, folded
from megacode.data.tokenizer import BEGIN_OF_TEXT
from megacode.plan.difference import former_config

log = logging.getLogger(__name__)

FILE_NAME = "megacode.json"


def write_card(source: OpenedCheckpoint, report: Report, parameters: int, out: Path) -> dict[str, Any]:
    """Write README.md and megacode.json into an export, and return the latter's document.

    Args:
        source: the checkpoint.
        report: the result of its verification.
        parameters: of the exported model.
        out: the export's directory.
    """
    document = facts(source, report, parameters)
    write_json(out / FILE_NAME, document)
    # StrictUndefined: a fact that is missing from the card is an error, not an empty space.
    environment = Environment(
        loader=PackageLoader("megacode.convert", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = format_count
    template = environment.get_template("card.md.j2")
    folded_points = [{**asdict(point), "relative": point.relative} for point in folded(report.points)]
    write_text(out / "README.md", template.render(**document, config=source.config, points=folded_points) + "\n")
    return document


def facts(source: OpenedCheckpoint, report: Report, parameters: int) -> dict[str, Any]:
    """Return everything that an export records about itself, as one JSON document."""
    state, config = source.state, source.config
    length = config.train.seq_length
    return {
        "checkpoint": source.identity(),
        "name": config.name,
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "consumed_tokens": state.consumed_samples * length,
        "phase": state.phase,
        "begin_of_text": BEGIN_OF_TEXT,
        "run_dir": str(source.run.path),
        "parameters": parameters,
        "phases": phases_read(state, length),
        "sources": sources_read(state, length),
        "hashes": {
            "config": digest(state.config),
            "tokenizer": state.tokenizer_hash,
            "schedule": source.identity()["fingerprint"],
        },
        "fingerprints": state.fingerprints,
        "init_seed": init_seed(state),
        "withheld": state.withheld,
        "merged": _merged(state),
        "checkpoint_seal": state.seal,
        "layout": state.layout,
        "versions": {"megacode": megacode.__version__, **state.versions},
        "parity": report.document(),
    }


def init_seed(state: TrainState) -> int | None:
    """Return the seed of the random weights that a model's training began with; None where it is not known."""
    started = state.started_from()
    if started is not None:
        return init_seed(started[1])
    # A branch, or a run that was resumed with other settings: its oldest config made the weights.
    try:
        config = former_config(state.formers()[0][1] if state.former_configs else state.config)
    except MegacodeError:  # of a version with other settings
        return None
    # A converted model was never trained here, and says nothing of its first weights.
    if config.init.from_ != "random" or not state.consumed_samples:
        return None
    return config.seed if config.model.init_seed is None else config.model.init_seed


def _merged(state: TrainState) -> dict[str, Any] | None:
    """Return the rule of a mean, and weight, path and seal of each checkpoint; None of a trained one."""
    if not state.merged:
        return None
    of = [{key: one[key] for key in ("weight", "path", "seal")} for one in state.merged["of"]]
    return {**state.merged, "of": of}


def note_elsewhere(run: RunDir, out: Path, card: Mapping[str, Any]) -> None:
    """Add an export outside its run directory to the run's `exports.jsonl`, so that the report page lists it.

    Args:
        run: the run.
        out: the published export.
        card: its `megacode.json`.
    """
    place = out.resolve()
    # Exports inside the run directory are found by their path; only others need a record.
    if not run.path.is_dir() or place.is_relative_to(run.hf.resolve()):
        return
    # Only what the report shows; the card itself stays in the export.
    facts = {key: card[key] for key in ("iteration", "checkpoint_seal", "hashes", "layout", "versions", "parity")}
    try:
        append_json(run.exports, {"time": round(time.time(), 3), "directory": str(place), **facts})
    except OSError as error:
        log.warning("could not record the export in %s, so the run's report will not show it: %s", run.exports, error)


def sources_read(state: TrainState, seq_length: int) -> dict[str, dict[str, Any]]:
    """Return tokens read, their share, and the identity of the data, for every source that was read.

    Args:
        state: clock, counters, and the chain of phases, which records each data set's size and hash.
        seq_length: tokens a sample.
    """
    # At least 1: a model exported before training has read nothing.
    total = max(1, sum(state.samples_by_source.values()))
    data = {name: entry for link in state.fingerprints for name, entry in link["sources"].items()}
    return {
        name: {
            "samples": samples,
            "tokens": samples * seq_length,
            "share": samples / total,
            "data_tokens": data[name]["tokens"],
            "identity": data[name]["identity"],
        }
        for name, samples in state.samples_by_source.items()
        if samples
    }


def phases_read(state: TrainState, seq_length: int) -> list[dict[str, Any]]:
    """Return what was read in every phase up to the clock.

    A finished phase read what was planned. The current phase read what the counters show beyond that.

    Args:
        state: clock, counters, and the chain of phases.
        seq_length: tokens a sample.
    """
    # Counters run over the whole run: subtract finished phases to get the current one's share.
    left = dict(state.samples_by_source)
    phases = []
    for link in state.fingerprints:
        read = min(link["samples"], state.consumed_samples - link["first_sample"])
        if read <= 0:
            break
        # A finished phase read exactly its plan; the counters need no look.
        complete = read == link["samples"]
        counts = {name: entry["samples"] if complete else left[name] for name, entry in link["sources"].items()}
        left = {name: count - counts.get(name, 0) for name, count in left.items()}
        tokens = {name: count * seq_length for name, count in counts.items()}
        entry = {"name": link["phase"], "samples": read, "tokens": read * seq_length, "sources": tokens}
        phases.append({**entry, "complete": complete})
    return phases
