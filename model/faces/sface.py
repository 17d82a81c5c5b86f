"""SFace identity embedding on ONNX Runtime: 128 numbers per face."""

from __future__ import annotations

import numpy as np

from model.faces import FacesConfig, WeightInfo
from model.faces.alignment import arcface_crop
from model.faces.onnx_session import open_session
from model.faces.weights import resolve_weight


class SFaceEmbedder:
    """Embeds aligned faces; the network takes RGB from 0 to 255 and normalises it itself."""

    embedding_size = 128
    same_person_similarity = 0.5  # published 0.363; on real clips: same person >= 0.61, two people <= 0.43

    def __init__(self, config: FacesConfig) -> None:
        weight = resolve_weight("sface", config.weights_dir)
        self.weights = {"embedding": WeightInfo(weight.path.name, weight.sha256, weight.licence)}
        self._session = open_session(weight.path, num_threads=config.num_threads, device=config.device)

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        embeddings = np.zeros((len(points), self.embedding_size), np.float32)
        for index, face in enumerate(points):
            crop = arcface_crop(image, face)
            blob = np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32)
            embeddings[index] = self._session.run(None, {"data": blob})[0][0]
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
