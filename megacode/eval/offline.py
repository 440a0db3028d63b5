"""Run lm-eval without network, without the user's cache directory, and with a quiet terminal.

The libraries read their environment when they are imported, so it is set before that. Modules that are imported already
are changed directly. Everything is restored afterwards.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

log = logging.getLogger(__name__)

_KIND, _LONGEST, _SHOWN = 60, 300, 10  # characters that tell warnings apart, characters and kinds that are shown
_NOISY = ("lm_eval", "transformers", "datasets", "huggingface_hub", "accelerate", "httpx", "filelock", "fsspec")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
_OFFLINE_SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)


@contextmanager
def surroundings(offline: bool, own_cache: bool, verbose: bool) -> Iterator[None]:
    """Set environment, offline switches and logging for lm-eval; restore them at the end.

    Args:
        offline: never use the network.
        own_cache: use a temporary cache directory instead of the user's.
        verbose: leave logging, warnings and progress bars as they are.
    """
    with ExitStack() as stack:
        changes = dict(_OFFLINE) if offline else {}
        # Home directories of compute nodes are often read-only or full.
        if own_cache:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="megacode-eval-"))
            changes |= {"HF_HOME": cache, "HF_DATASETS_CACHE": cache, "HF_MODULES_CACHE": cache}
        stack.enter_context(_environment(changes))
        if offline:
            stack.enter_context(_switched_offline())
        if not verbose:
            stack.enter_context(_quiet())
        yield


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            # A variable that was absent must be absent again, not empty.
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _switched_offline() -> Iterator[None]:
    """Switch libraries offline that have been imported already."""
    switches = [(sys.modules[name], key) for name, key in _OFFLINE_SWITCHES if name in sys.modules]
    before = [(module, key, getattr(module, key)) for module, key in switches if hasattr(module, key)]
    for module, key, _ in before:
        setattr(module, key, True)
    try:
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show errors only, and no progress bars: lm-eval has no single switch for all of its own.

    The libraries' warnings are not lost: each kind is logged once, at the end.
    """
    from tqdm.std import tqdm

    heard = _Heard()
    loggers = [logging.getLogger(name) for name in _NOISY]
    # Everything that is changed here is global to the process, so all of it is remembered.
    before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
    draw = tqdm.__init__

    def draw_nothing(bar: Any, *args: Any, **settings: Any) -> None:
        draw(bar, *args, **{**settings, "disable": True})

    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.handlers, logger.propagate = [heard], False
    # Every library draws its bars through this one class.
    tqdm.__init__ = draw_nothing
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
    finally:
        tqdm.__init__ = draw
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate
    heard.tell(caught)


class _Heard(logging.Handler):
    """Keeps the libraries' warnings, each kind once; errors are logged immediately."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        # Errors must appear even if the process dies before the end.
        if record.levelno >= logging.ERROR:
            log.error("%s: %s", record.name, text)
        else:
            # The unformatted message tells kinds apart: the same warning with other numbers counts once.
            self._texts.setdefault(str(record.msg)[:_KIND], f"{record.name}: {text}")

    def tell(self, caught: Iterable[warnings.WarningMessage]) -> None:
        """Log the kept warnings, and Python's warnings that were caught."""
        for warning in caught:
            if not issubclass(warning.category, (DeprecationWarning, FutureWarning, ResourceWarning)):
                self._texts.setdefault(str(warning.message)[:_KIND], " ".join(str(warning.message).split()))
        for text in list(self._texts.values())[:_SHOWN]:
            log.info("library warning: %s", text[:_LONGEST])
        if len(self._texts) > _SHOWN:
            log.info("%d further kinds of warnings are not shown", len(self._texts) - _SHOWN)
