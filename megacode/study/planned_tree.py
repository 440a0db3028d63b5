"""From a study's file to its tree, checked as every command that plans or trains needs it."""

from __future__ import annotations

from pathlib import Path

from megacode.study.declared_metrics import check_metrics
from megacode.study.grid import Grid, build_grid
from megacode.study.keeping import check_kept
from megacode.study.schema import Study
from megacode.study.study_file import load_study
from megacode.study.suites import check_suites
from megacode.study.tree import Tree


def planned_tree(path: Path) -> tuple[Study, Grid, Tree]:
    """Return a study, the plan of each arm and seed, and what they share.

    Raises:
        ConfigError, DataError: the study is wrong, or its data cannot be read.
        PlanError: an arm cannot be trained as it is written.
    """
    study = load_study(path)
    check_suites(study, path)
    grid = build_grid(study, path)
    check_metrics(grid, path)
    # From here on nothing is read but checkpoints.
    # The order of checks is the order in which a user can fix things: arms, then sharing, then checkpoints.
    tree = Tree(grid)
    check_kept(tree)
    return study, grid, tree
