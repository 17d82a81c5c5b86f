"""Checkpoints in the released layout: read (never running code from a file), checked key by key, written atomically.

A folder holds `appearance_feature_extractor.pth`, `motion_extractor.pth`, `warping_module.pth`, `spade_generator.pth`
and `stitching_retargeting_module.pth`, side by side or in `base_models/` and `retargeting_models/`; or one
`.safetensors` file holds all seven networks, each under its own name and a dot. Networks of other sizes than the
published ones have them in `model_config.json` beside the files, or in the metadata of the `.safetensors` file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shlex
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.networks import LivePortrait

State = dict[str, Tensor]

BASE_FILES = {
    "appearance": "appearance_feature_extractor.pth",
    "motion": "motion_extractor.pth",
    "warping": "warping_module.pth",
    "generator": "spade_generator.pth",
}
RETARGETING_FILE = "stitching_retargeting_module.pth"
RELEASED_FILES = (*BASE_FILES.values(), RETARGETING_FILE)
RETARGETING_KEYS = {
    "stitching": "retarget_shoulder",
    "retarget_lip": "retarget_mouth",
    "retarget_eye": "retarget_eye",
}
SUBFOLDERS = ("", "base_models", "retargeting_models", "liveportrait/base_models", "liveportrait/retargeting_models")
"""Where released files may lie in a folder of weights: `liveportrait/` is how their repository has them."""
NETWORKS = (*BASE_FILES, *RETARGETING_KEYS)
CONFIG_FILE = "model_config.json"
MAX_LISTED_KEYS = 4


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class NetworkDifference:
    """How a state dict differs from a network."""

    missing: list[str]
    """Keys the network has and the file lacks."""
    unexpected: list[str]
    """Keys the file has and the network lacks."""
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Key -> (shape in the file, shape in the network)."""
    not_finite: list[str] = field(default_factory=list)
    """Keys that fit, but hold NaN or infinity."""

    @property
    def fits(self) -> bool:
        """Whether the keys and shapes are those of the network."""
        return not (self.missing or self.unexpected or self.other_shape)

    def __bool__(self) -> bool:
        return not self.fits or bool(self.not_finite)

    def __str__(self) -> str:
        parts = []
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                parts.append(f"{len(keys)} {name} keys ({_shorten(keys)})")
        if self.other_shape:
            shapes = [f"{key} is {list(got)}, expected {list(want)}" for key, (got, want) in self.other_shape.items()]
            parts.append(f"{len(shapes)} keys of another shape ({_shorten(shapes)})")
        if self.not_finite:
            first, *more = self.not_finite
            keys = f"{first} and {len(more)} more keys hold" if more else f"{first} holds"
            parts.append(f"{keys} values that are not finite: the file is damaged")
        return "; ".join(parts)


def _shorten(items: list[str]) -> str:
    more = len(items) - MAX_LISTED_KEYS
    return ", ".join(items[:MAX_LISTED_KEYS]) + (f", and {more} more" if more > 0 else "")


