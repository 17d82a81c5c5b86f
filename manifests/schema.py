"""Arrow schemas of the six tables of a data set, of its ledger of finished units of work, its runs and its tombstones.

Conventions: units are part of a name (`_s _px _deg _fps _bytes`); frame ranges are half-open; presentation time stamps
(PTS, in the stream's time base) stand beside frame indices; unknown is NULL, never a sentinel. Angles: yaw + = the face
turns to the image's right, pitch + = up, roll + = clockwise.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

_TEXTS = pa.list_(pa.string())
_SPAN = pa.struct([("start_frame", pa.int64()), ("start_pts", pa.int64()), ("end_pts", pa.int64())])  # NULL: open end
_EMBEDDING = pa.list_(pa.float32())
_PLACE = pa.struct(
    [
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),  # as listed before it was read; NULL: the listing did not say
        ("changed", pa.string()),  # time or tag of the last change, as the file system or store tells it
        ("unit", pa.string()),  # of index, that found the content there
        ("columns", pa.map_(pa.string(), pa.string())),  # what a source list said there, licence and all; NULL: none
    ]
)

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),  # first 16 hex digits of content_sha256
        ("content_sha256", pa.string()),
        ("uris", _TEXTS),  # every place where this content was found, sorted; when "replaced", where it was
        ("kind", pa.string()),  # video | still
        ("status", pa.string()),  # ok | rejected
        ("reason", pa.string()),  # short code when rejected
        ("detail", pa.string()),  # the same in plain words
        ("size_bytes", pa.int64()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("pix_fmt", pa.string()),
        ("width_px", pa.int32()),  # as displayed: after pixel aspect ratio and rotation
        ("height_px", pa.int32()),
        ("coded_width_px", pa.int32()),
        ("coded_height_px", pa.int32()),
        ("pixel_aspect", pa.float64()),
        ("rotation_deg", pa.int32()),  # counter-clockwise turn that shows the picture upright
        ("fps", pa.float64()),  # average
        ("is_variable_fps", pa.bool_()),  # average and nominal rate, as FFmpeg tells them, differ by more than 1 %
        ("duration_s", pa.float64()),  # from the first frame on
        ("num_frames", pa.int64()),  # as the container counts them; NULL when it does not
        ("has_audio", pa.bool_()),
        ("audio_codec", pa.string()),
        ("spans", pa.list_(_SPAN)),  # the pieces that are scanned apart
        ("licence", pa.string()),
        ("attribution", pa.string()),
        ("consent", pa.string()),  # as the source list states it: a form's number, "release", "public figure", ...
        ("provenance", pa.map_(pa.string(), pa.string())),  # every further column of the source list
        ("places", pa.list_(_PLACE)),  # one of each of `uris`, as it was last indexed; none when "replaced"
    ]
)

CANDIDATE = pa.struct(
    [
        ("clip_id", pa.string()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("crop_center_x_px", pa.float64()),
        ("crop_center_y_px", pa.float64()),
        ("crop_size_px", pa.float64()),
        ("outside_fraction", pa.float32()),
        ("face_height_px", pa.float32()),
        ("face_height_median_px", pa.float32()),
        ("detection_score", pa.float32()),
        ("identity_similarity", pa.float32()),
        ("embedding", _EMBEDDING),
        ("first_landmarks", pa.list_(pa.float32())),  # 68 x, y pairs on the first sampled frame, source pixels
    ]
)

TRACKS = pa.schema(
    [
        ("track_id", pa.string()),
        ("source_id", pa.string()),
        ("unit", pa.string()),
        ("shot", pa.int32()),  # index of the shot inside its span
        ("shot_start_frame", pa.int64()),
        ("shot_end_frame", pa.int64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("num_samples", pa.int32()),
        ("face_height_px", pa.float32()),  # median height of the detector's box, native pixels
        ("detection_score", pa.float32()),  # median
        ("presence", pa.float32()),  # median probability that this is a face; NULL: the analyser has none
        ("yaw_deg", pa.float32()),  # medians over the samples
        ("pitch_deg", pa.float32()),
        ("roll_deg", pa.float32()),
        ("identity_similarity", pa.float32()),  # smallest cosine between an embedding and the track's mean
        ("num_identity_samples", pa.int32()),
        ("num_clips", pa.int32()),
        ("reasons", _TEXTS),  # why parts of the track became no clip
        ("candidates", pa.list_(CANDIDATE)),  # what crop turns into clips
        ("analyser", pa.string()),
        ("analyser_weights", pa.map_(pa.string(), pa.string())),  # part -> file name and SHA-256
        ("analyser_licence", pa.string()),
    ]
)

CLIP_MEASURES = [
    ("clip_id", pa.string()),
    ("track_id", pa.string()),
    ("source_id", pa.string()),
    ("unit", pa.string()),
    ("kind", pa.string()),  # video | still
    ("start_frame", pa.int64()),  # of the source, half-open
    ("end_frame", pa.int64()),
    ("start_pts", pa.int64()),
    ("end_pts", pa.int64()),
    ("start_s", pa.float64()),
    ("end_s", pa.float64()),
    ("duration_s", pa.float64()),  # num_frames over crop_fps; of a still 0
    ("num_frames", pa.int32()),  # as cropped, at the target rate
    ("num_repeats", pa.int32()),  # of those, how many repeat the source frame before
    ("num_corrupt", pa.int32()),  # how many the decoder repaired; decord tells of none
    ("crop_fps", pa.float64()),  # NULL for a still, as `motion` and `landmark_jitter`
    ("crop_center_x_px", pa.float64()),  # of the fixed square in the displayed source picture
    ("crop_center_y_px", pa.float64()),
    ("crop_size_px", pa.float64()),
    ("upscale_factor", pa.float32()),  # output size over crop size; of aligned crops the largest of the frames'
    ("outside_fraction", pa.float32()),  # share of the square outside the picture; likewise
    ("face_height_px", pa.float32()),  # 5th percentile of the detector's box height, native pixels
    ("face_height_median_px", pa.float32()),
    ("detection_score", pa.float32()),  # median over the samples of the scan
    ("presence_mean", pa.float32()),
    ("presence_p10", pa.float32()),
    ("yaw_deg", pa.float32()),  # means over the frames
    ("pitch_deg", pa.float32()),
    ("roll_deg", pa.float32()),
    ("yaw_abs_p95_deg", pa.float32()),  # 95th percentiles of the absolute angle
    ("pitch_abs_p95_deg", pa.float32()),
    ("roll_abs_p95_deg", pa.float32()),
    ("eye_openness", pa.float32()),  # means
    ("lip_openness", pa.float32()),
    ("eye_openness_range", pa.float32()),  # 95th minus 5th percentile
    ("lip_openness_range", pa.float32()),
    ("sharpness", pa.float32()),  # median over the frames
    ("exposure", pa.float32()),  # mean luma of the face, 0..1
    ("dark_fraction", pa.float32()),  # share of the face's pixels below 16/255, mean
    ("bright_fraction", pa.float32()),  # share above 250/255, mean
    ("motion", pa.float32()),  # mean landmark movement a second, in distances between the eyes
    ("landmark_jitter", pa.float32()),  # median second difference, in distances between the eyes
    ("identity_similarity", pa.float32()),  # smallest cosine to the clip's mean embedding
    ("quality", pa.float32()),  # of the optional quality model, mean
    ("embedding", _EMBEDDING),  # mean identity embedding, unit length
    ("face_hashes", pa.list_(pa.uint64())),  # of the aligned face at regular times, two words each; NULL: not made
    ("staged_bytes", pa.int64()),
    ("analyser", pa.string()),
    ("licence", pa.string()),
    ("attribution", pa.string()),
    ("consent", pa.string()),
    ("provenance", pa.map_(pa.string(), pa.string())),
]

CLIP_DECISIONS = [
    ("decision", pa.string()),  # keep | reject; NULL until select has run
    ("failed_rules", _TEXTS),
    ("identity_id", pa.string()),
    ("duplicate_of", pa.string()),  # clip_id of the kept clip that shows the same footage; NULL: no copy
    ("split", pa.string()),  # train | val | test, kept clips only
    ("split_group", pa.string()),  # clips that share persons, sources or footage; a group is in one split
    ("weight", pa.float64()),  # how often to draw a kept clip, 1 on average in its split
]

CLIP_PLACES = [
    ("shard", pa.string()),
    ("frame_offsets", pa.list_(pa.int64())),  # byte offset of each frame's JPEG data in the shard
    ("frame_sizes", pa.list_(pa.int32())),
    ("label_offsets", pa.list_(pa.int64())),  # the same for its JSON
    ("label_sizes", pa.list_(pa.int32())),
]

CLIPS = pa.schema(CLIP_MEASURES + CLIP_DECISIONS + CLIP_PLACES)

FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frame", pa.int32()),  # index in the clip
        ("source_frame", pa.int64()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("is_repeat", pa.bool_()),  # the source had no new frame for this tick
        ("is_corrupt", pa.bool_()),  # the decoder repaired damage in it; decord never says so
        ("presence", pa.float32()),
        ("yaw_deg", pa.float32()),
        ("pitch_deg", pa.float32()),
        ("roll_deg", pa.float32()),
        ("eye_openness_right", pa.float32()),  # the subject's right eye
        ("eye_openness_left", pa.float32()),
        ("lip_openness", pa.float32()),
        ("face_height_px", pa.float32()),  # of the 68 landmarks, crop pixels
        ("sharpness", pa.float32()),
        ("exposure", pa.float32()),
        ("dark_fraction", pa.float32()),
        ("bright_fraction", pa.float32()),
        ("motion", pa.float32()),  # landmark movement since the frame before, in distances between the eyes; first: 0
        ("outside_fraction", pa.float32()),
        ("upscale_factor", pa.float32()),
        ("quality", pa.float32()),  # NULL where the quality network did not look, or there is none
    ]
)

SHARDS = pa.schema(
    [
        ("shard", pa.string()),  # file name below shards/
        ("split", pa.string()),
        ("num_clips", pa.int32()),
        ("num_samples", pa.int64()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("plan_hash", pa.string()),  # of the plan row that this file is a pure function of
        ("licences", _TEXTS),  # of the sources of its clips, sorted; "" stands for a source that names none
    ]
)

FAILURES = pa.schema(  # one unit may leave several rows
    [
        ("stage", pa.string()),
        ("unit", pa.string()),
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("reason", pa.string()),  # short code
        ("message", pa.string()),  # plain words
        ("attempts", pa.int32()),
    ]
)

UNITS = pa.schema(  # of index, scan and crop; what pack has finished is known by the rows of `shards`
    [
        ("stage", pa.string()),  # with the hash of its options
        ("unit", pa.string()),
        ("source_id", pa.string()),
        ("num_rows", pa.int64()),
        ("wall_s", pa.float64()),
        ("video_s", pa.float64()),
        ("num_frames", pa.int64()),
        ("worker", pa.string()),
    ]
)

STAGE_OF_RUN = pa.struct(
    [
        ("stage", pa.string()),  # index | scan | crop | select | recrop | pack; of other commands select | forget
        ("num_planned", pa.int64()),  # units of work; NULL where it is not divided into any
        ("num_done_before", pa.int64()),  # of those, finished by earlier attempts
        ("num_done", pa.int64()),  # finished by this attempt
        ("num_failed", pa.int64()),  # of those, with problems
        ("num_frames", pa.int64()),
        ("video_s", pa.float64()),
        ("took_s", pa.float64()),
    ]
)

RUNS = pa.schema(  # history: like times and workers in `units` not the same after the same work was done in another way
    [
        ("run_id", pa.string()),
        ("started_at", pa.string()),  # UTC, ISO 8601
        ("ended_at", pa.string()),  # of a killed one its last sign of life, if it left any; NULL while it runs
        ("status", pa.string()),  # running | succeeded | failed | killed
        ("inputs", _TEXTS),  # as given, with full names
        ("recipe_hash", pa.string()),
        ("recipe", pa.string()),  # TOML
        ("recipe_changes", _TEXTS),  # how it differs from the recipe before: `select.max_yaw_deg 50.0 -> 30.0`
        ("num_kept", pa.int64()),  # clips that it has selected; NULL: it did not come to that
        ("decision_changes", _TEXTS),  # how its decisions differ from those before: `newly rejected: 5 (yaw 5)`
        ("seed", pa.int64()),
        ("host", pa.string()),  # of the driver
        ("process", pa.int64()),
        ("address", pa.string()),  # of the Ray cluster; NULL: one inside the driver
        ("num_workers", pa.int64()),  # processes that finished any unit
        ("program_version", pa.string()),
        ("stages", pa.list_(STAGE_OF_RUN)),  # in the order of the work
        ("last_error", pa.string()),  # why it failed, in plain words
    ]
)

TOMBSTONES = pa.schema(
    [
        ("tombstone_id", pa.string()),  # 16 hex digits over what it refuses
        ("kind", pa.string()),  # source: all of it | clip: one face in a part | track: all in a part | face: anywhere
        ("request", pa.string()),  # which call of `forget` left it
        ("forgotten_at", pa.string()),  # UTC, ISO 8601
        ("asked_by", pa.string()),  # source | identity | face | where
        ("content_sha256", pa.string()),  # of the source; NULL for a face
        ("source_id", pa.string()),
        ("clip_id", pa.string()),  # of the clip that was removed
        ("start_s", pa.float64()),  # what overlaps this time and this square of the source is refused
        ("end_s", pa.float64()),
        ("crop_center_x_px", pa.float64()),
        ("crop_center_y_px", pa.float64()),
        ("crop_size_px", pa.float64()),
        (
            "split",
            pa.string(),
        ),  # where it was packed, and the room that the plan of the shards gave it: others stay put
        ("planned_bytes", pa.int64()),
        ("embedding", _EMBEDDING),  # only of a face, and only when asked to keep it
        ("analyser", pa.string()),
        ("min_similarity", pa.float64()),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "sources": SOURCES,
    "tracks": TRACKS,
    "clips": CLIPS,
    "frames": FRAMES,
    "shards": SHARDS,
    "failures": FAILURES,
    "units": UNITS,
    "runs": RUNS,
    "tombstones": TOMBSTONES,
}


def make_table(name: str, rows: list[dict]) -> pa.Table:
    """An Arrow table of `rows` with exactly the schema of table `name`; absent keys become NULL.

    Raises:
        ValueError: a row has a key that the schema does not know.
    """
    schema = TABLES[name]
    known = set(schema.names)
    for row in rows:
        if extra := set(row) - known:
            raise ValueError(f"table {name!r} has no columns {sorted(extra)}; it has {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)
