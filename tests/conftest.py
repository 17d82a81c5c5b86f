"""Real media, weights and reference numbers (tests that need them skip without), and a data set that needs none."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything reads it: processes side by side fight over the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock

from tests.flaky_store import FlakyStore

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a command in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it, to themselves and to their children


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder {name!r} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def media() -> Path:
    """Real videos, stills and malformed files with a ground-truth index.csv."""
    return _shared_folder("media")


@pytest.fixture(scope="session")
def models() -> Path:
    """Real weight files of face analysers and released networks."""
    return _shared_folder("models")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers computed by the published networks, geometry and animation."""
    return _shared_folder("reference")


def _make_face68(center: tuple[float, float] = (100.0, 100.0), height_px: float = 80.0) -> np.ndarray:
    """float64 [68, 2]: an upright, frontal face of about the height, in the order of the iBUG scheme."""

    def ring(num: int, x: float, y: float, wide: float, high: float) -> list[tuple[float, float]]:
        angles = np.pi + 2 * np.pi * np.arange(num) / num
        return [(x + wide * np.cos(a), y + high * np.sin(a)) for a in angles]

    jaw = [(-0.45 * np.cos(a), -0.1 + 0.6 * np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brows = [(x, -0.4) for x in (-0.35, -0.28, -0.2, -0.13, -0.06, 0.06, 0.13, 0.2, 0.28, 0.35)]
    nose = [(0.0, y) for y in (-0.25, -0.15, -0.05, 0.05)] + [(x, 0.1) for x in (-0.08, -0.04, 0.0, 0.04, 0.08)]
    eyes = ring(6, -0.2, -0.25, 0.08, 0.03) + ring(6, 0.2, -0.25, 0.08, 0.03)
    mouth = ring(12, 0.0, 0.27, 0.16, 0.06) + ring(8, 0.0, 0.27, 0.1, 0.02)
    return np.array(jaw + brows + nose + eyes + mouth) * height_px + np.asarray(center)


@pytest.fixture(scope="session")
def make_face68() -> Callable[..., np.ndarray]:
    """Makes the 68 landmarks of an upright face: `make_face68((x, y), height_px)`."""
    return _make_face68


@pytest.fixture(scope="session")
def curate() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m curation ARGUMENTS`; the call fails unless the command ends with `status`."""

    def run(*arguments: object, status: int = 0, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curation", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], str]], tuple[Path, str]]:
    """Makes what is dear once for all test processes: `made_once(name, make)` gives a folder and what `make` said.

    `make` fills the folder that it is given; one process does, the others wait for it.
    """

    def once(name: str, make: Callable[[Path], str]) -> tuple[Path, str]:
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"once_{name}"
        said = folder / "said.txt"
        with FileLock(f"{folder}.lock"):
            if not said.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                said.write_text(make(folder))
        return folder, said.read_text()

    return once


@pytest.fixture(scope="session")
def demo_run(curate, made_once) -> tuple[Path, str]:
    """The data set of `python -m curation demo`, and what the command printed. Not to be changed: see `demo_copy`."""
    folder, said = made_once("demo", lambda to: curate("demo", "--output", to / "dataset", "--workers", 2).stdout)
    return folder / "dataset", said


@pytest.fixture(scope="session")
def demo_dataset(demo_run: tuple[Path, str]) -> Path:
    return demo_run[0]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for all tests of pages: Playwright allows one at a time."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs an installed Chromium")
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


def _answer_quietly(patch: pytest.MonkeyPatch) -> None:
    """Asked to be quiet, stores name only the objects that they could not remove; moto names the others, too."""
    from moto.s3.responses import S3Response

    answer_in_full = S3Response._bucket_response_delete_keys

    def answer(self: S3Response, *arguments: Any, **options: Any) -> tuple[int, dict[str, Any], str]:
        status, headers, body = answer_in_full(self, *arguments, **options)
        if b"<Quiet>true</Quiet>" in self.body:
            body = re.sub("<Deleted>.*?</Deleted>", "", body, flags=re.DOTALL)
        return status, headers, body

    patch.setattr(S3Response, "_bucket_response_delete_keys", answer)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server on loopback with a bucket `data`; the usual variables lead all processes to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    from manifests.object_store import PatientS3FileSystem

    _answer_quietly(monkeypatch)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()  # servers share their state
    client.create_bucket(Bucket="data")
    PatientS3FileSystem.clear_instance_cache()  # those of this process know another test's server
    yield client
    PatientS3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def flaky_s3(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """The store of `s3`, whose client still sees all, behind a proxy that fails a seeded 5 % of the requests.

    The usual variables lead all processes to the proxy; `flaky_s3.throttle(seconds)` fails everything for a while.
    """
    store = FlakyStore(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setattr("manifests.object_store._FIRST_WAIT_S", 0.01)
    yield store
    store.close()
