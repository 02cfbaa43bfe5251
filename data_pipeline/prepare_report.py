"""prepare_report.html: what became of the text, on one page for people to read, its images inside."""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.duplicates import Duplicates
from data_pipeline.durable import write_durably
from data_pipeline.pieces.cleaned import EXCERPT_CHARS, documents, sources, texts
from data_pipeline.pieces.work import WorkFolder
from data_pipeline.scan import Scan
from data_pipeline.shards.manifest import Manifest
from data_pipeline.sources.names import printable

REPORT_FILE = "prepare_report.html"
SHOWN_SOURCES = 30
MOST_BITS = 64  # of a document's length
INK, ACCENT = "#444444", "#3b6ea8"


def write_prepare_report(
    folder: Path, manifest: Manifest, scan: Scan, work: WorkFolder, figures: Mapping[str, Any]
) -> None:
    """Write the page into the dataset's folder; equal datasets give equal bytes with equal versions of matplotlib."""
    import jinja2

    found, changed = scan.dropped, scan.changed
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    html = page.render(
        name=manifest.corpus.name,
        figures=[(name, value) for name, value in figures.items() if not isinstance(value, dict)],
        images=[(title, base64.b64encode(image).decode()) for title, image in _images(manifest, scan, work)],
        num_read=scan.num_read,
        counts=[("left out", sorted(found.items())), ("changed", sorted(changed.items()))],
        examples=[(why, [(source, text) for _, source, text in rows]) for why, rows in scan.examples.items()],
        clusters=list(_clusters(scan.duplicates, work, [piece.key for piece in scan.pieces])),
        settings=sorted(manifest.settings.items()),
    )
    write_durably(folder / REPORT_FILE, printable(html).encode())


def _clusters(
    duplicates: Duplicates, work: WorkFolder, keys: list[str]
) -> Iterator[tuple[int, list[tuple[str, str, str]]]]:
    """Of the largest clusters: size, and role, source and beginning of the document kept and of one left out."""
    wanted = {number for kept, last, _ in duplicates.largest for number in (kept, last)}
    found: dict[int, tuple[str, str]] = {}
    first = 0
    for key, kept_here in zip(keys, duplicates.kept, strict=True):
        if any(first <= number < first + len(kept_here) for number in wanted):
            shown = np.isin(np.arange(first, first + len(kept_here)), list(wanted))
            chosen = zip(np.flatnonzero(shown) + first, itertools.compress(sources(work, key), shown), strict=True)
            for (number, source), text in zip(chosen, texts(work, key, shown), strict=True):
                found[int(number)] = (source, text[:EXCERPT_CHARS])
        first += len(kept_here)
    for kept, last, size in duplicates.largest:
        yield size, [("kept", *found[kept]), ("left out", *found[last])]


def _images(manifest: Manifest, scan: Scan, work: WorkFolder) -> Iterator[tuple[str, bytes]]:
    lengths = (documents(work, piece.key)["num_bytes"][piece.kept] for piece in scan.pieces)
    of_pieces = (np.bincount(np.log2(some).astype(np.int64), minlength=MOST_BITS) for some in lengths)
    counts = np.trim_zeros(sum(of_pieces, np.zeros(MOST_BITS, dtype=np.int64)), "b")
    yield "Length of the documents that are kept", _draw_histogram(2.0 ** np.arange(len(counts) + 1), counts)
    by_source = sorted(manifest.sources, key=lambda source: -source.tokens)[:SHOWN_SOURCES]
    yield "Tokens by source", _draw_bars([(source.name, source.tokens) for source in by_source])
    if scan.dropped:
        yield "Documents left out, by reason", _draw_bars(sorted(scan.dropped.items(), key=lambda item: -item[1]))
    if scan.duplicates.cluster_sizes:
        sizes = sorted(scan.duplicates.cluster_sizes.items())
        shown = [(f"{size} documents", number) for size, number in itertools.islice(sizes, SHOWN_SOURCES)]
        yield "Clusters of documents that are alike, by size", _draw_bars(shown)


def _draw_histogram(edges: Any, counts: Any) -> bytes:
    figure, axes = _figure(3.0)
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=ACCENT, edgecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes")
    axes.set_ylabel("documents")
    return _png(figure)


def _draw_bars(rows: list[tuple[str, int]]) -> bytes:
    figure, axes = _figure(0.8 + 0.28 * len(rows))
    names = [name if len(name) <= 48 else f"…{name[-47:]}" for name, _ in rows]
    places = range(len(rows))
    bars = axes.barh(places, [value for _, value in rows], color=ACCENT)
    axes.set_yticks(places, names, parse_math=False)  # $ in a name is no formula
    axes.invert_yaxis()
    axes.bar_label(bars, labels=[f"{value:,}" for _, value in rows], padding=3, fontsize=8)
    axes.margins(x=0.12)
    return _png(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}: prepared data</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } h2 { margin-top: 2rem; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; white-space: pre-wrap; max-height: 14rem; }
summary { cursor: pointer; } .quiet { color: #666; }
</style></head><body>
<h1>{{ name }}</h1>
<table>
{% for key, value in figures %}
<tr><td class="quiet">{{ key }}</td><td>{{ "{:,}".format(value) if value is integer else value }}</td></tr>
{% endfor %}
</table>
{% for title, image in images %}
<h2>{{ title }}</h2><img alt="{{ title }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
{% for what, rows in counts if rows %}
<h2>Documents {{ what }}</h2>
<p class="quiet">of {{ "{:,}".format(num_read) }} in the inputs</p>
<table>
{% for reason, count in rows %}
<tr><td>{{ reason }}</td><td class="number">{{ "{:,}".format(count) }}</td>
<td class="number">{{ "%.2f" | format(100 * count / num_read) }} %</td></tr>
{% endfor %}
</table>
{% endfor %}
{% if examples %}
<h2>Some of them, as they were, or what is wrong with them</h2>
{% for reason, rows in examples %}
<details><summary>{{ reason }}</summary>
{% for source, text in rows %}
<p class="quiet">{{ source }}</p>
{% if text %}
<pre>{{ text }}</pre>
{% endif %}
{% endfor %}
</details>
{% endfor %}
{% endif %}
{% if clusters %}
<h2>The largest clusters of documents that are alike</h2>
{% for size, rows in clusters %}
<details><summary>{{ size }} documents</summary>
{% for role, source, text in rows %}
<p class="quiet">{{ role }}: {{ source }}</p><pre>{{ text }}</pre>
{% endfor %}
</details>
{% endfor %}
{% endif %}
<details><summary>Settings</summary><table>
{% for key, value in settings %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></details>
</body></html>
"""
