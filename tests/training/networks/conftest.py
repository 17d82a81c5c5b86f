"""The faces of the losses' tests serve here too."""

from tests.training.losses.conftest import face_landmarks, real_faces, sface_folder

__all__ = ["face_landmarks", "real_faces", "sface_folder"]
