"""Text that exercises every way to drop or change a document, and the settings for it."""

import random
from pathlib import Path

from data_pipeline.config import DecontaminateConfig
from tests.support.corpus import make_texts, write_folder, write_jsonl
from tests.support.planted import edited

BENCHMARK = "What is the airspeed velocity of an unladen swallow that carries a coconut over the sea to England?"
REPEATED = "\nA line.\nA line.\n"
NUM_COPIES, NUM_NEAR, NUM_ADDRESSES, NUM_KNOWN, NUM_SHORT, NUM_BROKEN = 12, 14, 9, 7, 5, 3
DROPPED = {
    "decontaminate/held_out_ngram": NUM_KNOWN,
    "dedup/exact": NUM_COPIES + NUM_ADDRESSES,
    "dedup/near": NUM_NEAR,
    "length/too_few_chars": NUM_SHORT,
    "not_utf8": NUM_BROKEN,
}
"""Documents that `dirty_settings` with dedup=near leaves out; dedup=exact leaves out exact copies only."""
CHANGED = {"lines/repeated": 2 * NUM_ADDRESSES, "pii/email": 2 * NUM_ADDRESSES}


def write_dirty(folder: Path, num_texts: int = 150) -> list[Path]:
    """Two JSON lines files and a folder of text files. Copies, near copies and addresses occur across them."""
    chance = random.Random(1)
    clean = make_texts(num_texts)
    long = [text for text in clean if text.count(" ") > 100]
    words = sorted({word for text in clean for word in text.split()})
    with_address = make_texts(NUM_ADDRESSES, seed=1)
    planted = [
        *clean[:NUM_COPIES],
        *(edited(text, 0.02, words, chance) for text in long[-NUM_NEAR:]),
        # Equal except for the address: copies once it is masked.
        *(
            f"{text}\nA line.\nA line.\nWrite to {name}@example.com\n"
            for name in ("you", "me")
            for text in with_address
        ),
        *(f"{text}{BENCHMARK.upper()}" for text in make_texts(NUM_KNOWN, seed=2)),
        *(f"tiny {number}" for number in range(NUM_SHORT)),
    ]
    texts = chance.sample(planted + clean, len(planted) + len(clean))
    third = len(texts) // 3
    folder.mkdir(parents=True, exist_ok=True)
    first = write_jsonl(folder / "first.jsonl", texts[:third])
    lines = first.read_bytes().splitlines(keepends=True)
    for number in range(NUM_BROKEN):
        lines.insert(10 * number, b'{"text": "\xff"}\n')
    first.write_bytes(b"".join(lines))
    second = write_jsonl(folder / "second.jsonl", texts[third : 2 * third])
    return [first, second, write_folder(folder / "third", texts[2 * third :])]


def dirty_settings(folder: Path, dedup: str = "near") -> dict[str, object]:
    """Changes for `data_config`. Writes the benchmark's file into the folder."""
    benchmark = folder / "benchmark.txt"
    if not benchmark.exists():
        benchmark.write_text(BENCHMARK)
    return {
        "steps": (
            {"step": "lines", "max_repeats": 1},
            {"step": "pii", "email": "mask"},
            {"step": "length", "min_chars": 30},
        ),
        "dedup": dedup,
        "decontaminate": DecontaminateConfig(inputs=(str(benchmark),), text_key="text", ngram=13),
        "encoding_errors": "skip",
    }
