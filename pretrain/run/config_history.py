"""The configuration of a run folder, and the changes that resumes made to it."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.changes import DATA, Change, changes_between, refusal
from pretrain.config.errors import RunError
from pretrain.config.load import read_run_config, to_yaml
from pretrain.config.optim import MuonConfig, OptimConfig
from pretrain.config.records import flatten
from pretrain.config.run import RunConfig

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
CHANGES_FILE = "changes.jsonl"


def check_same_config(folder: Path, config: RunConfig) -> None:
    """Raise RunError that lists the keys which differ from the folder's configuration and were not accepted."""
    refused = refusal(_changes(folder, config), config.run.accept_changes)
    if refused:
        lines, hints = refused
        raise RunError(f"run.dir={str(folder)!r} was made by another configuration:{lines}", *hints)


def check_not_edited(folder: Path, trained_with: RunConfig) -> None:
    """Raise RunError if the configuration in the folder of a run has other settings than the run was trained with.

    `trained_with`: the configuration in a checkpoint. Changes that a resume accepted are recorded, and allowed.
    """
    expected = _flat(trained_with) | {key: now for key, (_, now) in _accepted(folder).items()}
    changes = changes_between(expected, _flat(read_run_config(folder / CONFIG_FILE)))
    edited = [change for change in changes if change.kind != "safe"]
    if edited:
        lines = "".join(f"\n  {change}" for change in edited)
        raise RunError(
            f"{folder / CONFIG_FILE} has other settings than the run was trained with:{lines}",
            "restore them: `pretrain train` refuses to resume with these too",
        )


def record_config(folder: Path, config: RunConfig, step: int, other_data: Sequence[Change] = ()) -> None:
    """Store the resolved configuration, which `generate` and a resume read.

    Changes since the last start are logged, and added to changes.jsonl, one line per resume.
    """
    changes = [*_changes(folder, config), *other_data]
    for change in changes:
        log.info("changed after step %d: %s", step, change)
    if changes:
        values = {change.key: [change.before, change.now] for change in changes}
        line = {"step": step, "time": round(time.time(), 3), "changes": values}
        path = folder / CHANGES_FILE
        before = path.read_bytes() if path.exists() else b""
        write_durably(path, before + json.dumps(line, ensure_ascii=False).encode() + b"\n")
    write_durably(folder / CONFIG_FILE, to_yaml(config).encode())


def _accepted(folder: Path) -> dict[str, list[Any]]:
    """The last change of each key in changes.jsonl: its values before and after."""
    path, last = folder / CHANGES_FILE, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            last.update(json.loads(line)["changes"])
    return {key: values for key, values in last.items() if key not in DATA}


def _changes(folder: Path, config: RunConfig) -> list[Change]:
    """The changes since the folder's last configuration; none in a new folder."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return []
    try:
        saved = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        raise RunError(f"{path}: not a valid configuration", "restore it or choose another run.dir") from None
    return changes_between(_ADDED | saved, _flat(config))


def _defaults_of_optim() -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(OptimConfig) if field.default is not dataclasses.MISSING]
    values = {field.name: field.default for field in fields}
    return flatten({**values, "muon": dataclasses.asdict(MuonConfig())}, "optim.")


_ADDED = _defaults_of_optim()
"""Keys that a run lacks if it began before there was a choice of the optimizer."""


def _flat(config: RunConfig) -> dict[str, Any]:
    return flatten(yaml.safe_load(to_yaml(config)))
