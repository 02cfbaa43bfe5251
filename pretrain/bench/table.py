"""A result as text, made from the content of bench.json."""

from collections.abc import Collection, Iterator, Sequence

from pretrain.bench.result import Result

CONVENTIONS = {"6n": "6N", "6n_6lhs": "6N + 6Lhs", "6n_12lhs": "6N + 12Lhs"}


def as_table(result: Result) -> str:
    """All values except the single steps."""
    return "\n".join([*_head(result), "", *_figures(result), "", *_roofline(result), *_notes(result)]) + "\n"


def columns(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Rows as aligned columns; those in `left` are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _head(result: Result) -> Iterator[str]:
    config, layout, environment = result["config"], result["layout"], result["environment"]
    versions = environment["versions"]
    yield (
        f"{result['model']}: {layout['world_size']} x {environment['device']}, {config['engine']['precision']}, "
        f"ZeRO-{config['engine']['zero_stage']}, tp{layout['tp']} pp{layout['pp']} dp{layout['dp']}"
    )
    yield (
        f"{result['tokens_per_step']:,} tokens a step = {config['train']['global_batch_size']} samples of "
        f"{config['model']['seq_length']}, {config['train']['micro_batch_size']} at once; "
        f"{result['steps']['warmup']} warm-up and {result['steps']['timed']} timed steps"
    )
    yield ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed", "megatron-core"))


def _figures(result: Result) -> Iterator[str]:
    step, peak, ceiling, memory = (result[name] for name in ("step_seconds", "peak", "ceiling", "memory"))
    of_peak = f"peak {peak['tflops']:.4g} TFLOP/s, {peak['source']}" if peak else "peak not known"
    split = ", ".join(
        f"{name.replace('_', '-')} {milliseconds(seconds)}" for name, seconds in result["split_seconds"].items()
    )
    rows = [
        ("step", f"median {milliseconds(step['median'])} ms, p95 {milliseconds(step['p95'])} ms"),
        ("", f"mean of {split} ms"),
        ("tokens/s", f"{result['tokens_per_second']:,.0f}"),
        ("limits", f"{of_peak}; products {ceiling['tflops']:.4g} TFLOP/s measured ({ceiling['product']})"),
        ("", f"copies {ceiling['bandwidth_gb_per_second']:.4g} GB/s measured"),
        *(
            (f"MFU {CONVENTIONS[name]}", f"{share(of['of_peak'])} of the peak, {share(of['of_ceiling'])} of products")
            for name, of in result["mfu"].items()
        ),
        ("memory", f"{memory['peak_gib']:.2f} GiB at most, {memory['of']}"),
    ]
    width = max(len(name) for name, _ in rows)
    yield from (f"{name.ljust(width)}  {text}" for name, text in rows)


def _roofline(result: Result) -> Iterator[str]:
    whole = result["step_seconds"]["median"]
    rows = [("part of the median step", "ms", "share", "ideal ms", "of ideal")]
    for row in result["roofline"]:
        seconds, ideal = row["seconds"], row["ideal_seconds"]
        reached = share(ideal / seconds) if ideal and seconds else "-"
        rows.append((row["part"], milliseconds(seconds), share(seconds / whole), milliseconds(ideal), reached))
    yield from columns(rows)
    yield f"limited by: {result['limit']}"


def _notes(result: Result) -> Iterator[str]:
    for note in result["notes"]:
        yield f"note: {note}"
