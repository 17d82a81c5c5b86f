"""Which clips and frames the index takes from the manifests, and what a damaged shard leaves of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from training.data.clips import ClipIndex, damaged_clips, open_index
from training.data.storage import DatasetStorage


def change(folder: Path, table: str, changes: dict[tuple, dict]) -> None:
    """Rows of a table by clip, or by clip and frame, with other values in some columns."""
    rows = read_table(Dataset(folder), table).to_pylist()
    for row in rows:
        row |= changes.get((row["clip_id"], row["frame"]) if table == "frames" else (row["clip_id"],), {})
    replace_table(Dataset(folder), table, make_table(table, rows))


def rows_of(index: ClipIndex) -> dict[str, int]:
    return {index.clip_id(k): k for k in range(len(index))}


@pytest.mark.parametrize("with_motion", [False, True])
def test_only_kept_clips_and_fit_frames(write_dataset, tmp_path, index_folder, with_motion: bool):
    folder = write_dataset(tmp_path / "set", weights=[1.0] * 18)
    lost = {"decision": "reject", "num_repeats": 1}
    change(folder, "clips", {("c03_0",): lost, ("c04_0",): {"identity_id": None, "weight": None}})
    change(folder, "clips", {("c15_0",): {"num_corrupt": 1}})
    repeat, corrupt = {"is_repeat": True}, {"is_corrupt": True}
    change(folder, "frames", {("c03_0", 15): repeat, ("c15_0", 12): corrupt})
    index = open_index(DatasetStorage(str(folder)), "train", with_motion=with_motion, folder=index_folder)
    rows = rows_of(index)
    assert sorted(rows) == [f"c{k:02d}_0" for k in range(18) if k != 3]
    unfit = {name: np.flatnonzero(index.is_unfit(k)).tolist() for name, k in rows.items() if index.is_unfit(k).any()}
    assert unfit == {"c00_0": [4, 5], "c15_0": [12]}
    assert index.identity_id(rows["c04_0"]) == "c04_0", "nobody known is a person of their own"
    assert np.count_nonzero(index.identity == index.identity[rows["c04_0"]]) == 1
    assert np.count_nonzero(index.identity == index.identity[rows["c00_0"]]) == 2
    assert index.weight[rows["c04_0"]] == 0
    assert index.weight.sum() == 16
    if with_motion:
        assert index.motion(rows["c15_0"])[12].tolist()[:3] == [12.0, 24.0, -12.0]


def test_what_a_damaged_shard_leaves(write_dataset, tmp_path, index_folder):
    folder = write_dataset(tmp_path / "set")
    storage = DatasetStorage(str(folder))
    index = open_index(storage, "train", folder=index_folder)
    rows, shard = rows_of(index), folder / "shards" / "train-000001.tar"
    whole = shard.read_bytes()
    end = int(index.end_bytes()[rows["c08_0"]])

    def lost(content: bytes) -> list[str]:
        shard.write_bytes(content)
        damaged = damaged_clips(storage, index, on_damage="skip")
        return sorted(name for name, k in rows.items() if damaged[k])

    assert lost(whole) == []
    assert lost(whole[:end]) == ["c09_0", "c10_0", "c11_0"]
    assert lost(whole[: end - 1]) == ["c08_0", "c09_0", "c10_0", "c11_0"]
    assert lost(whole + b"more") == [f"c{k:02d}_0" for k in range(6, 12)], "of another data set"
