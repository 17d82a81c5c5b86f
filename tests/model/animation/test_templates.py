"""Templates: ours keep every bit, the published tool's are read, and a pickle can run nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.animation.driving import load_driving
from model.animation.restricted_pickle import UnsafePickleError, load_restricted_pickle
from model.animation.templates import MotionTemplate, euler_angles_deg, load_template, save_template
from model.config import ModelConfig
from model.keypoints import Motion


def _motion(num_frames: int, with_openness: bool = True) -> Motion:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(num_frames, *shape, generator=generator) - 0.5

    openness = {"eye_open": random(2), "lip_open": random(1)} if with_openness else {}
    return Motion(
        pitch=random(1) * 40, yaw=random(1) * 80, roll=random(1) * 60,
        t=random(3), exp=random(21, 3), scale=random(1) + 1.5, kp=random(21, 3), **openness,
    )  # fmt: skip


def _released(motion: Motion, **changes) -> dict:
    frames = [
        {
            "scale": motion.scale[i : i + 1].numpy(),
            "R": motion.rotation[i : i + 1].numpy(),
            "exp": motion.exp[i : i + 1].numpy(),
            "t": motion.t[i : i + 1].numpy(),
            "kp": motion.kp[i : i + 1].numpy(),
            "x_s": motion.keypoints()[i : i + 1].numpy(),
        }
        for i in range(len(motion))
    ]
    eyes, lips = (
        [value[i : i + 1].numpy() for i in range(len(motion))] for value in (motion.eye_open, motion.lip_open)
    )
    return {
        "n_frames": len(motion),
        "output_fps": 25,
        "motion": frames,
        "c_eyes_lst": eyes,
        "c_lip_lst": lips,
    } | changes


def test_template_keeps_every_bit(tmp_path: Path) -> None:
    for with_openness in (True, False):
        template = MotionTemplate(motion=_motion(4, with_openness), fps=Fraction(30000, 1001))
        save_template(template, tmp_path / "motion.safetensors")
        loaded = load_template(tmp_path / "motion.safetensors")
        assert loaded.fps == Fraction(30000, 1001)
        assert loaded.motion.as_dict().keys() == template.motion.as_dict().keys()
        for name, value in template.motion.as_dict().items():
            assert torch.equal(loaded.motion.as_dict()[name], value)
    assert os.listdir(tmp_path) == ["motion.safetensors"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_released_template_is_read(tmp_path: Path, protocol: int) -> None:
    motion = _motion(3)
    path = tmp_path / "motion.pkl"
    path.write_bytes(pickle.dumps(_released(motion), protocol))
    loaded = load_template(path)
    assert loaded.fps == 25
    assert torch.allclose(loaded.motion.rotation, motion.rotation, atol=1e-5)
    assert torch.allclose(loaded.motion.keypoints(), motion.keypoints(), atol=1e-5)
    assert torch.equal(loaded.motion.exp, motion.exp)
    assert torch.equal(loaded.motion.eye_open, motion.eye_open)


def test_older_released_keys_and_old_numpy_names(tmp_path: Path) -> None:
    motion = _motion(2)
    content = _released(motion)
    names = {"scale": "scale", "R": "R_d", "exp": "exp", "t": "t"}  # all that the first templates hold of a frame
    content["motion"] = [{name: frame[key] for key, name in names.items()} for frame in content["motion"]]
    content["c_d_eyes_lst"], content["c_d_lip_lst"] = content.pop("c_eyes_lst"), content.pop("c_lip_lst")
    path = tmp_path / "motion.pkl"
    path.write_bytes(pickle.dumps(content, 3).replace(b"numpy._core.", b"numpy.core."))
    loaded = load_template(path)
    assert torch.allclose(loaded.motion.rotation, motion.rotation, atol=1e-5)
    assert torch.equal(loaded.motion.exp, motion.exp)
    assert torch.equal(loaded.motion.kp, torch.zeros(2, 21, 3))
    assert torch.equal(loaded.motion.lip_open, motion.lip_open)


def test_euler_angles_invert_the_rotation() -> None:
    motion = _motion(50)
    for angle, expected in zip(
        euler_angles_deg(motion.rotation.double().numpy()), (motion.pitch, motion.yaw, motion.roll), strict=True
    ):
        assert np.allclose(angle, expected.numpy(), atol=1e-3)


def test_arrays_of_all_kinds_come_through(tmp_path: Path) -> None:
    content = {
        "c": np.arange(6, dtype=np.int16).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "bool": np.array([True, False]),
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 3)),
        "plain": [1, 2.5, "text", b"bytes", None, True, (1, {2})],
    }
    for protocol in range(6):
        (tmp_path / "content.pkl").write_bytes(pickle.dumps(content, protocol))
        loaded = load_restricted_pickle(tmp_path / "content.pkl")
        assert loaded["plain"] == content["plain"]
        for name in ("c", "f", "big", "bool", "scalar", "empty"):
            assert np.array_equal(loaded[name], content[name])
            assert loaded[name].dtype == content[name].dtype


class _Run:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments) -> None:
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


class _Build:
    """Pickles into an object whose state is set."""

    def __init__(self, kind, state) -> None:
        self._kind, self._state = kind, state

    def __reduce__(self):
        return self._kind, (), self._state


def _attacks(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    attacks = {
        "os.system": pickle.dumps(_Run(os.system, command)),
        "eval": pickle.dumps(_Run(eval, f"open({str(marker)!r}, 'w')")),
        "open": pickle.dumps(_Run(open, str(marker), "w")),
        "getattr": pickle.dumps(_Run(getattr, "x", "upper")),
        "in a template": pickle.dumps(_released(_motion(1), extra=_Run(os.system, command))),
        "numpy memmap": pickle.dumps(_Run(np.memmap, str(marker), "uint8", "w+", 0, 4)),
        "numpy load": pickle.dumps(_Run(np.load, str(marker))),
        "numpy ndarray": pickle.dumps(_Run(np.ndarray, (1 << 40,))),
        "numpy object array": pickle.dumps(np.array([_Run(os.system, command)], dtype=object)),
        "torch": pickle.dumps(torch.zeros(2)),
        "bytes": pickle.dumps(_Run(bytes, 1 << 40)),
        "codecs": b"c_codecs\nlookup\n(S'rot13'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.ctx\x93.",
        "instance": f"(S'{command}'\nios\nsystem\n.".encode(),
        "persistent": b"Pfile\n.",
        "extension": b"\x80\x02\x82\x01.",
        "array of wrong size": pickle.dumps(np.zeros(4)).replace(b"K\x04\x85", b"K\x40\x85"),
    }  # fmt: skip
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.dump([_Build(dict, {"__class__": "x"})])
    attacks["state of a dict"] = stream.getvalue()
    return attacks


class _SharedArray:
    """Pickles into an array; the same bytes are written once, however many arrays they make."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self):
        state = (1, (len(self._data),), np.dtype(np.uint8), False, self._data)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


