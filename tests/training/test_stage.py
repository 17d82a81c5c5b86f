"""A step in parts: the gradients of small batches, one after the other, are those of the whole."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from torch import distributed

from training.base import BaseRecipe, BaseStage
from training.data import PreparedBatch
from training.distributed import Process
from training.ema import Ema
from training.loop import require_same_judges
from training.motion import MotionRecipe, MotionStage
from training.recipe import ComputeOptions, load_recipe
from training.running import describe
from training.stage import Draws, Stage, clip_gradients, make_adam
from training.stage_tensors import stage_tensors

make_batch = runpy.run_path(str(Path(__file__).with_name("step_gradients.py")))["make_batch"]


def in_parts(recipe, micro_batch_size: int, **options):
    return dataclasses.replace(recipe, compute=ComputeOptions(micro_batch_size=micro_batch_size), **options)


def recorded(stage: Stage, batch: PreparedBatch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What a step tells, and the gradients that its optimisers step by."""
    gradients: dict[str, torch.Tensor] = {}
    names = {id(p): f"{name}.{key}" for name, module in stage.modules.items() for key, p in module.named_parameters()}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.update({names[id(p)]: p.grad.clone() for p in parameters if p.grad is not None})

    for optimizer in stage.optimizers.values():
        optimizer.register_step_pre_hook(keep)
    told = stage.training_step(batch, 100, torch.Generator().manual_seed(3))
    return {name: value.item() for name, value in told.items()}, gradients


def motion_step(micro_batch_size: int, process: Process, batch: PreparedBatch) -> tuple[dict, dict]:
    torch.manual_seed(0)
    recipe = load_recipe(MotionRecipe, "motion", "tiny")
    optimizer = dataclasses.replace(recipe.optimizer, max_gradient_norm=0.0)
    recipe = in_parts(recipe, micro_batch_size, batch_size=4, optimizer=optimizer)
    return recorded(MotionStage(recipe, process), batch)


def require_equal(got: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-4)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        error = (got[1][name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert error < 1e-3, name


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_parts_of_a_step_are_one_step(micro_batch_size: int) -> None:
    """M has no batch norm: the joined batch and its parts have the same gradients and tell the same."""
    batch = make_batch(4, 64)
    batch.driving.pose[1, 0] = torch.nan
    whole = motion_step(0, Process(), batch)
    assert motion_step(8, Process(), batch)[0] == whole[0], "a batch that is smaller than allowed is whole"
    require_equal(motion_step(micro_batch_size, Process(), batch), whole)


def test_parts_of_stage_one_are_its_mean(quick_recipe: Path) -> None:
    """Of the networks and of the discriminators, each part with its own statistics and its rows of what is drawn."""
    recipe = load_recipe(BaseRecipe, "base", str(quick_recipe))
    optimizer = dataclasses.replace(recipe.optimizer, max_gradient_norm=0.0)
    recipe = dataclasses.replace(recipe, batch_size=4, optimizer=optimizer, told_share=0.5, edited_every=2)
    batch = make_batch(4, recipe.model.image_size)
    told, gradients = recorded(BaseStage(in_parts(recipe, 2), Process()), batch)
    norms = {f"gradient_norm/{name}" for name in ("appearance", "motion", "warping", "generator", "discriminators")}
    assert norms | {"adversarial"} <= told.keys()
    stage, losses = BaseStage(recipe, Process()), 0.0
    networks = [(f"{name}.{key}", p) for name, module in stage.modules.items() for key, p in module.named_parameters()]
    for part, half in enumerate(batch.parts(2)):
        # The second half meets the spectral norms that the first has left, as in the step in parts.
        draws = Draws(generator=torch.Generator().manual_seed(3), part=part, num_parts=2)
        losses += stage.add_gradients(half, 100, draws)["loss"].item() / 2
    assert told["loss"] == pytest.approx(losses, rel=1e-5)
    expected = {name: parameter.grad / 2 for name, parameter in networks if parameter.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_parts_are_clipped_together() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([60.0, 80.0])  # of two parts
    assert clip_gradients(torch.optim.SGD([parameter]), 10.0, 2, name="all") == {"all": 50.0}
    torch.testing.assert_close(parameter.grad, torch.tensor([6.0, 8.0]))
    assert clip_gradients(torch.optim.SGD([parameter]), 0.0)[""].item() == pytest.approx(10)
    torch.testing.assert_close(parameter.grad, torch.tensor([6.0, 8.0]))


def test_networks_are_clipped_apart() -> None:
    """A gradient of M that is far too long leaves those of the others as they are."""
    networks = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1, bias=False) for name in ("motion", "generator")})
    optimizer = make_adam(networks, 1e-3, (0.5, 0.9), apart=True)
    networks["motion"].weight.grad = torch.tensor([[300.0, 400.0]])
    networks["generator"].weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(optimizer, 10.0) == {"motion": 500.0, "generator": 5.0}
    torch.testing.assert_close(networks["motion"].weight.grad, torch.tensor([[6.0, 8.0]]))
    assert networks["generator"].weight.grad.tolist() == [[3.0, 4.0]]


