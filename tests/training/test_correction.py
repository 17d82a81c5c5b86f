"""Stage II on a small untrained base: what learns, what stays, and what the terms are."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from model.config import ModelConfig
from model.keypoints import open_ratios_68
from model.networks import LivePortrait
from model.networks.retargeting import CONDITION_GAIN, make_retarget_eye, make_retarget_lip
from training.base_model import COMPILED_BLOCKS, BaseModel
from training.correction import masked_mean, mean_over_known
from training.data import PreparedBatch, PreparedFrames
from training.distributed import Process
from training.losses import eye_mask, lip_mask, shoulder_mask
from training.networks.landmarks import LandmarkNetwork
from training.recipe import ComputeOptions, OptimizerOptions, ReportOptions
from training.retargeting import RetargetingLosses, RetargetingRecipe, RetargetingStage, vary_places
from training.stage import Draws
from training.stitching import StitchingLosses, StitchingRecipe, StitchingStage

TINY = ModelConfig.tiny(32)
OPTIMIZER = OptimizerOptions(learning_rate=1e-2, ema_half_life_images=4)


@pytest.fixture
def batch(make_face68) -> PreparedBatch:
    """Two pairs of noise pictures with a face's landmarks in the upper half."""
    generator = torch.Generator().manual_seed(0)
    face = torch.from_numpy(make_face68((256.0, 200.0), 160.0)).float() / 256 - 1

    def frames() -> PreparedFrames:
        target = torch.rand(2, 3, 64, 64, generator=generator)
        return PreparedFrames(
            image=torch.nn.functional.avg_pool2d(target, 2),
            target=target,
            landmarks=face.expand(2, 68, 2).clone(),
            pose=torch.zeros(2, 3),
        )

    return PreparedBatch(source=frames(), driving=frames(), is_still=torch.zeros(2, dtype=torch.bool))


@pytest.fixture
def portrait() -> LivePortrait:
    """With a motion that depends on the picture more than an untrained M's does."""
    portrait = LivePortrait.untrained(0, TINY)
    with torch.no_grad():
        portrait.motion.detector.fc_kp.weight.mul_(3)
        portrait.motion.detector.fc_exp.weight.mul_(30)
        for head in (portrait.motion.detector.fc_scale, portrait.motion.detector.fc_t):
            head.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
        portrait.motion.detector.fc_kp.bias.copy_(torch.linspace(-0.5, 0.5, 63))
    return portrait


def make_stage(name: str, portrait: LivePortrait, *, keep_network: bool = False, **options):
    if name == "stitching":
        losses = StitchingLosses(shoulder=10.0, offset=0.01)
        recipe = StitchingRecipe(model=TINY, optimizer=OPTIMIZER, losses=losses, **options)
        return StitchingStage(portrait, recipe, Process(), keep_network=keep_network)
    recipe = RetargetingRecipe(model=TINY, optimizer=OPTIMIZER, losses=RetargetingLosses(offset=0.01), **options)
    torch.manual_seed(0)
    landmarks = LandmarkNetwork()
    return RetargetingStage(portrait, recipe, Process(), part=name, landmarks=landmarks, keep_network=keep_network)


