"""The folder that a job of `ray job submit` works in: Ray unpacks its `--working-dir` there and removes it later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manifests.storage import Place


def require_lasting(places: Iterable[str | Place], what: str) -> None:
    """See that none of these, absolute paths or URLs, is in a folder of Ray's, where relative paths of a job lead.

    what: they are, for the message.

    Raises:
        ValueError: one is.
    """
    here = Path.cwd()
    of_ray = [p for p in (here, *here.parents) if p.parts[-2:] == ("runtime_resources", "working_dir_files")]
    for place in places if of_ray else ():
        if Path(str(place)).is_relative_to(of_ray[0]):
            raise ValueError(
                f"{what} {place} is in a folder that Ray has made for this job and removes later: name an absolute path"
                " that all nodes see, or a URL"
            )
