"""Speed from documents to packed tokens, against Megatron-LM's preprocessing scheme and datatrove's tokenization.

    python -m tests.benchmarks.tokenize_and_pack [--megabytes 200] [--rounds 3] [--datatrove PYTHON | --alone]

Text: sources of the running Python's standard library (with tests) and of the packages installed beside it, each
different one once, in shuffled order, as .jsonl in eight files; tokenizer: SentencePiece BPE of 8,192 pieces trained on
it. Wall times, medians, in turn, with one process and with two, nothing remembered of the round before; the number of
tokens must be sentencepiece's own. For more text than there is, the same comes again with another first line.

Ours: the whole of `prepare` with that tokenizer, from .jsonl to shards, hashes, the split, checksums and fsync
included; without numba, and with it where it is installed, with its compiled code on disk as after a first use.
Two runs of ours apart: two processes that know nothing of each other, each with `prepare` for half of the files, and
with numba where it is installed: what two cores of this machine do, however well the work is shared.
Megatron-LM's scheme: a pool of processes that take lines of .jsonl, encode each document and give back lists of ids,
which one process writes with megatron-core's IndexedDatasetBuilder.
datatrove (if an interpreter that has it, and `tokenizers`, is given): JsonlReader and DocumentTokenizer without its
shuffling, its imports not counted. It reads Hugging Face files only: it gets the same pieces, and the same merges by
score, converted here.
Then encoding alone, one core: sentencepiece, gigatoken (if installed; it reads the model), ours, on 20 MB of the text.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import multiprocessing
import platform
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from data_pipeline.prepare import encode_task
from data_pipeline.prepare.dataset import prepare
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.sources.stdlib import stdlib_folder
from data_pipeline.tokenizers import sentencepiece_model
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.sentencepiece_model import SPACE_MARK
from tests.support.corpus import data_config, prepare_config, tokenizer_config, write_jsonl

CHUNK = 32
NUM_FILES = 8
OURS, FAST, MEGATRON, DATATROVE = "ours", "ours with numba", "Megatron-LM's scheme", "datatrove"
APART = "two runs of ours apart"
PEER = Path(__file__).with_name("tokenize_peers.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove", metavar="PYTHON", help="an interpreter that has datatrove and tokenizers")
    parser.add_argument("--alone", action="store_true", help="ours only: for more text than the others can be given")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("sentencepiece", "megatron-core", "numpy")]
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = list(various_texts(options.megabytes))
        megabytes = size_of(texts)
        model = write_inputs(folder, texts)
        expected = sum(len(ids) + 1 for ids in load_tokenizer(model).encode_batch(texts, num_threads=1))
        runs: dict[str, Callable[[Path, int], float]] = {OURS: run_without_numba}
        if importlib.util.find_spec("numba"):
            runs[FAST] = run_ours
            assert load_tokenizer(model)._compile(texts[:10]), "numba does not start"  # it compiles now
        if not options.alone:
            runs[MEGATRON] = run_theirs
        if options.datatrove:
            runs[DATATROVE] = lambda target, workers: run_datatrove(target, workers, options.datatrove)
        elif not options.alone:
            print("datatrove: skipped, no --datatrove PYTHON was given")
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for workers, (title, run) in itertools.product((1, 2), runs.items()):
                target = folder / "out"
                seconds.setdefault((title, workers), []).append(run(target, workers))
                found = num_tokens(title, target)
                assert found == expected, f"{title}: {found} tokens, sentencepiece gives {expected}"
                shutil.rmtree(target)
            seconds.setdefault((APART, 2), []).append(run_apart(folder / "out"))
        speeds = {key: megabytes / statistics.median(values) for key, values in seconds.items()}
        print(f"{len(texts)} documents, {megabytes:.1f} MB, {expected} tokens, medians of {options.rounds}")
        for (title, workers), speed in speeds.items():
            ratios = [f"{ours} is {speeds[ours, workers] / speed:5.2f} x" for ours in (OURS, FAST) if ours in runs]
            print(f"{title:22} {workers} processes {speed:7.2f} MB/s   {', '.join(ratios)}")
        for title in runs:
            print(f"two of {title}: {speeds[title, 2] / speeds[title, 1]:.2f} x one")
        print(f"{APART}: {speeds[APART, 2] / speeds[FAST if FAST in runs else OURS, 1]:.2f} x one")
        encode_alone(model, texts)


def library_texts(megabytes: float) -> Iterator[str]:
    """Every source of the standard library once, then again with another first line, until there is enough."""
    return _enough(map(_read, sorted(stdlib_folder().rglob("*.py"))), megabytes)


def various_texts(megabytes: float) -> Iterator[str]:
    """Sources that all differ, without U+2581, which plain sentencepiece loses; as above where there are not enough."""
    files = sorted({*stdlib_folder().rglob("*.py"), *Path(sysconfig.get_paths()["purelib"]).rglob("*.py")})
    random.Random(0).shuffle(files)
    return _enough((text for path in files if SPACE_MARK not in (text := _read(path))), megabytes)


def _enough(sources: Iterable[str], megabytes: float) -> Iterator[str]:
    texts = [text for text in dict.fromkeys(sources) if text]
    size = 0
    for number, text in enumerate(itertools.cycle(texts)):
        if size >= megabytes * 1e6:
            return
        yield text if number < len(texts) else f"# copy {number}\n{text}"
        size += len(text.encode())


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def size_of(texts: list[str]) -> float:
    """Megabytes."""
    return sum(len(text.encode()) for text in texts) / 1e6


def write_inputs(folder: Path, texts: list[str]) -> Path:
    """The files in `folder / "in"`; the tokenizer, also in the form that datatrove reads, and its path."""
    (folder / "in").mkdir()
    for number in range(NUM_FILES):
        share = slice(len(texts) * number // NUM_FILES, len(texts) * (number + 1) // NUM_FILES)
        write_jsonl(folder / "in" / f"{number}.jsonl", texts[share])
    data = data_config(folder / "first", [folder / "in"])
    prepare(data, tokenizer_config(vocab_size=8192, sample_bytes=30 << 20), prepare_config(), seq_length=2048)
    model = folder / "tokenizer.model"
    shutil.copy(folder / "first" / "tokenizer.model", model)
    (folder / "tokenizer.json").write_text(json.dumps(hugging_face_form(model)), encoding="utf-8")
    return model


def run_ours(target: Path, workers: int, inputs: Sequence[Path] = ()) -> float:
    data = data_config(target, inputs or [target.parent / "in"], samples_per_member=64, shard_bytes=1 << 28)
    tokenizer = tokenizer_config(path=str(target.parent / "tokenizer.model"))
    encode_task._tokenizer.cache_clear()  # else one process would remember the words of the round before
    begin = time.perf_counter()
    prepare(data, tokenizer, prepare_config(num_workers=workers), seq_length=2048)
    return time.perf_counter() - begin


def run_apart(target: Path) -> float:
    files = sorted((target.parent / "in").iterdir())
    context = multiprocessing.get_context("spawn")
    both_are_there = context.Barrier(3)
    with context.Pool(2, both_are_there.wait) as pool:
        both_are_there.wait()
        halves = [(target.with_name(f"half{half}"), 1, files[half::2]) for half in range(2)]
        begin = time.perf_counter()
        pool.starmap(run_ours, halves, chunksize=1)
        seconds = time.perf_counter() - begin
    for half, *_ in halves:
        shutil.rmtree(half)
    return seconds


def run_without_numba(target: Path, workers: int) -> float:
    blocked = target.parent / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "numba.py").write_text("raise ImportError('left out by the benchmark')", encoding="utf-8")
    bulk = sentencepiece_model.BULK_CHARS
    sys.path.insert(0, str(blocked))  # workers get the path, and this process never has enough text for it
    sentencepiece_model.BULK_CHARS = 1 << 60
    try:
        return run_ours(target, workers)
    finally:
        sys.path.remove(str(blocked))
        sentencepiece_model.BULK_CHARS = bulk


def run_theirs(target: Path, workers: int) -> float:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    model = str(target.parent / "tokenizer.model")
    begin = time.perf_counter()
    target.mkdir()
    builder = IndexedDatasetBuilder(str(target / "all.bin"), dtype=np.uint16)
    with multiprocessing.get_context("spawn").Pool(workers, _load, (model,)) as pool:
        for path in sorted((target.parent / "in").iterdir()):
            with path.open(encoding="utf-8") as lines:
                for ids in pool.imap(_encode, lines, CHUNK):
                    builder.add_item(torch.tensor(ids, dtype=torch.int32))
                    builder.end_document()
    builder.finalize(str(target / "all.idx"))
    return time.perf_counter() - begin


def _load(path: str) -> None:
    global _processor
    _processor = sentencepiece.SentencePieceProcessor(model_file=path)


def _encode(line: str) -> list[int]:
    return [*_processor.encode(json.loads(line)["text"]), _processor.eos_id()]


def run_datatrove(target: Path, workers: int, python: str) -> float:
    folder = target.parent
    words = [python, str(PEER), str(folder / "in"), str(folder / "tokenizer.json"), str(target), str(workers)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert not done.returncode, f"datatrove failed: {done.stderr[-2000:]}"
    seconds: float = json.loads(done.stdout)["seconds"]
    return seconds


def num_tokens(title: str, target: Path) -> int:
    """That were written, ends of documents included."""
    if title in (OURS, FAST):
        return sum(PackedDataset.open(target, split).record.num_tokens for split in ("train", "validation"))
    pattern = "all.bin" if title == MEGATRON else "tokens/*.ds"
    return sum(path.stat().st_size for path in target.glob(pattern)) // 2


def hugging_face_form(model: Path) -> dict[str, Any]:
    """The tokenizer.json that does what a BPE model of our training does."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = list(range(processor.get_piece_size()))
    pieces = processor.id_to_piece(ids)
    merged_by = [not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)) for i in ids]
    scores = {pieces[i]: processor.get_score(i) for i in ids if merged_by[i]}
    merges = [
        (-score, piece[:at], piece[at:])
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    model_of_it = {
        "type": "BPE",
        "unk_token": pieces[processor.unk_id()],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": [pair for _, *pair in sorted(merges, key=lambda merge: merge[0])],
    }
    return {"version": "1.0", "added_tokens": [], "normalizer": space, "model": model_of_it}


def encode_alone(model: Path, texts: list[str]) -> None:
    """Prints speeds of the first pass over a text and of the second one, in processor time."""
    ends = np.cumsum([len(text.encode()) for text in texts])
    sample = texts[: int(np.searchsorted(ends, 20e6)) + 1]
    processor, ours = sentencepiece.SentencePieceProcessor(model_file=str(model)), load_tokenizer(model)
    encoders = {
        "sentencepiece": lambda: [np.array(ids) for ids in processor.encode(sample)],
        OURS: lambda: ours._word_cache.encode(sample),
    }
    if importlib.util.find_spec("numba"):
        from data_pipeline.tokenizers.numba_bpe import NumbaBpe

        byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        compiled = NumbaBpe(ours._pieces_of_text(), byte_ids)
        encoders[FAST] = lambda: compiled.encode(sample)
    if importlib.util.find_spec("gigatoken"):
        import gigatoken

        fast = gigatoken.Tokenizer.from_sentencepiece(str(model))
        title = f"gigatoken {importlib.metadata.version('gigatoken')}"
        encoders[title] = lambda: list(map(np.asarray, fast.encode_batch(sample, parallel=False)))
    expected = encoders["sentencepiece"]()
    for title, encode in encoders.items():
        speeds = []
        for _ in range(2):
            begin = time.process_time()
            found = encode()
            speeds.append(size_of(sample) / (time.process_time() - begin))
        differ = sum(not np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        print(f"encoding alone, {title:18} {speeds[0]:6.1f} MB/s, again {speeds[1]:6.1f}; {differ} documents differ")


if __name__ == "__main__":
    main()
