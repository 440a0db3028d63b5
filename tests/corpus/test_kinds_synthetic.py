from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.base.sandbox import Sandbox, SandboxLimits, run_program
from megacode.corpus.kinds.synthetic import _emptied, reason_to_drop
from tests.corpus.records import documents_of

ADD = "def add(a, b):\n    return a + b\n"
LIMITS = SandboxLimits(wall_seconds=20, cpu_seconds=1, memory_bytes=256 << 20, processes=False)


@pytest.mark.parametrize(
    ("solution", "tests", "reason"),
    [
        (ADD, "assert add(1, 2) == 3", None),
        (ADD, "def test_add():\n    assert add(1, 2) == 3\n", None),
        ("class C:\n    x = 2\n    def f(self): return self.x\n", "assert C().f() == 2", None),
        ("x = 3", "assert x == 3", None),
        (ADD, "assert add(1, 2) == 4", "tests fail"),
        (ADD, "def test_add():\n    assert add(1, 2) == 4\n", "tests fail"),
        (ADD, "add(1, 2)", "tests pass on an empty solution"),
        (ADD, "assert callable(add)", "tests pass on an empty solution"),
        (ADD, "def check():\n    assert add(1, 2) == 4\n", "tests pass on an empty solution"),
        (ADD, " \n", "no tests"),
        (ADD, "assert (", "tests do not compile"),
        ("def add(a, b:", "assert add(1, 2) == 3", "solution does not compile"),
        ("x = '\0'", "assert x", "solution does not compile"),
        ("(" * 5_000, "assert x", "solution does not compile"),
        ("def add(a, b):\n    while True: pass\n", "assert add(1, 2) == 3", "killed"),
        ("def add(a, b):\n    return bytearray(1 << 32)\n", "assert add(1, 2) == 3", "tests fail"),
        ("import os\ndef add(a, b):\n    while True: os.fork()\n", "assert add(1, 2) == 3", "tests fail"),
        ("import sys\ndef add(a, b):\n    sys.exit(0)\n", "assert add(1, 2) == 3", "tests fail"),
    ],
)
def test_a_solution_is_dropped_for_its_reason(solution: str, tests: str, reason: str | None) -> None:
    with Sandbox() as sandbox:
        assert reason_to_drop(sandbox, solution, tests, LIMITS) == reason


def test_a_program_that_waits_is_timed_out() -> None:
    limits = SandboxLimits(wall_seconds=0.5)
    with Sandbox() as sandbox:
        assert reason_to_drop(sandbox, "import time\ndef f():\n    time.sleep(60)\n", "f()", limits) == "timed out"


def test_an_emptied_solution_keeps_names_and_loses_bodies() -> None:
    solution = "import os\nN = 2\nprint(N)\nclass C:\n    def f(self):\n        return 1\nasync def g(): await x\n"
    assert (
        _emptied(solution)
        == "import os\nN = 2\n\nclass C:\n\n    def f(self):\n        pass\n\nasync def g():\n    pass"
    )
    assert _emptied("print(1)") == ""


def test_verified_records_become_documents_and_the_others_are_counted() -> None:
    rows = [
        {"id": "a", "problem": "Add.\n\nTwo numbers.", "solution": ADD, "tests": ["assert add(1, 2) == 3"], "level": 1},
        {"id": "b", "problem": "Add.", "solution": ADD, "tests": "add"},
        {"id": "c", "problem": "Add.", "solution": ADD, "tests": [1]},
    ]
    documents, dropped = documents_of("synthetic", *rows, run_generated_code=True, with_tests=True)
    assert dropped == {"tests pass on an empty solution": 1, "no text": 1}
    assert documents[0].text == f"# Add.\n#\n# Two numbers.\n\n{ADD}\nassert add(1, 2) == 3\n"
    assert (documents[0].id, documents[0].fields) == ("a", {"level": 1, "language": "python"})


def test_where_no_program_can_run_no_solution_is_judged() -> None:
    row = {"problem": "Add.", "solution": ADD, "tests": ["assert add(1, 2) == 3"]}
    with pytest.raises(ConfigError, match=r"one that does nothing ends with .*\n.*ulimit -a"):
        documents_of("synthetic", row, run_generated_code=True, wall_seconds=1e-9)


def test_programs_run_only_if_that_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"settings.run_generated_code.*must be allowed"):
        documents_of("synthetic", {"problem": "", "solution": "", "tests": ""})


@pytest.mark.parametrize(
    "change",
    ["open({file!r}, 'w')", "open({new!r}, 'w')", "os.remove({file!r})", "os.truncate({file!r}, 0)",
     "os.rename({file!r}, 'a')", "os.mkdir({new!r})", "os.symlink('a', {new!r})"],
)  # fmt: skip
def test_a_program_cannot_change_files_outside_its_directory(tmp_path: Path, change: str) -> None:
    file, new = tmp_path / "file", tmp_path / "new"
    file.write_text("kept")
    if run_program("import os\nos.mkdir('a')\nopen('a/b', 'w').write('x')\nos.rename('a/b', 'c')").passed:
        probe = tmp_path / "probe"
        if run_program(f"open({str(probe)!r}, 'w')").passed:
            pytest.skip("this kernel has no Landlock")
    outcome = run_program("import os\n" + change.format(file=str(file), new=str(new)))
    assert (outcome.passed, file.read_text(), new.exists()) == (False, "kept", False)


@pytest.mark.parametrize(
    "start", ["os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "__import__('subprocess').run(['/bin/true'])"]
)
def test_a_program_that_may_start_no_process_still_starts_threads(start: str) -> None:
    threads = "import os, threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
    assert run_program(threads, LIMITS).passed
    assert not run_program(threads + start, LIMITS).passed
