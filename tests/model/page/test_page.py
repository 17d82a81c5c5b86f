"""The page, over HTTP and in a real browser, with a tiny network without trained weights."""

from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.animation.animating import AnimateOptions
from model.page import PageServer, serve
from model.page.studio import Job, Studio
from model.video import probe_video

STILL = "images/i16_man_with_glasses_and_beard_white_background.jpg"
TALK = "videos/v01_woman_plainwall_512_30fps_audio.mp4"


@pytest.fixture
def server(engine, analyser) -> Iterator[PageServer]:
    server = PageServer(engine, analyser)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.close()


def _ask(
    server: PageServer, method: str, path: str, body: bytes | dict | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def _upload(server: PageServer, kind: str, path: Path) -> dict:
    status, content = _ask(server, "POST", f"/{kind}?name={path.name}", path.read_bytes())
    assert status == 200, content
    return json.loads(content)


def test_page_is_whole_and_says_that_it_runs_without_weights(server: PageServer) -> None:
    status, page = _ask(server, "GET", "/")
    assert status == 200
    assert b"://" not in page  # nothing is loaded from elsewhere
    assert server.server_address[0] == "127.0.0.1"
    status, content = _ask(server, "GET", "/status")
    assert "UNTRAINED" in json.loads(content)["notice"]


def test_edit_a_portrait(server: PageServer, media: Path) -> None:
    answer = _upload(server, "portrait", media / STILL)
    assert answer["message"] == "1 face, 400x400 pixels"
    pictures = []
    for edit in ({}, {"yaw": 20, "smile": 1.0}, {"eyes": 0.0, "lip": 0.5}):
        status, content = _ask(server, "POST", "/edit", {"portrait": answer["id"], "edit": edit})
        assert status == 200, content
        pictures.append(np.asarray(Image.open(io.BytesIO(content))))
    assert {picture.shape for picture in pictures} == {(400, 400, 3)}
    assert not np.array_equal(pictures[0], pictures[1])
    still = np.asarray(Image.open(media / STILL).convert("RGB"))
    assert np.array_equal(pictures[1][380:, :40], still[380:, :40])


def test_animate_in_the_background(server: PageServer, media: Path, tmp_path: Path) -> None:
    portrait = _upload(server, "portrait", media / STILL)["id"]
    driving = _upload(server, "driving", media / TALK)["id"]
    request = {"portrait": portrait, "driving": driving, "region": "lip", "max_s": 0.5}
    status, content = _ask(server, "POST", "/animate", request)
    assert status == 200, content
    job = json.loads(content)["job"]
    deadline = time.monotonic() + 60
    while not (progress := json.loads(_ask(server, "GET", f"/jobs/{job}")[1]))["finished"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert progress == {
        "stage": "rendering", "done": 15, "total": 15, "finished": True, "error": None, "notes": [],
    }  # fmt: skip
    status, content = _ask(server, "GET", f"/results/{job}")
    (tmp_path / "result.mp4").write_bytes(content)
    info = probe_video(tmp_path / "result.mp4")
    assert (info.width, info.height, info.num_frames_in_header, info.has_audio) == (400, 400, 15, True)


def test_mistakes_are_answered_in_words(server: PageServer, media: Path, tmp_path: Path) -> None:
    portrait = _upload(server, "portrait", media / STILL)["id"]
    for path, body, words in [
        ("/portrait?name=cup.png", (media / "images/i31_cup_of_coffee.png").read_bytes(), "no face"),
        ("/portrait?name=a.png", b"not a picture", "the file is neither a picture"),
        ("/edit", {"portrait": "unknown"}, "upload it again"),
        ("/edit", {"portrait": portrait, "edit": {"nose": 1}}, "unknown sliders"),
        ("/edit", {"portrait": portrait, "edit": {"yaw": "left"}}, "must be numbers"),
        ("/edit", b"{", "not JSON"),
        ("/edit", b"[]", "not an object"),
        ("/edit", b"[" * 60_000, "not JSON"),
        ("/portrait?name=a.mp4", (media / "videos/v16_man_webcam_av1_1s.mp4").read_bytes(), "this is a video"),
        ("/animate", {"portrait": portrait, "driving": "unknown", "max_s": float("inf")}, "must be above 0"),
        ("/animate", {"portrait": portrait, "driving": "unknown", "max_s": 1e300}, "at most 1000000"),
        ("/animate", {"portrait": portrait, "driving": "unknown", "max_s": 10**400}, "at most 1000000"),
        ("/animate", {"portrait": portrait, "driving": "unknown"}, "upload it again"),
    ]:
        status, content = _ask(server, "POST", path, body)
        assert status == 400
        assert words in json.loads(content)["error"]
    driving = _upload(server, "driving", media / "malformed/m01_audio_only.mp4")["id"]
    job = json.loads(_ask(server, "POST", "/animate", {"portrait": portrait, "driving": driving})[1])["job"]
    while not (progress := json.loads(_ask(server, "GET", f"/jobs/{job}")[1]))["finished"]:
        time.sleep(0.05)
    assert progress["error"] == "the file has no video stream, only: audio"
    assert _ask(server, "GET", f"/results/{job}")[0] == 400
    assert _ask(server, "GET", "/nothing")[0] == 404


def test_a_full_disk_is_answered_in_words(server: PageServer, tmp_path: Path, monkeypatch) -> None:
    upload = tmp_path / "upload.jpg"
    upload.symlink_to("/dev/full")
    monkeypatch.setattr(server.studio, "new_upload", lambda name: upload)
    status, content = _ask(server, "POST", "/portrait?name=a.jpg", b"x" * 1000)
    assert status == 400
    assert b"cannot be kept (No space left on device)" in content
    assert not upload.is_symlink()


def test_other_pages_and_names_are_refused(server: PageServer) -> None:
    status, content = _ask(server, "POST", "/edit", {}, Origin="http://elsewhere.example")
    assert (status, json.loads(content)["error"]) == (400, "requests from other pages are refused")
    status, content = _ask(server, "GET", "/", Host="elsewhere.example")
    assert status == 400
    assert "localhost only" in json.loads(content)["error"]
    status, content = _ask(server, "POST", "/portrait?name=a.png", b"", Content_Length=str(1 << 40))
    assert status == 400
    assert "larger than 2048 MB" in json.loads(content)["error"]
    status, content = _ask(server, "POST", "/edit", b"", Content_Length=str(1 << 20))
    assert (status, json.loads(content)["error"]) == (400, "the upload is larger than 64 kB")


def test_uploads_go_with_the_server(engine, analyser, media: Path) -> None:
    server = PageServer(engine, analyser)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    folder = server.folder
    _upload(server, "portrait", media / STILL)
    assert len(list(folder.iterdir())) == 1
    for _ in range(8):
        _upload(server, "driving", media / "videos/v16_man_webcam_av1_1s.mp4")
    assert len(list(folder.iterdir())) == 1 + 6  # old ones have gone
    server.shutdown()
    server.close()
    assert not folder.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 0), (signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_uploads_go_however_the_page_is_stopped(number: int, status: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("model.page.server.threading.enumerate", list)
    monkeypatch.setattr(PageServer, "serve_forever", lambda self: signal.raise_signal(number))
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        assert serve(None, None, port=0) == status
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert list(tmp_path.iterdir()) == []


def test_files_of_waiting_animations_are_kept(server: PageServer, media: Path, monkeypatch) -> None:
    monkeypatch.setattr("model.page.studio.MAX_WAIT_S", 0.01)
    portrait = _upload(server, "portrait", media / STILL)["id"]
    sound = media / "malformed/m01_audio_only.mp4"
    request = {"portrait": portrait, "driving": _upload(server, "driving", sound)["id"]}
    jobs = []
    with server.studio._computing:  # as a long animation does
        for _ in range(6):
            jobs.append(json.loads(_ask(server, "POST", "/animate", request)[1])["job"])
            _upload(server, "driving", sound)
        status, content = _ask(server, "POST", "/animate", request)
        assert (status, b"6 animations are waiting" in content) == (400, True)
        for path, body in (("/portrait?name=a.jpg", (media / STILL).read_bytes()), ("/edit", {"portrait": portrait})):
            status, content = _ask(server, "POST", path, body)
            assert (status, b"an animation is running" in content) == (400, True)
        _upload(server, "driving", sound)
    for job in jobs:
        while not (progress := json.loads(_ask(server, "GET", f"/jobs/{job}")[1]))["finished"]:
            time.sleep(0.05)
        assert progress["error"] == "the file has no video stream, only: audio"


def test_the_end_of_the_page_ends_an_animation(engine, analyser, media: Path) -> None:
    server = PageServer(engine, analyser)
    studio = server.studio
    request = {}
    for kind, name, add in (("portrait", STILL, studio.add_portrait), ("driving", TALK, studio.add_driving)):
        path = studio.new_upload(name)
        path.write_bytes((media / name).read_bytes())
        request[kind] = add(path)["id"]
    job = studio.job(studio.start_animation(request))
    while not job.done:
        time.sleep(0.01)
    server.close()
    while not job.finished:
        time.sleep(0.01)
    assert job.error == "the page was closed"
    assert not server.folder.exists()


def test_an_animation_that_nobody_waits_for_ends(tmp_path: Path, monkeypatch) -> None:
    """The page is gone, and its animation may keep the others from their sliders no longer."""
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    studio = Studio(None, None, tmp_path)
    shown = []

    def animate(*_, report, **__) -> None:
        for frame in range(6):
            report("rendering", frame, None)
            shown.append(frame)
            if frame < 3:
                studio.job(key)
            clock[0] += 200

    monkeypatch.setattr("model.page.studio.animate", animate)
    job = Job(tmp_path / "result.mp4")
    key = studio._keep(studio._jobs, job)
    studio._animate(job, AnimateOptions())
    assert shown == [0, 1, 2, 3]
    assert job.finished
    assert job.error == "no page asked for this animation for 5 minutes; start it again"
    with studio._turn():
        pass


def test_clients_that_leave_are_no_news(server: PageServer, capfd: pytest.CaptureFixture) -> None:
    for is_reset in (True, False):
        client = socket.create_connection(server.server_address)
        client.sendall(b"POST /portrait?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        while not list(server.folder.iterdir()):
            time.sleep(0.01)
        if is_reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        while list(server.folder.iterdir()):
            time.sleep(0.01)
    time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_addresses(engine, analyser) -> None:
    server = PageServer(engine, analyser, host="127.0.0.2")
    assert server.is_loopback
    server.close()
    for host, port, words in [
        ("192.0.2.1", 0, "give another --host"),
        ("127.0.0.1", 99999, "expected 0 to 65535"),
    ]:
        with pytest.raises(ValueError, match=words):
            serve(engine, analyser, host=host, port=port)


def test_in_a_browser(browser, server: PageServer, media: Path, tmp_path: Path) -> None:
    """Upload, move a slider, see another picture; animate, see a video."""
    page = browser.new_page(viewport={"width": 1280, "height": 820})
    problems: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url[:9] else None)
    page.goto(server.url)
    page.wait_for_selector("#notice:not([hidden])")
    assert "UNTRAINED" in page.inner_text("#notice")
    assert page.is_disabled("#yaw")
    page.set_input_files("#portrait", media / STILL)
    page.wait_for_selector('#stage[data-edits="1"]', timeout=30_000)
    before = page.locator("#result").screenshot()
    page.fill("#yaw", "20")
    page.fill("#smile", "1.3")
    page.wait_for_selector('#stage[data-edits="3"]', timeout=30_000)
    assert page.locator("#result").screenshot() != before
    assert page.inner_text(".slider:first-child output") == "20"
    page.set_input_files("#driving", media / STILL)
    page.wait_for_selector("#driving-drop img")
    assert page.locator("#driving-drop img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 400
    page.set_input_files("#driving", media / TALK)
    page.wait_for_selector("#driving-drop video")
    assert page.locator("#driving-drop img").count() == 0
    page.fill("#seconds", "0.5")
    page.click("#animate")
    page.wait_for_selector("video#result", timeout=60_000)
    assert page.inner_text("#status") == "Done."
    video = page.locator("#result")
    assert (
        video.evaluate(
            "v => new Promise(r => v.readyState ? r(v.videoWidth) : v.onloadedmetadata = () => r(v.videoWidth))"
        )
        == 400
    )
    large = tmp_path / "large.png"
    Image.open(media / STILL).resize((1300, 1300)).save(large)
    page.set_input_files("#portrait", large)
    page.wait_for_selector('#stage[data-edits="4"]', timeout=30_000)
    page.set_input_files("#driving", media / STILL)
    page.wait_for_selector("#driving-drop img")
    page.click("#animate")
    page.wait_for_selector("video#result", timeout=60_000)
    assert page.inner_text("#status").startswith("Done. Note: scaled from 1300x1300 to 1280x1280 pixels")
    screenshot = tmp_path / "page.png"
    page.screenshot(path=screenshot)
    assert Image.open(screenshot).size == (1280, 820)
    page.set_input_files("#portrait", media / "images/i31_cup_of_coffee.png")
    page.wait_for_selector("#status.bad")
    assert "no face" in page.inner_text("#status")
    page.close()
    assert problems == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    assert hosts == {server.url.split("/")[2]}


@pytest.fixture
def scripted(browser) -> Iterator[Callable[..., Any]]:
    """The page, with the answers that its next questions get, None: no connection; and without its pauses."""
    server = PageServer(SimpleNamespace(portrait=SimpleNamespace(trained=True)), None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(server.url)

    def run(script: str, *answers: dict | None) -> Any:
        page.evaluate(FETCH, answers)
        page.evaluate(script)
        return page

    yield run
    page.close()
    server.shutdown()
    server.close()


FETCH = """(answers) => {
    window.said = [];
    window.setTimeout = (then) => { said.push(document.getElementById("status").textContent); then(); };
    window.fetch = async () => {
        const answer = answers.shift();
        if (!answer) throw new TypeError("Failed to fetch");
        return new Response(JSON.stringify(answer), { status: answer.error ? 400 : 200 });
    };
}"""


def test_a_lost_connection_is_waited_for(scripted: Callable[..., Any]) -> None:
    started, running, done = {"job": "a"}, {"stage": "rendering", "done": 1}, {"finished": True, "notes": []}
    page = scripted("animate()", started, running, None, None, done, None, {})
    assert page.inner_text("#status") == "Done."
    assert page.evaluate("said") == ["rendering: 1 frames", *3 * ["Connection lost, waiting …"]]
    page = scripted("animate()", started)
    assert page.inner_text("#status.bad") == "The connection is lost."
    assert page.evaluate("said.length") == 60


def test_a_refused_file_leaves_the_one_before_in_use(scripted: Callable[..., Any]) -> None:
    page = scripted("upload('portrait', new File([], 'first.png'))", {"id": "a", "message": "1 face"}, {})
    page = scripted("upload('portrait', new File([], 'second.png'))", {"error": "no face"})
    assert page.inner_text("#status.bad") == "no face"
    assert page.inner_text("#portrait-drop span") == "first.png"
    assert page.evaluate("state.portrait") == "a"
    assert page.is_enabled("#yaw")
