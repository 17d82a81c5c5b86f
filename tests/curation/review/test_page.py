"""The page in a real browser: what a user clicks, sees and types."""

from __future__ import annotations

import functools
import http.server
import math
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.recipe import recipe_of
from curation.review import build
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from tests.curation.review.conftest import LICENCES

HOSTILE = """/x/<img src=x onerror=alert(1)>"'&amp;.mp4"""


def test_filters_order_and_search(measured: Path, visit: Callable[..., Any]) -> None:
    rows = read_table(Dataset(measured), "clips").to_pylist()
    seen = visit(measured)
    page = seen.page
    page.click("#tab-clips")
    assert seen.count("#clip-count") == len(rows)
    assert page.locator(".card").count() < 60  # only what is in sight
    page.select_option("[data-filter=decision]", "reject")
    rejected = [row for row in rows if row["decision"] == "reject"]
    assert seen.count("#clip-count") == len(rejected)
    page.select_option("[data-filter=rule]", "blurred")
    assert seen.count("#clip-count") == sum("blurred" in row["failed_rules"] for row in rows)
    page.check("#only-rule")
    assert seen.count("#clip-count") == sum(row["failed_rules"] == ["blurred"] for row in rows) > 0
    page.click("#reset-filters")
    page.select_option("[data-filter=licence]", label=f"not stated ({sum(not row['licence'] for row in rows)})")
    assert seen.count("#clip-count") == sum(not row["licence"] for row in rows)
    page.fill("#search", "INTERVIEW_000007")
    seen.wait_for_count("#clip-count", 0)
    assert page.is_visible("#nothing")
    page.click("#reset-filters")
    page.fill("#search", "channel_007 cc-by")
    num_found = sum(row["licence"] == "cc-by-4.0" and row["attribution"] == "Channel 7" for row in rows)
    seen.wait_for_count("#clip-count", num_found)
    page.click("#reset-filters")
    page.click("#add-range")
    page.select_option("#ranges select", "yaw_deg")
    page.fill("#ranges input >> nth=0", "-5")
    page.fill("#ranges input >> nth=1", "5")
    seen.wait_for_count("#clip-count", sum(-5 <= row["yaw_deg"] <= 5 for row in rows))
    page.click("#reset-filters")
    page.select_option("#sort", "sharpness")
    page.click("#direction")
    sharpest = max(rows, key=lambda row: row["sharpness"])
    page.locator(".card").first.click()
    assert sharpest["clip_id"] in page.inner_text("#detail")
    assert page.url.endswith(f"#clip={sharpest['clip_id']}")


def test_pictures_play_under_the_pointer_and_keys_move(demo_dataset: Path, visit: Callable[..., Any]) -> None:
    seen = visit(demo_dataset)
    page = seen.page
    page.click("#tab-clips")
    player = page.locator(".card .player").first
    page.wait_for_load_state("networkidle")
    resting = player.get_attribute("data-frame")
    page.mouse.move(5, 400)
    page.locator(".card").first.hover()
    frames, pictures = set(), set()
    for _ in range(12):
        frames.add(player.get_attribute("data-frame"))
        pictures.add(player.screenshot())
        page.wait_for_timeout(60)
    assert len(frames) >= 4
    assert len(pictures) >= 4
    page.mouse.move(5, 400)
    assert player.get_attribute("data-frame") == resting
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("End")
    last = page.evaluate("document.activeElement.dataset.index")
    assert int(last) == seen.count("#clip-count") - 1
    page.keyboard.press("Enter")
    first_title = page.inner_text("#detail h2")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#detail h2") != first_title
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")
    assert page.evaluate("document.activeElement.dataset.index") == last
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.focus("#tab-clips")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#thresholds")


