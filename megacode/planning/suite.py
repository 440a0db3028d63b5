"""The suite that scores a run's checkpoints: its name, and whether it can be scored here. Without lm-eval."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.config.evaluate import Evaluate
from megacode.config.run import RunConfig
from megacode.config.yaml_reader import parse_yaml


def suite_name(config: Evaluate) -> str:
    """Return the suite's name, as it stands in score files.

    Raises:
        ConfigError: its file cannot be read.
    """
    if not config.suite_is_a_file:
        return config.suite
    path, where = Path(config.suite), "evaluate.suite"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no suite file {path}", where, "name a YAML file, demo or to-code") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the suite file {path} cannot be read: {error}", where, "give a file in UTF-8") from None
    document = parse_yaml(text, f"{where}: {path}")
    if not isinstance(document, dict):
        raise ConfigError(f"the suite file {path} holds no suite", where, "write for example `tasks: [piqa]` into it")
    return str(document.get("name", path.stem))


def check_scoring(config: RunConfig) -> None:
    """Refuse a run whose scores could not be made.

    Raises:
        ConfigError: the suite cannot be read, or lm-eval is missing where it is needed.
    """
    if config.evaluate is None:
        return
    suite_name(config.evaluate)
    if config.evaluate.where == "local" and find_spec("lm_eval") is None:
        fix = "pip install 'megacode[eval]', or remove evaluate"
        raise ConfigError("lm-eval is not installed here, and scores need it", "evaluate", fix)
