"""Which clips show the same footage, and which of them stays."""

from __future__ import annotations

import numpy as np

from curation.duplicates import Copy, Quality, choose_best, find_copies
from curation.fingerprints import MIRROR, MIRROR_CHANGE


class Film:
    """Made-up hashes: one face under one light, whose changes are different in every moment."""

    def __init__(self, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._look = self._chance.integers(0, 2**64, dtype=np.uint64)

    def noisy(self, words: np.ndarray, share: float) -> np.ndarray:
        """With `share` of the bits turned around."""
        bits = self._chance.random((*words.shape, 64)) < share
        return words ^ np.packbits(bits, axis=-1, bitorder="little").view("<u8")[..., 0]

    def shoot(self, num_steps: int) -> np.ndarray:
        """uint64 [num_steps, 2]: a look that varies a little, changes that vary entirely."""
        words = self._chance.integers(0, 2**64, (num_steps, 2), dtype=np.uint64)
        words[:, 0] = self.noisy(np.full(num_steps, self._look), 0.05)
        return words


def cut(words: np.ndarray, first: int, last: int) -> np.ndarray:
    """A clip of a film: its first steps know no change."""
    clip = words[first:last].copy()
    clip[:2, 1] = 0
    return clip


def find(clips: dict[str, np.ndarray], people: dict[str, str] | None = None) -> dict[tuple[str, str], Copy]:
    found = find_copies(
        list(clips),
        [w.ravel() for w in clips.values()],
        [False] * len(clips),
        [None] * len(clips),
        people or dict.fromkeys(clips, "one"),
    )
    return {(c.one, c.other): c for c in found}


def test_copies_are_found_where_they_overlap():
    film = Film(0)
    words = film.shoot(60)
    clips = {
        "whole": cut(words, 0, 60),
        "again": film.noisy(cut(words, 0, 60), 0.06),
        "part": cut(film.noisy(words, 0.06), 30, 50),
        "tail": film.noisy(cut(np.concatenate([words, film.shoot(20)]), 45, 80), 0.06),
        "other": cut(film.shoot(60), 0, 60),
    }
    found = find(clips)
    assert set(found) == {
        ("again", "whole"), ("part", "whole"), ("again", "part"), ("again", "tail"), ("tail", "whole"),
    }  # fmt: skip
    part = found["part", "whole"]
    assert (part.one_share, part.other_share) == (1.0, 20 / 60)
    assert (part.one_start, part.other_start) == (0.0, 0.5)
    assert 0.04 < part.distance < 0.08, "its first steps, which know no change, are not compared"
    tail = found["tail", "whole"]
    assert (tail.one_share, tail.other_share) == (15 / 35, 15 / 60)
    assert (tail.one_start, tail.other_start) == (0.0, 45 / 60)
    assert not any(c.is_mirrored for c in found.values())
    assert 0.04 < found["again", "whole"].distance < 0.08


def test_part_and_tail_overlap_too_little():
    """Five steps in common, two of them without change: that may be chance."""
    film = Film(1)
    words = film.shoot(60)
    assert find({"part": cut(words, 30, 50), "tail": cut(words, 45, 60)}) == {}
    assert find({"whole": words, "part": cut(words, 30, 35)}) == {}
    assert len(find({"whole": words, "part": cut(words, 30, 36)})) == 1, "four changes are enough"


def test_where_footage_repeats_the_best_place_counts():
    film = Film(9)
    words = film.shoot(20)
    twice = np.concatenate([words, film.noisy(words, 0.1)])
    copy = find({"once": cut(words, 0, 20), "twice": cut(twice, 0, 40)})["once", "twice"]
    assert (copy.other_start, copy.distance) == (0.0, 0.0)


def test_mirrored_copies():
    film = Film(2)
    words = film.shoot(40)
    mirrored = cut(film.noisy(words, 0.15) ^ np.array([MIRROR[0], MIRROR_CHANGE]), 10, 40)
    copy = find({"a": cut(words, 0, 40), "b": mirrored})["a", "b"]
    assert copy.is_mirrored
    assert (copy.one_start, copy.other_share) == (0.25, 1.0)
    other = cut(film.shoot(40) ^ np.array([MIRROR[0], MIRROR_CHANGE]), 0, 40)
    assert find({"a": cut(words, 0, 40), "b": other}) == {}, "another moment, mirrored"


def test_other_moments_are_no_copies():
    """100 clips of one person in one setting."""
    film = Film(3)
    assert find({f"c{k:03d}": cut(film.shoot(8 + k % 40), 0, 60) for k in range(100)}) == {}


def test_the_same_change_on_another_face_is_no_copy():
    film, other = Film(4), Film(5)
    clip, strange = cut(film.shoot(40), 0, 40), cut(other.shoot(40), 0, 40)
    strange[:, 1] = clip[:, 1]
    assert find({"a": clip, "b": strange}) == {}
    assert find({"a": clip, "b": clip}, people={"a": "one", "b": "two"}) == {}, "another identity"
    assert find({"a": clip, "b": clip}, people={"a": "one"}) == {}


def test_pictures_that_stand_still_are_not_compared():
    """Two filmed photographs of one person: nothing says that they are one."""
    film = Film(8)
    clips = {name: cut(film.shoot(30), 0, 30) for name in "ab"}
    for words in clips.values():
        words[:, 1] = 0
    assert find(clips) == {}


def test_stills():
    film = Film(6)
    one, two = film.shoot(1), film.shoot(1)
    words = [one, film.noisy(one, 0.06), film.noisy(one, 0.06) ^ MIRROR, two, film.noisy(one, 0.06)]
    alike = np.array([1.0, 0.0])
    vectors = [alike, alike, alike, alike, np.array([0.5, 0.5**0.5])]
    ids = ["a", "again", "mirrored", "other", "unlike"]
    found = find_copies(ids, [w.ravel() for w in words], [True] * 5, vectors, dict.fromkeys(ids, "one"))
    assert [(c.one, c.other, c.is_mirrored) for c in found] == [
        ("a", "again", False), ("a", "mirrored", True), ("again", "mirrored", True),
    ]  # fmt: skip
    mixed = find_copies(["a", "b"], [one.ravel(), one.ravel()], [True, False], [alike, alike], {"a": "x", "b": "x"})
    assert mixed == []
    assert find_copies(["a", "b"], [None, one.ravel()], [True] * 2, [alike] * 2, {"a": "x", "b": "x"}) == []


def test_many_clips_of_one_person():
    """400 clips of 5 s, every tenth a copy of the one before."""
    film = Film(7)
    clips = {}
    for k in range(400):
        is_copy = k % 10 == 9
        words = film.noisy(clips[f"c{k - 1:04d}"], 0.1) if is_copy else cut(film.shoot(25), 0, 25)
        clips[f"c{k:04d}"] = words
    found = find(clips)
    assert set(found) == {(f"c{k - 1:04d}", f"c{k:04d}") for k in range(9, 400, 10)}


def shared(one: str, other: str, share: float = 1.0, other_share: float = 1.0, start: float = 0.0) -> Copy:
    return Copy(one, other, share, other_share, start, 0.0, False, 0.1)


def worth(face_height_px: float, duration_s: float = 10.0, sharpness: float = 0.2, rate: float = 1e6) -> Quality:
    return Quality(face_height_px=face_height_px, duration_s=duration_s, sharpness=sharpness, bits_per_s=rate)


def test_the_best_copy_stays():
    clips = {"a": worth(200), "b": worth(300), "c": worth(300), "d": worth(900)}
    copies = [shared("a", "b"), shared("a", "c"), shared("b", "c")]
    assert choose_best(clips, copies, 0.5) == {"a": "b", "c": "b"}


def test_a_clip_that_fails_other_rules_is_never_the_one_that_stays():
    copies = [shared("a", "b"), shared("b", "c"), shared("d", "e")]
    assert choose_best({"b": worth(300), "a": worth(200)}, copies, 0.5) == {"a": "b", "c": "b"}


def test_a_chain_of_copies_keeps_what_nobody_else_shows():
    """a shows most of b, b shows most of c, a shows nothing of c."""
    copies = [shared("a", "b", 0.6, 0.6), shared("b", "c", 0.4, 0.6)]
    assert choose_best({"a": worth(400), "b": worth(300), "c": worth(200)}, copies, 0.5) == {"b": "a"}


def test_overlap_counts_for_the_clip_that_would_go():
    copies = [shared("excerpt", "long", 1.0, 0.2)]
    sharp_excerpt = {"excerpt": worth(400, 4.0), "long": worth(200, 20.0)}
    assert choose_best(sharp_excerpt, copies, 0.5) == {}, "the excerpt is better, the long one shows more"
    assert choose_best(sharp_excerpt, copies, 0.2) == {"long": "excerpt"}
    poor_excerpt = {"excerpt": worth(200, 4.0), "long": worth(400, 20.0)}
    assert choose_best(poor_excerpt, copies, 0.5) == {"excerpt": "long"}
    about_the_same = {"excerpt": worth(328, 4.0), "long": worth(316, 20.0)}
    assert choose_best(about_the_same, copies, 0.5) == {"excerpt": "long"}


def test_several_clips_cover_one_together():
    copies = [
        Copy("one", "two", 0.3, 1.0, 0.0, 0.0, False, 0.1),
        Copy("one", "three", 0.35, 1.0, 0.25, 0.0, False, 0.1),
    ]
    clips = {"one": worth(100), "two": worth(300), "three": worth(300)}
    assert choose_best(clips, copies, 0.6) == {"one": "three"}
    assert choose_best(clips, copies, 0.61) == {}
    assert 0.2 + 0.5 - 0.2 < 0.5, "so does a share just as large as asked for, whatever rounding makes of it"
    assert choose_best(clips, [Copy("one", "two", 0.5, 1.0, 0.2, 0.0, False, 0.1)], 0.5) == {"one": "two"}


def test_order_of_quality():
    """Face, length, sharpness, bitrate, name; small differences of the first three do not count."""
    best = worth(300)
    worse = [
        worth(255, 30.0, 0.4, 9e6),
        worth(310, 5.0, 0.4, 9e6),
        worth(310, 10.5, 0.1, 9e6),
        worth(310, 10.5, 0.21, 0.9e6),
        best,
    ]
    for other in worse:
        assert choose_best({"a": best, "b": other}, [shared("a", "b")], 0.5) == {"b": "a"}
        if other != best:
            assert choose_best({"a": other, "b": best}, [shared("a", "b")], 0.5) == {"a": "b"}
