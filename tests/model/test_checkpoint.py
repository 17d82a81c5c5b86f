"""Reading and writing checkpoints; the released files."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import (
    BASE_FILES,
    CONFIG_FILE,
    RELEASED_FILES,
    RETARGETING_FILE,
    CheckpointError,
    load_checkpoint,
    read_config,
)
from model.config import ModelConfig
from model.inference import InferenceEngine
from model.inspect import format_report, inspect_weights
from model.keypoints import Motion
from model.networks import AppearanceExtractor, LivePortrait

TINY = ModelConfig.tiny()


@pytest.fixture(scope="module")
def portrait() -> LivePortrait:
    torch.manual_seed(7)
    return LivePortrait(TINY).eval()


@pytest.fixture
def folder(portrait: LivePortrait, tmp_path: Path) -> Path:
    portrait.save(tmp_path / "weights")
    return tmp_path / "weights"


def run(portrait: LivePortrait) -> list[torch.Tensor]:
    """An output of every network."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, TINY.image_size, TINY.image_size, generator=generator)
    with torch.no_grad():
        motion = Motion.from_heads(portrait.motion(image))
        x_s = motion.keypoints()
        x_d = x_s + 0.05 * torch.randn(x_s.shape, generator=generator)
        flat = x_s.flatten(1)
        return [
            x_s,
            portrait(image, x_s, x_d),
            portrait.stitching(torch.cat([flat, x_d.flatten(1)], 1)),
            portrait.retarget_eye(torch.cat([flat, flat[:, :3]], 1)),
            portrait.retarget_lip(torch.cat([flat, flat[:, :2]], 1)),
        ]


@pytest.fixture(scope="module")
def expected(portrait: LivePortrait) -> list[torch.Tensor]:
    return run(portrait)


@pytest.mark.parametrize("target", ["weights", "nested/weights.safetensors"])
def test_saved_weights_reload_bit_identically(target: str, portrait, expected, tmp_path) -> None:
    portrait.save(tmp_path / target)
    restored = LivePortrait.from_pretrained(tmp_path / target, TINY)
    assert restored.trained
    assert not restored.training
    assert all(map(torch.equal, run(restored), expected))
    assert not list(tmp_path.rglob(".*")), "temporary files are left"


def test_weights_of_half_precision_become_float32(portrait, tmp_path) -> None:
    file = tmp_path / "half.safetensors"
    halves = copy.deepcopy(portrait).bfloat16()
    halves.save(file)
    restored = LivePortrait.from_pretrained(file)
    assert {value.dtype for value in restored.parameters()} == {torch.float32}
    assert torch.equal(restored.generator.fc.weight, halves.generator.fc.weight.float())
    assert torch.isfinite(InferenceEngine(restored).extract_motion(torch.rand(1, 3, 64, 64)).exp).all()


def test_folder_has_the_released_layout(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {*BASE_FILES.values(), RETARGETING_FILE, CONFIG_FILE}
    small = torch.load(folder / RETARGETING_FILE, weights_only=True)
    assert set(small) == {"retarget_shoulder", "retarget_mouth", "retarget_eye"}


def test_released_subfolders_and_data_parallel_prefixes_load(folder: Path, expected, tmp_path) -> None:
    released = tmp_path / "released"
    for name in BASE_FILES.values():
        state = torch.load(folder / name, weights_only=True)
        (released / "base_models").mkdir(parents=True, exist_ok=True)
        torch.save({f"module.{key}": value for key, value in state.items()}, released / "base_models" / name)
    (released / "retargeting_models").mkdir()
    os.rename(folder / RETARGETING_FILE, released / "retargeting_models" / RETARGETING_FILE)
    restored = LivePortrait.from_pretrained(released, TINY)
    assert all(map(torch.equal, run(restored), expected))


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "motion_extractor.pth").unlink()
    (folder / RETARGETING_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"missing motion_extractor.pth, {RETARGETING_FILE}"):
        LivePortrait.from_pretrained(folder, TINY)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        LivePortrait.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected appearance_feature_extractor\.pth"):
        LivePortrait.from_pretrained(tmp_path)


def test_swapped_network_is_recognised(folder: Path) -> None:
    os.replace(folder / "spade_generator.pth", folder / "warping_module.pth")
    with pytest.raises(CheckpointError, match=r"missing spade_generator\.pth"):
        LivePortrait.from_pretrained(folder, TINY)
    torch.save(torch.load(folder / "warping_module.pth", weights_only=True), folder / "spade_generator.pth")
    with pytest.raises(CheckpointError, match=r"warping_module.pth: .*its keys are those of the generator network"):
        LivePortrait.from_pretrained(folder, TINY)


