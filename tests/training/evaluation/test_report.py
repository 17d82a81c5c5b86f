"""What users look at: the files, the page in a real browser without a network, the table."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from training.evaluation.report import print_summary, render_page, write_report


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(folder, *evaluation, num_strips=8)
    return folder


def test_figures_are_written_whole(folder: Path, evaluation) -> None:
    results, _ = evaluation
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["sections"]["self"]["aggregate"] == results["sections"]["self"]["aggregate"]
    assert str(folder.parents[2]) not in (folder / "evaluation.json").read_text()  # no place of this machine
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "index.html"]


def test_page_opens_from_a_file_without_a_network(browser, folder: Path) -> None:
    requests, complaints = [], []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"file://{folder / 'index.html'}")
    sizes = page.eval_on_selector_all("img", "images => images.map(image => [image.naturalWidth, image.alt])")
    text = page.inner_text("body")
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    assert complaints == []
    assert len(sizes) > 60
    assert all(width > 0 for width, _ in sizes)
    assert overflow <= 0
    for words in (
        "tiny on people, test",
        "L1, face",
        "missing: no backbone",
        "Shoulder difference, stitched",
        "no face",
        "of videos",
        "of stills",
    ):
        assert words in text


def test_page_takes_names_as_text(evaluation) -> None:
    results, pictures = evaluation
    named = json.loads(json.dumps(results))
    named["data"]["name"] = "<script>alert(1)</script>"
    page = render_page(named, pictures, num_strips=0)
    assert "<script" not in page
    assert "://" not in page  # nothing is loaded from elsewhere
    assert "data:image" not in page
    assert re.search(r"\$\w", page) is None


def test_page_names_an_analyser_whose_embedder_has_a_role_of_its_own(evaluation) -> None:
    named, pictures = json.loads(json.dumps(evaluation[0])), evaluation[1]
    assert f"open ({named['analyser']['weights']['embedding']['name']})" in render_page(named, pictures, num_strips=0)
    named["analyser"] |= {"name": "open+mine:embedder", "weights": {"identity": {"name": "w.onnx", "sha256": "0"}}}
    assert "<dd>open+mine:embedder</dd>" in render_page(named, pictures, num_strips=0)


def test_table_on_the_console(evaluation) -> None:
    out = io.StringIO()
    print_summary(evaluation[0], Console(file=out, width=120))
    lines = out.getvalue().splitlines()
    copying = f"{evaluation[0]['sections']['self']['aggregate']['face_l1']['copy_source']:.4f}"
    assert any(line.startswith("L1, face") and copying in line and "11 frames" in line for line in lines)
    assert any(line.startswith("LPIPS") and "MISSING" in line for line in lines)
    first = next(k for k, line in enumerate(lines) if line.startswith("L1 outside the eyes"))
    assert [line.split()[:2] for line in lines[first + 1 : first + 3]] == [["of", "videos"], ["of", "stills"]]
