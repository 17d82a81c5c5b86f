"""The review page of a large data set in a real browser: time to build it, its weight, first paint, reactions.

    python -m tests.benchmarks.review [--clips 20000] [--folder KEPT_FOLDER]

The data set is made here and written by the project's own writers: measures with the spread of real ones, kept clips in
a shard whose frames they share, rejected ones without pictures. Reactions are from an input event to the second frame
after it, so what the browser draws is in them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import skimage.data

from curation.recipe import Recipe, load_recipe, recipe_toml
from curation.review import build
from curation.rules import failed_rules_sql
from curation.samples import SampleWriter
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from manifests.views import connect

NUM_PICTURES = 64
REACTION = """async (element, [value, kind]) => {
  const start = performance.now();
  if (kind === 'click') element.click();
  else { element.value = value; element.dispatchEvent(new Event(kind, {bubbles: true})); }
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


def make_dataset(folder: Path, num_clips: int, seed: int = 0) -> Dataset:
    """A data set of `num_clips` clips, four a source, about ten an identity, decided by the default recipe."""
    dataset, recipe = Dataset(folder), load_recipe("default")
    folder.mkdir(parents=True)
    dataset.recipe_file.write_text(recipe_toml(recipe))
    places = _write_pictures(dataset)
    rng = np.random.default_rng(seed)
    num_sources = -(-num_clips // 4)
    sources = [_source(k) for k in range(num_sources)]
    replace_table(dataset, "sources", make_table("sources", sources))
    people = rng.geometric(min(1.0, 10 / num_clips) if num_clips > 10 else 0.5, num_clips)
    clips = [_clip(k, sources[k // 4], int(people[k]), rng) for k in range(num_clips)]
    replace_table(dataset, "clips", make_table("clips", clips))
    _decide(dataset, recipe, places, rng)
    return dataset


def _write_pictures(dataset: Dataset) -> tuple[list[int], list[int]]:
    """One shard of a few real frames; returns offsets and sizes of its pictures."""
    portrait = skimage.data.astronaut()[0:300, 90:390]
    dataset.shards.mkdir()
    offsets, sizes = [], []
    with open(dataset.shards / "train-000000.tar", "wb") as file:
        writer = SampleWriter(file)
        for k in range(NUM_PICTURES):
            turn = cv2.getRotationMatrix2D((150, 130), 12 * np.sin(2 * np.pi * k / NUM_PICTURES), 1.2)
            picture = cv2.warpAffine(portrait, turn, (300, 300), borderMode=cv2.BORDER_REPLICATE)
            jpeg = simplejpeg.encode_jpeg(cv2.resize(picture, (512, 512)), quality=95, colorspace="RGB")
            offsets.append(writer.add(f"picture_{k:06d}.jpg", jpeg))
            sizes.append(len(jpeg))
        size = writer.finish()
    shard = {"shard": "train-000000.tar", "split": "train", "num_samples": NUM_PICTURES, "size_bytes": size}
    replace_table(dataset, "shards", make_table("shards", [shard]))
    return offsets, sizes


def _source(k: int) -> dict[str, Any]:
    return {
        "source_id": f"{k:016x}",
        "content_sha256": f"{k:064x}",
        "uris": [f"s3://videos/channel_{k % 311:03d}/interview_{k:06d}_1080p.mp4"],
        "kind": "video",
        "status": "ok",
        "size_bytes": 30_000_000 + k,
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "codec": "h264",
        "width_px": 1920,
        "height_px": 1080,
        "fps": 25.0,
        "duration_s": 90.0,
        "licence": ("cc-by-4.0", "cc0-1.0", None)[k % 3],
        "attribution": f"Channel {k % 311}",
        "provenance": [("list", "benchmark")],
    }


def _clip(k: int, source: dict[str, Any], person: int, rng: np.random.Generator) -> dict[str, Any]:
    def draw(low: float, high: float) -> float:
        return float(np.float32(rng.normal((low + high) / 2, (high - low) / 4)))

    duration = round(float(np.clip(rng.gamma(2.0, 4.0), 0.6, 30)), 2)
    start, face, yaw, pitch = round(20.0 * (k % 4), 2), abs(draw(60, 420)) + 30, draw(-40, 40), draw(-22, 22)
    num_frames = max(1, round(duration * 25))
    return {
        "clip_id": f"{source['source_id']}_{round(start * 25):07d}_0",
        "track_id": f"{source['source_id']}_t{round(start * 25):07d}_0",
        "source_id": source["source_id"],
        "kind": "video",
        "start_frame": round(start * 25),
        "end_frame": round(start * 25) + num_frames,
        "start_s": start,
        "end_s": start + duration,
        "duration_s": duration,
        "num_frames": num_frames,
        "num_repeats": 0,
        "num_corrupt": int(rng.random() < 0.01),
        "crop_fps": 25.0,
        "crop_size_px": face * 2.3,
        "upscale_factor": 512 / (face * 2.3),
        "outside_fraction": abs(draw(-0.2, 0.2)),
        "face_height_px": face * 0.9,
        "face_height_median_px": face,
        "detection_score": min(1.0, draw(0.75, 0.97)),
        "presence_p10": min(1.0, draw(0.8, 1.1)),
        "presence_mean": 0.97,
        "yaw_deg": yaw,
        "pitch_deg": pitch,
        "roll_deg": draw(-9, 9),
        "yaw_abs_p95_deg": abs(yaw) + abs(draw(-9, 9)),
        "pitch_abs_p95_deg": abs(pitch) + abs(draw(-9, 9)),
        "roll_abs_p95_deg": abs(draw(-20, 20)),
        "eye_openness": draw(0.2, 0.35),
        "lip_openness": abs(draw(-0.2, 0.3)),
        "sharpness": abs(draw(0.02, 0.25)),
        "exposure": draw(0.2, 0.75),
        "dark_fraction": abs(draw(-0.2, 0.2)),
        "bright_fraction": abs(draw(-0.1, 0.1)),
        "motion": abs(draw(-1.5, 2.5)),
        "landmark_jitter": abs(draw(-0.03, 0.05)),
        "identity_similarity": min(1.0, draw(0.5, 0.95)),
        "staged_bytes": num_frames * 60_000,
        "analyser": "open",
        "identity_id": f"id_{person:016x}_0000000_0",
        **{name: source[name] for name in ("licence", "attribution", "provenance")},
    }


def _decide(dataset: Dataset, recipe: Recipe, places: tuple[list[int], list[int]], rng: np.random.Generator) -> None:
    """Decisions by the recipe's rules, copies of one clip in forty, and places of the kept ones in the shard."""
    db = connect(dataset.root)
    failed = dict(db.execute(f"SELECT clip_id, {failed_rules_sql(recipe.select)} FROM clips").fetchall())
    rows = read_table(dataset, "clips").to_pylist()
    best = None
    for k, row in enumerate(rows):
        row["failed_rules"] = list(failed[row["clip_id"]])
        if best and not row["failed_rules"] and k % 40 == 0:
            row |= {"duplicate_of": best, "failed_rules": ["duplicate"]}
        row["decision"] = "reject" if row["failed_rules"] else "keep"
        if row["decision"] == "keep":
            best = row["clip_id"]
            row["split"] = "train"
            row["weight"] = float(rng.uniform(0.3, 3))
            row["shard"] = "train-000000.tar"
            use = [(k + frame) % NUM_PICTURES for frame in range(row["num_frames"])]
            row["frame_offsets"], row["frame_sizes"] = ([values[u] for u in use] for values in places)
    replace_table(dataset, "clips", make_table("clips", rows))


def measure_page(page_file: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds in headless Chromium; each slider is moved `rounds` times, everything else once."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs an installed Chromium")
    figures: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]")
        page.wait_for_timeout(500)
        paints = page.evaluate("performance.getEntriesByType('paint').map((p) => [p.name, p.startTime])")
        figures |= {f"{name.replace('-', '_')}_ms": round(at) for name, at in paints}
        figures["ready_ms"] = round(page.evaluate("performance.getEntriesByType('mark')[0].startTime"))
        figures["open_thresholds_ms"] = round(page.locator("#tab-thresholds").evaluate(REACTION, [None, "click"]))
        times = []
        for slider in page.locator("input[type=range]").all():
            low, high = float(slider.get_attribute("min")), float(slider.get_attribute("max"))
            for share in np.linspace(0.1, 0.9, rounds):
                times.append(slider.evaluate(REACTION, [low + (high - low) * float(share), "input"]))
        figures["slider_median_ms"] = round(float(np.median(times)), 1)
        figures["slider_p95_ms"] = round(float(np.percentile(times, 95)), 1)
        figures["slider_worst_ms"] = round(max(times), 1)
        computing = page.evaluate("performance.getEntriesByName('thresholds').map((m) => m.duration)")
        figures["slider_script_worst_ms"] = round(max(computing), 1)
        figures["open_clips_ms"] = round(page.locator("#tab-clips").evaluate(REACTION, [None, "click"]))
        figures["filter_decision_ms"] = round(
            page.locator("[data-filter=decision]").evaluate(REACTION, ["reject", "change"])
        )
        figures["filter_all_ms"] = round(page.locator("#reset-filters").evaluate(REACTION, [None, "click"]))
        figures["search_first_ms"] = round(page.locator("#search").evaluate(REACTION, ["interview_000", "input"]))
        figures["search_ms"] = round(page.locator("#search").evaluate(REACTION, ["channel 17", "input"]))
        page.locator("#reset-filters").click()
        figures["sort_ms"] = round(page.locator("#sort").evaluate(REACTION, ["sharpness", "change"]))
        figures["scroll_to_end_ms"] = round(
            page.locator("#clips .scroll").evaluate(
                REACTION.replace("element.click()", "element.scrollTop = 1e9"), [None, "click"]
            )
        )
        figures["cards_in_page"] = page.locator(".card").count()
        figures["open_identities_ms"] = round(page.locator("#tab-identities").evaluate(REACTION, [None, "click"]))
        figures["open_duplicates_ms"] = round(page.locator("#tab-duplicates").evaluate(REACTION, [None, "click"]))
        figures["heap_mb"] = round(page.evaluate("performance.memory.usedJSHeapSize") / 1e6, 1)
        figures["requests_elsewhere"] = sum(not url.startswith(("file:", "data:")) for url in requests)
        browser.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5, help="positions of each slider")
    parser.add_argument("--folder", type=Path, help="keep the data set here, and use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="portrait-review-") as scratch:
        folder = arguments.folder or Path(scratch) / "dataset"
        dataset = Dataset(folder) if folder.is_dir() else make_dataset(folder, arguments.clips)
        figures: dict[str, Any] = {"clips": read_table(dataset, "clips", ["clip_id"]).num_rows}
        shutil.rmtree(folder / "report", ignore_errors=True)  # a kept one would make the first build the second
        for name in ("build_s", "build_again_s"):
            start = time.perf_counter()
            page_file = build(dataset, read_sources=False)
            figures[name] = round(time.perf_counter() - start, 1)
        strips = list((page_file.parent / "strips").iterdir())
        figures["index_html_mb"] = round(page_file.stat().st_size / 1e6, 2)
        figures["strips"] = len(strips)
        figures["strips_mb"] = round(sum(path.stat().st_size for path in strips) / 1e6, 1)
        figures |= measure_page(page_file, arguments.rounds)
    json.dump(figures, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
