"""Tables are rewritten some hundred rows at a time; what is looked up for their rows is looked up for all at once.

Arrow hashes all that it looks among at every call: done for each piece of a table, that takes time that grows with the
square of its rows, many minutes for a million clips.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pyarrow.compute as pc
import pytest

from curation.pack import publish
from curation.recipe import Recipe
from curation.select import select
from curation.units import Ledger
from manifests.schema import make_table
from manifests.store import Dataset, iterate_tables, read_table, replace_table


def make_clips(dataset: Dataset, num: int) -> list[str]:
    """So many, of a unit each, all in one shard; returns their ids."""
    ids = [f"source{k:05d}-0000-0" for k in range(num)]
    rows = [{"clip_id": i, "source_id": i[:11], "unit": i[:16], "kind": "video", "shard": "old.tar"} for i in ids]
    replace_table(dataset, "clips", make_table("clips", rows))
    return ids


def publish_all(dataset: Dataset, ids: list[str]) -> None:
    folder = dataset.staging / "pack-0"
    folder.mkdir(parents=True)
    place = {"frame_offsets": [512], "frame_sizes": [9], "label_offsets": [1536], "label_sizes": [9]}
    places = [{"clip_id": i, "shard": "train-000000.tar"} | place for i in ids]
    row = {"shard": "train-000000.tar", "num_clips": len(ids), "plan_hash": "0"}
    (folder / "0.json").write_bytes(orjson.dumps({"rows": {"shards": [row], "places": places}}))
    (folder / "0.tar").touch()
    plan = [{"shard": "train-000000.tar", "plan_hash": "0", "clips": [{"clip_id": i} for i in ids]}]
    publish(dataset, plan, folder)
    assert set(read_table(dataset, "clips", ["shard"])["shard"].to_pylist()) == {"train-000000.tar"}


def select_all(dataset: Dataset, ids: list[str]) -> None:
    select(dataset, Recipe(), 0.4)
    assert set(read_table(dataset, "clips", ["decision"])["decision"].to_pylist()) == {"keep"}


def absorb_one(dataset: Dataset, ids: list[str]) -> None:
    ledger = Ledger(dataset, "crop", "0")
    ledger.folder.mkdir(parents=True)
    new = {"clip_id": ids[0], "unit": ids[0][:16], "num_frames": 7}
    row = {"stage": "crop", "unit": new["unit"], "source_id": new["unit"][:11]}
    (ledger.folder / f"{new['unit']}.json").write_bytes(orjson.dumps({"rows": {"clips": [new]}, "ledger": row}))
    ledger.absorb()
    assert read_table(dataset, "clips", ["num_frames"])["num_frames"].to_pylist() == [7] + [None] * (len(ids) - 1)


@pytest.mark.parametrize("rewrite", [publish_all, select_all, absorb_one])
def test_larger_tables_take_no_more_lookups(tmp_path, monkeypatch, rewrite: Callable[[Dataset, list[str]], None]):
    def num_lookups(num_clips: int) -> int:
        dataset = Dataset(tmp_path / str(num_clips))
        ids = make_clips(dataset, num_clips)
        count = 0

        def counted(look_up):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                return look_up(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("index_in", "is_in"):
                patch.setattr(pc, name, counted(getattr(pc, name)))
            rewrite(dataset, ids)
        assert len(list(iterate_tables(dataset, "clips", ["clip_id"]))) == -(-num_clips // 512)
        return count

    assert num_lookups(3000) == num_lookups(300) > 0
