"""What a submitted job names by relative paths would be gone with its working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.distribute import ClusterOptions
from curation.pipeline import open_dataset, run
from curation.recipe import Recipe


def test_relative_outputs_and_sources_of_a_submitted_job_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    for name in ("dataset", "../dataset", package / "dataset"):
        with pytest.raises(ValueError, match=r"the output /.*dataset is in a folder that Ray has made for this job"):
            open_dataset(name)
    Path("0.mp4").write_bytes(b"0")
    Path("list.csv").write_text("uri\n0.mp4\n")
    for inputs in (".", "list.csv"):
        with pytest.raises(ValueError, match=r"the source /.*0.mp4 is in a folder that Ray .* or a URL"):
            run([inputs], tmp_path / "dataset", Recipe(), cluster_options=ClusterOptions(workers=1))
    assert [path.name for path in tmp_path.iterdir()] == ["session_1"]
    assert open_dataset(tmp_path / "dataset").staging.is_dir()
