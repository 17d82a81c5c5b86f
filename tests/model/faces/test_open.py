"""The open analyser on a photograph that every installation has, and on real media where they are."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from model import framing
from model.faces import Detections, FacesConfig, eye_openness, lip_openness, load_analyser

ROOT = Path(__file__).resolve().parents[3]


def analyse(analyser, image):
    faces = analyser.detect([image])[0]
    landmarks = analyser.landmarks(image, faces)
    return faces, landmarks, analyser.embed(image, landmarks.points5)


def rotated(image, angle_deg):
    """The picture turned clockwise about its middle."""
    height, width = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), -angle_deg, 1.0), (width, height))


def read_still(path):
    return np.ascontiguousarray(Image.open(path).convert("RGB"))


def test_astronaut(open_analyser, astronaut):
    faces, landmarks, embeddings = analyse(open_analyser, astronaut)
    assert len(faces) == 1
    left, top, right, bottom = faces.boxes[0]
    assert 160 < left < 190
    assert 55 < top < 85
    assert 240 < right < 275
    assert 170 < bottom < 205
    assert faces.scores[0] > 0.85
    right_eye, left_eye, nose, right_mouth, left_mouth = faces.points[0]
    assert right_eye[0] < nose[0] < left_eye[0]
    assert right_mouth[0] < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
    assert landmarks.presence[0] > 0.99
    # The 68 points agree with the detector's 5.
    assert np.abs(landmarks.points5[0] - faces.points[0]).max() < 0.06 * (bottom - top)
    assert embeddings.shape == (1, 128)
    assert np.linalg.norm(embeddings[0]) == pytest.approx(1, abs=1e-6)
    for array in (faces.boxes, faces.scores, faces.points, landmarks.points68, landmarks.pose_deg, embeddings):
        assert array.dtype == np.float32


def test_nothing_in_a_picture_without_faces(open_analyser):
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    faces, landmarks, embeddings = analyse(open_analyser, noise)
    assert len(faces) == len(landmarks) == len(embeddings) == 0
    assert faces.boxes.shape == (0, 4)
    assert landmarks.points68.shape == (0, 68, 2)


def test_mirror_image_turns_yaw_and_roll_around(open_analyser, astronaut):
    image = rotated(astronaut, 8)
    _, landmarks, _ = analyse(open_analyser, image)
    _, mirrored, _ = analyse(open_analyser, np.ascontiguousarray(image[:, ::-1]))
    yaw, pitch, roll = landmarks.pose_deg[0]
    assert abs(roll) > 5
    assert mirrored.pose_deg[0] == pytest.approx([-yaw, pitch, -roll], abs=4)
    # right and left swap too: the eyes' openness of the mirror image is the swapped one
    assert eye_openness(mirrored.points68)[0] == pytest.approx(eye_openness(landmarks.points68)[0, ::-1], abs=0.05)


@pytest.mark.parametrize("angle_deg", [-30, 15, 40])
def test_turned_picture_changes_the_roll_alone(open_analyser, astronaut, angle_deg):
    _, straight, identity = analyse(open_analyser, astronaut)
    _, turned, turned_identity = analyse(open_analyser, rotated(astronaut, angle_deg))
    difference = turned.pose_deg[0] - straight.pose_deg[0]
    assert difference == pytest.approx([0, 0, angle_deg], abs=4)
    assert float(identity[0] @ turned_identity[0]) > 0.9


def test_signs_of_yaw_and_pitch_from_the_nose(open_analyser, astronaut):
    """Yaw is positive where the nose is to the image's right of the face's middle (she looks to the image's left)."""
    _, landmarks, _ = analyse(open_analyser, astronaut)
    points = landmarks.points68[0]
    nose_offset = points[30, 0] - (points[2, 0] + points[14, 0]) / 2
    assert np.sign(nose_offset) == np.sign(landmarks.pose_deg[0, 0])


def test_results_do_not_depend_on_the_batch_or_the_process(open_analyser, open_config, astronaut):
    small = cv2.resize(astronaut, (320, 320), interpolation=cv2.INTER_AREA)
    black = np.zeros((100, 300, 3), np.uint8)
    together = open_analyser.detect([astronaut, black, small, astronaut])
    alone = open_analyser.detect([astronaut])[0]
    for faces in (together[0], together[3]):
        assert np.array_equal(faces.boxes, alone.boxes)
        assert np.array_equal(faces.points, alone.points)
    two = Detections(*(np.concatenate([getattr(alone, name)] * 2) for name in ("boxes", "scores", "points")))
    both, one = open_analyser.landmarks(astronaut, two), open_analyser.landmarks(astronaut, alone)
    assert np.array_equal(both.points68[1], one.points68[0])
    embedding = open_analyser.embed(astronaut, alone.points)
    assert np.array_equal(open_analyser.embed(astronaut, two.points)[1], embedding[0])

    def digest(*arrays):
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()

    script = f"""
import hashlib, numpy as np, skimage.data
from model.faces import FacesConfig, load_analyser
analyser = load_analyser(FacesConfig(weights_dir={open_config.weights_dir!r}))
image = np.ascontiguousarray(skimage.data.astronaut())
faces = analyser.detect([image])[0]
landmarks = analyser.landmarks(image, faces)
arrays = [faces.boxes, faces.points, landmarks.points68, landmarks.pose_deg, analyser.embed(image, faces.points)]
print(hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(alone.boxes, alone.points, one.points68, one.pose_deg, embedding)


def test_frame_filling_face_is_found(open_analyser, astronaut):
    faces = open_analyser.detect([astronaut])[0]
    left, top, right, bottom = faces.boxes[0].round().astype(int)
    for scale in (1, 6):
        tight = cv2.resize(np.ascontiguousarray(astronaut[top:bottom, left:right]), None, fx=scale, fy=scale)
        assert len(open_analyser.detect([tight])[0]) == 1


def test_following_without_detection_stays_on_the_face(open_analyser, astronaut):
    """Landmarks from the landmarks of the frame before agree with landmarks from a detection while the face moves."""
    faces = open_analyser.detect([astronaut])[0]
    size = faces.boxes[0, 3] - faces.boxes[0, 1]
    followed = open_analyser.landmarks(astronaut, faces)
    for step in range(1, 6):
        frame = framing.warp(astronaut, np.array([[1.0, 0, 3 * step], [0, 1, 2 * step]]), 512, border="replicate")
        followed = open_analyser.landmarks(frame, Detections.from_points68(followed.points68))
        detected = open_analyser.landmarks(frame, open_analyser.detect([frame])[0])
        assert np.linalg.norm(followed.points68 - detected.points68, axis=-1).mean() < 0.03 * size


def test_thresholds_of_the_configuration(open_config, open_analyser, astronaut):
    score = open_analyser.detect([astronaut])[0].scores[0]
    strict = load_analyser(dataclasses.replace(open_config, min_detection_score=float(score) + 0.01))
    assert len(strict.detect([astronaut])[0]) == 0
    large = load_analyser(dataclasses.replace(open_config, min_face_size_px=200))
    assert len(large.detect([astronaut])[0]) == 0


def test_wrong_images_and_settings_are_refused(open_analyser, astronaut):
    with pytest.raises(ValueError, match=r"float32 \(512, 512, 3\)"):
        open_analyser.detect([astronaut.astype(np.float32)])
    with pytest.raises(ValueError, match=r"\(512, 512\)"):
        open_analyser.detect([astronaut[..., 0]])
    with pytest.raises(ValueError, match="num_threads"):
        FacesConfig(num_threads=0)


def test_info_names_weights_and_licences(open_analyser):
    info = open_analyser.info
    assert info.name == "open"
    assert set(info.weights) == {"detector", "landmarks", "embedding"}
    assert all(len(weight.sha256) == 64 for weight in info.weights.values())
    assert info.licence == "Apache-2.0; MIT"
    assert info.embedding_size == 128


def test_faces_of_stills(open_analyser, media):
    """Real stills: how many faces, and who is turned or open-mouthed."""
    images = media / "images"
    counts = {"i11": 2, "i23": 5, "i16": 1, "i32": 1, "i02": 1, "i13": 1, "i18": 0}
    stills = {key: read_still(next(images.glob(f"{key}_*"))) for key in [*counts, "i06", "i30"]}
    for key, count in counts.items():
        assert len(open_analyser.detect([stills[key]])[0]) == count, key
    _, pearl, _ = analyse(open_analyser, stills["i06"])  # looks over her shoulder to the image's left
    assert -50 < pearl.pose_deg[0, 0] < -20
    _, laughing, _ = analyse(open_analyser, stills["i32"])
    _, serious, _ = analyse(open_analyser, stills["i02"])
    assert lip_openness(laughing.points68)[0] > 0.2 > 0.1 > lip_openness(serious.points68)[0]


def test_identities_of_videos(open_analyser, media):
    """Embeddings of one person agree, those of two do not; closed eyes measure smaller than open ones."""
    import av

    people = {}
    for key, times in {"v01": (0, 60, 180, 300), "v13": (0, 100, 300), "v19": (0, 60, 120)}.items():
        path = next((media / "videos").glob(f"{key}_*"))
        with av.open(str(path)) as container:
            frames = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in times
            ]
        found = open_analyser.detect(frames)
        assert all(len(faces) == 1 for faces in found), key
        people[key] = np.concatenate(
            [open_analyser.embed(frame, faces.points) for frame, faces in zip(frames, found, strict=True)]
        )
    threshold = open_analyser.info.same_person_similarity
    for key, embeddings in people.items():
        assert (embeddings @ embeddings.T).min() > threshold + 0.1, key
        others = np.concatenate([other for name, other in people.items() if name != key])
        assert (embeddings @ others.T).max() < threshold + 0.1, key
