"""Face analysers: detection, dense landmarks with pose, and identity embeddings behind one interface.

    analyser = load_analyser(FacesConfig())
    faces = analyser.detect([image])[0]            # boxes and 5 points
    landmarks = analyser.landmarks(image, faces)   # 68 points, presence, pose
    identity = analyser.embed(image, faces.points)

Images are uint8 [H, W, 3], RGB, contiguous. Positions are pixels of the image given, x to the right, y down. Angles are
degrees: yaw + when the subject's face turns to the image's right, pitch + up, roll + clockwise in the image.

Every image and every face is computed alone, on the configured number of threads, so results do not depend on what
else is in a batch or on the process. Build an analyser in the worker that uses it: sessions do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from model.faces.openness import eye_openness, lip_openness

__all__ = [
    "AnalyserInfo",
    "Detections",
    "FaceAnalyser",
    "FacesConfig",
    "Landmarks",
    "WeightInfo",
    "eye_openness",
    "has_direction",
    "lip_openness",
    "load_analyser",
    "same_person_similarity",
]

AnalyserName = Literal["open", "insightface"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FacesConfig:
    """Which networks look at faces, and how."""

    analyser: AnalyserName = "open"
    """open: YuNet, FaceMesh and SFace, permissive licences. insightface: SCRFD, 2d106 and ArcFace of a local pack,
    research licence."""
    detector: str | None = None
    """Analyser that supplies detection (open, insightface, or `module:Class` for your own); the main one by default."""
    landmarker: str | None = None
    """Analyser that supplies landmarks and pose; likewise."""
    embedder: str | None = None
    """Analyser that supplies identity embeddings; likewise."""
    pack: str = "buffalo_l"
    """Name of the insightface model pack: the folder ROOT/models/PACK."""
    root: str = "~/.insightface"
    """Folder that holds insightface's `models` folder."""
    weights_dir: str | None = None
    """Folder with local weight files of the open analyser, looked at before the cache; for use without a network."""
    detection_size_px: int = 512
    """Longer side of the picture that the detector sees, with a border of a tenth of the picture on each side."""
    min_detection_score: float = 0.6
    """Detections below this score (0 to 1) are dropped."""
    min_face_size_px: float = 0.0
    """Detections whose longer box side is smaller than this, in pixels of the image given, are dropped."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where ONNX networks run; cuda needs the GPU build of ONNX Runtime. FaceMesh always runs on the CPU."""
    num_threads: int = 1
    """Threads of each network. The workers of curation run side by side, so one is right there; an evaluation looks at
    one picture after the other, and takes the machine's cores."""

    def __post_init__(self) -> None:
        if self.detection_size_px < 64:
            raise ValueError(f"detection_size_px is {self.detection_size_px}: expected at least 64, usually 320 to 640")
        if self.num_threads < 1:
            raise ValueError(f"num_threads is {self.num_threads}: expected at least 1")
        if not 0 < self.min_detection_score < 1:
            raise ValueError(f"min_detection_score is {self.min_detection_score}: expected a number between 0 and 1")
        if self.min_face_size_px < 0:
            raise ValueError(f"min_face_size_px is {self.min_face_size_px}: expected 0 or more")
        for part in ("detector", "landmarker", "embedder"):
            supplier = getattr(self, part)
            if supplier not in (None, "open", "insightface") and ":" not in supplier:
                raise ValueError(f"{part} is {supplier!r}: expected open, insightface, or module:Class")


@dataclass(slots=True)
class Detections:
    """The faces of one image, best score first."""

    boxes: np.ndarray
    """float32 [n, 4]: left, top, right, bottom; may reach beyond the image."""
    scores: np.ndarray
    """float32 [n]: 0 to 1."""
    points: np.ndarray
    """float32 [n, 5, 2]: subject's right eye, left eye, nose tip, right and left mouth corner. For an upright face this
    is left to right in the image, the order of ArcFace's template."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index) -> Detections:
        """The faces that a slice, mask or list of indices picks; an integer picks one face, n = 1."""
        if isinstance(index, int | np.integer):
            index = [index]
        return Detections(self.boxes[index], self.scores[index], self.points[index])

    @classmethod
    def empty(cls) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))

    @classmethod
    def from_points68(cls, points68: np.ndarray) -> Detections:
        """Faces where they were in the frame before, to follow them with `landmarks` alone.

        points68: float [n, 68, 2]. Scores are 1. Boxes are made like a detector's: from brows to chin, plus forehead.
        """
        from model.faces.schemes import detections_from_points68

        return detections_from_points68(points68)


@dataclass(slots=True)
class Landmarks:
    """Dense landmarks of the faces of one image."""

    points68: np.ndarray
    """float32 [n, 68, 2]: the iBUG scheme."""
    presence: np.ndarray
    """float32 [n]: probability that there is a face; NaN where the analyser does not say."""
    pose_deg: np.ndarray
    """float32 [n, 3]: yaw, pitch, roll."""

    def __len__(self) -> int:
        return len(self.points68)

    @property
    def points5(self) -> np.ndarray:
        """float32 [n, 5, 2], ordered as `Detections.points`. Better for `embed` than a detector's: steadier, and right
        for faces that lie askew."""
        from model.faces.schemes import points5_from_points68

        return points5_from_points68(self.points68)


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """One weight file in use."""

    name: str
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class AnalyserInfo:
    """What made the numbers; recorded with every track."""

    name: str
    """Name of the main analyser, with the parts that another one supplies: `insightface/buffalo_l+open:landmarker`."""
    licence: str
    """The licences that hold, most restrictive last, separated by '; '."""
    weights: dict[str, WeightInfo]
    """detector, landmarks, embedding (and pose where it has its own network) -> file."""
    embedding_size: int
    same_person_similarity: float
    """Cosine similarity of two embeddings above which they are usually of one person."""


class FaceAnalyser(Protocol):
    """Finds and measures faces. Not thread-safe: one analyser per worker."""

    info: AnalyserInfo

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Faces of each image."""

    def landmarks(self, image: np.ndarray, faces: Detections) -> Landmarks:
        """Dense landmarks and pose of the given faces of one image, in their order."""

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Identity of the faces with the given 5 points float [n, 5, 2]: float32 [n, D] of unit length."""


def has_direction(embedding: np.ndarray) -> bool:
    """Whether an embedding (float [D]) can be compared with others: not so NaN, infinity or nothing but zeros, which
    overflow in half precision gives."""
    return bool(0 < np.linalg.norm(embedding.astype(np.float64)) < np.inf)


def load_analyser(config: FacesConfig) -> FaceAnalyser:
    """Load the networks that the configuration names; fetches open weights on the first use of a machine."""
    from model.faces.assembly import assemble_analyser

    return assemble_analyser(config)


def same_person_similarity(config: FacesConfig) -> float:
    """What `load_analyser(config).info` says of it, without loading a network."""
    from model.faces.assembly import embedder_class

    return embedder_class(config).same_person_similarity
