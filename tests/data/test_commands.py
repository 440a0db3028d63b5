"""`megacode data`: the commands do what the scripts in tools/ do, and both read Megatron-LM's flags."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode import cli
from megacode.base.environment import explained_imports
from megacode.base.units import parse_count
from megacode.cli.data import script
from megacode.cli.data_corpus import read_limits
from megacode.cli.data_options import _spread
from megacode.config.model import TokenizerConfig
from megacode.corpus.machine import collect
from megacode.data import manifest as manifests
from megacode.data import train_tokenizer
from megacode.data.indexed import bin_path, idx_path
from tests.limits import HANG

TOOLS = Path(__file__).parents[2] / "tools"
SCRIPTS = {
    "tokenizer": "train_tokenizer.py", "preprocess": "preprocess_data.py", "merge": "merge_datasets.py",
    "inspect": "inspect_dataset.py", "corpus": "prepare_corpus.py",
}  # fmt: skip
Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call `megacode ARGUMENTS` in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["megacode", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    return run


def flags(corpus: Path, tokenizer: TokenizerConfig, out: Path, *more: str) -> list[str]:
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer.path]
    return ["--input", str(corpus), "--output-prefix", str(out), *kind, *more]


def test_the_command_and_the_script_make_the_same_bytes(call, corpus, huggingface, tmp_path) -> None:
    given = flags(corpus, huggingface, tmp_path / "a", "--append-eod", "--shuffle-seed", "3")
    assert call("data", "preprocess", *given) == 0
    other = [str(tmp_path / "b") if value == str(tmp_path / "a") else value for value in given]
    assert script("preprocess", "tools/preprocess_data.py", other) == 0
    for path in (bin_path, idx_path):
        assert path(tmp_path / "a_text_document").read_bytes() == path(tmp_path / "b_text_document").read_bytes()
    made = manifests.read(tmp_path / "a_text_document")
    assert made is not None
    assert made.command == "megacode data preprocess " + " ".join(given)


def test_one_flag_takes_several_values(call, huggingface, tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"title": f"title {name}", "text": f"text of {name}"}) + "\n"
        )
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    given = flags(Path(files[0]), huggingface, tmp_path / "out")
    given[1:2] = files
    assert call("data", "preprocess", *given, "--json-keys", "title", "text") == 0
    for key in ("title", "text"):
        made = manifests.read(tmp_path / f"out_{key}_document")
        assert made is not None
        assert made.documents == 2
    merged = [str(tmp_path / f"out_{key}_document") for key in ("title", "text")]
    assert call("data", "merge", "--input", *merged, "--output-prefix", tmp_path / "all") == 0
    whole = manifests.read(tmp_path / "all")
    assert whole is not None
    assert whole.documents == 4


WORDS = st.text("abc/=.", min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["--input", "--keys"]), st.lists(WORDS, min_size=1, max_size=3)), max_size=3))
def test_each_value_gets_its_flag(groups: Sequence[tuple[str, list[str]]]) -> None:
    arguments = [part for flag, values in groups for part in (flag, *values)]
    pairs = [part for flag, values in groups for value in values for part in (flag, value)]
    assert _spread(arguments, {"--input", "--keys"}) == (pairs, "")
    joined = [part for flag, values in groups for part in (f"{flag}={values[0]}", *values[1:])]
    assert _spread(joined, {"--input", "--keys"})[0].count("--input") <= pairs.count("--input")
    assert _spread([*arguments, "--other", "x", "y"], {"--input", "--keys"}) == ([*pairs, "--other", "x", "y"], "")


@pytest.mark.parametrize("arguments", [["--input"], ["--input", "--output-prefix", "x"], ["--output-prefix", "x"]])
def test_a_flag_without_a_value_is_named(arguments, call, capsys) -> None:
    assert call("data", "merge", *arguments) == 2
    assert "'--input'" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_and_command_have_the_same_help(name, call, capsys) -> None:
    assert call("data", name, "--help") == 0
    ours = capsys.readouterr().out.splitlines()
    assert script(name, f"tools/{SCRIPTS[name]}", ["--help"]) == 0
    theirs = capsys.readouterr().out.splitlines()
    assert f"tools/{SCRIPTS[name]}" in theirs[0]
    assert "\n".join(ours[1:]).split("Options:")[1] == "\n".join(theirs[1:]).split("Options:")[1]
    assert len(ours) > 10


@pytest.mark.parametrize("file", [*SCRIPTS.values(), "convert_checkpoint.py"])
def test_a_script_without_its_environment_says_how_to_activate_it(file, tmp_path) -> None:
    done = subprocess.run(  # -S: without site-packages, as a system's own Python
        [sys.executable, "-S", "-E", TOOLS / file, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 2
    assert "the package 'typer' cannot be imported" in done.stderr
    assert "source " in done.stderr
    assert "bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_megacode_itself_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"megacode\.nowhere"), explained_imports():
        __import__("megacode.nowhere")


def test_defaults_in_the_help_are_those_of_the_library(call, capsys) -> None:
    assert parse_count("100M") == train_tokenizer.DEFAULT_BYTES
    assert call("data", "tokenizer", "--help") == 0
    assert "[default: 100M]" in capsys.readouterr().out
    assert read_limits(["code=16M", "text=10M", "markup=6M"]) == collect.DEFAULT_BYTES
    assert call("data", "corpus", "--help") == 0
    assert "code=16M, text=10M, markup=6M" in " ".join(capsys.readouterr().out.split())


def test_helps_load_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\n"
        "from megacode import cli\n"
        "for arguments in (['data', 'preprocess', '--help'], ['init', '--help'], ['--help']):\n"
        "    sys.argv[1:] = arguments\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'megatron', 'transformers', 'tokenizers', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
