"""The command: `python -m training evaluate --weights runs/base --data DATASET --split test`."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.faces import FacesConfig
from training.evaluation.catalogue import FACE_GROUPS, METRICS, PARTS, Part, check_groups, parts_with_figures

if TYPE_CHECKING:
    from model.inference import InferenceEngine
    from training.evaluation.measuring import Tools
    from training.evaluation.reenactment import CrossMode
    from training.evaluation.selection import Selection

MAX_ASKED = 2.0
"""Openness over width; no eye or mouth opens so far."""
MAX_FACE_THREADS = 8
"""The analysers' networks are too small for more."""
RESULTS_FILE, PAGE_FILE = "evaluation.json", "index.html"


def _faces_alone_on_the_machine() -> FacesConfig:
    """Pictures are looked at one after the other, with nothing beside them. Threads change last bits at most."""
    import joblib

    return FacesConfig(num_threads=min(MAX_FACE_THREADS, joblib.cpu_count(only_physical_cores=True)))


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on a split of a data set: evaluation.json, and a page with pictures."""

    weights: Path
    """A run's folder, an exported folder, the folder of released files, or one .safetensors file."""
    checkpoint: Literal["best", "latest"] = "best"
    """Of a run: best by validation (latest where nothing was validated), or latest."""
    weights_kind: Literal["average", "last"] = "average"
    """Of a run: the moving average, which `export` takes by default, or the weights of the last step."""
    data: str
    """Folder of the data set, or its URL on an object store."""
    split: str = "test"
    """train, val, test, or held_out: the training clips, driven by the frames that the run did not see."""
    held_out_share: float | None = None
    """For held_out: the last share of each training clip's frames; by default what no stage of the run, and no run of
    an export, has seen."""
    output: Path | None = None
    """Folder to write into; evaluation/WEIGHTS-SPLIT in the current folder by default, unless that holds the figures of
    other weights or of another data set."""
    parts: tuple[Part, ...] = PARTS
    """self and cross (reenactment), control (eyes and lips), shoulders (stitching); of these, the ones that have
    figures among --metrics."""
    metrics: tuple[str, ...] = ("all",)
    """all, or some of l1 psnr ssim lpips fid csim aed apd pose gaze openness jitter faces control shoulders."""
    cross: tuple[Literal["relative", "absolute"], ...] = ("relative",)
    """How motion is carried over to another person; each one is a section of the result."""
    max_clips: int | None = None
    """Evaluate this many clips only, of as many people as possible; always the same ones."""
    max_frames: int | None = None
    """Use only this many driving frames of each clip."""
    max_sources: int = 16
    """Sources for the control of eyes and lips, and pairs for the shoulders; spread over the split."""
    eye_sweep: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)
    """Openness of the eyes to ask for, lid distance over eye width; as far as R_eyes is trained by default."""
    lip_sweep: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Openness of the lips to ask for, gap over mouth width; as far as R_lip is trained by default."""
    compare_size_px: int = 256
    """Side at which pictures are compared, as published; the model's own output if that is smaller."""
    lpips_backbone: Path | None = None
    """AlexNet or VGG16 state dict of torchvision's layout; LPIPS is missing without."""
    fid_network: Path | None = None
    """TorchScript or ONNX network from uint8 pictures to features, such as inception-2015-12-05.pt; FID is missing
    without. TorchScript files can hold code: use ones that you trust."""
    seed: int = 0
    """Draws the pairs of people and, with --max-clips, the clips."""
    batch_size: int | None = None
    """Frames that go through the networks at once; what suits the device by default."""
    device: str = "auto"
    """cpu, cuda, or auto for cuda where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the networks; float32, on CUDA without TF32, compares best between machines."""
    num_strips: int = 8
    """Clips that the page shows in pictures, spread from the worst to the best."""
    faces: FacesConfig = field(default_factory=_faces_alone_on_the_machine)
    """Analyser for identity, expression, pose, openness and jitter."""

    def __post_init__(self) -> None:
        for name, least in (("max_clips", 1), ("max_frames", 1), ("max_sources", 1), ("batch_size", 1),
                            ("compare_size_px", 32), ("num_strips", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: expected at least {least}")
        for name in ("eye_sweep", "lip_sweep"):
            asked = getattr(self, name)
            if not asked or not all(0 <= value <= MAX_ASKED for value in asked):
                raise ValueError(f"{name} is {asked}: expected one or more numbers from 0 to {MAX_ASKED:g}")
        if self.held_out_share is not None and self.split != "held_out":
            raise ValueError("--held-out-share is for --split held_out: leave one of them out")

    @property
    def folder(self) -> Path:
        """What is written into."""
        return self.output or Path("evaluation") / f"{self.weights.resolve().name}-{self.split}"

    def main(self) -> int:
        """Evaluate, write, and print the summary. ValueError or OSError with one line for what the user can mend."""
        import torch

        from model.animation.progress import TerminalReport
        from training.evaluation.report import print_summary, write_report

        folder = self.folder
        require_writable(folder)
        report = TerminalReport()
        try:
            results, pictures = evaluate(self, report)
        except torch.OutOfMemoryError as error:
            cause = str(error).split(". ")[0]
            raise OSError(
                f"the device's memory does not hold what goes through the networks at once ({cause}): "
                "use --batch-size 1 or little more, --dtype bfloat16, or --device cpu, which is slow; or wait until "
                "nothing else is on the device"
            ) from error
        finally:
            report.close()
        write_report(folder, results, pictures, num_strips=self.num_strips)
        print_summary(results)
        print(f"figures   {folder / RESULTS_FILE}")
        print(f"pictures  {folder / PAGE_FILE}")
        return 0


def require_writable(folder: Path) -> None:
    """ValueError where no files can be written into a folder, before hours go into what is to be in it."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"--output {folder}: {existing} is a file; expected a folder, or a new name")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output {folder}: nothing can be written into {existing}; choose another folder")


def require_same_subject(folder: Path, weights: dict[str, Any], data: dict[str, Any]) -> None:
    """ValueError where a folder holds figures of other weights or of another data set, which would be lost."""
    try:
        before = json.loads((folder / RESULTS_FILE).read_text())
        is_same = before["weights"]["sha256"] == weights["sha256"]
        is_same &= all(before["data"][key] == data[key] for key in ("name", "recipe_hash"))
        name = f"{before['weights']['name']} ({before['weights']['sha256'][:12]}) on {before['data']['name']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or nothing that could be read
        return
    if not is_same:
        raise ValueError(f"{folder} holds the figures of {name}: give --output another folder, or remove this one")


def parts_to_render(options: Evaluate) -> tuple[Part, ...]:
    """Those of which figures were asked for. ValueError where there is none."""
    parts = parts_with_figures(options.parts, options.metrics)
    if not [part for part in parts if part != "cross" or options.cross]:
        raise ValueError(
            f"nothing to measure: --parts {' '.join(options.parts) or '(none)'} with --metrics "
            f"{' '.join(options.metrics)} and --cross {' '.join(options.cross) or '(none)'} leaves no figure"
        )
    return parts


def require_keypoints(modes: tuple[CrossMode, ...], num_keypoints: int) -> None:
    """ValueError where motion cannot be carried over in one of the ways with so many key points."""
    from training.evaluation.reenactment import animation_options

    for mode in modes:
        try:
            animation_options(mode).check_keypoints(num_keypoints, source_is_video=False)
        except ValueError as error:
            raise ValueError(f"--cross {mode}: {error}; without {mode}, everything else can be measured") from error


def evaluate(options: Evaluate, report) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures (what evaluation.json holds), and by section the objects that hold the pictures."""
    from training.evaluation import results
    from training.evaluation.control import compare_shoulders, sweep_openness
    from training.evaluation.fingerprint import file_hash
    from training.evaluation.reenactment import Reenactor
    from training.evaluation.selection import select_clips
    from training.start import note_other_landmarks

    groups = check_groups(options.metrics)
    parts = parts_to_render(options)
    share = held_out_share(options)
    selection = select_clips(
        options.data, options.split, held_out_share=share, max_clips=options.max_clips, seed=options.seed
    )
    engine, about_model = _load_engine(options)
    about_data = _about_data(selection, share)
    if options.output is None:
        require_same_subject(options.folder, about_model, about_data)
    modes = options.cross if "cross" in parts else ()
    require_keypoints(modes, engine.config.num_keypoints)
    tools = make_tools(options, groups, engine)
    if tools.faces is not None:
        note_other_landmarks(
            options.data,
            options.faces.landmarker or options.faces.analyser,
            "--faces.landmarker {landmarker} judges by the same",
        )
    reenactor = Reenactor(
        engine,
        selection,
        tools,
        batch_size=options.batch_size or engine.batch_size,
        max_frames=options.max_frames,
        seed=options.seed,
        report=report,
    )
    sections, pictures = {}, {}
    if "self" in parts:
        pictures["self"], totals = reenactor.reenact_self()
        sections["self"] = results.section_of_clips("self", pictures["self"], totals, tools)
    for mode in modes:
        name = f"cross_{mode}"
        pictures[name], totals = reenactor.reenact_cross(mode)
        sections[name] = results.section_of_clips("cross", pictures[name], totals, tools)
    if "control" in parts:
        pictures["control"] = []
        if tools.wants("control"):
            asked = {"eye": options.eye_sweep, "lip": options.lip_sweep}
            pictures["control"] = sweep_openness(
                engine, selection, tools, asked=asked, max_sources=options.max_sources, report=report
            )
        sections["control"] = results.section_of_sweeps(pictures["control"], tools)
    if "shoulders" in parts:
        pictures["shoulders"] = compare_shoulders(
            engine, selection, tools, max_pairs=options.max_sources, seed=options.seed, report=report
        )
        sections["shoulders"] = results.section_of_shoulders(pictures["shoulders"])
    found = {
        "format": results.FORMAT_VERSION,
        "weights": about_model,
        "data": about_data,
        "options": _about_options(options, groups, tools.compare_size_px),
        "analyser": _about_analyser(tools),
        "networks": {
            "lpips": tools.lpips.backbone if tools.lpips else None,
            "lpips_sha256": file_hash(options.lpips_backbone) if tools.lpips else None,
            "fid": options.fid_network.name if tools.fid else None,
            "fid_sha256": file_hash(options.fid_network) if tools.fid else None,
        },
        "versions": results.versions(),
        "missing": results.list_missing(sections),
        "definitions": {key: dataclasses.asdict(metric) for key, metric in METRICS.items() if metric.group in groups},
        "sections": sections,
    }
    return found, pictures


def held_out_share(options: Evaluate) -> float:
    """Share of each clip's frames that drive in the split `held_out`; 0 for other splits. ValueError if unknown."""
    if options.split != "held_out":
        return 0.0
    share = options.held_out_share
    if share is None:
        from training.export import known_held_out_share

        share = known_held_out_share(options.weights)
    if share is None or not 0 < share < 1:
        raise ValueError(
            f"{options.weights}: not known which frames were held out ({share = }); give --held-out-share the "
            "data.held_out_share of the training, of several stages the smallest, or choose another --split"
        )
    return share


def _load_engine(options: Evaluate) -> tuple[InferenceEngine, dict[str, Any]]:
    import torch

    from model.cores import take_share_of_cores
    from model.inference import InferenceEngine
    from training.evaluation.fingerprint import about_weights
    from training.export import is_run, load_portrait
    from training.start import note_other_crops

    take_share_of_cores()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = options.dtype != "float32"
    if not is_run(options.weights) and (options.checkpoint, options.weights_kind) != ("best", "average"):
        raise ValueError(f"--checkpoint and --weights-kind are for runs, and {options.weights} is none: leave them out")
    average = options.weights_kind == "average"
    portrait = load_portrait(options.weights, average=average, which=options.checkpoint)
    note_other_crops(options.data, portrait.config, f"--weights {options.weights}")
    engine = InferenceEngine(portrait, device=device, dtype=options.dtype)
    return engine, about_weights(options.weights, portrait, average=average, which=options.checkpoint)


def make_tools(options: Evaluate, groups: tuple[str, ...], engine: InferenceEngine) -> Tools:
    """The measuring tools that were asked for. A file that was named but does not fit is an error; one that was not
    named, or an analyser without weights, makes its figures missing."""
    from model.faces import load_analyser
    from model.faces.weights import WeightsError
    from training.evaluation.faces import FaceReader
    from training.evaluation.fid import FeatureNetwork
    from training.evaluation.lpips import Lpips
    from training.evaluation.measuring import Tools

    size_px = min(options.compare_size_px, engine.config.output_size)
    tools = Tools(groups=groups, compare_size_px=size_px, device=engine.device)
    if "lpips" in groups:
        if options.lpips_backbone:
            tools.lpips = Lpips(options.lpips_backbone).to(engine.device)
        else:
            tools.missing["lpips"] = "no backbone: give --lpips-backbone an AlexNet or VGG16 state dict"
    if "fid" in groups:
        if options.fid_network:
            tools.fid = FeatureNetwork(options.fid_network, engine.device)
        else:
            tools.missing["fid"] = "no feature network: give --fid-network an Inception as TorchScript or ONNX"
    if any(group in groups for group in FACE_GROUPS):
        try:
            tools.faces = FaceReader(load_analyser(options.faces), embed="csim" in groups)
        except WeightsError as error:
            reason = f"no face analyser: {error}"
            tools.missing |= {group: reason for group in FACE_GROUPS if group in groups}
    return tools


def _about_data(selection: Selection, held_out_share: float) -> dict[str, Any]:
    return {
        "name": selection.storage.root.rsplit("/", 1)[-1],
        "recipe_hash": selection.recipe_hash,
        "split": selection.split,
        "held_out_share": held_out_share or None,
        "num_clips": len(selection.videos),
        "num_stills": len(selection.clips) - len(selection.videos),
        "num_identities": selection.num_identities,
    }


def _about_options(options: Evaluate, groups: tuple[str, ...], compare_size_px: int) -> dict[str, Any]:
    """What changes figures, and nothing that names a place on this machine."""
    names = ("parts", "cross", "max_clips", "max_frames", "max_sources", "eye_sweep", "lip_sweep", "seed", "dtype")
    return {
        "metrics": groups,
        "compare_size_px": compare_size_px,
        **{name: getattr(options, name) for name in names},
    }


def _about_analyser(tools: Tools) -> dict[str, Any] | None:
    if tools.faces is None:
        return None
    info = tools.faces.analyser.info
    return {
        "name": info.name,
        "licence": info.licence,
        "weights": {role: {"name": weight.name, "sha256": weight.sha256} for role, weight in info.weights.items()},
    }