@pytest.mark.parametrize(
    ("name", "network"), [("stitching", "stitching"), ("eyes", "retarget_eye"), ("lip", "retarget_lip")]
)
def test_only_its_network_learns(name: str, network: str, portrait, batch) -> None:
    stage = make_stage(name, portrait)
    last = getattr(portrait, network).mlp[-1]
    assert not last.weight.any()
    assert not last.bias.any()
    first = getattr(portrait, network).mlp[0]
    assert first.weight.any(), "only the last layer starts at zero"
    before = {key: value.clone() for key, value in portrait.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        told = stage.training_step(batch, 2 * step, generator)
        stage.ema.update(2 * step + 2, 2)
        assert all(math.isfinite(value.item()) for value in told.values())
        assert told["gradient_norm/networks"] > 0
    changed = {key.split(".")[0] for key, value in portrait.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {network}
    assert all(p.grad is None for key, p in portrait.named_parameters() if not key.startswith(network))
    assert not torch.equal(getattr(portrait, network).mlp[0].weight, before[f"{network}.mlp.0.weight"])


def shake(network: torch.nn.Module) -> torch.nn.Module:
    """A network that corrects something."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.mlp[-1].weight, std=0.1)
    return network


def rendered_openness(stage, picture: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What the landmark network sees of the eyes or the lips."""
    return open_ratios_68(stage.landmarks(picture, places))[0 if stage.part == "eyes" else 1]


@torch.no_grad()
def test_the_frozen_base_renders_what_stage_1_does(portrait, batch) -> None:
    stage = make_stage("stitching", portrait.train())
    x_s, x_d = stage._key_points(batch)
    picture = stage.base.render(stage.base.appearance(batch.source), x_s, x_d)
    made = BaseModel(portrait)(batch.source.image, batch.driving.image)  # in evaluation mode by now
    torch.testing.assert_close((x_s, x_d), (made.keypoints_source, made.keypoints_driving))
    torch.testing.assert_close(picture, made.image)
    assert (picture - stage.base.render(stage.base.appearance(batch.source), x_d, x_s)).abs().max() > 1e-3


@torch.no_grad()
def test_terms_of_stitching_by_hand(portrait, batch) -> None:
    batch.driving.landmarks.sub_(0.5)
    stage = make_stage("stitching", portrait)
    network = shake(stage.modules["stitching"])
    x_s, x_d = stage._key_points(batch)
    delta = network(torch.cat([x_s.flatten(1), x_d.flatten(1)], dim=1))
    moved = x_d + delta[:, :63].unflatten(1, (21, 3)) + torch.nn.functional.pad(delta[:, None, 63:], (0, 1))
    mask = shoulder_mask(batch.source.landmarks, (64, 64))
    rest, free, stitched = (stage.base.render(stage.base.appearance(batch.source), x_s, x) for x in (x_s, x_d, moved))
    total, terms = stage.losses(batch, Draws(generator=torch.Generator()))
    torch.testing.assert_close(terms["shoulder"], masked_mean(stitched - rest, mask).mean())
    torch.testing.assert_close(terms["offset"], (moved - x_d).abs().mean())
    torch.testing.assert_close(total, 10 * terms["shoulder"] + 0.01 * terms["offset"])
    stage.ema.modules["stitching"].load_state_dict(network.state_dict())
    network.mlp[-1].weight.zero_()  # validation is by the average
    figures = stage.validate(batch)
    torch.testing.assert_close(figures["shoulder"], masked_mean(stitched - rest, mask))
    torch.testing.assert_close(figures["shoulder_unstitched"], masked_mean(free - rest, mask))
    kept, all_motion = (masked_mean(picture - rest, 1 - mask) for picture in (stitched, free))
    torch.testing.assert_close(figures["motion_kept"], kept / all_motion)


@pytest.mark.parametrize(("name", "most", "make_mask"), [("eyes", 0.4, eye_mask), ("lip", 0.8, lip_mask)])
def test_terms_of_retargeting_by_hand(name: str, most: float, make_mask, portrait, batch) -> None:
    stage = make_stage(name, portrait, reports=ReportOptions(num_validation=2))
    base, network = stage.base, shake(stage.modules[stage.network])
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    asked = most * torch.rand(2, 1, generator=seeds[1])
    near = vary_places(batch.source.landmarks, torch.rand(2, 4, generator=seeds[1]))
    x_s, volume = base.motion(batch.source).keypoints(), base.appearance(batch.source)
    current = open_ratios_68(batch.source.landmarks)[0 if name == "eyes" else 1]
    with torch.no_grad():
        offset = network(torch.cat([x_s.flatten(1), current, asked], dim=1)).unflatten(1, (21, 3))
        changed, rest = base.render(volume, x_s, x_s + offset), base.render(volume, x_s, x_s)
    told: list[torch.Tensor] = []
    handle = stage.landmarks.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    total, terms = stage.losses(batch, Draws(generator=seeds[0]))
    handle.remove()
    assert torch.equal(told[0], near)
    expected = {
        "outside": masked_mean(changed - rest, 1 - make_mask(batch.source.landmarks, (64, 64))).mean(),
        "condition": (rendered_openness(stage, changed, near) - asked).abs().mean(),
        "offset": offset.abs().mean(),
    }
    assert terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value, msg=term)
    torch.testing.assert_close(total, 10 * terms["outside"] + 5 * terms["condition"] + 0.01 * terms["offset"])
    (gradient,) = torch.autograd.grad(terms["condition"], network.mlp[-1].weight)
    assert gradient.any(), "what the landmark network sees teaches R"
    with torch.no_grad():
        steps = torch.tensor([[0.25], [0.75]]) * most
        # On the driving frames, which may be held out; by the average, which corrects nothing so far.
        x_s, volume = base.motion(batch.driving).keypoints(), base.appearance(batch.driving)
        seen = rendered_openness(stage, base.render(volume, x_s, x_s), batch.driving.landmarks)
        in_parts = [stage.validate(part, first)["condition"] for first, part in enumerate(batch.parts(2))]
        for got in (stage.validate(batch)["condition"], torch.cat(in_parts)):
            torch.testing.assert_close(got, (seen - steps).abs().mean(dim=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "network", "count"), [("eyes", "retarget_eye", 3), ("lip", "retarget_lip", 2)])
def test_what_is_asked_is_heard_from_the_start(name: str, network: str, count: int, portrait, batch) -> None:
    """Openness from 0 to 0.4 moves the first layer about as much as key points do between faces; others stay."""
    torch.manual_seed(0)  # of the recipe
    untouched = {"eyes": make_retarget_eye, "lip": make_retarget_lip}[name](TINY).mlp[0].weight
    make_stage(name, portrait)
    weight = getattr(portrait, network).mlp[0].weight
    assert torch.equal(weight[:, :-count], untouched[:, :-count])
    torch.testing.assert_close(weight[:, -count:], CONDITION_GAIN * untouched[:, -count:])
    keypoints = 0.1 * torch.randn(64, 63, generator=torch.Generator().manual_seed(0))
    by_keypoints = (keypoints @ weight[:, :-count].T).std(dim=0).mean()
    by_asked = (torch.linspace(0, 0.4, 64)[:, None] * weight[:, -1]).std(dim=0).mean()
    assert 0.5 < by_asked / by_keypoints < 4


@pytest.mark.parametrize(("name", "network"), [("stitching", "stitching"), ("lip", "retarget_lip")])
def test_a_network_starts_anew_or_goes_on(name: str, network: str, portrait) -> None:
    """What was trained before leaves no trace, and its condition weights do not grow from run to run."""
    make_stage(name, portrait)
    first = {key: value.clone() for key, value in getattr(portrait, network).state_dict().items()}
    with torch.no_grad():
        for parameter in getattr(portrait, network).parameters():
            parameter.add_(1.0)
    kept = {key: value.clone() for key, value in getattr(portrait, network).state_dict().items()}
    for keep_network, wanted in ((True, kept), (False, first)):
        stage = make_stage(name, portrait, keep_network=keep_network)
        assert stage.modules[network] is getattr(portrait, network)
        for key, value in stage.modules[network].state_dict().items():
            assert torch.equal(value, wanted[key]), key


def test_stitching_quietens_the_shoulders(portrait, batch) -> None:
    stage = make_stage("stitching", portrait)
    generator = torch.Generator().manual_seed(0)
    for step in range(80):
        stage.training_step(batch, 2 * step, generator)
        stage.ema.update(2 * step + 2, 2)
    figures = stage.validate(batch)
    assert (figures["shoulder"] < 0.5 * figures["shoulder_unstitched"]).all()
    assert figures["shoulder_unstitched"].min() > 0


def test_the_frozen_base_computes_as_asked(portrait, batch) -> None:
    """Options of compute reach it; its memory format and what it computes again change rounding only."""
    plain = make_stage("lip", copy.deepcopy(portrait))
    compute = ComputeOptions(channels_last=True, recompute=("up_1",))
    other = make_stage("lip", portrait, compute=compute)
    assert portrait.generator.fc.weight.is_contiguous(memory_format=torch.channels_last)
    assert "forward" in vars(portrait.generator.up_1)
    for name, value in plain.losses(batch, Draws(generator=torch.Generator().manual_seed(0)))[1].items():
        got = other.losses(batch, Draws(generator=torch.Generator().manual_seed(0)))[1][name]
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-5)
    compiled = make_stage("stitching", portrait, compute=ComputeOptions(compile=True)).base.portrait
    assert all("forward" in vars(m) for m in compiled.modules() if isinstance(m, COMPILED_BLOCKS))
    with pytest.raises(ValueError, match="G has no block 'up_7'"):
        make_stage("stitching", portrait, compute=ComputeOptions(recompute=("up_7",)))


