"""The summary of a checkpoint, as values for JSON and as text. It does not import torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.checkpoint.inventory import Found, bytes_below, next_resume
from pretrain.checkpoint.manifest import Manifest

Summary = dict[str, Any]

UNSAID = "-"


def list_facts(found: Sequence[Found]) -> list[Summary]:
    """One summary per folder."""
    newest = next_resume(found)
    return [
        {
            "folder": str(each.folder),
            **(_saved(each.manifest) if each.manifest else dict.fromkeys(("step", "tokens", "saved_at", "layout"))),
            "bytes": bytes_below(each.folder),
            "whole": each.is_whole and not each.is_leftover,
            "leftover": each.is_leftover,
            "faults": list(each.faults),
            "next_resume": each is newest,
        }
        for each in found
    ]


def list_lines(found: Sequence[Found]) -> list[str]:
    """The same as a table."""
    rows = []
    for facts, each in zip(list_facts(found), found, strict=True):
        numbers = [UNSAID if facts[key] is None else f"{facts[key]:,}" for key in ("step", "tokens")]
        rows.append(
            [
                each.folder.name,
                *numbers,
                facts["saved_at"] or UNSAID,
                size_text(facts["bytes"]),
                layout_text(facts["layout"]),
                each.status + (", the next resume takes it" if facts["next_resume"] else ""),
            ]
        )
    return table(["checkpoint", "step", "tokens", "saved", "size", "by", ""], rows, right=(1, 2, 4))


def facts_of(found: Found) -> Summary:
    """Run, data, versions, state and the main settings of a checkpoint that has a manifest."""
    manifest = found.manifest
    assert manifest is not None
    config, environment = manifest.get("config", {}), manifest.get("environment", {})
    return {
        "folder": str(found.folder),
        "format_version": manifest["format_version"],
        **_saved(manifest),
        "bytes": bytes_below(found.folder),
        "files": len(manifest["files"]),
        "run": {key: value for key, value in config.get("run", {}).items() if key in ("name", "dir", "seed")},
        "state": manifest["state"],
        "counters": manifest.get("counters"),
        "parameters": manifest.get("parameters"),
        "model": config.get("model"),
        "optim": config.get("optim"),
        "lr_schedule": config.get("lr_schedule"),
        "train": config.get("train"),
        "data": {
            "name": config.get("data", {}).get("name"),
            "mixture": config.get("data", {}).get("mixture"),
            "dataset_digest": manifest.get("dataset_digest"),
            "tokenizer_fingerprint": manifest.get("tokenizer_fingerprint"),
            "vocab_size": manifest.get("vocab_size"),
        },
        "versions": environment.get("versions"),
        "git": environment.get("git"),
    }


def summary_lines(facts: Summary) -> list[str]:
    """The same as text, one line per subject; subjects that the checkpoint lacks are left out."""
    lines = [
        facts["folder"],
        f"  saved        {facts['saved_at'] or UNSAID} by {layout_text(facts['layout'])}; "
        f"format {facts['format_version']}, {facts['files']} files, {size_text(facts['bytes'])}",
    ]
    for name in ("run", "state", "counters", "model", "optim", "lr_schedule", "train", "data", "versions", "git"):
        values = facts[name]
        if values:
            lines.append(f"  {name:12} {', '.join(f'{key}={value}' for key, value in values.items())}")
    return lines


def layout_text(layout: Mapping[str, Any] | None) -> str:
    """The layout as text, such as `tp2 pp2 vp1 dp2 ZeRO-3 bf16`."""
    if layout is None:
        return UNSAID
    degrees = " ".join(f"{name}{layout[name]}" for name in ("tp", "pp", "vp", "dp") if layout[name] is not None)
    stage = "" if layout["zero_stage"] is None else f" ZeRO-{layout['zero_stage']} {layout['precision']}"
    return degrees + stage


def size_text(count: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count} B"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Columns as wide as their widest cell; those in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _saved(manifest: Manifest) -> Summary:
    layout, config = manifest.get("layout") or {}, manifest.get("config") or {}
    world, tp, pp = (layout.get(name) for name in ("world_size", "tp", "pp"))
    engine = config.get("engine", {})
    return {
        "step": manifest["state"]["step"],
        "tokens": manifest["state"].get("tokens"),
        "saved_at": manifest.get("saved_at"),
        "layout": {
            "world_size": world,
            "tp": tp,
            "pp": pp,
            "vp": config.get("parallel", {}).get("vp"),
            "dp": world // (tp * pp) if world and tp and pp else None,
            "zero_stage": engine.get("zero_stage"),
            "precision": engine.get("precision"),
        },
    }
