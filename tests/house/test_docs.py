"""The documentation's own rules: links and file names are real, pages say what they answer, commands.md is fresh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
PAGES = sorted({*DOCS.rglob("*.md")} - {*DECISIONS})
README = ROOT / "README.md"
EVERY_PAGE = [README, *PAGES, *DECISIONS]

LONGEST_README = 120
LONGEST_LINE = 110
LARGEST_PICTURE = 300_000  # bytes
LONGEST_CELL = 120  # a cell of a table holds words, not a paragraph
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "|".join(("docs", "examples", "megacode", "requirements", "slurm", "tests", "tools", r"\.ci"))
# A package may be named without megacode/ in front: `plan/blend.py`.
NAMED_FILE = re.compile(r"`((?:[a-z_.-]+/)+[\w.-]+\.(?:py|sh|md|yaml|env|jsonl|txt|svg|png))`")
COMMAND_FILE = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]+\.(?:py|sh|md|yaml|env|txt))")
WRITTEN_BY_USERS = {"slurm/site.env"}  # made from slurm/site.example.env


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(page: Path) -> list[str]:
    """The lines of a page outside of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith("    ")]


def test_there_are_pages() -> None:
    assert len(PAGES) >= 15
    assert len(DECISIONS) >= 18


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link of a page ends at a file, and at a heading of it where it names one."""
    place, _, fragment = target.partition("#")
    linked = page if not place else (page.parent / place).resolve()
    return linked.exists() and (not fragment or fragment in anchors(linked))


def test_links_lead_somewhere() -> None:
    links = [(page, target) for page in EVERY_PAGE for target in LINK.findall(page.read_text(encoding="utf-8"))]
    inside = [(page, target) for page, target in links if "://" not in target]
    assert len(inside) > 50
    assert not [(page.name, target) for page, target in inside if not leads_somewhere(page, target)]


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    packages = {path.name for path in (ROOT / "megacode").iterdir() if path.is_dir()}
    named = {name for name in NAMED_FILE.findall(text) if name.endswith(".py") or name.split("/")[0] in packages}
    named |= set(COMMAND_FILE.findall(text))
    missing = [
        name
        for name in sorted(named - WRITTEN_BY_USERS)
        if not any((place / name).exists() for place in (ROOT, ROOT / "megacode"))
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_opens_with_the_question_it_answers(page: Path) -> None:
    title, empty, *opening = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not empty
    answers = " ".join(opening[: opening.index("")])
    assert re.match(r"\*This page answers: [^*]+\?\*( |$)", answers), answers


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_is_a_sentence_with_its_context_first(page: Path) -> None:
    title, empty, opening = page.read_text(encoding="utf-8").splitlines()[:3]
    number = int(page.name[:4])
    assert re.match(rf"# {number}\. \w", title)
    assert len(title.split()) >= 6, "a title says what was decided"
    assert not empty
    assert opening.startswith("**Context.** ")


def test_the_index_lists_every_page() -> None:
    linked = {(DOCS / target.split("#")[0]).resolve() for target in LINK.findall((DOCS / "index.md").read_text())}
    missing = [name_of(page) for page in [*PAGES, *DECISIONS] if page.name != "index.md" and page not in linked]
    assert not missing


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_the_index_gives_a_decision_its_title(page: Path) -> None:
    title = page.read_text(encoding="utf-8").splitlines()[0].split(". ", 1)[1]
    assert f"[{title}](decisions/{page.name})" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_the_tour_shows_the_floors_that_imports_obey() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", (DOCS / "tour.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = [sorted(re.findall(r"`(\w+)`", row)) for row in rows]
    assert shown == [sorted(layer.split(" | ")) for layer in layers]


def test_the_picture_of_phases_is_that_of_the_examples(tmp_path: Path) -> None:
    arms = ["text_only", "balanced_only", "balanced_to_text", "code_to_text"]
    configs = [f"examples/to_code/{arm}_470m.yaml" for arm in arms]
    command = [sys.executable, "tools/draw_phases.py", "--output", str(tmp_path / "phases.svg"), *configs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "phases.svg").read_text(encoding="utf-8")
    assert "cooldown 40B" in picture
    assert picture == (DOCS / "pictures" / "phases.svg").read_text(encoding="utf-8")


def test_pictures_are_small() -> None:
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.is_file()]
    assert len(pictures) >= 2
    assert not [path.name for path in pictures if path.stat().st_size > LARGEST_PICTURE]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_lines_and_cells_are_short(page: Path) -> None:
    if page.name == "commands.md":
        return  # generated; its lines are the program's
    long = [line for line in prose(page) if not line.startswith("|") and len(line) > LONGEST_LINE]
    cells = [cell for line in prose(page) if line.startswith("|") for cell in re.split(r"(?<!\\)\|", line)]
    assert not long
    assert not [cell for cell in cells if len(re.sub(r"\]\([^)]*\)", "", cell).strip()) > LONGEST_CELL]


def test_the_command_reference_is_fresh() -> None:
    tool = ROOT / "tools" / "command_reference.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_command_reference_is_said(tmp_path: Path) -> None:
    tool = tmp_path / "tools" / "command_reference.py"
    tool.parent.mkdir()
    tool.write_text((ROOT / "tools" / "command_reference.py").read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / "docs" / "commands.md"
    page.parent.mkdir()
    page.write_text("# Commands\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 1
    assert f"{page} is stale: run tools/command_reference.py" in done.stderr
    assert page.read_text(encoding="utf-8") == "# Commands\n"


def yaml_block(page: Path) -> str:
    """Return the first YAML file that a page shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks[0].splitlines()) <= 15
    return str(blocks[0])


def test_the_readme_s_study_and_its_config_plan(tmp_path: Path) -> None:
    (tmp_path / "order.yaml").write_text(yaml_block(README), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(yaml_block(ROOT / "docs" / "config.md"), encoding="utf-8")
    for command in (["plan", "run.yaml"], ["study", "plan", "order.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "megacode.cli", *command, "--json"],
            cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
    assert [match["equal"] for match in plan["match"]] == [True]


def test_the_licence_and_the_citation_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2408.10914"
    version = re.search(r'__version__ = "(.+)"', (ROOT / "megacode" / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    assert citation["version"] == version[1]
