"""`retarget()`: pose, eyes, lips and expression of a still changed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.animation.pasting import paste_crops
from model.animation.pictures import check_output, load_still, names_a_still, open_clip, save_still
from model.animation.source import Source, still_source
from model.faces import FaceAnalyser
from model.keypoints import FaceEdit, edit_keypoints
from model.video import check_writable

if TYPE_CHECKING:
    from model.inference import InferenceEngine


class EditableStill:
    """A still whose faces were found and looked at once, to be edited again and again."""

    def __init__(
        self,
        picture: np.ndarray,
        engine: InferenceEngine,
        analyser: FaceAnalyser,
        *,
        which: str = "largest",
        name: str = "picture",
    ) -> None:
        """picture: uint8 [H, W, 3]. which: largest, all, or the number of one face. ValueError if there is none."""
        self._picture = picture
        self._engine = engine
        self.source: Source = still_source(picture, engine, analyser, which=which, name=name)
        crops = np.stack([face.crop(picture, 0) for face in self.source.faces])
        self._volumes = [engine.extract_appearance(crop[None]) for crop in crops]

    def edited(self, edit: FaceEdit, *, stitching: bool = True, paste_back: bool = True) -> np.ndarray:
        """The whole picture with edited faces, or only the crop of the first face: uint8 [H, W, 3]."""
        result, placed = self._picture.copy(), []
        for face, volume in zip(self.source.faces, self._volumes, strict=True):
            x_s, x_d = edit_keypoints(face.motion, edit, networks=self._engine.portrait, stitching=stitching)
            crop = self._engine.render(volume, x_s, x_d)[0]
            if not paste_back:
                return crop
            placed.append((crop, face.matrix(0, size_px=crop.shape[0])))
        paste_crops(result, placed)
        return result


def retarget(
    source: str | Path,
    output: str | Path,
    edit: FaceEdit,
    *,
    engine: InferenceEngine,
    analyser: FaceAnalyser,
    which: str = "largest",
    stitching: bool = True,
    paste_back: bool = True,
) -> None:
    """Edit the faces of a still and write it as .png, .jpg or .webp. ValueError with one line."""
    if not names_a_still(output):
        raise ValueError(f"cannot write {output}: expected a name in .png, .jpg, .webp")
    edit.check()
    check_output(output, source)
    check_writable(output)
    if open_clip(source) is not None:
        raise ValueError(f"{source} is a video, and a still is edited here; `animate` takes videos")
    still = EditableStill(load_still(source), engine, analyser, which=which, name=str(source))
    save_still(still.edited(edit, stitching=stitching, paste_back=paste_back), output)
