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
