"""The kept clips of one split as columns: where each frame lies, how often a clip is drawn, which frames are fit.

The columns are one Arrow file, made once from the manifests and mapped into memory by every rank and worker of a
machine, so 2.3 million clips with 69 million frames (2 GB) are there once and never become Python objects.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from manifests.console import amount
from manifests.store import read_parquet
from training.data.storage import DatasetStorage

_log = logging.getLogger(__name__)
_FORMAT = 2  # of the mapped file; raise it when its columns change
_PLACES = ("frame_offsets", "frame_sizes", "label_offsets", "label_sizes")
_COLUMNS = ("clip_id", "kind", "crop_fps", "num_repeats", "num_corrupt", "identity_id", "weight", "shard", *_PLACES)
MOTION = ("pitch_deg", "yaw_deg", "roll_deg", "eye_openness_right", "eye_openness_left", "lip_openness")
"""Columns of a frame that tell what moves between two frames."""
_FILES_AT_ONCE = 256

OnDamage = Literal["skip", "fail"]


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where the bytes of one frame are."""

    clip_id: str
    frame: int
    shard: str
    jpeg: tuple[int, int]
    """Half-open byte range."""
    label: tuple[int, int]

    @property
    def name(self) -> str:
        """As in messages."""
        return f"{self.shard}: frame {self.frame} of clip {self.clip_id}"


class ClipIndex:
    """Columns of one split; pickles as the path of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        column = {name: table[name].chunk(0) for name in table.column_names}  # one chunk: mapped, not copied
        header = json.loads(table.schema.metadata[b"header"])
        self.shards: list[str] = header["shards"]
        self.shard_bytes: dict[str, int] = header["shard_bytes"]
        self.has_weights: bool = header["has_weights"]
        self._clip_id, self._identity_id = column["clip_id"], column["identity_id"]
        self.identity = column["identity"].to_numpy()
        """int32 [N]: number of the clip's person; a clip without a person is its own."""
        self.is_still = column["is_still"].to_numpy(zero_copy_only=False)
        """bool [N]."""
        self.fps = column["fps"].to_numpy()
        """float32 [N]; 0 for stills."""
        self.weight = column["weight"].to_numpy()
        """float64 [N]: how often to draw a clip, relative to the others."""
        self.shard = column["shard"].to_numpy()
        """int32 [N]: index into `shards`."""
        self.first = column["frame_offsets"].offsets.to_numpy()
        """int [N + 1]: where a clip's frames begin in the columns of frames."""
        self._places = {name: column[name].values.to_numpy() for name in _PLACES}
        self._unfit = column["unfit"].values.to_numpy()
        self._motion = column["motion"].values.to_numpy().reshape(-1, len(MOTION))

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipIndex, (self.path,)

    def __len__(self) -> int:
        return len(self.shard)

    def describe(self) -> str:
        """Number of the clips and a hash of their names, which tells whether some came or went."""
        names = "\n".join(sorted(self._clip_id.to_pylist()))
        return f"{amount(len(self), 'clip')} ({hashlib.sha256(names.encode()).hexdigest()[:8]})"

    def num_frames(self, clip: int) -> int:
        return int(self.first[clip + 1] - self.first[clip])

    def clip_id(self, clip: int) -> str:
        return self._clip_id[clip].as_py()

    def identity_id(self, clip: int) -> str:
        return self._identity_id[clip].as_py()

    def is_unfit(self, clip: int) -> np.ndarray:
        """bool [T]: frames that repeat the one before or that the decoder repaired."""
        return self._unfit[self.first[clip] : self.first[clip + 1]].view(bool)

    def motion(self, clip: int) -> np.ndarray:
        """float16 [T, 6]: the numbers of MOTION, NaN where unknown; [0, 6] in an index made without them."""
        return self._motion[self.first[clip] : self.first[clip + 1]]

    def place(self, clip: int, frame: int) -> FramePlace:
        at = int(self.first[clip]) + frame
        assert at < self.first[clip + 1], f"{frame = } of {self.clip_id(clip)} with {self.num_frames(clip)}"
        jpeg, jpeg_bytes, label, label_bytes = (int(self._places[name][at]) for name in _PLACES)
        shard = self.shards[self.shard[clip]]
        return FramePlace(self.clip_id(clip), frame, shard, (jpeg, jpeg + jpeg_bytes), (label, label + label_bytes))

    def end_bytes(self) -> np.ndarray:
        """int64 [N]: where each clip's last member ends in its shard."""
        last = self.first[1:] - 1
        ends = [self._places[o][last] + self._places[s][last] for o, s in (_PLACES[:2], _PLACES[2:])]
        return np.maximum(*ends)


