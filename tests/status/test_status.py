"""`megacode status` on made-up event files, for what is rare, and on a real run: stopped, killed and resumed."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from megacode.base.errors import ConfigError, VerificationError
from megacode.base.files import RunDir
from megacode.base.lock import RunLock
from megacode.metrics.reader import read_metrics
from megacode.status.document import read_status
from megacode.status.goodput import PARTS
from megacode.status.sample_proof import differing_error, prove_samples
from megacode.status.tables import render_status
from tests.alignment_records import alignment_record
from tests.limits import HANG, wait_until

Json = dict[str, Any]
Megacode = Callable[..., subprocess.CompletedProcess[str]]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden.yaml"
NOW = 10_000.0
BATCH, LENGTH = 8, 64


def train_line(iteration: int, skipped: bool = False) -> Json:
    """An iteration of 2 s: 6 samples of prose, 2 of code."""
    counts = {"prose": 6, "code": 2}
    tokens = {name: count * iteration * LENGTH for name, count in counts.items()}
    return {
        "kind": "train", "iteration": iteration, "consumed_samples": iteration * BATCH,
        "consumed_tokens": iteration * BATCH * LENGTH, "phase": "only", "loss": 5.0, "loss_by_source": {"prose": 5.0},
        "samples_by_source": counts, "learning_rate": 1e-3, "grad_norm": 1.0, "skipped": skipped, "batch_size": BATCH,
        "tokens_by_source": {name: {"planned": count, "seen": count} for name, count in tokens.items()},
        "seconds": 2.0, "tokens_per_second": 256.0, "flops_per_second": 1e9, "mfu": 0.4,
    }  # fmt: skip


def event(time: float, name: str, iteration: int = 0, **facts: Any) -> Json:
    return {"time": time, "event": name, "iteration": iteration, "consumed_samples": iteration * BATCH, **facts}


def start(time: float, iteration: int = 0, **facts: Any) -> Json:
    return event(time, "resume" if iteration else "start", iteration, **{"ranks": 2, "host": "elsewhere", **facts})


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Write a run directory of some events and iterations; planned are 100 iterations."""

    def write(events: list[Json], iterations: int = 0, skipped: tuple[int, ...] = (), more: list[Json] = []) -> Path:  # noqa: B006
        run = RunDir(tmp_path / "run").create()
        plan = {
            "name": "made", "seq_length": LENGTH, "total_samples": 100 * BATCH, "total_iterations": 100,
            "phases": [{"name": "only", "first_sample": 0, "samples": 100 * BATCH}],
        }  # fmt: skip
        run.plan.write_text(json.dumps(plan))
        lines = [train_line(number, number in skipped) for number in range(1, iterations + 1)] + more
        for path, rows in ((run.events, events), (run.metrics, lines)):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.utime(path, (NOW - 5000, NOW - 5000))
        return run.path

    return write


