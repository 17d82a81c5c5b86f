"""Batches: exact resume with any number of workers and ranks, the right pictures, real data of the real curation."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data import DataConfig, make_loader
from training.data.batch import Batch


def take(loader, num: int) -> list[Batch]:
    return list(itertools.islice(iter(loader), num))


def assert_equal(one: Batch, other: Batch) -> None:
    for side in ("source", "driving"):
        a, b = getattr(one, side), getattr(other, side)
        assert (a.clip_ids, a.frames, a.identities) == (b.clip_ids, b.frames, b.identities)
        for name in ("images", "landmarks", "pose"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert one.is_still.tolist() == other.is_still.tolist()
    assert one.indices.tolist() == other.indices.tolist()
    assert one.position == other.position


def test_pictures_and_labels_are_those_of_the_named_frames(coded_dataset, config, assert_pictures_match):
    batches = take(make_loader(str(coded_dataset), config=config(), batch_size=6, seed=1), 12)
    for batch in batches:
        assert batch.source.images.dtype == torch.uint8
        assert batch.source.images.shape == batch.driving.images.shape == (6, 3, 64, 64)
        assert batch.num_skipped == 0
        assert_pictures_match(batch)
        assert batch.still_rows == batch.is_still.nonzero()[:, 0].tolist()
        assert batch.is_still.sum() == 2
    assert [batch.position for batch in batches] == list(range(6, 78, 6))
    assert [g for batch in batches for g in batch.indices.tolist()] == list(range(72))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_with_any_number_of_workers(coded_dataset, config, num_workers: int):
    straight = take(make_loader(str(coded_dataset), config=config(), batch_size=4, seed=7), 9)
    loader = make_loader(
        str(coded_dataset),
        config=config(num_workers=num_workers),
        batch_size=4,
        seed=7,
        position=straight[2].position,
    )
    for one, other in zip(straight[3:], take(loader, 6), strict=True):
        assert_equal(one, other)


def test_ranks_share_the_samples_and_may_change_at_batch_boundaries(coded_dataset, config):
    def indices(batches):
        return [
            (index, *names)
            for batch in batches
            for index, *names in zip(
                batch.indices.tolist(), batch.source.clip_ids, batch.source.frames, batch.driving.frames, strict=True
            )
        ]

    def load(batch_size, rank, world_size, position, num):
        return take(
            make_loader(
                str(coded_dataset),
                config=config(),
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                seed=7,
                position=position,
            ),
            num,
        )

    alone = load(4, 0, 1, 0, 10)
    two = [load(2, rank, 2, 0, 5) for rank in (0, 1)]
    assert sorted(indices(two[0] + two[1])) == indices(alone[:5])
    assert two[0][-1].position == two[1][-1].position == alone[4].position == 20
    four = [load(1, rank, 4, two[0][-1].position, 5) for rank in range(4)]
    assert sorted(indices(itertools.chain(*four))) == indices(alone[5:])


def test_cross_identity_batches_show_two_persons(coded_dataset, config, assert_pictures_match):
    loader = make_loader(str(coded_dataset), config=config(), batch_size=8, seed=1, cross_identity=True)
    for batch in take(loader, 5):
        assert all(a != b for a, b in zip(batch.source.identities, batch.driving.identities, strict=True))
        assert not batch.is_still.any()
        assert_pictures_match(batch)


def test_held_out_split_reads_the_same_clips(coded_dataset, config, assert_pictures_match):
    options = config(held_out_share=0.3, still_share=0.0)
    training = take(make_loader(str(coded_dataset), config=options, batch_size=8, seed=1), 20)
    held_out = take(make_loader(str(coded_dataset), config=options, batch_size=8, seed=1, split="held_out"), 20)
    used, kept_back = set(), set()
    for batch in training:
        for side in (batch.source, batch.driving):
            used |= set(zip(side.clip_ids, side.frames, strict=True))
    for batch in held_out:
        assert_pictures_match(batch)
        kept_back |= set(zip(batch.driving.clip_ids, batch.driving.frames, strict=True))
    assert not used & kept_back
    assert {clip for clip, _ in used} == {clip for clip, _ in kept_back}


def test_a_batch_moves_and_pickles_whole(coded_dataset, config):
    (batch,) = take(make_loader(str(coded_dataset), config=config(), batch_size=3, seed=1), 1)
    moved = batch.to("meta")
    assert moved.source.images.device.type == moved.driving.pose.device.type == moved.is_still.device.type == "meta"
    assert moved.indices.device.type == "cpu"
    assert batch.source.images.device.type == "cpu"
    assert_equal(pickle.loads(pickle.dumps(batch)), batch)


def test_the_index_is_mapped_not_copied_to_workers(coded_dataset, config):
    loader = make_loader(str(coded_dataset), config=config(), batch_size=3, seed=1)
    pickled = pickle.dumps(loader.order.index)
    assert len(pickled) < 500
    other = pickle.loads(pickled)
    assert other.place(3, 2) == loader.order.index.place(3, 2)
    assert not loader.order.index.first.flags.owndata


def test_options_that_cannot_work_are_refused():
    for options, message in (
        ({"reader": "zip"}, "expected 'pread' or 'webdataset'"),
        ({"num_workers": -1}, "num_workers is -1, expected at least 0"),
        ({"held_out_share": 1.0}, "expected at least 0 and less than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**options)


@pytest.mark.parametrize("reader", ["pread", "webdataset"])
def test_what_the_demo_makes_can_be_trained_on(dataset: Path, index_folder, reader):
    options = DataConfig(num_workers=0, reader=reader, index_folder=index_folder)
    loader = make_loader(str(dataset), config=options, batch_size=4, seed=1)
    for batch in take(loader, 4):
        assert batch.source.images.shape == (4, 3, 512, 512)
        assert batch.source.images.float().std() > 20
        points = batch.source.landmarks
        assert 100 < points.mean() < 412  # the face is in the middle of the picture
        assert points.std(1).min() > 30
        assert batch.source.pose.abs().max() < 60
        gap = torch.tensor(batch.source.frames) - torch.tensor(batch.driving.frames)
        assert gap.abs().min() >= 10
        assert batch.num_skipped == 0


def test_real_videos_and_stills_mix(media_dataset: Path, index_folder):
    options = DataConfig(num_workers=0, still_share=0.5, index_folder=index_folder)
    batch = take(make_loader(str(media_dataset), config=options, batch_size=8, seed=2), 1)[0]
    assert batch.is_still.sum() == 4
    for row in range(8):
        same = torch.equal(batch.source.images[row], batch.driving.images[row])
        assert same == batch.is_still[row].item()
    crossed = take(make_loader(str(media_dataset), config=options, batch_size=8, seed=2, cross_identity=True), 1)[0]
    assert not set(zip(crossed.source.identities, crossed.source.identities, strict=True)) & set(
        zip(crossed.source.identities, crossed.driving.identities, strict=True)
    )


@pytest.mark.parametrize("reader", ["pread", "webdataset"])
@pytest.mark.parametrize(("side_px", "expected_px"), [(64, 64), (33, 64), (32, 32), (20, 32), (8, 8), (4, 8)])
def test_pictures_are_halved_while_they_are_decoded(coded_dataset, config, reader, side_px: int, expected_px: int):
    options = {"config": config(reader=reader), "batch_size": 4, "seed": 1}
    whole = take(make_loader(str(coded_dataset), **options), 1)[0]
    small = take(make_loader(str(coded_dataset), side_px=side_px, **options), 1)[0]
    factor = 64 // expected_px
    averaged = torch.nn.functional.avg_pool2d(whole.driving.images.float(), factor)
    assert small.driving.images.shape[-1] == expected_px
    assert (small.driving.images.float() - averaged).abs().max() <= 4
    # Both sides of a picture's border stay where they are: -0.5 and side - 0.5.
    torch.testing.assert_close((small.source.landmarks + 0.5) * factor, whole.source.landmarks + 0.5)


def test_pictures_that_are_smaller_than_the_model_sees_are_told(coded_dataset, config, caplog):
    for side_px, is_told in ((64, False), (65, True)):
        make_loader(str(coded_dataset), config=config(), batch_size=2, seed=0, side_px=side_px)
        assert ("pictures of 64 px are enlarged to the 65 px" in caplog.text) == is_told


@pytest.mark.parametrize("reader", ["pread", "webdataset"])
def test_batches_that_are_kept_are_not_overwritten_by_workers(coded_dataset, config, assert_pictures_match, reader):
    loader = iter(
        make_loader(
            str(coded_dataset),
            config=config(num_workers=2, prefetch_batches=1, reader=reader),
            batch_size=4,
            seed=7,
        )
    )
    kept = []
    for number in range(24):
        kept.append(next(loader))
        if number % 5 == 0:
            time.sleep(0.05)  # workers run ahead as far as they may
        assert_pictures_match(kept[-1])
    for batch in kept:
        assert_pictures_match(batch)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_full_shared_memory_is_told(coded_dataset, config, monkeypatch):
    def share_memory(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory)
    options = config(num_workers=1, worker_start="fork")
    with pytest.raises(OSError, match=r"/dev/shm.* is full: .*--shm-size"):
        next(iter(make_loader(str(coded_dataset), config=options, batch_size=2, seed=1)))


@pytest.mark.parametrize("worker_start", ["forkserver", "fork"])
def test_a_worker_that_was_killed_is_told(coded_dataset, config, worker_start: str):
    options = config(num_workers=1, prefetch_batches=1, worker_start=worker_start)
    before = set(multiprocessing.active_children())
    batches = iter(make_loader(str(coded_dataset), config=options, batch_size=2, seed=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    with pytest.raises(OSError, match=r"^DataLoader worker .*want of memory.*fewer --data.num-workers"):
        take(batches, 20)


def test_workers_end_with_a_training_process_that_is_killed(coded_dataset, index_folder, tmp_path):
    program = f"""if __name__ == "__main__":
    import time
    from training.data import DataConfig, make_loader
    config = DataConfig(num_workers=1, min_gap_s=0.2, index_folder={index_folder!r})
    batches = iter(make_loader({str(coded_dataset)!r}, config=config, batch_size=2, seed=1))
    next(batches)
    print("ready", flush=True)
    time.sleep(600)