def open_index(storage: DatasetStorage, split: str, *, with_motion: bool = False, folder: str = "") -> ClipIndex:
    """The kept clips of a split, from the mapped file if the manifests are those that it was made of.

    with_motion: include pose and openness of every frame (43 percent more memory).
    folder: for the mapped files; by default one in the machine's folder for temporary files. Other processes that want
    the same wait for the one that makes it. Raises ValueError where there is no data set or no clip.
    """
    marks = {name: storage.table_marks(name) for name in ("clips", "frames", "shards")}
    if not marks["clips"]:
        raise ValueError(
            f"no data set at {storage.root}: no Parquet files in its manifests/clips. Make one with "
            f"`python -m curation run VIDEOS --output {shlex.quote(str(storage.root))}`"
        )
    key = hashlib.sha256(json.dumps([_FORMAT, storage.root, split, with_motion, marks]).encode()).hexdigest()[:24]
    place = Path(folder).expanduser() if folder else Path(tempfile.gettempdir()) / f"portrait-clips-{os.getuid()}"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = place / f"{key}.arrow"
    with FileLock(f"{path}.lock"):
        try:
            index = ClipIndex(path)
        except (FileNotFoundError, pa.ArrowInvalid):  # a machine without power may leave a file cut off
            _write_index(path, _make_table(storage, split, with_motion))
            index = ClipIndex(path)
    if not index.has_weights:
        _log.warning("%s: the manifests hold no sampling weights; every clip of %s is drawn alike", storage.root, split)
    return index