@dataclass
class Checkpoint:
    """State dicts by network name, with the file that each came from."""

    path: Path
    networks: dict[str, State] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def difference(self, name: str, portrait: LivePortrait) -> NetworkDifference:
        expected = {key: tuple(value.shape) for key, value in getattr(portrait, name).state_dict().items()}
        got = {key: tuple(value.shape) for key, value in self.networks[name].items()}
        return NetworkDifference(
            missing=[key for key in expected if key not in got],
            unexpected=[key for key in got if key not in expected],
            other_shape={
                key: (got[key], expected[key]) for key in expected if key in got and got[key] != expected[key]
            },
            not_finite=[
                key
                for key, value in self.networks[name].items()
                if got[key] == expected.get(key) and not torch.isfinite(value).all()
            ],
        )

    def missing_files(self) -> list[str]:
        """Files (or parts of files) whose networks are absent, named as a user would look for them."""
        absent = [file for name, file in BASE_FILES.items() if name not in self.networks]
        parts = [f"{RETARGETING_FILE}:{key}" for name, key in RETARGETING_KEYS.items() if name not in self.networks]
        return absent + ([RETARGETING_FILE] if len(parts) == len(RETARGETING_KEYS) else parts)

    def require_match(self, portrait: LivePortrait) -> None:
        """CheckpointError unless all seven networks are here and fit exactly."""
        if missing := self.missing_files():
            raise CheckpointError(
                f"{self.path}: incomplete LivePortrait weights; missing {', '.join(missing)}. "
                "Put the released files in one folder, or keep the released base_models/ and retargeting_models/"
            )
        for name in portrait.NETWORKS:
            difference = self.difference(name, portrait)
            if not difference.fits:
                raise CheckpointError(
                    f"{self.files[name]}: not the weights of the {name} network in the configured size"
                    f"{self._lookalike(name, portrait)}: {difference}{self.config_hint(difference)}"
                )
            if difference:
                raise CheckpointError(f"{self.files[name]}: {difference}")

    def config_hint(self, difference: NetworkDifference) -> str:
        """Where shapes differ and nothing tells the sizes, that it may be this."""
        if not difference.other_shape or _told_config(self.path) is not None:
            return ""
        return f" (networks of other sizes than the published ones need {_config_file(self.path)}, which is missing)"

    def _lookalike(self, name: str, portrait: LivePortrait) -> str:
        """A hint when the file holds another network under this one's name."""
        for other, network in portrait.networks().items():
            if self.networks[name].keys() == network.state_dict().keys():
                return f" (its keys are those of the {other} network)"
        return ""


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read whatever networks a folder, one of its files, or a `.safetensors` file holds, without checking shapes.

    FileNotFoundError if there is no such path or the folder holds no weights; CheckpointError for files that cannot be
    read, or where a folder holds several `.safetensors` and no released file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected a folder of LivePortrait weights")
    checkpoint = Checkpoint(path)
    if path.is_file():
        files = [path]
    else:
        files = _released_files(path) or sorted(path.glob("*.safetensors"))
        if not files and (path / "checkpoints").is_dir():
            raise FileNotFoundError(
                f"{path}: the folder of a training run; "
                f"`python -m training export {shlex.quote(str(path))} --output WEIGHTS` makes weights of it"
            )
        if not files:
            raise FileNotFoundError(
                f"{path}: no LivePortrait weights here; expected {', '.join(RELEASED_FILES)} (also in base_models/ and "
                "retargeting_models/, as in the liveportrait/ of a download), or one .safetensors file"
            )
        if len(files) > 1 and files[0].suffix == ".safetensors":
            raise CheckpointError(f"{path}: holds {len(files)} .safetensors files; name the one to load")
    for file in files:
        for name, state in _read_file(file).items():
            checkpoint.networks[name] = state
            checkpoint.files[name] = file
    return checkpoint


def read_config(path: str | Path) -> ModelConfig:
    """Sizes of the networks in a folder or file of weights; the published ones where nothing tells them.

    A `.safetensors` file may tell them itself; else `model_config.json` does, in the folder or beside the file.

    CheckpointError for sizes that cannot be read.
    """
    told = _told_config(Path(path))
    if told is None:
        return ModelConfig()
    text, where = told
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        return ModelConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: cannot be read as sizes of the networks ({error})") from error


def _released_files(folder: Path) -> list[Path]:
    """The files of the released layout that are there; one in a subfolder comes before one of its name beside it."""
    found = {
        name: folder / sub / name for name in RELEASED_FILES for sub in SUBFOLDERS if (folder / sub / name).is_file()
    }
    return list(found.values())


def holds_weights(folder: Path) -> bool:
    """Whether `load_checkpoint` would find weights in a folder."""
    return bool(_released_files(folder)) or any(folder.glob("*.safetensors"))


def _told_config(path: Path) -> tuple[str, Path] | None:
    """What tells the sizes of a folder or file of weights, and where it stands; None where nothing does."""
    if path.suffix == ".safetensors" and path.is_file():
        text = _safetensors_metadata(path).get("model_config")
        if text is not None:
            return text, path
    if path.is_dir() and not _released_files(path) and len(files := sorted(path.glob("*.safetensors"))) == 1:
        return _told_config(files[0])
    file = _config_file(path)
    return (file.read_text(errors="replace"), file) if file.is_file() else None


def _config_file(path: Path) -> Path:
    """Where the sizes of a folder or file of weights would be told; a file may lie in a subfolder of theirs."""
    if path.is_dir():
        return path / CONFIG_FILE
    folder = path.absolute().parent
    return (folder.parent if folder.name in SUBFOLDERS else folder) / CONFIG_FILE


