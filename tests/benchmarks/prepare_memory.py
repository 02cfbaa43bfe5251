"""Peak memory of `pretrain prepare` on little and on much text.

    python -m tests.benchmarks.prepare_memory [--megabytes 200 2000] [--workers 2] [--pieces N] [--chars N] [--copies N]
        [-- SETTING]

The peak of the resident memory of the command and all its workers together, looked at ten times a second, with a given
tokenizer and exact copies left out, a decision that looks at the whole corpus. `--pieces` cuts the last and largest
corpus into so many, as a larger one would be, `--chars` all text into documents of so many characters. `--copies` gives
each document so often, one after another, in files of zstd: such a corpus may be larger than the disk. What else is
given are settings of `prepare`, whose progress is shown.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import zstandard

from data_pipeline.shards.manifest import Manifest
from tests.benchmarks.tokenize_and_pack import library_texts
from tests.support.corpus import write_jsonl

FILE_BYTES = 100_000_000
"""Approximate size of a file of the compressed corpus, before compression."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[200, 2000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pieces", type=int)
    parser.add_argument("--chars", type=int)
    parser.add_argument("--copies", type=int)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = write_jsonl(folder / "small.jsonl", list(library_texts(20)))
        peak_of(folder, small, options.workers, [])
        (folder / "set").rename(folder / "tokenizer")
        given = [f"tokenizer.path={folder / 'tokenizer' / 'tokenizer.model'}", "data.dedup=exact", *options.settings]
        peaks = []
        for megabytes in options.megabytes:
            texts = documents(megabytes / (options.copies or 1), options.chars)
            if options.copies:
                source = write_copies(folder / "in", texts, options.copies)
            else:
                source = write_jsonl(folder / "in.jsonl", texts)
            begin = time.perf_counter()
            is_last = len(peaks) + 1 == len(options.megabytes)
            pieces = options.pieces if is_last else None
            peaks.append(peak_of(folder, source, options.workers, given, pieces))
            took = time.perf_counter() - begin
            corpus = Manifest.load(folder / "set").corpus
            counts = f"{megabytes:6.0f} MB, {corpus.num_documents:,} kept, dropped {corpus.dropped}"
            print(f"{counts}: peak {peaks[-1] / 1e6:6.0f} MB, {took:.0f} s", flush=True)
            shutil.rmtree(folder / "set")
        print(f"last / first: {peaks[-1] / peaks[0]:.2f}")


def documents(megabytes: float, chars: int | None) -> Iterator[str]:
    number = itertools.count()
    for text in library_texts(megabytes):
        if not chars:
            yield text
        else:  # with a number, as the text repeats itself
            yield from (f"{next(number)} {text[at : at + chars]}" for at in range(0, len(text), chars))


def write_copies(folder: Path, texts: Iterator[str], copies: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in itertools.count():
        if (first := next(texts, None)) is None:
            return folder
        with zstandard.open(folder / f"{number:05d}.jsonl.zst", "wb") as file:
            size = 0
            for text in itertools.chain([first], texts):
                lines = (json.dumps({"text": text}) + "\n").encode() * copies
                file.write(lines)
                size += len(lines)
                if size > FILE_BYTES:
                    break
    raise AssertionError


def peak_of(folder: Path, source: Path, workers: int, overrides: list[str], pieces: int | None = None) -> int:
    """Bytes."""
    words = [
        "data.name=set",
        f"data.path={folder / 'set'}",
        f"data.inputs=[{source}]",
        f"prepare.num_workers={workers}",
    ]
    code = "from pretrain.cli import main; main()"
    if pieces:
        code = f"from data_pipeline.prepare import scan; scan.TASK_BYTES = {source.stat().st_size // pieces}; {code}"
    command = [sys.executable, "-c", code, "prepare", *words, *overrides]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
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
