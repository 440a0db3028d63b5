"""Text samples of a scored model for a few shipped prompts, kept in the run directory for the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir, write_json
from megacode.eval.generate import Sampling, TextWriter

log = logging.getLogger(__name__)

PROMPTS = {
    "prose": "The most important thing to know about",
    "code": "def read_lines(path):\n",
    "markup": "# Installation\n\n",
}
# The same prompts and seed for every checkpoint, so that samples can be compared.
SAMPLING = Sampling(max_new_tokens=64)


def write_samples(writer: TextWriter, run_dir: Path | None, model: Mapping[str, Any]) -> None:
    """Let a model continue each prompt, and write the texts to `samples/iter_N.json` in its run.

    Scores do not depend on it: if generation fails or the disk is full, a warning is logged.

    Args:
        writer: the loaded model.
        run_dir: its run; None: it has none, and nothing is written.
        model: its `model_facts`.
    """
    start, iteration = time.perf_counter(), (model["megacode"] or {}).get("iteration")
    if run_dir is None or not isinstance(iteration, int):
        return
    run = RunDir(run_dir)
    try:
        samples = [_sample(writer, name, prompt) for name, prompt in PROMPTS.items()]
        document = {
            "iteration": iteration,
            "weights_sha256": model["weights_sha256"],
            "settings": asdict(SAMPLING),
            "samples": samples,
            "seconds": round(time.perf_counter() - start, 3),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(run.samples / f"{run.iteration_name(iteration)}.json", document)
    except (MegacodeError, OSError) as error:
        log.warning("no text samples for iteration %d: %s", iteration, " ".join(str(error).split()))


def _sample(writer: TextWriter, name: str, prompt: str) -> dict[str, Any]:
    text = writer.write(writer.ids(prompt), SAMPLING)
    return {"kind": name, "prompt": prompt, "text": "".join(text), "tokens": text.tokens, "ended": text.ended}
