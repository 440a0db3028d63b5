"""Name and availability of the suite that scores a run's checkpoints. Does not import lm-eval."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.config.evaluate import Evaluate
from megacode.config.run import RunConfig
from megacode.config.yaml_reader import parse_yaml


def suite_name(config: Evaluate) -> str:
    """Return the suite's name, as used in score files.

    Raises:
        ConfigError: the suite's file cannot be read.
    """
    if not config.suite_is_a_file:
        return config.suite
    path, where = Path(config.suite), "evaluate.suite"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no suite file {path}", where, "give the path of a YAML file, demo or to-code"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the suite file {path} cannot be read: {error}", where, "give a file in UTF-8") from None
    document = parse_yaml(text, f"{where}: {path}")
    if not isinstance(document, dict):
        raise ConfigError(
            f"the suite file {path} contains no suite", where, "write a mapping, for example `tasks: [piqa]`"
        )
    # A suite without a name is called after its file.
    return str(document.get("name", path.stem))


def score_name(suite: str) -> str:
    """Return how a suite's score files are called; after its file where that cannot be read.

    Args:
        suite: the name of a shipped suite, or the path of a YAML file.
    """
    # For readers of existing scores: the suite's file may be gone by now, and its scores must still be found.
    try:
        return suite_name(Evaluate(suite=suite))
    except ConfigError:
        return Path(suite).stem


def check_scoring(config: RunConfig) -> None:
    """Refuse a run that could not be scored.

    Raises:
        ConfigError: the suite cannot be read, or lm-eval is missing where it is needed.
    """
    if config.evaluate is None:
        return
    # Only for its errors: the first score may be due days later, when nobody looks.
    suite_name(config.evaluate)
    # A SLURM job may have an environment of its own, so only local scoring is checked here.
    if config.evaluate.where == "local" and find_spec("lm_eval") is None:
        fix = "pip install 'megacode[eval]', or remove evaluate"
        raise ConfigError("lm-eval is not installed, and scoring needs it", "evaluate", fix)
