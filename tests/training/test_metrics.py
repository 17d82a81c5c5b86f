"""What a run tells: the line, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from manifests.console import clock
from training import metrics
from training.base import BaseRecipe
from training.distributed import Process
from training.metrics import Reporter
from training.recipe import ReportOptions


def test_a_line_tells_means_speed_wait_and_time_to_go(tmp_path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr("training.metrics.time", SimpleNamespace(perf_counter=lambda: now, time=time.time))

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    recipe = dataclasses.replace(
        BaseRecipe(), num_images=400, batch_size=10, reports=ReportOptions(log_every_images=20)
    )

    def slow_batches():
        for number in range(100):
            passes(0.02)
            yield number

    out = io.StringIO()
    with Reporter(tmp_path, recipe, Process(), first_image=0, out=out) as reporter:
        batches = reporter.timed(slow_batches())
        for number, loss in enumerate((1.0, 3.0)):
            next(batches)
            passes(0.02)
            with reporter.paused():
                passes(0.3)
            losses = {"loss": loss, "gradient_norm/networks": 7.0}
            reporter.add(losses, 10 * number + 10, number + 1, num_skipped=number)
    (line,) = out.getvalue().splitlines()
    for part in ("step 2  images 20  loss 2  ", " images/s  wait ", " GiB  ETA 0:", "1 sample skipped"):
        assert part in line
    assert "gradient_norm" not in line
    (record,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (record["kind"], record["loss"], record["images"], record["step"]) == ("train", 2.0, 20, 2)
    assert record["gradient_norm/networks"] == 7
    assert record["data_wait_percent"] == pytest.approx(50)
    assert record["images_per_s"] == pytest.approx(20 / 0.08)  # the pauses are left out
    assert 0.01 < record["memory_gib"] < 100
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(20, 2.0)]


def test_lost_steps_are_counted_and_leave_the_means_alone(tmp_path) -> None:
    recipe = dataclasses.replace(
        BaseRecipe(), num_images=400, batch_size=10, reports=ReportOptions(log_every_images=20)
    )
    out = io.StringIO()
    with Reporter(tmp_path, recipe, Process(), first_image=0, out=out) as reporter:
        for step, (loss, is_lost) in enumerate([(2.0, False), (math.nan, True), (math.nan, True), (math.inf, True)], 1):
            reporter.add({"loss": loss}, 10 * step, step, num_skipped=0, is_lost=is_lost)
    first, second = out.getvalue().splitlines()
    assert "images 20  loss 2  " in first
    assert first.endswith("  1 step lost")
    assert "loss" not in second.removesuffix("3 steps lost")
    records = [*map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())]
    assert [(record.get("loss"), record["lost_steps"]) for record in records] == [(2.0, 1), (None, 3)]


def test_a_full_disk_ends_the_files_and_not_the_run(tmp_path, monkeypatch, capfd) -> None:
    """TensorBoard's own thread meets it first; later calls raise it again. No traceback, and one line of it."""

    def full(writer: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = dataclasses.replace(BaseRecipe(), batch_size=1, reports=ReportOptions(log_every_images=1))
    out = io.StringIO()
    hook = threading.excepthook
    with Reporter(tmp_path, recipe, Process(), first_image=5, out=out) as reporter:
        monkeypatch.setattr(RecordWriter, "write", full)
        for images in range(6, 40):
            reporter.picture(np.zeros((4, 4, 3), np.uint8), images)
            reporter.add({"loss": 1.0}, images, images, num_skipped=0)
    assert threading.excepthook is hook
    assert out.getvalue().count("error: TensorBoard's files could not be written ([Errno 28]") == 1
    assert "Traceback" not in capfd.readouterr().err
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["resumed"] + 34 * ["train"]


def test_a_row_that_was_cut_off_spoils_no_other(tmp_path) -> None:
    """By a kill, or a full disk."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "ima')
    with Reporter(tmp_path, BaseRecipe(), Process(), first_image=8, out=io.StringIO()) as reporter:
        reporter.validation({"l1": 0.1}, 8)
    _, *rows = path.read_text().splitlines()
    assert [json.loads(row)["kind"] for row in rows] == ["resumed", "validation"]


def test_a_start_after_one_that_left_no_checkpoint_tells_of_it(tmp_path) -> None:
    for _ in range(2):
        with Reporter(tmp_path, BaseRecipe(), Process(), first_image=0, out=io.StringIO()) as reporter:
            reporter.validation({"l1": 0.1}, 0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["images"]) for row in rows] == [("validation", 0), ("resumed", 0), ("validation", 0)]


def test_other_ranks_write_nothing(tmp_path) -> None:
    out = io.StringIO()
    recipe = dataclasses.replace(BaseRecipe(), batch_size=1, reports=ReportOptions(log_every_images=1))
    with Reporter(tmp_path, recipe, Process(rank=1), first_image=0, out=out) as reporter:
        reporter.add({"loss": 1.0}, 1, 1, num_skipped=0)
        reporter.validation({"l1": 0.1}, 1)
    assert out.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3_725, "1:02:05"), (443_000, "5 d 3 h")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("system", "most"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_memory_of_a_process_is_in_gib_on_every_system(monkeypatch, system, most):
    monkeypatch.setattr(metrics.sys, "platform", system)
    monkeypatch.setattr(metrics.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=most))
    assert metrics.peak_memory_gib(torch.device("cpu")) == 3
