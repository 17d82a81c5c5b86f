"""A data set on an object store, by a real S3 protocol server on loopback."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from manifests import object_store
from manifests.errors import StoreUnreachable
from training.data import make_loader


@pytest.mark.parametrize(("reader", "num_workers"), [("pread", 0), ("pread", 1), ("webdataset", 0)])
def test_batches_from_s3_are_those_of_the_local_folder(s3, upload, coded_dataset, config, reader, num_workers):
    url = upload(s3, coded_dataset)
    options = config(reader=reader, num_workers=num_workers, worker_start="fork")  # with the environment of now
    local, remote = (
        list(itertools.islice(make_loader(root, config=options, batch_size=5, seed=2), 4))
        for root in (str(coded_dataset), url)
    )
    for one, other in zip(local, remote, strict=True):
        assert one.source.clip_ids == other.source.clip_ids
        for side in ("source", "driving"):
            np.testing.assert_array_equal(getattr(one, side).images, getattr(other, side).images)
            np.testing.assert_array_equal(getattr(one, side).landmarks, getattr(other, side).landmarks)
        assert other.num_skipped == 0


def test_a_lost_object_is_damage_and_a_lost_data_set_an_error(s3, upload, coded_dataset, config, assert_pictures_match):
    url = upload(s3, coded_dataset)
    s3.delete_object(Bucket="data", Key="set/shards/train-000002.tar")
    with pytest.raises(ValueError, match=r"s3://data/set/shards/train-000002\.tar is missing"):
        make_loader(url, config=config(on_damage="fail"), batch_size=5, seed=2)
    loader = make_loader(url, config=config(), batch_size=5, seed=2)
    s3.delete_object(Bucket="data", Key="set/shards/train-000001.tar")  # after the check, before it is read
    batches = list(itertools.islice(loader, 6))
    for batch in batches:
        assert_pictures_match(batch)
    assert any("FileNotFoundError" in name for name in loader.skipped)
    with pytest.raises(ValueError, match="no data set at s3://data/nowhere"):
        make_loader("s3://data/nowhere", config=config(), batch_size=5, seed=2)


@pytest.mark.parametrize(("reader", "num_workers"), [("pread", 0), ("pread", 1), ("webdataset", 0)])
def test_a_store_that_has_gone_is_no_damage(
    flaky_s3, s3, upload, coded_dataset, config, monkeypatch, reader, num_workers
):
    """Every sample would have to be replaced, and each replacement waited for as long."""
    options = config(reader=reader, num_workers=num_workers, worker_start="fork")
    loader = make_loader(upload(s3, coded_dataset), config=options, batch_size=5, seed=2)
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    flaky_s3.throttle(60)
    with pytest.raises(StoreUnreachable, match=r"^the object store has failed every call .* run the same again$"):
        next(iter(loader))
    assert not loader.skipped
