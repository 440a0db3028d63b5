"""The house's own rules: floors, style, size, and what a login node may load."""

from __future__ import annotations

import ast
import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacode import cli
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "megacode").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
LONGEST_FUNCTION = 60
LONGEST_FILE = 350


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",)]
)
def test_linters_find_nothing(tool: tuple[str, ...]) -> None:
    done = run(str(Path(sys.executable).parent / tool[0]), *tool[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def test_functions_and_files_stay_short() -> None:
    assert len(SOURCES) > 100
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not long


def test_planning_loads_no_torch() -> None:
    program = (
        "import sys, megacode.cli, megacode.planning.run_plan, megacode.planning.order, megacode.planning.tables,"
        "megacode.report.page, megacode.launch.local_ranks, megacode.statistics.comparing, megacode.statistics.table;"
        "print([m for m in ('torch', 'megatron', 'transformers', 'lm_eval') if m in sys.modules])"
    )
    done = run(sys.executable, "-c", program)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if path.stem != "base"
    and path.parent.name not in ("studies", "corpora")  # planned in tests/study; read in tests/corpus
]


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_plans_before_its_data_is_there(config: Path) -> None:
    done = run(sys.executable, "-m", "megacode.cli", "plan", str(config), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["total_samples"] == sum(phase["samples"] for phase in document["phases"])


def test_shell_scripts_parse() -> None:
    for script in [*(ROOT / "slurm").glob("*.sh"), ROOT / ".ci" / "run"]:
        assert run("bash", "-n", str(script)).returncode == 0, script


def test_a_mistyped_command_is_an_input_error() -> None:
    done = run(sys.executable, "-m", "megacode.cli", "trian")
    assert done.returncode == 2
    assert "No such command 'trian'" in done.stderr


def test_the_version_is_told() -> None:
    done = run(sys.executable, "-m", "megacode.cli", "--version")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"megacode \d+\.\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/a b/run.yaml"),
            2,
            "File error: /a b/run.yaml: perm",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/ro/x"), 2, "/ro/x: read-only file system\n    choose a path"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 2, "Disk full: /full: no space left on device"),
    ],
)
def test_what_the_system_refuses_ends_without_a_traceback(
    error: OSError, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert said in capsys.readouterr().err


def test_a_failure_of_megacode_s_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no path, no number")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="no path"):
        cli.main()


@pytest.mark.parametrize("command", [["report", "RUN"], ["convert", "to-hf", "RUN"], ["demo"]])
def test_an_output_where_nothing_can_be_written_is_refused_before_the_work(command: list[str]) -> None:
    place = ["/proc/nowhere/out"] if "convert" in command else ["--out", "/proc/nowhere/out"]
    done = run(sys.executable, "-m", "megacode.cli", *command, *place)
    assert done.returncode == 2
    assert "OUT: cannot write in /proc" in done.stderr.replace("--out", "OUT")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--level", "--learning-rate"])
def test_numbers_that_are_not_finite_are_input_errors(option: str, wrong: str) -> None:
    done = CliRunner().invoke(cli.app, ["transfer", "RUN", "--tasks", "demo", option, wrong])
    assert done.exit_code == 2
    assert option in done.output


def test_every_option_that_takes_a_number_refuses_those_that_are_not_finite() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCES if path.parent.name == "cli"]
    found = [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and re.match(r"Annotated\[float\b", ast.unparse(node))
    ]
    assert len(found) > 5
    assert not [option for option in found if "float_option(" not in option]


def test_no_ranks_is_an_input_error() -> None:
    done = run(sys.executable, "-m", "megacode.cli", "train", "run.yaml", "--nproc", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_doctor_answers_in_json() -> None:
    done = run(sys.executable, "-m", "megacode.cli", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    parts = {finding["part"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert {"torch", "CUDA", "NCCL", "Transformer Engine", "Triton", "apex", "DALI", "SLURM", "disk", "network"} <= set(
        parts
    )
    assert parts["torch"]["found"]
    core = parts["megatron-core"]
    assert core["found"]
    assert "0.16.1 on CPUs, and on one H200 with Transformer Engine 2.11.0" in core["path"]
    assert "0.19.2 on CPUs, with Transformer Engine unmeasured" in core["path"]
    assert ("critical fixes only" in core["path"]) == core["found"].startswith("0.19.")
