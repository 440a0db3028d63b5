"""Which tests can pass without a single check: every check stands in a loop that may not run.

It reads syntax only. A loop is known to run when it goes over a literal with elements, a `range` of constants, or a
name that stands for such a thing; `zip(strict=True)` needs one argument of that kind. Whatever is computed may be
empty. An `if` counts as taken, and a function of the same file as called where its name stands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import product

Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Calls that give as many elements as they are given.
KEEP_LENGTH = {"enumerate", "sorted", "list", "tuple", "set", "frozenset", "reversed", "dict"}
VIEWS = {"items", "keys", "values"}
CHECKS = {"raises", "warns", "fail"}


def unproven(text: str) -> list[tuple[int, str]]:
    """Return the line and name of each test in a file whose every check may be skipped."""
    module = ast.parse(text)
    return [
        (node.lineno, node.name)
        for node in module.body
        if isinstance(node, Function) and node.name.startswith("test_")
        if Reader(module, node).doubtful()
    ]


class Reader:
    """What one function surely checks, given the file that it stands in.

    Args:
        module: the file.
        function: the test, or a function of the file that the test names.
        seen: functions on the way here, which are not followed twice.
    """

    def __init__(self, module: ast.Module, function: Function, seen: frozenset[str] = frozenset()) -> None:
        self.module = module
        self.function = function
        self.seen = seen | {function.name}
        self.helpers = {node.name: node for node in module.body if isinstance(node, Function)}
        self.bound = (
            _bound(module.body)
            | _parametrized(function, _bound(module.body))
            | _drawn(function)
            | _bound(ast.walk(function))
        )

    def doubtful(self) -> bool:
        """Say whether there are checks, and none of them is sure to be made."""
        checks = self.checks()
        return bool(checks) and not any(checks)

    def checks(self) -> list[bool]:
        """Return for each check, those of called functions as one, whether it is sure to be made."""
        return list(self._checks(self.function.body, sure=True))

    def _checks(self, nodes: Iterator[ast.AST] | list[ast.stmt], *, sure: bool) -> Iterator[bool]:
        """Yield for each check below these nodes whether it is sure to be made."""
        for node in nodes:
            if isinstance(node, ast.Assert):
                yield sure and not self._vacuous(node.test)
            elif _called(node) in CHECKS or (_called(node).startswith("assert_") and _called(node) not in self.helpers):
                yield sure
            elif found := self._checks_of(node):
                yield sure and any(found)
            yield from self._checks(ast.iter_child_nodes(node), sure=sure and self._runs(node))

    def _checks_of(self, node: ast.AST) -> list[bool]:
        """Return the checks of the function of this file that a name stands for; of anything else, none."""
        if not isinstance(node, ast.Name) or node.id not in self.helpers or node.id in self.seen:
            return []
        return Reader(self.module, self.helpers[node.id], self.seen).checks()

    def _runs(self, node: ast.AST) -> bool:
        """Say whether what stands in this node is reached: always, but for a loop over what may be empty."""
        if isinstance(node, ast.For | ast.AsyncFor):
            return self._filled(node.iter)
        if isinstance(node, ast.While):
            return isinstance(node.test, ast.Constant)
        if isinstance(node, COMPREHENSIONS):
            return self._filled(node)
        return True

    def _vacuous(self, test: ast.expr) -> bool:
        """Say whether an asserted expression holds where no loop runs: `all(...)`, `not [...]`, `found == []`."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            return all(self._vacuous(value) for value in test.values)
        if isinstance(test, ast.Call) and _builtin(test) == "all":
            return not self._filled(test.args[0])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = test.operand
            return self._collected(inner.args[0] if isinstance(inner, ast.Call) and _builtin(inner) == "any" else inner)
        if isinstance(test, ast.Compare) and all(isinstance(operator, ast.Eq) for operator in test.ops):
            sides = [test.left, *test.comparators]
            return all(map(self._collected, sides)) and not all(map(_empty, sides))
        return False

    def _collected(self, node: ast.expr) -> bool:
        """Say whether a value is empty when the loop that fills it does not run, or is an empty literal."""
        if isinstance(node, ast.Name):
            values = self.bound.get(node.id, [])
            return bool(values) and all(map(_empty, values))
        if isinstance(node, COMPREHENSIONS):
            return not all(self._filled(part.iter) for part in node.generators)
        return _empty(node)

    def _filled(self, node: ast.expr) -> bool:
        """Say whether an iterable is known to hold an element."""
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str | bytes) and bool(node.value)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(not isinstance(part, ast.Starred) or self._filled(part.value) for part in node.elts)
        if isinstance(node, ast.Dict):
            return any(key or self._filled(value) for key, value in zip(node.keys, node.values, strict=True))
        if isinstance(node, ast.Name):
            values = self.bound.pop(node.id, [])  # taken away meanwhile: `x = sorted(x)` proves nothing of itself
            filled = bool(values) and all(self._filled(value) for value in values)
            self.bound[node.id] = values
            return filled
        if isinstance(node, ast.BinOp):
            return self._filled(node.left) or (isinstance(node.op, ast.Add | ast.BitOr) and self._filled(node.right))
        if isinstance(node, COMPREHENSIONS):
            return all(self._filled(part.iter) and not part.ifs for part in node.generators)
        return isinstance(node, ast.Call) and self._call_filled(node)

    def _call_filled(self, node: ast.Call) -> bool:
        called = _called(node)
        if called in VIEWS and isinstance(node.func, ast.Attribute):
            return self._filled(node.func.value)
        if called == "range":
            return self._range_filled(node.args)
        filled = [self._filled(argument) for argument in node.args]
        if called == "zip":
            strict = any(word.arg == "strict" for word in node.keywords)
            return any(filled) if strict else all(filled)
        if called == "product":
            return all(filled)
        if called == "lists":  # hypothesis
            return any(word.arg == "min_size" and all(self._numbers(word.value) or [0]) for word in node.keywords)
        return called in KEEP_LENGTH and filled[:1] == [True]

    def _range_filled(self, bounds: list[ast.expr]) -> bool:
        known = [self._numbers(bound) for bound in bounds]
        return all(known) and all(range(*numbers) for numbers in product(*known))

    def _numbers(self, node: ast.expr) -> list[int]:
        """Return every number that an expression may be; none where one is computed."""
        values = self.bound.get(node.id, []) if isinstance(node, ast.Name) else [node]
        found = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, int)]
        return found if found and len(found) == len(values) else []


