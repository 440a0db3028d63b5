"""The files of a published model as they lie there: read strictly, by readers that share nothing with the importer.

Whatever is wrong with a downloaded directory is the user's to know, with its file and key: a file that was cut, a shard
that did not arrive, a key that a config lacks. Foreign parsers raise what they like, so all of it is caught here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, Problem

# Without these a config means nothing: the library's defaults are those of one model of many.
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FETCH = "fetch the model again"


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file. A byte order mark is refused: transformers does not read such a file.

    Raises:
        CheckpointError: it cannot be read, is no object, or holds a key twice.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error.strerror}", str(path), _FETCH) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"it is not JSON, or only a part of it: {error}", str(path), _FETCH) from None
    if not isinstance(document, dict):
        what = f"it is a JSON {type(document).__name__}, not an object"
        raise CheckpointError(what, str(path), _FETCH)
    return document


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands twice")
    return dict(pairs)


def parsed_config(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a config.json as transformers understands it: what it leaves out has its class's defaults.

    Args:
        document: of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: a key that decides the model's shape is missing or no number, or transformers refuses it.
    """
    from transformers import CONFIG_MAPPING

    problems = [
        Problem(f"it has no number under {key}", f"{where}: {key}", _FETCH)
        for key in NEEDED
        if not isinstance(document.get(key), int) or isinstance(document.get(key), bool) or document[key] < 1
    ]
    if problems:
        raise CheckpointError(problems=problems)
    kind = document.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"model_type is {kind!r}, which transformers does not know", where, _FETCH)
    try:
        parsed: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(dict(document)).to_dict()
    except Exception as error:  # its validators raise errors of many kinds
        what = f"transformers cannot read it: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(what, where, _FETCH) from None
    return parsed


def ignored(names: Iterable[str], architecture: str) -> list[str]:
    """Return the tensors that transformers leaves out by its own rules, such as stored rotary frequencies.

    Args:
        names: of the tensors in a model's files.
        architecture: the class that loads them.
    """
    import transformers

    # Of old checkpoints: `_adjust_missing_and_unexpected_keys` adds it for every model that computes it itself.
    patterns = {r"rotary_emb\.inv_freq"}
    patterns |= set(getattr(getattr(transformers, architecture), "_keys_to_ignore_on_load_unexpected", None) or ())
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]
