"""Weights out of runs: the released files' layout, and whole models to work with."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from manifests.recipes import from_values
from manifests.store import write_bytes_atomically
from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.networks import LivePortrait
from training.base_model import BASE_NETWORKS
from training.checkpoints import CheckpointFolder, read_run, read_tensors

BASE_WEIGHTS = "base_weights"
"""Folder in a run of stage II that holds the model it builds on."""
HELD_OUT_FILE = "held_out.json"
"""Beside weights: which frames their training has not seen."""
_COMMANDS = {
    "stitching": "training stitching",
    "retarget_eye": "training retargeting --part eyes",
    "retarget_lip": "training retargeting --part lip",
}


def is_run(path: Path) -> bool:
    """Whether `path` is the output folder of a training run."""
    return (path / "checkpoints").is_dir()


def load_portrait(path: Path, *, average: bool = True, which: str = "best") -> LivePortrait:
    """The whole model of a run, of an exported or released folder, or of one .safetensors file, in evaluation mode.

    average: of a run, the averaged weights rather than those of the last step. which: "best" by validation (the latest
    where nothing was validated) or "latest". ValueError or FileNotFoundError with one line that says what to do.
    """
    path = Path(path).expanduser()
    if not is_run(path):
        return LivePortrait.from_pretrained(path)
    folder = checkpoint_folder(path, which)
    run, states = read_run(folder), network_states(folder, average=average)
    if (path / BASE_WEIGHTS).is_dir():
        portrait = LivePortrait.from_pretrained(path / BASE_WEIGHTS)
    elif states.keys() >= set(BASE_NETWORKS):
        config = from_values(ModelConfig, run["model"], f"{folder}: model")
        portrait = LivePortrait.untrained(config=config)
    else:
        raise ValueError(
            f"{path} is a run of `training {run['stage']}` and holds no whole model: give a run of `training base`, or "
            "one that builds on it"
        )
    for name, state in states.items():
        getattr(portrait, name).load_state_dict(state)
    portrait.trained = True
    return portrait.eval().requires_grad_(False)


def checkpoint_folder(run: Path, which: str = "best") -> Path:
    """The checkpoint of a run to use. ValueError if it has none."""
    if which not in ("best", "latest"):
        raise ValueError(f"the checkpoint to use must be best or latest; got {which!r}")
    folder = CheckpointFolder(run, keep_last=1, writes=False)
    name = (folder.best_name() if which == "best" else None) or folder.newest_name()
    if name is None:
        raise ValueError(f"{run} has no complete checkpoint yet: train longer, or give another folder")
    return folder.root / name


def known_held_out_share(path: Path) -> float | None:
    """Last share of each training clip's frames that weights have not seen in any of their stages: of a run of stage
    II the smaller one of its own and of its base's. None where that is not known."""
    path = path.expanduser()
    if not is_run(path):
        with suppress(FileNotFoundError, NotADirectoryError):
            return json.loads((path / HELD_OUT_FILE).read_text())["held_out_share"]
        return None
    own = float(read_run(checkpoint_folder(path))["recipe"].get("data.held_out_share", 0.0))
    return _smallest([own, known_held_out_share(path / BASE_WEIGHTS)]) if (path / BASE_WEIGHTS).is_dir() else own


def _smallest(shares: list[float | None]) -> float | None:
    return None if None in shares else min(shares)


def save_portrait(portrait: LivePortrait, output: Path, held_out_share: float | None) -> None:
    """Write weights, and into a folder also what share of frames they have not seen, where that is known."""
    if output.is_dir():
        (output / HELD_OUT_FILE).unlink(missing_ok=True)  # of other weights
    portrait.save(output)
    if output.is_dir() and held_out_share is not None:
        text = json.dumps({"held_out_share": held_out_share})
        write_bytes_atomically(output / HELD_OUT_FILE, f"{text}\n".encode())


