"""The manifest of a checkpoint, and whether the files agree with it. It does not import torch.

The manifest's keys: sha256 (of the manifest itself), format_version, state, counters, layout, files; and from
`describe_checkpoint` config, environment, parameters, vocab_size, tokenizer_fingerprint, dataset_digest, saved_at,
which describe the origin of the checkpoint.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_pipeline.config_text import written
from pretrain.config.errors import RunError, RunRefused
from pretrain.run.state import RunState

FORMAT_VERSION = 2
MANIFEST = "manifest.json"

_DIGEST = "sha256"
_BLANK = "0" * 64
"""The placeholder for the digest of the manifest while it is computed."""
_NUMBER = (int, float)
_WANTED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "state": {"step": int, "position": int, "tokens": int},
    "counters": {"adam_steps": _NUMBER},
    "layout": {"world_size": int, "tp": int, "pp": int},
    "files": {},
}
"""Keys that a resume needs."""
_DESCRIBING: Mapping[str, type] = {
    "config": dict,
    "environment": dict,
    "vocab_size": int,
    "tokenizer_fingerprint": str,
    "dataset_digest": str,
    "save_id": str,
}
"""Keys that may be missing."""

log = logging.getLogger(__name__)

Manifest = dict[str, Any]


class CheckpointDeleted(RunError):
    """A checkpoint disappeared while it was read: a live run keeps only its newest ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} was deleted while it was read, as a live run does with all but its newest "
            "(checkpoint.keep_last)",
            "try again",
        )


def sealed(content: Manifest) -> bytes:
    """The manifest as it is stored: every byte of it counts in the digest that comes first in it."""
    blank = json.dumps({_DIGEST: _BLANK, **content}, indent=1).encode()
    return _with_digest(blank, _BLANK, hashlib.sha256(blank).hexdigest())


def _with_digest(content: bytes, old: str, new: str) -> bytes:
    """`content` with its first `old`, which is the manifest's own digest, replaced."""
    return content.replace(old.encode(), new.encode(), 1)


def _proved(stored: Manifest, content: bytes) -> Manifest:
    """The manifest without its digest, which must be that of its bytes."""
    own = stored[_DIGEST]
    if len(own) != len(_BLANK) or hashlib.sha256(_with_digest(content, own, _BLANK)).hexdigest() != own:
        raise ValueError("its SHA-256 differs from the one in it")
    return {key: value for key, value in stored.items() if key != _DIGEST}


def _without_digest(stored: Manifest, _: bytes) -> Manifest:
    if _DIGEST in stored:
        raise ValueError("format version 1 must not contain a digest of its manifest")
    return stored


READERS: Mapping[int, Callable[[Manifest, bytes], Manifest]] = {1: _without_digest, 2: _proved}
"""Format version -> function that turns its parsed content and bytes into a manifest of this version.

When FORMAT_VERSION is raised, add a reader of the version before here; its checkpoint stays in tests/golden. Version 1
had no digest of the manifest."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; raises RunError if this program cannot use it."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} is not a checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunRefused(f"{path} cannot be read: {error.strerror}") from None
    return parse_manifest(content, folder)


def parse_manifest(content: bytes, folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder` from its bytes; raises RunError if this program cannot use it."""
    path = folder / MANIFEST
    try:
        stored = json.loads(content)
        version = stored["format_version"]
        if not _is(version, int) or version not in READERS:
            raise RunError(
                f"{folder} has format version {version}, but this program reads versions up to {FORMAT_VERSION}"
            )
        manifest = READERS[version](stored, content)
        faults = list(_faults(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else error
        raise RunError(f"{path} is damaged: {missing}") from None
    if faults:
        raise RunError(f"{path} is damaged: {faults[0]}")
    step, named = manifest["state"]["step"], step_of(Path(folder.name.partition(".")[0]))
    if named not in (None, step):
        raise RunError(
            f"{folder} holds step {step}: the folder was renamed, or its manifest is from another checkpoint"
        )
    return manifest


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint's folder is named after; None if its name is not that of a complete checkpoint."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def _faults(manifest: Manifest) -> Iterator[str]:
    """Missing values and values of a wrong type; a worse fault raises KeyError or another Python error."""
    for section, wanted in _WANTED.items():
        for key, kinds in wanted.items():
            if not _is(manifest[section][key], kinds):
                yield f"{section}.{key} is {written(manifest[section][key])}"
    for key, value in manifest["counters"].items():
        if not _is(value, _NUMBER):
            yield f"counters.{key} is {written(value)}"
    for key, described in _DESCRIBING.items():
        if key in manifest and not _is(manifest[key], described):
            yield f"{key} is {written(manifest[key])}"
    for name, record in manifest["files"].items():
        if Path(name).name != name or not _is(record["bytes"], int) or not isinstance(record["sha256"], str):
            yield f"the name, size or digest of the file {name!r} is not valid"
    numbers = {field.name for field in fields(RunState) if field.type in _NUMBER}
    for key, value in manifest["state"].items():
        if key in numbers and not _is(value, _NUMBER):
            yield f"state.{key} is {written(value)}"
    RunState.from_json(manifest["state"])


def _is(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def unreadable(path: Path, error: OSError) -> RunError:
    """The error for a file that cannot be read: CheckpointDeleted if the folder is gone, else the system's."""
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return CheckpointDeleted(path.parent)
    return RunRefused(f"{path} cannot be read: {error.strerror or error}")


def file_faults(folder: Path, files: Mapping[str, Mapping[str, Any]], *, digests: bool) -> Iterator[str]:
    """The faults of the files of a checkpoint; without `digests`, only sizes are compared."""
    for name, expected in files.items():
        path = folder / name
        try:
            if not path.is_file():
                yield f"{path} is missing"
            elif path.stat().st_size != expected["bytes"]:
                yield f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            elif digests and digest_of(path)["sha256"] != expected["sha256"]:
                yield f"{path} is damaged: its SHA-256 differs from the manifest's"
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"


def digest_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest holds them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half deleted one is never used."""
    if folder.is_symlink():
        remove_leftover(folder)
        return
    doomed = folder.with_name(folder.name + ".deleting")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftover(folder: Path) -> None:
    """Delete a folder that is not a complete checkpoint. A symbolic link is removed; its target stays."""
    if folder.is_symlink():
        target = os.readlink(folder)  # noqa: PTH115  # as it was written
        folder.unlink()
        log.warning("%s is a symbolic link: the link is removed, its target stays: %s", folder, target)
    else:
        shutil.rmtree(folder)


def set_aside(damaged: Path) -> Path:
    """Rename a checkpoint that cannot be used, so that another can take its place; returns the new path."""
    taken = {path.name for path in damaged.parent.iterdir()}
    names = (f"{damaged.name}.damaged" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return damaged.rename(damaged.with_name(next(name for name in names if name not in taken)))
