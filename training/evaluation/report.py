"""The page with pictures, a file that needs nothing from elsewhere, and the table on the console."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table

from manifests.console import amount, make_console
from manifests.store import write_bytes_atomically
from training.evaluation.catalogue import METRICS
from training.evaluation.charts import compare_chart, sweep_chart
from training.evaluation.control import Shoulders, Sweep
from training.evaluation.reenactment import Reenacted, spread
from training.evaluation.results import to_json
from training.evaluation.thumbnails import DIFFERENCE_GAIN, SMALL_PX, STRIP_PX, data_url

TITLES = {
    "self": "Self-reenactment",
    "cross_relative": "Cross-reenactment, relative motion",
    "cross_absolute": "Cross-reenactment, absolute motion",
    "control": "Control of eyes and lips",
    "shoulders": "Shoulders and stitching",
}
INTRODUCTIONS = {
    "self": "The first frame of each clip is the source, its other frames drive. <em>Copying the source</em> shows the "
    "same figures for a model that never moves: what is not better than that has not been learned.",
    "cross_relative": "The first frame of another person takes over how the clip changes since its first frame. "
    "Its lips are not closed first, as <code>animate</code> does unless told otherwise.",
    "cross_absolute": "The first frame of another person takes over the expression and pose of the clip.",
    "control": "Eyes and lips of still frames are asked to open step by step; the analyser says how far they did. "
    "Dotted lines are stills, solid ones videos.",
    "shoulders": "Another person's frames drive the source with and without stitching. Shoulders should stay as they "
    "are in the source rendered at rest.",
}
MAX_CHART_ROWS = 60


def write_report(folder: Path, results: dict[str, Any], pictures: dict[str, Any], *, num_strips: int) -> None:
    """Write evaluation.json and index.html into a folder, each atomically."""
    write_bytes_atomically(folder / "evaluation.json", to_json(results))
    write_bytes_atomically(folder / "index.html", render_page(results, pictures, num_strips=num_strips).encode())


def render_page(results: dict[str, Any], pictures: dict[str, Any], *, num_strips: int) -> str:
    """The whole page: figures as tables, pictures inside it."""
    template = Template((files("training.evaluation") / "page.html").read_text())
    data, weights = results["data"], results["weights"]
    analyser = results["analyser"]
    facts = {
        "weights": escape(weights["name"])
        + (f", {escape(weights['checkpoint'])}, {weights['kind']}" if weights["checkpoint"] else "")
        + f" <code>{weights['sha256'][:12]}</code>",
        "data": f"{escape(data['name'])}, split {escape(data['split'])}: {amount(data['num_clips'], 'clip')}, "
        f"{amount(data['num_stills'], 'still')}, {amount(data['num_identities'], 'identity', 'identities')}; "
        f"recipe <code>{escape(data['recipe_hash'])}</code>"
        + (f"; driven by the last {data['held_out_share']:.0%} of each clip" if data["held_out_share"] else ""),
        "compared at": f"{results['options']['compare_size_px']} × {results['options']['compare_size_px']} px",
        "analyser": escape(_name_analyser(analyser)) if analyser else "none",
        "networks run in": escape(results["options"]["dtype"]),
        "versions": escape(", ".join(f"{name} {number}" for name, number in results["versions"].items())),
    }
    sections = [
        _section(name, section, pictures.get(name, []), num_strips) for name, section in results["sections"].items()
    ]
    return template.substitute(
        title=escape(f"{weights['name']} on {data['name']}, {data['split']}"),
        facts="".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()),
        links="".join(f'<a href="#{name}">{TITLES[name]}</a>' for name in results["sections"]),
        sections="".join(sections),
        definitions="".join(
            f"<dt>{escape(metric['label'])}{_unit(metric['unit'])}</dt><dd>{escape(metric['definition'])}</dd>"
            for metric in results["definitions"].values()
        ),
    )


def _name_analyser(analyser: dict[str, Any]) -> str:
    """With what made the embeddings, where it has that role: an analyser of one's own may name its roles otherwise."""
    embedding = analyser["weights"].get("embedding")
    return f"{analyser['name']} ({embedding['name']})" if embedding else analyser["name"]


def _section(name: str, section: dict[str, Any], shown: Sequence[Any], num_strips: int) -> str:
    body = f"<h2>{TITLES[name]}</h2><p>{INTRODUCTIONS[name]}</p>"
    if "missing" in section:
        return f'<section id="{name}">{body}<p class="missing">Missing: {escape(section["missing"])}</p></section>'
    body += _figures(section)
    if section["part"] in ("self", "cross"):
        body += _clip_details(section, shown, num_strips)
    elif section["part"] == "control":
        body += _sweep_details(section, shown, num_strips)
    else:
        body += "".join(_shoulder_strip(pair) for pair in _some(shown, num_strips))
    return f'<section id="{name}">{body}</section>'