def _bombs() -> dict[str, bytes]:
    """Small files that unfold to ten million values or a hundred megabytes; more of the same would fill any memory."""
    levels = [b"h%c" % i * 10 for i in range(8)]  # BINGET, ten times
    lists, tuples = (
        empty + b"q\0" + b"".join(before + level + after + b"q%c" % i for i, level in enumerate(levels[:7], 1))
        for empty, before, after in ((b"]", b"0](", b"e"), (b")", b"0(", b"t"))
    )
    late = b"".join(b"]q%c0" % i for i in range(8))  # lists that are filled when they lie in others
    late += b"".join(b"h%c(%be0" % (i, level) for i, level in enumerate(levels[1:])) + b"h\0"
    text = b"c_codecs\nencode\nq\0X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\1"
    return {
        "lists": lists + b".",
        "lists filled late": late + b".",
        "lists as the name of a number type": b"cnumpy\ndtype\n" + late + b"\x85R.",
        "tuples to be hashed": b"}" + tuples + b"K\1s.",
        "a list in itself": b"]q\0" + b"h\0a" * 30 + b".",
        "memo": b"}r" + struct.pack("<I", 1 << 24) + b".",
        "memo as text": b"}p16777216\n.",
        "texts to be encoded": text + b"](" + b"h\0h\1\x85R" * 1000 + b"e.",
        "arrays of the same bytes": pickle.dumps([_SharedArray(data) for data in [bytes(100_000)] * 1000]),
    }


