"""The parts of an insightface model pack: SCRFD, 2d106 and 1k3d68 landmarks, ArcFace. Research licence.

A pack is a folder ROOT/models/PACK of ONNX files, as the `insightface` package downloads them. Nothing is downloaded
here: the licence of the weights has to be a person's decision.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# insightface imports matplotlib and albumentations where they are installed; both may warn about their own affairs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from insightface.app import FaceAnalysis
    from insightface.app.common import Face
    from insightface.model_zoo import model_zoo

import numpy as np

from model import framing
from model.faces import Detections, FacesConfig, Landmarks, WeightInfo
from model.faces.alignment import arcface_crop, letterbox, upright_square
from model.faces.onnx_session import execution_providers, require_provider, session_options
from model.faces.pose import euler_deg, fit_rotation, points68_pose_deg
from model.faces.schemes import points68_from_points106

logger = logging.getLogger(__name__)

LICENCE = "InsightFace model licence: non-commercial research only"

# insightface's name of a task -> our part, the role of its weights, and how packs usually call the file.
_DETECTION, _LANDMARKS, _POSE, _RECOGNITION = "detection", "landmark_2d_106", "landmark_3d_68", "recognition"
_TASK_OF_PART = {"detector": _DETECTION, "landmarker": _LANDMARKS, "embedder": _RECOGNITION}
_FILE_OF_TASK = {_DETECTION: "det_10g.onnx", _LANDMARKS: "2d106det.onnx", _RECOGNITION: "w600k_r50.onnx"}
_LETTERBOX_BORDER = 0.1  # SCRFD misses faces that fill the picture to its edge
_CROP_SCALE = 1.5  # landmark networks see 1.5 times the box, as they were trained


def load_pack_parts(config: FacesConfig, parts: Sequence[str]) -> dict[str, object]:
    """The named parts (detector, landmarker, embedder) of the configured pack.

    Raises ValueError when the pack is missing or empty, or lacks one of the parts.
    """
    folder = _pack_folder(config)
    tasks = [_TASK_OF_PART[part] for part in parts]
    models = _load_models(folder, config, [*tasks, *([_POSE] if "landmarker" in parts else [])])
    for part, task in zip(parts, tasks, strict=True):
        if task not in models:
            raise ValueError(
                f"insightface pack {config.pack!r} in {folder} has no {part} (task {task}, usually "
                f"{_FILE_OF_TASK[task]}); it holds {', '.join(sorted(models)) or 'none of the parts asked for'}. "
                f'Use a full pack such as buffalo_l, or let the open analyser supply the part: {part} = "open"'
            )
    _announce_licence(config.pack)
    built: dict[str, object] = {}
    if "detector" in parts:
        built["detector"] = ScrfdDetector(models[_DETECTION], config)
    if "landmarker" in parts:
        built["landmarker"] = PackLandmarker(models[_LANDMARKS], models.get(_POSE))
    if "embedder" in parts:
        built["embedder"] = ArcFaceEmbedder(models[_RECOGNITION])
    return built


@functools.cache
def _announce_licence(pack: str) -> None:
    """Say once per process what the weights may be used for."""
    logger.warning("face analyser insightface, pack %s: %s", pack, LICENCE)


def _pack_folder(config: FacesConfig) -> Path:
    folder = Path(config.root).expanduser() / "models" / config.pack
    remedy = (
        f"Their licence is for non-commercial research only; if that fits, download {config.pack}.zip from the "
        f"insightface releases (or run `insightface-cli model.download {config.pack}`) and unzip its ONNX files into "
        f"{folder}. The open analyser needs none of this: --faces.analyser open"
    )
    if not folder.is_dir():
        raise ValueError(f"insightface pack {config.pack!r} is not at {folder}. {remedy}")
    if not any(folder.glob("*.onnx")):
        raise ValueError(f"insightface pack folder {folder} holds no .onnx file. {remedy}")
    return folder


def _load_models(folder: Path, config: FacesConfig, tasks: Sequence[str]) -> dict[str, Any]:
    """insightface's models for the tasks that the pack has; threads are bounded, which the package leaves open."""
    options = {
        "sess_options": session_options(config.num_threads),
        "providers": execution_providers(config.device),
    }
    if (folder / "manifest.json").is_file():  # newer packs say themselves which file does what
        models = dict(FaceAnalysis(name=str(folder), allowed_modules=[*tasks, _DETECTION], **options).models)
    else:
        models = _load_files(folder, options, tasks)
    for model in models.values():
        require_provider(model.session, config.device)
    return models


