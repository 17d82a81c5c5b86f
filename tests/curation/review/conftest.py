"""A headless browser for the page, and data sets to show in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from curation.recipe import Recipe, recipe_of, recipe_toml
from curation.review import build
from curation.rules import failed_rules_sql
from manifests.schema import make_table
from manifests.store import Dataset, read_table, replace_table
from tests.benchmarks.review import make_dataset


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made data set of 240 clips with measures, copies and licences; rejected ones without pictures. Read only."""
    folder = tmp_path_factory.mktemp("measured") / "dataset"
    make_dataset(folder, 240)
    return folder


LICENCES = (
    "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode.en",
    "MIT License\n\nPermission is hereby granted, free of charge, to any person " * 60,
    "-evil",
    *(f"Licence {k:02d}" for k in range(40)),
)


@pytest.fixture(scope="session")
def licensed(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same clips under `LICENCES` in turn, of which the recipe allows the first two. Read only."""
    folder = tmp_path_factory.mktemp("licensed") / "dataset"
    dataset = Dataset(shutil.copytree(measured, folder))
    options = replace(recipe_of(folder).select, licences=LICENCES[:2])
    dataset.recipe_file.write_text(recipe_toml(Recipe(select=options)))
    clips = read_table(dataset, "clips").to_pylist()
    clips = make_table("clips", [row | {"licence": LICENCES[k % len(LICENCES)]} for k, row in enumerate(clips)])
    db = duckdb.connect()
    db.register("clips", clips)
    decided = f"""SELECT * REPLACE (failed AS failed_rules, if(len(failed) = 0, 'keep', 'reject') AS decision)
        FROM (SELECT *, {failed_rules_sql(options)} AS failed FROM clips) ORDER BY clip_id"""
    rows = db.sql(decided).to_arrow_table().drop_columns(["failed"]).to_pylist()
    replace_table(dataset, "clips", make_table("clips", rows))
    return folder


def is_remote(folder: Path) -> bool:
    """Whether the sources are made-up addresses that nobody should ask for."""
    return read_table(Dataset(folder), "sources")["uris"][0].as_py()[0].startswith("s3://")


class Visit:
    """A page, everything that it asked for and everything that went wrong on it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 820})
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]")

    def count(self, selector: str) -> int:
        """The first number of a text such as "1,234 of 20,000 clips"."""
        return int(self.page.inner_text(selector).split()[0].replace(",", ""))

    def wait_for_count(self, selector: str, number: int) -> None:
        """Like `count`, for what the page changes in its next frame."""
        deadline = time.monotonic() + 10
        while self.count(selector) != number:
            assert time.monotonic() < deadline, f"{selector}: {self.page.inner_text(selector)}, expected {number}"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pages are built: strips that another test has drawn are there already."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def visit(browser: Any, pages: Path) -> Iterator[Callable[[Path | str], Visit]]:
    """Builds the page of a data set (or takes a URL) and opens it; at the end nothing may have gone wrong."""
    visits = []

    def open_page(place: Path | str) -> Visit:
        url = place
        if isinstance(place, Path):
            url = build(Dataset(place), pages / place.parent.name, read_sources=not is_remote(place)).as_uri()
        visits.append(Visit(browser, url))
        return visits[-1]

    yield open_page
    for visit in visits:
        visit.page.close()
        assert visit.problems == []