def test_keys_with_a_clip_open(measured: Path, visit: Callable[..., Any]) -> None:
    seen = visit(measured)
    page = seen.page
    page.click("#tab-clips")
    page.locator(".card").first.click()
    page.keyboard.press("/")
    assert page.is_hidden("#detail")
    assert page.evaluate("document.activeElement.id") == "search"
    page.locator(".card").first.click()
    page.fill("#search", "interview_000007")  # beside the open pane
    seen.wait_for_count("#clip-count", 4)
    page.evaluate("document.activeElement.blur()")
    titles = []
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        titles.append(page.inner_text("#detail .places") + page.inner_text("#detail dd >> nth=0"))
    assert all("interview_000007" in title for title in titles)
    assert titles[0] != titles[1]
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")
    assert page.evaluate("document.activeElement.dataset.index") == "0"


def test_a_clip_tells_its_rules_and_where_it_is_from(demo_dataset: Path, visit: Callable[..., Any]) -> None:
    row = next(r for r in read_table(Dataset(demo_dataset), "clips").to_pylist() if "blurred" in r["failed_rules"])
    build_of = visit(demo_dataset)
    page = build_of.page
    page.click("#tab-clips")
    page.select_option("[data-filter=rule]", "blurred")
    page.locator(".card").first.click()
    failed = [line.split("\t")[0] for line in page.locator("#detail tr.failed").all_inner_texts()]
    assert failed == [name.replace("_", " ") for name in row["failed_rules"]]
    text = page.inner_text("#detail")
    assert row["source_id"] in text
    assert "blurred.mp4" in page.inner_text("#detail .places")
    assert page.get_attribute("#detail .places a", "href").startswith("file:///")
    threshold = recipe_of(demo_dataset).select.min_sharpness
    assert f"≥ {threshold}" in page.inner_text("#detail tr.failed >> nth=-1") or f"≥ {threshold}" in text


def _overhang(page: Any, inner: str, outer: str) -> float:
    """How many pixels the widest `inner` reaches to the right over the `outer` around it."""
    reach = "(all, outer) => Math.max(...all.map((e) => e.getBoundingClientRect().right"
    return page.eval_on_selector_all(inner, f"{reach} - e.closest(outer).getBoundingClientRect().right))", outer)


@pytest.mark.parametrize("width", [1280, 390])
def test_long_licences_leave_room_for_the_verdicts(licensed: Path, visit: Callable[..., Any], width: int) -> None:
    rows = read_table(Dataset(licensed), "clips").to_pylist()
    seen = visit(licensed)
    page = seen.page
    page.set_viewport_size({"width": width, "height": 820})
    for licence in LICENCES[:2]:
        clip = next(row["clip_id"] for row in rows if row["licence"] == licence)
        page.evaluate("id => { location.hash = `clip=${id}`; }", clip)
        line = page.locator("#detail .rules tr", has_text="licence not allowed")
        page.locator("#detail dd", has_text=clip).wait_for()
        assert _overhang(page, "#detail .rules td", "#detail section") <= 0
        assert [cell.strip() for cell in line.locator("td").all_inner_texts()][2:] == ["one of 2", "passes"]
        shown = line.locator("td").nth(1)
        allowed = [name.strip().lower() for name in LICENCES[:2]]
        assert (shown.get_attribute("title") or shown.inner_text()) == licence.strip().lower()
        assert line.locator("td").nth(2).get_attribute("title") == "\n".join(allowed)
        assert line.bounding_box()["height"] < 120


@pytest.mark.parametrize("width", [1280, 390])
def test_long_licences_stay_in_their_panel(licensed: Path, visit: Callable[..., Any], width: int) -> None:
    num_clips = Counter(read_table(Dataset(licensed), "clips")["licence"].to_pylist())
    page = (seen := visit(licensed)).page
    page.set_viewport_size({"width": width, "height": 820})
    assert _overhang(page, "#overview td", ".panel") < 0
    table = page.locator("#overview .panel", has_text="Licences").locator("table").last
    heights = {cell.bounding_box()["height"] for cell in table.locator("tbody tr >> nth=-1").locator("td").all()}
    assert max(heights) < 30, "figures are not broken"
    assert table.locator("tbody tr").count() == 30
    assert f"and {len(num_clips) - 30} more: python -m manifests" in page.inner_text("#overview .more")
    licence = table.locator("button[title^='MIT License']")
    assert len(licence.text_content()) == 48
    assert licence.get_attribute("title") == LICENCES[1]
    licence.click()
    assert seen.count("#clip-count") == num_clips[LICENCES[1]]
    page.click("#tab-thresholds")
    assert _overhang(page, ".choices span, .choices label", ".rule") < 0


