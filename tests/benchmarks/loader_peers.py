"""One peer of the loader, timed in an interpreter of its own; started by tests.benchmarks.loader.

    python loader_peers.py litdata|streaming FLAT SEQ_LENGTH BATCH TIMED_BATCHES ROUNDS

Prints its name and version and, after commas, the seconds of a batch in each round. Imports nothing of this project.
"""

import importlib.metadata
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def litdata_samples(folder: Path, rows: np.ndarray) -> Iterator[torch.Tensor]:
    """Its writer for arrays of tokens, its shuffle."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, row in enumerate(rows):
        writer[number] = torch.from_numpy(row.copy())
    writer.done()
    writer.merge()
    while True:
        yield from StreamingDataset(str(folder), shuffle=True, seed=1)


def streaming_samples(folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Its writer for arrays, its default shuffle."""
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{rows.shape[1]}"}) as writer:
        for row in rows:
            writer.write({"tokens": row})
    while True:
        for sample in StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=1, batch_size=8):
            yield sample["tokens"]


def main() -> None:
    peer, flat = sys.argv[1], sys.argv[2]
    seq_length, batch, timed, rounds = map(int, sys.argv[3:])
    rows = np.memmap(flat, dtype=np.uint16, mode="r").reshape(-1, seq_length + 1)
    package, samples = {
        "litdata": ("litdata", litdata_samples),
        "streaming": ("mosaicml-streaming", streaming_samples),
    }[peer]
    with tempfile.TemporaryDirectory(dir=Path(flat).parent) as folder:
        stream = samples(Path(folder) / "set", rows)

        def next_batch() -> torch.Tensor:
            found = [torch.as_tensor(sample) for sample in itertools.islice(stream, batch)]
            return torch.stack(found).to(torch.int64)

        seconds = []
        for _ in range(rounds):
            for _ in range(200):
                next_batch()
            begin = time.perf_counter()
            for _ in range(timed):
                next_batch()
            seconds.append((time.perf_counter() - begin) / timed)
        print(f"{package} {importlib.metadata.version(package)}", *seconds, sep=",", flush=True)
    os._exit(0)  # their threads are still reading


if __name__ == "__main__":
    main()
