"""Checkpoints: complete or absent, never a pickle, and the state comes back bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import training.checkpoints
from training.base import BaseRecipe
from training.checkpoints import CheckpointFolder, RunState, read_tensors
from training.ema import Ema
from training.export import checkpoint_folder
from training.losses import GradientBalancer
from training.stage import Stage
from training.stage_tensors import stage_tensors

RECIPE = BaseRecipe()


class SmallStage(Stage):
    """Two layers with batch norm, two optimisers, an average: everything that a checkpoint may hold."""

    name = "base"

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        torch.manual_seed(seed)
        self.modules = {"net": nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width)), "other": nn.Linear(2, 2)}
        self.modules["balancer"] = GradientBalancer({"pixel": 1.0})
        self.optimizers = {
            "networks": torch.optim.Adam(self.modules["net"].parameters(), fused=True),
            "discriminators": torch.optim.Adam(self.modules["other"].parameters()),
        }
        self.ema = Ema({"net": self.modules["net"]}, half_life_images=10)

    def work(self) -> None:
        self.modules["net"](torch.randn(5, 3)).square().sum().backward()
        self.modules["other"](torch.randn(5, 2)).sum().backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(100, 10)


def save(folder: CheckpointFolder, stage: Stage, images: int, *, is_best: bool = False) -> bool:
    folder.save(stage, RECIPE, RunState(images=images, step=images // 8, best_images=images if is_best else -1))
    return folder.finish()


def test_everything_comes_back(tmp_path: Path) -> None:
    stage = SmallStage()
    stage.work()
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    assert save(folder, stage, 80)
    fresh = SmallStage(seed=1)
    state = CheckpointFolder(tmp_path, keep_last=2, writes=False).restore(fresh, RECIPE)
    assert state == RunState(images=80, step=10)
    before, after = stage_tensors(stage), stage_tensors(fresh)
    assert before.keys() == after.keys()
    assert "optimizers.discriminators.0.exp_avg" in before
    assert "ema.net.1.running_mean" in before
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name]), name


def test_the_copy_is_of_the_moment_of_saving(tmp_path: Path) -> None:
    stage = SmallStage()
    stage.work()
    wanted = {name: value.clone() for name, value in stage_tensors(stage).items()}
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    folder.save(stage, RECIPE, RunState(images=8))
    with torch.no_grad():  # while it may still be writing
        for parameter in stage.modules["net"].parameters():
            parameter.fill_(777.0)
    assert folder.finish()
    saved = read_tensors(tmp_path / "checkpoints" / "images-0000000008")
    assert all(torch.equal(saved[name], value) for name, value in wanted.items())


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    save(folder, SmallStage(), 8, is_best=True)
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ""}
    assert (tmp_path / "checkpoints" / "best").read_text() == "images-0000000008"


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    """And what somebody has copied, which is not the run's."""
    folder, stage = CheckpointFolder(tmp_path, keep_last=2, writes=True), SmallStage()
    for images in (8, 16, 24, 32):
        save(folder, stage, images, is_best=images == 8)
        if images in (16, 32):
            shutil.copytree(folder.root / f"images-00000000{images}", folder.root / f"images-00000000{images}-good")
    assert (folder.root / "images-0000000016-good" / "run.json").exists()
    assert folder.names() == ["images-0000000008", "images-0000000024", "images-0000000032"]
    assert folder.best_name() == "images-0000000008"
    assert folder.newest_name() == "images-0000000032"


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    """A process saves large checkpoints in a loop and is killed at many moments."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
import torch
from training.base import BaseRecipe
from training.checkpoints import CheckpointFolder, RunState
from training.stage import Stage
class Big(Stage):
    name = "base"
    modules = {{"net": torch.nn.Linear(1000, 1000)}}
    optimizers = {{}}
from pathlib import Path
folder = CheckpointFolder(Path({str(tmp_path)!r}), keep_last=1, writes=True)
start = int(sys.argv[1])
for images in range(start, start + 1000):
    Big.modules["net"].weight.data.fill_(images)
    folder.save(Big(), BaseRecipe(), RunState(images=images)); folder.finish()
    print(images, flush=True)
"""
    start = 1
    for delay_s in (0.0, 0.007):
        process = subprocess.Popen([sys.executable, "-c", script, str(start)], stdout=subprocess.PIPE, text=True)
        done = [int(process.stdout.readline()) for _ in range(3)][-1]
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        done = max([done, *map(int, process.stdout.read().split())])
        process.wait()
        folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)  # what a resumed run does
        name = folder.newest_name()
        images = int(name.removeprefix("images-"))
        assert images >= done
        assert read_tensors(folder.root / name)["modules.net.weight"].unique().tolist() == [images]
        assert not list(folder.root.glob(".partial-*"))
        start = images + 1


