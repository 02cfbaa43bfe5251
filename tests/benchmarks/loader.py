"""Speed of the loader, and its time to the first batch.

    python -m tests.benchmarks.loader [--folder FOLDER] [--peers] [--peers-python PYTHON]

48,000 samples of 2,048 + 1 tokens in 12 shards, batches of 8 in shuffled order to torch int64, in one process, the page
cache warm; against one fancy index over one flat memory map of the same samples, and against plain webdataset on the
same shards (64 samples in a member, a shuffle buffer of 1,000). Medians of five rounds of 20,000 batches, in turn. Ours
is also read from 750 shards of one member each, and, for its first 2,000 batches, from a dataset opened again, of which
every member is then compared with its hash. With --peers, litdata and mosaicml-streaming read the same samples in
formats of their own, shuffled by themselves, in this interpreter or in PYTHON (which may have other versions of numpy),
their rounds before the others; one that cannot be imported is left out. Then what it takes to open a dataset of 10,000
shards (its validation split has as many), both splits as a run does it and one alone, to its first batch, and to one in
its middle; and the same for a dataset of 10^12 tokens, whose manifest and index are whole while its shards are holes
except for the headers of the members that are read.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from data_pipeline.permutation import shuffled_indices
from data_pipeline.shards.folder import LocalFolder
from data_pipeline.shards.format import DTYPES, TAR_BLOCK, member_hash, member_key, npy_header, tar_member_bytes
from data_pipeline.shards.manifest import FileRecord, ShardRecord
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from tests.unit.data_pipeline.shards.test_shards import write

ROUNDS = 5
SEQ_LENGTH, BATCH, SAMPLES, SHARDS = 2048, 8, 48_000, 12
WARM_UP_BATCHES, TIMED_BATCHES = 1_500, 20_000
NEW_BATCHES = 2_000  # of a dataset opened again; an epoch has 6,000
PEER_BATCHES = 500  # their pace is a few hundred a second
SHARD_BYTES = 268_435_456  # as conf/data has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="default: the system's for temporary files")
    parser.add_argument("--peers", action="store_true", help="also litdata and mosaicml-streaming")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON", help="interpreter that has them")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "webdataset"))
    print(f"Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        throughput(Path(folder), options.peers_python if options.peers else None)
        many = Path(folder) / "many"
        rows = np.zeros(10_000 * 4 * 64 + 1, dtype=np.uint16)
        write(many, [rows], seq_length=64, samples_per_member=4, shard_bytes=1)
        opening_and_first_batches("10,000 shards", many, {"the first": 0, "in the middle": 5_000 * 4})
        trillion = Path(folder) / "trillion"
        places = {"the first": 0, "in the middle": 10**12 // SEQ_LENGTH // 2, "in the third pass": 10**12 // 800}
        write_trillion(trillion, places.values())
        opening_and_first_batches("10^12 tokens", trillion, places)


def throughput(folder: Path, peers_python: str | None) -> None:
    rows = np.random.default_rng(0).integers(0, 50_000, SAMPLES * SEQ_LENGTH + 1, dtype=np.uint16)
    shard_bytes = (SAMPLES // SHARDS) * (SEQ_LENGTH + 1) * 2 + (1 << 20)
    write(folder / "set", [rows], seq_length=SEQ_LENGTH, samples_per_member=64, shard_bytes=shard_bytes)
    flat = folder / "flat.bin"
    starts = np.arange(SAMPLES) * SEQ_LENGTH
    np.lib.stride_tricks.sliding_window_view(rows, SEQ_LENGTH + 1)[starts].tofile(flat)
    dataset = PackedDataset.open(folder / "set", "train")
    write(folder / "many", [rows], seq_length=SEQ_LENGTH, samples_per_member=64, shard_bytes=1)
    many = PackedDataset.open(folder / "many", "train")

    def batches_of(dataset: PackedDataset) -> Iterator[torch.Tensor]:
        for batch in train_batches(dataset, seed=1, global_batch_size=BATCH, rank=0, size=1, position=0):
            yield batch.tokens

    def ours() -> Iterator[torch.Tensor]:
        yield from batches_of(dataset)

    def ours_opened_anew() -> Iterator[torch.Tensor]:
        yield from batches_of(PackedDataset.open(folder / "set", "train"))

    def ours_of_750_shards() -> Iterator[torch.Tensor]:
        yield from batches_of(many)

    samples = np.memmap(flat, dtype=np.uint16, mode="r").reshape(SAMPLES, SEQ_LENGTH + 1)  # once, as the shards are

    def memory_map() -> Iterator[torch.Tensor]:
        order = np.random.default_rng(1).permutation(SAMPLES)
        for start in itertools.cycle(range(0, SAMPLES, BATCH)):
            yield torch.from_numpy(samples[order[start : start + BATCH]].astype(np.int64))

    def plain_webdataset() -> Iterator[torch.Tensor]:
        import webdataset

        shards = [str(folder / "set" / shard.file) for shard in dataset.record.shards]
        stream = webdataset.WebDataset(shards, shardshuffle=False).to_tuple("npy").repeat()

        def single() -> Iterator[np.ndarray]:
            for (content,) in stream:
                yield from np.load(io.BytesIO(content), allow_pickle=False)

        shuffled = webdataset.filters.shuffle(1000)(single())
        while True:
            yield torch.from_numpy(np.stack(list(itertools.islice(shuffled, BATCH))).astype(np.int64))

    readers = [memory_map, ours, ours_opened_anew, ours_of_750_shards, plain_webdataset]
    times: dict[str, list[float]] = {reader.__name__: [] for reader in readers}
    if peers_python is not None:
        for peer in ("litdata", "streaming"):
            script, sizes = Path(__file__).with_name("loader_peers.py"), (SEQ_LENGTH, BATCH, PEER_BATCHES, ROUNDS)
            command = [peers_python, str(script), peer, str(flat), *map(str, sizes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{peer}: left out ({(done.stderr.strip() or 'no reason given').splitlines()[-1]})")
            else:
                name, *seconds = done.stdout.splitlines()[-1].split(",")
                times[name] = [float(each) for each in seconds]
    for _ in range(ROUNDS):
        for reader in readers:
            stream = reader()
            is_new = reader is ours_opened_anew
            for _ in range(0 if is_new else WARM_UP_BATCHES):
                next(stream)
            number = NEW_BATCHES if is_new else TIMED_BATCHES
            begin = time.perf_counter()
            for _ in range(number):
                next(stream)
            times[reader.__name__].append((time.perf_counter() - begin) / number)
            stream.close()  # type: ignore[attr-defined]
    tokens = BATCH * SEQ_LENGTH
    best = statistics.median(times["memory_map"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:26} {tokens / median / 1e6:8.0f} M tokens/s   {best / median:5.2f} x memory_map")


def write_trillion(folder: Path, positions: Iterable[int]) -> None:
    """A dataset of 10^12 tokens for training, of which the batches at these positions and some more can be read."""
    manifest = write(folder, [np.zeros(64 * SEQ_LENGTH + 1, dtype=np.uint16)], SEQ_LENGTH, samples_per_member=64)
    descr = DTYPES[manifest.dtype]
    header = npy_header((64, SEQ_LENGTH + 1), descr)
    member_bytes = tar_member_bytes(len(header) + 64 * (SEQ_LENGTH + 1) * 2)
    per_shard = SHARD_BYTES // member_bytes
    num_shards = -(-(10**12) // (SEQ_LENGTH * 64 * per_shard))
    shards = [
        ShardRecord(file=f"train-{n:05d}.tar", samples=64 * per_shard, bytes=per_shard * member_bytes, sha256="0" * 64)
        for n in range(num_shards)
    ]
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.truncate(shard.bytes)
    offsets = np.tile(np.arange(per_shard, dtype="<i8") * member_bytes + TAR_BLOCK, num_shards)
    hashes = np.full_like(offsets, member_hash(header + bytes(64 * (SEQ_LENGTH + 1) * 2)))
    members = np.stack([offsets, hashes], axis=1)
    index = npy_header(members.shape, "<i8") + members.tobytes()
    (folder / "train.index.npy").write_bytes(index)
    record = dataclasses.replace(
        manifest.splits["train"],
        shards=tuple(shards),
        index=FileRecord(file="train.index.npy", bytes=len(index), sha256=hashlib.sha256(index).hexdigest()),
        num_samples=64 * per_shard * num_shards,
        num_tokens=64 * per_shard * num_shards * SEQ_LENGTH + 1,
    )
    dataclasses.replace(manifest, splits={**manifest.splits, "train": record}).save(folder)
    for position in positions:
        for member in (shuffled_indices(position + np.arange(100 * BATCH), record.num_samples, 1) // 64).tolist():
            shard, number = divmod(member, per_shard)
            with (folder / shards[shard].file).open("r+b") as file:
                file.seek(number * member_bytes)
                file.write(f"{member_key('train', member)}.npy".encode().ljust(TAR_BLOCK, b"\0") + header)
    print(f"10^12 tokens: {record.num_samples:,} samples in {num_shards:,} shards, index of {len(index) / 1e6:.0f} MB")


def opening_and_first_batches(title: str, folder: Path, positions: Mapping[str, int]) -> None:
    train_alone = median_seconds(lambda: PackedDataset.open(folder, "train"))
    print(f"{title}: open the train split: {train_alone * 1e3:.1f} ms")

    def both() -> None:
        place = LocalFolder(folder)
        PackedDataset.open(place, "train"), PackedDataset.open(place, "validation")

    print(f"{title}: open both splits: {median_seconds(both) * 1e3:.1f} ms")
    for name, position in positions.items():
        times = []
        for _ in range(ROUNDS):
            dataset = PackedDataset.open(folder, "train")  # opened again, so that all members are checked again
            begin = time.perf_counter()
            stream = train_batches(dataset, seed=1, global_batch_size=BATCH, rank=0, size=1, position=position)
            next(stream)
            times.append(time.perf_counter() - begin)
            stream.close()
        print(f"{title}: {name} batch: {statistics.median(times) * 1e3:.1f} ms")


def median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
