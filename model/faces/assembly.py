"""Puts an analyser together from the parts that a configuration names."""

from __future__ import annotations

import importlib
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
    suppliers = _suppliers(config)
    parts = {}
    if of_pack := [part for part, supplier in suppliers.items() if supplier == "insightface"]:
        from model.faces.insightface_pack import load_pack_parts

        parts |= load_pack_parts(config, of_pack)
    for part, supplier in suppliers.items():
        if supplier == "open":
            parts[part] = _load_open_part(config, part)
        elif supplier != "insightface":
            parts[part] = _load_class(supplier)(config)

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


def embedder_class(config: FacesConfig) -> type:
    """The class that embeds faces, without its network."""
    supplier = _suppliers(config)["embedder"]
    if supplier == "open":
        from model.faces.sface import SFaceEmbedder

        return SFaceEmbedder
    if supplier == "insightface":
        from model.faces.insightface_pack import ArcFaceEmbedder

        return ArcFaceEmbedder
    return _load_class(supplier)


def _suppliers(config: FacesConfig) -> dict[str, str]:
    return {part: getattr(config, part) or config.analyser for part in _PARTS}


def _load_class(place: str) -> type:
    """The class of a user's own part, from `module:Class`.

    It is built with the FacesConfig and has the methods of its part in `FaceAnalyser`, and `weights`: dict of role to
    WeightInfo; an embedder also `embedding_size` and `same_person_similarity`.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load the face analyser's part {place!r}: {error}") from error


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
