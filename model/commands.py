"""Commands of `python -m model`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from model.animation.animating import AnimateOptions
from model.animation.loading import UNTRAINED_NOTICE, NetworkOptions, load_engine
from model.animation.pictures import names_a_still
from model.faces import FacesConfig, load_analyser
from model.keypoints import FaceEdit

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Animate:
    """Animate a still or a video with the motion of a video, a still, or a motion template."""

    source: Path
    """Still or video whose faces will move."""
    driving: Path
    """Video, still, or motion template (.safetensors, released .pkl) whose motion they take."""
    output: Path
    """.mp4, .mov, .webm or .gif; a name without suffix becomes a folder of PNG files. Where a still drives a still,
    also .png, .jpg or .webp."""
    template_output: Path | None = None
    """Also save the driving motion as a template (.safetensors), to use it again without the video."""
    options: Flat[AnimateOptions] = field(default_factory=AnimateOptions)
    networks: Flat[NetworkOptions] = field(default_factory=NetworkOptions)
    faces: FacesConfig = field(default_factory=FacesConfig)

    def run(self) -> None:
        from model.animation.animating import animate
        from model.animation.progress import TerminalReport

        engine = load_engine(self.networks)
        _say_untrained(self.networks)
        report = TerminalReport()
        try:
            result = animate(
                self.source,
                self.driving,
                self.output,
                engine=engine,
                analyser=load_analyser(self.faces),
                options=self.options,
                template_output=self.template_output,
                report=report,
            )
        finally:
            report.close()
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        faces = f"{result.num_faces} face" + ("s" if result.num_faces != 1 else "")
        size = f"{result.width}x{result.height}"
        frames = f"{result.num_frames} frame" + ("s" if result.num_frames != 1 else "")
        rate = "" if names_a_still(self.output) else f"{float(result.fps):.6g} frames/s, "
        print(f"{self.output}: {frames}, {size}, {rate}{faces}")


@dataclass(frozen=True, kw_only=True)
class Retarget:
    """Change pose, eyes, lips and expression of a still by hand."""

    source: Path
    """Still."""
    output: Path
    """.png, .jpg or .webp."""
    edit: Flat[FaceEdit] = field(default_factory=FaceEdit)
    faces_in_source: str = "largest"
    """Faces that change: largest, all, or the number of one (0 is the largest)."""
    stitching: bool = True
    """Correct the key points so that the face can be pasted back without seams."""
    paste_back: bool = True
    """Put the faces back into the picture; otherwise the crop of the largest is written, as the networks make it."""
    networks: Flat[NetworkOptions] = field(default_factory=NetworkOptions)
    faces: FacesConfig = field(default_factory=FacesConfig)

    def run(self) -> None:
        from model.animation.retouching import retarget

        engine = load_engine(self.networks)
        _say_untrained(self.networks)
        retarget(
            self.source,
            self.output,
            self.edit,
            engine=engine,
            analyser=load_analyser(self.faces),
            which=self.faces_in_source,
            stitching=self.stitching,
            paste_back=self.paste_back,
        )
        print(self.output)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what is in a checkpoint: networks, parameters, FLOPs, whether it is complete, which keys differ."""

    weights: tyro.conf.Positional[Path]
    """Folder of released files, one of its files, or a .safetensors file."""

    def run(self) -> int:
        from model.inspect import format_report, inspect_weights

        report = inspect_weights(self.weights)
        print(format_report(report))
        return 0 if report.complete else 1


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a small web page: drop a portrait and a driving video, move sliders, see the result."""

    port: int = 7860
    """Port; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on. The page has no password: leave it on loopback unless the network is yours."""
    networks: Flat[NetworkOptions] = field(default_factory=NetworkOptions)
    faces: FacesConfig = field(default_factory=FacesConfig)

    def run(self) -> int:
        from model.page.server import check_port, serve

        check_port(self.port)
        engine = load_engine(self.networks)
        _say_untrained(self.networks)
        return serve(engine, load_analyser(self.faces), host=self.host, port=self.port)


Command = (
    Annotated[Animate, tyro.conf.subcommand("animate")]
    | Annotated[Retarget, tyro.conf.subcommand("retarget")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
)


def _say_untrained(networks: NetworkOptions) -> None:
    if networks.untrained:
        print(UNTRAINED_NOTICE, file=sys.stderr)
