"""VGG19: torchvision's layout in, clear errors for anything else, random features only when asked."""

from __future__ import annotations

import hashlib
import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file

from training.networks import weight_files
from training.networks.vgg import Vgg19Features, load_vgg19
from training.networks.weight_files import fingerprint, local_file

# The published table: convolutions of torchvision's vgg19.features up to relu5_1.
SHAPES = {
    0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
    16: (256, 256), 19: (512, 256), 21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (out_channels, in_channels) in SHAPES.items():
        spread = (2 / (9 * in_channels)) ** 0.5
        state[f"features.{index}.weight"] = torch.randn(out_channels, in_channels, 3, 3, generator=generator) * spread
        state[f"features.{index}.bias"] = torch.randn(out_channels, generator=generator) * 0.1
    state["features.30.weight"] = torch.zeros(512, 512, 3, 3)  # conv5_2 and the classifier are not used
    state["classifier.6.bias"] = torch.zeros(1000)
    return state


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


def test_both_file_kinds_load_and_give_five_maps(file, state, tmp_path):
    save_file(state, tmp_path / "vgg19.safetensors")
    image = torch.rand(1, 3, 48, 32)
    first, second = (load_vgg19(path)(image) for path in (file, tmp_path / "vgg19.safetensors"))
    assert [tuple(taps.shape[1:]) for taps in first] == [
        (64, 48, 32),
        (128, 24, 16),
        (256, 12, 8),
        (512, 6, 4),
        (512, 3, 2),
    ]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[-1], Vgg19Features.random_features()(image)[-1])


def test_networks_are_known_by_their_weights_not_by_their_files(file, state, tmp_path):
    save_file(state, tmp_path / "vgg19.safetensors")
    one, other = load_vgg19(file), load_vgg19(tmp_path / "vgg19.safetensors")
    random = load_vgg19(None, allow_random_features=True)
    assert (one.is_random, random.is_random) == (False, True)
    assert fingerprint(one) == fingerprint(other) != fingerprint(random) == fingerprint(Vgg19Features.random_features())


def test_first_map_is_the_first_convolution_of_normalised_pixels(file, state):
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    pixel = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    value = (pixel[0, :, 4:7, 8:11] * state["features.0.weight"][7]).sum() + state["features.0.bias"][7]
    assert load_vgg19(file)(image.float())[0][0, 7, 5, 9].item() == pytest.approx(max(value.item(), 0), abs=1e-5)


def test_network_is_frozen_and_lets_gradients_through(file):
    network = load_vgg19(file).train()
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    network(image)[-1].sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0


def test_missing_keys_are_listed(state, tmp_path):
    torch.save({key: value for key, value in state.items() if ".28." not in key}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part.pth .*lacks 2 of 26 keys \(features.28.weight, features.28.bias\)"):
        load_vgg19(tmp_path / "part.pth")


def test_other_networks_and_files_are_refused(state, tmp_path):
    torch.save(state | {"features.16.weight": torch.zeros(512, 256, 3, 3)}, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"features.16.weight is \[512, 256, 3, 3\], expected \[256, 256, 3, 3\]"):
        load_vgg19(tmp_path / "vgg16.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, expected a state dict"):
        load_vgg19(tmp_path / "list.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ValueError, match=name):
            load_vgg19(tmp_path / name)
    with pytest.raises(ValueError, match=r"--losses.vgg19: .*nowhere.pth does not exist"):
        load_vgg19(tmp_path / "nowhere.pth")


class Trap:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return eval, ("1 / 0",)


def test_files_cannot_run_code(tmp_path):
    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap.pth cannot be read"):
        load_vgg19(tmp_path / "trap.pth")


def test_random_features_only_when_asked_and_then_said(caplog):
    with pytest.raises(ValueError, match=r"with --losses.vgg19, or pass --allow-random-features"):
        load_vgg19(None)
    with caplog.at_level(logging.WARNING):
        network = load_vgg19(None, allow_random_features=True, width=0.25)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "random features" in caplog.text
    image = torch.rand(1, 3, 32, 32)
    again, other = (Vgg19Features.random_features(seed, width=0.25)(image) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(network(image), again, strict=True))
    assert not torch.equal(again[0], other[0])
    assert [taps.shape[1] for taps in again] == [16, 32, 64, 128, 128]
    # Activations neither fade nor explode over the depth.
    deviations = [taps.std().item() for taps in again]
    assert max(deviations) / min(deviations) < 4


def test_a_path_that_is_wrong_is_not_replaced_by_random_features(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_vgg19(tmp_path / "nowhere.pth", allow_random_features=True)


def test_a_url_is_fetched_once_and_its_hash_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "cache_dir", lambda: tmp_path / "cache")
    content = b"weights"
    named = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    named.write_bytes(content)
    fetched = local_file(named.as_uri(), "--losses.vgg19")
    assert fetched.parent == tmp_path / "cache"
    assert fetched.read_bytes() == content
    named.unlink()
    assert local_file(named.as_uri(), "--losses.vgg19") == fetched
    wrong = tmp_path / "net-00000000.pth"
    shutil.copy(fetched, wrong)
    with pytest.raises(ValueError, match="cannot fetch weights"):
        local_file(wrong.as_uri(), "--losses.vgg19")
    with pytest.raises(ValueError, match="give a path"):
        local_file((tmp_path / "missing.pth").as_uri(), "--losses.vgg19")
