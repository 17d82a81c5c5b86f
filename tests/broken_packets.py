"""Damage in a video, as of a bad disc: packets that a decoder refuses."""

from __future__ import annotations

from pathlib import Path

import av


def break_packets(path: Path, *numbers: int) -> None:
    """Flip a bit of the length that H.264 in MP4 begins a packet with; numbers count in the order of decoding."""
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        data[places[number]] ^= 0x40
    path.write_bytes(data)
