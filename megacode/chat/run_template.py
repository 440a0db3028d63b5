"""The chat template of a run: the one that wrote the conversations of its sources.

It is in their manifests, and a run keeps a copy: an export may be made where the data sets are not. All sources of a
run have one template, which its plan checks.
"""

from __future__ import annotations

import logging

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir, write_text
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data import objects

log = logging.getLogger(__name__)


def record_template(config: RunConfig, run: RunDir) -> None:
    """Keep the template of a run's sources in its directory; where they have none, an earlier one stays."""
    text = _of_sources(config)
    if text is not None:
        write_text(run.chat_template, text)


def run_template(config: RunConfig, run: RunDir) -> str | None:
    """Return the text of the template that a run has seen; None: it has read no conversations."""
    if run.chat_template.is_file():
        return run.chat_template.read_text(encoding="utf-8")
    # A run of an earlier start, or one that another tool made.
    return _of_sources(config)


def _of_sources(config: RunConfig) -> str | None:
    objects.use(config.objects)
    # Any source with a template will do: the plan refuses sources of two.
    for name, source in sorted(config.sources.items()):
        try:
            manifest = manifests.read(source.path)
        except MegacodeError as error:
            # A lost data set must not prevent the export of a model that was trained on it.
            log.warning("whether the source %s has a chat template is unknown: %s", name, error.problems[0].what)
            continue
        if manifest is not None and manifest.chat is not None:
            return str(manifest.chat["template"])
    return None
