"""Optional face-quality networks, with small generated ones: their score is the mean of the picture they are given."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from curation.quality import load_quality_model
from curation.recipe import CropOptions


@pytest.fixture
def network(tmp_path) -> str:
    """[1, 3, side, side] -> [1, 1]: ten times the mean of the red channel minus that of the blue one."""
    weights = np.array([10.0, 0.0, -10.0], np.float32).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
            helper.make_node("Conv", ["means", "weights"], ["mixed"]),
            helper.make_node("Flatten", ["mixed"], ["score"]),
        ],
        "quality",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    path = tmp_path / "quality.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return str(path)


def face(red: int, blue: int) -> np.ndarray:
    picture = np.zeros((120, 90, 3), np.uint8)
    picture[..., 0], picture[..., 2] = red, blue
    return picture


def test_no_network_is_the_default():
    assert load_quality_model(CropOptions()) is None


def test_onnx_network_gets_scaled_rgb(network):
    score = load_quality_model(CropOptions(quality_model=network, quality_mean=100.0, quality_std=50.0))
    assert score(face(200, 150)) == pytest.approx(10 * (200 - 150) / 50, rel=1e-4)
    assert score(face(0, 0)) == pytest.approx(0.0, abs=1e-4)


def test_picture_has_the_size_that_the_network_wants(network):
    shapes = []
    score = load_quality_model(CropOptions(quality_model=network, quality_size_px=64))
    session = next(c.cell_contents for c in score.__closure__ if hasattr(c.cell_contents, "run"))
    run = session.run
    session.run = lambda names, feeds: (shapes.append([v.shape for v in feeds.values()]), run(names, feeds))[1]
    score(face(1, 2))
    assert shapes == [[(1, 3, 64, 64)]]


def test_opencv_network_prefers_a_sharp_face(models, media):
    path = next((media / "images").glob("i16_*"))
    sharp = np.ascontiguousarray(cv2.resize(cv2.imread(str(path)), (160, 160))[..., ::-1])
    score = load_quality_model(CropOptions(quality_model=str(models / "open/lightqnet-dm100.pb")))
    blurred = cv2.GaussianBlur(sharp, (0, 0), 6)
    assert score(sharp) > score(blurred) + 0.1


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"crop\.quality_model: no such file: .*none\.onnx"):
        load_quality_model(CropOptions(quality_model=str(tmp_path / "none.onnx")))


def test_file_of_an_unknown_kind_is_an_error(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("no network")
    with pytest.raises(ValueError, match=r"OpenCV cannot read model\.txt as a network"):
        load_quality_model(CropOptions(quality_model=str(path)))


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is not None, reason="pyiqa is installed")
def test_pyiqa_is_an_extra():
    with pytest.raises(ValueError, match="needs the package pyiqa: pip install pyiqa"):
        load_quality_model(CropOptions(quality_model="pyiqa:topiq_nr-face"))