def network_states(folder: Path, *, average: bool = True) -> dict[str, dict[str, Tensor]]:
    """State dicts of the networks in a checkpoint by name; averaged ones where they are kept and wanted."""
    states: dict[str, dict[str, Tensor]] = {}
    for kind in ("modules", "ema") if average else ("modules",):
        prefixes = tuple(f"{kind}.{name}." for name in LivePortrait.NETWORKS)
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in read_tensors(folder, prefixes).items():
            _, name, rest = key.split(".", 2)
            found.setdefault(name, {})[rest] = value
        states |= found
    return states


def export(runs: tuple[Path, ...], output: Path, *, average: bool = True, which: str = "best") -> list[str]:
    """Write the model of the first run, with the small networks of further runs of stage II, for `model` and others.

    output: a folder for the released files, or a name that ends in .safetensors. Returns what was taken from where, a
    line each. ValueError when a run of stage II was trained on another base model, or two give the same network.
    """
    if is_run(output):
        raise ValueError(f"--output {output} is the folder of a run: weights go into another, or a .safetensors file")
    first, *others = runs
    portrait = load_portrait(first, average=average, which=which)
    notes = [f"{first}: {_origin(first, which)}"]
    holders: dict[str, Path] = {}
    if is_run(first) and (first / BASE_WEIGHTS).is_dir():
        holders = dict.fromkeys(network_states(checkpoint_folder(first, which)), first)
    for run in others:
        _require_stage_two(run)
        _require_same_base(portrait, run, first, is_default=average and which == "best")
        states = network_states(checkpoint_folder(run, which), average=average)
        if twice := [name for name in states if name in holders]:
            raise ValueError(f"{holders[twice[0]]} and {run} both give {twice[0]}: leave one of them out")
        holders |= dict.fromkeys(states, run)
        for name, state in states.items():
            getattr(portrait, name).load_state_dict(state)
        notes.append(f"{run}: {', '.join(states)} from {_origin(run, which)}")
    save_portrait(portrait, output, _smallest([known_held_out_share(run) for run in runs]))
    has_new_base = is_run(first) and not (first / BASE_WEIGHTS).is_dir()
    return notes + _doubts(portrait, other_base=set(_COMMANDS) - set(holders) if has_new_base else set())


def _doubts(portrait: LivePortrait, *, other_base: set[str]) -> list[str]:
    """A line for each small network whose last layer is still zero, or that was trained on another base; with the
    command that trains it."""
    lines = []
    for name, command in _COMMANDS.items():
        if not any(p.any() for p in [*getattr(portrait, name).parameters()][-2:]):
            lines.append(f"not trained: {name}, which changes nothing yet ({command})")
        elif name in other_base:
            lines.append(f"not trained on this base: {name}, which is as in the weights that it began from ({command})")
    return lines


def _origin(path: Path, which: str) -> str:
    return str(checkpoint_folder(path, which).name) if is_run(path) else "weights as they are"


def _require_stage_two(run: Path) -> None:
    if is_run(run) and (run / BASE_WEIGHTS).is_dir():
        return
    what = (
        f"a run of `training {read_run(checkpoint_folder(run))['stage']}`" if is_run(run) else "no run with checkpoints"
    )
    raise ValueError(
        f"{run} is {what}: expected first a run of `training base` (or weights), after it only runs of `training "
        "stitching` and `training retargeting` (eyes, lip) that build on it"
    )


def _require_same_base(portrait: LivePortrait, run: Path, first: Path, *, is_default: bool) -> None:
    """ValueError where a run of stage II builds on another base than the one that `first` gives.

    is_default: whether these are the weights that `--init first` would take.
    """
    theirs = load_checkpoint(run / BASE_WEIGHTS).networks
    for name in ("motion", "generator"):
        for key, value in getattr(portrait, name).state_dict().items():
            other = theirs[name].get(key)
            if other is None or other.shape != value.shape or not bool((other == value).all()):
                of_choice = is_run(first) and not (first / BASE_WEIGHTS).is_dir() and not is_default
                again = f"an export of {first} alone, with these --weights and --checkpoint" if of_choice else first
                raise ValueError(
                    f"{run} was trained on another base model ({name}.{key} differs), and a correction fits only the "
                    f"key points of its own: leave {first} out, as {run} holds its base, too; or train it again with "
                    f"--init {again}"
                )
