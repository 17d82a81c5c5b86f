"""The command line: the commands of the manual work, and mistakes end in one line and exit code 2."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.__main__ import main
from model.video import probe_video

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"
TALK = "videos/v01_woman_plainwall_512_30fps_audio.mp4"


@pytest.fixture
def common(models: Path) -> list[str]:
    return ["--untrained", "--tiny", "--device", "cpu", "--faces.weights-dir", str(models / "open")]


def _fails(capsys: pytest.CaptureFixture, arguments: list[str], words: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith(("UNTRAINED", "driving ", "source "))]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert output.out == ""


def test_animate(media: Path, tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture) -> None:
    output, template = tmp_path / "out.mp4", tmp_path / "motion.safetensors"
    arguments = ["animate", "--source", str(media / STILL), *common]
    saving = ["--max-s", "0.5", "--template-output", str(template)]
    assert main([*arguments, "--driving", str(media / TALK), "--output", str(output), *saving]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{output}: 15 frames, 400x400, 30 frames/s, 1 face\n"
    assert "UNTRAINED" in printed.err
    assert "rendering: 15/15" in printed.err
    assert probe_video(output).num_frames_in_header == 15
    options = ["--region", "lip", "--no-relative", "--no-stitching"]
    assert main([*arguments, "--driving", str(template), "--output", str(tmp_path / "frames"), *options]) == 0
    assert len(os.listdir(tmp_path / "frames")) == 15
    capsys.readouterr()
    output = tmp_path / "out.png"
    assert main([*arguments, "--driving", str(media / STILL), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 1 frame, 400x400, 1 face\n"


def test_retarget(media: Path, tmp_path: Path, common: list[str]) -> None:
    output = tmp_path / "out.png"
    edit = ["--eyes", "0.3", "--lip", "0.1", "--yaw", "15", "--pitch", "-5", "--smile", "0.6"]
    assert main(["retarget", "--source", str(media / STILL), *edit, "--output", str(output), *common]) == 0
    picture = np.asarray(Image.open(output))
    assert picture.shape == (400, 400, 3)
    assert np.array_equal(picture[380:, :40], np.asarray(Image.open(media / STILL).convert("RGB"))[380:, :40])
    assert os.listdir(tmp_path) == ["out.png"]


def test_mistakes(media: Path, tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture) -> None:
    def animate(source: Path, driving: Path, *more: str) -> list[str]:
        output = str(tmp_path / "out.mp4")
        return ["animate", "--source", str(source), "--driving", str(driving), "--output", output, *more]

    still, talk = media / STILL, media / TALK
    _fails(capsys, animate(still, talk), "KwaiVGI/LivePortrait model repository")
    _fails(capsys, animate(still, talk, "--weights", str(tmp_path / "absent")), "no such weights")
    _fails(capsys, animate(still, talk, "--weights", str(tmp_path), "--untrained"), "contradict")
    _fails(capsys, animate(still, talk, "--weights", str(still)), still.name)  # not a checkpoint
    _fails(capsys, animate(still, talk, "--weights", str(tmp_path)), str(tmp_path))  # an empty folder
    _fails(capsys, animate(still, talk, *common, "--max-s", "0"), "expected a positive number of seconds")
    _fails(capsys, animate(media / "images/i31_cup_of_coffee.png", still, *common), "no face")
    _fails(capsys, animate(still, media / "images/i31_cup_of_coffee.png", *common), "no face")
    _fails(capsys, animate(still, media / "malformed/m07_zero_bytes.webm", *common), "0 bytes")
    _fails(capsys, animate(still, tmp_path / "absent.mp4", *common), "no such file")
    (tmp_path / "notes.mp4").write_text("no video")
    _fails(capsys, animate(still, tmp_path / "notes.mp4", *common), "neither a picture nor a video")
    output = str(tmp_path / "out.gif")
    _fails(capsys, ["retarget", "--source", str(still), "--output", output, *common], "expected a name in .png")
    output = str(tmp_path / "out.png")
    _fails(capsys, ["retarget", "--source", str(talk), "--output", output, *common], "a still is edited here")
    _fails(capsys, ["retarget", "--source", str(still), "--output", output, *common, "--zoom", "0"], "zoom is 0")
    _fails(capsys, animate(still, talk, "--tiny"), "--tiny goes with --untrained")
    _fails(capsys, animate(still, talk, *common, "--device", "bogus"), "'bogus' is unknown")
    _fails(capsys, ["serve", "--port", "99999"], "port 99999")
    _fails(capsys, ["inspect", str(tmp_path / "absent")], "absent")
    run = tmp_path / "my run"
    (run / "checkpoints").mkdir(parents=True)
    _fails(capsys, ["inspect", str(run)], f"python -m training export '{run}' --output WEIGHTS")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.mp4", "my run"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so(number: int, status: int, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("model.commands.load_engine", lambda _: signal.raise_signal(number))
    assert main(["serve", "--untrained"]) == status
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(("before", "status"), [(signal.SIG_DFL, 143), (signal.SIG_IGN, 0)])
def test_a_closed_terminal_ends_a_command_in_order(before: signal.Handlers, status: int, monkeypatch) -> None:
    """But not one under nohup, where SIGHUP is ignored."""

    class Engine:
        def __init__(self, _) -> None:
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr("model.commands.load_engine", Engine)
    monkeypatch.setattr("model.commands.load_analyser", lambda _: None)
    monkeypatch.setattr("model.page.server.serve", lambda *_, **__: 0)
    outer = signal.signal(signal.SIGHUP, before)
    try:
        assert main(["serve", "--untrained"]) == status
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, outer)


def test_a_reader_that_has_seen_enough(capfd: pytest.CaptureFixture) -> None:
    command = f"{sys.executable} -m model --help"
    script = f"import subprocess; p = subprocess.Popen({command.split()!r}, stdout=-1); p.stdout.close(); p.wait()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[2])
    assert capfd.readouterr().err == ""


class _Touch:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


def test_malicious_template_in_its_own_process(media: Path, tmp_path: Path, common: list[str]) -> None:
    """As a user runs it: exit code 2, one line, nothing executed, no file left."""
    marker = tmp_path / "marker"
    (tmp_path / "motion.pkl").write_bytes(pickle.dumps({"motion": [], "output_fps": _Touch(marker)}))
    command = [
        sys.executable,
        "-m",
        "model",
        "animate",
        "--source",
        str(media / STILL),
        "--output",
        str(tmp_path / "out.mp4"),
    ]
    run = subprocess.run(
        [*command, "--driving", str(tmp_path / "motion.pkl"), *common],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    lines = run.stderr.strip().splitlines()
    assert lines[0].startswith("UNTRAINED NETWORKS")
    assert len(lines) == 2
    assert "motion.pkl is refused: it wants to use posix.system; nothing of it was run" in lines[1]
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["motion.pkl"]
