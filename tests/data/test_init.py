"""`megacode init`: what it writes is planned and trained as it stands, and what cannot be is refused with a fix."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megacode import cli
from megacode.cli.init_config import _shape, shares
from megacode.cli.init_text import scalar
from megacode.config.config_file import load_config
from megacode.config.yaml_reader import parse_yaml
from megacode.data import manifest as manifests
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.train_tokenizer import train_tokenizer

Call = Callable[..., int]


@pytest.fixture(scope="module")
def made(corpus, huggingface, tmp_path_factory) -> Path:
    """A directory with tokenizer/, data/code_text_document and, of its first quarter, data/few_text_document."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(huggingface.path, place / "tokenizer")
    lines = corpus.read_text().splitlines(keepends=True)
    for name, count in (("code", len(lines)), ("few", len(lines) // 4)):
        (place / f"{name}.jsonl").write_text("".join(lines[:count]))
        preprocess(
            PreprocessJob((str(place / f"{name}.jsonl"),), str(place / "data" / name), huggingface, append_eod=True)
        )
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own with all of it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call `megacode ARGUMENTS` in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["megacode", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    return run


BOTH = ["--data", "code=data/code_text_document", "--data", "few=data/few_text_document", "--tokenizer", "tokenizer"]


def test_what_it_writes_is_planned_as_it_stands(call, place, capsys) -> None:
    assert call("init", *BOTH) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-2:] == ["    megacode plan run.yaml", "    megacode train run.yaml --nproc 2"]
    assert call("plan", "run.yaml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["warnings"] == []
    (phase,) = plan["phases"]
    tokens = {name: manifests.read(f"data/{name}_text_document").tokens for name in ("code", "few")}
    drawn = {name: source["samples"] for name, source in phase["sources"].items()}
    assert drawn["code"] / drawn["few"] == pytest.approx(tokens["code"] / tokens["few"], rel=0.2)
    assert all(0.8 < source["epochs_after"] <= 1 for source in phase["sources"].values())
    assert f"{phase['iterations']} iterations" in said


def test_it_says_why_and_what_else_could_be_chosen(call, place) -> None:
    assert call("init", *BOTH, "--name", "first") == 0
    text = (place / "run.yaml").read_text()
    for part in ("20 tokens per parameter are", "one pass over the data is", "warm-up", "held out",
                 "Even shares would be {code: 0.5, few: 0.5}", "the smallest known model", "name: first "):  # fmt: skip
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    config = load_config("run.yaml")
    assert config.model.vocab_size == 1000
    assert config.checkpoint.every == config.validation.every
    assert config.phases[0].learning_rate.warmup is not None


def test_an_existing_file_stays_without_overwrite(call, place, capsys) -> None:
    (place / "run.yaml").write_text("mine")
    assert call("init", *BOTH) == 2
    assert "OUT: run.yaml already exists\n    give --overwrite" in capsys.readouterr().err
    assert (place / "run.yaml").read_text() == "mine"
    assert call("init", *BOTH, "--overwrite") == 0
    assert load_config("run.yaml").name == "run"


CODE = ["--data", "code=data/code_text_document"]
TOKENIZER = ["--tokenizer", "tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "code=data/code", *TOKENIZER], "did you mean --data code=data/code_text_document?"),
        (
            ["--data", "code=data/code_text_document.bin", *TOKENIZER],
            "did you mean --data code=data/code_text_document?",
        ),
        (["--data", "code=nowhere/x", *TOKENIZER], "--data code=nowhere/x: nowhere/x.idx: there is no such file"),
        (["--data", "co.de=data/code", *TOKENIZER], "write for example --data co-de=data/code"),
        (["--data", "data/code_text_document", *TOKENIZER], "the value is not NAME=PREFIX"),
        ([*CODE, *CODE, *TOKENIZER], "the name 'code' is given twice"),
        ([*CODE, "--tokenizer", "nowhere"], "nowhere: the tokenizer cannot be read"),
        ([*CODE, *TOKENIZER, "--model", "llama1b"], "there is no preset 'llama1b'\n    did you mean llama-1b?"),
        ([*CODE, *TOKENIZER, "--tokens", "many"], "--tokens: 'many' is not a number"),
        (
            [*CODE, *TOKENIZER, "--tokens", "9"],
            "9 is less than one batch of 4,096 tokens\n    give --tokens 4096 or more",
        ),
        ([*CODE, *TOKENIZER, "--seq-length", "1M"], "Invalid value for '--seq-length'"),
        ([*CODE, *TOKENIZER, "--seq-length", "1000000"], "give a smaller --seq-length"),
        ([*CODE, *TOKENIZER, "--seq-length", "30000"], "its held-out documents have"),
        ([*CODE, *TOKENIZER, "--name", "a b"], "the run's name 'a b' may only hold letters"),
        ([*CODE, "few=data/few_text_document", *TOKENIZER], "give --data before each data set"),
        ([*CODE, *TOKENIZER, "nowhere.yaml/run.yaml/x.json"], "is not a .yaml file"),
    ],
)
def test_what_cannot_be_is_refused_with_a_fix(arguments, message, call, place, capsys) -> None:
    assert call("init", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not list(place.glob("*.yaml"))


def test_every_data_set_of_another_tokenizer_is_named(call, place, capsys) -> None:
    train_tokenizer("huggingface", ["code.jsonl"], 900, place / "other")
    assert call("init", *BOTH[:4], "--tokenizer", "other") == 2
    shown = capsys.readouterr().err
    for name in ("code", "few"):
        assert f"--data {name}=data/{name}_text_document: it was made with tokenizer" in shown
    assert "give --tokenizer the one that made it" in shown


def test_a_data_set_without_manifest_is_taken_and_said(call, place) -> None:
    (place / "data" / "few_text_document.manifest.json").unlink()
    assert call("init", *BOTH) == 0
    text = (place / "run.yaml").read_text()
    assert text.count("no manifest says which tokenizer made it") == 1


def test_a_data_set_whose_tokens_are_not_in_the_vocabulary_is_refused(call, place, capsys) -> None:
    (place / "data" / "code_text_document.manifest.json").unlink()
    train_tokenizer("huggingface", ["code.jsonl"], 400, place / "other")
    assert call("init", *CODE, "--tokenizer", "other") == 2
    assert "but the vocabulary has 400" in capsys.readouterr().err


def test_data_for_less_than_one_batch_are_refused(call, place, write_dataset, capsys) -> None:
    given = ["--data", f"long={write_dataset([5000, 2000])}", *TOKENIZER, "--seq-length", "1000"]
    assert call("init", *given) == 2
    assert "the data sets have 3,000 tokens for training, less than one batch of 8,000" in capsys.readouterr().err


def test_a_preset_and_a_length_are_taken_as_given(call, place, capsys) -> None:
    assert call("init", *CODE, *TOKENIZER, "sub/big.yaml", "--model", "to-code-470m", "--tokens", "2B") == 0
    said = capsys.readouterr().out
    assert "passes over the data: " in said
    config = load_config("sub/big.yaml")
    assert (config.name, config.model.preset, config.model.num_layers) == ("big", "to-code-470m", 16)
    assert config.phases[0].tokens == 2 * 10**9
    assert config.precision.dtype == "bf16"


def test_names_and_paths_that_yaml_would_misread_come_back(call, place) -> None:
    (place / "my data, all: {x}").symlink_to(place / "data")
    given = ["--data", "no=my data, all: {x}/code_text_document", "--data", "1e3=data/few_text_document"]
    assert call("init", *given, *TOKENIZER) == 0
    config = load_config("run.yaml")
    assert list(config.sources) == ["no", "1e3"]
    assert config.sources["no"].path == str(place / "my data, all: {x}/code_text_document")
    assert set(config.phases[0].blend) == {"no", "1e3"}


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20))
def test_any_text_comes_back_from_yaml(text: str) -> None:
    assert parse_yaml(f"{{{scalar(text)}: {scalar(text)}}}", "") == {text: text}
    assert yaml.safe_load(scalar(text)) == text


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 10**13), min_size=1, max_size=8))
def test_shares_are_in_proportion_and_sum_to_one(tokens: dict[str, int]) -> None:
    found = {name: Decimal(share) for name, share in shares(tokens).items()}
    assert sum(found.values()) == 1
    for name, count in tokens.items():
        assert float(found[name]) == pytest.approx(count / sum(tokens.values()), rel=0.08)


def test_more_data_get_a_larger_model() -> None:
    sizes = [_shape("", 10**power, 32_000).parameters(32_000) for power in range(5, 15)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 5
    assert all(20 * size <= 10**power for size, power in zip(sizes[4:], range(9, 15), strict=True))


@pytest.mark.slow
def test_what_it_writes_is_trained_as_it_stands(call, place, megacode) -> None:
    assert call("init", *BOTH, "--seq-length", 64, "--tokens", 1024) == 0
    done = megacode("train", "run.yaml", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (place / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == [1, 2]
