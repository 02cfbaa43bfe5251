"""Peak memory of `pretrain prepare` on little and on much text.

    python -m tests.benchmarks.prepare_memory [--megabytes 200 2000] [--workers 2]

The peak of the resident memory of the command and all its workers together, looked at ten times a second, with a given
tokenizer and exact copies left out, a decision that looks at the whole corpus.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.tokenize_and_pack import library_texts
from tests.support.corpus import write_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[200, 2000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = write_jsonl(folder / "small.jsonl", list(library_texts(20)))
        peak_of(folder, small, options.workers, [])
        (folder / "set").rename(folder / "tokenizer")
        given = [f"tokenizer.path={folder / 'tokenizer' / 'tokenizer.model'}"]
        peaks = []
        for megabytes in options.megabytes:
            source = write_jsonl(folder / "in.jsonl", library_texts(megabytes))
            begin = time.perf_counter()
            peaks.append(peak_of(folder, source, options.workers, [*given, "data.dedup=exact"]))
            took = time.perf_counter() - begin
            print(f"{megabytes:6.0f} MB: peak {peaks[-1] / 1e6:6.0f} MB, {took:.0f} s", flush=True)
            shutil.rmtree(folder / "set")
        print(f"last / first: {peaks[-1] / peaks[0]:.2f}")


def peak_of(folder: Path, source: Path, workers: int, overrides: list[str]) -> int:
    """Bytes."""
    words = [
        "data.name=set",
        f"data.path={folder / 'set'}",
        f"data.inputs=[{source}]",
        f"prepare.num_workers={workers}",
    ]
    command = [sys.executable, "-c", "from pretrain.cli import main; main()", "prepare", *words, *overrides]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = 0
    while process.poll() is None:
        total = 0
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    assert process.returncode == 0, "prepare failed"
    return peak


if __name__ == "__main__":
    main()
