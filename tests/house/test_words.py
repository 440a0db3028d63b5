"""One word, one thing, in plain English: the vocabulary of docs/tour.md, as far as a program can check it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "megacode").rglob("*.py"))
TEXTS = [*MODULES, *sorted((ROOT / "tools").rglob("*.py")), *sorted((ROOT / "slurm").glob("*.sh"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Two kinds of layers, torch's and Transformer Engine's, have the same classes: either may be in a model.
TWINS = ({"kernels.py", "te_kernels.py"}, {"layers.py", "te_layers.py"})

# A model that compares two others' answers is the judge; nothing else judges.
JUDGE_ROOMS = ("judge", "cli/judging.py", "report")

# Words that are correct and foreign to the field, with the field's own.
FOREIGN = {
    r"(goes|going|went) on from|command goes on": "resumes from",
    r"(go|goes|going|gone) on (after|with)\b": "resumes",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bleaps?\b": "spike",
    r"(made|makes|make) room before its turn": "was deleted by keep_last",
    r"\bparts from\b": "diverges from",
    r"does not divide by": "is not divisible by",
    r"is no SLURM job": "not running inside a SLURM job",
    r"keep(s|ing)? off n": "excludes",
    r"in one hand\b": "say what it holds",
    r"\bof late\b": "recently",
}

# A variable's name says what it holds: these would fit any.
VAGUE = {"found", "what", "said"}

# Parameters that keep such a name, by file.
KEEP_VAGUE = {"base/errors.py": {"what"}}  # the keyword of all errors, beside where and fix


def vague_names(text: str) -> list[tuple[int, str]]:
    """Return line and name of each variable and parameter in a module whose name is vague.

    Fields in the body of a class are left out: what they hold shows where they are used, behind their object.
    """
    tree = ast.parse(text)
    fields = {id(one) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for one in map(_target, node.body)}
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if id(node) not in fields:
                names.append((node.lineno, name))
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.append((node.lineno, name))
    return sorted(one for one in names if one[1] in VAGUE)


def _target(statement: ast.stmt) -> ast.expr | None:
    return statement.target if isinstance(statement, ast.AnnAssign) else None


def test_a_public_class_name_stands_for_one_thing() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path.name)
    assert len(homes) > 200
    assert not {name: files for name, files in homes.items() if len(files) > 1 and files not in TWINS}


def test_only_the_judge_judges() -> None:
    names: list[str] = []
    for path in MODULES:
        place = str(path.relative_to(ROOT / "megacode"))
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        found = [token.string for token in tokens if token.type == tokenize.NAME and "judge" in token.string.lower()]
        if not place.startswith(JUDGE_ROOMS):
            # Others may open the judge's doors: its module, its command, its file in a run directory.
            names += [f"{place}: {name}" for name in found if re.search(r"_judge|judge_|judged", name)]
    assert len(MODULES) > 200
    assert not names


def test_what_people_read_is_in_the_words_of_the_field() -> None:
    found = []
    for path in [*TEXTS, *PAGES]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)}:{number}: say {better!r}, not {match.group(0)!r}"
                for words, better in FOREIGN.items()
                if (match := re.search(words, line))
            ]
    assert len(TEXTS) > 200
    assert not found, "\n".join(found)


VAGUE_MODULE = """
class Finding:
    what: str

    def read(self, said: str) -> str:
        found, (_, *what) = self.what, said
        try:
            return "".join(said for said in found)
        except OSError as found:
            return str(max(what, key=lambda found: found))
"""


def test_vague_names_are_seen_wherever_they_are_given() -> None:
    assert vague_names(VAGUE_MODULE) == [
        (5, "said"), (6, "found"), (6, "what"), (8, "said"), (9, "found"), (10, "found")
    ]  # fmt: skip


def test_variables_are_named_by_what_they_hold() -> None:
    vague: list[str] = []
    kept: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        place = str(path.relative_to(ROOT / "megacode"))
        for line, name in vague_names(path.read_text(encoding="utf-8")):
            if name in KEEP_VAGUE.get(place, ()):
                kept[place].add(name)
            else:
                vague.append(f"{place}:{line}: {name}")
    assert not vague, "\n".join(vague)
    assert kept == KEEP_VAGUE  # no exception outlives its reason
