"""Near-duplicates: speed, memory, and what is found of copies with edited words; other libraries on the same documents.

    python -m tests.benchmarks.dedup [--datasketch PYTHON] [--datatrove PYTHON]

Documents are 120 to 300 words of the docstrings and help topics of the running Python, without those similar to another
one, and a copy of each with some of its words replaced by others of the same text. PYTHON is an interpreter that has
the library. Times are of the processor, medians of REPEATS. Each library gets its text in memory and runs in one
process; datatrove's signatures go through files, its words through spaCy.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dedup.clusters import near_duplicates
from data_pipeline.dedup.minhash import DEFAULT, signatures
from tests.benchmarks import dedup_peers
from tests.support.planted import docstrings, documents, edited, jaccard, topics, vocabulary

REPEATS = 5
SHARES = (0.0, 0.05, 0.1, 0.2)
MEMORY_DOCUMENTS, PIECE = 200_000, 2_000


def ours(texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """As dedup_peers.py has it."""
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        began = time.process_time()
        rows = signatures(texts, DEFAULT)
        middle = time.process_time()
        originals = near_duplicates(rows, DEFAULT)
        seconds.append((middle - began, time.process_time() - middle))
    return {
        "version": "this tree",
        "signatures": [pair[0] for pair in seconds],
        "clusters": [pair[1] for pair in seconds],
        "left_out": np.flatnonzero(originals != np.arange(len(texts))).tolist(),
        "originals": originals,
    }


def theirs(name: str, python: str, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    config = {key: getattr(DEFAULT, key) for key in ("shingle_words", "bands", "rows", "similarity")}
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        task.write_text(json.dumps({"texts": texts, "repeats": repeats, **config}))
        command = [python, dedup_peers.__file__, name, str(task)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} under {python} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def found(result: dict[str, Any], num_pairs: int) -> str:
    """The share of pairs of which at least one was left out; how many documents were left out besides."""
    left_out = set(result["left_out"])
    pairs = sum(number in left_out or number + num_pairs in left_out for number in range(num_pairs))
    return f"{pairs / num_pairs:.3f} (+{len(left_out) - pairs})"


def grow(sender: Any, num_documents: int, words: list[str]) -> None:
    """How far the peak of memory rises over signatures and clusters of documents of random words, one in ten a copy."""
    chance = random.Random(1)
    texts: list[str] = []
    signatures(["warm up"], DEFAULT)
    before = dedup_peers.memory_bytes("VmRSS")
    rows = np.empty((num_documents, DEFAULT.permutations), np.uint32)
    for first in range(0, num_documents, PIECE):
        texts = [" ".join(chance.choices(words, k=210)) for _ in range(PIECE * 9 // 10)]
        texts += [edited(text, 0.05, words, chance) for text in texts[: PIECE // 10]]
        rows[first : first + PIECE] = signatures(texts, DEFAULT)
    began = time.process_time()
    copies = int((near_duplicates(rows, DEFAULT) != np.arange(num_documents)).sum())
    sender.send((dedup_peers.memory_bytes("VmHWM") - before, copies, time.process_time() - began))


def report_memory(words: list[str]) -> float:
    """Prints and returns bytes a document."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=grow, args=(sender, MEMORY_DOCUMENTS, words))
    process.start()
    growth, copies, seconds = receiver.recv()
    process.join()
    print(
        f"\n{MEMORY_DOCUMENTS:,} documents of random words, {copies:,} copies found of {MEMORY_DOCUMENTS // 10:,}; "
        f"clusters {MEMORY_DOCUMENTS / seconds:,.0f} documents/s"
    )
    print(
        f"peak of memory rose by {growth / 1e6:,.0f} MB, signatures included: extrapolated linearly "
        f"{growth / MEMORY_DOCUMENTS / 1000:.2f} GB per million documents"
    )
    return growth / MEMORY_DOCUMENTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in dedup_peers.PEERS:
        parser.add_argument(f"--{name}", metavar="PYTHON")
    pythons = {name: python for name, python in vars(parser.parse_args()).items() if python}

    texts = documents(itertools.chain(topics(), docstrings()), seed=1)
    texts = [texts[number] for number in np.unique(near_duplicates(signatures(texts, DEFAULT), DEFAULT))]
    words, chance = vocabulary(texts), random.Random(2)
    corpora = {share: texts + [edited(t, share, words, chance) if share else t for t in texts] for share in SHARES}
    results: dict[str, dict[float, dict[str, Any]]] = {"ours": {}, **{name: {} for name in pythons}}
    for share, corpus in corpora.items():
        repeats = REPEATS if share == 0.05 else 1
        results["ours"][share] = ours(corpus, repeats)
        for name, python in pythons.items():
            results[name][share] = theirs(name, python, corpus, repeats)

    num_bytes = sum(len(text.encode()) for text in corpora[0.05])
    print(f"Python {platform.python_version()}, numpy {np.__version__}; {DEFAULT}")
    print(f"{len(texts):,} documents of {num_bytes / len(texts) / 2:,.0f} bytes and as many copies")
    print(f"\n{'copies found, at a share of edited words of':36}" + "".join(f"{share:>16.0%}" for share in SHARES))
    for name, by_share in results.items():
        print(f"{name:43}" + "".join(f"{found(by_share[share], len(texts)):>16}" for share in SHARES))
    print("(+ documents left out besides)")
    for share, result in results["ours"].items():
        corpus = corpora[share]
        truth = [jaccard(corpus[n], corpus[result["originals"][n]], DEFAULT.shingle_words) for n in result["left_out"]]
        print(
            f"at {share:.0%}: true Jaccard similarity of what is left out to what is kept: {min(truth):.2f} at least, "
            f"{np.mean(np.array(truth) >= DEFAULT.similarity):.3f} of them {DEFAULT.similarity} or more"
        )

    heads = "".join(f"{head:>12}{'ours/it':>9}" for head in ("signatures", "clusters", "both"))
    print(f"\n{'documents/s, edits 5%':36}{heads}")
    rates = {name: speeds(by_share[0.05], len(corpora[0.05])) for name, by_share in results.items()}
    for name, three in rates.items():
        cells = "".join(f"{rate:12,.0f}{own / rate:9.1f}" for rate, own in zip(three, rates["ours"], strict=True))
        print(f"{name + ' ' + results[name][0.05]['version']:36}{cells}")
    bytes_each = report_memory(words)
    for name in pythons:
        theirs_each = results[name][0.05]["growth"] / len(corpora[0.05])
        print(
            f"{name}: rose by {theirs_each / 1000:.2f} GB per million, from {len(corpora[0.05]):,} documents; "
            f"it/ours {theirs_each / bytes_each:.1f}"
        )


def speeds(result: dict[str, Any], num_documents: int) -> tuple[float, float, float]:
    both = [sum(pair) for pair in zip(result["signatures"], result["clusters"], strict=True)]
    first, second, third = (
        num_documents / statistics.median(seconds) for seconds in (result["signatures"], result["clusters"], both)
    )
    return first, second, third


if __name__ == "__main__":
    main()
