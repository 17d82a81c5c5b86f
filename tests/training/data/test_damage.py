"""Missing, truncated, flipped and foreign shards: a clear error or a counted, named skip, as the configuration says."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import training.data.storage
from training.data import make_loader
from training.data.clips import open_index
from training.data.storage import DatasetStorage


@pytest.fixture
def damaged(coded_dataset: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(coded_dataset, tmp_path / "dataset"))


def take(folder: Path, config, num: int, **options):
    loader = make_loader(str(folder), config=config(**options), batch_size=6, seed=1)
    return loader, list(itertools.islice(loader, num))


def overwrite(folder: Path, index, clip: int, frame: int, *, member: str, data: bytes, at: int = 0) -> None:
    place = index.place(clip, frame)
    with open(folder / "shards" / place.shard, "r+b") as file:
        file.seek(getattr(place, member)[0] + at)
        file.write(data)


READERS = ("pread", "webdataset")


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_shard_is_told_and_its_clips_are_replaced(damaged, config, assert_pictures_match, caplog, reader):
    (damaged / "shards" / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 shards damaged: .*train-000001\.tar is missing"):
        take(damaged, config, 1, on_damage="fail", reader=reader)
    with caplog.at_level(logging.WARNING):
        loader, batches = take(damaged, config, 20, reader=reader)
    assert "6 clips will be replaced by others" in caplog.text
    names = {name for batch in batches for name in batch.source.clip_ids}
    assert names <= {f"c{k:02d}_0" for k in (0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17)}
    for batch in batches:
        assert_pictures_match(batch)
    if reader == "pread":
        assert loader.num_skipped == sum(batch.num_skipped for batch in batches) > 20
        assert all("lies in a damaged shard" in name for name in loader.skipped)
        assert caplog.text.count("skipped: train-000001.tar: clip c06_0") == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_kind_of_which_nothing_is_left_goes_out_of_the_mix(write_dataset, tmp_path, config, caplog, reader):
    """Both stills lie in shard 2, which goes; no video could take their place."""
    folder = write_dataset(tmp_path / "set", still_numbers=(12, 13))
    (folder / "shards" / "train-000002.tar").unlink()
    with caplog.at_level(logging.WARNING):
        _, batches = take(folder, config, 8, reader=reader, still_share=0.5)
    assert "all stills lie in damaged shards: every sample is a video" in caplog.text
    assert not any(batch.is_still.any() for batch in batches)


def test_a_worker_tells_damage_in_plain_words(damaged, write_dataset, tmp_path, config):
    other = write_dataset(tmp_path / "other", prefix="d")
    for shard in (other / "shards").iterdir():
        shutil.copy(shard, damaged / "shards" / shard.name)
    with pytest.raises(ValueError, match=r"^\d of the 6 samples of a batch could not be read") as failure:
        take(damaged, config, 1, num_workers=1)
    assert "Traceback" not in str(failure.value)


def test_undamaged_samples_stay_what_they_were(damaged, coded_dataset, config):
    (damaged / "shards" / "train-000001.tar").unlink()
    whole, rest = (take(folder, config, 12)[1] for folder in (coded_dataset, damaged))
    lost = {f"c{k:02d}_0" for k in range(6, 12)}
    num_equal = 0
    for a, b in zip(whole, rest, strict=True):
        for row, clip_id in enumerate(a.source.clip_ids):
            if clip_id not in lost:
                assert (b.source.clip_ids[row], b.source.frames[row]) == (clip_id, a.source.frames[row])
                num_equal += 1
    assert num_equal > 30


@pytest.mark.parametrize("reader", READERS)
def test_of_a_truncated_shard_the_clips_before_the_cut_are_used(damaged, config, assert_pictures_match, reader):
    path = damaged / "shards" / "train-000000.tar"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(ValueError, match=rf"train-000000\.tar has {size // 2} bytes, the manifests say {size}"):
        take(damaged, config, 1, on_damage="fail", reader=reader)
    _, batches = take(damaged, config, 25, reader=reader)
    for batch in batches:
        assert_pictures_match(batch)
    names = {name for batch in batches for name in batch.source.clip_ids}
    assert {"c00_0", "c01_0", "c02_0"} <= names
    assert "c05_0" not in names


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("member", "data", "at", "reason"),
    [
        ("jpeg", b"\0\0\0\0", 0, "the JPEG does not decode"),
        ("jpeg", b"\xff\xd9\xff\xd9", 700, "the JPEG does not decode"),
        ("label", b"?", 0, "the label cannot be read: JSONDecodeError"),
    ],
)
def test_flipped_bytes_are_skipped_counted_and_named(damaged, config, index_folder, reader, member, data, at, reason):
    index = open_index(DatasetStorage(damaged), "train", folder=index_folder)
    for frame in range(index.num_frames(3)):
        overwrite(damaged, index, 3, frame, member=member, data=data, at=at)
    loader, batches = take(damaged, config, 20, reader=reader)
    assert "c03_0" not in {name for batch in batches for name in batch.source.clip_ids}
    assert loader.num_skipped == sum(loader.skipped.values()) == sum(batch.num_skipped for batch in batches) > 3
    for name in loader.skipped:
        assert name.startswith("train-000000.tar: frame ")
        assert f"of clip c03_0: {reason}" in name
    with pytest.raises(ValueError, match=rf"damaged sample: train-000000\.tar: frame \d+ of clip c03_0: {reason}"):
        take(damaged, config, 20, reader=reader, on_damage="fail")


@pytest.mark.parametrize("reader", READERS)
def test_where_no_picture_decodes_the_run_ends(damaged, config, index_folder, reader):
    index = open_index(DatasetStorage(damaged), "train", folder=index_folder)
    for clip in range(len(index)):
        for frame in range(index.num_frames(clip)):
            overwrite(damaged, index, clip, frame, member="jpeg", data=b"\xff\xd9\xff\xd9", at=700)
    with pytest.raises(ValueError, match=r"^6 of the 6 samples of a batch .*, nor 63 .*: the JPEG does not decode: "):
        take(damaged, config, 1, reader=reader)


def test_shards_of_another_data_set_are_an_error(damaged, write_dataset, tmp_path, config):
    other = write_dataset(tmp_path / "other", prefix="d")
    for shard in (other / "shards").iterdir():
        shutil.copy(shard, damaged / "shards" / shard.name)  # the same sizes, but other clips
    with pytest.raises(ValueError, match=r"the bytes there are frame \d+ of clip d\d\d_0") as failure:
        take(damaged, config, 1)
    assert "If the data set was changed while it was read, run the same command again" in str(failure.value)
    with pytest.raises(ValueError, match="pread"):
        take(damaged, config, 1, reader="webdataset")
    (damaged / "shards" / "train-000000.tar").write_bytes(b"")
    (damaged / "shards" / "train-000001.tar").write_bytes(b"x" * 10)
    (damaged / "shards" / "train-000002.tar").unlink()
    with pytest.raises(ValueError, match=r"3 of 3 shards damaged.*manifests of another data set"):
        take(damaged, config, 1)


def test_a_shard_that_is_replaced_is_not_read_on(tmp_path, monkeypatch):
    """A person who was taken out of the data set must not be trained on because the old file is still open."""
    monkeypatch.setattr(training.data.storage, "_LOOK_AGAIN_S", 0.0)
    (tmp_path / "shards").mkdir()
    shard, new = tmp_path / "shards" / "a.tar", tmp_path / "new.tar"
    shard.write_bytes(b"somebody")
    storage = DatasetStorage(tmp_path)
    assert storage.read_ranges([("a.tar", 0, 8)]) == [b"somebody"]
    new.write_bytes(b"others")
    os.replace(new, shard)
    assert storage.read_ranges([("a.tar", 0, 8)]) == [b"others"]
    shard.unlink()
    assert isinstance(storage.read_ranges([("a.tar", 0, 8)])[0], FileNotFoundError)


def test_pictures_of_another_size_are_damage(damaged, write_dataset, config, index_folder):
    index = open_index(DatasetStorage(damaged), "train", folder=index_folder)
    place = index.place(3, 0)
    data = (damaged / "shards" / place.shard).read_bytes()[slice(*place.jpeg)]
    size_at = data.index(b"\xff\xc0") + 5
    for frame in range(index.num_frames(3)):
        overwrite(damaged, index, 3, frame, member="jpeg", data=b"\0\x20\0\x20", at=size_at)
    loader, _ = take(damaged, config, 10)
    assert all("the picture is 32 x 32, expected 64 x 64" in name for name in loader.skipped)
    assert loader.num_skipped > 0


def test_what_is_no_data_set_is_told(coded_dataset, tmp_path, config):
    with pytest.raises(ValueError, match=r"no data set at .*python -m curation run VIDEOS --output '.*/my set'`"):
        take(tmp_path / "my set", config, 1)
    words = r"no packed clips in split 'val'; it has train \(18 clips\)\. .*--select\.val-share .*--split held_out"
    with pytest.raises(ValueError, match=words):
        make_loader(str(coded_dataset), config=config(), batch_size=2, seed=1, split="val")


def test_kept_clips_that_are_in_no_shard_yet_are_told(coded_dataset, tmp_path, config):
    """As after `curation select`, before `curation run`."""
    copy = tmp_path / "selected"
    shutil.copytree(coded_dataset, copy)
    (file,) = (copy / "manifests" / "clips").glob("*.parquet")
    clips = pq.read_table(file)
    pq.write_table(
        clips.set_column(clips.schema.get_field_index("shard"), "shard", pa.nulls(len(clips), pa.string())), file
    )
    words = r"split 'train'; it has no packed clips at all\. Kept clips of 'train' are in no shard yet: .*curation run"
    with pytest.raises(ValueError, match=words):
        make_loader(str(copy), config=config(), batch_size=2, seed=1)


def test_changed_manifests_are_read_again(damaged, write_dataset, config, tmp_path):
    assert take(damaged, config, 1)[1][0].source.clip_ids[0].startswith("c")
    shutil.rmtree(damaged)
    write_dataset(damaged, prefix="d")
    assert take(damaged, config, 1)[1][0].source.clip_ids[0].startswith("d")


@pytest.mark.parametrize("size", [0, 100, -10])
def test_an_index_that_was_cut_off_is_made_again(coded_dataset, tmp_path, size: int):
    storage = DatasetStorage(coded_dataset)
    path = open_index(storage, "train", folder=str(tmp_path)).path
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    open_index(storage, "train", folder=str(tmp_path))
    assert path.read_bytes() == whole


def test_the_index_has_a_place_for_a_user_without_a_name(coded_dataset, tmp_path, monkeypatch):
    def no_name(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pwd, "getpwuid", no_name)  # as in a container that runs as a number alone
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    assert open_index(DatasetStorage(coded_dataset), "train").path.is_relative_to(tmp_path)


def test_labels_without_values_are_unknown_not_damage(damaged, config, index_folder):
    index = open_index(DatasetStorage(damaged), "train", folder=index_folder)
    place = index.place(0, 0)
    with open(damaged / "shards" / place.shard, "rb") as file:
        file.seek(place.label[0])
        assert json.loads(file.read(place.label[1] - place.label[0]))["roll_deg"] == 0
    _, batches = take(damaged, config, 12)
    rolls = [batch.source.pose[r, 2] for batch in batches for r, c in enumerate(batch.source.clip_ids) if c == "c01_0"]
    assert rolls
    assert all(roll.isnan() for roll in rolls)
