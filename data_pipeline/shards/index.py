"""The index of a split: offset and hash of each member, checked before its values are used as memory addresses."""

import hashlib
import mmap
import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.shards.folder import DatasetFolder
from data_pipeline.shards.format import NPY_HEADER_BYTES, TAR_BLOCK
from data_pipeline.shards.manifest import FileRecord, Manifest

PREPARE_AGAIN = "prepare again with prepare.overwrite=true"

RESTORE = ("restore the file", PREPARE_AGAIN)


def check_sizes(folder: DatasetFolder, records: Iterable[FileRecord]) -> None:
    """Raise DataError unless each file exists and has the length in the manifest."""
    for record in records:
        fault = folder.fault(record)
        if fault is not None:
            raise DataError(fault, *RESTORE)


def load_index(folder: DatasetFolder, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """Offset and hash of each member [members, 2]. Processes of a node share its memory."""
    record = manifest.splits[split].index
    content = _map_whole(folder, record)
    if content is None and folder.drop_damaged(record):
        content = _map_whole(folder, record)
    name = folder.path_of(record.file)
    if content is None:
        raise DataError(f"{name}: its content differs from what `prepare` wrote (its sha256 does not match)", *RESTORE)
    numbers = np.frombuffer(content, dtype="<i8", offset=NPY_HEADER_BYTES)
    of_split = manifest.splits[split]
    num_samples = sum(shard.samples for shard in of_split.shards)
    num_members = -(-num_samples // manifest.samples_per_member)
    # The manifest and the index may come from elsewhere, and their values are used as memory addresses.
    if num_samples != of_split.num_samples or len(numbers) != 2 * num_members:
        raise DataError(
            f"{name}: has {len(numbers) / 2:g} members, and the shards hold {num_samples} samples, but the manifest "
            f"says {of_split.num_samples} samples, {manifest.samples_per_member} in each member",
            PREPARE_AGAIN,
        )
    index = numbers.reshape(num_members, 2)
    offsets = index[:, 0]
    if num_members and (offsets.min() < TAR_BLOCK or np.any(offsets & (TAR_BLOCK - 1))):
        raise DataError(f"{name}: a member offset is not a valid tar offset", PREPARE_AGAIN)
    return index


def _map_whole(folder: DatasetFolder, record: FileRecord) -> mmap.mmap | None:
    """The content of a file, or None if it differs from what `prepare` wrote."""
    descriptor = folder.open(record)
    try:
        content = mmap.mmap(descriptor, record.bytes, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return content if hashlib.sha256(content).hexdigest() == record.sha256 else None
