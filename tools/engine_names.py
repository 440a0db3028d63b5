#!/usr/bin/env python3
"""Check that Transformer Engine has the names that megacode uses, by reading its source; nothing is imported.

    tools/engine_names.py TRANSFORMER_ENGINE                    # a checkout as it stands
    tools/engine_names.py TRANSFORMER_ENGINE v2.9 v2.18 main    # revisions of a git repository

`NAMES` is all that megacode uses of Transformer Engine; a test finds any use that it lacks. That a name is there does
not say that it does what it did: only a run on a GPU can.

Exit codes: 0 every name is there; 3 names are missing; 2 there is no Transformer Engine.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# A name, and the parameters that are passed to it by name.
NAMES: dict[str, tuple[str, ...]] = {
    "transformer_engine.common.recipe.Float8CurrentScaling": (),
    "transformer_engine.common.recipe.Float8CurrentScaling.fp8_format": (),
    "transformer_engine.common.recipe.Format.E4M3": (),
    "transformer_engine.common.recipe.Format.HYBRID": (),
    "transformer_engine.common.recipe.Recipe.delayed": (),
    "transformer_engine.pytorch.Linear.__init__": (
        "bias", "params_dtype", "device", "init_method", "fuse_wgrad_accumulation"
    ),
    "transformer_engine.pytorch.Linear.forward": ("is_first_microbatch",),
    "transformer_engine.pytorch.Linear.fuse_wgrad_accumulation": (),
    "transformer_engine.pytorch.distributed.is_fp8_activation_recompute_enabled": (),
    "transformer_engine.pytorch.fp8_autocast": ("enabled", "fp8_recipe"),
    "transformer_engine.pytorch.module.base.TransformerEngineBaseModule.fp8_meta": (),
    "transformer_engine.pytorch.module.base.TransformerEngineBaseModule.init_fp8_metadata": (),
    "transformer_engine.pytorch.module.base.TransformerEngineBaseModule.quantizers": (),
    "transformer_engine.pytorch.module.base.TransformerEngineBaseModule.set_extra_state": (),
    "transformer_engine.pytorch.quantization.DelayedScalingRecipeState.amax_history": (),
    "transformer_engine.pytorch.quantization.DelayedScalingRecipeState.scale": (),
    "transformer_engine.pytorch.quantization.FP8GlobalStateManager.get_fp8_recipe": (),
    "transformer_engine.pytorch.quantization.FP8GlobalStateManager.is_fp8_enabled": (),
    "transformer_engine.pytorch.quantization.is_fp8_available": ("return_reason",),
    "transformer_engine.pytorch.quantization.is_fp8_block_scaling_available": ("return_reason",),
    "transformer_engine.pytorch.quantization.is_mxfp8_available": ("return_reason",),
    "transformer_engine.pytorch.tensor.Quantizer.internal": (),
    "transformer_engine.pytorch.tensor.Quantizer.set_usage": ("rowwise", "columnwise"),
    "transformer_engine.pytorch.tensor.float8_tensor.Float8CurrentScalingQuantizer.__init__": ("device",),
    "transformer_engine_torch.DType.kFloat8E4M3": (),
    "transformer_engine_torch.FP8BwdTensors.GRAD_OUTPUT1": (),
    "transformer_engine_torch.FP8FwdTensors.GEMM1_INPUT": (),
    "transformer_engine_torch.dswiglu": ("grad", "fwd_input", "quantizer"),
    "transformer_engine_torch.swiglu": ("input", "quantizer"),
}  # fmt: skip
COMPILED = "transformer_engine_torch."
BINDINGS = ("transformer_engine/pytorch/csrc/extensions/pybind.cpp", "transformer_engine/common/util/pybind_helper.h")
Read = Callable[[str], "str | None"]  # from a path inside Transformer Engine to the file's text; None: no such file


def main(argv: list[str] | None = None) -> int:
    """Check a checkout, or revisions of it; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a checkout or git repository of Transformer Engine")
    parser.add_argument("revisions", nargs="*", help="tags, branches or commits; absent, the files as they are")
    args = parser.parse_args(argv)
    missing_count = 0
    for revision in args.revisions or [""]:
        read = _of_revision(args.path, revision) if revision else _of_folder(args.path)
        title = revision or str(args.path)
        if read("transformer_engine/pytorch/__init__.py") is None:
            print(f"{title}: this is not Transformer Engine's source. Give a checkout, or one of its revisions.",
                  file=sys.stderr)  # fmt: skip
            return 2
        missing = list(missing_names(read))
        print(f"{title}: " + (f"all {len(NAMES)} names" if not missing else "missing: " + ", ".join(missing)))
        missing_count += len(missing)
    return 3 if missing_count else 0


