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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

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
    """Let through errors only, and draw no bars: lm-eval has no switch for all of its own."""
    from tqdm.std import tqdm

    levels = {name: logging.getLogger(name).level for name in _NOISY}
    draw = tqdm.__init__

    def draw_nothing(bar: Any, *args: Any, **settings: Any) -> None:
        draw(bar, *args, **{**settings, "disable": True})

    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    tqdm.__init__ = draw_nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = draw
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
