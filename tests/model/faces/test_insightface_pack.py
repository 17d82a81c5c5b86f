"""insightface packs: real SCRFD where it is, and generated networks with the signatures of a pack's other files.

The generated landmark network answers with the centre of brightness of its crop, the generated recognition network with
its crop's colours, so that the way into and out of the crops is what these tests measure.
"""

from __future__ import annotations

import logging
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from model.faces import Detections, FacesConfig, load_analyser
from model.faces.pose import euler_deg, rotation_from_euler


def save_network(path, nodes, constants, input_shape, output_shape):
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_2d106(path):
    """[1, 3, 192, 192] -> 212: all 106 points at the centre of brightness, in the network's units (-1 to 1)."""
    axis = (np.arange(192, dtype=np.float32) / 96) - 1
    constants = {
        "x_axis": np.broadcast_to(axis, (192, 192))[None, None].copy(),
        "y_axis": np.broadcast_to(axis[:, None], (192, 192))[None, None].copy(),
        "channel": np.array([1], np.int64),
        "plane": np.array([2, 3], np.int64),
        "dark": np.float32(0.99),
        "copies": np.array([1, 106], np.int64),
        "flat": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Add", ["grey", "dark"], ["weight_raw"]),  # black is -127.5 / 128
        helper.make_node("Relu", ["weight_raw"], ["weight"]),
        helper.make_node("ReduceSum", ["weight", "plane"], ["total"], keepdims=1),
        helper.make_node("Mul", ["weight", "x_axis"], ["wx"]),
        helper.make_node("Mul", ["weight", "y_axis"], ["wy"]),
        helper.make_node("ReduceSum", ["wx", "plane"], ["sx"], keepdims=1),
        helper.make_node("ReduceSum", ["wy", "plane"], ["sy"], keepdims=1),
        helper.make_node("Concat", ["sx", "sy"], ["sxy"], axis=1),
        helper.make_node("Div", ["sxy", "total"], ["xy"]),
        helper.make_node("Reshape", ["xy", "flat"], ["xy_flat"]),
        helper.make_node("Tile", ["xy_flat", "copies"], ["fc1"]),
    ]
    constants.pop("channel")
    save_network(path, nodes, constants, [1, 3, 192, 192], [1, 212])


def save_1k3d68(path, points):
    """[1, 3, 192, 192] -> 3309: 1103 points of which the last 68 are `points` [68, 3], whatever is seen."""
    values = np.concatenate([np.zeros((1035, 3)), points]).astype(np.float32).reshape(1, 3309)
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["values", "nothing"], ["fc1"]),
    ]
    save_network(path, nodes, {"zero": np.float32(0), "values": values}, [1, 3, 192, 192], [1, 3309])


