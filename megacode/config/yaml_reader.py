"""The YAML reader of megacode: a duplicate key in a mapping is an error.

YAML forbids duplicate keys, but PyYAML silently takes the last value. A blend that names a source twice, or a section
that was pasted again further down, would be trained without a warning.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from megacode.base.errors import ConfigError


class TwiceError(yaml.MarkedYAMLError):
    """A mapping has a duplicate key."""


class StrictYamlLoader(yaml.SafeLoader):
    """YAML with unique keys, and with floats such as `3e-4`, which YAML 1.1 reads as text."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and check its keys, before merge keys (`<<`) are expanded.

        Raises:
            TwiceError: a key is duplicated.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            # The tag is part of the key: `1` and "1" are different keys to YAML.
            if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                lines = [first[key.tag, key.value].start_mark.line + 1, key.start_mark.line + 1]
                problem = f"duplicate key {key.value!r}, in lines {lines[0]} and {lines[1]}"
                raise TwiceError(problem=problem, problem_mark=key.start_mark)
        return node


# PyYAML follows YAML 1.1, where a float needs a dot: `3e-4` would be a string.
StrictYamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Return the document of a YAML text.

    Args:
        text: the text.
        where: its file, or the setting that names it, for messages.

    Raises:
        ConfigError: it is not valid YAML, or has a duplicate key; the message names the line.
    """
    try:
        return yaml.load(text, Loader=StrictYamlLoader)
    except TwiceError as error:
        fix = "remove one of them"
        raise ConfigError(str(error.problem), _at(where, error), fix) from None
    except yaml.YAMLError as error:
        message = f"not valid YAML: {getattr(error, 'problem', None) or ' '.join(str(error).split())}"
        raise ConfigError(message, _at(where, error), "check the indentation, brackets and quotes there") from None
    except (ValueError, RecursionError) as error:  # such as the date 2001-99-99, or a thousand open brackets
        message = "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"cannot be read: {message}", where, "put text that looks like a date in quotes") from None


def _at(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{where}:{mark.line + 1}" if mark else where
