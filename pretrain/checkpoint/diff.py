"""The differences between two checkpoints in configuration, state and tensors, whatever their layouts."""

from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.config_text import written
from pretrain.checkpoint.inventory import Found, tensors_of
from pretrain.checkpoint.summary import Summary
from pretrain.checkpoint.tensor_stats import difference_of
from pretrain.config.records import flatten

CLOCKS = ("state.train_seconds",)
"""Values that differ in any two runs and that nothing depends on."""
COMPARED = {
    "config": ("config",),
    "versions": ("environment",),
    "layout": ("layout",),
    "state": ("state", "counters", "parameters", "vocab_size"),
    "data": ("dataset_digest", "tokenizer_fingerprint"),
}


def differences(one: Found, other: Found, wanted: Callable[[str], bool], *, tensors_only: bool) -> Summary:
    """The differences by section, each value a pair; `equal` is true if every section is empty."""
    sections: Summary = (
        {} if tensors_only else {name: _differing_keys(one, other, keys) for name, keys in COMPARED.items()}
    )
    sections["tensors"] = _tensors(one, other, wanted)
    return {"equal": not any(sections.values()), "one": str(one.folder), "other": str(other.folder), **sections}


def difference_lines(facts: Summary) -> list[str]:
    """The same differences as text, one line each."""
    lines = []
    for name in COMPARED:
        lines += [
            f"{name}: {key}: {written(one)} | {written(other)}" for key, (one, other) in facts.get(name, {}).items()
        ]
    for name, found in facts["tensors"].items():
        lines.append(f"tensors: {name}: {_tensor_text(found)}")
    return lines


def _differing_keys(one: Found, other: Found, keys: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    assert one.manifest is not None and other.manifest is not None
    before, after = (flatten({key: found.manifest.get(key) for key in keys}) for found in (one, other))  # type: ignore[union-attr]
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key not in CLOCKS
    }


def _tensors(one: Found, other: Found, wanted: Callable[[str], bool]) -> dict[str, Mapping[str, Any]]:
    before, after = tensors_of(one), tensors_of(other)
    found: dict[str, Mapping[str, Any]] = {}
    for name in filter(wanted, sorted({*before, *after})):
        if name not in after or name not in before:
            found[name] = {"only_in": "one" if name in before else "other"}
            continue
        mine, theirs = before[name], after[name]
        kinds = {
            key: (list(a) if isinstance(a, tuple) else a, list(b) if isinstance(b, tuple) else b)
            for key, a, b in (("shape", mine.shape, theirs.shape), ("dtype", mine.dtype, theirs.dtype))
            if a != b
        }
        if mine.shape != theirs.shape:
            found[name] = kinds
            continue
        apart = difference_of(one.folder, mine, other.folder, theirs)
        if apart.differing or kinds:
            found[name] = kinds | {
                "differing": apart.differing,
                "max_abs": apart.max_abs,
                "relative_l2": apart.relative,
            }
    return found


def _tensor_text(found: Mapping[str, Any]) -> str:
    if "only_in" in found:
        return f"only in the {'first' if found['only_in'] == 'one' else 'second'}"
    texts = [f"{key} {found[key][0]} | {found[key][1]}" for key in ("shape", "dtype") if key in found]
    if "differing" in found:
        texts.append(
            f"{found['differing']:,} elements differ, at most by {found['max_abs']:.3g}; "
            f"relative L2 {found['relative_l2']:.3g}"
        )
    return "; ".join(texts)
