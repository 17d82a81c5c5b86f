"""What the page can do, apart from HTTP: keep uploads, edit portraits, run animations one at a time."""

from __future__ import annotations

import dataclasses
import io
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from model.animation.animating import MAX_S, AnimateOptions, animate
from model.animation.loading import UNTRAINED_NOTICE
from model.animation.pictures import load_still, open_clip
from model.animation.retouching import EditableStill
from model.animation.source import MIN_FACE_PX
from model.animation.tracking import find_faces_in_still
from model.faces import FaceAnalyser
from model.inference import InferenceEngine
from model.keypoints import AnimationOptions, FaceEdit

MAX_KEPT = 6
"""Portraits, driving files and results that are kept, each; older ones go when no animation needs them."""
MAX_WAIT_S = 60.0
"""How long a portrait or a slider waits for an animation."""
MAX_CLOSE_S = 5.0
"""How long the end of the page waits for the networks."""
MAX_UNASKED_S = 300.0
"""How long an animation goes on that no page asks for; in the background, too, a page asks once a minute."""


class _Ended(Exception):
    """Why an animation ends before it is done."""


@dataclass
class Job:
    """One animation, running or done."""

    path: Path
    """The result."""
    inputs: tuple[Path, ...] = ()
    stage: str = "waiting"
    done: int = 0
    total: int | None = None
    finished: bool = False
    asked_s: float = field(default_factory=time.monotonic)
    """When it was last asked for, or begun."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    """What users should know about the result."""


@dataclass
class Portrait:
    """An uploaded still, and what is known of its faces."""

    path: Path
    editable: dict[str, EditableStill] = field(default_factory=dict)


class Studio:
    """What the page can do, apart from HTTP. Methods raise ValueError with one line for the user."""

    def __init__(self, engine: InferenceEngine, analyser: FaceAnalyser, folder: Path) -> None:
        self._engine = engine
        self._analyser = analyser
        self._folder = folder
        self._computing = threading.Lock()
        self._keeping = threading.RLock()
        self._closing = threading.Event()
        self._portraits: OrderedDict[str, Portrait] = OrderedDict()
        self._drivings: OrderedDict[str, Path] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    @property
    def notice(self) -> str:
        """What users must know about the weights; empty if there is nothing."""
        if self._engine.portrait.trained:
            return ""
        return f"{UNTRAINED_NOTICE}. Start the page with --weights to see real results."

    def new_upload(self, name: str) -> Path:
        """A fresh place for an upload; only the ending of its name is taken over."""
        suffix = Path(name).suffix.lower()
        return (
            self._folder / f"{secrets.token_urlsafe(12)}{suffix if re.fullmatch(r'[.][a-z0-9]{1,12}', suffix) else ''}"
        )

    def add_portrait(self, path: Path) -> dict[str, Any]:
        """Look at an uploaded still."""
        if open_clip(path) is not None:
            raise ValueError("this is a video; a portrait is a still picture")
        picture = load_still(path)
        portrait = Portrait(path)
        with self._turn():
            num_faces = len(find_faces_in_still(picture, self._analyser, min_face_px=MIN_FACE_PX))
            portrait.editable["largest"] = EditableStill(picture, self._engine, self._analyser, name="this picture")
        key = self._keep(self._portraits, portrait)
        height, width = picture.shape[:2]
        plural = "" if num_faces == 1 else "s"
        return {"id": key, "message": f"{num_faces} face{plural}, {width}x{height} pixels"}

    def add_driving(self, path: Path) -> dict[str, Any]:
        """Take an uploaded driving file; it is read when an animation starts."""
        return {"id": self._keep(self._drivings, path), "message": "Driving file ready."}

    def edit(self, request: dict[str, Any]) -> bytes:
        """An edited portrait as PNG."""
        portrait = _known(self._portraits, request.get("portrait"), "portrait")
        which = "all" if request.get("all_faces") else "largest"
        changes = _face_edit(request.get("edit", {}))
        with self._turn():
            if which not in portrait.editable:
                picture = load_still(portrait.path)
                portrait.editable[which] = EditableStill(picture, self._engine, self._analyser, which=which)
            result = portrait.editable[which].edited(changes)
        png = io.BytesIO()
        Image.fromarray(result).save(png, "PNG", compress_level=3)
        return png.getvalue()

    def start_animation(self, request: dict[str, Any]) -> str:
        """Begin an animation in the background; its job's name."""
        max_s = request.get("max_s")
        if max_s is not None and not (isinstance(max_s, int | float) and 0 < max_s <= MAX_S):
            raise ValueError(f"the number of seconds must be above 0, and at most {MAX_S}")
        options = AnimateOptions(
            motion=AnimationOptions(relative=bool(request.get("relative", True)), region=request.get("region", "all")),
            faces_in_source="all" if request.get("all_faces") else "largest",
            side_by_side=bool(request.get("side_by_side")),
            max_s=max_s,
        )
        with self._keeping:
            portrait = _known(self._portraits, request.get("portrait"), "portrait")
            driving = _known(self._drivings, request.get("driving"), "driving file")
            if sum(not job.finished for job in self._jobs.values()) >= MAX_KEPT:
                raise ValueError(f"{MAX_KEPT} animations are waiting; start this one when one of them is done")
            job = Job(self._folder / f"{secrets.token_urlsafe(12)}.mp4", inputs=(portrait.path, driving))
            key = self._keep(self._jobs, job)
        threading.Thread(target=self._animate, args=(job, options), daemon=True).start()
        return key

    def _animate(self, job: Job, options: AnimateOptions) -> None:
        def report(stage: str, done: int, total: int | None) -> None:
            if self._closing.is_set():
                raise _Ended("the page was closed")
            if time.monotonic() - job.asked_s > MAX_UNASKED_S:
                raise _Ended(f"no page asked for this animation for {MAX_UNASKED_S / 60:.0f} minutes; start it again")
            job.stage, job.done, job.total = stage, done, total

        try:
            with self._computing:
                report("starting", 0, None)
                result = animate(
                    *job.inputs, job.path,
                    engine=self._engine, analyser=self._analyser, options=options, report=report,
                )  # fmt: skip
                job.notes = result.notes
        except _Ended as reason:
            job.error = str(reason)
        except (ValueError, OSError) as error:
            job.error = without_folder(str(error), self._folder)
        except Exception as error:  # the page must not wait for a thread that died
            job.error = f"internal error: {type(error).__name__}: {error}"
            raise
        finally:
            job.finished = True

    def job(self, key: str) -> Job:
        """A job by name; one that nobody asks for any more ends."""
        job = _known(self._jobs, key, "job")
        job.asked_s = time.monotonic()
        return job

    def close(self) -> None:
        """End the running animation, and wait a little for that; nothing begins to compute any more."""
        self._closing.set()
        self._computing.acquire(timeout=MAX_CLOSE_S)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The networks and analysers, which one request uses at a time."""
        if not self._computing.acquire(timeout=MAX_WAIT_S):
            raise ValueError("an animation is running; portraits and sliders work again when it is done")
        try:
            yield
        finally:
            self._computing.release()

    def _keep(self, store: OrderedDict[str, Any], value: Any) -> str:
        """Keep a value under a new name; the oldest that no unfinished animation needs go with their files."""
        key = secrets.token_urlsafe(12)
        with self._keeping:
            unfinished = [job for job in self._jobs.values() if not job.finished]
            needed = {path for job in unfinished for path in (job.path, *job.inputs)}
            spare = [old for old, kept in store.items() if _file(kept) not in needed]
            store[key] = value
            for old in spare[: max(0, len(store) - MAX_KEPT)]:
                _file(store.pop(old)).unlink(missing_ok=True)
        return key


def _file(kept: Path | Portrait | Job) -> Path:
    return kept if isinstance(kept, Path) else kept.path


def _known(store: OrderedDict[str, Any], key: Any, what: str) -> Any:
    if not isinstance(key, str) or key not in store:
        raise ValueError(f"this {what} is not known any more; upload it again")
    return store[key]


def _face_edit(changes: Any) -> FaceEdit:
    names = {field.name for field in dataclasses.fields(FaceEdit)}
    if not isinstance(changes, dict) or not set(changes) <= names:
        raise ValueError(f"unknown sliders; known are {', '.join(sorted(names))}")
    if not all(isinstance(value, int | float) and abs(value) < 1000 for value in changes.values()):
        raise ValueError("slider values must be numbers")
    return FaceEdit(**changes)


def without_folder(message: str, folder: Path) -> str:
    """Users know their file, not its place in our temporary folder."""
    return re.sub(rf"{re.escape(str(folder))}/[-\w]+([.]\w+)?", "the file", message)
