"""A data set of the size of LivePortrait's (69 M frames, 18.9 K identities), made up, without pictures.

Every table goes through the writers of `manifests.store`, a batch of sources at a time; everything is a function of the
seed. Sources show one person each; a person has between one and some hundred sources; a quarter of the clips is
rejected, splits are disjoint by identity; numbers are noise of a realistic range, which no encoding can shrink much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from manifests.schema import CANDIDATE, TABLES
from manifests.store import Dataset, replace_table, write_parquet

CLIPS_PER_SOURCE = 20
CLIPS_PER_TRACK = 2
MEAN_FRAMES = 30
SOURCES_PER_BATCH = 2000
FRAME_BYTES = 60_000
CLIPS_PER_SHARD = 560  # 1 GB
RULES = ("yaw", "blurred", "too_short", "face_too_small", "upscaled", "pitch", "unstable_landmarks", "too_dark")
LICENCES = ("CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "contract", None)
ANALYSER = "open"


@dataclass(kw_only=True)
class Plan:
    """What is known of every clip before its rows are made: arrays over sources [S] or clips [N]."""

    num_sources: int
    num_identities: int
    seed: int = 0
    source_ids: np.ndarray = field(init=False)  # str [S], sorted
    clip_ids: np.ndarray = field(init=False)  # str [N], sorted
    source: np.ndarray = field(init=False)  # int [N]
    num_frames: np.ndarray = field(init=False)  # int [N]
    identity: np.ndarray = field(init=False)  # int [N]
    centres: np.ndarray = field(init=False)  # float32 [identities, 128]
    identity_names: np.ndarray = field(init=False)
    failed: np.ndarray = field(init=False)  # int [N]: index of a rule, -1: kept
    split: np.ndarray = field(init=False)  # int [N]: 0 train, 1 val, 2 test
    shard: np.ndarray = field(init=False)  # int [N], -1: rejected
    place: np.ndarray = field(init=False)  # int [N]: position in the shard

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        step = 2**64 // self.num_sources
        self.source_ids = np.array(
            [f"{k * step + int(j):016x}" for k, j in enumerate(rng.integers(0, step, self.num_sources))]
        )
        num_clips = self.num_sources * CLIPS_PER_SOURCE
        self.source = np.repeat(np.arange(self.num_sources), CLIPS_PER_SOURCE)
        spread = rng.integers(-20, 21, num_clips // 2)
        self.num_frames = np.stack([MEAN_FRAMES + spread, MEAN_FRAMES - spread], 1).reshape(-1)
        ordinal = np.arange(num_clips) % CLIPS_PER_SOURCE
        self.clip_ids = np.array(
            [
                f"{s}_{150 * k:07d}_0"
                for s, k in zip(self.source_ids[self.source].tolist(), ordinal.tolist(), strict=True)
            ]
        )
        popularity = rng.lognormal(0, 1, self.num_identities)
        more = rng.choice(self.num_identities, self.num_sources - self.num_identities, p=popularity / popularity.sum())
        of_source = rng.permutation(np.concatenate([np.arange(self.num_identities), more]))
        self.identity = of_source[self.source]
        first = np.full(self.num_identities, num_clips)
        np.minimum.at(first, self.identity, np.arange(num_clips))
        self.identity_names = np.char.add("id_", self.clip_ids[first])
        self.centres = rng.standard_normal((self.num_identities, 128), np.float32) / np.sqrt(np.float32(128))
        self.failed = np.where(rng.random(num_clips) < 0.75, -1, rng.integers(0, len(RULES), num_clips))
        self.split = np.digitize(rng.random(self.num_identities), [0.96, 0.98])[self.identity]
        self._assign_shards(rng)

    def _assign_shards(self, rng: np.random.Generator) -> None:
        self.shard, self.place = (np.full(len(self.source), -1) for _ in range(2))
        first = 0
        for split in range(3):
            members = rng.permutation(np.flatnonzero((self.split == split) & (self.failed < 0)))
            self.shard[members] = first + np.arange(len(members)) // CLIPS_PER_SHARD
            self.place[members] = np.arange(len(members)) % CLIPS_PER_SHARD
            first += -(-len(members) // CLIPS_PER_SHARD)

    def batches(self) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
        """Clips of some thousand sources, and a random generator of their own."""
        size = SOURCES_PER_BATCH * CLIPS_PER_SOURCE
        for first in range(0, len(self.source), size):
            yield np.arange(first, min(first + size, len(self.source))), np.random.default_rng((self.seed, first))


def write_dataset(folder: Path, plan: Plan, frames_per_file: int = 5_000_000) -> Dataset:
    """Write all tables of the planned data set."""
    dataset = Dataset(folder)
    replace_table(dataset, "sources", sources(plan))
    replace_table(dataset, "clips", (clips(plan, c, rng) for c, rng in plan.batches()))
    replace_table(dataset, "tracks", (tracks(plan, c, rng) for c, rng in plan.batches()))
    parts, num_rows, number = [], 0, 0
    for c, rng in plan.batches():
        parts.append(frames(plan, c, rng))
        num_rows += len(parts[-1])
        if num_rows >= frames_per_file or c[-1] == len(plan.source) - 1:
            write_parquet(dataset.table_folder("frames") / f"crop-00000000-{number:016x}.parquet", parts)
            parts, num_rows, number = [], 0, number + 1
    replace_table(dataset, "shards", shards(plan))
    replace_table(dataset, "units", units(plan))
    replace_table(dataset, "failures", failures(plan))
    replace_table(dataset, "runs", TABLES["runs"].empty_table())
    replace_table(dataset, "tombstones", TABLES["tombstones"].empty_table())
    return dataset


def table(name: str, columns: dict[str, object], num_rows: int) -> pa.Table:
    """A table with the schema of `name`; columns that are not given are NULL; a single value stands for all rows."""
    schema = TABLES[name]
    assert set(columns) <= set(schema.names), set(columns) - set(schema.names)
    return pa.Table.from_arrays(
        [column(schema.field(n), columns.get(n), num_rows) for n in schema.names], schema=schema
    )


def column(target: pa.Field, value: object, num_rows: int) -> pa.Array:
    if value is None:
        return pa.nulls(num_rows, target.type)
    if isinstance(value, (str, int, float, bool)):
        return pa.repeat(pa.scalar(value, target.type), num_rows)
    if isinstance(value, np.ndarray) and value.ndim == 2:  # rows of lists
        return pa.FixedSizeListArray.from_arrays(value.reshape(-1), value.shape[1]).cast(target.type)
    return value.cast(target.type) if isinstance(value, pa.Array) else pa.array(value, target.type)


def numbers(rng: np.random.Generator, names: dict[str, tuple[float, float]], num_rows: int) -> dict[str, np.ndarray]:
    """Uniform noise in the range of each column."""
    return {n: lo + (hi - lo) * rng.random(num_rows, np.float32) for n, (lo, hi) in names.items()}


def lists(values: np.ndarray, lengths: np.ndarray, known: np.ndarray | None = None) -> pa.Array:
    """Lists of the given lengths; those that are not `known` are NULL."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = None if known is None else pa.array(~known)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def sources(plan: Plan) -> pa.Table:
    n = plan.num_sources
    rng = np.random.default_rng((plan.seed, 1))
    licence = rng.integers(0, len(LICENCES), n)
    ids = plan.source_ids.tolist()
    return table(
        "sources",
        {
            "source_id": ids, "content_sha256": [s * 4 for s in ids], "uris": [[f"s3://videos/{s}.mp4"] for s in ids],
            "kind": "video", "status": np.where(rng.random(n) < 0.99, "ok", "rejected"),
            "size_bytes": rng.integers(10**6, 10**9, n),
            "container": "mp4", "codec": "h264", "pix_fmt": "yuv420p", "width_px": 1920, "height_px": 1080,
            "coded_width_px": 1920, "coded_height_px": 1080, "pixel_aspect": 1.0, "rotation_deg": 0, "fps": 25.0,
            "is_variable_fps": False, "duration_s": rng.uniform(120, 600, n),
            "num_frames": rng.integers(3000, 15000, n),
            "has_audio": True, "audio_codec": "aac", "licence": [LICENCES[k] for k in licence],
            "consent": [None if k % 3 else "release" for k in range(n)],
            "provenance": provenance(np.arange(n)),
        },
        n,
    )  # fmt: skip