@pytest.mark.parametrize("name", ["eyes", "lip"])
def test_two_ranks_ask_what_one_would(name: str, portrait, batch) -> None:
    """In training and in validation, each rank of its own pairs."""
    torch.manual_seed(0)
    stage = make_stage(name, portrait)
    torch.nn.init.normal_(stage.modules[stage.network].mlp[-1].weight, std=0.1)
    seeds = [torch.Generator().manual_seed(3) for _ in range(3)]
    _, joined = stage.losses(batch, Draws(generator=seeds[0]))
    figures = stage.validate(batch)
    parts, of_ranks = [], []
    for rank in range(2):
        stage.process = Process(rank=rank, world_size=2)
        draws = Draws(generator=seeds[1 + rank], part=rank, num_parts=2)
        parts.append(stage.losses(batch.parts(2)[rank], draws)[1])
        of_ranks.append(stage.validate(batch.parts(2)[rank], rank))
    for term in ("outside", "condition", "offset"):
        mean, all_figures = (parts[0][term] + parts[1][term]) / 2, torch.cat([part[term] for part in of_ranks])
        torch.testing.assert_close(mean, joined[term], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(all_figures, figures[term], rtol=1e-3, atol=1e-5)


def test_the_offset_of_stitching_is_how_far_key_points_move(portrait, batch) -> None:
    """A shift of all that the offsets undo is no correction; one that they do not undo counts for every key point."""
    stage = make_stage("stitching", portrait)
    bias = stage.modules["stitching"].mlp[-1].bias
    draws = Draws(generator=torch.Generator())
    with torch.no_grad():
        bias[63] = 0.3
        assert stage.losses(batch, draws)[1]["offset"].item() == pytest.approx(0.1, rel=1e-4)
        bias[0:63:3] = -0.3
        assert stage.losses(batch, draws)[1]["offset"].item() == pytest.approx(0.0, abs=1e-6)


def test_stitching_is_validated_by_what_it_learns_from(portrait, batch) -> None:
    """The shoulders alone would take the strongest correction for the best; without any, the offset counts."""
    stage = make_stage("stitching", portrait)
    torch.nn.init.normal_(stage.modules["stitching"].mlp[-1].weight, std=0.1)
    stage.ema.modules["stitching"].load_state_dict(stage.modules["stitching"].state_dict())
    batch.source.landmarks[1] = torch.nan
    total, terms = stage.losses(batch, Draws(generator=torch.Generator()))
    with torch.no_grad():
        figures = stage.validate(batch)
    assert stage.best_metric == "loss"
    torch.testing.assert_close(figures["loss"].mean(), total.detach())
    torch.testing.assert_close(figures["offset"].mean(), terms["offset"].detach())
    assert figures["shoulder"].isnan().tolist() == [False, True]
    assert figures["loss"].isfinite().all()


def test_samples_without_labels_teach_nothing(portrait, batch) -> None:
    batch.source.landmarks[1] = batch.driving.landmarks[1] = torch.nan
    stage = make_stage("lip", portrait)
    total, told = stage.losses(batch, Draws(generator=torch.Generator().manual_seed(0)))
    total.backward()
    assert all(p.grad.isfinite().all() for p in stage.modules["retarget_lip"].parameters())
    terms, known, _ = stage._retarget(
        batch.source, torch.rand(2, 1, generator=torch.Generator().manual_seed(0)) * 0.8, stage.training_networks
    )
    assert known.tolist() == [True, False]
    torch.testing.assert_close(told["condition"], terms["condition"][0] / 2)
    assert stage.validate(batch)["condition"].isnan().tolist() == [False, True]


def test_places_vary_a_little_and_keep_their_shape(batch) -> None:
    landmarks = batch.source.landmarks
    varied = vary_places(landmarks, torch.rand(2, 4, generator=torch.Generator().manual_seed(0)))
    size = (landmarks.amax(dim=1) - landmarks.amin(dim=1)).amax(dim=1)
    assert (varied.mean(dim=1) - landmarks.mean(dim=1)).abs().max() <= 0.1 * size.max()
    assert not torch.allclose(varied[0], varied[1])
    between, before = ((p[:, :, None] - p[:, None]).norm(dim=-1) for p in (varied, landmarks))
    zoom = between[:, 0, 16] / before[:, 0, 16]
    torch.testing.assert_close(between, zoom[:, None, None] * before, atol=1e-4, rtol=1e-3)
    assert ((zoom > 0.9) & (zoom < 1.1)).all()
    across = [points[:, 16] - points[:, 0] for points in (varied, landmarks)]
    turned = torch.nn.functional.cosine_similarity(*across).acos().rad2deg()
    assert 0 < turned.max() <= 10


def test_places_vary_by_as_much_as_is_said(batch) -> None:
    face = batch.source.landmarks[:1]
    size = (face.amax(dim=1) - face.amin(dim=1)).max()
    middle = face.mean(dim=1, keepdim=True)
    cos, sin = math.cos(math.radians(10)), math.sin(math.radians(10))
    clockwise = (face - middle) @ torch.tensor([[cos, sin], [-sin, cos]]) + middle
    for drawn, expected in (
        ([0.5, 0.5, 0.5, 0.5], face),
        ([1.0, 0.5, 0.5, 0.5], clockwise),
        ([0.5, 0.0, 0.5, 0.5], middle + 0.9 * (face - middle)),
        ([0.5, 0.5, 0.0, 1.0], face + 0.1 * size * torch.tensor([-1.0, 1.0])),
    ):
        torch.testing.assert_close(vary_places(face, torch.tensor([drawn])), expected)


def test_pictures_have_a_column_each(portrait, batch) -> None:
    assert list(make_stage("stitching", portrait).pictures(batch)) == [
        *("source", "driving", "reconstructed", "unstitched", "stitched")
    ]
    columns = make_stage("eyes", portrait).pictures(batch)
    assert list(columns) == ["source", "eyes 0.00", "eyes 0.20", "eyes 0.40"]
    assert torch.equal(columns["source"], batch.driving.target), "frames that may be held out"
    assert all(column.shape == (2, 3, 64, 64) for column in columns.values())


def test_masked_mean_by_hand() -> None:
    difference = torch.zeros(2, 3, 2, 2)
    difference[0, :, 0, 0] = torch.tensor([1.0, -2.0, 3.0])
    difference[0, :, 1, 1] = 100.0
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, :] = torch.tensor([1.0, 0.5])
    # (1 + 2 + 3) over 1.5 pixels of 3 channels; an empty mask is zero.
    torch.testing.assert_close(masked_mean(difference, mask), torch.tensor([6 / 4.5, 0.0]))


def test_mean_over_known_by_hand() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0])
    assert mean_over_known(values, torch.tensor([True, False, True])) == pytest.approx(4 / 3)
