"""All loaders give the same micro-batches, bit for bit, whatever is asked for and in whatever order."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from megacode import doctor
from megacode.base.errors import LaunchError
from megacode.data import dali
from megacode.data.device_loader import DeviceLoader, isolated_on_device, padded
from megacode.data.loader import Loader, isolated
from megacode.data.prefetch import Prefetch
from megacode.data.windows import open_streams, stream_sizes
from megacode.plan.batch import BatchSchedule, samples_digest
from megacode.plan.phases import build_schedule

NO_DALI = "DALI is not installed: pip install --no-deps --requirement requirements/no-deps.txt"
WITH_DALI = pytest.mark.skipif(not dali.installed(), reason=NO_DALI)
KINDS = ["device", "prefetch", *(pytest.param(kind, marks=WITH_DALI) for kind in ("dali", "dali, made ahead"))]
PHASES = [
    {"name": "balanced", "samples": 50, "blend": {"text": 0.5, "code": 0.5}},
    {"name": "text", "samples": 37, "blend": {"text": 0.9, "code": 0.1}, "repeat": {"code": "restart"}},
    {"name": "code", "samples": 21, "blend": {"code": 1}},
]
LAYOUTS = [(1, 1, 8), (2, 2, 8), (3, 4, 12), (4, 1, 8), (1, 5, 10)]


@pytest.fixture
def sources(write_dataset):
    lengths = [np.random.default_rng(seed).integers(0, 25, 40).tolist() for seed in (1, 2)]
    return {"text": write_dataset(lengths[0], "text"), "code": write_dataset(lengths[1], "code", "int32")}


@pytest.fixture
def opened():
    """Open a loader of a kind; all are closed at the test's end."""
    loaders = []

    def open_loader(kind, config, dp_rank=0, dp_size=1):
        streams = open_streams(config)
        schedule = build_schedule(config, stream_sizes(streams))
        arguments = (config, schedule, BatchSchedule(config, schedule), streams, dp_rank, dp_size)
        make = {
            "default": lambda: Loader(*arguments),
            "device": lambda: DeviceLoader(*arguments),
            "prefetch": lambda: Prefetch(Loader(*arguments), 2),
            "dali": lambda: dali.DaliLoader(*arguments, ahead=2),
            "dali, made ahead": lambda: Prefetch(dali.DaliLoader(*arguments), 1),
        }[kind]
        loaders.append(make())
        return loaders[-1]

    yield open_loader
    for loader in loaders:
        loader.close()


def clocks_of(loader):
    clock = 0
    while clock is not None:
        yield clock
        clock = loader.after(clock)


def samples_of(batches):
    """Return the samples of micro-batches, without the rows that fill one up."""
    return [sample for batch in batches for sample in batch.samples.tolist() if sample >= 0]


