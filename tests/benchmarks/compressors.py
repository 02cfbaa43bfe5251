"""Bits per byte of a run on its held-out text, next to general compressors on the very same text.

    python -m tests.benchmarks.compressors runs/quickstart

The text is decoded from the prepared dataset, so every byte that a compressor gets is one that the model was asked to
predict. `xz -9 with prefix` is what the held-out text adds to the compressed size of the training text, the dictionary
being large enough to hold both: a fair rival, for it has seen the training text as well.
"""

import argparse
import gzip
import json
import lzma
from pathlib import Path

import numpy as np

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.shards.token_rows import rows_of
from data_pipeline.tokenizers.loading import load_tokenizer
from pretrain.config.load import read_run_config


def split_text(folder: Path, split: str) -> bytes:
    """The documents of a split joined; only the tail that fills no sample is missing."""
    dataset = PackedDataset.open(folder, split)  # type: ignore[arg-type]
    record = dataset.manifest.tokenizer
    tokenizer = load_tokenizer(folder / record.file, record.fingerprint)
    tokens = np.concatenate([tokens for row in rows_of(dataset) for tokens in row])
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.eod_id))
    return "".join(tokenizer.decode([int(t) for t in d if t != tokenizer.eod_id]) for d in documents).encode()


def compressors(validation: bytes, training: bytes) -> dict[str, float]:
    """Bits per byte of `validation`."""
    with_prefix = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 27}]
    alone = len(lzma.compress(training, filters=with_prefix))
    both = len(lzma.compress(training + validation, filters=with_prefix))
    sizes = {
        "gzip -9": len(gzip.compress(validation, 9)),
        "xz -9": len(lzma.compress(validation, preset=9)),
        "xz -9 with the training text as prefix": both - alone,
    }
    return {name: 8 * size / len(validation) for name, size in sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    folder = Path(read_run_config(run / "config.yaml").data.path)
    validation = split_text(folder, "validation")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "validation"][-1]
    model = float(last["bits_per_byte"])
    print(f"{len(validation):,} bytes of held-out text; model at step {last['step']} on {last['samples']} samples")
    print(f"{'':40} bits per byte   model / it")
    print(f"{'model':40} {model:13.4f}")
    for name, bits in compressors(validation, split_text(folder, "train")).items():
        print(f"{name:40} {bits:13.4f}   {model / bits:10.3f}")


if __name__ == "__main__":
    main()
