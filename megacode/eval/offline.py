"""What lm-eval finds around it while it runs: no network, no home directory to write to, a quiet terminal.

The libraries read their environment when they are imported, so it is set before that; what is imported already is told
directly. All is put back afterwards.
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
    """Set lm-eval's surroundings.

    Args:
        offline: never ask the network.
        own_cache: let caches lie in a directory that goes with this context, instead of the user's.
        verbose: leave logging, warnings and progress bars as they are.
    """
    with ExitStack() as stack:
        changes = dict(_OFFLINE) if offline else {}
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
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _switched_offline() -> Iterator[None]:
    """Tell libraries that were imported before that there is no network."""
    found = [(sys.modules[name], key) for name, key in _OFFLINE_SWITCHES if name in sys.modules]
    before = [(module, key, getattr(module, key)) for module, key in found if hasattr(module, key)]
    for module, key, _ in before:
        setattr(module, key, True)
    try:
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let through errors only, and draw no bars: lm-eval has no switch for all of its own.

    What the libraries warn of is not lost: each kind of warning is logged once, at the end.
    """
    from tqdm.std import tqdm

    heard = _Heard()
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
    draw = tqdm.__init__

    def draw_nothing(bar: Any, *args: Any, **settings: Any) -> None:
        draw(bar, *args, **{**settings, "disable": True})

    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.handlers, logger.propagate = [heard], False
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
    """Keeps the libraries' warnings, each text once; errors go on at once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if record.levelno >= logging.ERROR:
            log.error("%s: %s", record.name, text)
        else:
            self._texts.setdefault(str(record.msg)[:_KIND], f"{record.name}: {text}")

    def tell(self, caught: Iterable[warnings.WarningMessage]) -> None:
        """Log what was heard, and Python's warnings that were caught."""
        for warning in caught:
            if not issubclass(warning.category, (DeprecationWarning, FutureWarning, ResourceWarning)):
                self._texts.setdefault(str(warning.message)[:_KIND], " ".join(str(warning.message).split()))
        for text in list(self._texts.values())[:_SHOWN]:
            log.info("a library warns: %s", text[:_LONGEST])
        if len(self._texts) > _SHOWN:
            log.info("%d further kinds of warnings are not shown", len(self._texts) - _SHOWN)
