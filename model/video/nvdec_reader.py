"""The reader on an NVIDIA GPU (NVDEC), through PyAV, to the same bits as on the CPU.

Of H.264, HEVC, VP8 and VP9 every decoder must give the same bits, of a file without damage. All else is decoded on the
CPU: other codecs, interlaced video, and what the GPU cannot decode of these (4:4:4, sizes that are too large), which
FFmpeg notices.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from functools import cache

import av
from av.codec.hwaccel import HWAccel

from model.video.probing import VideoError, VideoInfo, VideoSource, describe_source, open_container
from model.video.pyav_reader import PyavReader

_EXACT_CODECS = frozenset(["h264", "hevc", "vp8", "vp9"])
_PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}
"""What a GPU gives, and the format in which the CPU gives the same values: from there on both ways are one. FFmpeg
converts other formats to RGB with other last bits."""


@cache
def require_gpu() -> HWAccel:
    """What keeps CUDA open in this process, so that each file need not open it again.

    Raises:
        ValueError: there is no GPU that decodes video.
    """
    try:
        cuda = _accelerator().create(av.Codec("h264", "r"))
        if _format_of_decoded(_accelerator()) not in _PLANAR:  # else each file would be decoded on the CPU, unnoticed
            raise NotImplementedError("CUDA is here, and NVDEC is not")
        return cuda
    except (av.FFmpegError, NotImplementedError, VideoError) as error:
        raise ValueError(
            "decoder is nvdec, but no video can be decoded on a GPU here: see that the machine has one, with its driver"
            f" (in a container: NVIDIA_DRIVER_CAPABILITIES=all), or use decoder pyav ({error})"
        ) from error


def _format_of_decoded(accelerator: HWAccel | None) -> str:
    """The pixel format in which a small H.264 video is decoded: the GPU's, or where FFmpeg fell back to the CPU its."""
    file, side_px = io.BytesIO(), 256
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = side_px, side_px, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(side_px, side_px, "yuv420p")))
        output.mux(stream.encode(None))
    with open_container(file, accelerator) as container:
        return next(container.decode(video=0)).format.name


def _accelerator() -> HWAccel:
    return HWAccel("cuda", allow_software_fallback=True, options={"primary_ctx": "1"})


class NvdecReader(PyavReader):
    """Decodes one file on the GPU that CUDA shows first; what is damaged in a picture is not told."""

    decoder = "nvdec"

    def __init__(self, source: VideoSource, info: VideoInfo) -> None:
        require_gpu()
        super().__init__(source, info)

    def _open_container(self) -> av.container.InputContainer:
        if self.info.codec not in _EXACT_CODECS or self.info.is_interlaced:
            return super()._open_container()
        try:
            return open_container(self._source, _accelerator())
        except VideoError as error:  # the file has been probed: it is the GPU that refuses, whose memory may be full
            number = getattr(error.__cause__, "errno", None) or errno.EIO
            raise OSError(number, f"{describe_source(self._source)}: the GPU does not take it: {error}") from error

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        for pts, picture in super()._decode():
            planar = _PLANAR.get(picture.format.name)
            yield pts, picture.reformat(format=planar, threads=1) if planar else picture
