"""The recipe of a data set: every option of every stage, read from TOML presets, the command line, or both.

A stage's hash covers the fields that it reads and the hash of the stage before it, so a changed field redoes only
that stage and what follows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from manifests import recipes
from manifests.recipes import require_between, require_finite, require_not_negative, require_positive
from manifests.storage import Place, full_path, place
from model.faces import FacesConfig

RECIPE_VERSION = 1
# Endings decide which files are found and redo nothing; these stand for them in the hash of recipes of version 1.
_HASHED_ENDINGS = {
    "video_extensions": (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "wmv", "flv", "mpg", "mpeg", "ts", "mts", "m2ts", "3gp", "3g2"),
        *("ogv", "mxf", "vob", "y4m"),
    ),
    "still_extensions": ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"),
}
MAY_BE_NEGATIVE = ("min_quality", "min_identity_similarity")  # a network's own scale, and a cosine
PRESETS = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """Listing, hashing and probing of sources."""

    video_extensions: tuple[str, ...] = (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "wmv", "flv", "mpg", "mpeg", "ts", "mts", "m2ts", "3gp", "3g2"),
        *("ogv", "mxf", "vob", "y4m"),
    )
    """File name endings that a folder is searched for, besides the stills'; `.MP4` is the same as `mp4`."""
    still_extensions: tuple[str, ...] = (
        *("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "heic", "heif", "hif", "avif"),
    )
    """File name endings of stills. What a file really is gets found out by its content."""
    max_span_s: float = 300.0
    """Longer videos are scanned in spans of at most this many seconds, side by side."""

    def __post_init__(self) -> None:
        require_positive(self, "max_span_s")
        for name in ("video_extensions", "still_extensions"):
            endings = tuple(
                ending.strip().lower().removeprefix("*").removeprefix(".") for ending in getattr(self, name)
            )
            object.__setattr__(self, name, endings)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """Cuts, faces and tracks."""

    sample_fps: float = 5.0
    """Frames a second that are searched for faces; cuts are looked for on every frame."""
    cut_ratio: float = 3.5
    """A cut changes the picture this many times more than the frames around it (PySceneDetect's adaptive threshold)."""
    cut_window_frames: int = 3
    """Frames before and after that a change is compared with."""
    min_cut_change: float = 12.0
    """Smallest change of hue, saturation and value (0-255) that can be a cut."""
    min_shot_s: float = 0.0
    """Two cuts are at least this far apart, but abrupt changes within cut_window_frames of one are cuts, too. 0: every
    cut ends a shot, however short, so that no clip spans one."""
    min_track_face_px: float = 48.0
    """Faces lower than this (detector's box, native pixels) are not followed."""
    embed_every_s: float = 1.0
    """How often a followed face is identified again."""
    min_overlap: float = 0.3
    """Intersection over union with the last box that continues a track."""
    max_gap_s: float = 0.65
    """A face may be undetected for this long inside a track; at least from one sampled frame to the next (1.5 over
    sample_fps)."""
    min_presence: float = 0.5
    """Samples with a lower face-presence probability count as undetected (analysers without one: not used)."""
    min_clip_s: float = 1.5
    """Shorter pieces become no candidate clip."""
    max_clip_s: float = 30.0
    """A longer piece is divided evenly; where that makes pieces shorter than min_clip_s, into pieces of this length."""
    reach: float = 0.2
    """How far the face's centre may move from the crop's centre, in shares of the crop's side."""
    max_size_ratio: float = 1.6
    """How much larger or smaller the face may become than the crop was made for, before the clip is divided."""
    other_face_share: float = 0.25
    """Another face counts as inside the crop when more than this share of its box is."""
    other_face_size: float = 0.12
    """Faces lower than this share of the main face are background and do not count as another face."""

    def __post_init__(self) -> None:
        require_positive(self, "sample_fps", "min_clip_s", "max_clip_s", "embed_every_s")
        require_positive(self, "cut_ratio", "cut_window_frames")
        require_not_negative(self, "min_cut_change", "min_shot_s", "min_track_face_px", "max_gap_s")
        require_not_negative(self, "reach", "other_face_size")
        require_between(0, 1, self, "min_overlap", "min_presence", "other_face_share")
        if self.max_size_ratio < 1:
            raise ValueError(f"scan.max_size_ratio is {self.max_size_ratio}, expected 1 or more")
        if self.min_clip_s > self.max_clip_s:
            raise ValueError(f"scan.min_clip_s {self.min_clip_s} is larger than scan.max_clip_s {self.max_clip_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CropOptions:
    """The pictures that go into the shards, and what is measured on them."""

    framing: Literal["fixed", "aligned"] = "fixed"
    """fixed: one upright square a clip, head motion stays in the picture. aligned: every frame rotated and centred."""
    size_px: int = 512
    """Side of the pictures in the shards."""
    scale: float = 2.3
    """Side of the crop in sizes of the face (LivePortrait's convention)."""
    vy_ratio: float = -0.125
    """Vertical offset of the crop in shares of its side; negative moves it up."""
    fps: float = 25.0
    """Frames a second of a clip, by time stamps; where the source is slower, its frames repeat."""
    jpeg_quality: int = 95
    """1-100."""
    jpeg_subsampling: Literal["420", "422", "444"] = "420"
    """Colour resolution of the JPEG files."""
    redetect_every_frames: int = 5
    """A lost face is looked for again this often; analysers without a face-presence probability do so all along."""
    quality_model: str = ""
    """Optional face-quality network (.onnx, or .pb for OpenCV), or "pyiqa:METRIC", which takes faces as they are and
    needs no size, mean and std; fills the column `quality`."""
    quality_size_px: int = 96
    """Side of the square that the quality network takes."""
    quality_mean: float = 127.5
    """Subtracted from 0-255 RGB before the network."""
    quality_std: float = 128.0
    """Divided by, after the mean."""
    quality_every_frames: int = 5
    """The quality network looks at every n-th frame."""

    def __post_init__(self) -> None:
        require_positive(self, "scale", "redetect_every_frames")
        require_positive(self, "quality_size_px", "quality_std", "quality_every_frames")
        require_between(16, 8192, self, "size_px")
        require_between(0.01, 1000, self, "fps")
        require_between(1, 100, self, "jpeg_quality")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectOptions:
    """Thresholds of the rules ("none" switches a rule off), identities and splits."""

    min_face_px: float | None = 120.0
    """Rule face_too_small: median height of the detector's box, in pixels of the source."""
    min_face_p05_px: float | None = 80.0
    """Rule face_small_at_times: 5th percentile of the same."""
    max_upscale: float | None = 3.2
    """Rule upscaled: output pixels per source pixel."""
    min_detection_score: float | None = 0.75
    """Rule detection_unsure: median score of the detector, on YuNet's scale; SCRFD scores lower, 0.6 suits it."""
    min_presence: float | None = 0.85
    """Rule face_covered: 10th percentile of the face-presence probability (analysers without one: not judged)."""
    max_yaw_deg: float | None = 50.0
    """Rule yaw: 95th percentile of the absolute angle."""
    max_pitch_deg: float | None = 40.0
    """Rule pitch: likewise."""
    max_roll_deg: float | None = 35.0
    """Rule roll: likewise."""
    min_sharpness: float | None = 0.055
    """Rule blurred: median contrast of the face's finest details over its contrast; below 0.05 a face is mush."""
    min_exposure: float | None = 0.08
    """Rule too_dark: mean luma of the face, 0 to 1."""
    max_exposure: float | None = 0.92
    """Rule too_bright: the same."""
    max_dark_fraction: float | None = 0.6
    """Rule black_areas: share of nearly black pixels in the face."""
    max_bright_fraction: float | None = 0.5
    """Rule burnt_out: share of nearly white pixels in the face."""
    min_duration_s: float | None = 1.5
    """Rule too_short; stills are not judged."""
    max_duration_s: float | None = None
    """Rule too_long."""
    max_landmark_jitter: float | None = 0.08
    """Rule unstable_landmarks: median second difference of the landmarks, in distances between the eyes."""
    max_motion: float | None = 6.0
    """Rule too_much_motion: landmark movement, in distances between the eyes a second."""
    min_motion: float | None = 0.02
    """Rule no_motion: the same; a filmed photograph."""
    max_outside_fraction: float | None = 0.5
    """Rule outside_picture: share of the crop beyond the picture's edge (black in the shards)."""
    min_identity_similarity: float | None = 0.4
    """Rule identity_changes: least cosine between an embedding and the clip's mean."""
    min_quality: float | None = None
    """Rule low_quality: mean score of crop.quality_model."""
    max_corrupt_fraction: float | None = 0.0
    """Rule damaged_frames: share of frames that the decoder repaired (decord tells of none)."""
    require_licence: bool = False
    """Rule no_licence: reject clips whose source names no licence."""
    licences: tuple[str, ...] = ()
    """Rule licence_not_allowed: keep only clips of sources with one of these licences, in any case (empty: any)."""
    require_consent: bool = False
    """Rule no_consent: reject clips whose source list states no consent; "no", "refused", "unknown" ... state none."""
    stills: bool = True
    """Rule still: whether clips of one frame are wanted."""
    keep_clips: tuple[str, ...] = ()
    """clip_ids that no threshold rejects; rights, stills and copies are judged as of all clips. The list that is given
    takes the place of the one before, as with all options."""
    reject_clips: tuple[str, ...] = ()
    """Rule rejected_by_hand: clip_ids that are not wanted. To have a person out for good: `curation forget`."""
    identity_similarity: float | None = None
    """Clips whose embeddings are at least this similar are the same person (None: the analyser's own value)."""
    duplicates: bool = False
    """Rule duplicate: whether copies of footage are wanted besides the best one."""
    duplicate_overlap: float = 0.5
    """A clip is a copy when better ones show at least this share of its footage."""
    balance_identity: float = 0.5
    """Sampling weights: a person's clips weigh their total length to the power of minus this; 0: all alike."""
    balance_pose: float = 0.25
    """Sampling weights: the same for the clips that face the same way."""
    balance_expression: float = 0.25
    """Sampling weights: clips weigh the range of eyes and lips to the power of this."""
    max_weight: float = 4.0
    """Sampling weights lie between one over this and this; the mean of each split is 1."""
    val_share: float = 0.02
    """Share of the groups (people with their sources) that goes to validation."""
    test_share: float = 0.02
    """Share of the groups that goes to the test split."""

    def __post_init__(self) -> None:
        names = [f.name for f in dataclasses.fields(self) if f.name.startswith(("min_", "max_"))]
        require_not_negative(self, *(n for n in names if n not in MAY_BE_NEGATIVE), "val_share", "test_share")
        require_between(0, 1, self, "min_detection_score", "min_presence", "min_exposure", "max_exposure")
        require_between(0, 1, self, *(n for n in names if n.endswith("_fraction")))
        require_between(-1, 1, self, "identity_similarity", "min_identity_similarity")
        for low in (name for name in names if name.startswith("min_")):
            least, most = getattr(self, low), getattr(self, high := low.replace("min_", "max_", 1), None)
            if least is not None and most is not None and least > most:
                raise ValueError(f"select.{low} {least} is larger than select.{high} {most}: no clip would pass")
        if any(licence.strip().lower() in ("", "none") for licence in self.licences or ()):
            raise ValueError("a name in select.licences is empty or none: leave the list empty to allow any licence")
        if both := set(self.keep_clips) & set(self.reject_clips):
            raise ValueError(f"{min(both)} is in select.keep_clips and in select.reject_clips: leave it in one of them")
        if self.max_weight <= 1:
            raise ValueError(f"select.max_weight is {self.max_weight}, expected more than 1")
        if not 0 < self.duplicate_overlap <= 1:
            raise ValueError(f"select.duplicate_overlap is {self.duplicate_overlap}, expected more than 0, at most 1")
        if not 0 <= self.val_share + self.test_share < 1:
            raise ValueError(
                f"select.val_share + select.test_share is {self.val_share + self.test_share}, expected < 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """WebDataset shards."""

    shard_bytes: int = 1_000_000_000
    """A shard is closed before it would grow larger than this; a clip is never divided."""

    def __post_init__(self) -> None:
        require_positive(self, "shard_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Every option of a data set."""

    seed: int = 0
    """Of the order of clips in the shards and of the splits."""
    decoder: Literal["pyav", "decord", "nvdec"] = "pyav"
    """Reader of videos. All give the same pictures; PyAV alone tells which it repaired (rule damaged_frames). decord
    needs more memory; nvdec decodes H.264, HEVC, VP8 and VP9 on an NVIDIA GPU (see --gpus-per-worker)."""
    faces: FacesConfig = field(default_factory=FacesConfig)
    index: IndexOptions = field(default_factory=IndexOptions)
    scan: ScanOptions = field(default_factory=ScanOptions)
    crop: CropOptions = field(default_factory=CropOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    pack: PackOptions = field(default_factory=PackOptions)

    def __post_init__(self) -> None:
        require_finite(self)
        if self.index.max_span_s < self.scan.min_clip_s:
            raise ValueError(
                f"index.max_span_s {self.index.max_span_s} is less than scan.min_clip_s {self.scan.min_clip_s}: no clip"
                " reaches from one span into the next, so there would be none"
            )

    @property
    def needs_gpu(self) -> bool:
        """Whether scan and crop work on one."""
        return self.faces.device == "cuda" or self.decoder == "nvdec"

    def stage_hash(self, stage: str) -> str:
        """8 hex digits over the fields that `stage` (index scan crop select pack) and the stages before it read."""
        values = dataclasses.asdict(self)
        reads = {
            "index": {"index": values["index"] | _HASHED_ENDINGS},
            "scan": {"scan": values["scan"], "faces": _identity_of_faces(self.faces), "decoder": self.decoder,
                     "crop": {k: values["crop"][k] for k in ("scale", "vy_ratio")}},
            "crop": {"crop": values["crop"]},
            "select": {"select": values["select"], "seed": self.seed},
            "pack": {"pack": values["pack"]},
        }  # fmt: skip
        before = {"index": None, "scan": "index", "crop": "scan", "select": "crop", "pack": "select"}[stage]
        content = [RECIPE_VERSION, reads[stage], self.stage_hash(before) if before else ""]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _identity_of_faces(faces: FacesConfig) -> dict[str, Any]:
    """The fields of the analysers that decide about a result; on what they run may change last bits alone."""
    values = dataclasses.asdict(faces)
    return {k: v for k, v in values.items() if k not in ("weights_dir", "root", "num_threads", "device")}


def with_full_paths(recipe: Recipe) -> Recipe:
    """The recipe for workers, which may run in other folders: places of networks are absolute; `~` is each node's own.

    The recipe of the data set keeps them as they were given, because a stage's hash covers the quality network's name.
    """

    def full(path: str | None) -> str | None:
        return path if not path or path.startswith(("~", "pyiqa:")) else full_path(path)

    faces = dataclasses.replace(recipe.faces, root=full(recipe.faces.root), weights_dir=full(recipe.faces.weights_dir))
    crop = dataclasses.replace(recipe.crop, quality_model=full(recipe.crop.quality_model))
    return dataclasses.replace(recipe, faces=faces, crop=crop)


def load_recipe(name_or_path: str) -> Recipe:
    """The preset of that name, or the recipe in that TOML file. ValueError says what is wrong with it."""
    return recipes.load_recipe(Recipe, PRESETS, name_or_path, RECIPE_VERSION)


def recipe_of(folder: Place) -> Recipe:
    """The recipe that made the data set in `folder`.

    Raises:
        ValueError: there is no data set, or its recipe is of another version.
    """
    path = place(folder) / "recipe.toml"
    if not path.is_file():
        raise ValueError(f"no data set at {folder}: expected a folder with recipe.toml in it (`run` makes one)")
    return load_recipe(str(path))


def recipe_changes(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each option that differs, by its name with its section (`scan.sample_fps`)."""
    changes = {}
    for item in dataclasses.fields(Recipe):
        old, new = getattr(before, item.name), getattr(after, item.name)
        if not dataclasses.is_dataclass(old):
            changes[item.name] = (old, new)
            continue
        for f in dataclasses.fields(old):
            changes[f"{item.name}.{f.name}"] = (getattr(old, f.name), getattr(new, f.name))
    return {name: (old, new) for name, (old, new) in changes.items() if old != new}


def told_changes(before: Recipe, after: Recipe) -> list[str]:
    """`recipe_changes` in words."""
    return [f"{name} {old} -> {new}" for name, (old, new) in recipe_changes(before, after).items()]


def looser_rights(before: Recipe, after: Recipe) -> list[str]:
    """Those of `told_changes` that let in clips which were kept out for their licence or for want of consent."""
    old, new = before.select, after.select
    names = [name for name in ("require_licence", "require_consent") if getattr(old, name) and not getattr(new, name)]
    allowed, before_allowed = ({name.strip().lower() for name in options.licences} for options in (new, old))
    if before_allowed and not (allowed and allowed <= before_allowed):
        names.append("licences")
    return [f"select.{name} {getattr(old, name)} -> {getattr(new, name)}" for name in names]


def recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML, with its version and the hash of its last stage."""
    return recipes.to_toml(recipe, RECIPE_VERSION, recipe.stage_hash("pack"))
