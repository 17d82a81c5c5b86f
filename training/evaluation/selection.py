"""Which clips and frames take part: those of a split, with another person's source for each driving clip."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import fsspec
import numpy as np
import simplejpeg

from manifests.console import amount
from training.data.clips import ClipIndex, damaged_clips, open_index
from training.data.loader import HELD_OUT
from training.data.pairs import num_training_frames
from training.data.reading import DamagedSampleError, FrameBuffer, FrameReader, RawFrame
from training.data.storage import DatasetStorage


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip of the data set; a still has one frame."""

    number: int
    """In the index of clips."""
    clip_id: str
    identity_id: str
    num_frames: int
    first_driving: int = 0
    """Frames from this one on may drive; earlier ones were seen in training."""

    @property
    def kind(self) -> Literal["video", "still"]:
        """Whether it has something to reenact."""
        return "video" if self.num_frames >= 2 else "still"

    def driving_frames(self, max_frames: int | None, *, skip_source: bool) -> range:
        """Frames that drive, without the first one where that is the source."""
        start = max(self.first_driving, 1 if skip_source else 0)
        return range(start, min(self.num_frames, start + (max_frames or self.num_frames)))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The clips of a split that take part, in the order of their names."""

    storage: DatasetStorage
    index: ClipIndex
    split: str
    recipe_hash: str
    clips: tuple[Clip, ...]

    @property
    def videos(self) -> list[Clip]:
        """Clips that have something to reenact."""
        return [clip for clip in self.clips if clip.kind == "video"]

    @property
    def num_identities(self) -> int:
        return len({clip.identity_id for clip in self.clips})

    def read(self, clip: Clip, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [N, S, S, 3] (RGB) and the labels' landmarks float64 [N, 68, 2], fractions of the side.

        ValueError for a damaged one: figures over the frames that happen to be readable would not compare.
        """
        try:
            raws = [
                _intact(raw) for raw in FrameReader(self.storage, self.index).read((clip.number, k) for k in frames)
            ]
            side_px = simplejpeg.decode_jpeg_header(raws[0].jpeg)[0]
            buffer = FrameBuffer(len(raws), side_px)
            for row, raw in enumerate(raws):
                buffer.fill(row, raw)
        except (DamagedSampleError, ValueError) as error:
            raise ValueError(
                f"{self.storage.root}: {error}; check the data set with `python -m curation verify`, or copy it again"
            ) from error
        filled = buffer.frames()
        return filled.images.permute(0, 2, 3, 1).numpy(), (filled.landmarks.double().numpy() + 0.5) / side_px


def _intact(raw: RawFrame | DamagedSampleError) -> RawFrame:
    if isinstance(raw, DamagedSampleError):
        raise raw
    return raw


def select_clips(
    root: str, split: str, *, held_out_share: float = 0.0, max_clips: int | None = None, seed: int = 0
) -> Selection:
    """Clips of a split of the data set at a path or URL. ValueError where there is none, no clip in the split, or a
    shard of it that is missing or cut short: figures over a part of the clips would not compare.

    split `held_out`: the training clips, of which only the last frames drive, this share of each (see
    `training.data.DataConfig.held_out_share`).

    max_clips: take this many clips with two or more frames, spread over the identities in an order that depends on
    nothing but the clips' names and the seed; stills stay, as sources.
    """
    storage = DatasetStorage(root)
    index = open_index(storage, "train" if split == HELD_OUT else split)
    damaged_clips(storage, index, on_damage="fail")
    clips = []
    for k in range(len(index)):
        names = {"clip_id": index.clip_id(k), "identity_id": index.identity_id(k)}
        num_frames = index.num_frames(k)
        first = int(num_training_frames(num_frames, held_out_share)) if split == HELD_OUT else 0
        if first < num_frames or num_frames == 1:  # clips too short to hold frames out have nothing to test
            clips.append(Clip(number=k, num_frames=num_frames, first_driving=first, **names))
    clips.sort(key=lambda clip: clip.clip_id)
    videos = [clip for clip in clips if clip.kind == "video"]
    if not videos:
        raise ValueError(
            f"{storage.root}: the split {split!r} has {amount(len(clips), 'still')} and no clip of two or more frames, "
            "so nothing to reenact; choose another --split, or curate with a larger share for it"
        )
    if max_clips is not None:
        chosen = _spread(videos, max_clips, seed)
        clips = [clip for clip in clips if clip.num_frames < 2 or clip.clip_id in chosen]
    return Selection(storage=storage, index=index, split=split, recipe_hash=_recipe_hash(storage), clips=tuple(clips))


def _recipe_hash(storage: DatasetStorage) -> str:
    """The hash that curation wrote into the recipe; `unknown` for data sets made by something else."""
    try:
        with fsspec.open(f"{storage.root}/recipe.toml", "rt") as file:
            return str(tomllib.loads(file.read()).get("hash", "unknown"))
    except FileNotFoundError:
        return "unknown"


def _spread(videos: list[Clip], number: int, seed: int) -> set[str]:
    """Ids of up to `number` clips: one of every identity before the second of any."""
    turns: Counter[str] = Counter()
    placed = []
    for place, clip in enumerate(sorted(videos, key=lambda clip: _rank(seed, clip.clip_id))):
        placed.append((turns[clip.identity_id], place, clip.clip_id))
        turns[clip.identity_id] += 1
    return {clip_id for _, _, clip_id in sorted(placed)[:number]}


def pair_with_sources(driving: Sequence[Clip], clips: Sequence[Clip], seed: int) -> list[tuple[Clip, Clip]]:
    """Each driving clip with the clip of another identity whose first frame it drives; [] among clips of one identity.

    driving: some of `clips`. In a circle, in an order that depends on nothing but the clips' names and the seed, the
    source is the next clip of another identity: other clips change a pair only if they come between, and where every
    clip is of its own identity, each is the source of one.
    """
    circle = sorted(clips, key=lambda clip: (_rank(seed, clip.clip_id), clip.clip_id))
    if len({clip.identity_id for clip in circle}) < 2:
        return []
    sources: dict[str, Clip | None] = {}
    after = circle[0]
    for clip in circle[::-1] * 2:  # twice, for the last ones, whose source is among the first
        is_other = after.identity_id != clip.identity_id
        sources[clip.clip_id] = after if is_other else sources.get(after.clip_id)
        after = clip
    return [(clip, sources[clip.clip_id]) for clip in driving]


def _rank(seed: int, *names: str) -> bytes:
    return hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