def provenance(of_sources: np.ndarray) -> pa.Array:
    """The free columns of a source list: here a channel."""
    return pa.array([[("channel", f"c{k % 997}")] for k in of_sources], TABLES["sources"].field("provenance").type)


def embeddings(plan: Plan, c: np.ndarray) -> np.ndarray:
    """float32 [n, 128], unit length, alike within an identity; the same for a clip's row and its candidate."""
    noise = np.random.default_rng((plan.seed, 2, int(c[0]))).standard_normal((len(c), 128), np.float32)
    found = plan.centres[plan.identity[c]] + np.float32(0.5 / np.sqrt(128)) * noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def clips(plan: Plan, c: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Rows of the clips `c`, with the places of their frames in the shards."""
    n, frames_of, ids = len(c), plan.num_frames[c], plan.clip_ids[c]
    source, kept, start = plan.source_ids[plan.source[c]], plan.failed[c] < 0, 150 * (c % CLIPS_PER_SOURCE)
    licence = np.random.default_rng((plan.seed, 1)).integers(0, len(LICENCES), plan.num_sources)[plan.source[c]]
    total = int(frames_of[kept].sum())
    sizes = rng.integers(FRAME_BYTES // 2, FRAME_BYTES, total, np.int32)
    labels = rng.integers(1500, 2000, total, np.int32)
    inside = np.cumsum(np.stack([sizes, labels], 1).reshape(-1).astype(np.int64) // 512 * 512 + 1536).reshape(-1, 2)
    base = np.repeat(plan.place[c][kept].astype(np.int64) * MEAN_FRAMES * FRAME_BYTES, frames_of[kept])
    base = base - np.repeat(inside[np.cumsum(frames_of[kept]) - frames_of[kept], 0], frames_of[kept])
    lengths = np.where(kept, frames_of, 0)
    measures = numbers(
        rng,
        {
            "crop_center_x_px": (400, 1500), "crop_center_y_px": (300, 700), "crop_size_px": (200, 900),
            "upscale_factor": (0.5, 3.5),
            "outside_fraction": (0, 0.3), "face_height_px": (60, 400), "face_height_median_px": (80, 450),
            "detection_score": (0.6, 1),
            "presence_mean": (0.9, 1), "presence_p10": (0.8, 1), "yaw_deg": (-45, 45), "pitch_deg": (-30, 30),
            "roll_deg": (-20, 20),
            "yaw_abs_p95_deg": (0, 60), "pitch_abs_p95_deg": (0, 45), "roll_abs_p95_deg": (0, 35),
            "eye_openness": (0.1, 0.4),
            "lip_openness": (0, 0.4), "eye_openness_range": (0, 0.3), "lip_openness_range": (0, 0.4),
            "sharpness": (0.02, 0.3),
            "exposure": (0.1, 0.9), "dark_fraction": (0, 0.5), "bright_fraction": (0, 0.3), "motion": (0, 5),
            "landmark_jitter": (0, 0.1),
            "identity_similarity": (0.4, 1), "weight": (0.2, 3),
        },
        n,
    )  # fmt: skip
    measures["weight"] = pa.array(measures["weight"].astype(np.float64), mask=~kept)
    names = np.array([*RULES, ""])[plan.failed[c]]
    copies = (rng.random(n) < 0.1) & ~kept
    return table(
        "clips",
        measures
        | {
            "clip_id": ids, "track_id": track_ids(plan, c), "source_id": source, "unit": np.char.add(source, "-0000"),
            "kind": "video", "start_frame": start, "end_frame": start + frames_of, "start_pts": start * 512,
            "end_pts": (start + frames_of) * 512, "start_s": start / 25, "end_s": (start + frames_of) / 25,
            "duration_s": frames_of / 25, "num_frames": frames_of, "num_repeats": 0, "num_corrupt": 0, "crop_fps": 25.0,
            "embedding": embeddings(plan, c), "face_hashes": rng.integers(0, 2**64, (n, 4), np.uint64),
            "staged_bytes": frames_of * FRAME_BYTES, "analyser": ANALYSER, "licence": [LICENCES[k] for k in licence],
            "consent": np.where(plan.source[c] % 3, None, "release"),
            "provenance": provenance(plan.source[c]),
            "decision": np.where(kept, "keep", "reject"), "failed_rules": lists(names[~kept], (~kept).astype(int)),
            "identity_id": plan.identity_names[plan.identity[c]],
            "duplicate_of": pa.array(np.roll(ids, 1), mask=~copies),
            "split": pa.array(np.array(["train", "val", "test"])[plan.split[c]], mask=~kept),
            "split_group": pa.array(plan.identity_names[plan.identity[c]], mask=~kept),
            "shard": pa.array([shard_name(plan, k) if plan.shard[k] >= 0 else None for k in c], pa.string()),
            "frame_offsets": lists(base + inside[:, 0], lengths, kept), "frame_sizes": lists(sizes, lengths, kept),
            "label_offsets": lists(base + inside[:, 1], lengths, kept), "label_sizes": lists(labels, lengths, kept),
        },
        n,
    )  # fmt: skip


def shard_name(plan: Plan, clip: int) -> str:
    return f"{('train', 'val', 'test')[plan.split[clip]]}-{plan.shard[clip]:06d}.tar"


def tracks(plan: Plan, c: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """One track for every two clips, with both as candidates."""
    first = c[::CLIPS_PER_TRACK]
    n, source, last = len(first), plan.source_ids[plan.source[first]], c[CLIPS_PER_TRACK - 1 :: CLIPS_PER_TRACK]
    start, end = 150 * (first % CLIPS_PER_SOURCE), 150 * (last % CLIPS_PER_SOURCE) + plan.num_frames[last]
    at = 150 * (c % CLIPS_PER_SOURCE)
    values = numbers(
        rng,
        {name: (0, 500) for name in CANDIDATE.names if name not in ("clip_id", "embedding", "first_landmarks")},
        len(c),
    ) | {
        "clip_id": plan.clip_ids[c], "embedding": embeddings(plan, c),
        "first_landmarks": rng.random((len(c), 136), np.float32) * 1000, "start_frame": at,
        "end_frame": at + plan.num_frames[c], "start_pts": at * 512, "end_pts": (at + plan.num_frames[c]) * 512,
    }  # fmt: skip
    candidates = pa.StructArray.from_arrays(
        [column(f, values[f.name], len(c)) for f in CANDIDATE], fields=list(CANDIDATE)
    )
    measures = numbers(
        rng,
        {
            "face_height_px": (80, 450), "detection_score": (0.6, 1), "presence": (0.9, 1), "yaw_deg": (-45, 45),
            "pitch_deg": (-30, 30), "roll_deg": (-20, 20), "identity_similarity": (0.4, 1),
        },
        n,
    )  # fmt: skip
    return table(
        "tracks",
        measures
        | {
            "track_id": track_ids(plan, first), "source_id": source,
            "unit": np.char.add(source, "-0000"), "shot": 0, "shot_start_frame": start, "shot_end_frame": end,
            "start_frame": start, "end_frame": end, "start_pts": start * 512, "end_pts": end * 512,
            "start_s": start / 25,
            "end_s": end / 25, "num_samples": 12, "num_identity_samples": 3, "num_clips": CLIPS_PER_TRACK,
            "reasons": lists(np.zeros(0, str), np.zeros(n, int)),
            "candidates": lists_of(candidates, n), "analyser": ANALYSER, "analyser_licence": "Apache-2.0; MIT",
        },
        n,
    )  # fmt: skip


def track_ids(plan: Plan, c: np.ndarray) -> list[str]:
    """The tracks that the clips `c` are of."""
    start = 150 * (c % CLIPS_PER_SOURCE // CLIPS_PER_TRACK * CLIPS_PER_TRACK)
    return [f"{s}_t{k:07d}_0" for s, k in zip(plan.source_ids[plan.source[c]].tolist(), start.tolist(), strict=True)]


def lists_of(values: pa.Array, num_lists: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(num_lists + 1) * CLIPS_PER_TRACK, pa.int32()), values)


def frames(plan: Plan, c: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Rows of all frames of the clips `c`; the head of a clip moves around a pose of its own."""
    lengths = plan.num_frames[c]
    n = int(lengths.sum())
    frame = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source_frame = frame + np.repeat(150 * (c % CLIPS_PER_SOURCE), lengths)
    measures = numbers(
        rng,
        {
            "presence": (0.8, 1), "eye_openness_right": (0, 0.4), "eye_openness_left": (0, 0.4),
            "lip_openness": (0, 0.5),
            "face_height_px": (200, 260), "sharpness": (0.02, 0.3), "exposure": (0.1, 0.9), "dark_fraction": (0, 0.5),
            "bright_fraction": (0, 0.3), "motion": (0, 0.3),
        },
        n,
    )  # fmt: skip
    for name, spread in (("yaw_deg", 20), ("pitch_deg", 10), ("roll_deg", 8)):
        pose = spread * rng.standard_normal(len(c), np.float32)
        measures[name] = np.repeat(pose, lengths) + rng.standard_normal(n, np.float32)
    for name in ("outside_fraction", "upscale_factor"):
        measures[name] = np.repeat(rng.random(len(c), np.float32), lengths)
    return table(
        "frames",
        measures
        | {
            "clip_id": pa.array(plan.clip_ids[c]).take(pa.array(np.repeat(np.arange(len(c)), lengths))), "frame": frame,
            "source_frame": source_frame, "pts": source_frame * 512, "time_s": source_frame / 25, "is_repeat": False,
            "is_corrupt": False,
        },
        n,
    )  # fmt: skip


def shards(plan: Plan) -> pa.Table:
    known = np.flatnonzero(plan.shard >= 0)
    _, first = np.unique(plan.shard[known], return_index=True)
    num_clips = np.bincount(plan.shard[known])
    num_samples = np.bincount(plan.shard[known], plan.num_frames[known]).astype(np.int64)
    return table(
        "shards",
        {
            "shard": [shard_name(plan, k) for k in known[first]],
            "split": [("train", "val", "test")[plan.split[k]] for k in known[first]],
            "num_clips": num_clips, "num_samples": num_samples, "size_bytes": num_samples * FRAME_BYTES,
            "sha256": "0" * 64, "plan_hash": "0" * 16,
            "licences": [["", *sorted(x for x in LICENCES if x)]] * len(first),
        },
        len(first),
    )  # fmt: skip


def units(plan: Plan) -> pa.Table:
    """A unit of scan and one of crop for every source."""
    n = plan.num_sources
    ids = np.char.add(plan.source_ids, "-0000")
    return table(
        "units",
        {
            "stage": np.repeat(["crop-00000000", "scan-00000000"], n), "unit": np.tile(ids, 2),
            "source_id": np.tile(plan.source_ids, 2), "num_rows": CLIPS_PER_SOURCE, "wall_s": 30.0, "video_s": 300.0,
            "num_frames": 7500, "worker": "node/1",
        },
        2 * n,
    )  # fmt: skip


def failures(plan: Plan) -> pa.Table:
    ids = plan.source_ids[::50]
    return table(
        "failures",
        {
            "stage": "scan", "unit": np.char.add(ids, "-0000"), "source_id": ids,
            "uri": np.char.add("s3://videos/", ids),
            "reason": np.resize(["no_face", "timeout", "decode_error"], len(ids)), "message": "made up", "attempts": 1,
        },
        len(ids),
    )  # fmt: skip
