from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from manifests.store import Dataset, read_table, replace_table
from training.evaluation.selection import Clip, _spread, pair_with_sources, select_clips


def _clips(*pairs: tuple[str, str]) -> tuple[Clip, ...]:
    return tuple(
        Clip(number=k, clip_id=clip_id, identity_id=identity, num_frames=9)
        for k, (clip_id, identity) in enumerate(pairs)
    )


def test_clips_of_a_split(dataset: Path) -> None:
    selection = select_clips(str(dataset), "test")
    assert [(clip.clip_id, clip.num_frames) for clip in selection.clips] == [("aa_0", 7), ("bb_0", 6), ("cc_0", 1)]
    assert [clip.clip_id for clip in selection.videos] == ["aa_0", "bb_0"]
    assert (selection.num_identities, selection.recipe_hash) == (3, "0badcafe")
    frames, points68 = selection.read(selection.clips[1], [0, 5])
    assert (frames.shape, frames.dtype, points68.shape) == ((2, 512, 512, 3), np.uint8, (2, 68, 2))
    face = frames[0][int(points68[0, 30, 1] * 512), int(points68[0, 30, 0] * 512)]  # the tip of the nose
    assert face[0] > face[2] + 20  # skin in RGB order
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 3


def test_limit_takes_people_before_more_clips_of_one(dataset: Path) -> None:
    limited = select_clips(str(dataset), "test", max_clips=1, seed=3)
    assert len(limited.videos) == 1
    assert limited.clips[-1].clip_id == "cc_0"  # stills stay
    assert limited.clips == select_clips(str(dataset), "test", max_clips=1, seed=3).clips


def test_every_person_comes_before_the_second_clip_of_any() -> None:
    clips = [*_clips(*[(f"a{k}", "anna") for k in range(9)], ("b", "bert"), ("c", "carl"))]
    for seed in range(5):
        chosen = _spread(clips, 3, seed)
        assert {"b", "c"} < chosen
        assert len(chosen) == 3


def test_pairs_depend_on_names_alone_and_never_join_a_person_with_itself() -> None:
    clips = _clips(("a", "anna"), ("b", "anna"), ("c", "carl"), ("d", "dora"), ("e", "carl"))
    chosen = dict(pair_with_sources(clips, clips, 0))
    assert [*chosen] == [*clips]
    assert pair_with_sources(clips[::-1], clips[::-1], 0) == [*chosen.items()][::-1]
    for clip, source in chosen.items():
        assert source.identity_id != clip.identity_id
        for other in clips:
            rest = tuple(one for one in clips if one is not other)
            if other not in (clip, source):
                assert pair_with_sources([clip], rest, 0) == [(clip, source)]
        assert pair_with_sources([clip], (source, clip), 0) == [(clip, source)]
    many = _clips(*[(f"clip{k}", f"person{k}") for k in range(40)])
    pairs = pair_with_sources(many, many, 0)
    assert {source for _, source in pairs} == {*many}  # each is the source of one
    assert pairs != pair_with_sources(many, many, 1)
    assert pair_with_sources(clips[:2], _clips(("a", "anna"), ("b", "anna")), 0) == []
    crowd = _clips(*[(f"clip{k}", "anna") for k in range(30)], ("z", "bert"))
    assert {source.clip_id for _, source in pair_with_sources(crowd[:30], crowd, 0)} == {"z"}


def test_pairs_of_many_clips_are_made_in_no_time(monkeypatch) -> None:
    ranked: list[str] = []
    monkeypatch.setattr(
        "training.evaluation.selection._rank", lambda seed, *names: ranked.append(names[0]) or names[0].encode()
    )
    many = _clips(*[(f"clip{k:05d}", f"person{k // 3}") for k in range(3000)])
    assert len(pair_with_sources(many, many, 0)) == len(ranked) == 3000


def test_an_empty_split_names_the_others(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'val'.*test \(3 clips\)"):
        select_clips(str(dataset), "val")
    with pytest.raises(ValueError, match="no data set at"):
        select_clips(str(tmp_path), "test")


def test_stills_alone_are_not_enough(dataset: Path, tmp_path: Path) -> None:
    copy = Dataset(shutil.copytree(dataset, tmp_path / "copy"))
    clips = read_table(copy, "clips")
    replace_table(copy, "clips", clips.filter(np.array(clips["num_frames"]) == 1))
    with pytest.raises(ValueError, match="1 still and no clip of two or more frames"):
        select_clips(str(copy.root), "test")


def test_held_out_frames_drive_and_those_before_do_not(dataset: Path, tmp_path: Path) -> None:
    copy = Dataset(shutil.copytree(dataset, tmp_path / "copy"))
    clips = read_table(copy, "clips")
    at = clips.column_names.index("split")
    replace_table(copy, "clips", clips.set_column(at, "split", [["train"] * len(clips)]))
    selection = select_clips(str(copy.root), "held_out", held_out_share=0.3)
    frames = [list(clip.driving_frames(None, skip_source=True)) for clip in selection.videos]
    assert frames == [[5, 6], [5]]  # floor(0.3 * 7) = 2 of the last, floor(0.3 * 6) = 1
    assert [clip.num_frames for clip in selection.clips] == [7, 6, 1]
    with pytest.raises(ValueError, match="no clip of two or more frames"):
        select_clips(str(copy.root), "held_out", held_out_share=0.1)


def test_driving_frames() -> None:
    clip = Clip(number=0, clip_id="a", identity_id="anna", num_frames=9)
    assert list(clip.driving_frames(None, skip_source=True)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(clip.driving_frames(3, skip_source=True)) == [1, 2, 3]
    assert list(clip.driving_frames(3, skip_source=False)) == [0, 1, 2]


def test_a_shard_that_was_cut_off_is_an_error(dataset: Path, tmp_path: Path) -> None:
    """Told before the work, and where it happens meanwhile."""
    copy = shutil.copytree(dataset, tmp_path / "copy")
    selection = select_clips(str(copy), "test")
    shard = copy / "shards/test-000000.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"1 of 1 shard damaged: .*test-000000.tar has \d+ bytes, the manifests say"):
        select_clips(str(copy), "test")
    selection.read(selection.clips[0], [0])
    with pytest.raises(ValueError, match=r"frame 5 of clip bb_0.*ends before"):
        selection.read(selection.clips[1], [5])
