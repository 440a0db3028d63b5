"""Which checkpoints have their scores already: those whose file is of the same bytes, suite, tasks and items."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from megacode.checkpoint.state import TrainState
from megacode.eval.checkpoint_scores import as_the_run_asks, is_scored
from megacode.eval.harness import ScoringOptions
from megacode.eval.suites import Suite
from megacode.eval.task_loading import RUN_CODE

STATE = TrainState(iteration=4, consumed_samples=32)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    text = tmp_path / "page.txt"
    text.write_text("words")
    return Suite("tiny", (), (), texts={"bits_per_byte_page.txt": text})


@pytest.fixture
def file(tmp_path: Path, suite: Suite) -> Path:
    """A score file of the checkpoint by the suite, all of its items."""
    path = tmp_path / "tiny@iter_0000004.json"
    path.write_text(json.dumps(document(suite)))
    return path


def document(suite: Suite, **changes: Any) -> dict[str, Any]:
    model = {"megacode": {"checkpoint_seal": STATE.seal}}
    return {
        "model": model, "settings": {"limit": None}, "left_out": {}, "suite_sha256": suite.files_digest(), **changes
    }  # fmt: skip


def test_a_file_of_the_same_checkpoint_and_suite_counts(suite: Suite, file: Path) -> None:
    assert is_scored(STATE, suite, file, ScoringOptions())
    assert is_scored(STATE, suite, file, ScoringOptions(limit=8)), "it has more than is asked for"
    assert not is_scored(STATE, suite, file.with_name("other.json"), ScoringOptions())


def test_another_checkpoint_of_the_same_iteration_needs_its_own(suite: Suite, file: Path) -> None:
    again = TrainState(iteration=4, consumed_samples=32, files={"rank_00000.safetensors": {"xxh3": "other"}})
    assert not is_scored(again, suite, file, ScoringOptions())


def test_a_suite_that_has_changed_is_run_again(suite: Suite, file: Path) -> None:
    next(iter(suite.texts.values())).write_text("other words")
    assert not is_scored(STATE, suite, file, ScoringOptions())


def test_fewer_items_or_tasks_than_asked_for_do_not_count(suite: Suite, file: Path) -> None:
    file.write_text(json.dumps(document(suite, settings={"limit": 8})))
    assert is_scored(STATE, suite, file, ScoringOptions(limit=8))
    assert not is_scored(STATE, suite, file, ScoringOptions())
    assert not is_scored(STATE, suite, file, ScoringOptions(limit=9))
    file.write_text(json.dumps(document(suite, left_out={"mbpp": RUN_CODE, "piqa": "left out on request"})))
    assert not is_scored(STATE, suite, file, ScoringOptions())
    assert is_scored(STATE, suite, file, ScoringOptions(without=("piqa",)))
    assert not is_scored(STATE, suite, file, ScoringOptions(without=("piqa",), run_code=True))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"megacode": null}, "settings": {"limit": null}}'])
def test_a_file_that_is_none_does_not_count(suite: Suite, file: Path, text: str) -> None:
    file.write_text(text)
    assert not is_scored(STATE, suite, file, ScoringOptions())


def test_without_a_suite_the_run_s_own_section_decides(golden: Path, tmp_path: Path) -> None:
    text = golden.read_text() + f"tokenizer: {{kind: huggingface, path: {tmp_path}}}\n"
    (tmp_path / "run.yaml").write_text(text)
    assert as_the_run_asks(tmp_path, ScoringOptions(), False) == ("demo", ScoringOptions(), False)
    section = "evaluate: {suite: to-code, limit: 8, without: [storycloze], keep_exports: true}\n"
    (tmp_path / "run.yaml").write_text(text + section)
    asked = ScoringOptions(limit=8, without=("storycloze",), backend="hf")
    assert as_the_run_asks(tmp_path, ScoringOptions(), False) == ("to-code", asked, True)
    assert as_the_run_asks(tmp_path, ScoringOptions(limit=2), False)[1].limit == 2
    (tmp_path / "run.yaml").write_text(text + "evaluate: {suite: to-code, backend: vllm, where: slurm}\n")
    assert as_the_run_asks(tmp_path, ScoringOptions(), False)[1].backend == "vllm"
    # On a machine without vLLM: what the user says wins over the run.
    assert as_the_run_asks(tmp_path, ScoringOptions(backend="hf"), False)[1].backend == "hf"


def scorer(run: Path, iteration: int) -> subprocess.Popen[str]:
    program = Path(__file__).with_name("scoring_lock_program.py")
    command = [sys.executable, str(program), str(run), str(iteration)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def said(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def test_two_processes_score_a_checkpoint_one_after_the_other_also_where_the_first_is_killed(tmp_path: Path) -> None:
    with scorer(tmp_path, 4) as first:
        assert said(first.stdout) == "in\n"
        with scorer(tmp_path, 5) as other, scorer(tmp_path, 4) as second:
            assert said(other.stdout) == "in\n", "another checkpoint is scored at the same time"
            assert "another process is scoring" in said(second.stderr)
            first.kill()
            assert "taking over" in said(second.stderr)
            assert said(second.stdout) == "in\n"
            for process in (other, second):
                process.communicate("")
                assert process.returncode == 0
    assert not list((tmp_path / "eval/.scoring").iterdir()), "nothing is left behind"


def test_a_scorer_lets_the_next_one_in_when_it_ends(tmp_path: Path) -> None:
    with scorer(tmp_path, 4) as first:
        assert said(first.stdout) == "in\n"
        with scorer(tmp_path, 4) as second:
            assert "another process is scoring" in said(second.stderr)
            first.communicate("")
            assert said(second.stdout) == "in\n"
            second.communicate("")
    assert (first.returncode, second.returncode) == (0, 0)
