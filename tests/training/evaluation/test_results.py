"""Counts and reasons in the tables, from figures made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from training.evaluation.catalogue import GROUPS
from training.evaluation.control import Shoulders, Sweep, obedience
from training.evaluation.measuring import Tools
from training.evaluation.results import NO_FACE, TOO_FEW_STEPS, section_of_shoulders, section_of_sweeps

TOOLS = Tools(groups=GROUPS, compare_size_px=64, device=torch.device("cpu"))


def sweep(asked: tuple[float, ...], achieved: list[float | None], kind: str = "video") -> Sweep:
    control, copied, spearman = obedience(asked, achieved, 0.1)
    return Sweep(
        clip=SimpleNamespace(clip_id="a", kind=kind),
        region="eye",
        at_rest=0.1,
        asked=list(asked),
        achieved=achieved,
        figures={"eye_control": control, "eye_spearman": spearman, "eye_rest": 0.1},
        copy_source={"eye_control": copied},
    )


def test_a_rank_correlation_of_two_steps_is_missing_for_its_own_reason() -> None:
    short = section_of_sweeps([sweep((0.0, 0.4), [0.1, 0.3])], TOOLS)["aggregate"]
    assert short["eye_control"]["result"] == 0.1
    assert short["eye_spearman"] == {"missing": TOO_FEW_STEPS}
    blind = section_of_sweeps([sweep((0.0, 0.2, 0.4), [None] * 3)], TOOLS)["aggregate"]
    assert blind["eye_control"] == blind["eye_spearman"] == {"missing": NO_FACE}


def test_pairs_without_shoulders_do_not_count() -> None:
    pairs = [
        Shoulders(
            clip=SimpleNamespace(clip_id=name),
            source=SimpleNamespace(clip_id="s", kind=kind),
            num_frames=4,
            figures={"shoulders_plain": plain, "shoulders_stitched": stitched},
            pictures={},
        )
        for name, kind, plain, stitched in (
            ("a", "video", 0.4, 0.1),
            ("b", "still", None, None),
            ("c", "still", 0.2, 0.2),
        )
    ]
    section = section_of_shoulders(pairs)
    assert section["num_pairs"] == 3
    assert [entry["num_pairs"] for entry in section["aggregate"].values()] == [2, 2, 2]
    assert section["aggregate"]["shoulders_ratio"]["result"] == 0.5
    kinds = section["aggregate"]["shoulders_ratio"]["by_source_kind"]
    assert kinds == {"video": {"result": 0.25, "num_pairs": 1}, "still": {"result": 1.0, "num_pairs": 1}}


def test_stills_and_videos_have_figures_of_their_own() -> None:
    asked = (0.0, 0.2, 0.4)
    sweeps = [sweep(asked, [0.0, 0.2, 0.4]), sweep(asked, [0.4, 0.2, 0.0], "still"), sweep(asked, [None] * 3, "still")]
    obeyed = section_of_sweeps(sweeps, TOOLS)["aggregate"]["eye_spearman"]
    assert (obeyed["result"], obeyed["num_sources"]) == (0.0, 2)
    kinds = obeyed["by_source_kind"]
    assert {kind: (part["result"], part["num_sources"]) for kind, part in kinds.items()} == {
        "video": (1.0, 1),
        "still": (-1.0, 1),
    }
    assert "by_source_kind" not in section_of_sweeps(sweeps[:1], TOOLS)["aggregate"]["eye_spearman"]