@pytest.mark.parametrize("name", _bombs())
def test_small_files_do_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "template.pkl"
    path.write_bytes(_bombs()[name])
    assert len(_bombs()[name]) < 150_000
    words = "numbers its objects" if name.startswith("memo") else "unfolds to far more|unknown number type"
    with pytest.raises(UnsafePickleError, match=words):
        load_restricted_pickle(path)


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    template = MotionTemplate(motion=_motion(5), fps=Fraction(25))
    twice, half = template.resampled(Fraction(50)), template.resampled(Fraction(25, 2))
    assert torch.equal(twice.motion.yaw, template.motion.yaw.repeat_interleave(2, 0))
    assert torch.equal(half.motion.yaw, template.motion.yaw[[1, 3]])
    path = tmp_path / "MOTION.SAFETENSORS"
    save_template(template, path)
    engine = SimpleNamespace(config=ModelConfig())
    driving = load_driving(path, engine, None, fps=Fraction(50), max_s=0.1)
    assert (len(driving.motion), driving.fps, driving.is_video) == (5, 50, True)


@pytest.mark.parametrize("name", _attacks(Path("marker")))
def test_malicious_pickle_runs_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "template.pkl"
    path.write_bytes(_attacks(marker)[name])
    with pytest.raises(UnsafePickleError, match=r"template\.pkl"):
        load_restricted_pickle(path)
    with pytest.raises(ValueError, match=r"template\.pkl") as caught:
        load_template(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x08__name__U\1xs\x86b.",
        b"\x80\x02cnumpy\ndtype\nN}U\x0c__setstate__c_codecs\nencode\ns\x86b.",
    ],
)
def test_what_a_pickle_names_is_not_changed(tmp_path: Path, content: bytes) -> None:
    """It would last, and spoil the files that are read afterwards."""
    (tmp_path / "template.pkl").write_bytes(content)
    with pytest.raises(UnsafePickleError, match="changes what it names"):
        load_restricted_pickle(tmp_path / "template.pkl")


def test_the_attacks_would_work_on_an_ordinary_reader(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(_attacks(marker)["os.system"])
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"motion": []}),
        pickle.dumps({"motion": [{}]}),
    ],
)
def test_files_that_are_no_templates(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "template.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"template\.pkl"):
        load_template(path)


def test_damaged_templates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such motion template"):
        load_template(tmp_path / "absent.safetensors")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected \.safetensors or \.pkl"):
        load_template(tmp_path / "a.txt")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_template(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is it a checkpoint"):
        load_template(path)
    fields = _motion(2).as_dict()
    for broken, metadata, message in [
        (fields | {"exp": torch.full((2, 21, 3), torch.nan)}, {"fps": "25"}, "not finite"),
        (fields, {"fps": "1/0"}, "makes no sense"),
        ({name: value for name, value in fields.items() if name != "kp"}, {"fps": "25"}, "missing"),
        (fields | {"t": torch.zeros(3, 3)}, {"fps": "25"}, "shape"),
        ({name: value[:0] for name, value in fields.items()}, {"fps": "25"}, "no frames"),
    ]:
        save_file(
            {k: v.contiguous() for k, v in broken.items()}, path, metadata={"format": "portrait-motion-1"} | metadata
        )
        with pytest.raises(ValueError, match=message):
            load_template(path)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save_template(MotionTemplate(motion=_motion(1), fps=Fraction(25)), tmp_path / "a.pkl")
