"""Read the files of a published model strictly, with readers that share nothing with the importer.

Every fault of a downloaded directory is reported with its file and key: a truncated file, a missing shard, a key that a
config lacks. Other libraries' parsers raise errors of any kind, so all of them are caught here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, Problem

# Required: the library's defaults are the sizes of one particular model.
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FETCH = "download the model again"


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file. A byte order mark is refused: transformers does not read such a file.

    Raises:
        CheckpointError: it cannot be read, is not an object, or repeats a key.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error.strerror}", str(path), _FETCH) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"it is not JSON, or truncated: {error}", str(path), _FETCH) from None
    if not isinstance(document, dict):
        message = f"it is a JSON {type(document).__name__}, not an object"
        raise CheckpointError(message, str(path), _FETCH)
    return document


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python's parser keeps the last of equal keys in silence; readers in other languages may keep the first.
    names = [name for name, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"the key {twice[0]!r} appears twice")
    return dict(pairs)


def parsed_config(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a config.json as transformers parses it: absent keys have the class's defaults.

    Args:
        document: of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: a key of the model's shape is missing or not a positive integer; or transformers fails.
    """
    from transformers import CONFIG_MAPPING

    problems = [
        Problem(f"{key} is missing or not a positive integer", f"{where}: {key}", _FETCH)
        for key in NEEDED
        # bool is a subclass of int in Python, so `true` needs a test of its own.
        if not isinstance(document.get(key), int) or isinstance(document.get(key), bool) or document[key] < 1
    ]
    if problems:
        raise CheckpointError(problems=problems)
    kind = document.get("model_type")
    # Models that ship their own code are not supported: that code is never run.
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"model_type is {kind!r}, which transformers does not support", where, _FETCH)
    try:
        # It writes into the objects inside of what it is given.
        parsed: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(deepcopy(dict(document))).to_dict()
    except Exception as error:  # its validators raise errors of many kinds
        message = f"transformers cannot read it: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(message, where, _FETCH) from None
    return parsed


def ignored(names: Iterable[str], architecture: str) -> list[str]:
    """Return the tensors that transformers ignores by its own rules, such as stored rotary frequencies.

    Args:
        names: of the tensors in a model's files.
        architecture: the class that loads them.
    """
    import transformers

    # Old checkpoints store it; `_adjust_missing_and_unexpected_keys` ignores it for models that compute it themselves.
    patterns = {r"rotary_emb\.inv_freq"}
    patterns |= set(getattr(getattr(transformers, architecture), "_keys_to_ignore_on_load_unexpected", None) or ())
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]