def _safetensors_metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error


def _read_file(file: Path) -> dict[str, State]:
    """Networks of one file."""
    if file.suffix == ".safetensors":
        return _split_by_network(file, _read_safetensors(file))
    data = _read_pth(file)
    if any(key in data for key in RETARGETING_KEYS.values()):
        return {
            name: _as_state(file, data[key])
            for name, key in RETARGETING_KEYS.items()
            if isinstance(data.get(key), dict)
        }
    for name, released in BASE_FILES.items():
        if file.name == released:
            return {name: _as_state(file, data)}
    raise CheckpointError(f"{file}: not a released file name; expected one of {', '.join(BASE_FILES.values())}")


def _read_pth(file: Path) -> dict[str, Any]:
    """A `.pth` file's dictionary. `weights_only` refuses pickles that would build anything but tensors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, just before the error that says it all
            data = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for the many ways in which a file can be broken
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to read the file without protection
            reason = "its pickle is refused"
        raise CheckpointError(
            f"{file}: cannot be read as PyTorch weights ({reason}); it is damaged, or holds more than tensors"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds a {type(data).__name__}, expected a state dict")
    return data


def _read_safetensors(file: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Copies, because views of the mapped file are not aligned, and kernels round differently on such memory.
        return {key: value.clone() for key, value in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error


def _as_state(file: Path, data: Mapping[str, Any]) -> State:
    """A state dict without the `module.` prefix that data-parallel training leaves."""
    if isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    others = [key for key, value in data.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{file}: expected a dictionary of tensors, but {_shorten(others)} are none")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _split_by_network(file: Path, tensors: State) -> dict[str, State]:
    networks: dict[str, State] = {}
    for key, value in tensors.items():
        name, _, rest = key.removeprefix("module.").partition(".")
        if name not in NETWORKS:
            raise CheckpointError(f"{file}: key {key!r} starts with none of the networks {', '.join(NETWORKS)}")
        networks.setdefault(name, {})[rest.removeprefix("module.")] = value
    return networks


def save_checkpoint(portrait: LivePortrait, path: str | Path) -> None:
    """Write the released files into a folder, or one file where `path` ends in `.safetensors`.

    Every file is written under a temporary name, and all are renamed when the last is complete: a reader never sees
    half of one, and weights that were there before stay whole where there is no room for the new ones (OSError).
    Reloading gives bit-identical weights, whatever device the networks were on.
    """
    path = Path(path)
    config = json.dumps(dataclasses.asdict(portrait.config))
    states = {
        name: {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        for name, network in portrait.networks().items()
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
        metadata = {"format": "pt", "model_config": config}  # the published sizes, too: others may lie beside the file
        _write_together({path: lambda temporary: save_file(tensors, temporary, metadata=metadata)})
        return
    if path.is_file():
        raise CheckpointError(f"{path}: is a file; expected a folder to write the released files into")
    for file in RELEASED_FILES:
        if others := [path / folder / file for folder in SUBFOLDERS if folder and (path / folder / file).exists()]:
            raise CheckpointError(f"{others[0]} would be read instead of what is written to {path}: use another folder")
    small = {key: states[name] for name, key in RETARGETING_KEYS.items()}
    contents = {path / file: states[name] for name, file in BASE_FILES.items()} | {path / RETARGETING_FILE: small}
    writers = {file: partial(torch.save, content) for file, content in contents.items()}
    is_published = portrait.config == ModelConfig()
    if not is_published:
        writers[path / CONFIG_FILE] = lambda temporary: Path(temporary).write_text(config)
    _write_together(writers)
    if is_published:
        (path / CONFIG_FILE).unlink(missing_ok=True)  # of other networks that were here before


def _write_together(writers: Mapping[Path, Callable[[str], object]]) -> None:
    """Have files written, each by its function of a temporary name; they take their places together. OSError."""
    from safetensors import SafetensorError

    temporaries: dict[Path, str] = {}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporaries[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(descriptor)
            try:
                write(temporaries[path])
            except (RuntimeError, SafetensorError) as error:  # PyTorch and safetensors wrap what the system says
                raise OSError(f"{path} could not be written: is there room? ({str(error).splitlines()[0]})") from error
            os.chmod(temporaries[path], 0o644)  # mkstemp makes files that only their owner reads
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            Path(temporary).unlink(missing_ok=True)
