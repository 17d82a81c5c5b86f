"""A data set of a few hand-written rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.schema import make_table
from manifests.store import Dataset, replace_table

SOURCES = [
    {"source_id": "a" * 16, "uris": ["/v/a.mp4"], "kind": "video", "status": "ok", "duration_s": 90.0},
    {"source_id": "b" * 16, "uris": ["/v/b.mp4"], "kind": "video", "status": "rejected", "reason": "empty_file"},
]
CLIPS = [
    {
        "clip_id": "a_0", "source_id": "a" * 16, "decision": "keep", "failed_rules": [], "split": "train",
        "duration_s": 2.0, "num_frames": 50, "provenance": {"show": "one"}, "embedding": [0.6, 0.8],
    },
    {"clip_id": "a_1", "source_id": "a" * 16, "decision": "reject", "failed_rules": ["yaw", "blurred"]},
    {"clip_id": "a_2", "source_id": "a" * 16, "decision": "reject", "failed_rules": ["yaw"], "duration_s": 6.0},
]  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two sources and three clips; the other tables have no file. The folder's name needs quoting in SQL."""
    made = Dataset(tmp_path / "it's a data set")
    replace_table(made, "sources", make_table("sources", SOURCES))
    replace_table(made, "clips", make_table("clips", CLIPS))
    return made
