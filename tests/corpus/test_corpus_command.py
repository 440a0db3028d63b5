"""`megacode data corpus RECIPE`: the recipe's mistakes, the plan, and what the command prints."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.corpus.recipe import load_recipe, read_recipe
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {"kind": "text", "inputs": "raw/*.jsonl"}


@pytest.fixture
def written(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "planted.yaml"
    path.write_text(yaml.safe_dump({"output": "out", "sources": {"web": SOURCE}, "duplicates": {"threshold": 0.7}}))
    return path


def test_the_command_makes_the_corpus_and_prints_its_card(written, call, capsys):
    assert call("data", "corpus", str(written), "--plan") == 0
    plan = capsys.readouterr().out
    assert re.search(r"web +text +3 ", plan)
    assert "duplicates: threshold 0.7, ngram 5" in plan
    assert "map pass: 0 of 1 shards; reduce pass: not done" in plan
    assert not Path("out").exists()
    assert call("data", "corpus", str(written)) == 0
    card = capsys.readouterr().out
    assert "near-duplicate" in card
    assert "out/corpus/card.html: the same as a page" in card
    assert max(map(len, card.split("web: samples")[0].splitlines())) < 200
    assert call("data", "corpus", str(written), "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["command"] == f"megacode data corpus {written}"
    assert call("data", "corpus", str(written), "--plan", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == {"map": 1, "reduce": True, "apply": 1, "complete": True}


def test_passes_by_task_make_what_one_call_makes(written, call, capsys):
    for only in ("prepare", "map", "reduce", "apply"):
        tasks = ["--task", "0/1"] if only in ("map", "apply") else []
        assert call("data", "corpus", str(written), "--pass", only, *tasks) == 0
    made = json.loads(Path("out/corpus/manifest.json").read_text())
    capsys.readouterr()
    assert call("data", "corpus", str(written), "--output", "other", "--json") == 0
    other = json.loads(capsys.readouterr().out)
    assert other["outputs"] == made["outputs"]
    assert other["command"].endswith("--output other")


def test_all_mistakes_of_a_recipe_are_named_at_once(tmp_path):
    document: dict[str, Any] = {
        "output": "out", "sorces": {}, "sources": {
            "a": {"kind": "txt", "inputs": []}, "b/c": {**SOURCE, "filters": {"max_lin": 3}},
            "d": {"kind": "code", "inputs": "-", "settings": {"languages": ["Pyton"]}, "held_out": 2},
        }, "duplicates": {"threshold": 0.2}, "decontaminate": {"held_out": True},
    }  # fmt: skip
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as refused:
        load_recipe(path)
    said = str(refused.value)
    for part in (
        "sorces is not a setting", "did you mean sources?", "there is no kind 'txt'", "did you mean text?",
        "sources.a.inputs: the source has no inputs", "did you mean max_line?", "'b/c' cannot be the name",
        "standard input cannot be an input", "Pyton", "duplicates.threshold: 0.2 is not", "give at least 0.5",
        "sources.d.held_out",
    ):  # fmt: skip
        assert part in said, part


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("output: a\noutput: b\n")
    with pytest.raises(ConfigError, match="duplicate key 'output', in lines 1 and 2"):
        load_recipe(path)


def test_held_out_documents_that_no_source_has_are_refused():
    document = {"name": "x", "output": "out", "sources": {"a": SOURCE}, "decontaminate": {"held_out": True}}
    with pytest.raises(ConfigError, match="no source holds documents out"):
        read_recipe(document, "x.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pass", "shuffle"], "--pass: there is no pass 'shuffle'"),
        (["--processes", "0"], "--processes: 0 is not a valid number"),
        (["--shard", "4/4"], "--shard: there is no shard 4/4"),
        (["--task", "9"], "--task: '9' is not of the form I/N"),
        (["--seed", "1"], "--seed: this option does not go with a recipe"),
    ],
)
def test_options_that_make_no_sense_say_what_does(written, call, capsys, arguments, message):
    assert call("data", "corpus", str(written), *arguments) == 2
    assert message in capsys.readouterr().err


def test_without_a_recipe_its_options_are_refused(call, capsys):
    assert call("data", "corpus") == 2
    assert "there is neither a recipe nor an output" in capsys.readouterr().err
    assert call("data", "corpus", "--plan") == 2
    assert "--plan: this option needs a recipe" in capsys.readouterr().err


FAKE_SBATCH = """#!/bin/bash
n=$(($(cat count 2> /dev/null || echo 0) + 1))
echo $n > count
echo "$CORPUS_PASS $CORPUS_TASKS $*" >> submitted
echo "$((100 + n));cluster"
"""


@pytest.fixture
def submit(written: Path, tmp_path: Path, megacode_on_path: dict[str, str]) -> Callable[..., Any]:
    """Returns a function that runs slurm/corpus.sh, where sbatch only notes what it is given."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sbatch"
    program.write_text(FAKE_SBATCH)
    program.chmod(0o755)

    def run(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**megacode_on_path, "PATH": f"{tmp_path / 'bin'}:{megacode_on_path['PATH']}", **variables}
        command = ["bash", str(ROOT / "slurm" / "corpus.sh"), *flags]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG, check=False
        )

    return run


def test_the_script_submits_passes_that_wait_for_each_other(submit, written, tmp_path, call):
    done = submit("--partition=cpu", RECIPE="planted.yaml", TASKS="256")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["prepare: job 101", "map: job 102"]
    rows = (tmp_path / "submitted").read_text().splitlines()
    assert [row.split()[:2] for row in rows] == [["prepare", "1"], ["map", "1"], ["reduce", "1"], ["apply", "1"]]
    for row, before in zip(rows[1:], (101, 102, 103), strict=True):
        assert f"--dependency=afterok:{before} --kill-on-invalid-dep=yes" in row
        assert "--partition=cpu" in row
    assert [("--array=0-0" in row) for row in rows] == [False, True, False, True]
    assert call("data", "corpus", str(written)) == 0
    again = submit(RECIPE="planted.yaml")
    assert again.stdout == "the corpus is complete\n"
    assert len((tmp_path / "submitted").read_text().splitlines()) == 4


def test_the_script_refuses_what_it_cannot_submit(submit):
    assert "RECIPE is not set" in submit().stderr
    missing = submit(RECIPE="nowhere.yaml")
    assert missing.returncode == 2
    assert "no such file" in missing.stderr
    assert "TASKS is '0'" in submit(RECIPE="planted.yaml", TASKS="0").stderr
    assert (
        "run slurm/corpus.sh on a login node"
        in submit(RECIPE="planted.yaml", SLURM_JOB_ID="7", MEGACODE_ROOT=str(ROOT)).stderr
    )
