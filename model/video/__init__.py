"""Reading and writing video: probe any file, decode it with PyAV, decord or a GPU to the same bits, encode results."""

from model.video.destination import check_writable, complete_or_absent
from model.video.frame import Frame
from model.video.probing import PacketIndex, VideoError, VideoInfo, index_packets, probe_video
from model.video.reading import DECODERS, open_video, require_decoder
from model.video.writing import VideoWriter, check_destination

__all__ = [
    "DECODERS",
    "Frame",
    "PacketIndex",
    "VideoError",
    "VideoInfo",
    "VideoWriter",
    "check_destination",
    "check_writable",
    "complete_or_absent",
    "index_packets",
    "open_video",
    "probe_video",
    "require_decoder",
]