def missing_names(read: Read) -> Iterator[str]:
    """Yield the names that a source lacks, and parameters as `name(parameter)`."""
    bindings = "\n".join(filter(None, map(read, BINDINGS)))
    for name, parameters in NAMES.items():
        known = _bound(bindings, name.removeprefix(COMPILED)) if name.startswith(COMPILED) else _defined(read, name)
        if known is None:
            yield name
        else:
            yield from (f"{name}({parameter})" for parameter in parameters if parameter not in known)


def _of_folder(path: Path) -> Read:
    return lambda name: (path / name).read_text(encoding="utf-8") if (path / name).is_file() else None


def _of_revision(path: Path, revision: str) -> Read:
    def read(name: str) -> str | None:
        command = ["git", "-C", str(path), "show", f"{revision}:{name}"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        return done.stdout if done.returncode == 0 else None

    return read


def _bound(text: str, name: str) -> set[str] | None:
    """Return the parameters of a compiled function, or nothing of an enum's value; None if C++ does not bind it."""
    enum, _, value = name.partition(".")
    if value:
        whole = re.search(rf'enum_<[^;]*?\(m, "{enum}"[^;]*?\.value\("{value}"', text)
        return set() if whole else None
    call = re.search(rf'm\.def\(\s*"{name}"(.*?)\);', text, re.DOTALL)
    return set(re.findall(r'py::arg\("(\w+)"\)', call[1])) if call else None


def _defined(read: Read, name: str) -> set[str] | None:
    """Return the parameters of what a dotted name stands for in Python; None if there is no such thing."""
    parts = name.split(".")
    # The longest part that is a module; the rest is a class or function in it, and perhaps a member.
    for count in range(len(parts) - 1, 0, -1):
        if _module(read, parts[:count]) is not None:
            return _member(read, parts[:count], parts[count:])
    return None


def _module(read: Read, parts: list[str]) -> tuple[ast.Module, list[str]] | None:
    """Return a module's syntax tree and the package that its relative imports start from."""
    path = "/".join(parts)
    for file, package in ((f"{path}.py", parts[:-1]), (f"{path}/__init__.py", parts)):
        text = read(file)
        if text is not None:
            return ast.parse(text), package
    return None


def _member(read: Read, module: list[str], rest: list[str]) -> set[str] | None:
    module_found = _module(read, module)
    if module_found is None:
        return None
    tree, package = module_found
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == rest[0] and node in tree.body:
            return _inside(node, rest[1:])
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == rest[0] for a in node.names):
            named = next(a.name for a in node.names if (a.asname or a.name) == rest[0])
            start = package[: len(package) - node.level + 1] if node.level else []
            return _member(read, [*start, *(node.module or "").split(".")], [named, *rest[1:]])
    return None


def _inside(node: ast.ClassDef | ast.FunctionDef, member: list[str]) -> set[str] | None:
    """Return the parameters of a function, a method or a class; None if the class has no such member."""
    if not member:
        return _parameters(node) if isinstance(node, ast.FunctionDef) else set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef) and child.name == member[0]:
            return _parameters(child)
        targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
        for target in targets:
            if getattr(target, "id", None) == member[0] or getattr(target, "attr", None) == member[0]:
                return set()
    return None


def _parameters(function: ast.FunctionDef) -> set[str]:
    return {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}


if __name__ == "__main__":
    sys.exit(main())
