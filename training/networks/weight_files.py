"""Weight files that a user names: a path of this machine, or a URL that is fetched once into the weights cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.faces.weights import cache_dir


def local_file(where: str | Path, option: str) -> Path:
    """The file itself, or the cached copy of a URL (`https://`, `file://`), fetched now if it is not there yet.

    A name like `vgg19-dcbb9e9d.pth` carries the start of its SHA-256, which is checked. Several processes may ask at
    once: one fetches. ValueError, which names the command line `option` that gave it, where it cannot be had.
    """
    if "://" not in str(where):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ValueError(f"{option}: {path} does not exist: give the path or the URL of a weight file that does")
        return path
    url = str(where)
    name = Path(urlparse(url).path).name
    target = cache_dir() / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if target.is_file():
        return target
    checked = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                torch.hub.download_url_to_file(url, str(target), checked and checked.group(1), progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{option}: cannot fetch weights from {url} ({error}): check the address and the network, or give a path"
        ) from error
    return target


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name out of a .safetensors file, or one of torch.save, of which no code is run. Else ValueError."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails with whatever the broken part raises
        raise ValueError(f"{path} cannot be read as a state dict ({error}); it may be damaged") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict of tensors")
    return state


def fingerprint(network: nn.Module) -> str:
    """8 hex digits over all tensors of a network, in its order: the same from whatever file they came."""
    digest = hashlib.sha256()
    for tensor in (*network.parameters(), *network.buffers()):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]
