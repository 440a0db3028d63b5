"""YAML as megacode reads it everywhere: a key that stands twice in a mapping is an error, not a silent last word.

YAML forbids such keys, but PyYAML takes the last value. A blend that names a source twice, or a section that was pasted
again further down, would then be planned and trained without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from megacode.base.errors import ConfigError


class TwiceError(yaml.MarkedYAMLError):
    """A key stands twice in one mapping."""


class Loader(yaml.SafeLoader):
    """YAML with keys that stand once, and floats that may be written `3e-4`, which YAML 1.1 takes for text."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and look at its keys; those of merged mappings (`<<`) are not among them yet.

        Raises:
            TwiceError: a key stands twice.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                lines = [first[key.tag, key.value].start_mark.line + 1, key.start_mark.line + 1]
                problem = f"the key {key.value!r} stands twice, in lines {lines[0]} and {lines[1]}"
                raise TwiceError(problem=problem, problem_mark=key.start_mark)
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Return the document of a YAML text.

    Args:
        text: the text.
        where: its file, or the key that names it, for messages.

    Raises:
        ConfigError: it is not YAML, or a key stands twice in it; the line is named.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except TwiceError as error:
        fix = "remove one of them: only one value can count"
        raise ConfigError(str(error.problem), _at(where, error), fix) from None
    except yaml.YAMLError as error:
        what = f"it is not YAML: {getattr(error, 'problem', None) or ' '.join(str(error).split())}"
        raise ConfigError(what, _at(where, error), "correct the indentation, brackets or quotes there") from None
    except (ValueError, RecursionError) as error:  # such as the date 2001-99-99, or a thousand open brackets
        what = "its brackets are nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"it cannot be read: {what}", where, "put text that looks like a date in quotes") from None


def _at(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{where}:{mark.line + 1}" if mark else where