def test_other_size_lists_shapes(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"first\.conv\.weight is \[8, 3, 3, 3\], expected \[64, 3, 3, 3\]"):
        LivePortrait.from_pretrained(folder, ModelConfig())
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"need .*/weights/model_config\.json, which is missing"):
        LivePortrait.from_pretrained(folder)


def test_other_sizes_are_read_with_the_weights(folder: Path, portrait, tmp_path) -> None:
    file = tmp_path / "all.safetensors"
    portrait.save(file)
    for path in (folder, file):
        restored = LivePortrait.from_pretrained(path)
        assert restored.config == TINY
        assert torch.equal(restored.generator.fc.weight, portrait.generator.fc.weight)
    for text, words in [
        ('{"image_size": 64, "sise": 3}', "sise"),
        ('{"image_size": "64"}', "image_size is '64', expected a whole number"),
        ('{"backbone_depths": 3}', "backbone_depths is 3, expected a list of whole numbers"),
        ("[64]", "expected an object"),
    ]:
        (folder / CONFIG_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=rf"model_config\.json: cannot be read as sizes .*{words}"):
            LivePortrait.from_pretrained(folder)


def test_a_download_of_the_released_repository_is_a_folder_of_weights(folder: Path, tmp_path: Path) -> None:
    """Which has the files two folders down, and another model beside them."""
    download = tmp_path / "download"
    for name in RELEASED_FILES:
        for place in ("liveportrait", "liveportrait_animals"):
            part = "retargeting_models" if name == RETARGETING_FILE else "base_models"
            (download / place / part).mkdir(parents=True, exist_ok=True)
            if place == "liveportrait":
                os.rename(folder / name, download / place / part / name)
            else:
                (download / place / part / name).write_bytes(b"of animals")
    os.rename(folder / CONFIG_FILE, download / CONFIG_FILE)
    assert all(network.status == "complete" for network in inspect_weights(download).networks)


def test_one_file_is_read_with_the_sizes_that_lie_with_it(folder: Path, portrait, monkeypatch) -> None:
    def status(path: Path, name: str) -> str:
        return {network.name: network.status for network in inspect_weights(path).networks}[name]

    assert status(folder / "motion_extractor.pth", "motion") == "complete"
    (folder / "base_models").mkdir()
    os.rename(folder / "warping_module.pth", folder / "base_models" / "warping_module.pth")
    assert status(folder / "base_models" / "warping_module.pth", "warping") == "complete"
    monkeypatch.chdir(folder)
    assert status(Path("motion_extractor.pth"), "motion") == "complete"

    state = {
        f"{name}.{key}": value for name, part in portrait.networks().items() for key, value in part.state_dict().items()
    }
    save_file(state, folder / "all.safetensors")  # without a word on sizes
    assert LivePortrait.from_pretrained(folder / "all.safetensors").config == TINY


def test_a_file_of_published_sizes_is_not_read_with_those_of_others(folder: Path) -> None:
    with torch.device("meta"):
        published = LivePortrait()
    published.to_empty(device="cpu").save(folder / "all.safetensors")
    assert read_config(folder / "all.safetensors") == ModelConfig()
    assert read_config(folder) == TINY


def test_released_files_do_not_take_their_sizes_from_a_file_beside_them(folder: Path, portrait) -> None:
    (folder / CONFIG_FILE).unlink()
    portrait.save(folder / "all.safetensors")
    assert read_config(folder) == ModelConfig()


def test_missing_and_unexpected_keys_are_listed(folder: Path) -> None:
    file = folder / "appearance_feature_extractor.pth"
    state = torch.load(file, weights_only=True)
    state["third.weight"] = state.pop("second.weight")
    torch.save(state, file)
    message = r"1 missing keys \(second\.weight\); 1 unexpected keys \(third\.weight\)"
    with pytest.raises(CheckpointError, match=message):
        LivePortrait.from_pretrained(folder, TINY)


def test_values_that_are_not_finite(folder: Path) -> None:
    file = folder / "motion_extractor.pth"
    state = torch.load(file, weights_only=True)
    key = next(iter(state))
    state[key].view(-1)[3] = torch.nan
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=rf"motion_extractor\.pth: {key} holds values that are not finite"):
        LivePortrait.from_pretrained(folder)
    report = inspect_weights(folder)
    assert not report.complete
    assert f"{file}: {key} holds values that are not finite: the file is damaged\n" in format_report(report)


def test_damaged_file(folder: Path) -> None:
    file = folder / "motion_extractor.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"motion_extractor\.pth: cannot be read as PyTorch weights"):
        LivePortrait.from_pretrained(folder, TINY)