def _called(node: ast.AST) -> str:
    """Return the last name of what is called: `raises` of `pytest.raises(...)`."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _builtin(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) and node.args else ""


def _empty(node: ast.expr) -> bool:
    if isinstance(node, ast.Dict):
        return not node.keys
    if isinstance(node, ast.Call):
        return _called(node) in {"set", "list", "dict"} and not node.args and not node.keywords
    return isinstance(node, ast.List | ast.Tuple) and not node.elts


def _bound(nodes: Iterator[ast.AST] | list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """Return every value that an assignment among these nodes gives a name."""
    values: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
    return values


def _parametrized(function: Function, module: dict[str, list[ast.expr]]) -> dict[str, list[ast.expr]]:
    """Return the values that `pytest.mark.parametrize` gives each argument, there or by a name of the module."""
    values: dict[str, list[ast.expr]] = {}
    for mark in function.decorator_list:
        if _called(mark) != "parametrize" or not isinstance(mark, ast.Call):
            continue
        names, rows = mark.args[:2]
        if isinstance(rows, ast.Name):
            rows = module.get(rows.id, [rows])[0]
        if not isinstance(rows, ast.List | ast.Tuple):
            continue
        if isinstance(names, ast.Constant):
            values[str(names.value)] = list(rows.elts)
        elif isinstance(names, ast.Tuple):
            for place, name in enumerate(names.elts):
                if isinstance(name, ast.Constant) and all(isinstance(row, ast.Tuple) for row in rows.elts):
                    values[str(name.value)] = [row.elts[place] for row in rows.elts if isinstance(row, ast.Tuple)]
    return values


def _drawn(function: Function) -> dict[str, list[ast.expr]]:
    """Return the strategy that hypothesis's `given` draws each argument from; positional ones fill from the right."""
    values: dict[str, list[ast.expr]] = {}
    for mark in function.decorator_list:
        if _called(mark) == "given" and isinstance(mark, ast.Call):
            names = [argument.arg for argument in function.args.args]
            values |= {word.arg: [word.value] for word in mark.keywords if word.arg}
            values |= {name: [value] for name, value in zip(names[::-1], mark.args[::-1], strict=False)}
    return values