def shown(document: Json) -> str:
    """The page, on a wide screen."""
    console = Console(file=io.StringIO(), width=100)
    render_status(document, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def assert_adds_up(split: Json) -> None:
    assert sum(split["shares"].values()) == pytest.approx(1.0)
    assert sum(split[name] for name in PARTS) == pytest.approx(split["wall"], abs=0.01)
    assert all(split[name] >= 0 for name in PARTS)


def test_a_killed_run_that_went_on_tells_what_it_lost_and_how_long_it_lay_idle(made: Callable[..., Path]) -> None:
    events = [
        start(1010, seconds=10.0),
        event(1032, "save", 10, checkpoint="iter_0000010", seconds=5.0, blocked=1.0, bytes=100),
        event(1033, "validation", 10, reason="interval", seconds=1.0),
        start(1140, 10, seconds=20.0, lost_iterations=3, lost_seconds=6.0, checkpoint="iter_0000010"),
        event(1190, "stop", 30, reason="signal", signal="SIGUSR1", seconds=70.0),
    ]
    document = read_status(made(events, 30), NOW)
    split = document["goodput"]
    assert_adds_up(split)
    # Ready at 1010, then 20 s of kept work, 1 s saving, 1 s validating, 6 s lost: dead at 1038; the next began at 1120.
    expected = {"training": 60, "saving": 1, "validating": 1, "starting": 30, "lost": 6, "idle": 82, "other": 10}
    assert {name: split[name] for name in PARTS} == pytest.approx(expected)
    assert split["wall"] == pytest.approx(190)
    assert split["of_wall"] == pytest.approx(60 / 190)
    assert split["of_running"] == pytest.approx(60 / 108)
    first, second = document["starts"]
    assert (first["cause"], first["iterations"], first["lost_iterations"], first["ended"]) == (None, 13, 3, "killed")
    assert (second["cause"], second["iterations"], second["lost_iterations"]) == ("killed", 20, 0)
    assert (document["state"], document["reason"]) == ("stopped", "SIGUSR1")
    assert document["estimate"]["seconds"] == pytest.approx(70 * 2 * 62 / 60, abs=1e-3)
    assert document["estimate"]["end"] is None


def test_a_start_from_further_back_takes_over_the_iterations_behind_it(made: Callable[..., Path]) -> None:
    events = [start(1000), start(2000, 20, lost_iterations=2, lost_seconds=4.0),
              event(2010, "corrupt", 20, checkpoint="iter_0000020", what="shard 0 is not there"),
              start(3000, 10, lost_iterations=15, lost_seconds=30.0),
              event(3100, "stop", 40, reason="time_limit", signal=None)]  # fmt: skip
    document = read_status(made(events, 40), NOW)
    assert [row["iterations"] for row in document["starts"]] == [10 + 2, 15, 30]
    assert document["goodput"]["training"] == pytest.approx(80)
    assert document["goodput"]["lost"] == pytest.approx(34)
    assert document["reason"] == "time limit"
    assert "corrupt: iter_0000020: shard 0 is not there" in shown(document)


@pytest.mark.parametrize(
    ("last", "state", "reason"),
    [
        (event(1100, "stop", 5, reason="finished", signal=None), "finished", None),
        (event(1100, "stop", 5, reason="stop_file", signal=None), "stopped", "stop file"),
        (event(1100, "stop", 5, reason="spikes", signal=None), "stopped", "spikes"),
        (event(1100, "stop", 5, reason="error", error="ValueError: no"), "stopped", "ValueError: no"),
        (event(1100, "hang", 5, rank=1, host="node7", stacks="stacks/rank1.txt"), "hung", "rank 1 made no progress"),
        (event(1100, "save", 5, checkpoint="iter_0000005"), "died", "no stop event, and no process is alive"),
    ],
)
def test_each_end_has_its_state(made: Callable[..., Path], last: Json, state: str, reason: str | None) -> None:
    document = read_status(made([start(1000), last], 5), NOW)
    assert (document["state"], document["reason"]) == (state, reason)
    assert_adds_up(document["goodput"])
    assert state in shown(document)


def own(path: Path) -> None:
    """Let a process take the run's lock and die with it."""
    program = f"from megacode.base import files, lock; lock.RunLock(files.RunDir({str(path)!r})).acquire()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG)


def test_a_hang_that_the_other_ranks_call_an_error_is_a_hang(made: Callable[..., Path]) -> None:
    events = [
        start(1000),
        event(1090, "hang", 5, rank=0, host="node7"),
        event(1100, "stop", 5, reason="error", error="x"),
    ]
    document = read_status(made(events, 5), NOW)
    assert document["state"] == "hung"
    assert document["starts"][0]["ended"] == "hang"


def test_a_living_owner_means_running_and_a_dead_one_died(made: Callable[..., Path]) -> None:
    path = made([start(1000)], 5)
    own(path)
    assert read_status(path, NOW)["state"] == "died"
    RunDir(path).lock.unlink()
    RunLock(RunDir(path)).acquire()
    document = read_status(path, NOW)
    assert document["state"] == "running"
    assert document["owner"]["pid"] == os.getpid()
    assert document["estimate"]["end"] == pytest.approx(NOW + 95 * 2)
    assert "because of" in shown(document)


def test_a_run_on_another_machine_lives_as_long_as_its_lock_is_touched(made: Callable[..., Path]) -> None:
    path = made([start(1000)], 5)
    run = RunDir(path)
    own(path)
    elsewhere = {**json.loads(run.lock.read_text()), "host": "elsewhere", "machine": "elsewhere"}
    run.lock.write_text(json.dumps(elsewhere))
    assert read_status(path)["state"] == "running"
    os.utime(run.lock, (NOW, NOW))
    assert read_status(path)["state"] == "died"


def test_heartbeats_are_listed_from_the_oldest(made: Callable[..., Path]) -> None:
    run = RunDir(made([start(1000)], 5))
    run.heartbeats.mkdir()
    beats = [{"rank": rank, "time": NOW - age} for rank, age in enumerate((3.0, 900.0))]
    (run.heartbeats / "node_00000.json").write_text(json.dumps({"ranks": beats}))
    document = read_status(run.path, NOW)
    assert [(beat["rank"], beat["age"]) for beat in document["heartbeats"]] == [(1, 900.0), (0, 3.0)]
    assert document["state"] == "running", "without a lock, the youngest heartbeat says that the run lives"
    assert read_status(run.path, NOW + 3600)["state"] == "died"


def test_what_is_withheld_is_seen_but_not_learned(made: Callable[..., Path]) -> None:
    path = made([start(1000)], 10, skipped=(4, 5))
    entry = {"first_sample": 24, "last_sample": 40, "phase": "only", "iteration": 5, "reason": "spike"}
    RunDir(path).ledger.write_text(json.dumps(entry) + "\n")
    document = read_status(path, NOW)
    row = {"planned": 3840, "seen": 3840, "withheld": 768, "learned": 3072, "equal": True}
    assert document["sources"]["prose"] == row
    assert document["incidents"]["skipped_iterations"] == 2
    assert document["incidents"]["withheld_samples"] == {"spike": 16}
    assert "16 samples are withheld (spike)" in shown(document)


def test_incidents_and_health_are_shown(made: Callable[..., Path]) -> None:
    health = {"kind": "health", "iteration": 9, "slowest_rank": 3, "slowest_host": "node3", "slowest_seconds": 2.5,
              "median_seconds": 2.0, "memory_bytes": 3 << 30, "memory_rank": 1}  # fmt: skip
    events = [start(1000), event(1010, "spike", 7, loss=9.0), event(1011, "rollback", 7, to_iteration=5,
              lost_iterations=2, lost_seconds=4.0), event(1012, "save_failed", 8, checkpoint="iter_0000008",
              error="no space left"), event(1013, "hang", 9, rank=1, host="node1", stacks="stacks/1.txt")]  # fmt: skip
    document = read_status(made(events, 10, more=[health]), NOW)
    page = shown(document)
    for expected in (
        "rank 3 on node3",
        "3 GiB on rank 1",
        "iter_0000008: no space left",
        "1 rollbacks",
        "stacks/1.txt",
    ):
        assert expected in page
    assert document["goodput"]["lost"] == pytest.approx(4)
    assert document["starts"][0]["iterations"] == 12


def test_fp8_is_shown_with_its_last_probe_and_its_alarms(made: Callable[..., Path]) -> None:
    assert read_status(made([start(1000)], 5), NOW)["fp8"] is None
    recipe = {**train_line(6), "fp8": "delayed"}
    document = read_status(made([start(1000)], 5, more=[recipe]), NOW)
    assert document["fp8"] == {"recipe": "delayed", "probe": None}
    assert "delayed, not probed" in shown(document)
    probe = {"kind": "fp8_probe", "iteration": 7, "loss_difference": 0.0012, "alarm": "gradient of norms is 90% off",
             "gradient_difference": {"linear_fc1": 0.031, "norms": 0.9}, "fell_back": True}  # fmt: skip
    alarm = event(1010, "fp8_alarm", 6, alarm=probe["alarm"], fell_back=True)
    document = read_status(made([start(1000), alarm], 5, more=[recipe, probe, train_line(7)]), NOW)
    page = " ".join(shown(document).split())
    assert "not in use; probe before iteration 7: loss 0.12% off, gradients 3.1% (linear_fc1) to 90% (norms)" in page
    said = "1 FP8 probes out of tolerance, the last after iteration 6: gradient of norms is 90% off; the run continues"
    assert said in page


def test_the_newest_alignment_is_shown_in_one_line(made: Callable[..., Path]) -> None:
    assert read_status(made([start(1000)], 5), NOW)["alignment"] is None
    names = ["prose", "code", "math"]
    shared = {("code", "prose"): 0.4, ("math", "prose"): -0.4}
    lines = [alignment_record(names, shared, iteration=i, consumed=i * BATCH, phase="only") for i in (3, 5)]
    document = read_status(made([start(1000)], 5, more=lines), NOW)
    newest = document["alignment"]
    assert newest["iteration"] == 5
    assert newest["transfer"] == lines[1]["transfer"]
    # By hand: a step on code, as a share of one on the source whose loss it lowers.
    transfer = lines[1]["transfer"]
    shares = {
        (a, b): transfer[i][j] / transfer[j][j] for i, a in enumerate(names) for j, b in enumerate(names) if i != j
    }
    (best, most), (worst, least) = (choose(shares.items(), key=lambda one: one[1]) for choose in (max, min))
    said = f"transfer {best[0]} to {best[1]} {most:+.0%}, {worst[0]} to {worst[1]} {least:+.0%} at iteration 5"
    assert said in " ".join(shown(document).split())
    # The end of a decay: no step lowers any loss, and the comparison before it is shown.
    still = alignment_record(names, shared, iteration=5, consumed=40, phase="only", learning_rate=0.0)
    assert read_status(made([start(1000)], 5, more=[lines[0], still]), NOW)["alignment"]["iteration"] == 3
    assert read_status(made([start(1000)], 5, more=[still]), NOW)["alignment"] is None


def test_a_run_that_has_just_begun_is_no_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").create()
    run.config.write_text("name: young\n")
    document = read_status(run.path, NOW)
    assert document["state"] == "new"
    assert document["goodput"] is None
    RunLock(run).acquire()
    run.metrics.write_text('{"kind": "tra')
    run.plan.write_text("{")
    document = read_status(run.path, NOW)
    assert (document["state"], document["reason"]) == ("running", "starting")
    assert "iteration 0" in shown(document)


def test_a_line_that_a_full_disk_has_torn_is_counted_and_left_out(made: Callable[..., Path]) -> None:
    path = made([start(1000)], 3)
    with RunDir(path).metrics.open("a") as file:
        file.write('{"kind": "train", "iter\n' + json.dumps(train_line(4)) + "\n")
    document = read_status(path, NOW)
    assert document["progress"]["iteration"] == 4
    assert document["damaged_lines"] == 1


def test_what_is_not_finite_is_shown_as_that_and_is_null_for_programs(made: Callable[..., Path]) -> None:
    broken = {**train_line(5), "loss": None, "grad_norm": None, "loss_by_source": {"prose": None}}
    old = json.dumps({**train_line(6), "loss": math.nan, "loss_by_source": {"prose": math.inf}})
    path = made([start(1000)], 4, more=[broken])
    for line in ("", old + "\n"):
        with RunDir(path).metrics.open("a") as file:
            file.write(line)
        document = read_status(path, NOW)
        assert document["progress"]["iteration"] == (6 if line else 5)
        assert document["loss"]["loss"] is None
        assert "not finite (prose not finite)" in shown(document)
        json.dumps(document, allow_nan=False)


def test_iterations_that_the_run_went_back_over_are_not_counted(made: Callable[..., Path]) -> None:
    segment = {"kind": "segment", "iteration": 70, "consumed_samples": 70 * BATCH}
    again = [segment, *(train_line(number, skipped=number == 72) for number in range(71, 74))]
    path = made([start(1000), start(2000, 70)], 90, skipped=(3, 80), more=again)
    document = read_status(path, NOW)
    assert document["progress"]["iteration"] == 73
    assert document["incidents"]["last_skipped"] == [3, 72]
    assert document["sources"]["prose"]["withheld"] == 2 * 6 * LENGTH
    assert document["goodput"]["training"] == 2.0 * 73
    assert document["rates"]["iterations"] == 50


def test_a_hang_of_another_rank_counts_for_the_start_it_happened_in(made: Callable[..., Path]) -> None:
    path = made([start(1000), start(2000, 4)], 6)
    hang = event(1500, "hang", 5, rank=1, doing="training")
    RunDir(path).hangs.write_text(json.dumps(hang) + "\n")
    document = read_status(path, NOW)
    assert [row["cause"] for row in document["starts"]] == [None, "hang"]
    assert [row["rank"] for row in document["incidents"]["hangs"]] == [1]


def test_the_proof_names_damaged_lines_and_counts_what_it_does_not_show(tmp_path: Path) -> None:
    rows = [{"iteration": None, "what": "a line is damaged: metrics.jsonl:2: no"}]
    rows += [{"iteration": number, "what": "differs"} for number in range(1, 7)]
    said = str(differing_error({"equal": 3, "iterations": 9, "differing": rows}, tmp_path))
    assert "planned samples; a line is damaged: metrics.jsonl:2: no; iteration 1: differs; " in said
    assert "iteration 4: differs; and 2 more" in said


def test_no_run_directory_is_an_input_error(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "not a run directory"), (tmp_path / "none", "no such directory")):
        with pytest.raises(ConfigError, match=said) as caught:
            read_status(path)
        assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory, compare_losses: ModuleType) -> Path:
    """A real run of 70 iterations that was stopped by SIGTERM, killed by SIGKILL, and then left alone."""
    folder = tmp_path_factory.mktemp("survived")
    compare_losses.write_golden_data(folder / "data")
    command = [
        sys.executable,
        "-m",
        "megacode.cli",
        "train",
        str(GOLDEN),
        "run_dir=run",
        "phases.balanced.iterations=60",
    ]
    command += ["train.global_batch_size=64", "checkpoint.every=5 iterations", "checkpoint.async=false"]
    for number, upto in ((signal.SIGTERM, 7), (signal.SIGKILL, 33)):
        child = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        wait_until(lambda upto=upto: read_iterations(folder / "run") >= upto, child)
        child.send_signal(number)
        child.wait(timeout=HANG)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def read_iterations(path: Path) -> int:
    return max((line["iteration"] for line in read_metrics(RunDir(path).metrics) if line["kind"] == "train"), default=0)