def test_an_address_that_is_none_leads_to_the_overview(measured: Path, visit: Callable[..., Any]) -> None:
    url = visit(measured).page.url.split("#")[0]
    page = visit(f"{url}#%").page
    assert page.is_visible("#overview .panels")
    page.click("#tab-clips")
    page.evaluate("location.hash = '#%E0%A4'")
    page.wait_for_selector("#overview .panels")


def test_identities_and_copies(measured: Path, visit: Callable[..., Any]) -> None:
    rows = read_table(Dataset(measured), "clips").to_pylist()
    people: dict[str, list[str]] = {}
    for row in rows:
        people.setdefault(row["identity_id"], []).append(row["clip_id"])
    seen = visit(measured)
    page = seen.page
    page.click("#tab-identities")
    assert seen.count("#identity-count") == len(people)
    largest = max(people.values(), key=len)
    assert f"of {len(largest)} clips kept" in page.locator(".identity").first.inner_text()
    page.fill("#least-clips", "3")
    assert seen.count("#identity-count") == sum(len(clips) >= 3 for clips in people.values())
    page.locator(".identity .title").first.click()
    assert seen.count("#clip-count") == len(largest)
    page.click("#tab-duplicates")
    copies = [row for row in rows if row["duplicate_of"]]
    assert page.inner_text("#duplicates .toolbar strong").startswith(f"{len(copies)} copies of")
    first = page.locator(".copies").first
    assert first.locator(".copy").count() >= 2
    assert first.locator(".tag", has_text="best copy").count() == 1
    first.locator(".copy .thumb").nth(1).click()
    assert "Same footage" in page.inner_text("#detail")


def test_copies_tell_what_else_they_fail(licensed: Path, visit: Callable[..., Any]) -> None:
    failed = [row["failed_rules"] for row in read_table(Dataset(licensed), "clips").to_pylist() if row["duplicate_of"]]
    expected = sorted("copy\nlicence not allowed" if "licence_not_allowed" in names else "copy" for names in failed)
    page = visit(licensed).page
    page.click("#tab-clips")
    page.select_option("[data-filter=rule]", "duplicate")
    assert sorted(page.locator(".card .tags").all_inner_texts()) == expected
    assert "copy\nlicence not allowed" in expected
    page.click("#tab-duplicates")
    assert "copy\nlicence not allowed" in page.locator(".copy .tags").all_inner_texts()


def test_bars_of_identities_lead_to_a_list_that_was_never_opened(measured: Path, visit: Callable[..., Any]) -> None:
    seen = visit(measured)
    page = seen.page
    bar = page.locator(".panel", has_text="Identities by number of clips").locator("button.row").nth(1)
    bar.click()
    assert page.is_visible("#identities")
    assert page.input_value("#least-clips") == "2"
    numbers = Counter(read_table(Dataset(measured), "clips")["identity_id"].to_pylist()).values()
    assert seen.count("#identity-count") == sum(number >= 2 for number in numbers) > 0


COUNTS = """() => [...document.querySelectorAll('#overview .bar.link, #overview rect.link')].map((shape) => {
    const said = shape.querySelector('title').textContent;
    shape.dispatchEvent(new MouseEvent('click', { bubbles: true }));
    return [said, document.getElementById('clip-count').textContent];
})"""


