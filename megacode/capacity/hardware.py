"""Load the constants of the memory and step-time models: `hardware.yaml`, overridden by a user's own file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megacode.base.errors import ConfigError, Problem
from megacode.config.suggestions import did_you_mean
from megacode.config.yaml_reader import parse_yaml

_TABLE = Path(__file__).with_name("hardware.yaml")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where libyaml is installed: ten times faster
GIB = 2**30
_Json = dict[str, Any]


@dataclass(frozen=True)
class Hardware:
    """Constants of one kind of GPU, its nodes and network, and of megacode's efficiency on them.

    Attributes:
        gpu: its name.
        values: the constants by name, of `gpus.<gpu>` and of the other sections; `hardware.yaml` gives their units.
        measured: the constants that were measured with megacode, and when.
    """

    gpu: str
    values: dict[str, float]
    measured: dict[str, str]

    def __getitem__(self, name: str) -> float:
        """Return a constant."""
        return self.values[name]

    @property
    def memory(self) -> float:
        """Bytes of one GPU."""
        return self.values["memory_gib"] * GIB

    @property
    def memory_to_plan_with(self) -> float:
        """Bytes of one GPU, minus a margin for the error of the model."""
        # Advice only names layouts that fit with this margin.
        return self.memory * (1 - self.values["headroom"])

    def peak_flops(self, dtype: str) -> float:
        """Return the peak of dense matrix products in a dtype, in FLOP/s."""
        return self.values[f"{dtype}_flops"]


def load_hardware(gpu: str, file: Path | None = None) -> Hardware:
    """Return the constants for one kind of GPU.

    Args:
        gpu: its name; case does not matter.
        file: a user's table, whose constants take precedence.

    Raises:
        ConfigError: unknown GPU, or an invalid table.
    """
    table = _read(_TABLE)
    if file is not None:
        table = _laid_over(table, _read(file), str(file))
    known = {name.lower(): name for name in table["gpus"]}
    if gpu.lower() not in known:
        fix = f"{did_you_mean(gpu, list(known.values()))}; --hardware FILE can add another"
        raise ConfigError(f"unknown GPU {gpu!r}", "--gpu", fix)
    # Sections other than `gpus` are global: their constants hold for every GPU.
    name = known[gpu.lower()]
    constants = {
        **table["gpus"][name],
        **{k: v for section in table if section != "gpus" for k, v in table[section].items()},
    }
    return Hardware(
        name,
        {key: float(entry["value"]) for key, entry in constants.items()},
        {key: str(entry["measured"]) for key, entry in constants.items() if entry.get("measured")},
    )


def _read(file: Path) -> _Json:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", f"--hardware {file}", "give a YAML file in UTF-8") from None
    # The C parser is ten times faster; a user's own table is also checked for duplicate keys.
    table = yaml.load(text, Loader=_LOADER) if file == _TABLE else parse_yaml(text, f"--hardware {file}")
    if not isinstance(table, dict):
        raise ConfigError(
            "not a table of constants", f"--hardware {file}", "write it like megacode/capacity/hardware.yaml"
        )
    return table


def _laid_over(table: _Json, own: _Json, file: str) -> _Json:
    """Return the table overridden by a user's constants; all mistakes are reported at once."""
    problems: list[Problem] = []
    result = dict(table)
    for section, entries in own.items():
        if section not in result or not isinstance(entries, dict):
            problems.append(
                Problem(f"{section!r} is not a section of the table", file, did_you_mean(str(section), list(result)))
            )
        elif section == "gpus":
            result[section] = _gpus_laid_over(result[section], entries, f"{file}:gpus", problems)
        else:
            result[section] = _merged(result[section], entries, f"{file}:{section}", problems)
    if problems:
        raise ConfigError(problems=problems)
    return result


def _gpus_laid_over(known: _Json, own: _Json, where: str, problems: list[Problem]) -> _Json:
    """Return the GPUs overridden by a user's; a new GPU names a known one that it is `like`."""
    result = dict(known)
    for gpu, constants in own.items():
        entries = dict(constants) if isinstance(constants, dict) else {}
        # A known GPU that is overridden is `like` itself.
        model = entries.pop("like", gpu)
        if model in known and entries:
            result[gpu] = _merged(known[model], entries, f"{where}.{gpu}", problems)
            continue
        fix = f"write {gpu}: {{like: H100, memory_gib: 95}}, with the constants that differ; known: {', '.join(known)}"
        problems.append(Problem(f"{gpu!r} has no constants, or is not `like` a known GPU", where, fix))
    return result


def _merged(known: _Json, own: _Json, where: str, problems: list[Problem]) -> _Json:
    result = dict(known)
    for name, entry in own.items():
        value = entry.get("value") if isinstance(entry, dict) else entry
        if name not in known:
            fix = did_you_mean(str(name), list(known))
            problems.append(Problem(f"{name!r} is not a constant of the table", where, fix))
        elif not _is_positive(value):
            problems.append(Problem(f"{value!r} is not a positive number", f"{where}.{name}", "give a number above 0"))
        else:
            result[name] = entry if isinstance(entry, dict) else {"value": value, "measured": None}
    return result


def _is_positive(value: object) -> bool:
    # YAML 1.1 reads 4.5e10, without a sign in the exponent, as text.
    try:
        return isinstance(value, (int, float, str)) and not isinstance(value, bool) and float(value) > 0
    except ValueError:
        return False
