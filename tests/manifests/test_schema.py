"""Tables have exactly the columns of the schema."""

from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.schema import TABLES, make_table


def test_absent_keys_become_null():
    table = make_table("clips", [{"clip_id": "a", "failed_rules": ["yaw"], "provenance": {"show": "x"}}])
    assert table.schema == TABLES["clips"]
    row = table.to_pylist()[0]
    assert row["clip_id"] == "a"
    assert row["failed_rules"] == ["yaw"]
    assert dict(row["provenance"]) == {"show": "x"}
    assert {k for k, v in row.items() if v is not None} == {"clip_id", "failed_rules", "provenance"}


def test_unknown_column_is_refused():
    with pytest.raises(ValueError, match=r"'failures' has no columns \['colour'\]; it has \['stage'"):
        make_table("failures", [{"stage": "scan", "colour": "red"}])


def test_wrong_type_is_refused():
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        make_table("frames", [{"clip_id": "a", "frame": "seven"}])


@pytest.mark.parametrize("name", TABLES)
def test_no_rows_still_have_the_schema(name):
    assert make_table(name, []).schema == TABLES[name]
    assert len(set(TABLES[name].names)) == len(TABLES[name].names)


def test_clips_have_all_that_a_candidate_measured():
    """Crop copies these from the scan; a column that is missing in `clips` would be lost without a word."""
    candidate = {field.name for field in TABLES["tracks"].field("candidates").type.value_type}
    assert candidate - set(TABLES["clips"].names) == {"first_landmarks"}
