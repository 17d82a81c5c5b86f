"""Stage I: every part learns, each discriminator by its own region, and the options change speed, not results."""

from __future__ import annotations

import copy
import dataclasses
import math
import runpy
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import ModelConfig
from model.networks import LivePortrait
from training.base import BaseRecipe, BaseStage, face_boxes
from training.base_losses import BaseLosses, MotionLosses
from training.base_model import BaseModel, recompute_blocks
from training.data import PreparedBatch, RandomTransform
from training.distributed import Process
from training.edits import edit_landmarks
from training.loop import seeded_generator
from training.losses import GUIDANCE_LANDMARKS, flow_openness_loss, landmark_flow_loss
from training.recipe import load_recipe
from training.stage import Draws

SCRIPT = runpy.run_path(str(Path(__file__).with_name("step_gradients.py")))
IMAGES = 100


@pytest.fixture(scope="module")
def batch() -> PreparedBatch:
    return SCRIPT["make_batch"](2, 32)


@pytest.fixture
def recipe(quick_recipe: Path) -> BaseRecipe:
    return load_recipe(BaseRecipe, "base", str(quick_recipe))


def with_losses(recipe: BaseRecipe, **weights: object) -> BaseRecipe:
    return dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, **weights))


def step(stage: BaseStage, batch: PreparedBatch, images: int = IMAGES) -> dict[str, float]:
    told = stage.training_step(batch, images, seeded_generator(torch.device("cpu"), 1))
    return {name: value.item() for name, value in told.items()}


