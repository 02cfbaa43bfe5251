"""Small synthetic text with the shape of real text: words of uneven frequency, lines, paragraphs."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from data_pipeline.config import (
    CacheConfig,
    DataConfig,
    DecontaminateConfig,
    PrepareConfig,
    SlurmConfig,
    TokenizerConfig,
)
from data_pipeline.dedup.minhash import DEFAULT
from data_pipeline.prepare.dataset import prepare
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.tokenizers.loading import load_tokenizer

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mu", "na", "pe", "ri", "sa", "to", "vu"]


def make_texts(count: int, seed: int = 0, num_lines: int = 20) -> list[str]:
    """Documents that all differ; equal arguments give equal documents."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    texts = []
    for number in range(count):
        lines = [f"# document {number} of {seed}"]
        for _ in range(rng.randint(1, 2 * num_lines)):
            indent = "    " * rng.randint(0, 2)
            lines.append(
                indent + " ".join(rng.choices(words, weights, k=rng.randint(1, 12))) + f" = {rng.random():.3f}"
            )
        texts.append("\n".join(lines) + "\n")
    return texts


def write_jsonl(path: Path, texts: Iterable[str], key: str = "text") -> Path:
    """One JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": n, key: text}) + "\n" for n, text in enumerate(texts))
    return path


def write_folder(folder: Path, texts: Sequence[str], suffix: str = ".txt") -> Path:
    """One file per document."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}{suffix}").write_bytes(text.encode())
    return folder


def data_config(path: Path, inputs: Sequence[Path | str], **changes: object) -> DataConfig:
    """The configuration of a small dataset."""
    defaults: dict[str, object] = {
        "name": "synthetic",
        "path": str(path),
        "inputs": tuple(str(given) for given in inputs),
        "include": ("*.txt", "*.jsonl", "*.py", "*.gz", "*.zst"),
        "text_key": "text",
        "encoding_errors": "fail",
        "max_document_bytes": 1 << 20,
        "steps": (),
        "dedup": "none",
        "near_dedup": DEFAULT,
        "decontaminate": DecontaminateConfig(inputs=(), text_key="text", ngram=13),
        "validation_fraction": 0.1,
        "validation_min_bytes": 2000,
        "samples_per_member": 4,
        "shard_bytes": 20_000,
        "packing": "stream",
        "mixture": None,
        "mixture_max_epochs": None,
        "mixture_later": (),
        "document_mask": False,
        "on_bad_shard": "stop",
        "cache": cache_config(path.parent / "cache"),
    }
    return DataConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def cache_config(folder: Path | str, **changes: object) -> CacheConfig:
    """A cache with enough room and a short timeout."""
    defaults: dict[str, object] = {
        "dir": str(folder),
        "max_bytes": 1 << 30,
        "retries": 2,
        "retry_seconds": 0.01,
        "timeout_seconds": 5.0,
        "allow_pipe": False,
    }
    return CacheConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def tokenizer_config(**changes: object) -> TokenizerConfig:
    """A small BPE tokenizer."""
    defaults: dict[str, object] = {
        "kind": "bpe",
        "vocab_size": 420,
        "sample_bytes": 1 << 20,
        "path": None,
        "eod": None,
        "seed": 1,
    }
    return TokenizerConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def prepare_config(**changes: object) -> PrepareConfig:
    """The product's defaults, but with one process."""
    jobs = SlurmConfig(jobs=1, cores=1, memory="1GB", time="00:10:00", partition=None, account=None, sbatch_flags=())
    defaults = {"executor": "local", "num_workers": 1, "dask_scheduler": None, "slurm": jobs, "report": False}
    return PrepareConfig(**{**defaults, "overwrite": False, **changes})  # type: ignore[arg-type]


def prepare_synthetic(
    path: Path,
    inputs: Sequence[Path | str],
    *,
    seq_length: int = 16,
    overwrite: bool = False,
    num_workers: int = 1,
    report: bool = False,
    how: Mapping[str, object] = MappingProxyType({}),
    tokenizer: TokenizerConfig | None = None,
    **changes: object,
) -> Manifest:
    """A small prepared dataset at `path`."""
    return prepare(
        data_config(path, inputs, **changes),
        tokenizer or tokenizer_config(),
        prepare_config(**{"num_workers": num_workers, "report": report, "overwrite": overwrite, **how}),
        seq_length=seq_length,
    )


def documents_of(folder: Path, split: str) -> list[str]:
    """The text of each document, decoded from the tokens. The last one lacks its tail."""
    dataset = PackedDataset.open(folder, split)
    samples = dataset.read(np.arange(dataset.num_samples))
    row = [int(samples[0, 0]), *samples[:, 1:].ravel().tolist()]
    tokenizer = load_tokenizer(folder / "tokenizer.model", dataset.manifest.tokenizer.fingerprint)
    documents: list[str] = []
    current: list[int] = []
    for token in row:
        if token == tokenizer.eod_id:
            documents.append(tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    return [*documents, tokenizer.decode(current)]
