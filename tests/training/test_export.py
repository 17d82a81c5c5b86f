"""Weights out of runs of both stages, which are made without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage
from training.checkpoints import CheckpointFolder, RunState
from training.correction_commands import Stitching
from training.data import DataConfig
from training.distributed import Process
from training.evaluation.evaluate import Evaluate, _load_engine, held_out_share
from training.evaluation.fingerprint import weights_hash
from training.export import BASE_WEIGHTS, HELD_OUT_FILE, export, known_held_out_share, load_portrait
from training.recipe import Recipe, load_recipe
from training.stage import Stage
from training.start import note_seen_frames
from training.stitching import StitchingRecipe, StitchingStage


def save(stage: Stage, recipe: Recipe, output: Path) -> Path:
    """A run with one checkpoint, whose last weights are others than the averaged ones."""
    with torch.no_grad():
        for module in stage.modules.values():
            for parameter in module.parameters():
                parameter.add_(0.1)
    assert CheckpointFolder(output, keep_last=1, writes=True).save_last(stage, recipe, RunState(images=4))
    return output


def stitching_on(init: Path, output: Path, share: float = 0.3) -> Path:
    """A run of stage II on weights, as `--init` takes them."""
    portrait = load_portrait(init)
    options = Stitching(init=init, output=output, recipe=StitchingRecipe(data=DataConfig(held_out_share=share)))
    options.keep_base(portrait, Process())
    recipe = dataclasses.replace(options.recipe, model=portrait.config)
    return save(StitchingStage(portrait, recipe, Process()), recipe, output)


@pytest.fixture
def base(quick_recipe: Path, tmp_path: Path) -> Path:
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    return save(BaseStage(recipe, Process()), recipe, tmp_path / "base")


def test_what_is_told_of_another_base_leads_to_an_export(base: Path, tmp_path: Path) -> None:
    """Stage II builds on the average of the best checkpoint, so the last weights of its base do not go with it."""
    stitching, output = stitching_on(base, tmp_path / "stitching"), tmp_path / "weights"
    export((base, stitching), output)
    with pytest.raises(
        ValueError, match=rf"{stitching} was trained on another base .* leave {base} out.* or train"
    ) as told:
        export((base, stitching), tmp_path / "mixed", average=False)
    assert str(told.value).endswith(f"with --init an export of {base} alone, with these --weights and --checkpoint")
    assert not (tmp_path / "mixed").exists()
    export((stitching,), output, average=False)
    made, averaged = LivePortrait.from_pretrained(output), load_portrait(stitching)
    assert torch.equal(made.generator.fc.weight, load_portrait(base).generator.fc.weight)
    torch.testing.assert_close(made.stitching.mlp[-1].bias, averaged.stitching.mlp[-1].bias + 0.1)
    export((base,), tmp_path / "last", average=False)
    other = stitching_on(tmp_path / "last", tmp_path / "other")
    export((base, other), output, average=False)
    assert torch.equal(
        LivePortrait.from_pretrained(output).generator.fc.weight, load_portrait(other).generator.fc.weight
    )
    with pytest.raises(
        ValueError, match=rf"leave {tmp_path / 'last'} out.* or train it again with --init {tmp_path / 'last'}$"
    ):
        export((tmp_path / "last", stitching), output)


def test_frames_that_any_stage_has_seen_are_not_held_out(base: Path, tmp_path: Path, caplog) -> None:
    """The base held back a fifth of each clip."""
    assert known_held_out_share(base) == 0.2
    more, less = (stitching_on(base, tmp_path / f"stitching{share}", share) for share in (0.3, 0.1))
    assert [known_held_out_share(run) for run in (more, less)] == [0.2, 0.1]
    output = tmp_path / "weights"
    export((base, less), output)
    assert known_held_out_share(output) == known_held_out_share(stitching_on(output, tmp_path / "next")) == 0.1
    options = Evaluate(weights=more, data="d", split="held_out")
    assert held_out_share(options) == 0.2
    assert held_out_share(dataclasses.replace(options, held_out_share=0.05)) == 0.05
    (more / BASE_WEIGHTS / HELD_OUT_FILE).unlink()
    with pytest.raises(ValueError, match=r"share = None.*of several stages the smallest"):
        held_out_share(options)
    export((more,), output)
    assert known_held_out_share(output) is None, "it says nothing of weights that were there before"
    export((base,), tmp_path / "one.safetensors")
    assert known_held_out_share(tmp_path / "one.safetensors") is None
    for share in (0.1, 0.2, 0.3):
        note_seen_frames(base, StitchingRecipe(data=DataConfig(held_out_share=share)))
    notes = [message for message in caplog.messages if message.startswith("note: ")]
    assert [note.split(":")[1] for note in notes] == [
        f" this run validates on the last 30% of each clip's frames, --init {base} has held back the last 20%"
    ]


def test_an_evaluation_takes_the_weights_of_a_run_that_are_asked_for(base: Path) -> None:
    for kind in ("average", "last"):
        _, about = _load_engine(Evaluate(weights=base, data="d", weights_kind=kind, checkpoint="latest", device="cpu"))
        assert (about["name"], about["checkpoint"], about["kind"]) == ("base", "images-0000000004", kind)
        assert about["sha256"] == weights_hash(load_portrait(base, average=kind == "average"))
    assert weights_hash(load_portrait(base)) != about["sha256"]