def _write_index(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"cannot write the index of clips to {path.parent} ({table.nbytes / 1e6:.0f} MB): {error}. "
            "Make room there or name another folder with TMPDIR, in training also with --data.index-folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _no_clips(root: str, split: str, kept: pa.ChunkedArray, packed: pa.ChunkedArray) -> str:
    """Why a split is empty and what to do, from the splits of the clips that are kept and of those in shards."""
    splits = pc.value_counts(packed.drop_null()).to_pylist()
    have = ", ".join(f"{s['values']} ({amount(s['counts'], 'clip')})" for s in splits) or "no packed clips at all"
    text = f"{root} has no packed clips in split {split!r}; it has {have}"
    if split in kept.to_pylist():
        return f"{text}. Kept clips of {split!r} are in no shard yet: `python -m curation run` packs them"
    if split != "train":
        share = f"--select.{split}-share"
        return f"{text}. `python -m curation select` with a larger {share} makes one, and --split held_out needs none"
    return text


def _make_table(storage: DatasetStorage, split: str, with_motion: bool) -> pa.Table:
    with storage.table_files("clips") as files:
        clips = read_parquet(files, "clips", [*_COLUMNS, "split", "decision"])
    kept = clips.filter(pc.equal(clips["decision"], "keep"))
    packed = kept.filter(pc.is_valid(kept["shard"]))
    clips = packed.filter(pc.equal(packed["split"], split)).select(_COLUMNS)
    if not len(clips):
        raise ValueError(_no_clips(storage.root, split, kept["split"], packed["split"]))
    with storage.table_files("shards") as files:
        sizes = read_parquet(files, "shards", ["shard", "size_bytes"]).to_pydict()
    # In the order of the shards: neighbours in the index are neighbours on disk.
    first_offset = pc.list_element(clips["frame_offsets"], 0)
    clips = clips.append_column("first_offset", first_offset)
    clips = clips.sort_by([("shard", "ascending"), ("first_offset", "ascending")]).combine_chunks()
    shard = clips["shard"].combine_chunks().dictionary_encode()
    lengths = pc.list_value_length(clips["frame_offsets"]).to_numpy()
    unfit, motion = _frame_columns(storage, clips, lengths, with_motion)
    identity_id = pc.coalesce(clips["identity_id"], clips["clip_id"]).combine_chunks()
    weight = clips["weight"].combine_chunks()
    has_weights = weight.null_count < len(weight)
    weights = pc.fill_null(weight, 0.0 if has_weights else 1.0).to_numpy(zero_copy_only=False)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"{storage.root}: sampling weights of {split} must be finite, at least 0, and not all 0")
    known = dict(zip(sizes["shard"], sizes["size_bytes"], strict=True))
    header = {
        "shards": shard.dictionary.to_pylist(),
        "shard_bytes": {name: known[name] for name in shard.dictionary.to_pylist() if name in known},
        "has_weights": has_weights,
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    motion_offsets = (
        offsets.to_numpy().astype(np.int64) * len(MOTION) if with_motion else np.zeros(len(clips) + 1, np.int64)
    )
    columns = {
        "clip_id": clips["clip_id"],
        "identity_id": identity_id,
        "identity": identity_id.dictionary_encode().indices,
        "is_still": pc.equal(clips["kind"], "still"),
        "fps": pc.fill_null(clips["crop_fps"], 0.0).cast(pa.float32()),
        "weight": pa.array(weights),
        "shard": shard.indices,
        **{name: clips[name] for name in _PLACES},
        "unfit": pa.ListArray.from_arrays(offsets, pa.array(unfit)),
        "motion": pa.LargeListArray.from_arrays(pa.array(motion_offsets, pa.int64()), pa.array(motion)),
    }
    return pa.table(columns).replace_schema_metadata({"header": json.dumps(header)})


def _frame_columns(
    storage: DatasetStorage, clips: pa.Table, lengths: np.ndarray, with_motion: bool
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [F] of unfit frames and float16 [6 F] of motion (empty without), in the order of the clips' frames."""
    first = np.concatenate([[0], np.cumsum(lengths)])
    unfit = np.zeros(first[-1], np.uint8)
    motion = np.full((first[-1] if with_motion else 0, len(MOTION)), np.nan, np.float16)
    num_unfit = pc.add(pc.fill_null(clips["num_repeats"], 0), pc.fill_null(clips["num_corrupt"], 0))
    if not with_motion and not pc.any(pc.greater(num_unfit, 0)).as_py():
        return unfit, motion.reshape(-1)
    numbers = MOTION if with_motion else ()
    ids = clips["clip_id"].combine_chunks()
    with storage.table_files("frames") as files:
        for start in range(0, len(files), _FILES_AT_ONCE):
            columns = ["clip_id", "frame", "is_repeat", "is_corrupt", *numbers]
            rows = read_parquet(files[start : start + _FILES_AT_ONCE], "frames", columns)
            is_unfit = pc.fill_null(pc.or_kleene(rows["is_repeat"], rows["is_corrupt"]), False)
            if not with_motion:
                rows, is_unfit = rows.filter(is_unfit), is_unfit.filter(is_unfit)
            names = rows["clip_id"].combine_chunks().dictionary_encode()
            clip = pc.index_in(names.dictionary, ids).take(names.indices)  # NULL: not a clip of this split
            clip = pc.fill_null(clip, -1).to_numpy(zero_copy_only=False)
            frame = rows["frame"].to_numpy()
            inside = (clip >= 0) & (frame < lengths[clip])
            at = first[clip[inside]] + frame[inside]
            unfit[at] = is_unfit.to_numpy()[inside]
            for axis, name in enumerate(numbers):
                motion[at, axis] = rows[name].to_numpy()[inside]
    return unfit, motion.reshape(-1)


def damaged_clips(storage: DatasetStorage, index: ClipIndex, *, on_damage: OnDamage) -> np.ndarray:
    """bool [N]: clips that the files under shards/ cannot hold: missing, cut short, or not the manifests' size.

    Of a shard that was cut short the clips before the cut stay. Raises ValueError for any damage with
    `on_damage="fail"`, and always when no clip is left.
    """
    sizes = storage.shard_sizes()
    damaged = np.zeros(len(index), bool)
    found = []
    ends = index.end_bytes()
    for number, shard in enumerate(index.shards):
        expected, actual = index.shard_bytes.get(shard), sizes.get(shard)
        if actual is not None and actual == expected:
            continue
        is_here = index.shard == number
        readable = 0 if actual is None or expected is None or actual > expected else actual
        damaged[is_here & (ends > readable)] = True
        state = "is missing" if actual is None else f"has {actual} bytes, the manifests say {expected}"
        found.append(f"{storage.shard_place(shard)} {state}")
    if not found:
        return damaged
    advice = "Are these the manifests of another data set, or a copy that was cut off? Copy the shards again"
    listed = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
    if on_damage == "fail" or damaged.all():
        raise ValueError(f"{len(found)} of {amount(len(index.shards), 'shard')} damaged: {listed}. {advice}")
    _log.warning("%s will be replaced by others: %s. %s", amount(damaged.sum(), "clip"), listed, advice)
    return damaged
