"""Micro-batches and the audit: what is trained on is what the schedule says, at any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacode.base.errors import ConfigError
from megacode.data.loader import Loader, isolated
from megacode.data.rank_windows import micro_batch_size
from megacode.data.windows import open_streams, stream_sizes
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import build_schedule
from megacode.planning.order import order_rows, seen_rows


def document_lengths(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 25, count).tolist()


@pytest.fixture
def sources(write_dataset):
    return {
        "text": write_dataset(document_lengths(1, 40), "text"),
        "code": write_dataset(document_lengths(2, 30), "code"),
    }


PHASES = [
    {"name": "balanced", "samples": 50, "blend": {"text": 0.5, "code": 0.5}},
    {"name": "text", "samples": 37, "blend": {"text": 0.9, "code": 0.1}, "repeat": {"code": "restart"}},
    {"name": "code", "samples": 21, "blend": {"code": 1}},
]


def loader_of(config, dp_rank=0, dp_size=1):
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    batches = BatchSchedule(config, schedule)
    return Loader(config, schedule, batches, streams, dp_rank, dp_size), schedule, batches, streams


def clocks(batches, schedule):
    """Yield the clock of each iteration of a run over PHASES, and be sure that they cover it."""
    assert schedule.total_samples == 108
    clock = 0
    while clock < schedule.total_samples:
        yield clock
        clock = batches.next(clock)
    assert clock == 108


def rows_of(loaders, clock):
    """Map each sample of a batch to its row, over all ranks."""
    rows = {}
    for loader in loaders:
        for batch in loader.batch(clock):
            for number, sample in enumerate(batch.samples.tolist()):
                if sample >= 0:
                    assert sample not in rows
                    rows[sample] = (batch.source_ids[number].item(), batch.tokens[number], batch.labels[number])
                else:
                    assert batch.loss_mask[number].sum() == 0
                    assert batch.source_ids[number] == -1
    return rows


@pytest.mark.parametrize(
    ("dp_size", "micro_batch_size", "global_batch_size"), [(1, 1, 8), (2, 2, 8), (3, 4, 12), (4, 1, 8), (1, 5, 10)]
)
def test_every_layout_reads_the_samples_that_the_schedule_says(
    dp_size, micro_batch_size, global_batch_size, sources, make_config
):
    train = {"micro_batch_size": micro_batch_size, "global_batch_size": global_batch_size}
    config = make_config(sources, phases=PHASES, train=train)
    loaders = [loader_of(config, rank, dp_size)[0] for rank in range(dp_size)]
    _, schedule, batches, streams = loader_of(config)
    trained = []
    for clock in clocks(batches, schedule):
        size = batches.batch_size(clock)
        shapes = {
            (len(loader.batch(clock)), *batch.tokens.shape) for loader in loaders for batch in loader.batch(clock)
        }
        assert len(shapes) == 1, "pipelines need equal shapes on all ranks"
        rows = rows_of(loaders, clock)
        assert sorted(rows) == list(range(clock, clock + size))
        trained += sorted(rows)
        for sample, (source_id, tokens, labels) in rows.items():
            draw = schedule.draw(sample)
            assert schedule.source_names[source_id] == draw.source
            window = streams[draw.source].window(draw.first_token).astype(np.int64)
            assert torch.equal(tokens, torch.from_numpy(window[:-1]))
            assert torch.equal(labels, torch.from_numpy(window[1:]))
    assert trained == list(range(108))


def test_any_clock_gives_the_same_batch_as_walking_there(sources, make_config):
    config = make_config(sources, phases=PHASES)
    walked, schedule, batches, _ = loader_of(config)
    walk = list(clocks(batches, schedule))
    assert len(walk) == 29
    for clock in walk:
        there = walked.batch(clock)
        assert there
        for left, right in zip(there, loader_of(config)[0].batch(clock), strict=True):
            assert torch.equal(left.tokens, right.tokens)
            assert torch.equal(left.samples, right.samples)


def test_types_and_shapes_are_as_documented(sources, make_config):
    (batch, _) = loader_of(make_config(sources))[0].batch(0)
    assert batch.tokens.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert batch.source_ids.dtype == batch.samples.dtype == torch.int64
    assert batch.loss_mask.dtype == torch.float32
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == batch.position_ids.shape == (2, 8)
    assert batch.tokens.is_contiguous()
    assert batch.labels.is_contiguous()
    assert batch.cu_seqlens is None
    assert batch.loss_mask.min() == 1
    assert batch.position_ids.tolist() == [list(range(8))] * 2


def test_isolated_documents_share_neither_positions_nor_labels(sources, make_config):
    config = make_config(sources, phases=PHASES, train={"isolate_documents": True})
    loader, schedule, batches, streams = loader_of(config)
    compared = 0
    for clock in clocks(batches, schedule):
        for batch in loader.batch(clock):
            compared += len(batch.samples)
            borders = [0]
            for row, sample in enumerate(batch.samples.tolist()):
                draw = schedule.draw(sample)
                data = streams[draw.source].data
                owners = [data.document_at(draw.first_token + k) for k in range(9)]
                expected = [float(owners[k] == owners[k + 1]) for k in range(8)]
                assert batch.loss_mask[row].tolist() == expected
                positions = [k - min(j for j in range(8) if owners[j] == owners[k]) for k in range(8)]
                assert batch.position_ids[row].tolist() == positions
                borders += [8 * row + k for k in range(1, 8) if owners[k] != owners[k - 1]] + [8 * row + 8]
            assert batch.cu_seqlens.tolist() == borders
            assert batch.cu_seqlens.dtype == torch.int32
    assert compared == 108


def test_isolation_of_a_row_by_hand():
    mask, positions, borders = isolated([np.array([2, 4]), np.array([], dtype=np.int64)], 4)
    assert mask.tolist() == [[1, 0, 1, 0], [1, 1, 1, 1]]
    assert positions.tolist() == [[0, 1, 0, 1], [0, 1, 2, 3]]
    assert borders.tolist() == [0, 2, 4, 8]


@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("isolate", [False, True])
def test_validation_reads_each_held_out_window_once_at_any_layout(dp_size, isolate, sources, make_config):
    config = make_config(sources, validation={"fraction": 0.2, "samples": 5}, train={"isolate_documents": isolate})
    ranks = [loader_of(config, rank, dp_size) for rank in range(dp_size)]
    assert set(ranks[0][3]) == {"text", "code"}
    for name, stream in ranks[0][3].items():
        assert stream.validation_windows > 0
        batches = [list(loader.validation_batches(name)) for loader, *_ in ranks]
        assert len({len(part) for part in batches}) == 1
        rows = [(batch, row) for part in batches for batch in part for row in range(len(batch.samples))]
        real = {int(batch.samples[row]): batch.labels[row].tolist() for batch, row in rows if batch.samples[row] >= 0}
        assert real == {
            k: stream.window(stream.held_out_first_token(k, stream.validation_windows))[1:].tolist()
            for k in range(stream.validation_windows)
        }
        assert all(batch.loss_mask[row].sum() == 0 for batch, row in rows if batch.samples[row] < 0)
        numbers = {int(batch.source_ids[row]) for batch, row in rows if batch.samples[row] >= 0}
        assert numbers == {sorted(sources).index(name)}


@pytest.mark.parametrize(("rows", "wanted", "size"), [(8, 4, 4), (6, 4, 3), (7, 4, 1), (2, 4, 2), (1, 1, 1)])
def test_a_short_batch_is_cut_into_equal_micro_batches(rows, wanted, size):
    assert micro_batch_size(rows, wanted) == size


def test_order_and_seen_agree_with_each_other_and_with_the_tokens_that_are_trained_on(sources, make_config):
    config = make_config(sources, phases=PHASES)
    loader, schedule, batches, streams = loader_of(config)
    rows = order_rows(config, 0, 10_000)
    assert [row["sample"] for row in rows] == list(range(108))
    keys = ["sample", "phase", "source", "epoch", "window", "first_document", "last_document", "withheld"]
    assert list(rows[0]) == [*keys, "first_id", "last_id"]
    assert rows[50]["phase"] == "text"
    assert order_rows(config, 49, 2) == rows[49:51]
    trained = {}
    for clock in clocks(batches, schedule):
        trained.update(rows_of([loader], clock))
    for row in rows:
        _, tokens, labels = trained[row["sample"]]
        data = streams[row["source"]].data
        first, last = data.document_bounds(row["first_document"])[0], data.document_bounds(row["last_document"])[1]
        stored = data.read(first, last + 1 - first).tolist()
        window = [*tokens.tolist(), labels[-1].item()]
        places = [k for k in range(len(stored) - 8) if stored[k : k + 9] == window]
        assert places, row
    assert set(streams) == {"text", "code"}
    for name, stream in streams.items():
        for document in range(stream.data.documents):
            first, last = stream.data.document_bounds(document)
            reads = [
                row
                for row in rows
                if row["source"] == name and row["first_document"] <= document <= row["last_document"]
            ]
            expected = reads if first <= last and document < stream.train_documents else []
            assert seen_rows(config, name, document) == expected


def test_questions_about_what_is_not_there_are_errors(sources, make_config):
    config = make_config(sources, phases=PHASES)
    with pytest.raises(ConfigError, match="sample 108 is not one of the run's 108 samples"):
        order_rows(config, 108, 1)
    with pytest.raises(ConfigError, match="there is no source 'prose'") as caught:
        seen_rows(config, "prose", 0)
    assert caught.value.problems[0].fix == "use one of code, text"
    with pytest.raises(ConfigError, match="there is no document 40 in 'text', which has 40 documents"):
        seen_rows(config, "text", 40)
