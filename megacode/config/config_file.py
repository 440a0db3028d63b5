"""Load a config: YAML files and `key.path=value` overrides become one frozen `RunConfig`, or a list of all mistakes.

Precedence: default < `base:` file < the file itself < overrides. All are merged as plain dicts and validated once.
Paths are relative to the working directory, like those of any command, and absolute in the result.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megacode.base.errors import ConfigError, Problem
from megacode.base.urls import absolute
from megacode.config.evaluate_rules import EVALUATE_RULES
from megacode.config.mirror_rules import MIRROR_RULES
from megacode.config.overrides import apply_overrides
from megacode.config.phase_rules import PHASE_RULES
from megacode.config.placeholders import UNKNOWN, while_known
from megacode.config.rules import RULES
from megacode.config.run import RunConfig
from megacode.config.setting_origins import Layer, Origins
from megacode.config.suggestions import did_you_mean
from megacode.config.validation import checked
from megacode.config.yaml_reader import StrictYamlLoader, parse_yaml

_PRESETS = Path(__file__).with_name("presets.yaml")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate a run's config.

    Args:
        path: a YAML file.
        overrides: `key.path=value`, values in YAML.

    Raises:
        ConfigError: with every mistake: what, where, and how to fix it.
    """
    # 1. Merge: base files first, then this file, then the command line.
    layers = read_layers(Path(path))
    raw: dict[str, Any] = {}
    for layer in reversed(layers):
        # Copied, since overrides write into `raw`, and messages look up in the layers where a setting came from.
        raw = merge(raw, copy.deepcopy(layer.document))
    paths, unusable = apply_overrides(raw, overrides, lambda text: yaml.load(text, Loader=StrictYamlLoader))
    return validate(raw, Origins(layers, paths), unusable)


def validate(raw: dict[str, Any], origins: Origins | str, unusable: Sequence[Problem] = ()) -> RunConfig:
    """Validate a merged document and make its paths absolute.

    Args:
        raw: the document.
        origins: the files and overrides it was merged from; or one name for all of it.
        unusable: problems of overrides that could not be merged.

    Raises:
        ConfigError: with every mistake.
    """
    if isinstance(origins, str):
        origins = Origins([Layer(origins, raw)])
    problems: list[Problem] = list(unusable)
    raw = _with_preset(raw, problems)
    # 2. Types and bounds of single settings (pydantic), then rules across settings.
    config, invalid = checked(RunConfig, raw)
    problems += [*invalid, *_broken_rules(config)]
    if problems:
        raise ConfigError(problems=[origins.place(problem) for problem in dict.fromkeys(problems)])
    # 3. A run may be resumed from another working directory, so the saved config has absolute paths.
    return _absolute(config)


def _broken_rules(config: RunConfig) -> Iterator[Problem]:
    """Yield the problems of a config, in which settings may be unknown."""
    for rule in (*RULES, *EVALUATE_RULES, *MIRROR_RULES):
        yield from while_known(rule(config))
    yield from while_known(_broken_phase_rules(config))


def _broken_phase_rules(config: RunConfig) -> Iterator[Problem]:
    for rule in PHASE_RULES:
        for number, phase in enumerate(config.phases):
            yield from while_known(rule(config, number, phase))


def dump_config(config: RunConfig) -> str:
    """Return the resolved config as YAML, which `load_config` reads back to an equal config."""
    # Defaults are written out: a later version with other defaults resumes the run as it was.
    document = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.safe_dump(_written(document), sort_keys=False, allow_unicode=True, width=120)


def _written(value: Any) -> Any:
    """Turn quantities back into the text that a user writes."""
    if isinstance(value, dict):
        # A dumped Quantity is a dict of exactly these two keys; no section has them.
        if set(value) == {"count", "unit"}:
            return f"{value['count']} {value['unit']}"
        return {key: _written(item) for key, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list) else value


def read_layers(path: Path, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Return a config file and its base files, the highest precedence first.

    Args:
        path: the file.
        seen: real paths of the files that led here.

    Raises:
        ConfigError: one cannot be read, or they form a cycle.
    """
    # By real path: a cycle through symbolic links has ever new names.
    if os.path.realpath(path) in seen:
        raise ConfigError(f"base files form a cycle through {path}", str(path), "remove one of the base: lines")
    raw = read_document(path)
    base = raw.pop("base", None)
    if base is None:
        return [Layer(str(path), raw)]
    if not isinstance(base, str):
        raise ConfigError(f"base is {base!r}, not a file name", f"{path}: base", "write base: other.yaml")
    # `base` is relative to the file that names it; all other paths to the working directory.
    return [Layer(str(path), raw), *read_layers(path.parent / base, (*seen, os.path.realpath(path)))]


def read_document(path: Path, wanted: str = "a run's YAML config") -> dict[str, Any]:
    """Return what a YAML file holds.

    Args:
        path: the file.
        wanted: what it should be, for messages.

    Raises:
        ConfigError: it is not there, is no text, no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", str(path), f"give the path of {wanted}") from None
    except UnicodeDecodeError:
        raise ConfigError("not a UTF-8 text file", str(path), f"give the path of {wanted}") from None
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ConfigError(message, str(path), f"give the path of {wanted}") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError("the file holds no settings", str(path), "start from a file in examples/")
    return document


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two documents key by key; lists and scalars of `high` replace those of `low`."""
    merged = dict(low)
    for key, value in high.items():
        # A blend is replaced as a whole: a merge would silently keep sources of the base file.
        nested = isinstance(value, dict) and isinstance(low.get(key), dict) and key != "blend"
        merged[key] = merge(low[key], value) if nested else value
    return merged


def presets() -> dict[str, dict[str, Any]]:
    """Return the named model shapes: their keys of the section `model`."""
    return copy.deepcopy(_read_presets())


@functools.cache  # a study reads them once an arm
def _read_presets() -> dict[str, dict[str, Any]]:
    return dict(parse_yaml(_PRESETS.read_text(encoding="utf-8"), str(_PRESETS)))


def _with_preset(raw: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("preset") is None:
        return raw
    known = presets()
    name = model["preset"]
    if not isinstance(name, str) or name not in known:
        if isinstance(name, str):
            problems.append(Problem(f"there is no preset {name!r}", "model.preset", did_you_mean(name, list(known))))
        # Without a preset every key of the shape would be reported missing; one mistake is enough.
        shape = {key for preset in known.values() for key in preset}
        return {**raw, "model": {**dict.fromkeys(shape, UNKNOWN), **model}}
    # Keys given inline win over the preset.
    return {**raw, "model": {**known[name], **model}}


def _absolute(config: RunConfig) -> RunConfig:
    sources = {
        name: source.model_copy(update={"path": absolute(source.path)}) for name, source in config.sources.items()
    }
    changes: dict[str, Any] = {"sources": sources, "run_dir": os.path.abspath(config.directory)}
    changes["metrics"] = config.metrics.absolute()
    if config.objects.cache is not None:
        cache = os.path.abspath(os.path.expanduser(config.objects.cache))
        changes["objects"] = config.objects.model_copy(update={"cache": cache})
    if config.tokenizer is not None:
        changes["tokenizer"] = config.tokenizer.model_copy(update={"path": os.path.abspath(config.tokenizer.path)})
    if config.init.from_ != "random":
        changes["init"] = config.init.model_copy(update={"from_": os.path.abspath(config.init.from_)})
    if config.evaluate is not None and config.evaluate.suite_is_a_file:
        suite = os.path.abspath(config.evaluate.suite)
        changes["evaluate"] = config.evaluate.model_copy(update={"suite": suite})
    return config.model_copy(update=changes)
