"""Puts an analyser together from the parts that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.faces import AnalyserInfo, Detections, FacesConfig, Landmarks

_PARTS = ("detector", "landmarker", "embedder")


class AssembledAnalyser:
    """A detector, a landmarker and an embedder that act as one; see `model.faces.FaceAnalyser`."""

    def __init__(self, detector, landmarker, embedder, info: AnalyserInfo) -> None:
        self._detector, self._landmarker, self._embedder = detector, landmarker, embedder
        self.info = info

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        for image in images:
            _check_image(image)
        return self._detector.detect(images)

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        _check_image(image)
        return self._landmarker.landmarks(image, faces)

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        _check_image(image)
        return self._embedder.embed(image, np.asarray(points, np.float32).reshape(-1, 5, 2))


def assemble_analyser(config: FacesConfig) -> AssembledAnalyser:
    """Build the parts, each from the analyser that supplies it."""
    suppliers = {part: getattr(config, part) or config.analyser for part in _PARTS}
    parts = {}
    if of_pack := [part for part, supplier in suppliers.items() if supplier == "insightface"]:
        from model.faces.insightface_pack import load_pack_parts

        parts |= load_pack_parts(config, of_pack)
    for part, supplier in suppliers.items():
        if supplier == "open":
            parts[part] = _load_open_part(config, part)

    weights = {role: weight for part in _PARTS for role, weight in parts[part].weights.items()}
    licences = sorted({weight.licence for weight in weights.values()}, key=lambda text: ("research" in text, text))
    borrowed = [f"{supplier}:{part}" for part, supplier in suppliers.items() if supplier != config.analyser]
    name = config.analyser if config.analyser == "open" else f"insightface/{config.pack}"
    info = AnalyserInfo(
        name="+".join([name, *borrowed]),
        licence="; ".join(licences),
        weights=weights,
        embedding_size=parts["embedder"].embedding_size,
        same_person_similarity=parts["embedder"].same_person_similarity,
    )
    return AssembledAnalyser(parts["detector"], parts["landmarker"], parts["embedder"], info)


def _load_open_part(config: FacesConfig, part: str):
    if part == "detector":
        from model.faces.yunet import YuNetDetector

        return YuNetDetector(config)
    if part == "landmarker":
        from model.faces.facemesh import FaceMeshLandmarker

        return FaceMeshLandmarker(config)
    from model.faces.sface import SFaceEmbedder

    return SFaceEmbedder(config)


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image of {image.dtype} {image.shape}: expected uint8 [H, W, 3], RGB")
