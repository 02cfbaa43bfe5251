"""Speed from documents to packed tokens, against the scheme of Megatron-LM's preprocessing with the same tokenizer.

    python -m tests.benchmarks.tokenize_and_pack [--megabytes 60] [--rounds 5]

Text: sources of the running Python's standard library (with tests), as .jsonl; tokenizer: SentencePiece BPE of 8,192
pieces trained on it. Ours: the whole of `prepare` with that tokenizer, from .jsonl to shards, hashes, the split,
checksums and fsync included. Theirs: a pool of processes that take lines of .jsonl, encode each document and give back
lists of ids, which one process writes with megatron-core's IndexedDatasetBuilder. Wall times, medians, in turn; the
number of tokens must be sentencepiece's own.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import multiprocessing
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.prepare import prepare
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.sources.stdlib import stdlib_folder
from tests.support.corpus import data_config, prepare_config, tokenizer_config, write_jsonl

CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("sentencepiece", "megatron-core", "numpy")]
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = library_texts(options.megabytes)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        source = write_jsonl(folder / "in.jsonl", texts)
        first = tokenizer_config(vocab_size=8192, sample_bytes=30 << 20)
        run_ours(folder / "first", source, 2, tokenizer=first)
        model = folder / "tokenizer.model"
        shutil.copy(folder / "first" / "tokenizer.model", model)
        rows: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for workers in (1, 2):
                for title, run in (("ours", run_ours), ("Megatron-LM's scheme", run_theirs)):
                    target = folder / "out"
                    begin = time.perf_counter()
                    run(target, source, workers, tokenizer=tokenizer_config(path=str(model)))
                    rows.setdefault(f"{title}, {workers} processes", []).append(time.perf_counter() - begin)
                    if len(rows) <= 2:
                        compare(title, target, texts)
                    shutil.rmtree(target)
        speeds = {title: megabytes / statistics.median(seconds) for title, seconds in rows.items()}
        print(f"{len(texts)} documents, {megabytes:.1f} MB, medians of {options.rounds}")
        for title, speed in speeds.items():
            theirs = speeds[f"Megatron-LM's scheme{title[title.index(',') :]}"]
            print(f"{title:36} {speed:6.2f} MB/s   {speed / theirs:5.2f} x theirs")
        print(f"two of ours: {speeds['ours, 2 processes'] / speeds['ours, 1 processes']:.2f} x one")


def library_texts(megabytes: float) -> list[str]:
    """Every source once, then again with another first line, until there is enough."""
    files = sorted(stdlib_folder().rglob("*.py"))
    sources = [text for path in files if (text := path.read_text(encoding="utf-8", errors="ignore"))]
    texts: list[str] = []
    size = 0
    for number, text in enumerate(itertools.cycle(sources)):
        if size >= megabytes * 1e6:
            return texts
        texts.append(text if number < len(sources) else f"# copy {number}\n{text}")
        size += len(texts[-1].encode())
    return texts


def run_ours(target: Path, source: Path, workers: int, *, tokenizer: Any) -> None:
    data = data_config(target, [source], samples_per_member=64, shard_bytes=1 << 28)
    prepare(data, tokenizer, prepare_config(num_workers=workers), seq_length=2048)


def run_theirs(target: Path, source: Path, workers: int, *, tokenizer: Any) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    target.mkdir()
    builder = IndexedDatasetBuilder(str(target / "all.bin"), dtype=np.uint16)
    with (
        multiprocessing.get_context("spawn").Pool(workers, _load, (tokenizer.path,)) as pool,
        source.open(encoding="utf-8") as lines,
    ):
        for ids in pool.imap(_encode, lines, CHUNK):
            builder.add_item(torch.tensor(ids, dtype=torch.int32))
            builder.end_document()
    builder.finalize(str(target / "all.idx"))


def _load(path: str) -> None:
    import sentencepiece

    global _processor
    _processor = sentencepiece.SentencePieceProcessor(model_file=path)


def _encode(line: str) -> list[int]:
    return [*_processor.encode(json.loads(line)["text"]), _processor.eos_id()]


def compare(title: str, target: Path, texts: list[str]) -> None:
    """Stops unless the tokens that were written are sentencepiece's own."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(target.parent / "tokenizer.model"))
    if title == "ours":
        datasets = [PackedDataset.open(target, split) for split in ("train", "validation")]
        found = sum(dataset.record.num_tokens for dataset in datasets)
    else:
        found = (target / "all.bin").stat().st_size // 2
    expected = sum(len(ids) + 1 for ids in processor.encode(texts))
    assert found == expected, f"{title}: {found} tokens, sentencepiece gives {expected}"


if __name__ == "__main__":
    main()
