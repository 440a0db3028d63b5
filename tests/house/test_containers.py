"""The recipes in containers/ pin what the tests run with; they cannot be built here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from megacode.mcore import te, version

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"
DOCKERFILE, DEFINITION = ((FOLDER / name).read_text() for name in ("Dockerfile", "megacode.def"))
CONSTRAINTS = dict(
    line.split("==")
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith(("#", "megatron-core"))
)


def arguments(text: str) -> dict[str, str]:
    """Return a recipe's arguments with their defaults."""
    return dict(re.findall(r"^(?:ARG |    )([A-Z_]+)=(\S+)$", text, re.MULTILINE))


def words(text: str) -> list[str]:
    """Return what pip and apt are called with, without the spelling of each recipe's own arguments."""
    joined = re.sub(r"\\\n", " ", text)
    joined = re.sub(r"\$(\w+)|\{\{ (\w+) \}\}", lambda found: f"<{found[1] or found[2]}>", joined)
    lines = re.split(r"\n|&&", joined)
    calls = [line[line.index("install") :] for line in lines if re.search(r"(pip|apt-get) install", line)]
    return [" ".join(call.split()) for call in calls]


def test_the_pins_are_those_of_the_tests() -> None:
    pins = arguments(DOCKERFILE)
    assert pins["TORCH"] == CONSTRAINTS["torch"]
    assert pins["MEGATRON_CORE"] == version.TESTED[0, 19]
    engine = version.parse(pins["TRANSFORMER_ENGINE"])
    assert te.OLDEST <= engine < te._BELOW[0, 19]
    assert "python3.12 -m venv" in DOCKERFILE  # what megatron-core 0.19 declares


def test_both_recipes_install_the_same() -> None:
    assert arguments(DEFINITION) == arguments(DOCKERFILE)
    assert len(words(DOCKERFILE)) == 5
    assert words(DEFINITION) == words(DOCKERFILE)
    base = re.search(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    assert f"From: {base[1]}\n" in DEFINITION


def test_everything_is_installed_under_the_constraints_and_arguments_are_used() -> None:
    pip = [call for call in words(DOCKERFILE) if "apt" not in call and "--constraint" in call]
    assert len(pip) == 4
    for text in (DOCKERFILE, DEFINITION):
        for name in arguments(text):
            assert len(re.findall(rf"\b{name}\b", text)) > 1, name


def test_the_files_that_they_copy_are_there() -> None:
    copied = re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE)
    copied += re.findall(r"^    (\S+) /opt/", DEFINITION, re.MULTILINE)
    assert len(copied) == 8
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # setup.py reads these two when it is run.
    assert {"README.md", "megacode"} < set(copied)


@pytest.mark.parametrize("text", [DOCKERFILE, DEFINITION], ids=["docker", "apptainer"])
def test_the_shell_in_them_parses(text: str) -> None:
    if "%post" in text:
        script = re.sub(r"\{\{ (\w+) \}\}", r"$\1", text.split("%post")[1].split("%environment")[0])
    else:
        steps = re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE)
        assert len(steps) == 5
        script = "\n".join(steps)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
