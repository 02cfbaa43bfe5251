"""Memory and speed of an export: a synthetic checkpoint of GBs, in another process, against copying the weights.

    python -m tests.benchmarks.export_memory [--gb 3] [--dtype float32] [--workers 1]

The model has few, large layers, so that its largest tensor is a good part of it; each tensor is stored in two parts.
Printed: bytes of the largest tensor, the peak of memory above that of a process that has imported torch, and the time
beside that of copying the same files to disk.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ALLOWED = 200e6
"""Bytes that an export may take besides its tensors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint", given.gb * 1e9)
        words = [sys.executable, "-m", "tests.benchmarks.export_memory", f"--child={folder}", f"--dtype={given.dtype}"]
        subprocess.run([*words, f"--gb={given.gb}", f"--workers={given.workers}"], check=True)
        files = sorted((folder / "out").glob("*.safetensors"))
        started = time.perf_counter()
        for file in files:
            shutil.copyfile(file, folder / file.name)
            subprocess.run(["sync", str(folder / file.name)], check=True)
        print(f"cp and sync of the same bytes: {time.perf_counter() - started:.1f} s")


def make_checkpoint(folder: Path, size: float) -> None:
    """Weights of a Llama model of about this many bytes in fp32, one tensor in memory at a time."""
    import torch

    from pretrain.checkpoint.files import merge_indices, write_tensors
    from pretrain.checkpoint.tensors import Chunk
    from pretrain.checkpoint.whole_tensors import WEIGHT
    from pretrain.huggingface.weights import units

    def chunks() -> Iterator[Chunk]:
        for unit in units(model_of(size), VOCAB):
            for name, shape in zip(unit.ours, unit.our_shapes, strict=True):
                half = shape[0] // 2
                for first, rows in ((0, half), (half, shape[0] - half)):
                    sizes = (rows, *shape[1:])
                    yield Chunk(WEIGHT + name, shape, (first, *([0] * (len(shape) - 1))), sizes, torch.randn(sizes))

    folder.mkdir(parents=True)
    write_tensors(folder, 0, chunks(), lambda: None)
    merge_indices(folder, 1)


VOCAB = 32_000


def model_of(size: float):  # type: ignore[no-untyped-def]
    from pretrain.config.load import load_run_config

    model = load_run_config(["model=llama_1b"]).model
    layer = 4 * (model.hidden_size**2 * 2.5 + 3 * model.hidden_size * model.ffn_hidden_size)
    embeddings = 8 * VOCAB * model.hidden_size
    return replace(model, tie_embeddings=False, num_layers=max(1, round((size - embeddings) / layer)))


def child(folder: Path, given: argparse.Namespace) -> None:
    import torch  # noqa: F401

    from pretrain.checkpoint.whole_tensors import StoredWeights
    from pretrain.export.weight_files import plan_files, write_files
    from pretrain.huggingface.weights import units

    before = peak()
    table = list(units(model_of(given.gb * 1e9), VOCAB))
    files = plan_files(table, given.dtype, 1_000_000_000)
    (folder / "out").mkdir()
    started = time.perf_counter()
    weights = StoredWeights(folder / "checkpoint")
    write_files(folder / "out", weights, files, given.dtype, workers=given.workers, show=lambda done: None)
    seconds = time.perf_counter() - started
    largest = max(each.bytes for file in files for each in file.entries)
    total, used = sum(file.bytes for file in files), peak() - before
    print(
        f"{total / 1e9:.2f} GB in {len(files)} files, largest tensor {largest / 1e6:.0f} MB, {given.workers} worker(s)"
    )
    print(f"peak above torch: {used / 1e6:.0f} MB, allowed {(1.5 * largest + ALLOWED) / 1e6:.0f} MB for one worker")
    print(f"export: {seconds:.1f} s, {total / 1e6 / seconds:.0f} MB/s")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
