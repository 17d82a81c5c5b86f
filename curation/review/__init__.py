"""The review page: `python -m curation review DATASET`, or `curation.review.build(Dataset(folder))`.

One file, `index.html`, holds the program and all figures; pictures lie beside it in `strips/`. It works from a file or
any web server and asks no network for anything. What it tells of clips (ids, sources, measures, pictures) is in these
files only, named after hashes and not after clips: deleting the folder, or building the page again, forgets whatever is
not in the manifests any more.
"""

from curation.review.build import build

__all__ = ["build"]
