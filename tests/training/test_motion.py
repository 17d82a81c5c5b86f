"""Stage 0: M alone learns from labels, and stage I goes on from it."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.keypoints import Motion
from training.__main__ import main
from training.base_losses import Conventions, MotionLosses
from training.base_model import pair_motion
from training.data import PreparedFrames, RandomTransform
from training.distributed import Process
from training.export import checkpoint_folder, load_portrait, network_states
from training.losses import GUIDANCE_LANDMARKS, RELEASED_SLOTS, guided_openness
from training.motion import MotionRecipe, MotionStage, errors
from training.recipe import ComputeOptions, load_recipe

QUICK = (
    *("--recipe", "tiny", "--batch-size", "8", "--data.num-workers", "0", "--reports.pictures-every-images", "0"),
    *("--model.image-size", "64", "--device", "cpu", "--optimizer.ema-half-life-images", "100"),
    *("--optimizer.warmup-images", "40", "--data.driving-candidates", "1"),
)


@pytest.fixture
def frames(make_face68) -> PreparedFrames:
    """Two faces, upright and turned, in [-1, 1]."""
    face = torch.from_numpy(make_face68((0.0, 0.0), 1.0)).float()
    landmarks = torch.stack([face, face.flip(-1)])
    return PreparedFrames(
        image=torch.zeros(2, 3, 32, 32),
        target=torch.zeros(2, 3, 64, 64),
        landmarks=landmarks,
        pose=torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 0.0, 0.0]]),
    )


def test_errors_by_hand(frames: PreparedFrames) -> None:
    keypoints = torch.zeros(2, 21, 3)
    keypoints[:, list(RELEASED_SLOTS), :2] = frames.landmarks[:, GUIDANCE_LANDMARKS]
    keypoints[0, RELEASED_SLOTS[0], 0] += 0.1
    keypoints[0, RELEASED_SLOTS[8], 1] -= 0.1  # the upper lip rises
    keypoints[1, RELEASED_SLOTS[2], :2] = keypoints[1, RELEASED_SLOTS[0], :2]  # a lid on a corner: closed
    nothing = torch.zeros(2, 1)
    motion = Motion(
        pitch=nothing, yaw=nothing, roll=nothing, scale=nothing,
        t=torch.zeros(2, 3), exp=torch.zeros(2, 21, 3), kp=torch.zeros(2, 21, 3),
    )  # fmt: skip
    motion = motion.replace(pitch=motion.pitch - 1)
    conventions = Conventions()
    conventions.pose_signs[0] = -1.0
    told = errors(motion, keypoints, frames, conventions)
    torch.testing.assert_close(told["keypoint_error"][0], torch.tensor((0.1 + 0.1) / 20))
    assert told["pose_error_deg"][0] == pytest.approx((0 + 2 + 3) / 3)
    assert told["pose_error_deg"][1].isnan()
    wanted = frames.landmarks[:, GUIDANCE_LANDMARKS]
    width = (wanted[0, 7] - wanted[0, 6]).norm()
    torch.testing.assert_close(told["mouth_error"], torch.tensor([0.1 / width, 0.0]))
    assert told["eye_error"][0] > 0  # a corner of an eye has moved
    _, eyes = guided_openness(wanted)
    _, found = guided_openness(keypoints[:, list(RELEASED_SLOTS), :2])
    assert found[1] < eyes[1]
    torch.testing.assert_close(told["eye_error"][1], eyes[1] - found[1])


def test_pose_alone_leaves_no_head_without_a_gradient() -> None:
    """Zero, but there: DistributedDataParallel refuses the next step where a parameter has none."""
    others = dict.fromkeys(("equivariance", "keypoint_prior", "deformation_prior", "guidance"), 0.0)
    recipe = dataclasses.replace(load_recipe(MotionRecipe, "motion", "tiny"), losses=MotionLosses(**others))
    stage = MotionStage(recipe, Process())
    gradients: dict[str, float] = {}
    parameters = dict(stage.modules["motion"].named_parameters())
    stage.optimizers["networks"].register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.abs().max().item() for name, p in parameters.items()})
    )
    batch = runpy.run_path(str(Path(__file__).with_name("step_gradients.py")))["make_batch"](2, 64)
    stage.training_step(batch, 0, torch.Generator().manual_seed(0))
    assert gradients["detector.fc_yaw.weight"] > 0
    assert gradients["detector.fc_kp.weight"] == 0


def test_m_sees_pairs_and_is_validated_by_its_average() -> None:
    batch = runpy.run_path(str(Path(__file__).with_name("step_gradients.py")))["make_batch"](2, 64)
    stage = MotionStage(load_recipe(MotionRecipe, "motion", "tiny"), Process())
    network, seen = stage.modules["motion"], []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage.training_step(batch, 0, torch.Generator().manual_seed(0))
    transform = RandomTransform.sample(2, generator=torch.Generator().manual_seed(0))
    frames = batch.source.image, batch.driving.image, transform.warp_image(batch.driving.image)
    assert torch.equal(seen[0], torch.cat(frames))
    with torch.no_grad():
        network.detector.fc_yaw.bias[:20] += 9.0  # which the average has not heard of
        made = pair_motion(stage.ema.modules["motion"], batch.source.image, batch.driving.image)
        expected = errors(made.driving, made.keypoints_driving, batch.driving, stage.conventions)
        for name, value in stage.validate(batch).items():
            torch.testing.assert_close(value, expected[name])


def test_its_average_is_laid_out_alike_and_what_it_does_not_take_is_refused() -> None:
    recipe = MotionRecipe(model=ModelConfig.tiny(32), compute=ComputeOptions(channels_last=True))
    stage = MotionStage(recipe, Process())
    for module in (stage.modules["motion"], stage.ema.modules["motion"]):
        assert module.detector.downsample_layers[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"compute.recompute is \('up_1',\), which the stage motion does not take"):
        MotionStage(dataclasses.replace(recipe, compute=ComputeOptions(recompute=("up_1",))), Process())


def test_losses_that_teach_nothing_are_refused() -> None:
    names = ("equivariance", "keypoint_prior", "head_pose", "deformation_prior", "guidance")
    with pytest.raises(ValueError, match="all weights of losses are 0"):
        MotionLosses(**dict.fromkeys(names, 0.0))
    MotionLosses(**dict.fromkeys(names, 0.0), openness=1.0)


def test_key_points_that_landmarks_guide_must_exist() -> None:
    recipe = MotionRecipe(model=dataclasses.replace(ModelConfig.tiny(32), num_keypoints=20))
    with pytest.raises(ValueError, match=r"model.num_keypoints is 20, .* expected at least 21"):
        MotionStage(recipe, Process())


def test_it_learns_resumes_and_starts_stage_1(dataset: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "motion"
    command = ["motion", *QUICK, "--data", str(dataset), "--output", str(run), "--reports.validate-every-images", "320"]
    assert main([*command, "--num-images", "320"]) == 0
    assert main([*command, "--num-images", "960"]) == 0
    assert "320 images" in capsys.readouterr().err  # resumed
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    errors = [line["keypoint_error"] for line in lines if line["kind"] == "validation"]
    assert errors[-1] < 0.75 * errors[0]
    base = ["base", "--recipe", "tiny", "--init", str(run), "--data", str(dataset), "--output", str(tmp_path / "base")]
    base += ["--num-images", "8", "--data.num-workers", "0", "--reports.pictures-every-images", "0"]
    base += ["--reports.validate-every-images", "0", "--device", "cpu", "--optimizer.learning-rate", "1e-9"]
    base += ["--optimizer.ema-half-life-images", "0"]
    assert main(base) == 0
    started = load_portrait(tmp_path / "base").motion.state_dict()
    for name, value in network_states(checkpoint_folder(run))["motion"].items():
        torch.testing.assert_close(started[name], value, atol=1e-6, rtol=0)
    others = tuple(option.replace(str(tmp_path / "base"), str(tmp_path / "other")) for option in base)
    capsys.readouterr()
    assert main([*others, "--model.backbone-depths", "1", "1", "1", "1"]) == 2
    assert "its M has other sizes" in capsys.readouterr().err
    blank = shutil.copytree(run, tmp_path / "my run")
    assert main(["stitching", *QUICK[:2], "--init", str(blank), "--data", str(dataset), "--output", str(tmp_path)]) == 2
    assert f"holds M alone: train a base model on it first, `python -m training base --init '{blank}'`" in (
        capsys.readouterr().err
    )
    assert main(["export", str(run), "--output", str(tmp_path / "weights")]) == 2
    assert "is a run of `training motion` and holds no whole model" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()