def save_recognition(path):
    """[N, 3, 112, 112] -> 512: the colours of 14 x 14 patches, as many as fit."""
    nodes = [
        helper.make_node("AveragePool", ["data"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["patches"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["fc1"]),
    ]
    constants = {"start": np.array([0]), "end": np.array([512]), "axis": np.array([1])}
    save_network(path, nodes, constants, ["N", 3, 112, 112], ["N", 512])


def mean_shape():
    from insightface.data import get_object

    return get_object("meanshape_68.pkl")


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Packs without a detector: `full` has everything else, `no_pose` no 1k3d68, `points` landmarks only."""
    root = tmp_path_factory.mktemp("insightface")
    turned = mean_shape() * (1, -1, 1) @ rotation_from_euler(20, -10, 0).T * (1, -1, 1)
    for name in ("full", "no_pose", "points"):
        (root / "models" / name).mkdir(parents=True)
        save_2d106(root / "models" / name / "2d106det.onnx")
    for name in ("full", "no_pose"):
        save_recognition(root / "models" / name / "w600k_r50.onnx")
    save_1k3d68(root / "models" / "full" / "1k3d68.onnx", turned)
    return root


@pytest.fixture(scope="module")
def pack_config(packs, open_config, open_analyser):
    return FacesConfig(
        analyser="insightface", pack="full", root=str(packs), detector="open", weights_dir=open_config.weights_dir
    )


@pytest.fixture(scope="module")
def pack_analyser(pack_config):
    return load_analyser(pack_config)


def face_at(center, size=120.0, roll_deg=0.0):
    """A detection with its 5 points turned by the roll."""
    angle = np.radians(roll_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array([[-0.2, -0.2], [0.2, -0.2], [0, 0], [-0.15, 0.2], [0.15, 0.2]]) @ rotation.T * size + center
    box = [center[0] - size / 2, center[1] - size / 2, center[0] + size / 2, center[1] + size / 2]
    return Detections(np.array([box], np.float32), np.ones(1, np.float32), points[None].astype(np.float32))


@pytest.mark.parametrize("roll_deg", [0, 35, -70])
def test_points_come_back_to_the_image(pack_analyser, roll_deg):
    """A bright spot off the middle of a tilted face is found where it is in the image."""
    image = np.zeros((400, 500, 3), np.uint8)
    image[148:157, 268:279] = 255  # centre (273, 152)
    landmarks = pack_analyser.landmarks(image, face_at((250, 170), roll_deg=roll_deg))
    assert landmarks.points68.shape == (1, 68, 2)
    assert np.abs(landmarks.points68[0] - (273, 152)).max() < 0.3
    assert np.isnan(landmarks.presence[0])


def test_pose_comes_from_the_three_dimensional_network(pack_analyser):
    image = np.full((400, 500, 3), 90, np.uint8)
    faces = face_at((250, 170), roll_deg=25)
    assert pack_analyser.landmarks(image, faces).pose_deg[0] == pytest.approx([20, -10, 25], abs=0.5)
    assert "pose" in pack_analyser.info.weights


def test_embeddings_see_the_aligned_face(pack_analyser):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (40, 50, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    faces = face_at((250, 170), size=160)
    embedding = pack_analyser.embed(image, faces.points)[0]
    assert embedding.shape == (512,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    # red comes first: insightface takes BGR and turns it around, we give RGB
    red = np.zeros_like(image)
    red[..., 0] = 255
    red_embedding = pack_analyser.embed(red, faces.points)[0]
    assert red_embedding[:196].min() > 0 > red_embedding[196:].max()
    # turning image and points together changes nothing but the sampling
    turned = np.ascontiguousarray(np.rot90(image))
    points = np.stack([faces.points[..., 1], image.shape[1] - 1 - faces.points[..., 0]], axis=-1)
    assert float(embedding @ pack_analyser.embed(turned, points)[0]) > 0.999


def test_pack_without_pose_network_takes_the_pose_from_points(packs, pack_config):
    import dataclasses

    analyser = load_analyser(dataclasses.replace(pack_config, pack="no_pose"))
    assert "pose" not in analyser.info.weights
    assert analyser.landmarks(np.full((400, 500, 3), 9, np.uint8), face_at((250, 170))).pose_deg.shape == (1, 3)


def test_parts_of_two_analysers_work_together(pack_analyser, astronaut, open_analyser):
    assert pack_analyser.info.name == "insightface/full+open:detector"
    assert "research only" in pack_analyser.info.licence
    assert "MIT" in pack_analyser.info.licence
    assert pack_analyser.info.weights["embedding"].name == "full/w600k_r50.onnx"
    assert pack_analyser.info.embedding_size == 512
    found, expected = pack_analyser.detect([astronaut])[0], open_analyser.detect([astronaut])[0]
    assert np.array_equal(found.boxes, expected.boxes)


def test_research_licence_is_said(packs, pack_config, caplog):
    from model.faces import insightface_pack

    insightface_pack._announce_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        load_analyser(pack_config)
        load_analyser(pack_config)
    assert caplog.text.count("non-commercial research only") == 1


@pytest.mark.parametrize(("missing", "pack"), [("detector", "full"), ("embedder", "points")])
def test_missing_part_is_named(packs, missing, pack):
    other = {"detector": "open"} if missing != "detector" else {"embedder": "open"}
    with pytest.raises(ValueError, match=rf'no {missing} .*{missing} = "open"'):
        load_analyser(FacesConfig(analyser="insightface", pack=pack, root=str(packs), **other))


def test_missing_empty_and_damaged_packs_say_what_to_do(tmp_path):
    config = FacesConfig(analyser="insightface", pack="buffalo_l", root=str(tmp_path))
    folder = tmp_path / "models" / "buffalo_l"
    with pytest.raises(ValueError, match=r"is not at .*buffalo_l\. .*buffalo_l\.zip"):
        load_analyser(config)
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no \.onnx file.*unzip"):
        load_analyser(config)
    (folder / "det_10g.onnx").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"det_10g\.onnx cannot be loaded"):
        load_analyser(config)


@pytest.mark.parametrize("pack", ["scrfd_500m", "scrfd_2.5g"])
def test_scrfd_agrees_with_yunet(models, open_config, open_analyser, astronaut, pack):
    config = FacesConfig(
        analyser="insightface",
        pack=pack,
        root=str(models / "insightface"),
        landmarker="open",
        embedder="open",
        weights_dir=open_config.weights_dir,
    )
    analyser = load_analyser(config)
    num_threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    found, expected = analyser.detect([astronaut])[0], open_analyser.detect([astronaut])[0]
    assert len(found) == len(expected) == 1
    size = expected.boxes[0, 3] - expected.boxes[0, 1]
    assert np.abs(found.points[0] - expected.points[0]).max() < 0.1 * size
    # a face that fills its picture is found as well
    left, top, right, bottom = expected.boxes[0].round().astype(int)
    tight = np.ascontiguousarray(np.asarray(Image.fromarray(astronaut[top:bottom, left:right]).resize((600, 800))))
    assert len(analyser.detect([tight])[0]) == 1
    # bit for bit the same again, alone or in company
    again = analyser.detect([tight, astronaut])[1]
    assert np.array_equal(again.boxes, found.boxes)
    if num_threads:
        assert len(os.listdir("/proc/self/task")) <= num_threads


def test_rotation_takes_apart_what_it_put_together():
    for angles in [(20, -10, 35), (-60, 5, -80), (0, 0, 0)]:
        assert euler_deg(rotation_from_euler(*angles)) == pytest.approx(angles, abs=1e-4)
