"""Self-contained HTML pages: a common frame, style and macros."""

import base64
from typing import Any

from data_pipeline.storage.file_names import printable


def render_page(template: str, **values: Any) -> bytes:
    """Render a template that extends frame.html and may import parts.html. Every value is escaped."""
    import jinja2

    loader = jinja2.DictLoader({"frame.html": _FRAME, "parts.html": _PARTS, "page.html": template})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    return printable(environment.get_template("page.html").render(**values)).encode()


def data_url(image: bytes) -> str:
    """A PNG image as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def figure_text(value: object) -> str:
    """Format a value for display: integers with thousands separators, floats rounded to four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


_FRAME = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{% block title %}{% endblock %}</title>
<style>
  :root { --ink: #1f2937; --quiet: #6b7280; --line: #e5e7eb; --accent: #24589c; }
  * { box-sizing: border-box; }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #f6f7f9; margin: 0; }
  main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 48px; }
  header { margin: 0 0 20px; }
  h1 { font-size: 26px; line-height: 1.25; margin: 2px 0 6px; overflow-wrap: anywhere; }
  h2 { font-size: 17px; margin: 0 0 12px; }
  h1 .state { font-size: 13px; font-weight: 600; line-height: 22px; padding: 0 10px; border-radius: 11px;
              margin-left: 8px; display: inline-block; vertical-align: middle; background: #e5e7eb; }
  .state.training { background: #dbeafe; color: #1e40af; }
  .state.finished { background: #d1fae5; color: #065f46; }
  .state.stopped { background: #fef3c7; color: #92400e; }
  .state.failed { background: #fee2e2; color: #991b1b; }
  section { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px;
            margin: 16px 0; overflow-x: auto; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); gap: 12px; }
  .tile { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
  .tile strong { display: block; font-size: 21px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
  .quiet, .tile span, th { color: var(--quiet); font-size: 13px; font-weight: normal; }
  p.quiet { margin: 4px 0; overflow-wrap: anywhere; }
  img { width: 100%; height: auto; display: block; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  td, th { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #f0f1f3; vertical-align: top; }
  td { overflow-wrap: anywhere; min-width: 4.5em; }
  .number { text-align: right; }
  pre { overflow-x: auto; font-size: 13px; margin: 0; }
  pre.text, details pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em; overflow-y: auto; }
  details { margin: 6px 0; }
  summary { cursor: pointer; font-weight: 600; }
  @media (max-width: 600px) {
    main { padding: 12px 8px 32px; }
    section { padding: 12px; }
    .tiles { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px; }
    .tile { padding: 8px 10px; }
    .tile strong { font-size: 17px; }
  }
</style>
{% block head %}
{% endblock %}
</head>
<body><main>
{% block body %}
{% endblock %}
</main></body>
</html>
"""

_PARTS = """\
{% macro tiles(rows) %}
<div class="tiles">
{% for label, text in rows %}
  <div class="tile"><strong>{{ text }}</strong><span>{{ label }}</span></div>
{% endfor %}
</div>
{% endmacro %}

{% macro picture(title, url) %}
<section><h2>{{ title }}</h2><img alt="{{ title }}" src="{{ url }}"></section>
{% endmacro %}

{% macro table(header, rows) %}
<table>
  <tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}
  <tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}

{% macro charts(charts) %}
<script>{{ charts.library | safe }}</script>
<script type="application/json" id="charts">{{ charts.content | safe }}</script>
<script>Bokeh.embed.embed_item(JSON.parse(document.getElementById("charts").textContent));</script>
{% endmacro %}

{% macro pairs(rows) %}
<table>
{% for key, value in rows %}
  <tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% endmacro %}
"""