def _figures(section: dict[str, Any]) -> str:
    """The table of figures; a better result than copying is marked, a missing figure says why."""
    entries = section["aggregate"].values()
    has_copy = any(entry.get("copy_source") is not None for entry in entries)
    has_spread = any("std" in entry for entry in entries)
    rows = []
    for key, entry in section["aggregate"].items():
        metric = METRICS[key]
        arrow = {"lower": "↓", "higher": "↑", "neither": ""}[metric.better]
        name = f'<th scope="row">{escape(metric.label)}{_unit(metric.unit)} <span class="arrow">{arrow}</span></th>'
        if "missing" in entry:
            span = 2 + has_copy + has_spread
            rows.append(f'<tr>{name}<td colspan="{span}" class="missing">missing: {escape(entry["missing"])}</td></tr>')
            continue
        kinds = [(f'<th scope="row" class="part">{label}</th>', part) for label, part in _by_source_kind(entry)]
        for heading, figure in [(name, entry), *kinds]:
            cells = f'<td class="figure {_verdict(key, figure)}">{_number(key, figure["result"])}</td>'
            if has_copy:
                cells += f"<td>{_number(key, figure.get('copy_source'))}</td>"
            if has_spread:
                cells += f"<td>{_number(key, figure.get('std'))}</td>"
            rows.append(f"<tr>{heading}{cells}<td>{_counted(figure)}</td></tr>")
    head = "<th></th><th>result</th>" + ("<th>copying the source</th>" if has_copy else "")
    head += (f"<th>± {'clips' if 'clips' in section else 'sources'}</th>" if has_spread else "") + "<th>over</th>"
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _by_source_kind(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Label and figure of each kind of source, where there are two."""
    return [(f"of {kind}s", part) for kind, part in entry.get("by_source_kind", {}).items()]


def _verdict(key: str, entry: dict[str, Any]) -> str:
    """better or worse than copying the source; nothing where that says nothing."""
    better, copy = METRICS[key].better, entry.get("copy_source")
    if copy is None or better == "neither" or METRICS[key].group == "faces" or entry["result"] == copy:
        return ""
    return "better" if (entry["result"] < copy) == (better == "lower") else "worse"


def _clip_details(section: dict[str, Any], shown: Sequence[Reenacted], num_strips: int) -> str:
    """A chart of the clips, of many only of some, and strips of pictures of some, worst first."""
    key = next((k for k in ("face_l1", "l1", "aed") if "result" in section["aggregate"].get(k, {})), None)
    order = list(range(len(shown)))
    body = ""
    if key:
        order.sort(key=lambda k: (-(section["clips"][k]["result"].get(key) or 0), section["clips"][k]["clip_id"]))
        columns = [[row[column].get(key) for row in section["clips"]] for column in ("result", "copy_source")]
        points = [
            (section["clips"][k]["clip_id"], *(column[k] for column in columns)) for k in _some(order, MAX_CHART_ROWS)
        ]
        metric = METRICS[key]
        which = "every clip" if len(points) == len(order) else f"{len(points)} of {len(order)} clips"
        body += f"<h3>{escape(metric.label)}{_unit(metric.unit)} of {which}</h3>{compare_chart(points, metric.digits)}"
        body += f"<h3>Clips in pictures, by {escape(metric.label)}, worst first</h3>"
    return body + "".join(_clip_strip(shown[k], section["clips"][k], section["part"]) for k in _some(order, num_strips))


def _clip_strip(reenacted: Reenacted, row: dict[str, Any], part: str) -> str:
    """Driving above, result below, side by side for frames over the clip; the source at the left."""
    keys = ("face_l1", "face_ssim", "lpips", "csim", "aed", "pose_angle", "jitter", "face_found")
    figures = [
        f"{METRICS[key].label} {_number(key, row['result'].get(key))}"
        + (f" {METRICS[key].unit}" if METRICS[key].unit else "")
        for key in keys
        if row["result"].get(key) is not None
    ]
    source = "" if part == "self" else f" · source <code>{escape(row['source_clip_id'])}</code>"
    num_frames = amount(row["num_frames"], "frame")
    caption = f"<code>{escape(row['clip_id'])}</code>{source} · {num_frames} · {escape(' · '.join(figures))}"
    columns = [_column([("source", reenacted.source_picture)])]
    for number, (frame, pictures) in enumerate(reenacted.pictures):
        labels = {"driving": f"driving, frame {frame}"}
        if number == 0:
            labels |= {"result": "result", "difference": f"difference × {DIFFERENCE_GAIN}"}
        parts = [(labels.get(name, ""), jpeg) for name, jpeg in pictures.items()]
        columns.append(_column(parts))
    return f'<figure><figcaption>{caption}</figcaption><div class="strip">{"".join(columns)}</div></figure>'


def _sweep_details(section: dict[str, Any], sweeps: Sequence[Sweep], num_strips: int) -> str:
    charts = ""
    for region, label in (("eye", "Eyes"), ("lip", "Lips")):
        lines = [
            (row["asked"], row["achieved"], row["source_kind"]) for row in section["sweeps"] if row["region"] == region
        ]
        charts += f"<div><h3>{label}: achieved over asked openness</h3>{sweep_chart(lines)}</div>"
    chosen = set(_some(list(dict.fromkeys(sweep.clip.clip_id for sweep in sweeps)), num_strips))
    strips = ""
    for sweep in sweeps:
        if sweep.clip.clip_id not in chosen:
            continue
        columns = [_column([(f"source {_openness(sweep.at_rest)}", sweep.pictures[0])], SMALL_PX)]
        for asked, got, picture in zip(sweep.asked, sweep.achieved, sweep.pictures[1:], strict=True):
            columns.append(_column([(f"{asked:.2f} → {_openness(got)}", picture)], SMALL_PX))
        caption = f"<code>{escape(sweep.clip.clip_id)}</code> · {sweep.region}s, asked → achieved"
        strips += f'<figure><figcaption>{caption}</figcaption><div class="strip">{"".join(columns)}</div></figure>'
    return f'<div class="charts">{charts}</div>{strips}'


def _shoulder_strip(pair: Shoulders) -> str:
    columns = "".join(_column([part]) for part in pair.pictures.items())
    figures = ", ".join(f"{METRICS[key].label} {_number(key, value)}" for key, value in pair.figures.items())
    source, driving = (escape(clip.clip_id) for clip in (pair.source, pair.clip))
    caption = f"<code>{source}</code> driven by <code>{driving}</code> · {figures}"
    return f'<figure><figcaption>{caption}</figcaption><div class="strip">{columns}</div></figure>'


def _column(parts: Sequence[tuple[str, bytes]], size_px: int = STRIP_PX) -> str:
    """Pictures above each other, each with a line of text below it."""
    cells = "".join(
        f'<div><img src="{data_url(jpeg)}" alt="{escape(label)}" width="{size_px}" height="{size_px}">'
        f"<span>{escape(label) or '&nbsp;'}</span></div>"
        for label, jpeg in parts
    )
    return f'<div class="column">{cells}</div>'


def _some(items: Sequence[Any], number: int) -> list[Any]:
    """At most `number` of the items, spread over them, the first and the last among them."""
    return [items[k] for k in spread(0, len(items), min(number, len(items)))] if items and number else []


def _number(key: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{METRICS[key].digits}f}"


def _openness(value: float | None) -> str:
    return "no face" if value is None else f"{value:.2f}"


def _unit(unit: str) -> str:
    return f' <span class="unit">{escape(unit)}</span>' if unit else ""


def _counted(entry: dict[str, Any]) -> str:
    names = {"num_frames": "frame", "num_sources": "source", "num_pairs": "pair"}
    return ", ".join(amount(entry[name], label) for name, label in names.items() if name in entry)


def print_summary(results: dict[str, Any], console: Console | None = None) -> None:
    """One table a section on standard output."""
    console = console or make_console()
    data = results["data"]
    console.print(
        f"{results['weights']['name']} ({results['weights']['sha256'][:12]}) on {data['name']}, {data['split']}: "
        f"{amount(data['num_clips'], 'clip')}, {amount(data['num_identities'], 'identity', 'identities')}",
        highlight=False,
    )
    for name, section in results["sections"].items():
        if "missing" in section:
            console.print(f"{TITLES[name]}: missing, {section['missing']}", highlight=False)
            continue
        table = Table(title=TITLES[name], title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        for column in ("result", "copying the source"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("over", overflow="fold")
        for key, entry in section["aggregate"].items():
            metric = METRICS[key]
            label = metric.label + (f" ({metric.unit})" if metric.unit else "")
            if "missing" in entry:
                table.add_row(label, "MISSING", "", entry["missing"])
            else:
                for name, figure in [(label, entry), *_by_source_kind(entry)]:
                    name = name if figure is entry else f"  {name}"
                    copy = _number(key, figure.get("copy_source"))
                    table.add_row(name, _number(key, figure["result"]), copy, _counted(figure))
        console.print(table, highlight=False)
