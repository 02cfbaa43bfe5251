"""prepare_report.html: one self-contained page that shows what became of the text."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.html_page import data_url, figure_text, render_page
from data_pipeline.plot_style import ACCENT, GRID, hide_frame, new_figure, shortened, to_png
from data_pipeline.prepare.clean_task import EXCERPT_CHARS, documents, sources, texts
from data_pipeline.prepare.duplicates import Duplicates
from data_pipeline.prepare.scan import Scan
from data_pipeline.shards.manifest import Manifest
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.task_store import TaskStore

REPORT_FILE = "prepare_report.html"
MAX_SOURCES = 30
MAX_BITS = 64  # of a document's length
MAX_LABEL_CHARS = 48
IN_TILES = ("documents", "text bytes", "tokens", "bytes per token", "vocabulary", "train samples", "validation samples")


def write_prepare_report(
    folder: Path, manifest: Manifest, scan: Scan, work: TaskStore, figures: Mapping[str, Any]
) -> None:
    """Write the page into the dataset's folder. Equal datasets and versions of matplotlib give equal bytes."""
    found, changed = scan.dropped, scan.changed
    shown = {name: figure_text(value) for name, value in figures.items() if not isinstance(value, dict)}
    page = render_page(
        _PAGE,
        name=manifest.corpus.name,
        tiles=[(name, shown[name]) for name in IN_TILES if name in shown],
        figures=[(name, text) for name, text in shown.items() if name not in IN_TILES],
        images=[(title, data_url(image)) for title, image in _images(manifest, scan, work)],
        num_read=scan.num_read,
        counts=[("dropped", sorted(found.items())), ("changed", sorted(changed.items()))],
        examples=[(why, [(source, text) for _, source, text in rows]) for why, rows in scan.examples.items()],
        clusters=list(_clusters(scan.duplicates, work, [task.key for task in scan.tasks])),
        settings=sorted(manifest.settings.items()),
    )
    write_durably(folder / REPORT_FILE, page)


def _clusters(
    duplicates: Duplicates, work: TaskStore, keys: list[str]
) -> Iterator[tuple[int, list[tuple[str, str, str]]]]:
    """The size of each of the largest clusters, with role, source and beginning of the kept document and a dropped
    one."""
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
        yield size, [("kept", *found[kept]), ("dropped", *found[last])]


def _images(manifest: Manifest, scan: Scan, work: TaskStore) -> Iterator[tuple[str, bytes]]:
    lengths = (documents(work, task.key)["num_bytes"][task.kept] for task in scan.tasks)
    of_pieces = (np.bincount(np.log2(some).astype(np.int64), minlength=MAX_BITS) for some in lengths)
    counts = np.trim_zeros(sum(of_pieces, np.zeros(MAX_BITS, dtype=np.int64)), "b")
    name = manifest.corpus.name
    yield "Length of the kept documents", _draw_histogram(name, 2.0 ** np.arange(len(counts) + 1), counts)
    by_source = sorted(manifest.sources, key=lambda source: -source.tokens)[:MAX_SOURCES]
    yield "Tokens by source", _draw_bars(name, [(source.name, source.tokens) for source in by_source])
    if scan.dropped:
        yield "Dropped documents, by reason", _draw_bars(name, sorted(scan.dropped.items(), key=lambda item: -item[1]))
    if scan.duplicates.cluster_sizes:
        sizes = sorted(scan.duplicates.cluster_sizes.items())
        shown = [(f"{size} documents", number) for size, number in itertools.islice(sizes, MAX_SOURCES)]
        yield "Clusters of similar documents, by size", _draw_bars(name, shown)


def _draw_histogram(name: str, edges: Any, counts: Any) -> bytes:
    figure = new_figure(name, 3.2)
    axes = figure.subplots()
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=ACCENT, edgecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes")
    axes.set_ylabel("documents")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    hide_frame(axes)
    return to_png(figure)


def _draw_bars(name: str, rows: list[tuple[str, int]]) -> bytes:
    figure = new_figure(name, 1.0 + 0.28 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    bars = axes.barh(places, [value for _, value in rows], color=ACCENT)
    labels = [shortened(label, MAX_LABEL_CHARS) for label, _ in rows]
    axes.set_yticks(places, labels, parse_math=False)  # no math: $ may be part of a name
    axes.invert_yaxis()
    axes.bar_label(bars, labels=[f"{value:,}" for _, value in rows], padding=3, fontsize=8)
    axes.margins(x=0.12)
    hide_frame(axes)
    axes.set_xticks([])
    return to_png(figure)


_PAGE = """\
{% extends "frame.html" %}
{% import "parts.html" as parts %}
{% block title %}{{ name }}: prepared data{% endblock %}
{% block body %}
<header><span class="quiet">prepared data</span><h1>{{ name }}</h1></header>
{{ parts.tiles(tiles) }}
<section><h2>Figures</h2>
{{ parts.pairs(figures) }}
</section>
{% for title, url in images %}
{{ parts.picture(title, url) }}
{% endfor %}
{% for what, rows in counts if rows %}
<section><h2>Documents {{ what }}</h2>
<p class="quiet">of {{ "{:,}".format(num_read) }} in the inputs</p>
<table>
{% for reason, count in rows %}
<tr><td>{{ reason }}</td><td class="number">{{ "{:,}".format(count) }}</td>
<td class="number">{{ "%.2f" | format(100 * count / num_read) }} %</td></tr>
{% endfor %}
</table></section>
{% endfor %}
{% if examples %}
<section><h2>Examples: the original documents, or what is wrong with them</h2>
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
</section>
{% endif %}
{% if clusters %}
<section><h2>The largest clusters of similar documents</h2>
{% for size, rows in clusters %}
<details><summary>{{ size }} documents</summary>
{% for role, source, text in rows %}
<p class="quiet">{{ role }}: {{ source }}</p><pre>{{ text }}</pre>
{% endfor %}
</details>
{% endfor %}
</section>
{% endif %}
<section><details><summary>Settings</summary>
{{ parts.pairs(settings) }}
</details></section>
{% endblock %}
"""