"""
    (tmp_path / "program.py").write_text(program)
    mark = {"TEST_OF_WORKERS": str(tmp_path)}
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | mark | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        assert len(processes_with(mark)) >= 3, "the process, the fork server, the worker"
        process.kill()
    end = time.monotonic() + 30
    while processes_with(mark):
        assert time.monotonic() < end, processes_with(mark)
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("worker_start", ["forkserver", "spawn", "fork"])
def test_workers_obey_the_training_process_alone(coded_dataset, index_folder, tmp_path, worker_start: str):
    """A signal to the whole group leaves them and the fork server at work; the training process can end them."""
    program = f"""if __name__ == "__main__":
    import multiprocessing, os, signal, subprocess
    from training.data import DataConfig, make_loader
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    config = DataConfig(num_workers=1, min_gap_s=0.2, index_folder={index_folder!r}, worker_start={worker_start!r})
    batches = iter(make_loader({str(coded_dataset)!r}, config=config, batch_size=2, seed=1))
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        subprocess.run(["kill", f"-{{number:d}}", "--", f"-{{os.getpgrp()}}"])
        for _ in range(12):
            next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(20)
    print(worker.exitcode)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert "Traceback" not in done.stderr


def processes_with(mark: dict[str, str]) -> list[str]:
    """Processes whose environment has it; those that have ended and wait for their parent have none."""
    wanted = "=".join(*mark.items()).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
    return found
