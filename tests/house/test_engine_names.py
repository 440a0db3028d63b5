"""Every use of Transformer Engine is in the table that tools/engine_names.py checks against its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.ranks import load_program

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("transformer_engine", "transformer_engine_torch")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/engine_names.py as a module."""
    return load_program(ROOT / "tools" / "engine_names.py")


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield a file's names of things in Transformer Engine, each with what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] in ENGINE:
                    yield (each.asname, each.name) if each.asname else (each.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ENGINE:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def used(text: str) -> set[str]:
    """Return the names that a file uses of Transformer Engine: what it imports, and attributes of that."""
    tree = ast.parse(text)
    known, found = dict(imported(tree)), set()
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Attribute, ast.Name)) or id(node) in inner:
            continue
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in known:
            found.add(".".join([known[node.id], *chain]))
    return found | {name for name in known.values() if name.split(".")[-1].isidentifier()}


def in_table(name: str, table: dict[str, tuple[str, ...]]) -> bool:
    """Return whether the table has a name, or something inside it."""
    return any(known == name or known.startswith(f"{name}.") for known in table)


def test_no_name_is_used_that_the_table_lacks(tool: ModuleType) -> None:
    # Benchmarks in tools/bench also call kernels of Transformer Engine that nothing else uses, to compare with them.
    files = [*(ROOT / "megacode").rglob("*.py"), *(ROOT / "tests" / "gpu").rglob("*.py")]
    names = {name for path in files for name in used(path.read_text(encoding="utf-8"))}
    assert "transformer_engine_torch.FP8FwdTensors.GEMM1_INPUT" in names
    assert sorted(name for name in names if not in_table(name, tool.NAMES)) == []


def test_uses_are_found_by_whatever_name() -> None:
    text = """
import transformer_engine_torch as tex
def f():
    from transformer_engine.pytorch import quantization as te, Linear
    return tex.gelu(1), te.Thing.make.x, [te][0], other.Thing
"""
    assert used(text) == {
        "transformer_engine.pytorch.Linear",
        "transformer_engine.pytorch.quantization",
        "transformer_engine.pytorch.quantization.Thing.make.x",
        "transformer_engine_torch",
        "transformer_engine_torch.gelu",
    }


def write_engine(folder: Path, tool: ModuleType) -> None:
    """Write a source tree that has every name of the table, and nothing else."""
    modules: dict[str, dict[str, str]] = {}
    bindings = []
    for name, parameters in tool.NAMES.items():
        *parts, last = name.split(".")
        if name.startswith(tool.COMPILED):
            arguments = "".join(f', py::arg("{each}")' for each in parameters)
            enum = f'py::enum_<X>(m, "{parts[-1]}").value("{last}", X::{last});'
            bindings.append(enum if len(parts) > 1 else f'm.def("{last}", f{arguments});')
            continue
        function = f"def {last}({', '.join(['self', *parameters])}): ...\n"
        classes = [part for part in (*parts, last) if part[0].isupper()]
        texts = modules.setdefault("/".join(part for part in parts if part[0].islower()), {})
        texts.setdefault(classes[0] if classes else last, f"class {classes[0]}:\n    x = 0\n" if classes else function)
        if classes and last != classes[0]:
            texts[classes[0]] += f"    {function}"
    for module, definitions in modules.items():
        package = any(other.startswith(f"{module}/") for other in modules)
        path = folder / (f"{module}/__init__.py" if package else f"{module}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(definitions.values()))
    path = folder / tool.BINDINGS[0]
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(bindings))


@pytest.mark.parametrize(
    ("file", "old", "new", "missing"),
    [
        ("common/recipe.py", "E4M3", "E4M4", "transformer_engine.common.recipe.Format.E4M3"),
        ("pytorch/quantization.py", "is_mxfp8_available", "is_it", "pytorch.quantization.is_mxfp8_available"),
        ("pytorch/__init__.py", "is_first_microbatch", "first", "pytorch.Linear.forward(is_first_microbatch)"),
        ("pytorch/csrc/extensions/pybind.cpp", '"quantizer"', '"q"', "transformer_engine_torch.swiglu(quantizer)"),
        ("pytorch/csrc/extensions/pybind.cpp", "GEMM1_INPUT", "INPUT", "torch.FP8FwdTensors.GEMM1_INPUT"),
    ],
)
def test_a_name_that_is_gone_is_reported(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, missing: str
) -> None:
    write_engine(tmp_path, tool)
    assert tool.main([str(tmp_path)]) == 0, capsys.readouterr().out
    path = tmp_path / "transformer_engine" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert tool.main([str(tmp_path)]) == 3
    assert missing in capsys.readouterr().out


def test_what_is_no_engine_is_refused(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(tmp_path)]) == 2
    assert "this is not Transformer Engine's source" in capsys.readouterr().err