def test_all_terms_reach_every_parameter(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """With all losses on, one step moves every parameter of F, M, W, G and of the three discriminators."""
    full = with_losses(
        recipe,
        **dict.fromkeys(("perceptual", "identity", "pixel_face", "pixel_eyes", "openness"), 1.0),
        **dict.fromkeys(("landmark_flow", "flow_openness"), 1.0),
        random_vgg19_width=0.1,
    )
    stage = BaseStage(full, Process(), allow_random_features=True)
    networks = {**stage.model.networks(), "discriminators": stage.modules["discriminators"]}
    before = {f"{n}.{k}": p.detach().clone() for n, m in networks.items() for k, p in m.named_parameters()}
    told = step(stage, batch)
    weights = [f.name for f in dataclasses.fields(BaseLosses) if f.type == "float" and getattr(full.losses, f.name)]
    assert {name for name in weights if name != "random_vgg19_width"} <= set(told)
    assert all(torch.tensor(value).isfinite() for value in told.values())
    total = sum(getattr(full.losses, name) * value for name, value in told.items() if name in weights)
    assert told["loss"] == pytest.approx(total, rel=1e-5)
    for name, module in networks.items():
        for key, parameter in module.named_parameters():
            assert parameter.isfinite().all()
            # Batch norm takes these biases out, and a hinge that all are within pulls the last one both ways equally:
            # their gradient is rounding, or nothing.
            if key.endswith(("conv.bias", "conv1.bias", "compress.bias", "head.bias")):
                continue
            assert not torch.equal(parameter, before[f"{name}.{key}"]), f"{name}.{key} did not move"


class Waits(TorchDispatchMode):
    """Lines at which a step would wait for a GPU: numbers asked from it, or made into a tensor there."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = [leaf for leaf in tree_leaves(arguments) if name == "index" and isinstance(leaf, torch.Tensor)][1:]
        asks = name in ("lift_fresh", "_local_scalar_dense", "is_nonzero", "nonzero", "equal")
        if asks or any(mask.dtype == torch.bool for mask in masks):
            own = [frame for frame in traceback.extract_stack() if "/training/" in frame.filename]
            self.places.add(f"{name}: {own[-1].filename}:{own[-1].lineno}")
        return function(*arguments, **(options or {}))


def test_a_step_does_not_wait_for_the_device(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """Whoever waits in the middle of a step lets the device run dry; the loop waits once, at the end."""
    terms = ("perceptual", "identity", "pixel_face", "pixel_eyes", "openness", "landmark_flow", "flow_openness")
    full = with_losses(recipe, **dict.fromkeys(terms, 1.0), random_vgg19_width=0.1)
    full = dataclasses.replace(full, told_share=0.5, edited_every=1)
    stage = BaseStage(full, Process(), allow_random_features=True)
    generator = seeded_generator(torch.device("cpu"), 1)
    stage.training_step(batch, IMAGES, generator)  # which makes the optimisers' state
    with Waits() as waits:
        stage.training_step(batch, IMAGES, generator)
        stage.ema.update(100, 2)
    assert waits.places == set()


def test_without_weights_of_feature_networks_it_says_what_to_do(recipe: BaseRecipe) -> None:
    with pytest.raises(ValueError, match=r"VGG19 weights and got no path.*--allow-random-features"):
        BaseStage(with_losses(recipe, perceptual=1.0), Process())


def test_weights_that_no_term_reads_are_told(recipe: BaseRecipe, caplog: pytest.LogCaptureFixture) -> None:
    BaseStage(with_losses(recipe, perceptual=0.0, identity=0.0, vgg19="nowhere.pth"), Process())
    assert "losses.vgg19 is not used, because losses.perceptual is 0" in caplog.text


def test_discriminators_learn_alone_first(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    stage = BaseStage(recipe, Process())
    early = step(stage, batch, 0)
    other = step(BaseStage(with_losses(recipe, gan="non-saturating"), Process()), batch)
    assert early["discriminator/face"] == pytest.approx(2, abs=0.2)  # hinge and cross entropy of who cannot tell yet
    assert other["discriminator/face"] == pytest.approx(2 * math.log(2), abs=0.2)
    assert not {"adversarial", "feature_matching"} & set(early)
    assert {"discriminator/global", "discriminator/face", "discriminator/lip"} <= set(early)
    later = step(stage, batch, 8)
    assert {"adversarial", "feature_matching"} <= set(later)


def test_each_discriminator_sees_its_own_region(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """The mouth of the real picture changes: the judgement of the lip region does, and that of a face without it."""
    stage = BaseStage(recipe, Process())
    bare, seen, given = stage.modules["discriminators"], {}, []
    stage.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    for region in bare.regions:
        bare.of(region).register_forward_pre_hook(lambda _, inputs, region=region: seen.setdefault(region, inputs[0]))
    step(stage, batch)
    sizes = {region: tuple(pictures.shape) for region, pictures in seen.items()}
    assert sizes == {"global": (4, 3, 64, 64), "face": (4, 3, 32, 32), "lip": (4, 3, 16, 16)}  # real, then made
    assert torch.equal(seen["global"][:2], batch.driving.target)
    from training.losses import crop_regions

    crops = crop_regions(batch.driving.target, batch.driving.landmarks)
    assert torch.allclose(seen["face"][:2], crops["face"], atol=1e-6)
    assert torch.allclose(seen["lip"][:2], crops["lip"], atol=1e-6)
    transform = RandomTransform.sample(2, generator=seeded_generator(torch.device("cpu"), 1))
    wanted = batch.source.image, batch.driving.image, transform.warp_image(batch.driving.image)
    assert all(torch.equal(mine, other) for mine, other in zip(given[0], wanted, strict=False))


def test_driving_keypoints_use_the_canonical_ones_of_the_source(batch: PreparedBatch) -> None:
    portrait = LivePortrait.untrained(config=ModelConfig.tiny(32))
    torch.nn.init.normal_(portrait.motion.detector.fc_kp.weight, std=1.0)  # canonical points that differ by picture
    model = BaseModel(portrait).eval()
    with torch.no_grad():
        made = model(batch.source.image, batch.driving.image, batch.driving.image.flip(-1))
    motion = made.driving
    expected = motion.scale[:, :, None] * (made.source.kp @ motion.rotation + motion.exp)
    expected = expected + (motion.t * torch.tensor([1.0, 1.0, 0.0]))[:, None]
    assert torch.allclose(made.keypoints_driving, expected, atol=1e-6)
    assert not torch.allclose(made.source.kp, motion.kp, atol=1e-3)
    assert made.keypoints_transformed.shape == expected.shape


def test_recomputed_blocks_give_the_same_gradients(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    states = []
    for blocks in ((), ("up_1", "G_middle_0")):
        compute = dataclasses.replace(recipe.compute, recompute=blocks)
        stage = BaseStage(dataclasses.replace(recipe, compute=compute), Process())
        step(stage, batch)
        step(stage, batch)
        states.append(stage.model.state_dict())
    plain, recomputed = states
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(value, recomputed[name]), name
    with pytest.raises(ValueError, match="G has no block 'up_7'; it has G_middle_0, up_0, up_1"):
        recompute_blocks(stage.model.generator, ("up_7",))


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    told = []
    for options in ({}, {"compile": True}, {"compile": True, "recompute": ("up_1",)}):
        compute = dataclasses.replace(recipe.compute, **options)
        stage = BaseStage(dataclasses.replace(recipe, compute=compute), Process())
        told.append([step(stage, batch), step(stage, batch)])
        assert all("_orig_mod" not in name for module in stage.modules.values() for name in module.state_dict())
    plain, compiled, recomputed = told
    assert compiled == recomputed
    for before, after in zip(plain, compiled, strict=True):
        assert after == {name: pytest.approx(value, rel=1e-2, abs=1e-5) for name, value in before.items()}


def test_channels_last_changes_rounding_only(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    told = []
    for channels_last in (False, True):
        compute = dataclasses.replace(recipe.compute, channels_last=channels_last)
        stage = BaseStage(dataclasses.replace(recipe, compute=compute), Process())
        told.append(step(stage, batch))
    assert stage.model.generator.fc.weight.is_contiguous(memory_format=torch.channels_last)
    for name, network in stage.model.networks().items():  # one kernel averages many weights only if they agree
        averages = stage.ema.modules[name].state_dict()
        assert all(value.stride() == averages[key].stride() for key, value in network.state_dict().items())
    for name, value in told[0].items():
        assert told[1][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_balancer_gives_each_loss_its_share(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """A loss a thousand times as large moves the picture no more: gradients of G stay the same."""
    gradients = []
    for _ in range(2):
        stage = BaseStage(with_losses(recipe, balancer=True, adversarial=0.0, feature_matching=0.0), Process())
        factor = 1000.0 if gradients else 1.0
        terms = stage.criterion.picture_terms
        stage.criterion.picture_terms = lambda *a, f=factor, t=terms: {k: f * v for k, v in t(*a).items()}
        kept: list[torch.Tensor] = []
        weight = stage.model.generator.fc.weight
        stage.optimizers["networks"].register_step_pre_hook(lambda *_, w=weight, k=kept: k.append(w.grad.clone()))
        step(stage, batch)
        gradients.append(kept[0])
        assert "balancer" in stage.modules
    largest = gradients[0].abs().max().item()
    assert largest > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=0, atol=1e-4 * largest)  # they are rounded differently


def test_the_balancer_waits_for_discriminators_that_alone_judge(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """During their warm-up M learns from its labels, and G stays."""
    recipe = with_losses(recipe, balancer=True, pixel=0.0, discriminator_warmup_images=100)
    stage = BaseStage(recipe, Process())
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    told = step(stage, batch, 0)
    assert not {"pixel", "adversarial", "feature_matching"} & set(told)
    after = stage.model.state_dict()
    assert torch.equal(after["generator.fc.weight"], before["generator.fc.weight"])
    assert not torch.equal(after["motion.detector.fc_pitch.weight"], before["motion.detector.fc_pitch.weight"])


def test_signs_apply_to_the_labels(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    stage = BaseStage(recipe, Process())
    stage.conventions.pose_signs.copy_(torch.tensor([-1.0, 1.0, 1.0]))
    flipped = step(stage, batch)["head_pose"]
    signs = torch.tensor([-1.0, 1.0, 1.0])
    mirrored = dataclasses.replace(
        batch,
        source=dataclasses.replace(batch.source, pose=batch.source.pose * signs),
        driving=dataclasses.replace(batch.driving, pose=batch.driving.pose * signs),
    )
    assert step(BaseStage(recipe, Process()), mirrored)["head_pose"] == pytest.approx(flipped, rel=1e-6)
    assert step(BaseStage(recipe, Process()), batch)["head_pose"] != pytest.approx(flipped, rel=1e-5)


def test_figures_of_validation(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    stage = BaseStage(recipe, Process())
    stage.conventions.pose_signs[0] = -1.0
    with torch.no_grad():
        made = stage.reenact(batch)
        stage.model.generator.fc.weight.add_(1.0)
        stage.model.motion.detector.fc_yaw.bias[:20] += 9.0  # what was trained since is not in the average
        figures = stage.validate(batch)
        same = stage.validate(dataclasses.replace(batch, source=batch.driving))
        columns = stage.pictures(batch)
    assert torch.allclose(figures["copy_l1"], (batch.source.target - batch.driving.target).abs().mean(dim=(1, 2, 3)))
    assert same["copy_l1_face"].tolist() == [0, 0]
    assert torch.allclose(figures["l1"], (columns["result"] - batch.driving.target).abs().mean(dim=(1, 2, 3)))
    error = (made.image - batch.driving.target).abs().mean(dim=1)
    in_face = [row[mask > 0].mean() for row, mask in zip(error, face_boxes(batch.driving.landmarks, 64), strict=True)]
    assert torch.allclose(figures["l1_face"], torch.stack(in_face))
    angles = torch.cat([made.driving.pitch, made.driving.yaw, made.driving.roll], dim=1)
    labels = batch.driving.pose * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(figures["pose_error_deg"], (angles - labels).abs().mean(dim=1))
    assert stage.model.training
    assert not stage.ema.modules["motion"].training


def test_discriminators_that_warm_up_alone_leave_no_parameter_without_a_gradient(
    recipe: BaseRecipe, batch: PreparedBatch
) -> None:
    """Zero, but there: DistributedDataParallel refuses the next step where a parameter has none."""
    stage = BaseStage(with_losses(recipe, pixel=0.0, discriminator_warmup_images=1000), Process())
    gradients: dict[str, float] = {}
    stage.optimizers["networks"].register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.abs().max().item() for n, p in stage.model.named_parameters()})
    )
    told = step(stage, batch)
    assert "discriminator/face" in told
    assert "adversarial" not in told
    assert {value for name, value in gradients.items() if name.startswith("generator")} == {0.0}
    assert gradients["motion.detector.fc_kp.weight"] > 0
    on_motion = {field.name for field in dataclasses.fields(MotionLosses)} - {"pose_signs"}
    none = dict.fromkeys({*on_motion, "pixel", "feature_matching"}, 0.0)
    stage = BaseStage(with_losses(recipe, **none, discriminator_warmup_images=1000), Process())
    assert step(stage, batch)["loss"] == 0


def test_face_boxes() -> None:
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, 0], landmarks[0, 1] = torch.tensor([-0.5, 0.0]), torch.tensor([0.5, 0.75])
    box = face_boxes(landmarks, 8)[0]
    assert box.nonzero().amin(dim=0).tolist() == [4, 2]  # y from 0, x from -0.5
    assert box.nonzero().amax(dim=0).tolist() == [6, 5]
    assert face_boxes(torch.full((1, 68, 2), torch.nan), 8).sum() == 0


@pytest.mark.slow
def test_full_size_step_on_one_pair() -> None:
    """The published size: one forward and backward at batch 1, finite gradients for F, M, W, G."""
    recipe = load_recipe(BaseRecipe, "base", "paper")
    recipe = dataclasses.replace(
        recipe,
        batch_size=1,
        compute=dataclasses.replace(recipe.compute, precision="float32", recompute=("up_1",)),
        losses=dataclasses.replace(recipe.losses, identity=0.0, random_vgg19_width=0.25),
    )
    stage = BaseStage(recipe, Process(), allow_random_features=True)
    gradients: dict[str, torch.Tensor] = {}
    parameters = dict(stage.model.named_parameters())
    stage.optimizers["networks"].register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad for name, p in parameters.items() if p.grad is not None})
    )
    told = step(stage, SCRIPT["make_batch"](1, 256), 10**6)
    assert all(torch.tensor(value).isfinite() for value in told.values())
    assert gradients.keys() == parameters.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    zero = [name for name, gradient in gradients.items() if not gradient.any()]
    assert not zero, f"parameters that nothing reaches: {zero}"


def test_sources_that_ranks_cannot_edit_evenly_are_refused(recipe: BaseRecipe) -> None:
    """Which sources are edited must not depend on the number of ranks."""
    recipe = dataclasses.replace(recipe, batch_size=8, edited_every=4)
    BaseStage(recipe, Process())
    with pytest.raises(
        ValueError,
        match=r"each of 4 ranks takes 2 of the 8 pairs of a step, which is no multiple of 4: use 1 or 2 ranks with "
        r"--batch-size 8, or a --batch-size that is a multiple of 16, ",
    ):
        BaseStage(recipe, Process(world_size=4))


@pytest.mark.parametrize(
    ("batch_size", "edited_every", "numbers"), [(8, 2, "1, 2 or 4 ranks"), (9, 2, "1 rank"), (6, 6, "1 rank")]
)
def test_the_numbers_of_ranks_that_would_do_are_told(
    batch_size: int, edited_every: int, numbers: str, recipe: BaseRecipe
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=batch_size, edited_every=edited_every)
    with pytest.raises(ValueError, match=f"use {numbers} with --batch-size {batch_size}, "):
        BaseStage(recipe, Process(world_size=batch_size))


def test_flow_terms_are_of_the_pairs_and_of_the_edited_sources(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    recipe = with_losses(recipe, landmark_flow=1.0, flow_openness=1.0)
    stage = BaseStage(dataclasses.replace(recipe, edited_every=2), Process())
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    source, driving = batch.source.landmarks, batch.driving.landmarks
    edited = stage._edited(batch, Draws(generator=generators[0]))
    assert torch.equal(edited, edit_landmarks(source[:1], torch.rand(1, 2, generator=generators[1])))
    flow = 2 * torch.rand(3, 1, 8, 8, 3) - 1  # of both pairs and of one edited source
    terms = stage._flow_terms(SimpleNamespace(warped=SimpleNamespace(deformation=flow)), batch, edited)
    for name, loss in (("landmark_flow", landmark_flow_loss), ("flow_openness", flow_openness_loss)):
        expected = (2 * loss(flow[:2], source, driving) + loss(flow[2:], source[:1], edited)) / 3
        assert torch.allclose(terms[name], expected), name
    offsets = stage._offsets(batch, edited)
    assert torch.equal(offsets[:, stage.conventions.slots, :2], (edited - source[:1])[:, GUIDANCE_LANDMARKS])


def test_key_points_that_landmarks_guide_must_exist(recipe: BaseRecipe) -> None:
    """Where no loss and no option names any, fewer will do."""
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_keypoints=15))
    unguided = with_losses(recipe, guidance=0.0)
    BaseStage(unguided, Process())
    for named in (recipe, dataclasses.replace(unguided, told_share=0.1), dataclasses.replace(unguided, edited_every=1)):
        with pytest.raises(ValueError, match=r"model.num_keypoints is 15, .* expected at least 21"):
            BaseStage(named, Process())


def test_w_is_told_places_but_m_is_judged_by_its_own(recipe: BaseRecipe, batch: PreparedBatch) -> None:
    """Told pairs render with the landmarks at the guided key points; losses on key points do not see them."""
    untold, told = (BaseStage(dataclasses.replace(recipe, told_share=share), Process()) for share in (0.0, 1.0))
    seen = []
    told.model.warping.register_forward_pre_hook(lambda _, inputs, options: seen.append(options), with_kwargs=True)
    slots = list(told.conventions.slots_tuple)
    batch = copy.deepcopy(batch)
    batch.driving.landmarks[1, GUIDANCE_LANDMARKS[0]] = torch.nan
    losses = [step(stage, batch) for stage in (untold, told)]
    x_d, wanted = seen[0]["kp_driving"], batch.driving.landmarks[:, GUIDANCE_LANDMARKS]
    assert torch.equal(x_d[0, slots, :2], wanted[0])
    assert torch.equal(x_d[1, slots[1:], :2], wanted[1, 1:])
    assert x_d.isfinite().all()  # where no landmark is known, M's own
    assert torch.equal(seen[0]["kp_source"][:, slots, :2], batch.source.landmarks[:, GUIDANCE_LANDMARKS])
    for name in ("guidance", "equivariance", "keypoint_prior"):
        assert losses[0][name] == losses[1][name]
    assert losses[0]["pixel"] != losses[1]["pixel"]
