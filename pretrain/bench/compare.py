"""Two results side by side: first what differed in their conditions, then the values and their ratios."""

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config_text import written
from pretrain.bench.result import Result, load
from pretrain.bench.table import CONVENTIONS, columns
from pretrain.config.records import flatten

_IGNORED = ("config.run.dir", "config.run.name")


def compare(first: Path, second: Path) -> str:
    """The comparison as text; raises RunError if a file is not a result."""
    results = load(first), load(second)
    different = list(differences(*results))
    rows = [("figure", "A", "B", "B / A")]
    for name, (before, now) in figures(*results).items():
        rows.append((name, f"{before:.6g}", f"{now:.6g}", f"{now / before:.3f}" if before else "-"))
    lines = [
        f"A: {first}",
        f"B: {second}",
        "",
        *(different or ["same settings, versions and machine"]),
        "",
        *columns(rows),
    ]
    return "\n".join(lines) + "\n"


def differences(first: Result, second: Result) -> Iterator[str]:
    """The conditions of the measurements that differ, by dotted key."""
    sides = [
        flatten({key: result[key] for key in ("config", "layout", "data", "steps", "environment")})
        for result in (first, second)
    ]
    for key in sorted({*sides[0], *sides[1]}):
        before, now = (side.get(key) for side in sides)
        if before != now and not key.startswith(_IGNORED):
            yield f"  {key}: A {written(before)}, B {written(now)}"


def figures(first: Result, second: Result) -> dict[str, tuple[float, float]]:
    """Name -> both values, for the values that both results have."""
    both = [dict(_figures(result)) for result in (first, second)]
    return {name: (value, both[1][name]) for name, value in both[0].items() if name in both[1]}


def _figures(result: Result) -> Iterator[tuple[str, float]]:
    yield "tokens/s", result["tokens_per_second"]
    for name in ("median", "p95"):
        yield f"step {name}, ms", 1000 * result["step_seconds"][name]
    for key, words in CONVENTIONS.items():
        for of, what in (("of_peak", "peak"), ("of_ceiling", "products")):
            share = result["mfu"][key][of]
            if share is not None:
                yield f"MFU {words} of {what}, %", 100 * share
    yield "products measured, TFLOP/s", result["ceiling"]["tflops"]
    yield "copies measured, GB/s", result["ceiling"]["bandwidth_gb_per_second"]
    yield "memory, GiB", result["memory"]["peak_gib"]
    for row in result["roofline"]:
        yield f"{row['part']}, ms", 1000 * row["seconds"]
