"""Kind `synthetic`: problems with solutions in Python that were run, and tests that were shown to test something.

A record is kept only if its solution compiles, the solution passes its tests in the sandbox, and the tests fail on an
emptied solution, in which every function's body is `pass`. Tests that pass on an empty solution prove nothing.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from megacode.base.errors import ConfigError
from megacode.base.sandbox import Sandbox, SandboxLimits
from megacode.corpus.document import Counts, Document
from megacode.corpus.kinds.records import RecordKeys, Row, drop, rows_of
from megacode.data.records import Records, field_of

# Called after the tests: pytest's functions do nothing by themselves.
_CALL_TESTS = """
for _name, _test in list(globals().items()):
    if _name.startswith("test_") and callable(_test):
        _test()
"""
# A definition in a class or function; what else stands at the top level of an emptied solution.
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_KEPT = (*_FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


class SyntheticSettings(RecordKeys):
    """Settings of the kind `synthetic`.

    Attributes:
        text: not used.
        problem: key of the problem's text.
        solution: key of the solution's code.
        tests: key of the tests: code, or a list of assertions.
        run_generated_code: must be true: programs of the input are run, in a sandbox that stops accidents, no attacker.
        wall_seconds: of one program.
        cpu_seconds: of one program.
        memory_mib: address space of one program in MiB.
        with_tests: write the tests behind the solution.
    """

    problem: str = "problem"
    solution: str = "solution"
    tests: str = "tests"
    run_generated_code: bool = False
    wall_seconds: float = Field(default=10.0, gt=0)
    cpu_seconds: int = Field(default=5, ge=1)
    memory_mib: int = Field(default=512, ge=64)
    with_tests: bool = False


def synthetic_documents(batches: Iterator[Records], settings: SyntheticSettings, counts: Counts) -> Iterator[Document]:
    """Yield a document for each record whose solution is verified: the problem as comments, then the solution.

    Raises:
        ConfigError: running the programs was not allowed.
    """
    # In the recipe, not on the command line: whoever reads the recipe must see that it runs foreign code.
    if not settings.run_generated_code:
        message = "the kind synthetic runs the programs of its input, which must be allowed"
        raise ConfigError(
            message, "settings.run_generated_code", "set it to true, on a machine or in a container for it"
        )
    limits = SandboxLimits(
        wall_seconds=settings.wall_seconds,
        cpu_seconds=settings.cpu_seconds,
        memory_bytes=settings.memory_mib << 20,
        processes=False,  # a program that forks without end would slow down the whole machine until its deadline
    )
    checked = False
    with Sandbox() as sandbox:
        for row in rows_of(batches, settings.id):
            if not checked:
                _refuse_broken_sandbox(sandbox, limits)
                checked = True
            document = _verified(row, settings, counts, sandbox, limits)
            if document is not None:
                yield document


def _verified(
    row: Row, settings: SyntheticSettings, counts: Counts, sandbox: Sandbox, limits: SandboxLimits
) -> Document | None:
    problem, solution, tests = row.text(settings.problem), row.text(settings.solution), _tests(row, settings)
    if problem is None or solution is None or tests is None:
        drop(counts, "no text", row.record)
        return None
    if reason := reason_to_drop(sandbox, solution, tests, limits):
        drop(counts, reason, solution)
        return None
    blocks = [_commented(problem), solution.strip("\n"), tests.strip("\n") if settings.with_tests else ""]
    fields = row.fields(settings.problem, settings.solution, settings.tests, settings.id)
    text = "\n\n".join(block for block in blocks if block) + "\n"
    return Document(text, row.id, fields | {"language": "python"})


def _tests(row: Row, settings: SyntheticSettings) -> str | None:
    tests: Any = field_of(row.record, settings.tests)
    if isinstance(tests, list) and all(isinstance(line, str) for line in tests):
        return "\n".join(tests)
    return tests if isinstance(tests, str) else None


def reason_to_drop(sandbox: Sandbox, solution: str, tests: str, limits: SandboxLimits | None = None) -> str | None:
    """Return why a solution is not verified, or None.

    Args:
        sandbox: runs the programs.
        solution: Python code.
        tests: Python code that raises if the solution is wrong; functions named `test_...` are called.
        limits: of each of the two programs that are run.
    """
    if not tests.strip():
        return "no tests"
    emptied = _emptied(solution)
    if emptied is None:
        return "solution does not compile"
    outcome = sandbox.run(f"{solution}\n\n{tests}\n{_CALL_TESTS}", limits)
    if outcome.reason == "SyntaxError":
        return "tests do not compile"
    if not outcome.passed:
        # Exceptions have any name; as one reason they can be counted.
        return outcome.reason if outcome.reason in ("timed out", "killed", "forged") else "tests fail"
    if sandbox.run(f"{emptied}\n\n{tests}\n{_CALL_TESTS}", limits).passed:
        return "tests pass on an empty solution"
    return None


def _refuse_broken_sandbox(sandbox: Sandbox, limits: SandboxLimits) -> None:
    """Refuse to judge programs where even one that does nothing fails.

    Raises:
        ConfigError: it says how that one ended.
    """
    # Without this, a node with too little memory would drop its share of the solutions as wrong, and end well.
    outcome = sandbox.run("pass", limits)
    if not outcome.passed:
        message = f"programs cannot be run here: one that does nothing ends with {outcome.reason!r}"
        raise ConfigError(message, "settings.memory_mib", "raise the limits, or look for those of the job (ulimit -a)")


def _emptied(solution: str) -> str | None:
    """Return a solution with every function's body replaced by `pass`, or None if it does not compile.

    At the top level only definitions, imports and assignments stay; without any definition nothing stays.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escape sequences
            compile(solution, "<solution>", "exec", dont_inherit=True)
            module = ast.parse(solution)
        defines = any(isinstance(node, (*_FUNCTIONS, ast.ClassDef)) for node in module.body)
        module.body = [node for node in module.body if defines and isinstance(node, _KEPT)]
        for node in ast.walk(module):
            if isinstance(node, _FUNCTIONS):
                node.body = [ast.Pass()]
        return ast.unparse(module)
    # Nested too deeply, NUL bytes, lone surrogates, numbers of thousands of digits.
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def _commented(problem: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in problem.strip().splitlines())
