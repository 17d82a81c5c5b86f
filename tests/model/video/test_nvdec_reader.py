"""What a GPU decodes is what the CPU decodes. Without a GPU, all that comes after it, and that its want is told."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from model.video import VideoError, nvdec_reader, open_video, reading, require_decoder
from model.video.nvdec_reader import NvdecReader
from model.video.pyav_reader import PyavReader

AS_GPUS_GIVE = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}
EXACT = {"h264", "hevc", "vp8", "vp9"}


def _has_gpu() -> bool:
    try:
        require_decoder("nvdec")
    except ValueError:
        return False
    return True


HAS_GPU = _has_gpu()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the formats of pictures, decoded on the CPU, that come as from a GPU."""
    decode, names = PyavReader._decode, []

    def decode_as_gpu(self):
        for pts, picture in decode(self):
            if isinstance(self, NvdecReader) and self.info.codec in EXACT:
                picture = picture.reformat(format=AS_GPUS_GIVE.get(picture.format.name, picture.format.name))
                names.append(picture.format.name)
            yield pts, picture

    monkeypatch.setattr(PyavReader, "_decode", decode_as_gpu)
    monkeypatch.setattr(nvdec_reader, "_accelerator", lambda: None)
    for module in (nvdec_reader, reading):
        monkeypatch.setattr(module, "require_gpu", lambda: None)
    return names


def _frames(path: Path, decoder: str, count: int = 6, **start: float) -> list:
    with open_video(path, decoder) as video:
        frames = itertools.islice(video.frames(**start), count)
        return [(f.index, f.pts, f.sketch(96).tobytes(), f.rgb().tobytes(), f.small(99).tobytes()) for f in frames]


def test_pictures_of_a_gpu_become_what_the_cpu_gives(media: Path, given: list[str]) -> None:
    for path in sorted((media / "videos").iterdir()):
        for start in ({}, {"start_s": 0.7}):
            assert _frames(path, "nvdec", **start) == _frames(path, "pyav", **start), path.name
    assert set(given) == {"nv12", "yuv444p"}


@pytest.mark.parametrize(
    ("pixel_format", "transfer", "full_range"),
    [("yuv420p10le", 16, False), ("yuv420p10le", 1, False), ("yuvj420p", 1, True)],
)
def test_ten_bits_hdr_and_the_full_range(
    tmp_path: Path, given: list[str], pixel_format: str, transfer: int, full_range: bool
) -> None:
    path = tmp_path / "made.mov"
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"colorprim=bt2020:transfer={transfer}:colormatrix=bt709:fullrange={int(full_range)}"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 1024, 640, pixel_format
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        for number in range(8):
            values = np.random.default_rng(number).integers(0, 65536, (40, 64, 3), np.uint16)
            picture = av.VideoFrame.from_ndarray(values.repeat(16, 0).repeat(16, 1), format="rgb48le")
            picture = picture.reformat(format=pixel_format)
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with open_video(path) as video:
        assert video.info.is_hdr == (transfer == 16)
        assert video.info.pix_fmt == pixel_format
    assert _frames(path, "nvdec", 8) == _frames(path, "pyav", 8)
    assert set(given) == {AS_GPUS_GIVE[pixel_format]}


def test_other_codecs_stay_on_the_cpu(media: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec_reader, "_accelerator", lambda: pytest.fail("MPEG-4 is not decoded to the same bits"))
    path = media / "videos/v19_older_woman_mpeg4.mp4"
    assert _frames(path, "nvdec", 2) == _frames(path, "pyav", 2)


def test_a_gpu_that_refuses_a_file_is_not_the_files_fault(
    media: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the next run tries it again."""

    def refuse(source, accelerator):
        raise VideoError("not_a_video", "no video that FFmpeg can read") from OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(nvdec_reader, "open_container", refuse)
    with pytest.raises(OSError, match="the GPU does not take it") as told:
        open_video(media / "videos/v01_woman_plainwall_512_30fps_audio.mp4", "nvdec")
    assert told.value.errno == errno.ENOMEM


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_it_is_said(media: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder is nvdec, but no video can be decoded on a GPU here: .* pyav"):
        open_video(media / "videos/v01_woman_plainwall_512_30fps_audio.mp4", "nvdec")


def test_a_gpu_that_computes_and_does_not_decode_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is given no video: FFmpeg decodes on the CPU then, and tells nobody."""
    decode, opened = nvdec_reader._format_of_decoded, []
    cuda = SimpleNamespace(create=lambda codec: opened.append(codec.name) or "CUDA")
    monkeypatch.setattr(nvdec_reader, "_accelerator", lambda: cuda)
    monkeypatch.setattr(nvdec_reader, "_format_of_decoded", lambda _: decode(None))
    with pytest.raises(
        ValueError, match=r"no video can be decoded on a GPU here: .* \(CUDA is here, and NVDEC is not\)"
    ):
        nvdec_reader.require_gpu.__wrapped__()
    assert opened == ["h264"]
    monkeypatch.setattr(nvdec_reader, "_format_of_decoded", lambda _: AS_GPUS_GIVE[decode(None)])
    assert nvdec_reader.require_gpu.__wrapped__() == "CUDA"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU that decodes video")
def test_a_gpu_decodes_to_the_same_bits(media: Path) -> None:
    for path in sorted((media / "videos").iterdir()):
        for start in ({}, {"start_s": 0.7}):
            assert _frames(path, "nvdec", 50, **start) == _frames(path, "pyav", 50, **start), path.name