class Bomb:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "write", [lambda data, file: torch.save(data, file), lambda d, f: f.write_bytes(pickle.dumps(d))]
)
def test_malicious_file_runs_nothing(write, folder: Path, tmp_path) -> None:
    target = tmp_path / "owned"
    write({"first.conv.weight": Bomb(target)}, folder / "appearance_feature_extractor.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
        LivePortrait.from_pretrained(folder, TINY)
    assert "weights_only" not in str(caught.value)
    assert not target.exists()


def test_failed_write_leaves_the_old_file(folder: Path, portrait, monkeypatch) -> None:
    before = (folder / "motion_extractor.pth").read_bytes()

    def fail(state: dict, file: str) -> None:
        Path(file).write_bytes(b"half a file")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        portrait.save(folder)
    assert (folder / "motion_extractor.pth").read_bytes() == before
    assert len(list(folder.iterdir())) == len(BASE_FILES) + 2


def test_no_room_for_all_files_leaves_the_weights_that_were_there(folder: Path, portrait, monkeypatch) -> None:
    """New files beside old ones would load without a word, as a model that nobody trained."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save, names = torch.save, []

    def save_some(state: dict, file: str) -> None:
        names.append(file)
        if len(names) > 2:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0")
        save(state, file)

    monkeypatch.setattr(torch, "save", save_some)
    torch.manual_seed(8)
    with pytest.raises(OSError, match=r"warping_module\.pth could not be written: is there room\?"):
        LivePortrait(TINY).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_would_be_read_instead_are_told(folder: Path, portrait) -> None:
    (folder / "base_models").mkdir()
    (folder / "motion_extractor.pth").rename(folder / "base_models" / "motion_extractor.pth")
    with pytest.raises(CheckpointError, match=r"base_models/motion_extractor\.pth would be read instead"):
        portrait.save(folder)
    assert not (folder / "motion_extractor.pth").exists()


def test_released_stitching_and_retargeting_reproduce(models: Path) -> None:
    """Strict loading, and the same numbers as an evaluation with NumPy alone."""
    file = models / "liveportrait" / RETARGETING_FILE
    checkpoint = load_checkpoint(file)
    assert set(checkpoint.networks) == {"stitching", "retarget_eye", "retarget_lip"}
    with torch.device("meta"):
        portrait = LivePortrait()
    rng = np.random.default_rng(0)
    for name, state in checkpoint.networks.items():
        network = getattr(portrait, name)
        network.load_state_dict(state, strict=True, assign=True)
        indices = sorted({int(key.split(".")[1]) for key in state})
        x = rng.uniform(-0.8, 0.8, (5, state["mlp.0.weight"].shape[1]))
        expected = x
        for index in indices:
            weight, bias = (state[f"mlp.{index}.{part}"].double().numpy() for part in ("weight", "bias"))
            expected = expected @ weight.T + bias
            if index != indices[-1]:
                expected = np.maximum(expected, 0)
        got = network(torch.from_numpy(x).float()).detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
        assert np.abs(expected).max() > 1e-4, "a trained network corrects something"


def test_appearance_reproduces_the_released_onnx(models: Path) -> None:
    """The released F as ONNX, whose exporter folded some batch norms into convolutions, against ours."""
    import onnx
    import onnxruntime

    file = models / "liveportrait" / "appearance_feature_extractor.onnx"
    graph = onnx.load(file).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = AppearanceExtractor(ModelConfig()).state_dict()
    for key in state:
        if key.endswith(("norm.running_var", "norm2.running_var", "norm.weight", "norm2.weight")):
            state[key].fill_(1.0)  # folded away: what is left of it is the identity, but for its epsilon
            if key.endswith("running_var"):
                state[key].sub_(1e-5)
    for node in graph.node:
        # Node names end in the module's path: /resblocks_3d/3dr0/conv1/Conv -> resblocks_3d.3dr0.conv1
        if node.op_type not in ("Conv", "BatchNormalization"):
            continue
        module = ".".join(node.name.strip("/").split("/")[:-1])
        parts = ("weight", "bias", "running_mean", "running_var")
        for part, name in zip(parts, node.input[1:], strict=False):
            key = f"{module}.{part}"
            assert state[key].shape == arrays[name].shape, key
            state[key] = torch.from_numpy(arrays[name].copy())
    network = AppearanceExtractor(ModelConfig()).eval()
    network.load_state_dict(state)

    image = np.random.default_rng(0).uniform(0, 1, (1, 3, 256, 256)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"img": image})
    with torch.no_grad():
        got = network(torch.from_numpy(image)).numpy()
    assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()
