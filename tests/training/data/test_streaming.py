"""The webdataset way: the same pictures as by offset, every clip, its shares, and resume."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from training.data import make_loader
from training.data.reading import FrameBuffer, FrameReader
from training.data.storage import DatasetStorage


@pytest.fixture(scope="module")
def stream(coded_dataset, config):
    def load(num: int, *, batch_size: int = 6, position: int = 0, rank: int = 0, world_size: int = 1, **options):
        loader = make_loader(
            str(coded_dataset),
            config=config(reader="webdataset", **{"shuffle_buffer": 16} | options),
            batch_size=batch_size,
            seed=5,
            position=position,
            rank=rank,
            world_size=world_size,
        )
        return loader, list(itertools.islice(loader, num))

    return load


def names(batch) -> list[tuple]:
    return list(zip(batch.source.clip_ids, batch.source.frames, batch.driving.frames, strict=True))


def test_streamed_pictures_are_those_of_pread(stream, coded_dataset, assert_pictures_match):
    loader, batches = stream(20)
    index = loader.order.index
    reader = FrameReader(DatasetStorage(coded_dataset), index)
    number = {index.clip_id(k): k for k in range(len(index))}
    for batch in batches:
        assert_pictures_match(batch)
        for side in (batch.source, batch.driving):
            buffer = FrameBuffer(6, 64)
            for row, raw in enumerate(
                reader.read([(number[c], f) for c, f in zip(side.clip_ids, side.frames, strict=True)])
            ):
                buffer.fill(row, raw)
            np.testing.assert_array_equal(buffer.frames().images, side.images)
            np.testing.assert_array_equal(buffer.frames().landmarks, side.landmarks)
        gaps = [abs(a - b) for clip, a, b in names(batch) if not index.is_still[number[clip]]]
        assert min(gaps, default=5) >= 5
    assert [batch.position for batch in batches] == list(range(6, 126, 6))
    assert [g for batch in batches for g in batch.indices.tolist()] == list(range(120))


def test_one_pass_shows_every_clip_as_often_as_asked(stream):
    _, batches = stream(12, stream_pairs_per_clip=4.0)
    counts = Counter(clip for batch in batches for clip in batch.source.clip_ids)
    assert len(counts) == 18
    assert set(counts.values()) == {4}
    order = [clip for batch in batches for clip in batch.source.clip_ids]
    assert sum(a == b for a, b in itertools.pairwise(order)) < 20  # in order it would be 54


def test_stills_come_in_the_set_ratio_on_average(stream):
    _, batches = stream(100, still_share=0.5)
    assert sum(len(batch.still_rows) for batch in batches) / 600 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("num_workers", "num_before"), [(0, 5), (0, 23), (2, 7)])
def test_resume_in_the_same_layout_is_exact(stream, num_workers: int, num_before: int):
    _, straight = stream(num_before + 6, num_workers=num_workers)
    _, resumed = stream(6, num_workers=num_workers, position=straight[num_before - 1].position)
    for one, other in zip(straight[num_before:], resumed, strict=True):
        assert names(one) == names(other)
        assert one.indices.tolist() == other.indices.tolist()
        np.testing.assert_array_equal(one.source.images, other.source.images)


@pytest.mark.parametrize("world_size", [2, 5])  # fewer and more than there are shards
def test_ranks_read_different_pairs_of_all_clips(stream, world_size: int):
    per_rank = [
        stream(18, batch_size=2, rank=rank, world_size=world_size, stream_pairs_per_clip=4)[1]
        for rank in range(world_size)
    ]
    first_step = [set(names(batches[0])) for batches in per_rank]
    assert all(not a & b for a, b in itertools.combinations(first_step, 2))
    indices = sorted(g for batches in per_rank for batch in batches for g in batch.indices.tolist())
    assert indices == list(range(18 * 2 * world_size))
    assert len({clip for batches in per_rank for batch in batches for clip in batch.source.clip_ids}) == 18


@pytest.mark.parametrize("shuffle_buffer", [1, 16])
def test_pairs_of_two_persons_are_all_given_and_resume_exactly(coded_dataset, config, shuffle_buffer: int):
    """Stills do not drive while there are videos. With hardly a buffer, drivers are read by offset."""
    options = config(reader="webdataset", shuffle_buffer=shuffle_buffer, stream_pairs_per_clip=4.0)

    def load(num: int, position: int = 0) -> list:
        loader = make_loader(
            str(coded_dataset), config=options, batch_size=4, seed=5, position=position, cross_identity=True
        )
        return list(itertools.islice(loader, num))

    straight = load(54)  # three passes of 72 pairs
    counts = Counter(clip for batch in straight for clip in batch.source.clip_ids)
    assert set(counts.values()) == {12}
    stills = {f"c{number:02d}_0" for number in range(2, 18, 3)}
    assert not stills & {clip for batch in straight for clip in batch.driving.clip_ids}
    for batch in straight:
        assert all(a != b for a, b in zip(batch.source.identities, batch.driving.identities, strict=True))
    for num_before in (5, 17, 18, 41):
        (resumed,) = load(1, position=4 * num_before)
        assert names(resumed) == names(straight[num_before])
        assert resumed.driving.clip_ids == straight[num_before].driving.clip_ids
        np.testing.assert_array_equal(resumed.driving.images, straight[num_before].driving.images)


def test_cross_identity_takes_the_driver_from_the_buffer(coded_dataset, config, assert_pictures_match):
    loader = make_loader(
        str(coded_dataset), config=config(reader="webdataset"), batch_size=6, seed=5, cross_identity=True
    )
    sources = Counter()
    for batch in itertools.islice(loader, 24):
        assert_pictures_match(batch)
        assert all(a != b for a, b in zip(batch.source.identities, batch.driving.identities, strict=True))
        sources.update(batch.source.clip_ids)
    assert len(sources) == 18