def test_bars_and_cells_lead_to_as_many_clips_as_they_say(measured: Path, tmp_path: Path, visit: Callable) -> None:
    """Values on their edges, beyond them and of stills included."""
    folder = shutil.copytree(measured, tmp_path / measured.parent.name / measured.name)  # whose strips are drawn
    rows = read_table(Dataset(folder), "clips").to_pylist()
    for k, row in enumerate(rows):
        row |= {"duration_s": float(math.ceil(row["duration_s"])), "sharpness": k % 7 / 10}
        odd = {
            0: {"yaw_deg": 80.0},
            1: {"yaw_deg": -90.0},
            2: {"pitch_deg": -55.0},
            3: {"yaw_deg": 10, "pitch_deg": -5},
        }
        row |= odd.get(k % 10, {}) | ({"kind": "still"} if k % 10 == 4 else {})
    replace_table(Dataset(folder), "clips", make_table("clips", rows))
    page = visit(folder).page
    page.set_viewport_size({"width": 400, "height": 100})  # fewer cards are drawn for each list
    shapes = page.evaluate(COUNTS)
    wrong = {}
    for said, shown in shapes:
        number = sum(map(int, re.findall(r"(\d+) (?:kept|rejected|clip)", said.rsplit(":", 1)[1])))
        if shown.split()[0] != str(number):
            wrong[said] = shown
    assert not wrong
    names = "\n".join(said for said, _ in shapes)
    for words in ("yaw below -70°", "yaw 70° and more", "pitch below -45°", " s and more: "):
        assert words in names


def test_texts_of_sources_are_only_ever_shown(demo_copy: Path, visit: Callable[..., Any]) -> None:
    dataset = Dataset(demo_copy)
    breaking = "</script><script>window.broken = 1</script><!--"
    sources = read_table(dataset, "sources")
    uris = [[HOSTILE, f"javascript:window.broken=1//{breaking}"] for _ in range(len(sources))]
    sources = sources.set_column(sources.schema.get_field_index("uris"), sources.schema.field("uris"), [uris])
    replace_table(dataset, "sources", sources)
    clips = read_table(dataset, "clips")
    for name in ("licence", "attribution", "identity_id"):
        field = clips.schema.field(name)
        clips = clips.set_column(clips.schema.get_field_index(name), field, [[f"{name}{breaking}"] * len(clips)])
    provenance = [[(f"<b>{breaking}", "<svg onload=alert(2)>")]] * len(clips)
    field = clips.schema.field("provenance")
    clips = clips.set_column(clips.schema.get_field_index("provenance"), field, [pa.array(provenance, field.type)])
    replace_table(dataset, "clips", clips)
    seen = visit(demo_copy)
    page = seen.page
    for tab in ("overview", "clips", "thresholds", "identities", "duplicates"):
        page.click(f"#tab-{tab}")
    page.click("#tab-clips")
    assert page.locator(".card .title").first.inner_text() == HOSTILE.rsplit("/", 1)[-1]
    page.locator(".card").first.click()
    assert HOSTILE in page.inner_text("#detail")
    assert "<svg onload=alert(2)>" in page.inner_text("#detail")
    assert page.evaluate("window.broken") is None
    assert page.locator("img, b, body script:not(:last-of-type), iframe").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    page.locator("#detail").get_by_text("Filter by this identity").click()
    assert seen.count("#clip-count") == len(clips)


def test_nothing_leaves_the_page(demo_dataset: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    """From a file and from a web server: only its own pictures are asked for, and they are there."""
    from_file = visit(demo_dataset)
    from_file.page.click("#tab-clips")
    from_file.page.wait_for_load_state("networkidle")
    assert all(url.startswith(("file://", "data:")) for url in from_file.requests)
    strips = {url.rsplit("/", 1)[-1] for url in from_file.requests if "/strips/" in url}
    assert len(strips) == from_file.count("#clip-count")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = build(Dataset(demo_dataset), tmp_path / "served").parent
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    served = visit(f"{address}/index.html")
    served.page.click("#tab-clips")
    served.page.wait_for_load_state("networkidle")
    assert {url.rsplit("/", 1)[-1] for url in served.requests if "/strips/" in url} == strips
    assert all(url.startswith((f"{address}/", "data:")) for url in served.requests)
    blocked = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert served.page.evaluate(blocked) == "refused"
    assert any("Content Security Policy" in text for text in served.problems)
    served.problems.clear()
    served.page.close()  # which may still be asking for pictures further down
    server.shutdown()
    server.server_close()