class TwoLayers(Stage):
    """With batch norm, and a second optimiser; the pictures of a batch are multiplied by `factor`."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.recipe, self.process = BaseRecipe(), Process()
        networks = torch.nn.Sequential(torch.nn.Linear(32, 4), torch.nn.BatchNorm1d(4))
        self.modules = {"networks": networks, "other": torch.nn.Linear(4, 1)}
        self.optimizers = {name: make_adam(module, 1e-2, (0.5, 0.9)) for name, module in self.modules.items()}
        self.ema = Ema({"networks": networks}, half_life_images=4)
        self.factor = 1.0

    def add_gradients(self, batch: PreparedBatch, images: int, draws: Draws) -> dict[str, torch.Tensor]:
        found = self.modules["networks"](self.factor * batch.driving.image.mean(dim=(1, 2)))
        loss = found.square().mean() + found.mean()
        loss.backward()
        other = self.modules["other"](found.detach().nan_to_num()).mean()
        other.backward()
        return {"loss": loss, "other": other}


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_step_without_finite_gradients_changes_nothing(factor: float) -> None:
    """Neither weights nor moments, statistics of batch norm, the average, or the network whose gradient was finite; and
    the run goes on as if that batch had not been there."""
    batch, generator = make_batch(4, 32), torch.Generator().manual_seed(0)
    stages = TwoLayers(), TwoLayers()
    for number, stage in enumerate(stages):
        for step in range(3):
            stage.training_step(batch, 4 * step, generator)
            stage.ema.update(100, 4)
        before = {name: value.clone() for name, value in stage_tensors(stage).items()}
        if number == 0:
            stage.factor = factor
            told = stage.training_step(batch, 12, generator)
            assert not told["gradient_norm/networks"].isfinite()
            assert told["gradient_norm/other"].isfinite()
            stage.factor = 1.0
            for name, value in stage_tensors(stage).items():
                assert torch.equal(value, before[name]), name
            assert all(p.grad is None for module in stage.modules.values() for p in module.parameters())
        stage.training_step(batch, 16, generator)
    lost, straight = map(stage_tensors, stages)
    assert all(torch.equal(value, straight[name]) for name, value in lost.items())
    assert not torch.equal(lost["modules.networks.0.weight"], before["modules.networks.0.weight"])


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    got = motion_step(1, Process(rank=rank, world_size=2), make_batch(4, 64).parts(2)[rank])
    torch.save(got, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_exchange_the_sum_of_their_parts(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    (told, gradients), (other, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    means = {name: (told[name] + other[name]) / 2 for name in told}
    require_equal((means, gradients), motion_step(0, Process(), make_batch(4, 64)))


def _rank_with_other_judges(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    stage, process = Stage(), Process(rank=rank, world_size=2)
    stage.judges = {"losses.vgg19": "weights 1a", "losses.recogniser": ("weights 2b", "random features 3c")[rank]}
    with pytest.raises(ValueError, match="different networks") as error:
        require_same_judges(stage, process)
    Path(folder, str(rank)).write_text(str(error.value))
    stage.judges = {"losses.vgg19": "weights 1a"}
    require_same_judges(stage, process)
    distributed.destroy_process_group()


def test_ranks_whose_losses_ask_different_networks_do_not_train(tmp_path: Path) -> None:
    """As two nodes of which one cannot fetch the recogniser."""
    torch.multiprocessing.spawn(_rank_with_other_judges, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == (
            "ranks have different networks for losses.recogniser (rank 0 weights 2b, rank 1 random features 3c): give "
            "all nodes the same file"
        )


def test_rows_of_parts_are_those_of_the_whole() -> None:
    def draws(part: int = 0, num_parts: int = 1) -> Draws:
        return Draws(generator=torch.Generator().manual_seed(1), part=part, num_parts=num_parts)

    assert torch.equal(torch.cat([draws(part, 3).uniform(2, 2) for part in range(3)]), draws().uniform(6, 2))
    parts = [draws(part, 3).transforms(2) for part in range(3)]
    for name in ("matrix", "shift", "weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(draws().transforms(6), name))


def test_sizes_of_parts() -> None:
    """Equal parts, the largest within the limit; a multiple of what a stage asks for, where there is one."""
    sizes = {limit: ComputeOptions(micro_batch_size=limit).pairs_at_once(12) for limit in (0, 1, 4, 5, 11, 12, 13)}
    assert sizes == {0: 12, 1: 1, 4: 4, 5: 4, 11: 6, 12: 12, 13: 12}
    limited = ComputeOptions(micro_batch_size=5)
    assert [limited.pairs_at_once(pairs) for pairs in (1, 7, 10, 26)] == [1, 1, 5, 2]
    assert [limited.pairs_at_once(pairs, 2) for pairs in (8, 9, 12)] == [4, 9, 4]
    assert [limited.pairs_at_once(pairs, 8) for pairs in (8, 16, 48)] == [8, 8, 8]
    with pytest.raises(ValueError, match="micro_batch_size is -1"):
        ComputeOptions(micro_batch_size=-1)


@pytest.mark.parametrize(
    ("pairs", "ranks", "multiple", "parts", "advice"),
    [
        (104, 8, 1, "", None),
        (104, 4, 1, " in 2 parts of 13", None),
        (34, 1, 1, " in 17 parts of 2", ("17", "32 or 48")),
        (38, 2, 1, " in 19 parts of 1", ("19", "32 or 64")),
        (66, 1, 3, " in 11 parts of 6", ("33", "60 or 75")),
    ],
)
def test_parts_of_a_step_are_told(
    pairs: int, ranks: int, multiple: int, parts: str, advice: tuple[str, str] | None
) -> None:
    stage = Stage()
    stage.name, stage.modules, stage.pairs_multiple = "base", {}, multiple
    recipe = in_parts(BaseRecipe(), 16, batch_size=pairs)
    line, _, note = describe(stage, recipe, Process(world_size=ranks)).partition("\n")
    assert line.endswith(f"in batches of {pairs} on {ranks} x cpu{parts}, float32")
    if advice is None:
        assert not note
    else:
        assert "--compute.micro-batch-size {} if the memory allows, or --batch-size {}, ".format(*advice) in note
