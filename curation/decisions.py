"""What was decided about clips that are being cropped again: who is in them and which split they belong to.

Other options of scan or crop make all clips anew, and a unit that failed in part may be done again. The ids of most
clips stay, and so must their persons and splits: what was for testing must not be trained on. It waits in
`staging/decisions.parquet` for `select`.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from curation.tombstones import STRETCH
from manifests.storage import Place, remove_file
from manifests.store import Dataset, read_parquet, read_table, write_parquet

COLUMNS = ["clip_id", "source_id", "identity_id", "split", "split_group", *STRETCH]


def _file(dataset: Dataset) -> Place:
    return dataset.staging / "decisions.parquet"


def keep_decisions(dataset: Dataset) -> None:
    """Put aside what is decided about the clips of a data set, before they go; repeating it loses nothing."""
    now = read_table(dataset, "clips", COLUMNS)
    now = now.filter(pc.or_(pc.is_valid(now["identity_id"]), pc.is_valid(now["split_group"])))
    if len(now):
        before = kept_decisions(dataset)
        before = before.filter(pc.invert(pc.is_in(before["clip_id"], now["clip_id"].combine_chunks())))
        write_parquet(_file(dataset), pa.concat_tables([before, now]).sort_by("clip_id"))


def kept_decisions(dataset: Dataset) -> pa.Table:
    """What was put aside: `COLUMNS`; no rows where there is nothing."""
    return read_parquet([_file(dataset)] if _file(dataset).exists() else [], "clips", COLUMNS)


def drop_decisions(dataset: Dataset, clip_ids: list[str], source_ids: list[str]) -> None:
    """Forget what was put aside about clips and sources."""
    kept = kept_decisions(dataset)
    gone = pc.is_in(kept["clip_id"], pa.array(clip_ids, pa.string()))
    gone = pc.or_(gone, pc.is_in(kept["source_id"], pa.array(source_ids, pa.string())))
    left = kept.filter(pc.invert(gone))
    if not len(left):
        remove_file(_file(dataset))
    elif len(left) < len(kept):
        write_parquet(_file(dataset), left)
