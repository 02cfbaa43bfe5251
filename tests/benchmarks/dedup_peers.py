"""Near-duplicates by datasketch or datatrove, as their manuals use them; run by an interpreter that has them.

    PYTHON tests/benchmarks/dedup_peers.py datasketch FILE

FILE is JSON: texts, repeats, shingle_words, bands, rows, similarity. Prints JSON: version, seconds of processor time
for signatures and for clusters (one of each per repeat), numbers of the documents left out, growth of peak memory.
"""

import importlib.metadata
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Timed = tuple[float, float, list[int]]


def memory_bytes(key: str) -> int:
    """VmRSS: now; VmHWM: the most since this program began (what getrusage says includes its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def datasketch(task: dict[str, Any]) -> Timed:
    """Each text queries an index of the kept texts for candidates, and is kept if none of them is similar."""
    from datasketch import MinHash, MinHashLSH

    began = time.process_time()
    signatures = []
    for text in task["texts"]:
        words = re.findall("[a-z0-9]+", text.lower())
        size = task["shingle_words"]
        signature = MinHash(num_perm=task["bands"] * task["rows"])
        signature.update_batch({" ".join(words[at : at + size]).encode() for at in range(len(words) - size + 1)})
        signatures.append(signature)
    middle = time.process_time()
    index = MinHashLSH(num_perm=task["bands"] * task["rows"], params=(task["bands"], task["rows"]))
    left_out = []
    for number, signature in enumerate(signatures):
        if any(signatures[other].jaccard(signature) >= task["similarity"] for other in index.query(signature)):
            left_out.append(number)
        else:
            index.insert(number, signature)
    return middle - began, time.process_time() - middle, left_out


def datatrove(task: dict[str, Any]) -> Timed:
    """Its three stages one after another in this process; it does not verify candidates."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(
        n_grams=task["shingle_words"], num_buckets=task["bands"], hashes_per_bucket=task["rows"], seed=1
    )
    with tempfile.TemporaryDirectory() as folder:
        stage = MinhashDedupSignature(f"{folder}/signatures", config)
        began = time.process_time()
        stage.run(Document(text, str(number)) for number, text in enumerate(task["texts"]))
        middle = time.process_time()
        for rank in range(task["bands"]):
            buckets = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)
            buckets.run(None, rank, task["bands"])
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config).run(None, 0, 1)
        end = time.process_time()
        removed = b"".join(path.read_bytes() for path in sorted(Path(folder, "removed").glob("*.remove")))
    left_out = [int.from_bytes(removed[at : at + 4], "little") for at in range(0, len(removed), 4)]
    return middle - began, end - middle, left_out


PEERS: dict[str, Callable[[dict[str, Any]], Timed]] = {"datasketch": datasketch, "datatrove": datatrove}


def main(name: str, file: str) -> None:
    task = json.loads(Path(file).read_text())
    PEERS[name]({**task, "texts": task["texts"][:10]})  # imports and tables are not counted
    before = memory_bytes("VmRSS")
    first = PEERS[name](task)
    growth = memory_bytes("VmHWM") - before
    runs = [first] + [PEERS[name](task) for _ in range(task["repeats"] - 1)]
    result = {
        "version": importlib.metadata.version(name),
        "signatures": [run[0] for run in runs],
        "clusters": [run[1] for run in runs],
        "left_out": first[2],
        "growth": growth,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
