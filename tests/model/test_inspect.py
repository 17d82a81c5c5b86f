"""The report on a folder of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.inspect import count_flops, format_report, inspect_weights
from model.networks import LivePortrait


def test_complete_folder(tmp_path: Path) -> None:
    LivePortrait.untrained(config=ModelConfig.tiny()).save(tmp_path)
    report = inspect_weights(tmp_path)
    assert report.complete
    assert "complete, ready to animate" in format_report(report)


def test_missing_network_and_differing_keys(tmp_path: Path) -> None:
    LivePortrait.untrained(config=ModelConfig.tiny()).save(tmp_path)
    (tmp_path / "spade_generator.pth").unlink()
    state = torch.load(tmp_path / "warping_module.pth", weights_only=True)
    del state["fourth.bias"]
    torch.save(state, tmp_path / "warping_module.pth")
    report = inspect_weights(tmp_path)
    status = {network.name: network.status for network in report.networks}
    assert not report.complete
    assert (status["generator"], status["warping"], status["motion"]) == ("missing", "differs", "complete")
    assert "1 missing keys (fourth.bias)" in format_report(report)


def test_published_sizes(models: Path) -> None:
    """Parameters and operations of the published networks, and the released retargeting file."""
    report = inspect_weights(models / "liveportrait" / "stitching_retargeting_module.pth")
    by_name = {network.name: network for network in report.networks}
    millions = {name: by_name[name].num_parameters / 1e6 for name in ("appearance", "motion", "warping", "generator")}
    assert millions == pytest.approx({"appearance": 0.84, "motion": 28.1, "warping": 45.5, "generator": 55.4}, rel=0.01)
    assert by_name["stitching"].status == by_name["retarget_eye"].status == "complete"
    assert by_name["appearance"].status == "missing"


def test_published_operations() -> None:
    gflops = {name: flops / 1e9 for name, flops in count_flops(ModelConfig()).items()}
    expected = {"appearance": 64, "motion": 11.6, "warping": 342, "generator": 892}
    assert {name: gflops[name] for name in expected} == pytest.approx(expected, rel=0.02)
