"""From YAML files and `key.path=value` to one frozen `RunConfig`, or to every mistake at once.

Precedence: default < `base:` file < the file itself < overrides. All are merged as plain dicts and validated once.
Paths are relative to the working directory, like those of any command, and absolute in the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from megacode.base.errors import ConfigError, Problem
from megacode.config.evaluate_rules import EVALUATE_RULES
from megacode.config.fixes import did_you_mean
from megacode.config.problems import problems_of, without
from megacode.config.rules import RULES
from megacode.config.run import RunConfig
from megacode.config.yaml_reader import Loader, TwiceError, parse_yaml

_PRESETS = Path(__file__).with_name("presets.yaml")
_REPAIRS = 20


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate a run's config.

    Args:
        path: a YAML file.
        overrides: `key.path=value`, values in YAML.

    Raises:
        ConfigError: with every mistake: what, where, and how to mend it.
    """
    raw = _read_with_base(Path(path), ())
    for text in overrides:
        _override(raw, text)
    return validate(raw, str(path))


def validate(raw: dict[str, Any], origin: str) -> RunConfig:
    """Validate a merged document and make its paths absolute.

    Raises:
        ConfigError: with every mistake.
    """
    problems: list[Problem] = []
    raw = _with_preset(raw, problems)
    config: RunConfig | None = None
    for _ in range(_REPAIRS):  # leaving out what is wrong lets the rules judge the rest
        try:
            config = RunConfig.model_validate(raw)
            break
        except ValidationError as error:
            known = {problem.where for problem in problems}
            problems += [problem for problem in problems_of(error) if problem.where not in known]
            repaired = without(raw, [item["loc"] for item in error.errors()])
            if repaired == raw:
                break
            raw = repaired
    if config is not None:
        problems += [problem for rule in (*RULES, *EVALUATE_RULES) for problem in rule(config)]
    if problems or config is None:
        raise ConfigError(problems=[_at(origin, problem) for problem in dict.fromkeys(problems)])
    return _absolute(config)


def dump_config(config: RunConfig) -> str:
    """Return the resolved config as YAML, which `load_config` reads back to an equal config."""
    document = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.safe_dump(_written(document), sort_keys=False, allow_unicode=True, width=120)


def _written(value: Any) -> Any:
    """Turn quantities back into the text a user writes."""
    if isinstance(value, dict):
        if set(value) == {"count", "unit"}:
            return f"{value['count']} {value['unit']}"
        return {key: _written(item) for key, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list) else value


def _at(origin: str, problem: Problem) -> Problem:
    return Problem(problem.what, f"{origin}: {problem.where}" if problem.where else origin, problem.fix)


def _read_with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"base files name each other: {path}", str(path), "remove one of the base: lines")
    raw = _read_yaml(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"base is {base!r}, not a file name", f"{path}: base", "write base: other.yaml")
    return _merge(_read_with_base(path.parent / base, (*seen, path.resolve())), raw)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such file", str(path), "give the path of a run's YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {error}", str(path), "give the path of a run's YAML config") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError("it holds no settings", str(path), "start from a file in examples/")
    return document


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Merge two documents key by key; lists and scalars of `high` replace those of `low`."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(low.get(key), dict) and key != "blend"
        merged[key] = _merge(low[key], value) if both else value
    return merged


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        fix = "write key.path=value, for example train.global_batch_size=64"
        raise ConfigError(f"{text!r} is not an override", "command line", fix)
    try:
        parsed = yaml.load(value, Loader=Loader)
    except TwiceError as error:
        raise ConfigError(f"in {text!r} {error.problem}", "command line", "remove one of them") from None
    except yaml.YAMLError:
        raise ConfigError(f"the value of {text!r} is not YAML", "command line", "quote it for the shell") from None
    *path, last = key.strip().split(".")
    place: Any = raw
    for name in path:
        place = _step_into(place, name, text)
    if isinstance(place, list):
        place[_index(place, last, text)] = parsed
    else:
        place[last] = parsed


def _step_into(place: Any, name: str, text: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, text)]
    child = place.get(name)
    if not isinstance(child, (dict, list)):
        child = place[name] = {}
    return child


def _index(place: list[Any], name: str, text: str) -> int:
    """Find a list's item by number, or a phase by its name."""
    names = [str(item.get("name")) if isinstance(item, dict) else "" for item in place]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(place):
        return int(name)
    known = [*names, *(str(number) for number in range(len(place)))]
    raise ConfigError(f"{text!r} names no item {name!r}", "command line", did_you_mean(name, known))


def _with_preset(raw: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("preset") is None:
        return raw
    presets = parse_yaml(_PRESETS.read_text(encoding="utf-8"), str(_PRESETS))
    name = str(model["preset"])
    if name not in presets:
        problems.append(Problem(f"there is no preset {name!r}", "model.preset", did_you_mean(name, list(presets))))
        return {**raw, "model": {**presets["to-code-470m"], **model}}
    return {**raw, "model": {**presets[name], **model}}


def _absolute(config: RunConfig) -> RunConfig:
    sources = {
        name: source.model_copy(update={"path": os.path.abspath(source.path)})
        for name, source in config.sources.items()
    }
    changes: dict[str, Any] = {"sources": sources, "run_dir": os.path.abspath(config.directory)}
    if config.tokenizer is not None:
        changes["tokenizer"] = config.tokenizer.model_copy(update={"path": os.path.abspath(config.tokenizer.path)})
    if config.init.from_ != "random":
        changes["init"] = config.init.model_copy(update={"from_": os.path.abspath(config.init.from_)})
    if config.evaluate is not None and config.evaluate.suite_is_a_file:
        suite = os.path.abspath(config.evaluate.suite)
        changes["evaluate"] = config.evaluate.model_copy(update={"suite": suite})
    return config.model_copy(update=changes)
