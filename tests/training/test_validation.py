"""Validation counts the pairs that were asked for, on any number of ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

import training.stage
import training.validation
from training.base import BaseRecipe, BaseStage
from training.data import DataConfig
from training.distributed import Process
from training.recipe import ComputeOptions, ReportOptions
from training.retargeting import RetargetingStage
from training.stage import Stage
from training.validation import held_out_batches, save_pictures, validate

RECIPE = BaseRecipe(batch_size=4, reports=ReportOptions(num_validation=7))


class OneOf(Process):
    """A rank without others to hear from."""

    def sum(self, values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
        return dict(values)


class Places:
    """A stage whose figure is the place of each pair among those of all ranks; of place 1 it knows none."""

    def validate(self, batch: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
        assert batch[0] == first, "it is told the place of the first pair"
        return {"place": torch.where(batch == 1, torch.nan, batch.double())}


@pytest.mark.parametrize(
    ("rank", "world_size", "at_once", "counted"),
    [
        (0, 1, 0, [0, 2, 3, 4, 5, 6]),
        (0, 1, 3, [0, 2, 3, 4, 5, 6]),
        (0, 2, 0, [0, 4, 5]),
        (1, 2, 0, [2, 3, 6]),
        (1, 2, 1, [3, 5]),
        (3, 4, 0, [3]),
    ],
)
def test_as_many_pairs_as_asked_count(
    monkeypatch, rank: int, world_size: int, at_once: int, counted: list[int]
) -> None:
    """Taken as many at once as in training."""

    def batches(_: object, __: object, share: int, **___: object) -> Iterator[torch.Tensor]:
        starts = (share * world_size * number + rank * share for number in itertools.count())
        return (torch.arange(start, start + share) for start in starts)

    monkeypatch.setattr(training.validation, "held_out_batches", batches)
    recipe = dataclasses.replace(RECIPE, compute=ComputeOptions(micro_batch_size=at_once))
    process = OneOf(rank=rank, world_size=world_size)
    assert validate(Places(), recipe, dataset="", process=process) == {"place": sum(counted) / len(counted)}


def test_a_rank_may_have_none_of_the_last_pairs(monkeypatch) -> None:
    recipe = dataclasses.replace(RECIPE, reports=ReportOptions(num_validation=2))
    monkeypatch.setattr(training.validation, "held_out_batches", lambda *_, **__: iter([torch.tensor([2, 3])]))
    assert validate(Places(), recipe, dataset="", process=OneOf(rank=1, world_size=2)) == {}


def test_a_rank_without_held_out_pairs_hears_from_the_others(monkeypatch) -> None:
    """They wait for it. The data set may have changed between the moments in which two ranks look."""

    class Told(Process):
        def sum(self, values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
            assert values == {}
            return {"place": (6.0, 3)}

    monkeypatch.setattr(training.validation, "held_out_batches", lambda *_, **__: None)
    assert validate(Places(), RECIPE, dataset="", process=Told(rank=1, world_size=2)) == {"place": 2.0}


@pytest.mark.parametrize("num_read", [0, 1])
def test_held_out_pairs_that_cannot_be_read_end_no_run(monkeypatch, caplog, tmp_path: Path, num_read: int) -> None:
    """Its last steps would be lost. The mean of the pairs that were read is no figure, on other ranks neither."""

    def batches(*_: object, **__: object) -> Iterator[torch.Tensor]:
        for _ in range(num_read):
            yield torch.arange(2, 4)
        raise OSError("the store does not answer")

    class Told(Process):
        def sum(self, values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
            return {"place": (6.0, 3), **values}

    monkeypatch.setattr(training.validation, "held_out_batches", batches)
    assert validate(Places(), RECIPE, dataset="", process=Told(rank=1, world_size=2)) == {}
    assert caplog.messages == ["no validation: the store does not answer"]
    if num_read == 0:
        save_pictures(Places(), RECIPE, 8, dataset="", output=tmp_path, process=Process(), reporter=None)
        assert caplog.messages[1:] == ["no pictures: the store does not answer"]
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_read", [0, 1])
def test_damage_that_cuts_validation_off_leaves_no_figure(monkeypatch, num_read: int) -> None:
    """The mean of fewer pairs could be the best of the run."""
    batches = [torch.arange(2, 4)][:num_read]
    monkeypatch.setattr(training.validation, "held_out_batches", lambda *_, **__: iter(batches))

    class Told(Process):
        def sum(self, values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
            return {"place": (6.0, 3), **values}

    assert validate(Places(), RECIPE, dataset="", process=Told(rank=1, world_size=2)) == {}


@pytest.mark.parametrize(("stage", "still_share"), [(BaseStage, 0.0), (RetargetingStage, 0.5)])
def test_stills_do_not_validate_reenactment(monkeypatch, stage: type[Stage], still_share: float) -> None:
    """Their source is their driving frame, which copying shows without a fault; R looks at single pictures."""
    seen: list[DataConfig] = []
    monkeypatch.setattr(training.stage, "make_loader", lambda *_, config, **__: seen.append(config) or [])
    recipe = dataclasses.replace(RECIPE, data=DataConfig(still_share=0.5))
    assert held_out_batches(stage.__new__(stage), recipe, 4, dataset="", process=Process()) is not None
    assert [config.still_share for config in seen] == [still_share]