@pytest.mark.slow
def test_a_real_run_tells_its_history(survived: Path, megacode: Megacode) -> None:
    done = megacode("status", survived, "--json", "--samples")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["state"] == "finished"
    assert [row["cause"] for row in document["starts"]] == [None, "SIGTERM", "killed"]
    assert document["starts"][-1]["ended"] == "finished"
    assert document["progress"]["iteration"] == document["progress"]["total_iterations"] == 70
    assert document["progress"]["consumed_tokens"] == document["progress"]["total_tokens"]
    assert all(row["equal"] and row["planned"] == row["learned"] for row in document["sources"].values())
    assert document["checkpoint"]["name"] == "iter_0000070"
    assert document["checkpoint"]["present"]
    assert_adds_up(document["goodput"])
    assert document["goodput"]["training"] > 0
    assert document["samples"]["iterations"] == document["samples"]["equal"] == 70
    assert document["samples"]["complete"]


@pytest.mark.slow
def test_a_tampered_digest_or_a_missing_iteration_is_found(survived: Path, tmp_path: Path, megacode: Megacode) -> None:
    run = RunDir(tmp_path / "copy").create()
    for name in ("run.yaml", "plan.json", "metrics.jsonl"):
        (run.path / name).write_text((survived / name).read_text())
    lines = list(read_metrics(run.metrics))
    whole = [json.dumps(line) for line in lines]

    def write(changed: list[str]) -> None:
        run.metrics.write_text("\n".join(changed) + "\n")

    place = next(place for place, line in enumerate(lines) if line["kind"] == "train" and line["iteration"] == 12)
    write([*whole[:place], json.dumps({**lines[place], "samples_digest": 1.0}), *whole[place + 1 :]])
    done = megacode("status", run.path, "--samples")
    assert done.returncode == 3
    assert "69 of 70 iterations read exactly the planned samples" in done.stdout
    assert "iteration 12: the digest of its samples is 1.0" in done.stderr
    assert "Traceback" not in done.stderr

    write([*whole[:place], *whole[place + 1 :]])
    with pytest.raises(VerificationError, match="iteration 13: comes after iteration 11"):
        raise differing_error(prove_samples(run.path), run.path)
    write([*whole[: place + 1], *whole[place:]])
    assert any("comes after iteration 12" in row["what"] for row in prove_samples(run.path)["differing"])
    moved = {**lines[place], "samples_by_source": {"prose": 64}}
    write([*whole[:place], json.dumps(moved), *whole[place + 1 :]])
    assert [row["iteration"] for row in prove_samples(run.path)["differing"]] == [12]
    run.config.write_text(run.config.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(VerificationError, match="describe different orders"):
        prove_samples(run.path)


@pytest.mark.slow
def test_status_without_torch_answers_at_once(survived: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from megacode.status.document import read_status;"
        "import megacode.status.tables, megacode.status.sample_proof as s;"
        f"read_status(Path({str(survived)!r})); s.prove_samples(Path({str(survived)!r}));"
        "print([m for m in ('torch', 'megatron', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_scores_are_shown_with_what_is_being_scored_and_what_could_not_be(made: Callable[..., Path]) -> None:
    def score(iteration: int, accuracy: float, **more: Any) -> Json:
        line = {"kind": "score", "iteration": iteration, "suite": "demo", "scores": {"task": {"acc": accuracy}}}
        return {**line, **more}

    def of(iteration: int) -> Json:
        return {"checkpoint": f"iter_{iteration:07d}", "suite": "demo", "log": "eval/logs/x.log"}

    events = [
        start(NOW - 100),
        event(NOW - 90, "evaluation_start", 3, waiting=0, **of(2)),
        event(NOW - 80, "evaluation_failed", 6, error="killed by SIGKILL", **of(2)),
        event(NOW - 70, "evaluation_start", 6, waiting=0, **of(4)),
        event(NOW - 60, "evaluation", 7, **of(4)),
        event(NOW - 50, "evaluation_failed", 7, error="no room", **of(6)),
        event(NOW - 40, "evaluation_start", 8, waiting=2, **of(8)),
    ]
    path = made(events, iterations=9, more=[score(6, 0.5), score(4, 0.25), score(6, 0.75)])
    RunLock(RunDir(path)).acquire()
    document = read_status(path, NOW)
    assert document["scores"]["newest"] == [{"suite": "demo", "iteration": 6, "values": {"task acc": 0.75}}]
    assert [one["checkpoint"] for one in document["scores"]["failed"]] == ["iter_0000002"], "6 was scored since"
    (going,) = document["scores"]["under_way"]
    assert (going["checkpoint"], going["age"], going["waiting"]) == ("iter_0000008", 40.0, 2)
    page = shown(document)
    assert "demo at iteration 6: task acc 0.750" in page
    assert "iter_0000008 for 40.0 s, 2 more waiting" in page
    assert "not scored: iter_0000002: killed by SIGKILL" in page
    RunDir(path).lock.unlink()
    assert read_status(path, NOW)["scores"]["under_way"] == []
