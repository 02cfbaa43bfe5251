"""What a checkpoint folder says of itself, and whether its files are as it says; without torch, to be quick.

The manifest's keys: format_version, state, counters, layout, files; and from `describe_checkpoint` config, environment,
parameters, vocab_size, tokenizer_fingerprint, dataset_digest, saved_at, which tell people where a checkpoint is from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.config.errors import RunError, RunRefused

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Manifest = dict[str, Any]


class CheckpointDeleted(RunError):
    """It was there, and is gone: a live run keeps its newest ones alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} was deleted while it was read, as a live run does with all but its newest "
            "(checkpoint.keep_last); try again"
        )


def _as_it_is(stored: Manifest) -> Manifest:
    return stored


READERS: Mapping[int, Callable[[Manifest], Manifest]] = {1: _as_it_is}
"""How each format version becomes a manifest of this one: when FORMAT_VERSION is raised, what reads the one before goes
here, and its checkpoint stays in tests/golden."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; raises RunError where there is none that this program can use."""
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_bytes())
        version = stored["format_version"]
        if not isinstance(version, int) or version not in READERS:
            raise RunError(f"{folder} has format version {version}, this program reads version {FORMAT_VERSION}")
        manifest = READERS[version](stored)
        state, files = manifest["state"], manifest["files"]
        whole = isinstance(state["step"], int) and all(
            Path(name).name == name and isinstance(record["bytes"], int) and isinstance(record["sha256"], str)
            for name, record in files.items()
        )
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunRefused(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not whole:
        raise RunError(f"{path} is damaged: the step, or the name, size or digest of a file in it is none")
    return manifest


def unreadable(path: Path, error: OSError) -> RunError:
    """A file of a checkpoint cannot be read: because a live run deleted all of it, or for what the system says."""
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return CheckpointDeleted(path.parent)
    return RunRefused(f"{path} cannot be read: {error.strerror or error}")


def file_faults(folder: Path, files: Mapping[str, Mapping[str, Any]], *, digests: bool) -> Iterator[str]:
    """What is wrong with the files of a checkpoint; without `digests` by their sizes alone."""
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
    """Delete a checkpoint; renamed first, so that a half deleted one is never taken for whole."""
    doomed = folder.with_name(folder.name + ".deleting")
    folder.rename(doomed)
    shutil.rmtree(doomed)
