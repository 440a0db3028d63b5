"""Ranks agree, or nothing starts: real ranks that see different configs, ledgers, checkpoints and data sets."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.mcore.agreement import named
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Where the runs are, and how each start ended on each of two ranks."""
    out = tmp_path_factory.mktemp("agreement")
    spec = importlib.util.spec_from_file_location("compare", HERE.parents[1] / "tools" / "compare_losses.py")
    assert spec is not None
    assert spec.loader is not None
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    compare.write_golden_data(out / "data")
    config = HERE.parent / "golden" / "golden.yaml"
    _two_nodes(out, config)
    shutil.copytree(out / "data", out / "node0" / "data")
    shutil.copytree(out / "data", out / "node1" / "data")
    for path in (out / "node1" / "data").glob("code*"):
        shutil.copy(path, path.with_name(path.name.replace("code", "prose")))
    arguments = {"config": str(config), "data": str(out / "data"), "out": str(out)}
    return out, run_ranks(2, HERE / "agreement_program.py", "starts", arguments)


def _two_nodes(out: Path, config: Path) -> None:
    """Train two runs alone, and lay each one's checkpoint under the same name on a node of its own."""
    from contextlib import ExitStack

    from megacode.config.config_file import load_config
    from megacode.planning.run_plan import make_plan
    from megacode.train.loop import train
    from megacode.train.setup import build_trainer
    from megacode.train.signals import StopSignal

    sources = [f"sources.{name}.path={out}/data/{name}" for name in ("prose", "code")]
    short = ["phases.balanced.iterations=4", "phases.prose.iterations=1", "phases.cooldown.iterations=1"]
    for node in (0, 1):
        run = out / f"alone{node}"
        rate = "phases.balanced.learning_rate.peak=" + ("5.0e-3" if node == 0 else "4.0e-3")
        overrides = [*sources, *short, f"run_dir={run}", rate, "checkpoint={every: 4 iterations}"]
        with ExitStack() as closing:
            train(build_trainer(make_plan(load_config(config, overrides)), StopSignal(), closing))
        (out / f"node{node}").mkdir()
        shutil.copytree(RunDir(run).checkpoint(4), out / f"node{node}" / "checkpoint")


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("seed", ["config.seed: rank 1: 8, but 7 on rank 0"]),
        ("clip_grad", ["config.train.clip_grad: rank 1: 0.1, but 1.0 on rank 0"]),
        ("unreadable", ["on rank 1: ", "no_such"]),
        ("two settings", ["config.phases[0].blend.", "config.train.adam_beta2", "rank 1: "]),
        ("own checkpoint", ["Launch error: checkpoint: rank 1: "]),
        ("own data", ["sources.prose.identity: rank 1: ", "sources.prose.tokens: rank 1: "]),
    ],
)
def test_ranks_that_would_train_two_runs_are_refused_on_all_with_the_setting(
    ends: tuple[Path, list[dict[str, str]]], start: str, expected: list[str]
) -> None:
    first, second = (said[start] for said in ends[1])
    assert first == second, "every rank says the same, so that the first may speak for all"
    assert "Error True: " in first
    for part in expected:
        assert part in first
    assert not list(ends[0].glob(f"{start}/checkpoints/iter_*"))


def test_ranks_that_agree_train(ends: tuple[Path, list[dict[str, str]]]) -> None:
    assert [said["same"] for said in ends[1]] == ["finished", "finished"]
    assert RunDir(ends[0] / "trunk").iterations() == [2, 4, 6]


def test_a_branch_off_a_live_trunk_goes_on_from_what_rank_0_saw(ends: tuple[Path, list[dict[str, str]]]) -> None:
    assert [said["live trunk"] for said in ends[1]] == ["finished", "finished"]
    (start,) = [line for line in read_jsonl(RunDir(ends[0] / "branch").events) if line["event"] == "start"]
    assert start["checkpoint"].endswith("trunk/checkpoints/iter_0000006")


def test_the_ledger_that_counts_is_rank_0s(ends: tuple[Path, list[dict[str, str]]]) -> None:
    assert [said["own ledger"] for said in ends[1]] == ["finished", "finished"]
    lines = [line for line in read_jsonl(RunDir(ends[0] / "ledger").metrics) if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [False] * 6


def test_four_ranks_name_the_odd_ones_and_leave_out_who_did_not_look(tmp_path: Path) -> None:
    same, other = (
        {"code": {"torch": "2.13", "megacode": "1"}, "files": None},
        {"code": {"torch": "2.12"}, "files": None},
    )
    values = [{**same, "files": [1, 2]}, other, same, {**other, "files": [1, 3]}]
    said = run_ranks(4, HERE / "agreement_program.py", "facts", {"values": values})
    assert len({document["error"] for document in said}) == 1
    for line in (
        'code.torch: ranks 1, 3: "2.12", but "2.13" on rank 0',
        'code.megacode: ranks 1, 3: nothing, but "1" on rank 0',
        "files[1]: rank 3: 3, but 2 on rank 0",
    ):
        assert line in said[0]["error"]
    assert [document["first"] for document in said] == ["of rank 0"] * 4


def test_ranks_are_named_as_people_write_them() -> None:
    assert named([3]) == "rank 3"
    assert named([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
