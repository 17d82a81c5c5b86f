from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from torch import Tensor, nn

from training.evaluation.lpips import Lpips

ALEX = ((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "pool")
VGG16 = tuple(
    step
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for step in (*[(width, 3, 1, 1)] * count, "pool")
)


def _features(plan: tuple, pool_kernel: int) -> nn.Sequential:
    """The `features` of torchvision's networks, with random weights."""
    torch.manual_seed(0)
    layers, channels = [], 3
    for step in plan:
        if step == "pool":
            layers.append(nn.MaxPool2d(pool_kernel, 2))
        else:
            layers += [nn.Conv2d(channels, step[0], step[1], step[2], step[3]), nn.ReLU()]
            channels = step[0]
    return nn.Sequential(*layers)


def _write(path: Path, features: nn.Sequential) -> Path:
    state: dict[str, Tensor] = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize(
    ("name", "network", "plan", "pool"), [("alex", "alexnet", ALEX, 3), ("vgg", "vgg16", VGG16, 2)]
)
def test_distances_equal_those_of_torchmetrics(name, network, plan, pool, tmp_path: Path, monkeypatch) -> None:
    features = _features(plan, pool)
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: {network: features}[net])
    monkeypatch.setattr(torch, "load", _on_cpu(torch.load))  # its calibration was saved on a GPU
    expected = reference._LPIPS(pretrained=True, net=name, eval_mode=True)
    ours = Lpips(_write(tmp_path / "backbone.pth", features))
    first, second = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64)
    second[2] = first[2]
    with torch.no_grad():
        wanted = expected(first, second, normalize=True).flatten()
    assert ours.backbone == name
    torch.testing.assert_close(ours(first, second), wanted, rtol=1e-5, atol=1e-7)
    assert ours(first, second)[2] == 0
    assert wanted[:2].min() > 1e-3


def _on_cpu(load):
    return lambda file, **keywords: load(file, **{**keywords, "map_location": "cpu"})


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    other = _write(tmp_path / "other.pth", _features(ALEX[:4], 3))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not weights")
    (tmp_path / "damaged.safetensors").write_bytes(b"not weights")
    (tmp_path / "empty.pth").touch()
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "checkpoint.pth")
    for path, words in (
        (other, "neither an AlexNet"),
        (damaged, "cannot be read"),
        (tmp_path / "no.pth", "no such"),
        (tmp_path / "damaged.safetensors", "is no safetensors file"),
        (tmp_path / "empty.pth", "cannot be read"),
        (tmp_path / "tensor.pth", "holds a Tensor, expected a state dict"),
        (tmp_path / "checkpoint.pth", "holds a dict, expected a state dict of tensors"),
    ):
        with pytest.raises(ValueError, match=words):
            Lpips(path)
