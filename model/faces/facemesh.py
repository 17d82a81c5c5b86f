"""MediaPipe FaceMesh on LiteRT: 468 points in three dimensions, whether there is a face, and pose."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from model import framing
from model.faces import Detections, FacesConfig, Landmarks, WeightInfo
from model.faces.alignment import roll_deg, upright_square
from model.faces.pose import mesh_pose_deg
from model.faces.schemes import points5_from_points68, points68_from_mesh
from model.faces.weights import resolve_weight

SIZE_PX = 192
CROP_SCALE = 1.5
NUM_VERTICES = 468
# The detector's points lose the roll of faces that lie more than about 20 degrees askew, and the mesh suffers from a
# crop that is not upright. Where the mesh says so, it is computed again in a crop around itself.
_MAX_CROP_ROLL_DEG = 8.0
_MAX_PASSES = 4


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Hold back what native code writes to stderr; LiteRT greets from every worker and has no switch for it.

    Errors still arrive: the interpreter raises them.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # no stderr, nothing to hold back
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


class FaceMeshLandmarker:
    """Landmarks of faces in upright crops of 1.5 times the detected box."""

    def __init__(self, config: FacesConfig) -> None:
        from ai_edge_litert.interpreter import Interpreter

        weight = resolve_weight("facemesh", config.weights_dir)
        self.weights = {"landmarks": WeightInfo(weight.path.name, weight.sha256, weight.licence)}
        with _without_native_messages():
            self._interpreter = Interpreter(model_path=str(weight.path), num_threads=config.num_threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {int(np.prod(row["shape"])): row["index"] for row in self._interpreter.get_output_details()}
        self._mesh_output, self._presence_output = outputs[NUM_VERTICES * 3], outputs[1]

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        num_faces = len(faces)
        points68 = np.zeros((num_faces, 68, 2), np.float32)
        presence = np.zeros(num_faces, np.float32)
        pose_deg = np.zeros((num_faces, 3), np.float32)
        for index in range(num_faces):
            mesh, presence[index] = self.mesh(image, faces.boxes[index], faces.points[index])
            points68[index] = points68_from_mesh(mesh)[:, :2]
            pose_deg[index] = mesh_pose_deg(mesh)
        return Landmarks(points68, presence, pose_deg)

    def mesh(self, image: np.ndarray, box: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
        """One face: vertices float64 [468, 3] in image pixels (z away from the camera), probability of a face."""
        for _ in range(_MAX_PASSES):
            mesh, presence, crop_angle_deg = self._mesh_in_crop(image, box, points)
            points68 = points68_from_mesh(mesh)[:, :2]
            turned = roll_deg(points5_from_points68(points68)) - crop_angle_deg
            if presence < 0.5 or abs((turned + 180) % 360 - 180) <= _MAX_CROP_ROLL_DEG:
                break
            followed = Detections.from_points68(points68[None])
            box, points = followed.boxes[0], followed.points[0]
        return mesh, presence

    def _mesh_in_crop(self, image: np.ndarray, box: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float, float]:
        """One pass: the mesh, the probability of a face, and by how many degrees the crop was turned upright."""
        matrix = upright_square(box, points, scale=CROP_SCALE, size_px=SIZE_PX)
        crop = framing.warp(image, matrix, SIZE_PX)
        self._interpreter.set_tensor(self._input, crop[None].astype(np.float32) / np.float32(255))
        self._interpreter.invoke()
        mesh = self._interpreter.get_tensor(self._mesh_output).reshape(NUM_VERTICES, 3).astype(np.float64)
        logit = float(self._interpreter.get_tensor(self._presence_output).ravel()[0])
        to_image = framing.invert(matrix)
        zoom = np.sqrt(np.linalg.det(to_image[:2, :2]))
        # Vertices are continuous coordinates (0 is a pixel's edge), image positions count from pixel centres.
        vertices = framing.transform_points(mesh[:, :2] - 0.5, to_image)
        mesh = np.concatenate([vertices, mesh[:, 2:] * zoom], axis=1)
        return mesh, 1 / (1 + np.exp(-logit)), float(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))