def assert_equal(found, expected):
    """Compare micro-batches in every bit, type and shape."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in fields(other):
            left, right = getattr(one, field.name), getattr(other, field.name)
            assert (left is None) == (right is None), field.name
            if right is not None:
                assert left.dtype == right.dtype, field.name
                assert left.is_contiguous(), field.name
                assert torch.equal(left.cpu(), right), field.name


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize(("dp_size", "micro_batch_size", "global_batch_size"), LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loader_gives_the_same_over_all_phases_on_every_rank(
    kind, dp_size, micro_batch_size, global_batch_size, isolate, sources, make_config, opened
):
    train = {"micro_batch_size": micro_batch_size, "global_batch_size": global_batch_size}
    config = make_config(sources, phases=PHASES, train={**train, "isolate_documents": isolate})
    compared = []
    for rank in range(dp_size):
        default, other = (opened(name, config, rank, dp_size) for name in ("default", kind))
        for clock in clocks_of(default):
            batches = default.batch(clock)
            assert_equal(other.batch(clock), batches)
            compared += samples_of(batches)
    assert sorted(compared) == list(range(108))


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_clocks_and_validations_gives_the_same(kind, isolate, sources, make_config, opened):
    config = make_config(sources, phases=PHASES, train={"isolate_documents": isolate})
    default, other = opened("default", config), opened(kind, config)
    (first, *_) = default.batch(0)
    assert first.digests.tolist() == samples_digest(first.samples.numpy()).tolist()
    clocks = list(clocks_of(default))
    walk = [*clocks[:5], clocks[2], clocks[3], clocks[2], clocks[2], clocks[-1], clocks[0], "code", clocks[1], "text"]
    walk += ["text", *clocks[1:4], clocks[-2], clocks[-1], clocks[-1], 1, 5]  # 1 lies off the boundaries
    for place in walk:
        if isinstance(place, str):
            assert_equal(list(other.validation_batches(place)), list(default.validation_batches(place)))
        else:
            assert_equal(other.batch(place), default.batch(place))


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_left_early_disturbs_nothing(kind, sources, make_config, opened):
    config = make_config(sources, validation={"fraction": 0.3, "samples": 9})
    default, other = opened("default", config), opened(kind, config)
    next(other.validation_batches("text"))
    assert_equal(other.batch(0), default.batch(0))
    assert_equal(list(other.validation_batches("text")), list(default.validation_batches("text")))


@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_held_out_windows_are_the_same_on_every_rank(kind, dp_size, sources, make_config, opened):
    validation = {"fraction": 0.2, "samples": 5}
    config = make_config(sources, validation=validation, train={"isolate_documents": True})
    for rank in range(dp_size):
        default, other = (opened(name, config, rank, dp_size) for name in ("default", kind))
        for source in ("text", "code"):
            batches = list(default.validation_batches(source))
            assert batches
            assert_equal(list(other.validation_batches(source)), batches)
            # Also where another number of windows was asked for just before.
            for samples in (7, None, 3):
                assert_equal(
                    list(other.validation_batches(source, samples)), list(default.validation_batches(source, samples))
                )


@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 4, 7])
def test_ranks_share_a_number_of_held_out_windows_and_pad_no_more_than_needed(
    samples, dp_size, sources, make_config, opened
):
    config = make_config(sources, validation={"fraction": 0.3, "samples": 2})
    stream = open_streams(config)["text"]
    read, rows = {}, []
    for rank in range(dp_size):
        batches = list(opened("default", config, rank, dp_size).validation_batches("text", samples))
        rows.append([len(batch.samples) for batch in batches])
        for batch in batches:
            for row, number in enumerate(batch.samples.tolist()):
                if number >= 0:
                    read[number] = batch.tokens[row].tolist()
                else:
                    assert not batch.loss_mask[row].any()
    assert len({tuple(sizes) for sizes in rows}) == 1, "collectives need equal numbers on all ranks"
    assert sum(map(sum, rows)) < samples + 2 * dp_size
    places = [stream.held_out_first_token(number, samples) for number in range(samples)]
    assert read == {number: stream.window(place)[:-1].tolist() for number, place in enumerate(places)}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_were_given_out_stay_as_they_are(kind, sources, make_config, opened):
    config = make_config(sources, phases=PHASES, train={"isolate_documents": True})
    default = opened("default", config)
    other = opened(kind, config)
    kept = [other.batch(clock) for clock in clocks_of(default)]
    assert sorted(sample for batches in kept for sample in samples_of(batches)) == list(range(108))
    for clock, batches in zip(clocks_of(default), kept, strict=True):
        assert_equal(batches, default.batch(clock))


def test_isolation_is_the_same_on_the_device():
    starts = [np.array([2, 4]), np.array([], dtype=np.int64), np.array([1, 2, 3, 4])]
    mask, positions, _ = isolated(starts, 4)
    found = isolated_on_device(torch.from_numpy(padded(starts, 4)), 4)
    assert torch.equal(found[0], mask)
    assert torch.equal(found[1], positions)
    assert padded([np.array([], dtype=np.int64)], 4).tolist() == [[5]]


def test_what_was_made_ahead_for_another_clock_is_dropped(sources, make_config, opened):
    made = []

    class Noted(Loader):
        def batch(self, consumed_samples):
            made.append(consumed_samples)
            return super().batch(consumed_samples)

    config = make_config(sources)
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    loader = Prefetch(Noted(config, schedule, BatchSchedule(config, schedule), streams), 2)
    loader.batch(0)
    assert loader.batch(4) is loader.batch(4)
    loader.batch(32)
    loader.close()
    assert made[:3] == [0, 4, 8]
    assert 32 in made
    assert made.count(0) == made.count(4) == made.count(32) == 1
    assert len(loader._ahead) == 0


def test_an_error_in_the_thread_reaches_the_one_who_asks(sources, make_config):
    config = make_config(sources)
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))

    class Broken(Loader):
        def batch(self, consumed_samples):
            raise OSError(f"cannot read at {consumed_samples}")

    loader = Prefetch(Broken(config, schedule, BatchSchedule(config, schedule), streams), 1)
    with pytest.raises(OSError, match="cannot read at 4"):
        loader.batch(4)
    loader.close()


def test_a_missing_or_old_dali_is_refused_with_the_command_that_installs_it(monkeypatch):
    def version_of(versions):
        def version(package):
            if package not in versions:
                raise dali.metadata.PackageNotFoundError(package)
            return versions[package]

        return version

    monkeypatch.setattr(dali.metadata, "version", version_of({}))
    with pytest.raises(LaunchError, match="DALI is not installed") as caught:
        dali.check()
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].where == "train.loader"
    assert "python -m pip install --no-deps nvidia-dali-cuda130 " in caught.value.problems[0].fix
    monkeypatch.setattr(dali.metadata, "version", version_of({"nvidia-dali-cuda120": "1.53.0"}))
    with pytest.raises(LaunchError, match=r"nvidia-dali-cuda120 1\.53\.0 is older than 2\.0") as caught:
        dali.check()
    assert "pip install --upgrade" in caught.value.problems[0].fix
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(LaunchError) as caught:
        dali.check()
    assert "pip install --upgrade nvidia-dali-cuda120\n" in caught.value.problems[0].fix


def test_the_doctor_says_when_dali_would_do(monkeypatch):
    rows = []
    for found in (None, ("nvidia-dali-cuda120", "1.53.0"), ("nvidia-dali-cuda130", "2.4.0")):
        monkeypatch.setattr(dali, "installed", lambda found=found: found)
        rows.append(doctor._dali())
    assert [row["found"] for row in rows] == ["", "nvidia-dali-cuda120 1.53.0", "nvidia-dali-cuda130 2.4.0"]
    assert rows[0]["path"].startswith("not needed: ")
    assert rows[1]["path"].startswith("not usable: train.loader: dali needs 2.0 or newer")
    assert rows[2]["path"].startswith("used with train.loader: dali")