def test_a_pointer_that_could_not_be_written_is_written_later(tmp_path: Path, monkeypatch, capsys) -> None:
    """The folder is complete, and then the disk is full: the run resumes from it, and its pointer comes at the end."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    assert save(folder, SmallStage(), 8, is_best=True)
    (folder.root / "latest").write_text("images-0000000008")  # of an earlier version, which nothing reads
    state = RunState(images=16, step=2, best_images=16)
    with monkeypatch.context() as patch:
        patch.setattr(training.checkpoints, "write_bytes_atomically", full)
        folder.save(SmallStage(), RECIPE, state)
        assert not folder.finish()
    assert (folder.newest_name(), folder.best_name()) == ("images-0000000016", "images-0000000008")
    assert checkpoint_folder(tmp_path, "latest").name == "images-0000000016"
    again = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    assert again.restore(SmallStage(), RECIPE) == state
    assert again.save_last(SmallStage(), RECIPE, state)
    assert again.best_name() == "images-0000000016"


def test_a_kill_before_the_pointer_does_not_lose_the_best_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    state = RunState(images=8, step=1, best_value=0.5, best_images=8)
    folder.save(SmallStage(), RECIPE, state)
    folder._pending[0].result()  # complete; the next step, which would note that it is the best, is never made
    again = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    assert again.restore(SmallStage(), RECIPE) == state
    again.save(SmallStage(), RECIPE, dataclasses.replace(state, images=16, step=2))
    assert again.finish()
    assert (again.newest_name(), again.best_name()) == ("images-0000000016", "images-0000000008")


def test_a_best_checkpoint_that_is_not_on_the_disk_is_no_measure(tmp_path: Path, monkeypatch) -> None:
    """Not written because the disk was full, or removed since: worse figures than its own may be the best there is."""
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    state = RunState(images=8, step=1, best_value=0.5, best_images=8)
    folder.save(SmallStage(), RECIPE, state)
    assert folder.finish()
    state.images = state.best_images = 16
    state.best_value = 0.1
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        folder.save(SmallStage(), RECIPE, state)
        assert not folder.finish()
    assert (state.best_value, state.best_images, folder.best_name()) == (0.5, 8, "images-0000000008")
    shutil.rmtree(folder.root / "images-0000000008")
    folder.save(SmallStage(), RECIPE, state)
    assert folder.finish()
    again = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    assert again.restore(SmallStage(), RECIPE) == RunState(images=16, step=1)


def test_what_is_left_of_a_folder_is_replaced(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    (folder.root / "images-0000000008").mkdir(parents=True)
    (folder.root / "images-0000000008" / "model-00001-of-00001.safetensors").write_bytes(b"cut off")
    assert save(folder, SmallStage(), 8)
    assert folder.restore(SmallStage(), RECIPE).images == 8


def test_an_error_waits_for_the_checkpoint_that_is_being_written(tmp_path: Path, monkeypatch) -> None:
    """Ranks end without waiting for threads (`distributed.leave`), so the folder has to."""
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.2), fsync(descriptor)))
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)

    def run() -> None:
        with folder:
            folder.save(SmallStage(), RECIPE, RunState(images=8, step=1, best_images=8))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert folder.best_name() == folder.newest_name() == "images-0000000008"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_loses_nothing_saved(tmp_path: Path, capsys, monkeypatch, number: int) -> None:
    """EFBIG by a real limit of the operating system; ENOSPC raised where the file is written."""
    stage = SmallStage()
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    assert save(folder, stage, 8)
    wanted = read_tensors(folder.root / "images-0000000008")
    stage.work()
    if number == errno.EFBIG:
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            assert not save(folder, stage, 16)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
            assert not save(folder, stage, 16)
    said = capsys.readouterr().err
    assert "checkpoint images-0000000016 could not be written" in said
    assert os.strerror(number) in said
    assert "images-0000000008 is kept" in said
    assert folder.names() == ["images-0000000008"]
    assert all(
        torch.equal(value, wanted[name]) for name, value in read_tensors(folder.root / folder.newest_name()).items()
    )
    assert not list(folder.root.glob(".partial-*"))
    assert save(folder, stage, 16)  # once there is room again


def test_another_recipe_or_stage_is_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    save(folder, SmallStage(), 8)
    run = folder.root / "images-0000000008" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"recipe_hash": "0badcafe"}))  # of another program
    assert folder.restore(SmallStage(), RECIPE).images == 8, "its values tell, not its hash"
    other = dataclasses.replace(RECIPE, seed=7, losses=dataclasses.replace(RECIPE.losses, pixel=2.0))
    with pytest.raises(
        ValueError, match=r"losses.pixel: 0.0 -> 2.0; seed: 0 -> 7\): use the same recipe.*--allow-other"
    ):
        folder.restore(SmallStage(), other)
    assert folder.restore(SmallStage(), other, allow_other_recipe=True).images == 8
    stage = SmallStage()
    stage.name = "stitching"
    with pytest.raises(ValueError, match="of stage 'base', not 'stitching': use another --output"):
        folder.restore(stage, RECIPE)
    with pytest.raises(ValueError, match=r"does not hold this stage's networks: .*size mismatch"):
        folder.restore(SmallStage(width=5), RECIPE)


def test_other_networks_behind_the_losses_are_another_recipe(tmp_path: Path, capsys) -> None:
    """As where the recogniser can be had on one day and not on the next."""
    stage = SmallStage()
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    save(folder, SmallStage(), 8)  # by a program that did not note them
    stage.judges = {"losses.recogniser": "weights 1a"}
    assert folder.restore(stage, RECIPE).images == 8
    save(folder, stage, 16)
    assert folder.restore(stage, RECIPE).images == 16
    stage.judges = {"losses.recogniser": "random features 2b"}
    told = "losses.recogniser: weights 1a -> random features 2b"
    with pytest.raises(ValueError, match=rf"another recipe \({told}\): use the same recipe, .*--allow-other-recipe"):
        folder.restore(stage, RECIPE)
    capsys.readouterr()
    assert folder.restore(stage, RECIPE, allow_other_recipe=True).images == 16
    assert f"note: another network than until now: {told}\n" in capsys.readouterr().err


def test_a_lower_learning_rate_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    """As advised where a run diverged: worse figures than before are not the best, and remove nothing."""
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    folder.save(SmallStage(), RECIPE, RunState(images=8, best_value=0.5, best_images=8))
    assert folder.finish()
    other = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, learning_rate=1e-5))
    state = folder.restore(SmallStage(), other, allow_other_recipe=True)
    assert (state.best_value, state.best_images) == (0.5, 8)
    folder.save(SmallStage(), other, dataclasses.replace(state, images=16))
    assert folder.finish()
    assert (folder.best_name(), len(folder.names())) == ("images-0000000008", 2)


def test_the_best_figure_counts_for_its_own_recipe_alone(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2, writes=True)
    folder.save(SmallStage(), RECIPE, RunState(images=8, best_value=0.5, best_images=8))
    assert folder.finish()
    assert folder.restore(SmallStage(), RECIPE).best_value == 0.5
    other = dataclasses.replace(RECIPE, losses=dataclasses.replace(RECIPE.losses, guidance=7.0))
    state = folder.restore(SmallStage(), other, allow_other_recipe=True)
    assert (state.best_value, state.best_images) == (float("inf"), -1)
    assert folder.best_name() == "images-0000000008", "until there is a better one"


@pytest.mark.parametrize(
    ("data", "num_validation", "counts"),
    [
        ("{tmp}/data", 256, True),
        ("{tmp}/data/../data/", 256, True),
        ("s3://data", 256, False),
        ("{tmp}/data", 9, False),
    ],
)
def test_the_best_figure_counts_for_its_own_pairs_alone(
    tmp_path: Path, capsys, data: str, num_validation: int, counts: bool
) -> None:
    inputs = {"data": f"{tmp_path}/data"}
    folder = CheckpointFolder(tmp_path / "run", keep_last=2, writes=True, inputs=inputs)
    folder.save(SmallStage(), RECIPE, RunState(images=8, best_value=0.5, best_images=8))
    assert folder.finish()
    inputs = {"data": data.format(tmp=tmp_path)}
    again = CheckpointFolder(tmp_path / "run", keep_last=2, writes=True, inputs=inputs)
    reports = dataclasses.replace(RECIPE.reports, num_validation=num_validation)
    state = again.restore(SmallStage(), dataclasses.replace(RECIPE, reports=reports))
    assert (state.best_value, state.best_images) == ((0.5, 8) if counts else (float("inf"), -1))
    assert ("note: until now this run was trained on" in capsys.readouterr().err) == data.startswith("s3")


def test_clips_that_came_or_went_are_told(tmp_path: Path, capsys) -> None:
    def go_on(images: int, data: str, clips: str) -> str:
        folder = CheckpointFolder(tmp_path, keep_last=2, writes=True, inputs={"data": data})
        state = folder.restore(SmallStage(), RECIPE)
        folder.note_clips(clips, state)
        assert (state.best_value < 1) == (images == 16), "the figure of other held-out frames is no measure"
        folder.save(SmallStage(), RECIPE, RunState(images=images, best_value=0.5, best_images=images))
        assert folder.finish()
        return capsys.readouterr().err

    assert go_on(8, "data", "3 clips (a)") == ""
    assert "has changed" not in go_on(16, "data", "3 clips (a)")
    said = go_on(24, "data", "2 clips (b)")
    assert "the data set has changed: this run was trained on 3 clips (a), from here on 2 clips (b)\n" in said
    assert "has changed" not in go_on(32, "elsewhere", "9 clips (c)"), "that it is another is told"


@pytest.mark.parametrize(
    ("decay", "num_images", "told"), [("linear", 160, True), ("linear", 80, False), ("constant", 160, False)]
)
def test_a_learning_rate_that_jumps_is_told(decay: str, num_images: int, told: bool, tmp_path: Path, capsys) -> None:
    """A finished run that goes on longer: its learning rate, decayed by then, rises again."""
    optimizer = dataclasses.replace(RECIPE.optimizer, decay=decay, final_share=0.1)
    recipe = dataclasses.replace(RECIPE, num_images=80, optimizer=optimizer)
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    folder.save(SmallStage(), recipe, RunState(images=72, step=9))
    assert folder.finish()
    folder.restore(SmallStage(), dataclasses.replace(recipe, num_images=num_images))
    note = "note: num_images was 80 and is 160: the learning rate goes on at 0.595 of its peak, not at 0.19\n"
    assert capsys.readouterr().err.partition("\n")[2] == note * told


def test_damage_is_told(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, writes=True)
    save(folder, SmallStage(), 8)
    (weights,) = (folder.root / "images-0000000008").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))  # one bit of a tensor
    with pytest.raises(ValueError, match=r"images-0000000008 cannot be read .*checksum differs.*remove this"):
        folder.restore(SmallStage(), RECIPE)
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"images-0000000008 cannot be read .*remove this folder"):
        folder.restore(SmallStage(), RECIPE)
    run = folder.root / "images-0000000008" / "run.json"
    noted = json.loads(run.read_text())
    for wrong in ({k: v for k, v in noted.items() if k != "state"}, 3):
        run.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"run.json cannot be read \(.*remove .*images-0000000008 to go on"):
            folder.restore(SmallStage(), RECIPE)
    run.write_text(json.dumps(noted | {"version": 99}))
    with pytest.raises(ValueError, match="version 99, this program knows up to 1"):
        folder.restore(SmallStage(), RECIPE)
    shutil.rmtree(folder.root / "images-0000000008")
    assert folder.restore(SmallStage(), RECIPE) == RunState()