def _load_files(folder: Path, options: dict[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            model = model_zoo.get_model(str(path), **options)
        except Exception as error:
            raise ValueError(f"{path} cannot be loaded by ONNX Runtime ({error}): replace the damaged file") from error
        if model is not None and model.taskname in tasks:
            models.setdefault(model.taskname, model)
    return models


def _weight_info(model) -> WeightInfo:
    path = Path(model.model_file)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightInfo(os.path.join(path.parent.name, path.name), sha256, LICENCE)


class ScrfdDetector:
    """SCRFD: boxes and 5 points."""

    def __init__(self, model, config: FacesConfig) -> None:
        self.weights = {"detector": _weight_info(model)}
        self._model, self._config = model, config
        self._fixed_size = model.static_input_size
        if not model.use_kps:
            raise ValueError(f"{model.model_file} gives no 5 points: use an SCRFD file with key points (det_10g.onnx)")

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: np.ndarray) -> Detections:
        size_px = min(self._fixed_size) if self._fixed_size else self._config.detection_size_px
        height, width = image.shape[:2]
        matrix, canvas_width, canvas_height = letterbox(width, height, size_px=size_px, border=_LETTERBOX_BORDER)
        canvas = framing.warp(image, matrix, self._fixed_size or (canvas_width, canvas_height))
        found, points = self._model.detect(
            np.ascontiguousarray(canvas[..., ::-1]),
            input_size=(canvas.shape[1], canvas.shape[0]),
            det_thresh=self._config.min_detection_score,
        )
        to_image = framing.invert(matrix)
        boxes = framing.transform_points(found[:, :4].reshape(-1, 2, 2), to_image).reshape(-1, 4).astype(np.float32)
        points = framing.transform_points(points.reshape(-1, 5, 2), to_image).astype(np.float32)
        large = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) >= self._config.min_face_size_px
        return Detections(boxes, found[:, 4].astype(np.float32), points)[large]


class PackLandmarker:
    """2d106det for the points, and 1k3d68 for the pose where the pack has it."""

    def __init__(self, points_model, pose_model=None) -> None:
        self.weights = {"landmarks": _weight_info(points_model)}
        if pose_model is not None:
            self.weights["pose"] = _weight_info(pose_model)
        self._points_model, self._pose_model = points_model, pose_model

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        points68 = np.zeros((len(faces), 68, 2), np.float32)
        pose_deg = np.zeros((len(faces), 3), np.float32)
        for index in range(len(faces)):
            points106, _ = self._run(self._points_model, image, faces.boxes[index], faces.points[index])
            points68[index] = points68_from_points106(points106)
            if self._pose_model is None:
                pose_deg[index] = points68_pose_deg(points68[index])
            else:
                points3d, roll = self._run(self._pose_model, image, faces.boxes[index], faces.points[index])
                # Both shapes have x right, y down, z towards the camera.
                pose_deg[index] = euler_deg(fit_rotation(self._pose_model.mean_lmk * (1, -1, 1), points3d * (1, -1, 1)))
                pose_deg[index, 2] += roll
        return Landmarks(points68, np.full(len(faces), np.nan, np.float32), pose_deg)

    def _run(self, model, image: np.ndarray, box: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
        """The model's points, two-dimensional ones in image pixels and three-dimensional ones in its upright crop.

        Also returns the angle by which the crop was turned upright, in degrees. The crop is made here (upright and
        without aliasing) and handed over with the box that makes the package's own crop the identity.
        """
        size_px = model.input_size[0]
        matrix = upright_square(box, points, scale=_CROP_SCALE, size_px=size_px)
        crop = np.ascontiguousarray(framing.warp(image, matrix, size_px)[..., ::-1])
        half = size_px / _CROP_SCALE / 2
        center = size_px / 2
        face = Face(bbox=np.array([center - half, center - half, center + half, center + half]))
        found = model.get(crop, face)
        if found.shape[1] == 3:
            return found.astype(np.float64), float(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))
        return framing.transform_points(found, framing.invert(matrix)), 0.0


class ArcFaceEmbedder:
    """ArcFace identity embedding."""

    same_person_similarity = 0.4  # where published verification results of these networks put the cosine threshold

    def __init__(self, model) -> None:
        self.weights = {"embedding": _weight_info(model)}
        self.embedding_size = int(model.output_shape[1])
        self._model = model

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        embeddings = np.zeros((len(points), self.embedding_size), np.float32)
        for index, face in enumerate(points):
            crop = arcface_crop(image, face, self._model.input_size[0])
            embeddings[index] = self._model.get_feat(np.ascontiguousarray(crop[..., ::-1]))[0]
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
